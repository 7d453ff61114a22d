"""Pre-training on the base classes as in RFS (Section 6.1, Appendix E): cross-entropy, SGD, step decay.

`train_epoch` takes a state to the end of its epoch, or to the step at which it is asked to stop. Order of the
images, augmentation and drop path are pure functions of (seed, epoch, step), so that on the CPU a state saved
after any step continues bit for bit. Other randomness inside a network, such as torch.nn.Dropout, has no such
guarantee.

Several processes (:class:`Execution`) take parts of the same batches: the same images, with the same augmentation, in
the same order. Their drop-path masks differ: they are functions of (seed, epoch, step, rank).
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mamltheory.accelerator import float32_products
from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.augment import Augmentation, apply_draws, draw_augmentation, select_draws
from mamltheory.fewshot.counts import check_counts
from mamltheory.fewshot.execution import (
    Execution,
    Precision,
    autocast,
    check_precision,
    gradient_scaler,
    placed,
    runner,
)
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.uploads import resident, take
from mamltheory.kernels.layers.allocator import keep_freed_memory
from mamltheory.rng import derived_seed, generator

CHECK_EVERY = 100  # steps between two checks of the loss, each of which waits for the device


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the pre-training; the defaults are the paper's for mini-ImageNet with 5 cells (Appendix E).

    The last images of an epoch that fill no batch are not used.

    Attributes:
        batch_size: images of a step, over all processes.
        learning_rate: that of the first epoch.
        momentum, weight_decay: those of SGD.
        epochs: number of epochs.
        milestones: the last epochs (counted from 1) before the learning rate is multiplied by ``decay``: with
            (60, 80), 61 and 81 are the first epochs with a lower rate, as in RFS.
        decay: factor of the learning rate at a milestone.
        drop_path: drop-path probability in the last epoch, up to which it grows linearly.
        padding, jitter, flip: as in :class:`Augmentation`.
        precision: number format (see :mod:`mamltheory.fewshot.execution`).
        seed: seed of order, augmentation and drop path.
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
    precision: Precision = "fp32"
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
        """Learning rate in an epoch, which is counted from 1."""
        return self.learning_rate * self.decay ** sum(epoch > milestone for milestone in self.milestones)

    def drop_path_in(self, epoch: int) -> float:
        """Drop-path probability in an epoch, which is counted from 1."""
        return self.drop_path * epoch / self.epochs


@dataclass(frozen=True, eq=False)
class TrainState:
    """A training after some steps.

    :func:`train_epoch` updates the network, the optimiser and the scaler in place: continue with the state that it
    returns, and save with :func:`mamltheory.fewshot.training_state.state_tensors` what has to outlive the next step.

    Attributes:
        network: the network.
        runner: the network as the steps call it: compiled, or one of several processes.
        optimizer: SGD.
        scaler: the scaling of the loss.
        data: the data set.
        images: its training images, as an array or on the device.
        labels: its training labels, on the device.
        config: the settings.
        device: where the training runs.
        execution: the part of this process.
        epoch: number of finished epochs.
        step: number of steps in the next epoch.
        totals: sum of losses and number of correct predictions in these steps, over all processes.
    """

    network: torch.nn.Module
    runner: torch.nn.Module
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    data: ImageData
    images: np.ndarray | Tensor
    labels: Tensor
    config: TrainConfig
    device: torch.device
    execution: Execution
    epoch: int = 0
    step: int = 0
    totals: tuple[float, float] = (0.0, 0.0)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.data.train) // self.config.batch_size


@dataclass(frozen=True)
class EpochMetrics:
    """Means over the augmented training images of one epoch, while the weights change."""

    epoch: int
    loss: float
    accuracy: float
    learning_rate: float
    drop_path: float


def start_training(
    network: torch.nn.Module,
    data: ImageData,
    config: TrainConfig,
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
) -> TrainState:
    """Return the state before the first step.

    Args:
        network: the network, which is moved to the device.
        data: the data set.
        config: the settings.
        device: where the training runs.
        execution: the part of this process; by default a single process.

    Raises:
        ConfigurationError: a batch does not fit the data or the number of processes, characters are to be mirrored,
            the device lacks the precision, or the network does not have one logit per training class.
    """
    device, execution = torch.device(device), execution or Execution()
    check_counts(data, {"batch_size": config.batch_size}, batch="batch_size")
    if config.flip and not data.mirrors:
        raise ConfigurationError(f"a mirrored image of {data.name} shows another class: set flip to False")
    check_precision(config.precision, device)
    execution.part(config.batch_size)
    keep_freed_memory()
    network = placed(network, device, execution)
    _check_logits(network, data, device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        config.learning_rate,
        config.momentum,
        weight_decay=config.weight_decay,
        # A CPU takes ten times as long for one call per weight of a cell network.
        fused=True if device.type == "cpu" else None,
    )
    return TrainState(
        network,
        runner(network, device, execution),
        optimizer,
        gradient_scaler(config.precision, device),
        data,
        resident(data.train, device),
        torch.from_numpy(data.train.labels).to(device),
        config,
        device,
        execution,
    )


def train_epoch(
    state: TrainState, stop: Callable[[int, int], bool] | None = None
) -> tuple[TrainState, EpochMetrics | None]:
    """Train to the end of an epoch. ValueRangeError is raised within 100 steps when the loss is not finite.

    Args:
        state: the training.
        stop: is called with (steps done, steps of the epoch) after every step; True ends the call there.

    Returns:
        The new state, and the means over the epoch; None instead of the means if the epoch is not finished.

    Raises:
        ConfigurationError: all epochs are done.
    """
    config, epoch, steps = state.config, state.epoch + 1, state.steps
    if epoch > config.epochs:
        raise ConfigurationError(f"all {config.epochs} epochs are done: raise epochs to train longer")
    for group in state.optimizer.param_groups:
        group["lr"] = config.learning_rate_in(epoch)
    if hasattr(state.network, "drop_path"):
        state.network.drop_path = config.drop_path_in(epoch)  # type: ignore[assignment]
    state.runner.train()
    order = torch.randperm(len(state.data.train), generator=generator(config.seed, "shuffle", epoch))
    # The totals of an earlier part of the epoch belong to the first process.
    totals = torch.tensor(state.totals, device=state.device, dtype=torch.float64)
    totals = totals * float(state.execution.rank == 0)
    with float32_products(tf32=config.precision != "fp32"):
        for step in range(state.step, steps):
            rows = order[step * config.batch_size :][: config.batch_size]
            totals += _train_step(state, epoch, step, rows)
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
                _check_finite(totals, epoch, step + 1, config)
            if stop is not None and stop(step + 1, steps) and step + 1 < steps:
                return dataclasses.replace(state, step=step + 1, totals=_summed(totals, state)), None
    loss, correct = (total / (steps * config.batch_size) for total in _summed(totals, state))
    metrics = EpochMetrics(epoch, loss, correct, config.learning_rate_in(epoch), config.drop_path_in(epoch))
    return dataclasses.replace(state, epoch=epoch, step=0, totals=(0.0, 0.0)), metrics


def trained_to(
    state: TrainState, epoch: int, stop: Callable[[int, int], bool] | None = None
) -> Iterator[tuple[TrainState, EpochMetrics | None]]:
    """Train to the end of an epoch, and yield after every epoch and at every pause.

    Args:
        state: the training.
        epoch: the last epoch.
        stop: as for :func:`train_epoch`; a pause ends when the next state is asked for.

    Yields:
        The state, and the means over the epoch that ends there; None for a pause.
    """
    while state.epoch < epoch:
        state, metrics = train_epoch(state, stop)
        yield state, metrics


def _train_step(state: TrainState, epoch: int, step: int, rows: Tensor) -> Tensor:
    """One SGD step; returns (sum of losses, number of correct predictions) without waiting for the device."""
    config, data, execution = state.config, state.data, state.execution
    random, mine = generator(config.seed, "augment", epoch, step), execution.part(len(rows))
    # Drawn for the whole batch, so that the augmentation of an image does not depend on the process.
    size = data.train.images.shape[1]
    draws = select_draws(draw_augmentation(config.augmentation(), size, len(rows), random), mine)
    rows = rows[mine]
    x = apply_draws(_images(state, rows), draws, data.mean, data.std, execution.layout)
    y = state.labels[rows.to(state.device, non_blocking=True)]
    if hasattr(state.network, "seed_drop_path"):
        rank = () if execution.size == 1 else (execution.rank,)
        seed = derived_seed(config.seed, "drop path", epoch, step, *rank)
        state.network.seed_drop_path(seed)  # type: ignore[operator]
    with autocast(config.precision, state.device):
        logits = state.runner(x)
    loss = F.cross_entropy(logits.float(), y)
    state.optimizer.zero_grad()
    state.scaler.scale(loss).backward()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    correct = (logits.detach().argmax(1) == y).sum().double()
    return torch.stack([loss.detach().double() * len(rows), correct])


def _images(state: TrainState, rows: Tensor) -> Tensor:
    if isinstance(state.images, Tensor):
        return state.images[rows.to(state.images.device, non_blocking=True)]
    return take(state.images, rows.numpy(), state.device)


def _summed(totals: Tensor, state: TrainState) -> tuple[float, float]:
    """The totals of all processes."""
    if state.execution.size > 1:
        torch.distributed.all_reduce(totals)
    loss, correct = totals.tolist()
    return loss, correct


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
