"""Cells as data: genotypes (the result of a search) and candidates (the live operations on every edge).

Their operations and nodes are those of a space, :mod:`mamltheory.nas.space`; the paper's has three nodes and nine
edges. A finished cell has one of two forms:

- single-path, with one operation on each edge, as the paper's Algorithm 1 returns it;
- two inputs per node, as the paper's released code returns it after a second stage, and as cells are published.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mamltheory.arguments import check_choice, check_seed, check_whole
from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.nas.drawing import cells_as_html
from mamltheory.nas.genotype_file import check_keys, parsed_file, write_content
from mamltheory.nas.space import CELL_TYPES, PAPER, CellType, Edge, Operator, Space, checked_space
from mamltheory.nas.spelling import operation_words

NODES, EDGES = PAPER.nodes, PAPER.edges
"""Those of the paper's space: three nodes, and the nine edges, node by node."""
MOST_CHANNELS = 4096
"""The most channels, cells and classes of a network."""


@dataclass(frozen=True)
class Cell:
    """A finished cell.

    Attributes:
        nodes: for every node its (operation, source) pairs, in either of the two forms.
        space: that the operations and the number of nodes are of.

    Raises:
        GenotypeError: for anything else.
    """

    nodes: tuple[tuple[tuple[str, int], ...], ...]
    space: Space = field(default=PAPER, repr=False)

    def __post_init__(self) -> None:
        count = self.space.nodes
        if len(self.nodes) != count:
            raise GenotypeError(
                f"a cell has {count} nodes, got {len(self.nodes)}: list the inputs of each node, or give the space "
                "that the cell is of"
            )
        for i, node in enumerate(self.nodes):
            self.space.check_names(operation for operation, _ in node)
            for _, source in node:
                if source not in range(i + 2):
                    raise GenotypeError(
                        f"node {i} has source {source!r}: it can see sources 0 to {i + 1} only"
                    )
            if len({source for _, source in node}) != len(node):
                raise GenotypeError(f"node {i} takes a source twice: {node}; give every edge one operation")
        inputs, full = [len(node) for node in self.nodes], [*range(2, count + 2)]
        if inputs not in ([2] * count, full):
            raise GenotypeError(
                f"the nodes have {inputs} inputs: expected 2 each (as published) or {', '.join(map(str, full))} (one "
                "operation per edge)"
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

    def __post_init__(self) -> None:
        if self.normal.space != self.reduce.space:
            raise GenotypeError("the two cells are of different spaces: give both the same")
        for kind in CELL_TYPES:
            self.space.check_names((name for _, _, name in getattr(self, kind).edges()), kind)

    @property
    def space(self) -> Space:
        """The space that both cells are of."""
        return self.normal.space

    def __repr__(self) -> str:
        counts = ((kind, Counter(name for _, _, name in edges)) for kind, edges in self.edges().items())
        cells = (
            f"{kind}: {', '.join(f'{n} × {operation_words(name)}' for name, n in of_kind.most_common())}"
            for kind, of_kind in counts
        )
        return f"Genotype({'; '.join(cells)})"

    def _repr_html_(self) -> str:
        return cells_as_html(self.edges())

    def to_json(self) -> dict[str, Any]:
        """The genotype as lists and strings, in the form of the published cells; with the name of a space, if any."""
        named: dict[str, Any] = {"space": self.space.name} if self.space.name else {}
        return {
            kind: [[list(pair) for pair in node] for node in getattr(self, kind).nodes] for kind in CELL_TYPES
        } | named

    @staticmethod
    def from_json(data: Mapping, space: Space = PAPER) -> "Genotype":
        """The inverse of :meth:`to_json`, also with the 'normal_concat' and 'reduce_concat' of other searches.

        Args:
            data: the genotype as lists and strings.
            space: that the genotype is of.

        Returns:
            The genotype. GenotypeError is raised for anything else, and for a genotype of another space.
        """
        check_keys(data, checked_space(space))
        return Genotype(*(_cell_from_json(data, kind, space) for kind in CELL_TYPES))

    @staticmethod
    def load(path: str | Path, space: Space = PAPER) -> "Genotype":
        """The genotype in a file.

        Args:
            path: a JSON file, or the run folder of a search.
            space: that the genotype is of.

        Returns:
            The genotype. GenotypeError is raised for a file that cannot be read, or holds something else.
        """
        return parsed_file(path, lambda content: Genotype.from_json(content, space))

    def save(self, path: str | Path) -> Path:
        """Write the genotype as a JSON file; GenotypeError is raised if another file is there."""
        return write_content(path, self.to_json())

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
            live[kind] = tuple(used.get(edge, ()) for edge in self.space.edges)
        return Candidates(**live, space=self.space)


def _cell_from_json(data: Mapping, kind: str, space: Space) -> Cell:
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
    return Cell(nodes, space)


@dataclass(frozen=True)
class Candidates:
    """The live operations of a supernet 𝒩_k; by default all of the paper's space.

    Attributes:
        normal: the operations on each of the space's edges, possibly none; every node keeps an input.
        reduce: likewise.
        space: that the operations and edges are of.

    Raises:
        GenotypeError: for anything else.
    """

    normal: tuple[tuple[str, ...], ...] = (PAPER.choices("normal"),) * len(EDGES)
    reduce: tuple[tuple[str, ...], ...] = (PAPER.choices("reduce"),) * len(EDGES)
    space: Space = field(default=PAPER, repr=False)

    def __post_init__(self) -> None:
        edges = self.space.edges
        for kind in CELL_TYPES:
            live = getattr(self, kind)
            if len(live) != len(edges):
                raise GenotypeError(
                    f"the {kind} cell lists {len(live)} edges: expected {len(edges)}, see Space.edges"
                )
            for edge, names in zip(edges, live, strict=True):
                self.space.check_names(names, kind)
                if len(set(names)) != len(names):
                    raise GenotypeError(f"{kind} edge {tuple(edge)} lists an operation twice: {names}")
            for node in range(self.space.nodes):
                if not any(names for edge, names in zip(edges, live, strict=True) if edge.node == node):
                    raise GenotypeError(
                        f"node {node} of the {kind} cell has no input left: keep one operation"
                    )

    @staticmethod
    def of(space: Space) -> "Candidates":
        """All operations of a space on all edges."""
        live = {kind: (space.choices(kind),) * len(space.edges) for kind in CELL_TYPES}
        return Candidates(**live, space=space)

    def on(self, cell: CellType, edge: Edge) -> tuple[str, ...]:
        """The live operations of one edge."""
        return getattr(self, cell)[self.space.edges.index(edge)]

    def operators(self) -> tuple[Operator, ...]:
        """All live operators, cell by cell and edge by edge."""
        return tuple(
            Operator(kind, edge, name)
            for kind in CELL_TYPES
            for edge in self.space.edges
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
            edges = list(getattr(result, cell))
            edges[self.space.edges.index(edge)] = tuple(name for name in live if name != operation)
            changed: dict[str, Any] = {cell: tuple(edges)}
            result = replace(result, **changed)
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
        count, space = range(self.space.nodes), self.space
        return Genotype(*(Cell(tuple(self._node(kind, i) for i in count), space) for kind in CELL_TYPES))

    def _node(self, kind: CellType, node: int) -> tuple[tuple[str, int], ...]:
        return tuple(
            (name, e.source) for e in self.space.edges if e.node == node for name in self.on(kind, e)
        )

    def to_json(self) -> dict[str, list[list[str]]]:
        """A list of operation names for every edge of each cell type."""
        return {kind: [list(names) for names in getattr(self, kind)] for kind in CELL_TYPES}

    @staticmethod
    def from_json(data: Mapping[str, Iterable[Iterable[str]]], space: Space = PAPER) -> "Candidates":
        """The inverse of :meth:`to_json`; raises GenotypeError for anything else."""
        if not isinstance(data, Mapping) or set(data) != set(CELL_TYPES):
            raise GenotypeError("candidates need exactly the keys 'normal' and 'reduce'")
        live = {kind: tuple(tuple(names) for names in data[kind]) for kind in CELL_TYPES}
        return Candidates(**live, space=space)


def random_genotype(
    generator: torch.Generator, inputs: Literal["all", "two"] = "two", space: Space = PAPER
) -> Genotype:
    """A uniformly random genotype, the paper's "Random Cell" (Table 2).

    Args:
        generator: of the random numbers.
        inputs: "two" inputs per node, or "all" edges.
        space: that the operations and nodes are of.

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
    checked_space(space)

    def draw(kind: CellType, node: int) -> tuple[tuple[str, int], ...]:
        count = 2 if inputs == "two" else node + 2
        sources = sorted(torch.randperm(node + 2, generator=generator)[:count].tolist())
        names = space.choices(kind)
        picks = torch.randint(len(names), (count,), generator=generator).tolist()
        return tuple((names[pick], source) for pick, source in zip(picks, sources, strict=True))

    count = range(space.nodes)
    return Genotype(*(Cell(tuple(draw(kind, node) for node in count), space) for kind in CELL_TYPES))


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
