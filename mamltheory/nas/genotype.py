"""Cells as data: genotypes (the result of a search) and candidates (the live operations on every edge).

A cell has two inputs (sources 0 and 1: the outputs of the last but one cell and of the last one) and three nodes
(node i is source i + 2 of later nodes). Node i may have an edge from every source below i + 2: nine edges in all. A
finished cell has one of two forms:

- single-path, with one operation on each of the nine edges, as the paper's Algorithm 1 returns it;
- two inputs per node, as the paper's released code returns it after a second stage, and as cells are published.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal, NamedTuple

import torch
from torch import nn

from mamltheory.arguments import check_choice, check_seed, check_whole
from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.nas.drawing import cells_as_html
from mamltheory.nas.operations import OPERATIONS, check_operation
from mamltheory.nas.spelling import operation_words

CellType = Literal["normal", "reduce"]
CELL_TYPES: tuple[CellType, CellType] = ("normal", "reduce")
NODES = 3
MOST_CHANNELS = 4096
"""The most channels, cells and classes of a network."""
CONCATENATED = [2, 3, 4]
"""The nodes whose outputs a cell concatenates, numbered as sources: all of them."""


class Edge(NamedTuple):
    """The edge from a source to a node: node in 0, 1, 2 and source in 0, …, node + 1."""

    node: int
    source: int


EDGES: tuple[Edge, ...] = tuple(Edge(node, source) for node in range(NODES) for source in range(node + 2))
"""The nine edges, node by node."""


class Operator(NamedTuple):
    """One operator o_j of the supernet: an operation on an edge of all cells of one type."""

    cell: CellType
    edge: Edge
    operation: str


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        nodes: for every node its (operation, source) pairs, in either of the two forms.

    Raises:
        GenotypeError: for anything else.
    """

    nodes: tuple[tuple[tuple[str, int], ...], ...]

    def __post_init__(self) -> None:
        if len(self.nodes) != NODES:
            raise GenotypeError(
                f"a cell has {NODES} nodes, got {len(self.nodes)}: list the inputs of each node"
            )
        for i, node in enumerate(self.nodes):
            for operation, source in node:
                check_operation(operation)
                if source not in range(i + 2):
                    raise GenotypeError(
                        f"node {i} has source {source!r}: it can see sources 0 to {i + 1} only"
                    )
            if len({source for _, source in node}) != len(node):
                raise GenotypeError(f"node {i} takes a source twice: {node}; give every edge one operation")
        inputs = [len(node) for node in self.nodes]
        if inputs not in ([2, 2, 2], [2, 3, 4]):
            raise GenotypeError(
                f"the nodes have {inputs} inputs: expected 2 each (as published) or 2, 3, 4 (one operation per edge)"
            )

    def edges(self) -> tuple[tuple[int, int, str], ...]:
        """(source, vertex, operation) of every edge, for a drawing; node i is the vertex i + 2."""
        return tuple(
            (source, i + 2, operation) for i, node in enumerate(self.nodes) for operation, source in node
        )


@dataclass(frozen=True)
class Genotype:
    """The two cells that an architecture stacks.

    A notebook shows them as a drawing.

    Args:
        normal: the cell that keeps the size of its inputs.
        reduce: the cell that halves height and width, and doubles the channels.

    Example:
        >>> from mamltheory.nas import published_genotypes
        >>> genotype = published_genotypes()[0].genotype
        >>> network = genotype.to_module(channels=4, cells=3, classes=5)
        >>> sum(parameter.numel() for parameter in network.parameters())
        9205
    """

    normal: Cell
    reduce: Cell

    def __repr__(self) -> str:
        counts = ((kind, Counter(name for _, _, name in edges)) for kind, edges in self.edges().items())
        cells = (
            f"{kind}: {', '.join(f'{n} × {operation_words(name)}' for name, n in of_kind.most_common())}"
            for kind, of_kind in counts
        )
        return f"Genotype({'; '.join(cells)})"

    def _repr_html_(self) -> str:
        return cells_as_html(self.edges())

    def to_json(self) -> dict[str, list]:
        """The genotype as lists and strings, in the form of the published cells."""
        return {
            kind: [[list(pair) for pair in node] for node in getattr(self, kind).nodes] for kind in CELL_TYPES
        }

    @staticmethod
    def from_json(data: Mapping) -> "Genotype":
        """The inverse of :meth:`to_json`, also with the 'normal_concat' and 'reduce_concat' of other searches."""
        _check_keys(data)
        return Genotype(*(_cell_from_json(data, kind) for kind in CELL_TYPES))

    def to_module(
        self, channels: int = 48, cells: int = 5, classes: int = 64, stem_stride: int = 1, seed: int = 0
    ) -> nn.Module:
        """The network that stacks these cells, untrained, with BatchNorm.

        Args:
            channels: of the first cells; doubled at each of the two reductions.
            cells: number of stacked cells, at least 3.
            classes: number of logits.
            stem_stride: stride of the first convolution.
            seed: seed of the weights.

        Returns:
            A module from images n×3×h×w to logits; its ``features`` are what the few-shot heads work on.
        """
        from mamltheory.nas.network import NetworkSettings, derived_network  # which imports this module

        check_whole(
            most=MOST_CHANNELS, channels=channels, cells=cells, classes=classes, stem_stride=stem_stride
        )
        check_seed(seed)
        return derived_network(self, NetworkSettings(channels, cells, classes, stem_stride), seed)

    def edges(self) -> dict[CellType, tuple[tuple[int, int, str], ...]]:
        """:meth:`Cell.edges` of both cells."""
        return {kind: getattr(self, kind).edges() for kind in CELL_TYPES}

    def candidates(self) -> "Candidates":
        """The same architecture as a supernet with at most one live operation per edge."""
        live = {}
        for kind in CELL_TYPES:
            used = {Edge(i, s): (o,) for i, node in enumerate(getattr(self, kind).nodes) for o, s in node}
            live[kind] = tuple(used.get(edge, ()) for edge in EDGES)
        return Candidates(**live)


