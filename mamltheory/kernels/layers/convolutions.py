"""Convolutions: their outputs, their per-sample gradients, and the cotangents of both.

A pointwise convolution is a matrix product. A depthwise one of stride 1 has another depthwise one, with the kernel
flipped, as its derivative by its input; torch's general routine is up to ten times as slow, most of all for dilated
kernels. A convolution of stride 2 whose kernel skips every other pixel is one of stride 1 on the grid of the pixels
that it reads. All functions but :func:`zero_padded` take convolutions that are padded by zeros on both sides alike.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.nn.grad import conv1d_weight, conv2d_input, conv2d_weight, conv3d_weight

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
_WEIGHT_GRADIENT = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}

FEW_POSITIONS = 128
"""Positions of the output below which the gradients of a dense convolution are cheaper as one matrix product."""
LEAST_GRID = 8
"""Rows or columns of an image from which the gradients of a dilated kernel are cheaper grid by grid."""
MOST_GROUPS = {"cpu": math.inf, "cuda": 16}
"""Samples up to which the gradients of a dense convolution come from one grouped convolution, by the kind of device.
From more samples they are a matrix product for each tap of the kernel. The number for CUDA is not measured: cuDNN is
known to be slow for many groups."""
BLOCK = 1 << 21
"""Bytes of images whose depthwise gradients are computed together: what a CPU has in its caches."""


class Geometry(NamedTuple):
    """Stride, padding, dilation and groups of a convolution, in the order in which torch's functions take them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def on_grid(self) -> "Geometry":
        """The same convolution of stride 2 on the grid of every other pixel."""
        padding, dilation = (tuple(n // 2 for n in each) for each in (self.padding, self.dilation))
        return Geometry((1, 1), padding, tuple(max(1, d) for d in dilation), self.groups)


def zero_padded(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor) -> tuple[Tensor, Geometry]:
    """The input and the geometry of the same convolution with a symmetric frame of zeros.

    The input is padded where such a frame cannot express the layer's padding.

    Args:
        layer: a convolution.
        inputs: its input.

    Returns:
        The input, the same tensor where it need not be padded, and the geometry.
    """
    stride, dilation, groups = layer.stride, layer.dilation, layer.groups
    none = (0,) * len(layer.kernel_size)
    if layer.padding == "valid":
        return inputs, Geometry(stride, none, dilation, groups)
    if layer.padding == "same":
        totals = [d * (size - 1) for d, size in zip(dilation, layer.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(int(p), int(p)) for p in layer.padding]
    if layer.padding_mode == "zeros" and all(left == right for left, right in sides):
        return inputs, Geometry(stride, tuple(left for left, _ in sides), dilation, groups)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    frame = [width for pair in reversed(sides) for width in pair]
    return pad(inputs, frame, mode=mode), Geometry(stride, none, dilation, groups)


def is_plain(module: nn.Module) -> bool:
    """Whether the module is a two-dimensional convolution without bias, padded by numbers of zeros."""
    return (
        isinstance(module, nn.Conv2d)
        and module.bias is None
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def reads_one_grid(layer: nn.Conv2d) -> bool:
    """Whether a convolution has stride 2 and reads every other row and column alone."""
    sizes = zip(layer.kernel_size, layer.dilation, strict=True)
    skips = all(size == 1 or dilation % 2 == 0 for size, dilation in sizes)
    return layer.stride == (2, 2) and skips and all(int(padding) % 2 == 0 for padding in layer.padding)


def convolved_on_grid(
    layer: nn.Conv2d, x: Float[Tensor, "m c h w"], weight: Float[Tensor, "d g a b"]
) -> Float[Tensor, "m d h2 w2"]:
    """The output of a convolution that :func:`reads_one_grid`, by torch's convolution of stride 1 on that grid.

    Args:
        layer: the convolution.
        x: its input.
        weight: its weight.

    Returns:
        The output, differentiable by x and the weight.
    """
    # With even padding p and dilation d, output pixel i reads the input pixels 2i − p + kd = 2(i − p/2 + kd/2) alone:
    # those of every other row and column, as a convolution of stride 1 with padding p/2 and dilation d/2 does.
    return conv2d(pixels(x, 0, 2), weight, None, *zero_padded(layer, x)[1].on_grid())


def pixels(x: Float[Tensor, "m c h w"], first: int, step: int) -> Float[Tensor, "m c h2 w2"]:
    """A view of every step-th row and column from the first one on.

    Args:
        x: images.
        first: the first row and column.
        step: from one to the next.

    Returns:
        The view, whose gradient has the layout of x.
    """
    # torch lays out the gradient of a slice in the order of the axes. Another layout than that of the activations
    # makes the backward pass of their ReLU up to ten times as slow.
    if x.stride(1) == 1:
        return x.permute(0, 2, 3, 1)[:, first::step, first::step].permute(0, 3, 1, 2)
    return x[:, :, first::step, first::step]


def convolved(
    x: Float[Tensor, "m c h w"], weight: Float[Tensor, "d g a b"], geometry: Geometry
) -> Float[Tensor, "m d h2 w2"]:
    """The output of a convolution, differentiable by x as often as needed, and not by the weight.

    A second derivative by torch's own runs the groups one after the other, and computes one by the weight as well.

    Args:
        x: the input.
        weight: the weight.
        geometry: geometry of the convolution.

    Returns:
        The output.
    """
    return _Convolution.apply(x, weight.detach(), geometry)


def layer_output(layer: nn.Conv2d, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d h2 w2"]:
    """The output of a plain convolution (:func:`is_plain`) by :func:`convolved`."""
    return convolved(x, layer.weight, zero_padded(layer, x)[1])


def input_cotangent(
    shape: Sequence[int],
    weight: Float[Tensor, "d g a b"],
    cotangent: Float[Tensor, "m d h2 w2"],
    geometry: Geometry,
) -> Float[Tensor, "m c h w"]:
    """The cotangent of the input of a two-dimensional convolution.

    Args:
        shape: shape of the input.
        weight: weight of the convolution.
        cotangent: cotangent of its output.
        geometry: geometry of the convolution.

    Returns:
        The cotangent, in the shape of the input.
    """
    if _is_product(weight.shape, geometry):
        return _product(weight.flatten(1).T, cotangent)
    sizes = zip(weight.shape[2:], geometry.padding, geometry.dilation, strict=True)
    rest = tuple(dilation * (size - 1) - padding for size, padding, dilation in sizes)
    if _is_depthwise(weight.shape, geometry) and geometry.stride == (1, 1) and min(rest) >= 0:
        return conv2d(cotangent, weight.flip(2, 3), None, *geometry._replace(padding=rest))
    return conv2d_input(shape, weight, cotangent, *geometry)


def _is_depthwise(size: Sequence[int], geometry: Geometry) -> bool:
    """Whether each channel has a kernel that reads it alone."""
    return size[1] == 1 and geometry.groups == size[0]


def _is_pointwise(size: Sequence[int], geometry: Geometry) -> bool:
    """Whether the convolution maps every pixel that it reads by one matrix."""
    return geometry.groups == 1 and set(size[2:]) == {1} and not any(geometry.padding)


def _is_product(size: Sequence[int], geometry: Geometry) -> bool:
    """Whether the convolution maps every pixel of its input by one matrix."""
    return _is_pointwise(size, geometry) and set(geometry.stride) == {1}


def _product(matrix: Float[Tensor, "d c"], x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d h w"]:
    result = x.new_empty(len(x), len(matrix), *x.shape[2:])
    torch.bmm(matrix.expand(len(x), -1, -1), x.flatten(2), out=result.flatten(2))
    return result  # not a view, which a hook on the output would have to copy


class _Convolution(torch.autograd.Function):
    """A convolution as a linear function of its input."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        if _is_product(weight.shape, geometry):
            return _product(weight.flatten(1), x)
        return conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        return _Transposed.apply(cotangent, *ctx.saved_tensors, ctx.shape, ctx.geometry), None, None


class _Transposed(torch.autograd.Function):
    """The transpose of a convolution as a linear function of the cotangent of its output."""

    @staticmethod
    def forward(ctx, cotangent: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = geometry
        return input_cotangent(shape, weight, cotangent, geometry)

    @staticmethod
    def backward(ctx, back: Tensor) -> tuple[Tensor | None, ...]:
        return _Convolution.apply(back, *ctx.saved_tensors, ctx.geometry), None, None, None


def weight_gradients(
    inputs: Float[Tensor, "n c *space"],
    cotangents: Float[Tensor, "n k d *space2"],
    size: Sequence[int],
    geometry: Geometry,
) -> Float[Tensor, "nk p"]:
    """Per-sample gradients of a convolution by its weight: one row for each of k outputs of each sample.

    Args:
        inputs: inputs of the convolution.
        cotangents: cotangents of its output, k for each sample.
        size: shape of the weight.
        geometry: geometry of the convolution.

    Returns:
        The rows, sample-major; each has the numbers of the weight in their order.
    """
    n, k = cotangents.shape[:2]
    patches = None
    if _is_pointwise(size, geometry):
        steps = [slice(None, None, step) for step in geometry.stride]
        patches = inputs[(slice(None), slice(None), *steps)].flatten(2).mT
    elif geometry.groups == 1 and cotangents[0, 0, 0].numel() < FEW_POSITIONS:
        patches = _patches(inputs, size, geometry)
    if patches is not None:
        return (cotangents.flatten(1, 2).flatten(2) @ patches).view(n * k, -1)
    if len(size) == 4 and _is_depthwise(size, geometry) and geometry.stride == (1, 1):
        rows = [_depthwise_gradients(inputs, each, size, geometry) for each in cotangents.unbind(1)]
        return torch.stack(rows, 1).flatten(0, 1)
    if geometry.groups == 1 and n > MOST_GROUPS.get(inputs.device.type, math.inf):
        return _tap_gradients(inputs, cotangents, size, geometry)
    return _grouped_gradients(inputs, cotangents, size, geometry)


def _patches(inputs: Tensor, size: Sequence[int], geometry: Geometry) -> Float[Tensor, "n positions p"]:
    """What each position of the output reads of the input."""
    x = _padded(inputs, geometry)
    axes = zip(size[2:], geometry.dilation, geometry.stride, strict=True)
    for axis, (length, dilation, stride) in enumerate(axes, 2):
        x = x.unfold(axis, dilation * (length - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, len(size) - 1).flatten(len(size) - 1).flatten(1, -2)


def _padded(inputs: Tensor, geometry: Geometry) -> Tensor:
    return pad(inputs, [width for padding in reversed(geometry.padding) for width in (padding, padding)])


def _tap_gradients(
    inputs: Tensor, cotangents: Tensor, size: Sequence[int], geometry: Geometry
) -> Float[Tensor, "nk p"]:
    """One matrix product for each tap of a dense kernel; arguments as :func:`weight_gradients`."""
    n, k = cotangents.shape[:2]
    x, left = _padded(inputs, geometry), cotangents.flatten(1, 2).flatten(2)
    taps = list(itertools.product(*map(range, size[2:])))
    rows = left.new_empty(n, k * size[0], size[1], len(taps))
    for number, tap in enumerate(taps):
        axes = zip(tap, geometry.dilation, geometry.stride, cotangents.shape[3:], strict=True)
        read: Any = (..., *(slice(i * d, i * d + (m - 1) * step + 1, step) for i, d, step, m in axes))
        rows[..., number] = left @ x[read].flatten(2).mT
    return rows.view(n * k, -1)


def _grouped_gradients(
    inputs: Tensor, cotangents: Tensor, size: Sequence[int], geometry: Geometry
) -> Float[Tensor, "nk p"]:
    """One grouped weight gradient for all samples and outputs; arguments as :func:`weight_gradients`."""
    # Each group of each sample is a group, which leads from its input channels to its output channels once for each
    # of the k outputs: nothing is repeated, and no product between groups is formed.
    n, k, groups = *cotangents.shape[:2], geometry.groups
    several = groups > 1 and k > 1
    if several:
        cotangents = cotangents.unflatten(2, (groups, -1)).transpose(1, 2)
    gradient = _WEIGHT_GRADIENT[len(size) - 2](
        inputs.reshape(1, -1, *inputs.shape[2:]),
        (n * k * size[0], *size[1:]),
        cotangents.reshape(1, -1, *cotangents.shape[4 if several else 3 :]),
        *geometry._replace(groups=n * groups),
    )
    if several:
        gradient = gradient.view(n, groups, k, -1).transpose(1, 2)
    return gradient.reshape(n * k, -1)


def _depthwise_gradients(
    inputs: Tensor, cotangents: Tensor, size: Sequence[int], geometry: Geometry
) -> Float[Tensor, "n p"]:
    """Gradients of a depthwise convolution for one output, one block of images after the other."""
    parts, channels = 1, size[0]
    # Where kernel and padding skip every other pixel, each of the four grids of such pixels is convolved alone and
    # the gradients are added: torch's routine for dilated kernels takes several times as long.
    if geometry.dilation == geometry.padding == (2, 2) and min(inputs.shape[2:]) >= LEAST_GRID:
        inputs, cotangents, parts = _four_grids(inputs), _four_grids(cotangents), 4
        geometry = Geometry((1, 1), (1, 1), (1, 1), parts * channels)
    count = len(inputs) if inputs.is_cuda else max(1, BLOCK // (inputs[0].numel() * inputs.element_size()))
    blocks = zip(inputs.split(count), cotangents.split(count), strict=True)
    size = (parts * channels, *size[1:])
    rows = torch.cat([_grouped_gradients(x, g[:, None], size, geometry) for x, g in blocks])
    return rows if parts == 1 else rows.view(len(rows), channels, parts, -1).sum(2).flatten(1)


def _four_grids(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
    """The pixels of even and odd rows and columns as four channels; an odd image is padded by zeros."""
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = pad(x, (0, width % 2, 0, height % 2))
    # image, channel, row, its parity, column, its parity
    split = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return split.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def factor_cotangents(
    inputs: Float[Tensor, "n c h w"],
    cotangents: Float[Tensor, "n k d h2 w2"],
    by_rows: Float[Tensor, "nk p"],
    size: Sequence[int],
    geometry: Geometry,
) -> tuple[Float[Tensor, "n c h w"], Float[Tensor, "n k d h2 w2"]]:
    """Cotangents of the two factors of :func:`weight_gradients`, from the cotangent Ḡ of its rows.

    ⟨Ḡ, G(a, g)⟩ = ⟨g, a convolved with Ḡ⟩: a convolution whose weight differs between samples and outputs.

    Args:
        inputs: the factor a.
        cotangents: the factor g.
        by_rows: Ḡ.
        size: shape of the weight.
        geometry: geometry of the convolution.

    Returns:
        The cotangents of a and g, in their shapes.
    """
    n, k, groups = *cotangents.shape[:2], geometry.groups
    space = cotangents.shape[3:]
    kernel = by_rows.view(n, k, groups, -1, *size[1:]).transpose(1, 2).reshape(-1, *size[1:])
    back = cotangents.unflatten(2, (groups, -1)).transpose(1, 2).reshape(1, -1, *space)
    stacked = inputs.reshape(1, -1, *inputs.shape[2:])
    geometry = geometry._replace(groups=n * groups)
    by_cotangents = conv2d(stacked, kernel, None, *geometry)
    by_inputs = input_cotangent(stacked.shape, kernel, back, geometry).view_as(inputs)
    by_cotangents = by_cotangents.view(n, groups, k, -1, *space).transpose(1, 2).reshape(cotangents.shape)
    return by_inputs, by_cotangents
