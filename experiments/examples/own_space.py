"""A search space of your own: two operations of the paper, two new ones, cells of two nodes. Copy this file, change it:

python -m experiments search --preset glyph-smoke --space experiments.examples.own_space:space

In Python: ``mamltheory.nas.search("glyphs", space=space)``. An operation takes channels, stride (1 or 2) and the kind
of norm, and returns a module that keeps the number of channels; :class:`mamltheory.nas.Space` says what it may do.
"""

from typing import Literal

from torch import nn

from mamltheory.nas import Space, normalisation

Norm = Literal["batch", "group"]


def conv_7x7(channels: int, stride: int, norm: Norm) -> nn.Module:
    """A depthwise 7×7 convolution, and a pointwise one."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, channels, 7, stride, padding=3, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        normalisation(norm, channels),
    )


def bottleneck(channels: int, stride: int, norm: Norm) -> nn.Module:
    """A 3×3 convolution of half the channels, between two pointwise ones."""
    half = max(1, channels // 2)  # linear regions are counted in networks of one channel
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels, half, 1, bias=False),
        nn.Conv2d(half, half, 3, stride, padding=1, bias=False),
        nn.Conv2d(half, channels, 1, bias=False),
        normalisation(norm, channels),
    )


paper = Space().operations
space = Space(
    {
        "skip_connect": paper["skip_connect"],
        "max_pool_3x3BN": paper["max_pool_3x3BN"],
        "conv_7x7": conv_7x7,
        "bottleneck": bottleneck,
    },
    nodes=2,
    reduce=("max_pool_3x3BN", "conv_7x7"),  # with one name, the reduction cell would not be searched
)
