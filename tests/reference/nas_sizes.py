"""The extreme sizes of genotypes by trying the choices of one part after the other, the rest being fixed."""

import itertools
from dataclasses import replace

from mamltheory.nas.genotype import CELL_TYPES, NODES, Cell, Genotype
from mamltheory.nas.operations import OPERATIONS


def extreme_genotype(parameters, inputs, best):
    """The genotype with the least or most parameters.

    Nodes contribute to the size independently of each other, and so do the edges where all of them are taken.

    parameters: of a genotype; inputs: "two" or "all"; best: min or max.
    """
    start = Cell(tuple(tuple(("conv_3x3", source) for source in range(i + 2)) for i in range(NODES)))
    if inputs == "two":
        start = Cell(tuple(node[:2] for node in start.nodes))
    found = Genotype(start, start)
    for kind, node in itertools.product(CELL_TYPES, range(NODES)):
        for choices in _pairs(node) if inputs == "two" else _edges(node):
            candidates = [_changed(found, kind, node, choice) for choice in choices]
            found = best(candidates, key=parameters)
    return found


def _pairs(node):
    """All nodes with two inputs, as one list of choices: {place: (operation, source)}."""
    yield [
        dict(enumerate(zip(names, sources, strict=True)))
        for sources in itertools.combinations(range(node + 2), 2)
        for names in itertools.product(OPERATIONS, repeat=2)
    ]


def _edges(node):
    """The operations of each edge, one list of choices per edge."""
    for source in range(node + 2):
        yield [{source: (name, source)} for name in OPERATIONS]


def _changed(genotype, kind, node, choice):
    nodes = list(getattr(genotype, kind).nodes)
    nodes[node] = tuple(choice.get(place, pair) for place, pair in enumerate(nodes[node]))
    return replace(genotype, **{kind: Cell(tuple(nodes))})
