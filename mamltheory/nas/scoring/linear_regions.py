"""Number of linear regions R_N, Eq. (15): how finely a ReLU network at initialisation divides the input
space.

Two inputs lie in one linear region if they switch the same ReLUs. As in the search that the paper follows,
the regions are counted on samples, in thin networks: one channel, one normal and one reduction cell, no
stem, batch statistics, and 3×3 patches of a single colour channel as inputs (larger inputs would all be
alone in their region). BatchNorm makes the patterns of a batch depend on one another: patches are counted
all at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mamltheory.errors import ShapeError, UnsupportedModelError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, build, initialise_layer
from mamltheory.nas.scoring.activation_patterns import PatternCounter, distinct_rows, packed_bits
from mamltheory.rng import generator

PATCH = 3


def thin_network(candidates: Candidates, seed: int) -> Network:
    """The network whose linear regions are counted; candidates of one seed share their weights.

    Convolutions act as matrices on the flattened patch: the same function, much faster on 3×3 inputs.
    """
    settings = NetworkSettings(channels=1, classes=1, norm="batch", final_norm=True, input_channels=1)
    return build(candidates, settings, seed, kinds=("normal", "reduce"), stem=False)


def region_count(candidates: Candidates, patches: Float[Tensor, "n 1 h w"], seed: int) -> int:
    """R_N of a supernet or a finished cell: number of linear regions that the patches fall into, Eq. (15)."""
    return region_counts([candidates], patches, seed)[0]


def region_counts(
    candidates: Sequence[Candidates], patches: Float[Tensor, "n 1 h w"], seed: int
) -> list[int]:
    """R_N of many supernets on the same patches and weights, as :func:`region_count` one by one.

    What a candidate computes from the same values as the first one is taken from there.
    """
    counter = PatternCounter(_thin().drawn(seed, patches.device), patches)
    return [counter.count(each) for each in candidates]


@dataclass(eq=False)
class _Thin:
    """A thin network of all operations as matrices; its convolutions and head by the names that they had before.

    seed: that of its weights, None while they are being drawn.  There is one network in a process, which changes with
    every seed: it is not for several threads.
    """

    network: Network
    layers: list[tuple[str, nn.Module]]
    matrices: "list[_Dense]"
    seed: int | None = 0
    device: torch.device | None = None

    def drawn(self, seed: int, device: torch.device) -> Network:
        """The network with the weights of ``thin_network`` for this seed."""
        if self.device != device:
            self.network.to(device)
            self.device = device
        if self.seed != seed:
            self.seed = None  # what is drawn in part, because of an interruption, is drawn again
            for name, layer in self.layers:
                initialise_layer(
                    layer, self.network.settings.initialisation, generator(seed, f"weights {name}")
                )
            for module in self.matrices:
                module.matrices.clear()
            self.seed = seed
        return self.network


@lru_cache(maxsize=1)
def _thin() -> _Thin:
    """Kept for all repeats: to build the network takes longer than to draw its weights, and to run it."""
    network = thin_network(Candidates(), 0)
    layers = [(n, layer) for n, layer in network.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    densify(network)
    return _Thin(network, layers, [each for each in network.modules() if isinstance(each, _Dense)])


def activation_patterns(
    network: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> Bool[Tensor, "n bits"]:
    """Which ReLUs are on, sample by sample. Raises UnsupportedModelError for a network without ReLU
    modules.
    """
    patterns: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        patterns.append((output > 0).flatten(1))

    handles = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.ReLU)]
    try:
        with torch.no_grad():
            (forward or network)(x)
    finally:
        for handle in handles:
            handle.remove()
    if not patterns:
        raise UnsupportedModelError(
            "the network has no nn.ReLU module: it has no linear regions to be counted"
        )
    return torch.cat(patterns, dim=1)


def distinct_patterns(patterns: Bool[Tensor, "n bits"]) -> int:
    """Number of distinct rows, on bits packed into bytes."""
    return distinct_rows([packed_bits(patterns)])


def random_patches(
    images: Float[Tensor, "n c h w"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 1 3 3"]:
    """3×3 crops of one channel at random places of random images.

    Raises ShapeError for images smaller than a patch.
    """
    n, channels, height, width = images.shape
    if min(height, width) < PATCH or n == 0:
        raise ShapeError(f"images have shape {tuple(images.shape)}: a {PATCH}×{PATCH} patch does not fit")

    def draw(bound: int) -> Tensor:
        return torch.randint(bound, (count, 1, 1), generator=generator).to(images.device)

    offsets = torch.arange(PATCH, device=images.device)
    image, channel = draw(n), draw(channels)
    rows = draw(height - PATCH + 1) + offsets[:, None]
    columns = draw(width - PATCH + 1) + offsets
    return images[image, channel, rows, columns][:, None]


class _Dense(nn.Module):
    """A linear layer of images as a matrix, found by sending the unit images through it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.matrices: dict[tuple, tuple[Tensor, torch.Size]] = {}

    def forward(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[1:])
        key = (shape, x.dtype, x.device)
        if key not in self.matrices:
            size = x[0].numel()
            images = self.layer(torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *shape))
            self.matrices[key] = images.flatten(1), images.shape[1:]
        matrix, out = self.matrices[key]
        return (x.flatten(1) @ matrix).reshape(len(x), *out)


def densify(network: nn.Module) -> None:
    """Replaces, in place, every run of convolutions by its matrix; for tiny inputs and without gradient."""
    for parent in list(network.modules()):
        if isinstance(parent, _Dense):
            continue
        run: list[str] = []
        for name, child in [*parent.named_children(), ("", None)]:
            if isinstance(child, nn.Conv2d | nn.AvgPool2d) and (isinstance(parent, nn.Sequential) or not run):
                run.append(name)
                continue
            _merge(parent, run)
            run = [name] if isinstance(child, nn.Conv2d | nn.AvgPool2d) else []


def _merge(parent: nn.Module, run: list[str]) -> None:
    """One matrix in place of the first of consecutive layers, nothing in place of the others."""
    layers = [getattr(parent, name) for name in run]
    for name in run:
        setattr(parent, name, nn.Identity())
    if run:
        setattr(parent, run[0], _Dense(nn.Sequential(*layers)))
