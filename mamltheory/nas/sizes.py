"""Sizes of derived networks without building them, and random cells as large as a given one.

Cells should be compared at equal size: operations differ by a factor of ten in their number of weights, and larger
networks are more accurate whatever chose them.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import median
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, UnsupportedModelError
from mamltheory.nas.genotype import Candidates, Genotype, random_genotype
from mamltheory.nas.network import Network, NetworkSettings, layout
from mamltheory.nas.space import CELL_TYPES, PAPER, Edge, Operator, Space
from mamltheory.rng import generator

TOLERANCE = 0.08
"""Half the width of a band, as a share of the size in its middle."""
MEDIAN_OF = 32
"""Random cells whose median size is the middle of the usual band."""
CHANNELS = 16
"""Width at which the sizes of operations are compared; their order is the same at any other."""


def genotype_parameters(genotype: Genotype, size: NetworkSettings) -> int:
    """Number of parameters of the network that stacks these cells: ``parameter_count(derived_network(...))``."""
    common, own = _parts(size, genotype.space)
    return common + sum(own[operator] for operator in genotype.candidates().operators())


def random_genotype_like(
    genotype: Genotype, draws: int, tolerance: float, generator: torch.Generator, size: NetworkSettings
) -> Genotype:
    """The random genotype of the same form, other than the given one, that is nearest in number of parameters.

    Args:
        genotype: the cells to match.
        draws: number of random genotypes to choose from.
        tolerance: largest relative difference in size, for example 0.05.
        generator: of the random genotypes.
        size: of both networks.

    Returns:
        The nearest genotype.

    Raises:
        ConfigurationError: when no draw is near enough, and for draws < 1 or tolerance < 0.
    """
    if draws < 1 or not tolerance >= 0:
        raise ConfigurationError(f"got {draws} draws, tolerance {tolerance}: expected at least 1 and 0")
    target = genotype_parameters(genotype, size)
    inputs: Literal["all", "two"] = "two" if all(len(node) == 2 for node in genotype.normal.nodes) else "all"
    nearest, least = None, float("inf")
    for _ in range(draws):
        drawn = random_genotype(generator, inputs, genotype.space)
        gap = abs(genotype_parameters(drawn, size) - target) / target
        if gap < least and drawn != genotype:
            nearest, least = drawn, gap
    if nearest is None or least > tolerance:
        raise ConfigurationError(
            f"none of {draws} random cells comes within {100 * tolerance:g} % of {target} parameters: the nearest "
            f"is {100 * least:.3g} % away; draw more, or allow more"
        )
    return nearest


@dataclass(frozen=True)
class Band:
    """Networks of about one size: those whose number of parameters lies from ``least`` to ``most``.

    Raises:
        ConfigurationError: the limits are not positive, or in the wrong order.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.most:
            raise ConfigurationError(
                f"the band of parameters is {self.least}:{self.most}: expected two positive numbers, the smaller "
                "first, as in 36000:42000"
            )

    def __contains__(self, parameters: int) -> bool:
        return self.least <= parameters <= self.most

    def __str__(self) -> str:
        return f"{self.least}:{self.most}"

    @property
    def words(self) -> str:
        """The cells of the band, in words."""
        return f"cells of {self.least:,} to {self.most:,} parameters"

    @staticmethod
    def around(genotype: Genotype, size: NetworkSettings, tolerance: float = TOLERANCE) -> "Band":
        """The band around the size of a genotype's network.

        Args:
            genotype: the cells.
            size: of the network.
            tolerance: largest relative difference in the number of parameters.

        Returns:
            The band.
        """
        return _band_around(genotype_parameters(genotype, size), tolerance)


def _band_around(parameters: int, tolerance: float) -> Band:
    return Band(max(1, round(parameters * (1 - tolerance))), round(parameters * (1 + tolerance)))


def usual_band(
    size: NetworkSettings, seed: int, inputs: Literal["all", "two"] = "two", space: Space = PAPER
) -> Band:
    """The band around the median size of random cells, for a search to which no sizes were given.

    Args:
        size: of the networks.
        seed: of the random cells, which have a generator that nothing else uses.
        inputs: "two" inputs of a node, or "all" edges.
        space: that the cells are of.

    Returns:
        The sizes within ``TOLERANCE`` of the median of ``MEDIAN_OF`` cells.

    Example:
        >>> usual_band(NetworkSettings(channels=8, cells=3, stem_stride=2), seed=0)
        Band(least=23512, most=27600)
    """
    random = generator(seed, "usual band")
    drawn = (random_genotype(random, inputs, space) for _ in range(MEDIAN_OF))
    return _band_around(round(median(genotype_parameters(each, size) for each in drawn)), TOLERANCE)