def _check_keys(data: object) -> None:
    if not isinstance(data, Mapping):
        return  # _cell_from_json reports it
    for key, value in data.items():
        if key in CELL_TYPES:
            continue
        if key not in [f"{kind}_concat" for kind in CELL_TYPES]:
            raise GenotypeError(
                f"a genotype has no key {str(key)[:40]!r}: supported are 'normal', 'reduce' and, if they are "
                f"{CONCATENATED}, 'normal_concat' and 'reduce_concat'"
            )
        plain = isinstance(value, list | tuple | range) and all(type(each) is int for each in value)
        if not plain or list(value) != CONCATENATED:
            shown = str(list(value[:8])) if plain else f"a {type(value).__name__} of other content"
            raise GenotypeError(
                f"{key!r} is {shown}: the networks here concatenate all nodes, {CONCATENATED}, and no others"
            )


def _cell_from_json(data: Mapping, kind: str) -> Cell:
    if not isinstance(data, Mapping) or kind not in data:
        raise GenotypeError(f"a genotype needs the key {kind!r}: give {{'normal': [...], 'reduce': [...]}}")
    try:
        nodes = tuple(tuple((operation, source) for operation, source in node) for node in data[kind])
    except (TypeError, ValueError) as error:
        raise GenotypeError(
            f"the {kind} cell must list [operation, source] pairs for each node: {error}"
        ) from error
    for operation, source in (pair for node in nodes for pair in node):
        if not isinstance(operation, str) or isinstance(source, bool) or not isinstance(source, int):
            raise GenotypeError(
                f"the {kind} cell has [{operation!r}, {source!r}]: expected [operation name, source]"
            )
    return Cell(nodes)


