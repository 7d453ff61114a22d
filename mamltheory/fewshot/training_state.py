"""What a training saves and takes up again: weights, momenta, the position in the epoch, the scale of the loss."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, NotRequired, TypedDict

import torch
from torch import Tensor

from mamltheory.errors import CheckpointError
from mamltheory.fewshot.images import ImageData, fingerprint
from mamltheory.fewshot.inputs import inputs_of
from mamltheory.fewshot.train import TrainConfig, TrainState
from mamltheory.files import reason, shown
from mamltheory.strict_json import misfit


class _Numbers(TypedDict):
    """What :func:`state_tensors` gives beside the tensors; what a reader checks itself may be anything."""

    epoch: Annotated[int, 0]
    step: Annotated[int, 0]
    totals: object
    config: NotRequired[dict[str, object]]
    data: object


def state_tensors(state: TrainState) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Everything that a continuation needs: named CPU tensors, and numbers and settings fit for JSON."""
    network = {f"network/{name}": value for name, value in state.network.state_dict().items()}
    tensors = {
        name: value.detach().cpu().clone().contiguous() for name, value in (network | _momenta(state)).items()
    }
    return tensors, {
        "epoch": state.epoch,
        "step": state.step,
        "totals": list(state.totals),
        "scaler": _scaler_record(state.scaler),
        "config": _config_record(state.config),
        "data": _data_record(state.data),
        "inputs": inputs_of(state.data).record(),
    }


def restore(state: TrainState, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]) -> TrainState:
    """The saved state, loaded into a fresh one of the same network, data and settings.

    Raises CheckpointError when the settings or the data differ, or the tensors do not fit the network.
    `epochs` may differ as long as there is no drop path, whose ramp depends on it.
    """
    if wrong := misfit(numbers, _Numbers, "the saved training"):
        raise CheckpointError(f"{wrong}: start anew with another --out")
    saved, ours = dict(numbers.get("config", {})), _config_record(state.config)
    if not state.config.drop_path and not saved.get("drop_path"):
        saved["epochs"] = ours["epochs"]
    different = [name for name in ours if saved.get(name) != ours[name]]
    if different or numbers.get("data") != _data_record(state.data):
        settings = ", ".join(f"{name} {shown(saved.get(name))} (now {ours[name]})" for name in different)
        what = settings or "the data set"
        raise CheckpointError(
            f"the saved training differs in {what}: continue with its settings, or start anew"
        )
    epoch, step = numbers["epoch"], numbers["step"]
    if step >= state.steps:
        raise CheckpointError(
            f"the saved training says step {step} of {state.steps} in an epoch: start anew with another --out"
        )
    load_weights(state.network, tensors)
    _load_momenta(state, tensors, epoch or step)
    _load_scaler(state.scaler, numbers)
    return dataclasses.replace(state, epoch=epoch, step=step, totals=_totals(numbers))


def load_weights(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the saved weights into a network; raises CheckpointError when they do not fit it."""
    prefix = "network/"
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    types = {name: value.dtype for name, value in network.state_dict().items()}
    if wrong := next(
        (name for name in weights if weights[name].dtype != types.get(name, weights[name].dtype)), None
    ):
        raise CheckpointError(
            f"the saved weights do not fit this network: {wrong[:80]!r} is of {weights[wrong].dtype} for {types[wrong]}"
        )
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the saved weights do not fit this network: {reason(error)}") from None


def same_images(numbers: Mapping[str, object], data: ImageData) -> bool:
    """Whether a training was saved on these training images, under whatever name the data set went."""
    return str(numbers.get("data")).rpartition(" ")[2] == fingerprint(data.train)


def _config_record(config: TrainConfig) -> dict[str, object]:
    record = dataclasses.asdict(config)
    return record | {"milestones": list(config.milestones)}


def _data_record(data: ImageData) -> str:
    return f"{data.name} {fingerprint(data.train)}"


def _momenta(state: TrainState) -> dict[str, Tensor]:
    buffers = (
        (name, state.optimizer.state[p].get("momentum_buffer"))
        for name, p in state.network.named_parameters()
    )
    return {f"momentum/{name}": buffer for name, buffer in buffers if buffer is not None}


def _load_momenta(state: TrainState, tensors: Mapping[str, Tensor], begun: int) -> None:
    for name, parameter in state.network.named_parameters():
        buffer = tensors.get(f"momentum/{name}")
        if buffer is None:
            continue  # a parameter without gradient has none, nor has any before the first step
        if buffer.shape != parameter.shape:
            raise CheckpointError(f"the saved momentum of {name} has shape {tuple(buffer.shape)}: start anew")
        # In the layout of the weights: a step over mixed layouts may round otherwise.
        own = torch.empty_like(parameter, requires_grad=False).copy_(buffer)
        state.optimizer.state[parameter]["momentum_buffer"] = own
    if begun and state.config.momentum and not any(name.startswith("momentum/") for name in tensors):
        raise CheckpointError(
            "the saved training has begun and holds no momentum: it is incomplete, start anew"
        )


def _totals(numbers: Mapping[str, object]) -> tuple[float, float]:
    match numbers.get("totals"):
        case [float(loss), float(correct)] if math.isfinite(loss) and math.isfinite(correct):
            return loss, correct
        case other:
            raise CheckpointError(
                f"the saved training has the totals {shown(other)}: expected two numbers; start anew"
            )


def _scaler_record(scaler: torch.amp.GradScaler) -> dict[str, object] | None:
    return scaler.state_dict() if scaler.is_enabled() else None


def _load_scaler(scaler: torch.amp.GradScaler, numbers: Mapping[str, object]) -> None:
    if not scaler.is_enabled():
        return
    saved, ours = numbers.get("scaler"), scaler.state_dict()
    if not isinstance(saved, dict) or any(type(saved.get(name)) is not type(ours[name]) for name in ours):
        raise CheckpointError(f"the saved training has no scale of the loss ({shown(saved)}): start anew")
    scaler.load_state_dict(saved)
