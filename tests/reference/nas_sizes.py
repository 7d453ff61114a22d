"""The extreme sizes of genotypes by trying all choices of one node after the other, the rest being fixed."""

import itertools
from dataclasses import replace

from mamltheory.nas.genotype import CELL_TYPES, NODES, Cell, Genotype
from mamltheory.nas.operations import OPERATIONS


def extreme_genotype(parameters, inputs, best):
    """The genotype with the least or most parameters; nodes contribute to the size independently of each other.

    parameters: of a genotype; inputs: "two" or "all"; best: min or max.
    """
    cell = Cell(tuple(tuple(("conv_3x3", s) for s in _sources(i, inputs)[0]) for i in range(NODES)))
    found = Genotype(cell, cell)
    for kind, node in itertools.product(CELL_TYPES, range(NODES)):
        choices = [
            _with_node(found, kind, node, tuple(zip(names, sources, strict=True)))
            for sources in _sources(node, inputs)
            for names in itertools.product(OPERATIONS, repeat=len(sources))
        ]
        found = best(choices, key=parameters)
    return found


def _sources(node, inputs):
    return list(itertools.combinations(range(node + 2), 2 if inputs == "two" else node + 2))


def _with_node(genotype, kind, node, pairs):
    nodes = getattr(genotype, kind).nodes
    return replace(genotype, **{kind: Cell((*nodes[:node], pairs, *nodes[node + 1 :]))})