@dataclass(frozen=True)
class Candidates:
    """The live operations of a supernet 𝒩_k.

    Attributes:
        normal: the operations on each of the nine edges of ``EDGES``, possibly none; every node keeps an input.
        reduce: likewise.

    Raises:
        GenotypeError: for anything else.
    """

    normal: tuple[tuple[str, ...], ...] = (OPERATIONS,) * len(EDGES)
    reduce: tuple[tuple[str, ...], ...] = (OPERATIONS,) * len(EDGES)

    def __post_init__(self) -> None:
        for kind in CELL_TYPES:
            live = getattr(self, kind)
            if len(live) != len(EDGES):
                raise GenotypeError(
                    f"the {kind} cell lists {len(live)} edges: expected {len(EDGES)}, see EDGES"
                )
            for edge, names in zip(EDGES, live, strict=True):
                if len({check_operation(name) for name in names}) != len(names):
                    raise GenotypeError(f"{kind} edge {tuple(edge)} lists an operation twice: {names}")
            for node in range(NODES):
                if not any(names for edge, names in zip(EDGES, live, strict=True) if edge.node == node):
                    raise GenotypeError(
                        f"node {node} of the {kind} cell has no input left: keep one operation"
                    )

    def on(self, cell: CellType, edge: Edge) -> tuple[str, ...]:
        """The live operations of one edge."""
        return getattr(self, cell)[EDGES.index(edge)]

    def operators(self) -> tuple[Operator, ...]:
        """All live operators, cell by cell and edge by edge."""
        return tuple(
            Operator(kind, edge, name)
            for kind in CELL_TYPES
            for edge in EDGES
            for name in self.on(kind, edge)
        )

    def without(self, *removed: Operator) -> "Candidates":
        """The supernet without these operators; raises GenotypeError for one that is not alive."""
        result = self
        for cell, edge, operation in removed:
            live = result.on(cell, edge)
            if operation not in live:
                raise GenotypeError(
                    f"{operation!r} is not alive on {cell} edge {tuple(edge)}, where {live} are"
                )
            left = tuple(name for name in live if name != operation)
            edges = tuple(
                left if e == edge else names for e, names in zip(EDGES, getattr(result, cell), strict=True)
            )
            result = replace(result, **{cell: edges})
        return result

    def is_single_path(self) -> bool:
        """Whether no edge has a choice left, the stopping rule of Algorithm 1."""
        return all(len(names) <= 1 for kind in CELL_TYPES for names in getattr(self, kind))

    def genotype(self) -> Genotype:
        """The finished cells; raises GenotypeError while an edge still has a choice."""
        if not self.is_single_path():
            raise GenotypeError(
                "several operations are alive on an edge: finish the search before deriving cells"
            )
        return Genotype(*(Cell(tuple(self._node(kind, i) for i in range(NODES))) for kind in CELL_TYPES))

    def _node(self, kind: CellType, node: int) -> tuple[tuple[str, int], ...]:
        return tuple((name, e.source) for e in EDGES if e.node == node for name in self.on(kind, e))

    def to_json(self) -> dict[str, list[list[str]]]:
        """Nine lists of operation names for each cell type."""
        return {kind: [list(names) for names in getattr(self, kind)] for kind in CELL_TYPES}

    @staticmethod
    def from_json(data: Mapping[str, Iterable[Iterable[str]]]) -> "Candidates":
        """The inverse of :meth:`to_json`; raises GenotypeError for anything else."""
        if not isinstance(data, Mapping) or set(data) != set(CELL_TYPES):
            raise GenotypeError("candidates need exactly the keys 'normal' and 'reduce'")
        return Candidates(**{kind: tuple(tuple(names) for names in data[kind]) for kind in CELL_TYPES})


def random_genotype(generator: torch.Generator, inputs: Literal["all", "two"] = "two") -> Genotype:
    """A uniformly random genotype, the paper's "Random Cell" (Table 2).

    Args:
        generator: of the random numbers.
        inputs: "two" inputs per node, or "all" nine edges.

    Returns:
        The genotype.

    Raises:
        ConfigurationError: another generator than torch's, or another form.

    Example:
        >>> import mamltheory as mt
        >>> mt.nas.random_genotype(mt.generator(0, "cells")) == mt.nas.random_genotype(mt.generator(0, "cells"))
        True
    """
    if not isinstance(generator, torch.Generator):
        raise ConfigurationError(f"the generator is a {type(generator).__name__}: expected a torch.Generator")
    check_choice(("all", "two"), inputs=inputs)

    def draw(node: int) -> tuple[tuple[str, int], ...]:
        count = 2 if inputs == "two" else node + 2
        sources = sorted(torch.randperm(node + 2, generator=generator)[:count].tolist())
        picks = torch.randint(len(OPERATIONS), (count,), generator=generator).tolist()
        return tuple((OPERATIONS[pick], source) for pick, source in zip(picks, sources, strict=True))

    return Genotype(*(Cell(tuple(draw(node) for node in range(NODES))) for _ in CELL_TYPES))


@dataclass(frozen=True)
class PublishedCell:
    """A genotype that was published for the paper.

    Attributes:
        name: "mini-5-1" is the first of three for 5 cells on miniImageNet, "metanas-mini-5" the cell of MetaNAS.
        setting: data set and number of cells, such as "mini-5".
        cells: number of cells in its network.
        classes: number of classes it was trained on.
        genotype: the cells.
        parameters: size of its network at 48 initial channels.
    """

    name: str
    setting: str
    cells: int
    classes: int
    genotype: Genotype
    parameters: int


def published_genotypes() -> tuple[PublishedCell, ...]:
    """The cells published for the paper's Tables 1 and 2 (data), and those of MetaNAS that it retrained.

    Returns:
        The cells, with their names and sizes.

    Example:
        >>> from mamltheory.nas import published_genotypes
        >>> published_genotypes()[0].name
        'mini-5-1'
    """
    text = resources.files("mamltheory.nas").joinpath("published_genotypes.json").read_text(encoding="utf-8")
    return tuple(
        PublishedCell(
            name=entry["name"],
            setting=entry["setting"],
            cells=entry["cells"],
            classes=entry["classes"],
            genotype=Genotype.from_json({kind: entry[kind] for kind in CELL_TYPES}),
            parameters=entry["parameters"],
        )
        for entry in json.loads(text)["cells"]
    )
