"""What a round decides by, and when it has seen enough: certainty of the choice, ties, and the rule for stopping.

A round stops when bootstrap draws of its repeats would take out the same operators with probability
ENOUGH_AGREEMENT, averaged over edges; when a wrong choice costs less than LITTLE_REGRET standard deviations of a
repeat; or when the budget is spent; and not before MIN_REPEATS. Scores that cannot be told from noise declare the
round a tie, which is decided by a rule and never by them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError
from mamltheory.nas.reliability import (
    Agreement,
    Labels,
    Scores,
    codes,
    effects,
    group_means,
    half_agreement,
    permutation_null,
    shrunken_scores,
    single_repeat_reliability,
    standardised,
)

Basis = Literal["operators", "types", "parameters"]
"""What decides a round: the operators' own scores, those of their (cell type × operation), or their size."""

MIN_REPEATS = 4
"""Repeats before a search may stop."""
ENOUGH_AGREEMENT, LITTLE_REGRET = 0.85, 0.05


@dataclass(frozen=True)
class Certainty:
    """How surely the operators to go are known, from bootstrap draws of the repeats.

    same: probability that the same operator goes, averaged over edges.  regret: what the choice loses against the
    best one of a draw, in standard deviations of a repeat, averaged over edges.  by_edge: ``same`` edge by edge, in
    order of first appearance.
    """

    same: float
    regret: float
    by_edge: tuple[float, ...]


def certainty(
    scores: Scores,
    edges: Labels,
    random: np.random.Generator,
    types: Labels | None = None,
    draws: int = 200,
) -> Certainty:
    """Bootstrap over repeats of the operator with the largest mean, or with ``types`` the largest shrunken score.

    λ stays that of all repeats. Deviations are widened by √(R/(R − 1)), by which the bootstrap of R repeats is too
    narrow. Raises ConfigurationError for fewer than 2 repeats.
    """
    repeats = scores.shape[1]
    if repeats < 2:
        raise ConfigurationError(f"a bootstrap over repeats needs at least 2, got {repeats}")
    values, places = standardised(scores, edges), codes(edges)
    weights = random.multinomial(repeats, np.full(repeats, 1 / repeats), size=draws).T / repeats
    centre = values.mean(1, keepdims=True)
    means = centre + math.sqrt(repeats / (repeats - 1)) * (values @ weights - centre)
    if types is not None:
        share = shrunken_scores(scores, edges, types)[1]
        basis = effects(edges, types)
        centre, means = (
            common + share * (each - common)
            for each, common in ((each, basis @ (basis.T @ each)) for each in (centre, means))
        )
    same, regret = [], []
    for place in range(places.max() + 1):
        rows = means[places == place]
        pick = int(centre[places == place].argmax())
        same.append(float((rows.argmax(0) == pick).mean()))
        regret.append(float((rows.max(0) - rows[pick]).mean()))
    return Certainty(float(np.mean(same)), float(np.mean(regret)), tuple(same))


def may_stop(state: Certainty, repeats: int, budget: int) -> str | None:
    """Why no further repeat is needed: "agreement", "regret" or "budget"; None to go on."""
    if repeats >= budget:
        return "budget"
    if repeats < MIN_REPEATS:
        return None
    if state.same >= ENOUGH_AGREEMENT:
        return "agreement"
    return "regret" if state.regret < LITTLE_REGRET else None


@dataclass(frozen=True)
class RoundReliability:
    """What a round knows about its own scores; see the functions of this module for every number."""

    repeats: int
    single: float
    specific: float
    null: tuple[float, float]
    agreement: Agreement
    certainty: Certainty
    share: float
    basis: Basis

    @property
    def tied(self) -> bool:
        """Whether r₁ lies inside the permutation null: the operators' own scores are not to be told from noise."""
        return self.basis != "operators"

    def to_json(self) -> dict:
        """Numbers, strings and lists."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping) -> "RoundReliability":
        """What :meth:`to_json` returned; raises KeyError or TypeError for anything else."""
        agreement, sure = dict(data["agreement"]), dict(data["certainty"])
        for name in ("tau_interval", "same_interval"):
            agreement[name] = tuple(agreement[name])
        sure["by_edge"] = tuple(sure["by_edge"])
        rest = {**data, "agreement": Agreement(**agreement), "certainty": Certainty(**sure)}
        return RoundReliability(**{**rest, "null": tuple(data["null"])})


def judge(
    scores: Scores, edges: Labels, cells: Labels, operations: Labels, random: np.random.Generator
) -> RoundReliability:
    """All numbers of a round, and on which basis it is to be decided; at least 2 repeats.

    The operators' scores decide where r₁ exceeds the permutation null. Otherwise the round is a tie, decided by the
    means over (cell type × operation) where their own r₁ exceeds its null, which pools all edges; otherwise by size.
    """
    types = list(zip(cells, operations, strict=True))
    single, null = single_repeat_reliability(scores, edges), permutation_null(scores, edges, random)
    basis: Basis = "operators"
    if single <= null[1]:
        kinds, kind_cells = _pooled(standardised(scores, edges), types)
        pooled_null = permutation_null(kinds, kind_cells, random)
        basis = "types" if single_repeat_reliability(kinds, kind_cells) > pooled_null[1] else "parameters"
    return RoundReliability(
        repeats=scores.shape[1],
        single=single,
        specific=single_repeat_reliability(scores, edges, types),
        null=null,
        agreement=half_agreement(scores, edges, random),
        certainty=certainty(scores, edges, random, types),
        share=shrunken_scores(scores, edges, types)[1],
        basis=basis,
    )


def decided_scores(
    scores: Scores, edges: Labels, types: Labels, parameters: Sequence[int], basis: Basis
) -> Float[np.ndarray, " o"]:
    """The scores by which a round goes, larger = to be taken out: shrunken, of the types alone, or the size.

    parameters: of every operator. By size the larger goes: a score that says nothing is no reason for more weights.
    """
    match basis:
        case "operators":
            return shrunken_scores(scores, edges, types)[0]
        case "types":
            return shrunken_scores(scores, edges, types, 0.0)[0]
        case _:
            return np.asarray(parameters, dtype=float)


def _pooled(values: Scores, types: Labels) -> tuple[Float[np.ndarray, "t r"], list]:
    """Means over the edges of every (cell type, operation), and the cell types."""
    return group_means(values, codes(types)), [cell for cell, _ in dict.fromkeys(types)]
