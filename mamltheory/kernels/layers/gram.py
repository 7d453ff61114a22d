"""Gradients of one layer, held as rows or as factors, and their Gram matrices, in the dtype that is asked for.

A row is the gradient of one output of one sample, flattened. A layer that multiplies its input a by a weight has the
gradient Σ_p g_p a_pᵀ, with g the cotangent of its output and p the positions at which the weight is used (one for a
vector, the tokens of a sequence). Two such gradients have the product

    Σ_{p,q} (a_p · a'_q + c) (g_p · g'_q),        c = 1 with a bias and 0 without,

which needs neither gradient. With many positions rows are cheaper: :func:`settled` decides.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

COLUMNS = 1 << 12
"""Columns of rows that a CPU converts to another dtype together: few enough that they stay in the cache."""
BLOCK = 1 << 22
"""Products of positions that are held together, in numbers of the kernel's dtype."""
STRIP = 64
"""Least number of rows of a symmetric Gram matrix that are multiplied together, by themselves and those above."""
LONG = 1 << 14
"""Columns of rows that are multiplied in their own dtype; sums over more are taken in float64."""
LEAST_SPLIT = 48
"""Rows from which only half of a symmetric product in the rows' own dtype is computed."""


@dataclass(frozen=True)
class LayerFactors:
    """Σ_p g_p a_pᵀ of each output of each sample, and the gradient √c Σ_p g_p by a bias.

    Attributes:
        inputs: a, n × p × j.
        cotangents: g, n × k × p × o.
        bias: c, 0 without one.
    """

    inputs: Tensor
    cotangents: Tensor
    bias: float = 0.0

    @property
    def rows(self) -> Float[Tensor, "nk d"]:
        """The gradients themselves: o·j numbers of the weight, then o of the bias."""
        n, k, positions, _ = self.cotangents.shape
        # one product a sample, for which the cotangents of its outputs lie side by side
        cotangents = self.cotangents.transpose(1, 2).reshape(n, positions, -1)
        parts = [(cotangents.mT @ self.inputs).reshape(n * k, -1)]
        if self.bias:
            parts.append(self.bias**0.5 * self.cotangents.sum(2).reshape(n * k, -1))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


Gradients = LayerFactors | Tensor
"""Gradients of a group of parameters: factors, or rows of shape n·k × d."""


def settled(gradients: Gradients, samples: int) -> Gradients:
    """Factors or rows, whichever contract in fewer operations in a kernel of this many samples.

    The choice depends on sizes per sample and on the whole kernel, not on the tile at hand.

    Args:
        gradients: gradients of a tile.
        samples: number of samples of the whole kernel.

    Returns:
        The same gradients in one of the two forms.
    """
    if isinstance(gradients, Tensor):
        return gradients
    _, k, positions, o = gradients.cotangents.shape
    as_rows = rows_pay(positions, gradients.inputs.shape[2], o, k, samples)
    return gradients.rows if as_rows else gradients


def rows_pay(positions: int, j: int, o: int, k: int, samples: int) -> bool:
    """Whether Σ_p g_p a_pᵀ of k outputs contract in fewer operations as rows of j·o numbers than as factors."""
    by_rows = 2 * samples * k * positions * o * j + (samples * k) ** 2 * o * j
    # the sum over pairs of positions runs at the speed of memory: some 8 operations a number
    by_factors = (samples * positions) ** 2 * j
    by_factors += (samples * k * positions) ** 2 * (o + 8 * (positions > 1))
    return by_rows < by_factors


def add_contraction(totals: Sequence[Tensor], left: Gradients, right: Gradients) -> None:
    """Adds the Gram matrix of the gradients of one layer, both in the same form, to totals in place.

    It is accumulated in the dtype of the totals, whatever that of the gradients.

    Args:
        totals: the sums.
        left: gradients of the rows of the Gram matrix.
        right: gradients of its columns.

    Raises:
        TypeError: one side holds factors and the other rows.
    """
    if isinstance(left, LayerFactors) and isinstance(right, LayerFactors):
        product = _factor_gram(left, right, totals[0].dtype)
    elif isinstance(left, LayerFactors) or isinstance(right, LayerFactors):
        raise TypeError("one side holds factors and the other rows: expected both in the same form")
    else:
        product = torch.zeros_like(totals[0]) if len(totals) > 1 else totals[0]
        _add_row_gram(product, left, right)
        if len(totals) == 1:
            return
    for total in totals:
        total += product


