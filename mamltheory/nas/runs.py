"""How the layers of cells are run for kernels: the same functions as their modules', with cheaper derivatives.

A pointwise convolution is a matrix product. A depthwise one of stride 1 has another one as its derivative by what
enters, with the kernel turned around; the general routine for that is up to ten times as slow, most of all where the
kernel is dilated. A convolution of stride 2 that sees every other pixel alone, as both of a factorized reduction and
the dilated one do, is one of stride 1 on the grid of these pixels, and all edges that leave a state share the grid.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.nas.operations import FactorizedReduce

Note = Callable[[nn.Module, Tensor, Tensor, bool], None]
"""Takes a layer, what entered it, what left it, and whether what entered is the grid of the pixels that it sees."""


@dataclass(eq=False)
class Entering:
    """What enters operations, and its grids of every other pixel, which are made when they are first asked for."""

    x: Tensor
    grids: dict[int, Tensor] = field(default_factory=dict)

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
    """module(x), up to rounding and differentiable once, with a note of every layer on the way."""
    entering = entering if isinstance(entering, Entering) else Entering(entering)
    match module:
        case nn.Sequential():
            for layer in module:
                entering = Entering(run(layer, entering, note))
            return entering.x
        case FactorizedReduce():
            halves = [
                _noted(layer, entering.grid(shift), True, _pointwise, note)
                for shift, layer in enumerate((module.even, module.odd))
            ]
            return run(module.norm, torch.cat(halves, 1), note)
        case nn.Conv2d():
            return _convolution(module, entering, note)
        case _:
            return _noted(module, entering.x, False, _itself, note)


def _convolution(layer: nn.Conv2d, entering: Entering, note: Note) -> Tensor:
    gridded = layer.stride == (2, 2) and is_gridded(layer)
    x = entering.grid(0) if gridded else entering.x
    if layer.bias is not None or layer.padding_mode != "zeros" or (layer.stride != (1, 1) and not gridded):
        return _noted(layer, x, False, _itself, note)
    if layer.kernel_size == (1, 1) and layer.groups == 1:
        return _noted(layer, x, gridded, _pointwise, note)
    if layer.groups == layer.in_channels == layer.out_channels:
        return _noted(layer, x, gridded, _depthwise, note)
    return _noted(layer, x, False, _itself, note)


def is_gridded(layer: nn.Conv2d) -> bool:
    """Whether a convolution of stride 2 sees every other row and column alone."""
    even = all(
        size == 1 or dilation % 2 == 0
        for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
    )
    return even and all(padding % 2 == 0 for padding in layer.padding)


def geometry(layer: nn.Conv2d, gridded: bool) -> tuple[list[int], list[int], list[int]]:
    """Stride, padding and dilation, on the grid where that is what enters."""
    if not gridded:
        return list(layer.stride), list(layer.padding), list(layer.dilation)
    return [1, 1], [p // 2 for p in layer.padding], [max(1, d // 2) for d in layer.dilation]


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


def _itself(layer: nn.Module, x: Tensor, _gridded: bool) -> Tensor:
    return layer(x)


def _pointwise(layer: nn.Conv2d, x: Tensor, _gridded: bool) -> Tensor:
    weight = layer.weight.detach().flatten(1)
    return torch.bmm(weight.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


def _depthwise(layer: nn.Conv2d, x: Tensor, gridded: bool) -> Tensor:
    _, padding, dilation = geometry(layer, gridded)
    return _Depthwise.apply(x, layer.weight.detach(), padding, dilation)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1, whose derivative is the convolution with the kernel turned around."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, padding: list[int], dilation: list[int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding, ctx.dilation = padding, dilation
        return nn.functional.conv2d(x, weight, None, 1, padding, dilation, len(weight))

    @staticmethod
    def backward(ctx, flow: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        sizes = zip(weight.shape[2:], ctx.padding, ctx.dilation, strict=True)
        padding = [dilation * (size - 1) - width for size, width, dilation in sizes]
        turned = weight.flip(2, 3)
        return (
            nn.functional.conv2d(flow, turned, None, 1, padding, ctx.dilation, len(weight)),
            None,
            None,
            None,
        )
