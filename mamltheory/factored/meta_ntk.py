"""The factored MetaNTK in tiles of tasks that fit into a number of bytes.

A tile of T tasks has R = n·k rows per task, m support samples and τ steps; a number has b bytes, w_p is
fan-in + fan-out, and F_p are the :func:`numbers_per_row <mamltheory.factored.rows.numbers_per_row>`. It needs

    rows           T R Σ_p F_p · b                        for this tile, and for a second one when there are several
    passes         T (m R (2 Σ_p w_p + 4 max_p w_p) + (n k + n + 5 τ m) Σ_p w_p) · b      while the rows are computed
    contraction    8 (2 T R max_p F_p + 3 (m τ + n) R max_p w_p + (T R)²)                 while the blocks are computed

bytes at most: the rows, and the larger of passes and contraction. Weights and the (N R)² kernel are not counted.
With G tiles the rows of a tile are computed once as rows of the kernel and once for every earlier tile:
G (G + 1) / 2 times in all.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.accelerator import memory_budget
from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.factored.fast_weights import TaskStack, stack_tasks
from mamltheory.factored.meta_jacobian import factored_gram, meta_rows, term_counts
from mamltheory.factored.rows import numbers_per_row
from mamltheory.inner_loop import InnerLoop
from mamltheory.kernels.layers.allocator import keep_freed_memory
from mamltheory.networks import FullyConnected
from mamltheory.tasks import Parameters, Task

MEMORY = 2 * 2**30
"""Bytes of temporary tensors on a CPU unless the caller says otherwise."""


@torch.no_grad()
def factored_meta_ntk(
    net: FullyConnected,
    params: Parameters,
    tasks: Sequence[Task],
    inner: InnerLoop,
    other: Sequence[Task] | None = None,
    *,
    origin: Parameters | None = None,
    memory: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "p q"]:
    """∇F ∇Fᵀ of a fully connected network, rows as outer products; without the factor 1/l.

    Args:
        net: the network.
        params: θ; a ShapeError says which of them, or of the samples, are not the network's.
        tasks: the tasks of the rows.
        inner: the inner loop.
        other: the tasks of the columns; None for the symmetric kernel of ``tasks``.
        origin: θ_0 when the network is f_θ − f_{θ0}, which shifts the support labels and nothing else.
        memory: bytes of temporary tensors (2 GiB on a CPU, on CUDA by the free memory), by the formula at the head
            of this module; a ConfigurationError when one task needs more. Tiles change the result by no more than
            rounding.
        dtype: the dtype of the kernel and of its accumulation.

    Returns:
        The kernel, rows and columns in the order of the tasks, queries and outputs.

    Raises:
        ValueRangeError: ``memory`` is less than 1.
    """
    keep_freed_memory()
    memory = memory_budget(tasks[0].query_x.device, MEMORY) if memory is None else memory
    if memory < 1:
        raise ValueRangeError(f"memory is {memory}: expected a number of bytes of at least 1")
    tiles = _tiles(net, tasks, inner, memory, several=other is not None)
    column_tasks = tasks if other is None else other
    columns = tiles if other is None else _tiles(net, other, inner, memory, several=True)
    kernel = torch.zeros(_outputs(tasks), _outputs(column_tasks), dtype=dtype)
    kernel = kernel.to(tasks[0].query_x.device)
    for i, j, block in _blocks(net, params, inner, origin, tiles, None if other is None else columns, dtype):
        rows, cols = _places(tasks, tiles[i]), _places(column_tasks, columns[j])
        kernel[rows[:, None], cols] = block
        if other is None and i != j:
            kernel[cols[:, None], rows] = block.T
    return kernel


def _blocks(
    net: FullyConnected, params: Parameters, inner: InnerLoop, origin: Parameters | None,
    tiles: Sequence[TaskStack], columns: Sequence[TaskStack] | None, dtype: torch.dtype,
) -> Iterator[tuple[int, int, Tensor]]:  # fmt: skip
    """Blocks (i, j) of the kernel, on and above the diagonal if it is symmetric (``columns`` is None)."""
    for i, tile in enumerate(tiles):
        rows = meta_rows(net, params, tile, inner, origin)
        if columns is None:
            yield i, i, factored_gram(rows, rows, dtype)
        for j in range(i + 1 if columns is None else 0, len(columns or tiles)):
            # the columns' rows have no name, so that they are freed before the next tile's are computed
            yield (
                i,
                j,
                factored_gram(rows, meta_rows(net, params, (columns or tiles)[j], inner, origin), dtype),
            )


def tile_bytes(net: FullyConnected, stack: TaskStack, inner: InnerLoop, several: bool) -> int:
    """Bytes that a ``stack`` needs at most with ``net`` and ``inner``, as one of ``several`` tiles or alone."""
    (tasks, n), m = stack.query_x.shape[:2], stack.support_x.shape[1]
    rows, item = n * net.output_dim, stack.query_x.element_size()
    shapes = list(zip(net.sizes[:-1], net.sizes[1:], strict=True))
    numbers = [
        numbers_per_row(*shape, *terms)
        for shape, terms in zip(shapes, term_counts(net, inner, m), strict=True)
    ]
    widths = [sum(shape) for shape in shapes]
    passes = m * rows * (2 * sum(widths) + 4 * max(widths)) + (rows + n + 5 * inner.tau * m) * sum(widths)
    contraction = (
        2 * tasks * rows * max(numbers) + 3 * (m * inner.tau + n) * rows * max(widths) + (tasks * rows) ** 2
    )
    return (2 if several else 1) * tasks * rows * sum(numbers) * item + max(
        tasks * passes * item, 8 * contraction
    )


def _tiles(
    net: FullyConnected, tasks: Sequence[Task], inner: InnerLoop, memory: int, several: bool
) -> list[TaskStack]:
    """Stacks of tasks of equal size, as many in each as fit; a ConfigurationError when one task alone does not."""
    stacks = stack_tasks(tasks)
    several = several or len(stacks) > 1
    if all(tile_bytes(net, stack, inner, several) <= memory for stack in stacks):
        return list(stacks)
    tiles = []
    for stack in stacks:
        one = tile_bytes(net, stack.part(0, 1), inner, several=True)
        if one > memory:
            raise ConfigurationError(
                f"the rows of one task with {stack.query_x.shape[1]} query and {stack.support_x.shape[1]} support "
                f"samples need {one} bytes, more than memory={memory}: raise memory, split the query samples over "
                "several tasks with the same support, or take fewer inner steps"
            )
        size = max(
            t
            for t in range(1, len(stack.index) + 1)
            if tile_bytes(net, stack.part(0, t), inner, True) <= memory
        )
        tiles += [stack.part(start, start + size) for start in range(0, len(stack.index), size)]
    return tiles


def _outputs(tasks: Sequence[Task]) -> int:
    return sum(task.query_y.numel() for task in tasks)


def _places(tasks: Sequence[Task], stack: TaskStack) -> Tensor:
    """Where the rows of a stack's tasks stand among the rows of all tasks."""
    ends = torch.tensor([task.query_y.numel() for task in tasks]).cumsum(0).tolist()
    return torch.cat([torch.arange(ends[i] - tasks[i].query_y.numel(), ends[i]) for i in stack.index])
