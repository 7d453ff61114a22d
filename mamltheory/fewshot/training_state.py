"""The saved state of a training: weights, momenta, position in the epoch, scale of the loss, expected inputs."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from mamltheory.errors import CheckpointError, ValueRangeError
from mamltheory.fewshot.images import ChannelValues, ImageData, check_statistics, fingerprint
from mamltheory.fewshot.training import TrainConfig, TrainState
from mamltheory.files import reason, shown
from mamltheory.strict_json import misfit


@dataclass(frozen=True)
class Inputs:
    """The images and classes that a trained network expects; saved with its weights.

    Attributes:
        image_size: side of the square images in pixels.
        classes: number of training classes, one logit each.
        mean, std: channel means and standard deviations on the scale 0..1.
        mirrors: whether a mirrored image shows the same class.
    """

    image_size: int
    classes: int
    mean: ChannelValues
    std: ChannelValues
    mirrors: bool

    def record(self) -> dict[str, Any]:
        """The values as JSON returns them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def inputs_of(data: ImageData) -> Inputs:
    """The inputs that a network trained on these data expects."""
    side, classes = data.train.images.shape[1], len(data.train.class_names)
    return Inputs(side, classes, data.mean, data.std, data.mirrors)


def recorded_inputs(record: object) -> Inputs:
    """The inverse of :meth:`Inputs.record`; raises CheckpointError for anything that it would not write."""
    match record:
        case {
            "image_size": int(size), "classes": int(classes), "mirrors": bool(mirrors),
            "mean": [float(), float(), float()] as mean, "std": [float(), float(), float()] as std,
        } if min(size, classes) > 0:  # fmt: skip
            inputs = Inputs(size, classes, tuple(mean), tuple(std), mirrors)
        case _:
            raise CheckpointError(
                f"the saved training describes its images as {shown(record)}: expected image_size, classes, mean, "
                "std and mirrors; train again"
            )
    try:
        check_statistics(inputs.mean, inputs.std)
    except ValueRangeError as error:
        raise CheckpointError(
            f"the saved training describes impossible images ({error}): train again"
        ) from None
    return inputs


class _Numbers(TypedDict):
    """The values that :func:`state_tensors` returns with the tensors; entries that are checked elsewhere are object."""

    epoch: Annotated[int, 0]
    step: Annotated[int, 0]
    totals: object
    config: NotRequired[dict[str, object]]
    data: object


def state_tensors(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state to save: named CPU tensors, and numbers and settings as JSON values."""
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


def restore(state: TrainState, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> TrainState:
    """Return the saved state, loaded into a new one of the same network, data and settings.

    Args:
        state: the state before the first step. Its ``epochs`` may differ from the saved one unless there is drop path,
            whose ramp depends on it.
        tensors: the saved tensors.
        numbers: the saved numbers and settings.

    Raises:
        CheckpointError: the settings or the data differ, or the tensors do not fit the network.
    """
    if wrong := misfit(numbers, _Numbers, "the saved training"):
        raise CheckpointError(f"{wrong}: start again with another --out")
    saved, ours = dict(numbers.get("config", {})), _config_record(state.config)
    if not state.config.drop_path and not saved.get("drop_path"):
        saved["epochs"] = ours["epochs"]
    different = [name for name in ours if saved.get(name) != ours[name]]
    if different or numbers.get("data") != _data_record(state.data):
        settings = ", ".join(f"{name} {shown(saved.get(name))} (now {ours[name]})" for name in different)
        what = settings or "the data set"
        raise CheckpointError(
            f"the saved training differs in {what}: continue with its settings, or start again"
        )
    epoch, step = numbers["epoch"], numbers["step"]
    if step >= state.steps:
        raise CheckpointError(
            f"the saved training says step {step} of {state.steps} in an epoch: start again with another --out"
        )
    load_weights(state.network, tensors)
    _load_momenta(state, tensors, epoch or step)
    _load_scaler(state.scaler, numbers)
    return dataclasses.replace(state, epoch=epoch, step=step, totals=_totals(numbers))


def load_weights(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the saved weights into a network; raises CheckpointError when they do not fit it."""
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


def same_images(numbers: Mapping[str, Any], data: ImageData) -> bool:
    """Whether a training was saved on these training images, whatever the name of the data set."""
    return str(numbers.get("data")).rpartition(" ")[2] == fingerprint(data.train)


def _config_record(config: TrainConfig) -> dict[str, object]:
    return asdict(config) | {"milestones": list(config.milestones)}


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
            continue  # without gradient, or before the first step
        if buffer.shape != parameter.shape:
            raise CheckpointError(
                f"the saved momentum of {name} has shape {tuple(buffer.shape)}: start again"
            )
        # In the layout of the weights: a step over mixed layouts may round differently.
        own = torch.empty_like(parameter, requires_grad=False).copy_(buffer)
        state.optimizer.state[parameter]["momentum_buffer"] = own
    if begun and state.config.momentum and not any(name.startswith("momentum/") for name in tensors):
        raise CheckpointError(
            "the saved training has begun and holds no momentum: it is incomplete, start again"
        )


def _totals(numbers: Mapping[str, Any]) -> tuple[float, float]:
    match numbers.get("totals"):
        case [float(loss), float(correct)] if math.isfinite(loss) and math.isfinite(correct):
            return loss, correct
        case other:
            raise CheckpointError(
                f"the saved training has the totals {shown(other)}: expected two numbers; start again"
            )


def _scaler_record(scaler: torch.amp.GradScaler) -> dict[str, object] | None:
    return scaler.state_dict() if scaler.is_enabled() else None


def _load_scaler(scaler: torch.amp.GradScaler, numbers: Mapping[str, Any]) -> None:
    if not scaler.is_enabled():
        return
    saved, ours = numbers.get("scaler"), scaler.state_dict()
    if not isinstance(saved, dict) or any(type(saved.get(name)) is not type(ours[name]) for name in ours):
        raise CheckpointError(f"the saved training has no scale of the loss ({shown(saved)}): start again")
    scaler.load_state_dict(saved)
