"""Per-sample gradients of a layer of a cell, and one Gram matrix of them for every candidate."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.kernels.layer_gradients import kind_of, layer_gradients

COLUMNS = 1 << 14
"""Columns of rows that are multiplied at a time; sums over more are taken in float64."""
FEW_POSITIONS = 256
"""Positions below which a dense convolution's gradients are cheaper as one matrix product a tap."""
LEAST_SPLIT = 48
"""Rows below which the symmetric half of a Gram matrix is not worth the extra calls."""


def gradient_rows(
    layer: nn.Module, names: Sequence[str], entering: Tensor, flow: Float[Tensor, "n k *space"]
) -> list[Float[Tensor, "n k _"]]:
    """Gradients of n images' k outputs by the layer's own parameters of these names, in blocks of columns."""
    n, k = flow.shape[:2]
    if isinstance(layer, nn.Conv2d) and _is_small(layer, flow):
        return _shifted_rows(layer, entering, flow)
    if isinstance(
        layer, nn.Linear
    ):  # whose gradients do not depend on its weights, be they one candidate's or several
        kind = nn.Linear
    else:
        kind = kind_of(layer, [name for name, _ in layer.named_parameters(recurse=False)])
    rows = layer_gradients(kind, layer, entering, flow, list(names))
    return [rows[name].view(n, k, -1) for name in names]


def _is_small(layer: nn.Conv2d, flow: Tensor) -> bool:
    return layer.groups == 1 and max(layer.kernel_size) > 1 and flow[0, 0, 0].numel() < FEW_POSITIONS


def _shifted_rows(layer: nn.Conv2d, entering: Tensor, flow: Tensor) -> list[Tensor]:
    """Σ_p g_p a_pᵀ for every tap of the kernel, a being the image shifted to where the tap sees it."""
    (height, width), (down, right) = layer.padding, layer.stride
    padded = nn.functional.pad(entering, (width, width, height, height))
    n, k, _, *(rows, columns) = flow.shape
    left, taps = flow.flatten(1, 2).flatten(2), []
    for i, j in itertools.product(*map(range, layer.kernel_size)):
        top, start = i * layer.dilation[0], j * layer.dilation[1]
        seen = padded[:, :, top : top + down * rows : down, start : start + right * columns : right]
        taps.append((left @ seen[:, :, :rows, :columns].flatten(2).transpose(1, 2)).view(n, k, -1))
    return taps


def add_grams(totals: Float[Tensor, "c p p"], rows: Float[Tensor, "m k d"], holders: Sequence[int]) -> None:
    """Adds R_c R_cᵀ to the totals of these candidates in place; rows are candidate-major, then image, then output.

    Products of at most COLUMNS columns are taken in the dtype of the rows, their sums in float64.
    """
    rows = rows.reshape(len(holders), -1, rows.shape[2])
    index = torch.tensor(holders, device=totals.device)
    for start in range(0, rows.shape[2], COLUMNS):
        totals.index_add_(0, index, _products(rows[:, :, start : start + COLUMNS]).to(totals.dtype))


def _products(rows: Float[Tensor, "c p d"]) -> Float[Tensor, "c p p"]:
    """Rows times their transposes; of a large product only the blocks on and below the diagonal."""
    half = rows.shape[1] // 2
    if half < LEAST_SPLIT:
        return rows @ rows.transpose(1, 2)
    upper, lower = rows[:, :half], rows[:, half:]
    block = lower @ upper.transpose(1, 2)
    above = torch.cat([_products(upper), block.transpose(1, 2)], dim=2)
    return torch.cat([above, torch.cat([block, _products(lower)], dim=2)], dim=1)


def symmetric_halves(totals: Float[Tensor, "c p p"]) -> Float[Tensor, "c p p"]:
    """(G + Gᵀ)/2 of every total: a product in single precision need not be symmetric to its last digits."""
    return (totals + totals.transpose(1, 2)) / 2