def reachable_sizes(
    size: NetworkSettings, inputs: Literal["all", "two"] = "two", space: Space = PAPER
) -> Band:
    """The smallest and the largest number of parameters of any genotype's network.

    Args:
        size: of the networks.
        inputs: "two" inputs of a node, or "all" edges.
        space: that the genotypes are of.

    Returns:
        Both numbers. Neither says that every size between them occurs.
    """
    common, own = _parts(size, space)

    def extreme(choose: Callable[..., int], sign: int) -> int:
        total = common
        for kind in CELL_TYPES:
            for node in range(space.nodes):
                edges = [edge for edge in space.edges if edge.node == node]
                names = space.choices(kind)
                best = (choose(own[Operator(kind, edge, name)] for name in names) for edge in edges)
                total += sum(sorted(best, key=lambda x: sign * x)[: 2 if inputs == "two" else None])
        return total

    return Band(extreme(min, 1), extreme(max, -1))


def random_genotype_within(
    band: Band,
    generator: torch.Generator,
    size: NetworkSettings,
    inputs: Literal["all", "two"] = "two",
    draws: int = 20_000,
    space: Space = PAPER,
) -> Genotype:
    """A uniformly random genotype among those whose network lies in the band.

    Args:
        band: the sizes that are allowed.
        generator: of the random genotypes.
        size: of the network.
        inputs: "two" inputs of a node, or "all" edges.
        draws: random genotypes that are tried before the band is taken for empty.
        space: that the genotypes are of.

    Returns:
        The first genotype that is drawn within the band.

    Raises:
        ConfigurationError: no genotype was found; the message says which sizes can be reached.
    """
    reachable, nearest, least = reachable_sizes(size, inputs, space), 0, float("inf")
    if band.most >= reachable.least and band.least <= reachable.most:
        for _ in range(draws):
            drawn = random_genotype(generator, inputs, space)
            parameters = genotype_parameters(drawn, size)
            if parameters in band:
                return drawn
            gap = max(band.least - parameters, parameters - band.most)
            nearest, least = (parameters, gap) if gap < least else (nearest, least)
    seen = f"; the nearest of {draws} random cells has {nearest}" if nearest else ""
    raise ConfigurationError(
        f"no cell was found with {band} parameters: networks of this width and depth have from "
        f"{reachable.least} to {reachable.most}{seen}; choose a band there, or another number of channels or cells"
    )


def operator_parameters(operator: Operator, space: Space = PAPER) -> int:
    """Number of weights of an operation in its place, at ``CHANNELS`` channels."""
    stride = 2 if operator.cell == "reduce" and operator.edge.source < 2 else 1
    module = space.build(operator.operation, CHANNELS, stride, "group")
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache(maxsize=8)
def _parts(size: NetworkSettings, space: Space) -> tuple[int, dict[Operator, int]]:
    """Parameters that every genotype has, and of every operator in all cells of its type together."""
    kinds = layout(size.cells)
    with torch.device("meta"):  # shapes alone
        network = Network(Candidates.of(space), size, kinds)
    common, own = 0, Counter[Operator]()
    for name, value in network.named_parameters():
        path = name.split(".")  # cells.CELL.edges.NODE_SOURCE.OPERATION.…
        if path[0] == "cells" and path[2] == "edges":
            edge = Edge(*map(int, path[3].split("_")))
            own[Operator(kinds[int(path[1])], edge, path[4])] += value.numel()
        else:
            common += value.numel()
    return common, own


def multiply_accumulates(network: nn.Module, x: Float[Tensor, "1 ..."]) -> int:
    """Products in convolutions and linear layers for one sample; norms, pooling, sums and biases do not count."""
    counts, mode = [], network.training

    def count(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor, ...], output: Tensor) -> None:
        # Every number of the output is a sum over one filter, or one row, of the weights.
        counts.append(output[0].numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    if not layers:
        raise UnsupportedModelError("the network has neither convolutions nor linear layers to count")
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(x)
    finally:
        network.train(mode)
        for handle in handles:
            handle.remove()
    return sum(counts)
