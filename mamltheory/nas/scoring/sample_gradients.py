"""Per-sample gradients of a layer of a cell, and one Gram matrix of them for every candidate."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.kernels.layers.rules import kind_of, layer_gradients
from mamltheory.nas.scoring.cell_layers import (
    Geometry,
    geometry,
    is_depthwise,
    is_padded_by_zeros,
    is_pointwise,
)

COLUMNS = 1 << 14
"""Columns of rows that are multiplied at a time; sums over more are taken in float64."""
FEW_POSITIONS = 256
"""Positions below which a dense convolution's gradients are cheaper as one matrix product a tap."""
LEAST_SPLIT = 48
"""Rows below which the symmetric half of a Gram matrix is not worth the extra calls."""
LEAST_GRID = 8
"""Rows or columns of an image below which a dilated kernel's gradients are not taken grid by grid."""
BLOCK = 1 << 21
"""Bytes of images whose depthwise gradients are taken together: what a CPU has in its caches."""


def gradient_rows(
    layer: nn.Module,
    names: Sequence[str],
    entering: Tensor,
    flow: Float[Tensor, "n k *space"],
    gridded: bool = False,
) -> list[Float[Tensor, "n k _"]]:
    """Gradients of n images' k outputs by the layer's own parameters of these names, in blocks of columns.

    gridded: what entered is the grid of the pixels that the layer sees (:mod:`mamltheory.nas.scoring.cell_layers`).
    """
    n, k = flow.shape[:2]
    if isinstance(layer, nn.Conv2d) and list(names) == ["weight"] and is_padded_by_zeros(layer):
        how = geometry(layer, gridded)
        if is_pointwise(layer) and how.stride == (1, 1):
            rows = flow.flatten(1, 2).flatten(2) @ entering.flatten(2).transpose(1, 2)
            return [rows.view(n, k, -1)]
        if is_depthwise(layer) and how.stride == (1, 1):
            outputs = [_depthwise_rows(layer, entering, each, how) for each in flow.unbind(1)]
            return [torch.stack(outputs, 1)]
        if _is_small(layer, flow):
            return _shifted_rows(layer, entering, flow)
    # The gradients of a linear layer do not depend on its weights, be they those of one candidate or of several.
    linear = isinstance(layer, nn.Linear)
    kind = (
        nn.Linear if linear else kind_of(layer, [name for name, _ in layer.named_parameters(recurse=False)])
    )
    rows = layer_gradients(kind, layer, entering, flow, list(names))
    return [rows[name].view(n, k, -1) for name in names]


def _depthwise_rows(layer: nn.Conv2d, entering: Tensor, flow: Tensor, how: Geometry) -> Float[Tensor, "n d"]:
    """A depthwise convolution's gradients for one output, a block of images at a time.

    Where kernel and padding skip every other pixel, the four grids of such pixels are convolved by themselves, and
    their gradients added: the general routine for dilated kernels takes several times as long.
    """
    n, channels = entering.shape[:2]
    parts = 1
    if how.dilation == how.padding == (2, 2) and min(entering.shape[2:]) >= LEAST_GRID:
        entering, flow, parts = _four_grids(entering), _four_grids(flow), 4
        how = how._replace(padding=(1, 1), dilation=(1, 1))
    count = n if entering.is_cuda else max(1, BLOCK // (entering[0].numel() * entering.element_size()))
    blocks = []
    for x, g in zip(entering.split(count), flow.split(count), strict=True):
        groups = x.shape[0] * x.shape[1]
        size = groups, 1, *layer.kernel_size
        stacked, back = (each.reshape(1, -1, *each.shape[2:]) for each in (x, g))
        rows = nn.grad.conv2d_weight(stacked, size, back, *how._replace(groups=groups))
        blocks.append(
            rows.view(len(x), channels, parts, -1).sum(2) if parts > 1 else rows.view(len(x), channels, -1)
        )
    return torch.cat(blocks).flatten(1)


def _four_grids(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
    """The pixels of even and odd rows and columns as images of their own; beyond an odd image lie zeros."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2))
    # image, channel, row, its parity, column, its parity
    split = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


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

    Products of at most COLUMNS columns are taken in the dtype of the rows, and their sums in float64.
    """
    rows = rows.reshape(len(holders), -1, rows.shape[2])
    everyone = list(holders) == list(range(len(totals)))
    index = None if everyone else torch.tensor(holders, device=totals.device)
    for part in rows.split(COLUMNS, 2):
        product = _products(part)
        if index is None:
            totals += product
        else:
            totals.index_add_(0, index, product.to(totals.dtype))


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
