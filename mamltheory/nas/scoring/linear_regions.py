"""Number of linear regions R_N, Eq. (15): how finely a ReLU network at initialisation divides the input space.

Two inputs lie in one linear region if they switch the same ReLUs. As in the search that the paper follows, the regions
are counted on samples, in thin networks: one channel, one normal and one reduction cell, no stem, batch statistics,
and 3×3 patches of a single colour channel as inputs (each larger input would be alone in its region). BatchNorm makes
the patterns of a batch depend on one another: all patches are counted together.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mamltheory.accelerator import float32_products
from mamltheory.errors import ShapeError, UnsupportedModelError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, build, mean_of
from mamltheory.nas.space import PAPER, Edge, Space
from mamltheory.nas.weights import draw_weights

PATCH = 3


def thin_network(candidates: Candidates, seed: int) -> Network:
    """The network whose linear regions are counted; candidates of one seed share their weights."""
    settings = NetworkSettings(channels=1, classes=1, norm="batch", final_norm=True, input_channels=1)
    return build(candidates, settings, seed, kinds=("normal", "reduce"), stem=False)


def region_count(candidates: Candidates, patches: Float[Tensor, "n 1 h w"], seed: int) -> int:
    """R_N of a supernet or a finished cell: number of linear regions that the patches fall into, Eq. (15)."""
    return region_counts([candidates], patches, seed)[0]


def region_counts(
    candidates: Sequence[Candidates], patches: Float[Tensor, "n 1 h w"], seed: int
) -> list[int]:
    """R_N of many supernets on the same patches and weights, as :func:`region_count` one after the other.

    Args:
        candidates: the supernets.
        patches: the inputs, on any device. They are counted on the CPU: from a GPU each value would be a transfer.
        seed: seed of the weights.

    Returns:
        One number for each supernet.
    """
    space = candidates[0].space if candidates else PAPER
    counter = PatternCounter(_thin(space).drawn(seed), patches.cpu())
    return [counter.count(each) for each in candidates]


@dataclass(eq=False)
class Value:
    """The output of a function in one forward pass.

    Attributes:
        name: number of the function and its inputs.
        tensor: the output.
        bits: packed patterns of the ReLUs that ran for it.
    """

    name: int
    tensor: Tensor
    bits: list[np.ndarray]


class PatternCounter:
    """Counts the activation patterns of candidates of one network on the same inputs, the first one in full.

    A value is named by the function that computed it and by the names of its inputs. A candidate differs from the
    supernet in one edge, so that all values before that edge have the same names. Its pattern is the bits of all the
    values that it uses.
    """

    def __init__(self, network: Network, x: Float[Tensor, "n c h w"]) -> None:
        self.network, self.x = network, x
        self.relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
        self.names: dict[tuple, int] = {}
        self.first: dict[int, Value] = {}
        self.used: dict[int, Value] = {}
        self.bits: list[np.ndarray] = []

    def count(self, candidates: Candidates) -> int:
        """Number of distinct activation patterns of these candidates."""
        self.used = {}
        handles = [relu.register_forward_hook(self._remember) for relu in self.relus]
        try:
            with torch.no_grad(), float32_products():
                self._run(candidates)
        finally:
            for handle in handles:
                handle.remove()
        self.first = self.first or self.used
        return _distinct_rows([bits for value in self.used.values() for bits in value.bits])

    def _remember(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.bits.append(_packed_bits((output > 0).flatten(1)))

    def _value(self, function: Callable[..., Tensor], *inputs: Value) -> Value:
        """function(inputs), run unless this candidate or the first one has done so."""
        key = (function, *(value.name for value in inputs))
        name = self.names.setdefault(key, len(self.names))
        if name in self.first:
            self.used[name] = self.first[name]
        elif name not in self.used:
            self.bits = []
            self.used[name] = Value(name, function(*(value.tensor for value in inputs)), self.bits)
        return self.used[name]

    def _edge_output(self, _edge: Edge, operations: Iterator[tuple[str, nn.Module, Value]]) -> Value:
        parts = [self._value(operation, state) for _, operation, state in operations]
        return parts[0] if len(parts) == 1 else self._value(mean_of, *parts)

    def _run(self, candidates: Candidates) -> None:
        s0 = s1 = self._value(self.network.stem, Value(-1, self.x, []))
        for kind, cell in self.network.stacked_cells():
            live = {edge: candidates.on(kind, edge) for edge in candidates.space.edges}
            s0, s1 = s1, cell.walk(self._value, self._edge_output, live, s0, s1)
        self._value(self.network.last, s1)


def _packed_bits(patterns: Bool[Tensor, "n bits"]) -> np.ndarray:
    """The rows as bytes."""
    return np.packbits(patterns.cpu().numpy(), axis=1)


def _distinct_rows(parts: Sequence[np.ndarray]) -> int:
    """Number of distinct rows of the parts side by side."""
    rows = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return len(np.unique(rows.view(f"V{rows.shape[1]}")))


@dataclass(eq=False)
class _Thin:
    """A thin network of all operations as matrices, the only one in a process: it is not for several threads.

    Attributes:
        network: the network.
        layers: its layers with weights but norms, by the names that they had before.
        matrices: the modules in their place.
        seed: seed of its weights; None while they are being drawn.
    """

    network: Network
    layers: list[tuple[str, nn.Module]]
    matrices: "list[_Dense]"
    seed: int | None = 0

    def drawn(self, seed: int) -> Network:
        """The network with the weights of ``thin_network`` for this seed."""
        if self.seed != seed:
            self.seed = None  # what is drawn in part, because of an interruption, is drawn again
            for name, layer in self.layers:
                draw_weights(name, layer, seed, self.network.settings.initialisation)
            for module in self.matrices:
                module.matrices.clear()
            self.seed = seed
        return self.network


@lru_cache(maxsize=1)
def _thin(space: Space) -> _Thin:
    """Kept for all repeats: to build the network takes longer than to draw its weights, and to run it."""
    network = thin_network(Candidates.of(space), 0)
    layers = [(n, each) for n, each in network.named_modules() if [*each.parameters(recurse=False)]]
    layers = [(n, each) for n, each in layers if not isinstance(each, nn.BatchNorm2d)]
    densify(network, keep=[part for own in network.own_operations() for part in own.modules()])
    return _Thin(network, layers, [each for each in network.modules() if isinstance(each, _Dense)])


def activation_patterns(
    network: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor] | None = None
) -> Bool[Tensor, "n bits"]:
    """Which ReLUs are on, sample by sample.

    Args:
        network: the network.
        x: samples.
        forward: what is run on the samples, by default the network.

    Returns:
        One row for each sample.

    Raises:
        UnsupportedModelError: the network has no ReLU modules.
    """
    patterns: list[Tensor] = []

    def remember(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        patterns.append((output > 0).flatten(1))

    handles = [m.register_forward_hook(remember) for m in network.modules() if isinstance(m, nn.ReLU)]
    try:
        with torch.no_grad(), float32_products():
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
    return _distinct_rows([_packed_bits(patterns)])


def random_patches(
    images: Float[Tensor, "n c h w"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 1 3 3"]:
    """3×3 crops of one channel at random places of random images.

    Args:
        images: images.
        count: number of crops.
        generator: source of the draws.

    Returns:
        The crops.

    Raises:
        ShapeError: the images are smaller than a patch.
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
    """A linear layer of images as a matrix, whose rows are the layer's outputs for the unit images."""

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


def densify(network: nn.Module, keep: Collection[nn.Module] = ()) -> None:
    """Replaces, in place, every run of convolutions by its matrix; for tiny inputs and without gradient.

    Args:
        network: the network.
        keep: modules that stay as they are.
    """
    for parent in list(network.modules()):
        if isinstance(parent, _Dense):
            continue
        run: list[str] = []
        for name, child in [*parent.named_children(), ("", None)]:
            linear = isinstance(child, nn.Conv2d | nn.AvgPool2d) and child not in keep
            if linear and (isinstance(parent, nn.Sequential) or not run):
                run.append(name)
                continue
            _merge(parent, run)
            run = [name] if linear else []


def _merge(parent: nn.Module, run: list[str]) -> None:
    """One matrix in place of the first of consecutive layers, nothing in place of the others."""
    layers = [getattr(parent, name) for name in run]
    for name in run:
        setattr(parent, name, nn.Identity())
    if run:
        setattr(parent, run[0], _Dense(nn.Sequential(*layers)))
