"""How the steps of a training are computed: memory layout, compilation, and processes that share a batch.

None of it is part of the recipe: the results agree up to rounding, except that several processes draw drop-path
masks of their own, and that batch statistics on a CPU are those of the process (on CUDA they are synchronised).
"""

from dataclasses import dataclass

import torch
from torch import nn

from mamltheory.errors import ConfigurationError


@dataclass(frozen=True)
class Execution:
    """``channels_last``: pixels, not channels, are the slow axis of images and filters; ``compiled``: the blocks
    of the network go through torch.compile; ``rank`` of ``size`` processes, which cut every batch in equal parts.

    Several processes need a process group of torch.distributed. Raises ConfigurationError for a rank outside.
    """

    channels_last: bool = True
    compiled: bool = False
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
        """The rows of a batch that fall to this process; raises ConfigurationError for parts of different sizes."""
        if batch_size % self.size:
            raise ConfigurationError(
                f"batch_size {batch_size} cannot be cut into {self.size} equal parts: take a number of processes "
                "that divides it, or another batch size"
            )
        length = batch_size // self.size
        return slice(self.rank * length, (self.rank + 1) * length)


def placed(network: nn.Module, device: torch.device, execution: Execution) -> nn.Module:
    """The network on the device, in the layout, with synchronised batch statistics where processes share CUDA.

    SyncBatchNorm exists on CUDA alone. The names in the state_dict do not change.
    """
    if execution.size > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network.to(device=device, memory_format=execution.layout)


def runner(network: nn.Module, device: torch.device, execution: Execution) -> nn.Module:
    """The module that a training step calls: the network, compiled and data-parallel if so asked.

    Gradients of data-parallel processes are averaged, so that with equal parts they are those of the batch.
    """
    if execution.compiled:
        compile_blocks(network)
    if execution.size == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    # Some cells have edges that nothing uses, whose weights get no gradient.
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, find_unused_parameters=True)


def compile_blocks(network: nn.Module) -> None:
    """Compile, in place, every outermost nn.Sequential.

    What lies between the blocks draws drop-path masks from seeded generators, which a compiled graph cannot hold.
    """
    if isinstance(network, nn.Sequential):
        network.compile()
        return
    for child in network.children():
        compile_blocks(child)