def _add_row_gram(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Adds left rightᵀ to a total, whatever their dtype; of a symmetric product one half, and its mirror image."""
    symmetric = right is left
    sums = torch.zeros_like(total) if symmetric else total
    height = max(STRIP, len(left) // 8) if len(left) >= 2 * STRIP else len(left)
    for part, other in _columns(left, right, total.dtype):
        if symmetric:
            for row in range(0, len(part), height):
                end = row + height
                sums[row:end, :end].addmm_(part[row:end], part[:end].T)
        else:
            sums.addmm_(part, other.T)
    if symmetric:
        lower = sums.tril_()
        total += lower
        total += lower.tril_(-1).T


def _columns(left: Tensor, right: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in a dtype: whole where they have it already, else a few columns after the other."""
    if left.dtype == right.dtype == dtype:
        yield left, right
        return
    width = max(COLUMNS, BLOCK // len(left)) if left.is_cuda else COLUMNS
    for start in range(0, left.shape[1], width):
        part = left[:, start : start + width].to(dtype)
        yield part, part if right is left else right[:, start : start + width].to(dtype)


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The product left rightᵀ of matrices in any dtype, in another."""
    total = torch.zeros(len(left), len(right), dtype=dtype, device=left.device)
    _add_row_gram(total, left, right)
    return total


def _factor_gram(left: LayerFactors, right: LayerFactors, dtype: torch.dtype) -> Float[Tensor, "p q"]:
    n, k, positions, _ = left.cotangents.shape
    m, ways = right.cotangents.shape[:2]
    if positions == 1:
        return _vector_gram(left, right, dtype)
    total = torch.empty(n, k, m, ways, dtype=dtype, device=left.cotangents.device)
    for i, j in _blocks(n, m, k * positions * ways * positions):
        total[i, :, j] = _position_sums(left, right, i, j, dtype)
    return total.view(n * k, m * ways)


def _vector_gram(left: LayerFactors, right: LayerFactors, dtype: torch.dtype) -> Float[Tensor, "p q"]:
    """(a · a' + c) (g · g'), where a sample uses the weight once."""
    inputs = left.inputs[:, 0]
    inputs = _product(inputs, inputs if right is left else right.inputs[:, 0], dtype)
    rows, one_first = _flat(left.cotangents[:, :, 0])
    columns, other_first = (rows, one_first) if right is left else _flat(right.cotangents[:, :, 0])
    (n, k), (m, ways) = left.cotangents.shape[:2], right.cotangents.shape[:2]
    kernel = _product(rows, columns, dtype)
    kernel = kernel.unflatten(0, (k, n)).transpose(0, 1) if one_first else kernel.unflatten(0, (n, k))
    kernel = kernel.unflatten(2, (ways, m)).mT if other_first else kernel.unflatten(2, (m, ways))
    return kernel.mul_((inputs + left.bias)[:, None, :, None]).reshape(n * k, m * ways)


def _flat(cotangents: Float[Tensor, "n k o"]) -> tuple[Tensor, bool]:
    """Rows of all samples and outputs in the order in which they lie in memory, and whether outputs come first."""
    outputs_first = cotangents.transpose(0, 1).is_contiguous() and not cotangents.is_contiguous()
    return (cotangents.transpose(0, 1) if outputs_first else cotangents).flatten(0, 1), outputs_first


def _position_sums(left: LayerFactors, right: LayerFactors, i: slice, j: slice, dtype: torch.dtype) -> Tensor:
    """Σ_{p,q} (a_p · a'_q + c) (g_p · g'_q) for some samples on either side: n × k × m × k."""
    positions, columns = left.inputs.shape[1], right.inputs.shape[1]
    k, ways = left.cotangents.shape[1], right.cotangents.shape[1]
    inputs = left.inputs[i].to(dtype).flatten(0, 1) @ right.inputs[j].to(dtype).flatten(0, 1).T
    cotangents = left.cotangents[i].to(dtype).flatten(0, 2) @ right.cotangents[j].to(dtype).flatten(0, 2).T
    inputs = (inputs + left.bias).view(-1, 1, positions, len(right.inputs[j]), 1, columns)
    return cotangents.view(-1, k, positions, len(right.cotangents[j]), ways, columns).mul_(inputs).sum((2, 5))


def _blocks(n: int, m: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Pairs of ranges of samples with at most BLOCK numbers, where a pair of samples has ``size``."""
    rows = max(1, min(n, BLOCK // (size * m)))
    columns = max(1, min(m, BLOCK // (size * rows)))
    for start in range(0, n, rows):
        for first in range(0, m, columns):
            yield slice(start, start + rows), slice(first, first + columns)


def add_grams(
    totals: Float[Tensor, "c p p"],
    rows: Float[Tensor, "m d"],
    groups: Sequence[int],
    places: Int[Tensor, " g"] | None = None,
) -> None:
    """Adds R_c R_cᵀ to the totals of these groups of samples in place.

    Products of at most LONG columns are taken in the dtype of the rows, and their sums in that of the totals.

    Args:
        totals: one Gram matrix for each group of samples.
        rows: gradients; the rows of the first of the groups come first, and all have as many.
        groups: places in the totals.
        places: the same on the device of the totals, which a caller may have there for many layers.
    """
    rows = rows.view(len(groups), -1, rows.shape[1])
    if list(groups) == list(range(len(totals))):
        places = None
    elif places is None:
        places = torch.tensor(groups, device=totals.device)
    for part in rows.split(LONG, 2):
        product = _symmetric_product(part)
        if places is None:
            totals += product
        else:
            totals.index_add_(0, places, product.to(totals.dtype))


def _symmetric_product(rows: Float[Tensor, "c p d"]) -> Float[Tensor, "c p p"]:
    """Rows times their transposes; of a large product only the blocks on and below the diagonal."""
    half = rows.shape[1] // 2
    if half < LEAST_SPLIT:
        return rows @ rows.mT
    upper, lower = rows[:, :half], rows[:, half:]
    block = lower @ upper.mT
    above = torch.cat([_symmetric_product(upper), block.mT], dim=2)
    return torch.cat([above, torch.cat([block, _symmetric_product(lower)], dim=2)], dim=1)


def symmetric_halves(totals: Float[Tensor, "c p p"]) -> Float[Tensor, "c p p"]:
    """(G + Gᵀ)/2 of each total: a product in single precision need not be symmetric to its last digits."""
    return (totals + totals.mT) / 2


def added_up(
    names: frozenset[str], gradients: Gradients, weights: Tensor, shapes: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Σ weights · gradient over the rows n·k of one group, by parameter, in the parameter's shape.

    Args:
        names: parameters of the group.
        gradients: their gradients.
        weights: n × k.
        shapes: tensors with the shapes of the parameters; of a group of two, the bias has one axis less.

    Returns:
        The sums by name.
    """
    if not isinstance(gradients, LayerFactors):
        ordered = sorted(
            names, key=lambda name: -shapes[name].dim()
        )  # a weight's numbers come before its bias's
        total = weights.flatten().to(gradients) @ gradients
        parts = total.split([shapes[name].numel() for name in ordered])
        return {name: part.reshape(shapes[name].shape) for name, part in zip(ordered, parts, strict=True)}
    cotangents = torch.einsum("nk,nkpo->npo", weights.to(gradients.cotangents), gradients.cotangents)
    totals = {}
    for name in names:
        matrix = shapes[name].dim() > 1
        totals[name] = (
            torch.einsum("npo,npj->oj", cotangents, gradients.inputs) if matrix else cotangents.sum((0, 1))
        ).reshape(shapes[name].shape)
    return totals
