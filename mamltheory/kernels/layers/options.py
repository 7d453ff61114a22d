"""How an empirical kernel is computed: what every function between the public ones and the tiles shares."""

from dataclasses import dataclass
from typing import Literal

import torch

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.kernels.layers.jacobian import Outputs, check_dtype, check_outputs
from mamltheory.tasks import Select

Method = Literal["auto", "layerwise", "generic"]
"""How a kernel is computed: "layerwise" from the layers' formulas, "generic" by vmap of jacrev, or whichever fits."""

MEMORY = 2 << 30
"""Default budget of a kernel's temporary tensors on a CPU, in bytes."""


@dataclass(frozen=True)
class KernelOptions:
    """Options of an empirical kernel.

    Args:
        outputs: "full" for a row for every output of every sample, "sum" for the kernel of the summed outputs.
        select: which parameters the gradients are taken by.
        chunk: most samples in a tile; None for all.
        memory: most bytes of temporary tensors; None for MEMORY on a CPU, and on CUDA for
            what is free (:func:`mamltheory.accelerator.memory_budget`).
        method: "auto" takes "layerwise", and "generic" for the parameters which that does not cover.
        dtype: of the kernel and of its accumulation; None for float64.
    """

    outputs: Outputs = "full"
    select: Select = None
    chunk: int | None = None
    memory: int | None = None
    method: Method = "auto"
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_outputs(self.outputs)
        check_dtype(self.dtype)
        if not isinstance(self.method, str) or self.method not in ("auto", "layerwise", "generic"):
            raise ValueRangeError(f"method is {self.method!r}: expected 'auto', 'layerwise' or 'generic'")
        for name, value in (("chunk", self.chunk), ("memory", self.memory)):
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ConfigurationError(f"{name} is {value!r}: expected a whole number of at least 1")
