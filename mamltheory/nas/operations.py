"""The seven operations of the search space (Section 6.1) and the layers that cells are made of.

The paper names the operations. Their definitions are those of its released search space, which alone reproduce the
paper's parameter counts: "3×3 convolution" is a depthwise convolution followed by a pointwise one, and pooling is
followed by a norm. Convolutions have no bias.

An operation begins with a step without parameters (a ReLU before convolutions, or the pooling). The cell computes that
step once for all edges from the same node; this module builds the rest.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.arguments import check_choice, check_whole
from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.kernels.layers.convolutions import convolved_on_grid, is_plain, pixels, reads_one_grid

Norm = Literal["batch", "group"]

OPERATIONS: tuple[str, ...] = (
    "skip_connect",
    "sep_conv_3x3",
    "dil_conv_3x3",
    "avg_pool_3x3BN",
    "max_pool_3x3BN",
    "conv_1x5_5x1",
    "conv_3x3",
)
"""The set 𝒪 of Algorithm 1."""

MAX_GROUPS = 16


def check_operation(name: str) -> str:
    """The name itself; raises GenotypeError if it is none of the seven."""
    if name not in OPERATIONS:
        raise GenotypeError(f"unknown operation {name!r}: choose one of {', '.join(OPERATIONS)}")
    return name


def group_count(channels: int) -> int:
    """Groups of a GroupNorm: the largest divisor of the channels up to 16 with at least 2 channels per group."""
    # With one channel per group every channel has mean zero over the image after the norm: global average pooling then
    # returns zero for every image, and the kernel of the head vanishes.
    if channels < 2:
        raise ConfigurationError(
            f"a GroupNorm over {channels} channel removes the image's mean: use at least 2 channels or "
            "norm='batch'"
        )
    return max(g for g in range(1, min(MAX_GROUPS, channels // 2) + 1) if channels % g == 0)


def normalisation(kind: Norm, channels: int) -> nn.Module:
    """Norm with learnt scale and shift: "batch" for training and linear regions, "group" for kernels.

    Args:
        kind: "batch" or "group".
        channels: of the images that it is applied to.

    Returns:
        The module.

    Example:
        >>> from mamltheory.nas import normalisation
        >>> normalisation("group", 8).num_groups
        4
    """
    check_choice(("batch", "group"), kind=kind)
    check_whole(channels=channels)
    # A kernel needs outputs that depend on their own sample alone, which batch statistics violate.
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(group_count(channels), channels)


class Convolution(nn.Conv2d):
    """A convolution without initial weights: torch's would draw them from the global generator."""

    def reset_parameters(self) -> None:
        """Zero, until :func:`mamltheory.nas.network.initialise` draws them."""
        nn.init.zeros_(self.weight)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # On a CPU torch's gradients of strided dilated kernels are up to ten times as slow as those of plain ones.
        on_cpu = input.device.type == "cpu" and input.dim() == 4
        if on_cpu and is_plain(self) and reads_one_grid(self):
            return convolved_on_grid(self, input, weight)
        return super()._conv_forward(input, weight, bias)


class Head(nn.Linear):
    """The linear classifier, without initial weights as :class:`Convolution`."""

    def reset_parameters(self) -> None:
        """Zero, until :func:`mamltheory.nas.network.initialise` draws them."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class FactorizedReduce(nn.Module):
    """Halves the resolution by two pointwise convolutions of stride 2, on grids shifted by one pixel, and a norm."""

    def __init__(self, channels_in: int, channels_out: int, norm: Norm) -> None:
        super().__init__()
        half = channels_out // 2
        if half < 1:
            raise ConfigurationError(
                f"a reduction to {channels_out} channel cannot be split in two halves: use at least 2 "
                "channels"
            )
        self.even = Convolution(channels_in, half, 1, stride=2, bias=False)
        self.odd = Convolution(channels_in, channels_out - half, 1, stride=2, bias=False)
        self.norm = normalisation(norm, channels_out)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        """Half the resolution, rounded up."""
        height, width = x.shape[2:]
        # The frame counts only in odd images: in even ones the shifted grid ends on the last pixel.
        framed = nn.functional.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
        shifted = pixels(framed, 1, 1)
        return self.norm(torch.cat([self.even(x), self.odd(shifted)], dim=1))


def pointwise(channels_in: int, channels_out: int, norm: Norm) -> nn.Sequential:
    """1×1 convolution and norm, which fits a cell's input to the cell's channels."""
    return nn.Sequential(
        Convolution(channels_in, channels_out, 1, bias=False), normalisation(norm, channels_out)
    )


def _separable(channels: int, stride: int, dilation: int, norm: Norm) -> list[nn.Module]:
    """Depthwise 3×3, pointwise, norm."""
    depthwise = Convolution(
        channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels, bias=False
    )
    return [depthwise, Convolution(channels, channels, 1, bias=False), normalisation(norm, channels)]


Leading = Literal["none", "relu", "max", "avg"]
"""The step without parameters with which an operation begins."""


def leading_step(name: str, stride: int) -> Leading:
    """Which step an operation begins with: "none" for the identity alone."""
    match name:
        case "max_pool_3x3BN":
            return "max"
        case "avg_pool_3x3BN":
            return "avg"
        case "skip_connect" if stride == 1:
            return "none"
        case _:
            return "relu"


def leading_module(step: Leading, stride: int) -> nn.Module:
    """The module of a leading step; pooling is 3×3 with the stride, and averages ignore the padding."""
    match step:
        case "relu":
            return nn.ReLU()
        case "max":
            return nn.MaxPool2d(3, stride, padding=1)
        case "avg":
            return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        case _:
            return nn.Identity()


def build_operation(name: str, channels: int, stride: int, norm: Norm) -> nn.Module:
    """One operation without its leading step.

    Args:
        name: of the operation.
        channels: of input and output.
        stride: 1 or 2.
        norm: of its norms.

    Returns:
        The module.
    """
    match check_operation(name):
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)
        case "conv_3x3":
            return nn.Sequential(*_separable(channels, stride, 1, norm))
        case "dil_conv_3x3":
            return nn.Sequential(*_separable(channels, stride, 2, norm))
        case "sep_conv_3x3":
            second = _separable(channels, 1, 1, norm)
            return nn.Sequential(*_separable(channels, stride, 1, norm), nn.ReLU(), *second)
        case "conv_1x5_5x1":
            return nn.Sequential(
                Convolution(channels, channels, (1, 5), stride, padding=(0, 2), bias=False),
                Convolution(channels, channels, (5, 1), padding=(2, 0), bias=False),
                normalisation(norm, channels),
            )
        case _:
            return nn.Sequential(normalisation(norm, channels))
