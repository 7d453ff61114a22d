"""Kernels from tiles of samples under a byte budget: what a pass over some samples holds is bounded, and nothing else.

A pass yields the gradients of one group of parameters after the other. One tile against itself is contracted group
by group, and each is discarded at once; with several tiles those of the rows' tile are kept while the tiles of the
columns go by.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.accelerator import memory_budget
from mamltheory.errors import ConfigurationError
from mamltheory.kernels.layers.allocator import keep_freed_memory
from mamltheory.kernels.layers.gram import Gradients, LayerFactors, add_contraction, settled
from mamltheory.kernels.layers.jacobian import Outputs, jacobian
from mamltheory.kernels.layers.options import MEMORY, KernelOptions
from mamltheory.modules import Interruption
from mamltheory.networks import Model
from mamltheory.tasks import Parameters


class OverBudget(Interruption):
    """A tile needs more bytes than there are; handled by halving the tile."""

    def __init__(self, what: str, needed: int) -> None:
        super().__init__(what, needed)
        self.what, self.needed = what, needed


@dataclass(eq=False)
class Budget:
    """Bytes that a pass may hold; :meth:`take` raises OverBudget when they are used up.

    Attributes:
        limit: the bytes.
        samples: number of samples of the whole kernel, by which gradients are settled as rows or factors.
        kept: whether the gradients of all groups are held at the same time.
        used: bytes in use.
    """

    limit: int
    samples: int
    kept: bool = False
    used: int = field(default=0)

    def take(self, what: str, number: int, lasting: bool = True) -> None:
        """Books ``number`` bytes for ``what``; those that do not last are given back at once."""
        if self.used + number > self.limit:
            raise OverBudget(what, self.used + number)
        self.used += number if lasting else 0

    def hold(self, what: str, gradients: Gradients) -> Gradients:
        """The gradients in the form in which they are contracted, booked."""
        gradients = settled(gradients, self.samples)
        parts = (
            (gradients.inputs, gradients.cotangents) if isinstance(gradients, LayerFactors) else (gradients,)
        )
        self.take(what, sum(part.numel() * part.element_size() for part in parts), self.kept)
        return gradients


@dataclass(frozen=True)
class Pass:
    """Gradients of some samples: rows of the kernel, and group after group of (names, gradients)."""

    rows: int
    device: torch.device
    groups: Iterable[tuple[frozenset[str], Gradients]]


Differentiate = Callable[[Tensor, Budget], Pass]


def tiled_kernels(
    differentiate: Differentiate,
    x1: Tensor,
    x2: Tensor | None,
    selections: Sequence[Collection[str]],
    options: KernelOptions,
) -> list[Float[Tensor, "p q"]]:
    """Kernels of the selected parameters, one for each selection, from the same passes.

    Args:
        differentiate: the gradients of some samples.
        x1: samples of the rows.
        x2: samples of the columns; None for the symmetric kernels.
        selections: names of parameters. A group of parameters lies in a selection as a whole or not at all.
        options: chunk, memory and dtype of the kernels.

    Returns:
        One kernel for each selection.

    Raises:
        ConfigurationError: a single sample does not fit the budget; the message names what asked for too much.
    """
    keep_freed_memory()
    memory = memory_budget(x1.device, MEMORY) if options.memory is None else options.memory
    size = max(len(x1), 0 if x2 is None else len(x2))
    size = size if options.chunk is None else min(size, options.chunk)
    while True:
        try:
            columns = None if x2 is None else x2.split(size)
            dtype = options.dtype or torch.float64
            return _kernels(differentiate, x1.split(size), columns, selections, memory, dtype)
        except OverBudget as over:
            if size == 1:
                raise ConfigurationError(
                    f"one sample needs at least {over.needed} bytes at {over.what}, and memory={memory} leaves "
                    f"less for a tile: give memory={4 * over.needed} or more, or select fewer parameters"
                ) from None
            size = (size + 1) // 2


def _kernels(
    differentiate: Differentiate,
    left: Sequence[Tensor],
    right: Sequence[Tensor] | None,
    selections: Sequence[Collection[str]],
    memory: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Row of tiles by row of tiles; of a symmetric kernel those below the diagonal alone."""
    columns, symmetric = left if right is None else right, right is None
    samples = max(sum(map(len, left)), sum(map(len, columns)))
    if symmetric and len(left) == 1:
        whole = differentiate(left[0], Budget(memory, samples))
        return [(kernel + kernel.T) / 2 for kernel in _products(whole, None, selections, dtype)]
    grid = []
    for i, tile in enumerate(left):
        first = differentiate(tile, Budget(memory // 2, samples, kept=True))
        kept = Pass(first.rows, tile.device, list(first.groups))
        row = [
            _products(differentiate(other, Budget(memory // 2, samples)), kept, selections, dtype)
            for other in (columns[:i] if symmetric else columns)
        ]
        grid.append([*row, _products(kept, None, selections, dtype)] if symmetric else row)
    return [
        _assembled([[cell[s] for cell in row] for row in grid], symmetric) for s in range(len(selections))
    ]


def _products(
    columns: Pass, rows: Pass | None, selections: Sequence[Collection[str]], dtype: torch.dtype
) -> list[Tensor]:
    """Gram matrices of the rows (None: of the columns themselves) with the columns, for every selection."""
    kept = None if rows is None else dict(rows.groups)
    height = columns.rows if rows is None else rows.rows
    device, chosen = columns.device, [set(names) for names in selections]
    totals = [torch.zeros(height, columns.rows, dtype=dtype, device=device) for _ in selections]
    for names, right in columns.groups:
        left = right if kept is None else kept.get(names)
        if left is not None:  # otherwise no row's output depends on these parameters
            parts = [total for total, own in zip(totals, chosen, strict=True) if names <= own]
            add_contraction(parts, left, right)
    return totals


def _assembled(grid: list[list[Tensor]], symmetric: bool) -> Float[Tensor, "p q"]:
    if symmetric:
        for i, row in enumerate(grid):
            row[i] = (row[i] + row[i].T) / 2
            row.extend(grid[j][i].T for j in range(i + 1, len(grid)))
    return torch.cat([torch.cat(row, 1) for row in grid])


def general_gradients(
    model: Model,
    params: Parameters,
    x: Tensor,
    outputs: Outputs,
    names: Collection[str],
    k: int,
    budget: Budget,
) -> Iterator[tuple[frozenset[str], Gradients]]:
    """The gradients of n·k rows by :func:`mamltheory.kernels.layers.jacobian.jacobian`, parameter after parameter.

    Args:
        model: the network.
        params: its parameters.
        x: samples.
        outputs: "full" for each output, "sum" for their sum.
        names: parameters to differentiate by.
        k: number of outputs.
        budget: the bytes that the rows may take.

    Yields:
        Names and rows of one parameter after the other.
    """
    size = sum(params[name].numel() * params[name].element_size() for name in names)
    budget.take("the rows of the Jacobian", len(x) * k * size)
    rows = jacobian(model, params, x, outputs, names)
    for name in sorted(rows):
        value = rows.pop(name)
        yield frozenset({name}), value.reshape(len(value), -1)
