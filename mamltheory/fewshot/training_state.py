"""What a training saves and takes up again: weights, momenta, the position in the epoch, the scale of the loss."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mamltheory.errors import CheckpointError
from mamltheory.fewshot.images import ImageData, fingerprint
from mamltheory.fewshot.inputs import inputs_of
from mamltheory.fewshot.train import TrainConfig, TrainState


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
    saved, ours = dict(numbers.get("config", {})), _config_record(state.config)
    if not state.config.drop_path and not saved.get("drop_path"):
        saved["epochs"] = ours["epochs"]
    different = [name for name in ours if saved.get(name) != ours[name]]
    if different or numbers.get("data") != _data_record(state.data):
        settings = ", ".join(f"{name} {saved.get(name)} (now {ours[name]})" for name in different)
        what = settings or "the data set"
        raise CheckpointError(
            f"the saved training differs in {what}: continue with its settings, or start anew"
        )
    epoch, step = (_count(numbers, name) for name in ("epoch", "step"))
    load_weights(state.network, tensors)
    _load_momenta(state, tensors, epoch or step)
    _load_scaler(state.scaler, numbers)
    return dataclasses.replace(state, epoch=epoch, step=step, totals=_totals(numbers))


def load_weights(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put the saved weights into a network; raises CheckpointError when they do not fit it."""
    prefix = "network/"
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the saved weights do not fit this network: {error}") from None


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


def _count(numbers: Mapping[str, object], name: str) -> int:
    value = numbers.get(name)
    if not isinstance(value, int) or value < 0:
        raise CheckpointError(
            f"the saved training says {name} {value!r}: expected a whole number; start anew"
        )
    return value


def _totals(numbers: Mapping[str, object]) -> tuple[float, float]:
    match numbers.get("totals"):
        case [float(loss), float(correct)] if math.isfinite(loss) and math.isfinite(correct):
            return loss, correct
        case other:
            raise CheckpointError(
                f"the saved training has the totals {other!r}: expected two numbers; start anew"
            )


def _scaler_record(scaler: torch.amp.GradScaler) -> dict[str, object] | None:
    return scaler.state_dict() if scaler.is_enabled() else None


def _load_scaler(scaler: torch.amp.GradScaler, numbers: Mapping[str, object]) -> None:
    if not scaler.is_enabled():
        return
    try:
        scaler.load_state_dict(numbers["scaler"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the saved training has no scale of the loss ({error}): start anew") from None
