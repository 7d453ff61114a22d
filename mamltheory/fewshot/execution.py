"""How the steps of a training are computed: number format, memory layout, and several processes.

The number format belongs to the recipe. Weights, sums of gradients, batch statistics and the loss are float32 in every
format. float16 has too few exponents for small gradients, so the loss is scaled up before the backward pass and the
gradients are scaled down after it.

The layout and the number of processes do not belong to the recipe: results agree up to rounding, with two exceptions.
Several processes draw different drop-path masks, and on a CPU the batch statistics are those of the
process (on CUDA they are synchronised).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from mamltheory.errors import ConfigurationError

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
ACTIVATIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ConfigurationError for an unknown format, and for TF32 on a device without it (CPUs)."""
    if precision not in get_args(Precision):
        raise ConfigurationError(f"precision is {precision!r}: expected fp32, tf32, bf16 or fp16")
    if precision == "tf32" and device.type != "cuda":
        raise ConfigurationError(
            f"precision is tf32, which {device.type} does not have: take fp32 or bf16, or a CUDA device"
        )


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context of a forward pass; without effect for fp32 and tf32."""
    dtype = ACTIVATIONS.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """The scaling of the loss, in effect for fp16 alone; its state belongs to the state of the training."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@dataclass(frozen=True)
class Execution:
    """The part of this process in the steps; several processes need a process group of torch.distributed.

    Attributes:
        channels_last: whether the channel is the fastest axis of images and filters in memory.
        rank: number of this process.
        size: number of processes, which cut every batch into equal parts.

    Raises:
        ConfigurationError: the rank is outside the processes.
    """

    channels_last: bool = True
    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigurationError(f"rank {self.rank} of {self.size} processes: expected 0 <= rank < size")

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of images and filters."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def part(self, batch_size: int) -> slice:
        """The rows of a batch for this process; raises ConfigurationError for parts of different sizes."""
        if batch_size % self.size:
            raise ConfigurationError(
                f"batch_size {batch_size} cannot be cut into {self.size} equal parts: take a number of processes "
                "that divides it, or another batch size"
            )
        length = batch_size // self.size
        return slice(self.rank * length, (self.rank + 1) * length)


def placed(network: nn.Module, device: torch.device, execution: Execution) -> nn.Module:
    """The network on the device and in the layout, with SyncBatchNorm where several processes use CUDA."""
    if execution.size > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # keeps the names in the state_dict
    return network.to(device=device, memory_format=execution.layout)  # type: ignore[call-overload]


def runner(network: nn.Module, device: torch.device, execution: Execution) -> nn.Module:
    """The module that a training step calls: the network, data-parallel if ``execution`` says so."""
    if execution.size == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    # It averages the gradients of the processes: with equal parts they are those of the batch.
    # Some cells have edges that nothing uses, whose weights get no gradient.
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, find_unused_parameters=True)
