"""Pre-training on the base classes as in RFS (Section 6.1, Appendix E): cross-entropy, SGD, step decay.

`train_epoch` takes a state to the next one. Order of the images, augmentation and drop path are pure
functions of (seed, epoch, step), so that on the CPU a state saved between two epochs continues bit for bit
as if never interrupted. Other randomness inside a network, such as torch.nn.Dropout, is outside this promise.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamltheory.errors import CheckpointError, ConfigurationError, ValueRangeError
from mamltheory.fewshot.augment import Augmentation, augment
from mamltheory.fewshot.images import ImageData, fingerprint, resident, take
from mamltheory.rng import derived_seed, generator

CHECK_EVERY = 100  # steps between two looks at the loss, each of which waits for the device


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the pre-training; the defaults are the paper's for mini-ImageNet with 5 cells (Appendix E).

    `milestones` are the last epochs (counted from 1) before the learning rate falls by `decay`: (60, 80)
    makes 61 and 81 the first decayed ones, as in RFS. Drop path grows to `drop_path` in the last epoch.
    `padding`, `jitter` and `flip` are those of :class:`Augmentation`. The last images of an epoch that fill
    no batch are left out.
    """

    batch_size: int = 64
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    epochs: int = 100
    milestones: tuple[int, ...] = (60, 80)
    decay: float = 0.1
    drop_path: float = 0.2
    padding: int | None = None
    jitter: float = 0.4
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 2 or self.epochs < 1:
            raise ConfigurationError(
                f"batch_size {self.batch_size} and epochs {self.epochs}: batch normalisation needs 2 images, "
                "training 1 epoch"
            )
        if not 0 < self.learning_rate < math.inf or not 0 < self.decay <= 1:
            raise ConfigurationError(
                f"learning_rate {self.learning_rate} must be positive and finite, decay {self.decay} in (0, "
                "1]"
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.drop_path < 1 or not 0 <= self.weight_decay < math.inf:
            raise ConfigurationError(
                f"momentum {self.momentum} and drop_path {self.drop_path} must lie in [0, 1), weight_decay "
                f"{self.weight_decay} be finite and not negative"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigurationError(
                f"milestones {self.milestones} must increase: sort them and drop repetitions"
            )
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """The settings of the training transform."""
        return Augmentation(self.padding, self.jitter, self.flip)

    def learning_rate_in(self, epoch: int) -> float:
        """Learning rate in an epoch, counted from 1."""
        return self.learning_rate * self.decay ** sum(epoch > milestone for milestone in self.milestones)

    def drop_path_in(self, epoch: int) -> float:
        """Drop-path probability in an epoch, counted from 1: a ramp that ends at `drop_path`."""
        return self.drop_path * epoch / self.epochs


@dataclass(frozen=True, eq=False)
class TrainState:
    """Where a training stands after `epoch` finished epochs.

    The network and the optimiser inside are updated in place by :func:`train_epoch`: go on with the state
    that it returns, and save with :func:`state_tensors` what has to outlive the next epoch.
    """

    network: torch.nn.Module
    optimizer: torch.optim.SGD
    data: ImageData
    images: np.ndarray | Tensor
    config: TrainConfig
    device: torch.device
    epoch: int = 0


@dataclass(frozen=True)
class EpochMetrics:
    """Means over one epoch of the augmented training images, taken while the weights were changing."""

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    drop_path: float


def start_training(
    network: torch.nn.Module, data: ImageData, config: TrainConfig, device: torch.device | str = "cpu"
) -> TrainState:
    """The state before the first epoch; the network is moved to the device.

    Raises ConfigurationError when a batch does not fit the data, when characters are to be mirrored, or when
    the network's logits are not one per training class.
    """
    device = torch.device(device)
    if config.batch_size > len(data.train):
        raise ConfigurationError(
            f"batch_size {config.batch_size} exceeds the {len(data.train)} training images: lower it"
        )
    if config.flip and not data.mirrors:
        raise ConfigurationError(f"a mirrored image of {data.name} shows another class: set flip to False")
    network = network.to(device)
    _check_logits(network, data, device)
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
    )
    return TrainState(network, optimizer, data, resident(data.train, device), config, device)


def train_epoch(
    state: TrainState, on_step: Callable[[int, int], None] | None = None
) -> tuple[TrainState, EpochMetrics]:
    """The state one epoch later; `on_step(steps done, steps in all)` is called after every step.

    Raises ValueRangeError as soon as the loss is seen not to be finite (looked at every 100 steps and at the
    end).
    """
    config, epoch = state.config, state.epoch + 1
    if epoch > config.epochs:
        raise ConfigurationError(f"all {config.epochs} epochs are done: raise epochs to train longer")
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate_in(epoch)
    if hasattr(state.network, "drop_path"):
        state.network.drop_path = config.drop_path_in(epoch)
    state.network.train()
    order = torch.randperm(len(state.data.train), generator=generator(config.seed, "shuffle", epoch)).numpy()
    steps = len(order) // config.batch_size
    totals = torch.zeros(2, device=state.device, dtype=torch.float64)
    for step in range(steps):
        totals += _train_step(state, epoch, step, order[step * config.batch_size :][: config.batch_size])
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            _check_finite(totals, epoch, step + 1, config)
        if on_step is not None:
            on_step(step + 1, steps)
    loss, correct = (totals / (steps * config.batch_size)).tolist()
    metrics = EpochMetrics(epoch, loss, correct, config.learning_rate_in(epoch), config.drop_path_in(epoch))
    return dataclasses.replace(state, epoch=epoch), metrics


def state_tensors(state: TrainState) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Everything that a continuation needs: named CPU tensors, and numbers and settings fit for JSON."""
    network = {f"network/{name}": value for name, value in state.network.state_dict().items()}
    tensors = {
        name: value.detach().cpu().clone().contiguous() for name, value in (network | _momenta(state)).items()
    }
    return tensors, {
        "epoch": state.epoch,
        "config": _config_record(state.config),
        "data": _data_record(state.data),
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
    epoch = numbers.get("epoch")
    if not isinstance(epoch, int) or epoch < 0:
        raise CheckpointError(f"the saved training says epoch {epoch!r}: expected a whole number; start anew")
    _load_network(state.network, tensors)
    _load_momenta(state, tensors, epoch)
    return dataclasses.replace(state, epoch=epoch)


def _train_step(state: TrainState, epoch: int, step: int, rows: np.ndarray) -> Tensor:
    """One SGD step; returns (sum of losses, number of correct predictions) without waiting for the device."""
    config, data = state.config, state.data
    random = generator(config.seed, "augment", epoch, step)
    x = augment(take(state.images, rows, state.device), config.augmentation(), data.mean, data.std, random)
    y = torch.from_numpy(data.train.labels[rows]).to(state.device)
    if hasattr(state.network, "seed_drop_path"):
        state.network.seed_drop_path(derived_seed(config.seed, "drop path", epoch, step))
    logits = state.network(x)
    loss = F.cross_entropy(logits, y)
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    return torch.stack([loss.detach().double() * len(rows), (logits.detach().argmax(1) == y).sum().double()])


def _check_logits(network: torch.nn.Module, data: ImageData, device: torch.device) -> None:
    mode = network.training
    network.eval()
    with torch.no_grad():
        shape = tuple(network(torch.zeros(2, 3, *data.train.images.shape[1:3], device=device)).shape)
    network.train(mode)
    if shape != (2, len(data.train.class_names)):
        raise ConfigurationError(
            f"the network gives logits of shape {shape} for 2 images; {data.name} has "
            f"{len(data.train.class_names)} training classes: build the network with that many outputs"
        )


def _check_finite(totals: Tensor, epoch: int, step: int, config: TrainConfig) -> None:
    if not bool(torch.isfinite(totals).all()):
        raise ValueRangeError(
            f"the training loss is not finite (epoch {epoch}, by step {step}, learning rate "
            f"{config.learning_rate_in(epoch):g}): lower learning_rate, or look for broken images"
        )


def _config_record(config: TrainConfig) -> dict[str, object]:
    record = dataclasses.asdict(config)
    return record | {"milestones": list(config.milestones)}


def _data_record(data: ImageData) -> str:
    return f"{data.name} {fingerprint(data.train)}"


def _momenta(state: TrainState) -> dict[str, Tensor]:
    buffers = ((name, state.optimizer.state[p].get("momentum_buffer")) for name, p in _trained(state))
    return {f"momentum/{name}": buffer for name, buffer in buffers if buffer is not None}


def _trained(state: TrainState) -> list[tuple[str, torch.nn.Parameter]]:
    return list(state.network.named_parameters())


def _load_network(network: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    prefix = "network/"
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"the saved weights do not fit this network: {error}") from None


def _load_momenta(state: TrainState, tensors: Mapping[str, Tensor], epoch: int) -> None:
    for name, parameter in _trained(state):
        buffer = tensors.get(f"momentum/{name}")
        if buffer is None:
            continue  # a parameter without gradient has none, nor has any before the first step
        if buffer.shape != parameter.shape:
            raise CheckpointError(f"the saved momentum of {name} has shape {tuple(buffer.shape)}: start anew")
        state.optimizer.state[parameter]["momentum_buffer"] = buffer.to(state.device, parameter.dtype).clone()
    if epoch and state.config.momentum and not any(name.startswith("momentum/") for name in tensors):
        raise CheckpointError(
            f"the state saved after epoch {epoch} holds no momentum: it is incomplete, start anew"
        )
