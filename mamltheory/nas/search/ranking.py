"""How Algorithm 1 compares operators: differences, ranks, and who goes from an edge (lines 4 to 15)."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from mamltheory.nas.genotype import Operator
from mamltheory.nas.search.settings import Difference, Ties


def ranks(values: Sequence[float], ties: Ties) -> list[int]:
    """Position of every value in the ascending list, from 1; "min": equal values share the least position.

    "dense": so do they, and the next larger value has the next number.
    """
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


def difference(supernet: float, candidate: float, kind: Difference) -> float:
    """C(𝒩_k) compared with C of a candidate, larger when the candidate is better conditioned; never NaN.

    −∞ if the candidate alone is infinite, +∞ if the supernet alone is, 0 if both are.
    """
    if math.isinf(supernet) or math.isinf(candidate):
        return 0.0 if supernet == candidate else math.copysign(math.inf, supernet - candidate)
    if kind == "log":
        return math.log(supernet) - math.log(candidate)
    return (supernet - candidate) / (supernet if kind == "relative" else 1.0)


def mean_difference(values: Sequence[float]) -> float:
    """Mean over the repeats, in which a single −∞ (a candidate that cannot be trained) decides; never NaN.

    +∞ comes from a supernet that cannot be scored, beside which every candidate looks well: such a repeat counts only
    where there is no other.
    """
    if -math.inf in values:
        return -math.inf
    comparable = [value for value in values if value != math.inf]
    return fmean(comparable) if comparable else math.inf


def competitions(operators: Sequence[Operator]) -> dict[str, list[Operator]]:
    """Who competes with whom: the operators of an edge ("normal 2←3": from source 3 to node 2), or, once no edge
    has a choice, the edges of a node ("normal node 2").
    """
    edges: dict[str, list[Operator]] = {}
    nodes: dict[str, list[Operator]] = {}
    for operator in operators:
        cell, (node, source), _ = operator
        edges.setdefault(f"{cell} {node}←{source}", []).append(operator)
        nodes.setdefault(f"{cell} node {node}", []).append(operator)
    return edges if any(len(members) > 1 for members in edges.values()) else nodes


def losers(members: Sequence[Operator], order: Mapping[Operator, tuple]) -> set[Operator]:
    """The competitors to go: the first on an edge, or all but the last two inputs of a node."""
    count = 1 if len({operator.edge for operator in members}) == 1 else len(members) - 2
    return set(sorted(members, key=order.__getitem__)[:count])
