"""How the layers of cells are run for kernels: the same functions as their modules', with cheaper derivatives.

A pointwise convolution is a matrix product. A depthwise one of stride 1 has another one as its derivative by what
enters, with the kernel turned around; the general routine for that is up to ten times as slow, most of all where the
kernel is dilated. A convolution of stride 2 that sees every other pixel alone, as both of a factorized reduction and
the dilated one do, is one of stride 1 on the grid of these pixels, and all edges that leave a state share the grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d

from mamltheory.nas.operations import FactorizedReduce

Note = Callable[[nn.Module, Tensor, Tensor, bool], None]
"""Takes a layer, what entered it, what left it, and whether what entered is the grid of the pixels that it sees."""


@dataclass(eq=False)
class Entering:
    """What enters operations, and its grids of every other pixel, which are made when they are first asked for.

    normed: norms that it has gone through, and what left them.
    """

    x: Tensor
    grids: dict[int, Tensor] = field(default_factory=dict)
    normed: list[tuple[nn.GroupNorm, Tensor]] = field(default_factory=list)

    def grid(self, shift: int) -> Tensor:
        """Every other row and column, from the one of this number on; beyond the image lie zeros."""
        if shift not in self.grids:
            seen = self.x[:, :, shift::2, shift::2]
            missing = [
                (size + 1) // 2 - got for size, got in zip(self.x.shape[2:], seen.shape[2:], strict=True)
            ]
            pad = (0, missing[1], 0, missing[0])
            self.grids[shift] = nn.functional.pad(seen, pad) if any(missing) else seen.contiguous()
        return self.grids[shift]


def run(module: nn.Module, entering: Tensor | Entering, note: Note) -> Float[Tensor, "m ..."]:
    """module(x) up to rounding, with a note of every layer on the way."""
    entering = entering if isinstance(entering, Entering) else Entering(entering)
    match module:
        case nn.Sequential():
            for layer in module:
                entering = Entering(run(layer, entering, note))
            return entering.x
        case FactorizedReduce():
            halves = [
                _noted(layer, entering.grid(shift), True, _convolved, note)
                for shift, layer in enumerate((module.even, module.odd))
            ]
            return run(module.norm, torch.cat(halves, 1), note)
        case nn.Conv2d() if is_plain(module):
            gridded = module.stride == (2, 2) and is_gridded(module)
            x = entering.grid(0) if gridded else entering.x
            return _noted(module, x, gridded, _convolved, note)
        case _:
            return _noted(module, entering.x, False, lambda layer, x, _gridded: layer(x), note)


def is_gridded(layer: nn.Conv2d) -> bool:
    """Whether a convolution of stride 2, depthwise or pointwise, sees every other row and column alone."""
    even = all(
        size == 1 or dilation % 2 == 0
        for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    )
    known = is_depthwise(layer) or is_pointwise(layer)
    return known and even and all(padding % 2 == 0 for padding in layer.padding)


class Geometry(NamedTuple):
    """Of a convolution, in the order in which torch's functions take them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def geometry(layer: nn.Conv2d, gridded: bool) -> Geometry:
    """The layer's own, or that on the grid where that is what enters."""
    if not gridded:
        return Geometry(layer.stride, layer.padding, layer.dilation, layer.groups)
    padding, dilation = (tuple(n // 2 for n in each) for each in (layer.padding, layer.dilation))
    return Geometry((1, 1), padding, tuple(max(1, d) for d in dilation), layer.groups)


def _noted(
    layer: nn.Module,
    x: Tensor,
    gridded: bool,
    function: Callable[[nn.Module, Tensor, bool], Tensor],
    note: Note,
) -> Tensor:
    leaving = function(layer, x, gridded)
    note(layer, x, leaving, gridded)
    return leaving


def _convolved(layer: nn.Conv2d, x: Tensor, gridded: bool) -> Tensor:
    return _Convolution.apply(x, layer.weight.detach(), geometry(layer, gridded))


def convolved(layer: nn.Conv2d, x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d h2 w2"]:
    """layer(x) of a plain convolution, differentiable by x as often as one likes.

    A second derivative by torch's own goes through the groups one by one, and computes one by the weights as well.
    """
    return _convolved(layer, x, False)


def is_plain(module: nn.Module) -> bool:
    """Whether :func:`convolved` knows the layer: a convolution without bias, padded by zeros."""
    return isinstance(module, nn.Conv2d) and module.bias is None and is_padded_by_zeros(module)


def is_padded_by_zeros(layer: nn.Conv2d) -> bool:
    """Whether the padding is of zeros, and given by numbers."""
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def is_depthwise(layer: nn.Conv2d) -> bool:
    """Whether every channel is convolved by itself."""
    return layer.groups == layer.in_channels == layer.out_channels


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether every pixel that the layer sees is mapped by itself."""
    return layer.groups == 1 and layer.kernel_size == (1, 1) and not any(layer.padding)


def flow_back(
    shape: Sequence[int], weight: Float[Tensor, "d g h w"], flow: Float[Tensor, "m d h2 w2"], how: Geometry
) -> Float[Tensor, "m c h1 w1"]:
    """What flows back to the input, of this shape, of a convolution padded by zeros.

    Of a depthwise one of stride 1 it is the convolution with the kernel turned around.
    """
    if _is_product(weight, how):
        return _product(weight.flatten(1).T, flow)
    sizes = zip(weight.shape[2:], how.padding, how.dilation, strict=True)
    rest = tuple(dilation * (size - 1) - padding for size, padding, dilation in sizes)
    depthwise = weight.shape[1] == 1 and how.groups == weight.shape[0]
    if depthwise and tuple(how.stride) == (1, 1) and min(rest) >= 0:
        return nn.functional.conv2d(flow, weight.flip(2, 3), None, *how._replace(padding=rest))
    return nn.grad.conv2d_input(shape, weight, flow, *how)


def _is_product(weight: Tensor, how: Geometry) -> bool:
    """Whether a convolution maps every pixel by itself."""
    alone = tuple(weight.shape[2:]) == tuple(how.stride) == (1, 1) and not any(how.padding)
    return alone and how.groups == 1


def _product(matrix: Float[Tensor, "d c"], x: Float[Tensor, "m c h w"]) -> Float[Tensor, "m d h w"]:
    return torch.bmm(matrix.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


class _Convolution(torch.autograd.Function):
    """A convolution as a linear function of what enters."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, how: Geometry) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.how = x.shape, how
        if _is_product(weight, how):
            return _product(weight.flatten(1), x)
        return nn.functional.conv2d(x, weight, None, *how)

    @staticmethod
    def backward(ctx, flow: Tensor) -> tuple[Tensor | None, ...]:
        return _Transposed.apply(flow, *ctx.saved_tensors, ctx.shape, ctx.how), None, None


class _Transposed(torch.autograd.Function):
    """Its transpose."""

    @staticmethod
    def forward(ctx, flow: Tensor, weight: Tensor, shape: torch.Size, how: Geometry) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.how = how
        return flow_back(shape, weight, flow, how)

    @staticmethod
    def backward(ctx, back: Tensor) -> tuple[Tensor | None, ...]:
        return _Convolution.apply(back, *ctx.saved_tensors, ctx.how), None, None, None


SIZE, PADDING = 3, 1


def pooled(module: nn.Module, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h2 w2"]:
    """What a leading step of :mod:`mamltheory.nas.operations` returns, up to rounding."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return module(x)
    match module:
        case nn.MaxPool2d():
            return _maximum(x, module.stride)
        case nn.AvgPool2d():
            return _average(x, module.stride)
        case _:
            return module(x)


def _maximum(x: Tensor, stride: int) -> Tensor:
    last = x.contiguous(memory_format=torch.channels_last)
    return max_pool2d(last, SIZE, stride, PADDING).contiguous()


def _average(x: Tensor, stride: int) -> Tensor:
    """Sums over the 3×3 neighbours, divided by how many of them lie in the image."""
    ones = x.new_ones(x.shape[1], 1, SIZE, SIZE)
    inside = SIZE**2 * avg_pool2d(x.new_ones(1, 1, *x.shape[2:]), SIZE, stride, PADDING)
    return conv2d(x, ones, None, stride, PADDING, groups=x.shape[1]) / inside
