"""The arithmetic of Algorithm 1: differences (lines 4 and 6), ranks (lines 8 and 9), and who is pruned (line 13)."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from mamltheory.nas.algorithms.settings import Difference, Ties
from mamltheory.nas.genotype import Operator
from mamltheory.nas.spelling import contest_words


def difference(supernet: float, candidate: float, kind: Difference) -> float:
    """C − C' ("log": log C − log C', "relative": (C − C')/C), never NaN: ±∞ if one is infinite, 0 if both are."""
    if math.isinf(supernet) or math.isinf(candidate):
        return 0.0 if supernet == candidate else math.copysign(math.inf, supernet - candidate)
    if kind == "log":
        return math.log(supernet) - math.log(candidate)
    return (supernet - candidate) / (supernet if kind == "relative" else 1.0)


def mean_difference(values: Sequence[float]) -> float:
    """Mean over the repeats, never NaN; 0 for none, and −∞ if the candidate cannot be trained in one of them."""
    if not values:
        return 0.0
    if -math.inf in values:
        return -math.inf
    # +∞ comes from a supernet without a score, next to which every candidate looks good.
    comparable = [value for value in values if value != math.inf]
    return fmean(comparable) if comparable else math.inf


def ranks(values: Sequence[float], ties: Ties) -> list[int]:
    """Position of every value in the ascending list, from 1; ``ties`` says what equal values get."""
    # "min": the least of their positions. "dense": the same, without a gap after it. "index": all of their positions.
    if ties == "dense":
        place = {value: k for k, value in enumerate(sorted(set(values)), start=1)}
        return [place[value] for value in values]
    order = sorted(range(len(values)), key=values.__getitem__)
    position = {i: place for place, i in enumerate(order, start=1)}
    if ties == "index":
        return [position[i] for i in range(len(values))]
    first: dict[float, int] = {}
    for i in order:
        first.setdefault(values[i], position[i])
    return [first[value] for value in values]


def contests(operators: Sequence[Operator]) -> dict[str, list[Operator]]:
    """Who competes with whom, by name: on an edge ("normal cₖ₋₂ → 0"), later for a node ("normal node 2")."""
    edges: dict[str, list[Operator]] = {}
    nodes: dict[str, list[Operator]] = {}
    for operator in operators:
        cell, (node, source), _ = operator
        edges.setdefault(contest_words(cell, node, source), []).append(operator)
        nodes.setdefault(contest_words(cell, node), []).append(operator)
    return edges if any(len(members) > 1 for members in edges.values()) else nodes


def losers(members: Sequence[Operator], order: Mapping[Operator, tuple]) -> set[Operator]:
    """The operators of a contest to prune: the first in order on an edge, all but the last two inputs of a node."""
    count = 1 if len({operator.edge for operator in members}) == 1 else len(members) - 2
    return set(sorted(members, key=order.__getitem__)[:count])
