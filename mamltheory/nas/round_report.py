"""The reliability of a round of the search, and the differences by which a round with shrinkage is decided."""

import math
from collections.abc import Sequence

import numpy as np

from mamltheory.nas.genotype import Operator
from mamltheory.nas.judgement import RoundReliability, decided_scores, judge
from mamltheory.nas.operations import build_operation
from mamltheory.nas.pruning import competitors
from mamltheory.rng import numpy_generator

CHANNELS = 16
"""Width at which the sizes of operations are compared; their order is the same at any other."""


def reliability(
    operators: Sequence[Operator], draws: Sequence[Sequence[float]], seed: int, round_index: int
) -> RoundReliability | None:
    """How reliable the differences of a round are; None for fewer than 2 repeats or nothing to compare.

    draws: of every operator, one difference a repeat. Operators with one that is not finite stay out: they rank last
    or first whatever the others do.
    """
    kept = _finite(draws)
    edges = _competitions([operators[i] for i in kept])
    if not kept or len(draws[0]) < 2 or len(set(edges)) == len(edges):
        return None
    cells, operations = zip(*((operators[i].cell, operators[i].operation) for i in kept), strict=True)
    scores = np.array([draws[i] for i in kept], dtype=float)
    return judge(scores, edges, cells, operations, numpy_generator(seed, "reliability", round_index))


def decided_differences(
    operators: Sequence[Operator], draws: Sequence[Sequence[float]], report: RoundReliability
) -> list[float]:
    """ΔC of every operator as the report decides it; ±∞ where a repeat says so, −∞ first."""
    kept = _finite(draws)
    edges = _competitions([operators[i] for i in kept])
    types = [(operators[i].cell, operators[i].operation) for i in kept]
    sizes = [parameter_size(operators[i]) for i in kept]
    scores = np.array([draws[i] for i in kept], dtype=float)
    decided = dict(zip(kept, decided_scores(scores, edges, types, sizes, report.basis).tolist(), strict=True))
    worst = [-math.inf if -math.inf in values else math.inf for values in draws]
    return [decided.get(i, worst[i]) for i in range(len(operators))]


def parameter_size(operator: Operator) -> int:
    """Numbers of an operation's weights at ``CHANNELS`` channels."""
    stride = 2 if operator.cell == "reduce" and operator.edge.source < 2 else 1
    module = build_operation(operator.operation, CHANNELS, stride, "group")
    return sum(parameter.numel() for parameter in module.parameters())


def _finite(draws: Sequence[Sequence[float]]) -> list[int]:
    return [i for i, values in enumerate(draws) if values and all(map(math.isfinite, values))]


def _competitions(operators: Sequence[Operator]) -> list[int]:
    """Number of the competition that each operator takes part in: its edge, or in the second stage its node."""
    place = {o: i for i, members in enumerate(competitors(operators)) for o in members}
    return [place[o] for o in operators]
