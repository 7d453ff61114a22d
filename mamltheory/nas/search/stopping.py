"""What a round decides by, and when it has seen enough: certainty of the choice, ties, and the rule for stopping.

A round stops when bootstrap draws of its repeats would take out the same operators with probability
ENOUGH_AGREEMENT, averaged over edges; when a wrong choice costs less than LITTLE_REGRET standard deviations of a
repeat; or when the budget is spent; and not before MIN_REPEATS. Scores that cannot be told from noise declare the
round a tie, which is decided by a rule and never by them. In any other round an edge whose choice the repeats do not
separate goes by the means over (cell type × operation): what an operator does on one edge rather than another is the
smallest and noisiest part of its score. Repeats of earlier rounds count in those means.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError
from mamltheory.nas.statistics.reliability import (
    Agreement,
    Earlier,
    Labels,
    Scores,
    codes,
    combined,
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

Stop = Literal["agreement", "regret", "budget", "fixed"]
"""Why a round took no further repeat; "fixed": their number was given."""

MIN_REPEATS = 4
"""Repeats before a search may stop, unless it sets more or fewer."""
ENOUGH_AGREEMENT, LITTLE_REGRET = 0.85, 0.05
SEPARATED = 0.9
"""Probability with which bootstrap draws of the repeats must take out the same operator for an edge to be decided."""


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
    share: float | None = None,
    picks: Collection[int] = (),
    earlier: Earlier | None = None,
) -> Certainty:
    """Bootstrap over repeats of the operator with the largest mean, or with ``types`` the largest shrunken score.

    λ stays that of all repeats, or is ``share``; repeats of earlier rounds are drawn for themselves. Deviations are
    widened by √(R/(R − 1)), by which the bootstrap of R repeats is too narrow. picks: rows that were taken out; on an
    edge without one it is the largest of all repeats. Raises ConfigurationError for fewer than 2 repeats.
    """
    if scores.shape[1] < 2:
        raise ConfigurationError(f"a bootstrap over repeats needs at least 2, got {scores.shape[1]}")
    centre, means = _bootstrap(standardised(scores, edges), random, draws)
    if types is not None:
        share = shrunken_scores(scores, edges, types)[1] if share is None else share
        basis, repeats, more = effects(edges, types), scores.shape[1], 0
        before = np.zeros_like(centre), np.zeros_like(means)
        if earlier is not None and earlier.shape[1] > 1:
            before, more = _bootstrap(standardised(earlier, edges), random, draws), earlier.shape[1]
        centre, means = (
            combined(own, (repeats * own + more * past) / (repeats + more), basis, share)
            for own, past in zip((centre, means), before, strict=True)
        )
    places, same, regret = codes(edges), [], []
    for place in range(places.max() + 1):
        members = np.flatnonzero(places == place)
        rows = means[members]
        chosen = [i for i, member in enumerate(members.tolist()) if member in picks]
        pick = chosen[0] if chosen else int(centre[members].argmax())
        same.append(float((rows.argmax(0) == pick).mean()))
        regret.append(float((rows.max(0) - rows[pick]).mean()))
    return Certainty(float(np.mean(same)), float(np.mean(regret)), tuple(same))


def _bootstrap(values: Scores, random: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean over the repeats as a column, and the means of bootstrap draws, widened."""
    repeats = values.shape[1]
    weights = random.multinomial(repeats, np.full(repeats, 1 / repeats), size=draws).T / repeats
    centre = values.mean(1, keepdims=True)
    return centre, centre + math.sqrt(repeats / (repeats - 1)) * (values @ weights - centre)


def may_stop(state: Certainty, repeats: int, budget: int, least: int = MIN_REPEATS) -> Stop | None:
    """Why no further repeat is needed: "agreement", "regret" or "budget"; None to go on, as before ``least``."""
    if repeats >= budget:
        return "budget"
    if repeats < least:
        return None
    if state.same >= ENOUGH_AGREEMENT:
        return "agreement"
    return "regret" if state.regret < LITTLE_REGRET else None


def _numbers(data: Mapping) -> dict[str, float | tuple[float, ...]]:
    """Numbers and lists of them, also infinite ones, from JSON."""
    return {
        key: tuple(map(float, value)) if isinstance(value, list | tuple) else float(value)
        for key, value in data.items()
    }


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
        return self.single <= self.null[1]

    def to_json(self) -> dict:
        """Numbers, strings and lists."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping) -> "RoundReliability":
        """What :meth:`to_json` returned; raises KeyError or TypeError for anything else."""
        agreement, sure = (_numbers(data[name]) for name in ("agreement", "certainty"))
        parts = {"agreement": Agreement(**agreement), "certainty": Certainty(**sure)}
        numbers = _numbers({name: data[name] for name in ("single", "specific", "null", "share")})
        return RoundReliability(**{**data, **numbers, **parts})


def judge(
    scores: Scores,
    edges: Labels,
    cells: Labels,
    operations: Labels,
    random: np.random.Generator,
    shrinkage: bool = True,
    picks: Collection[int] = (),
    earlier: Earlier | None = None,
) -> RoundReliability:
    """All numbers of a round, and on which basis it is to be decided; at least 2 repeats.

    The operators' scores decide where r₁ exceeds the permutation null. Otherwise the round is a tie, decided by the
    means over (cell type × operation) where their own r₁ exceeds its null, which pools all edges and the repeats of
    earlier rounds; otherwise by size.
    shrinkage: False for a search that goes by the operators' own scores whatever they are worth.
    picks: rows that were taken out, where the caller decides.  earlier: see :func:`shrunken_scores`.
    """
    types = list(zip(cells, operations, strict=True))
    earlier = earlier if shrinkage else None
    single, null = single_repeat_reliability(scores, edges), permutation_null(scores, edges, random)
    basis: Basis = "operators"
    if shrinkage and single <= null[1]:
        basis = _basis_of_a_tie(scores, edges, types, random, earlier)
    share = shrunken_scores(scores, edges, types)[1]
    kinds, used = (types, 0.0 if basis == "types" else share) if shrinkage else (None, None)
    return RoundReliability(
        repeats=scores.shape[1],
        single=single,
        specific=single_repeat_reliability(scores, edges, types),
        null=null,
        agreement=half_agreement(scores, edges, random, kinds, earlier=earlier),
        certainty=certainty(scores, edges, random, kinds, share=used, picks=picks, earlier=earlier),
        share=share,
        basis=basis,
    )


def _basis_of_a_tie(
    scores: Scores, edges: Labels, types: Labels, random: np.random.Generator, earlier: Earlier | None
) -> Basis:
    values = standardised(scores, edges)
    if earlier is not None and earlier.shape[1]:
        values = np.concatenate([values, standardised(earlier, edges)], 1)
    kinds, cells = _pooled(values, types)
    null = permutation_null(kinds, cells, random)
    return "types" if single_repeat_reliability(kinds, cells) > null[1] else "parameters"


def decided_scores(
    scores: Scores,
    edges: Labels,
    types: Labels,
    parameters: Sequence[int],
    basis: Basis,
    earlier: Earlier | None = None,
    undecided: Collection[Hashable] = (),
) -> Float[np.ndarray, " o"]:
    """The scores by which a round goes, larger = to be taken out: shrunken, of the types alone, or the size.

    parameters: of every operator. By size the smaller goes: where the scores say nothing, the number of parameters is
    what is known to go with accuracy, as far as any score does (``experiments correlation``).
    undecided: edges whose repeats do not separate the operator to go; they go by the types where others go by their
    operators. Types decide nothing between two operators of one type, as the inputs of a node may be: such
    competitions always go by their operators. Scores are to be compared within an edge.
    """
    if basis == "parameters":
        return -np.asarray(parameters, dtype=float)
    by_type, by_operator = (shrunken_scores(scores, edges, types, share, earlier)[0] for share in (0.0, None))
    counts = Counter(zip(edges, types, strict=True))
    doubled = {edge for (edge, _), count in counts.items() if count > 1}
    unclear = [(basis == "types" or edge in undecided) and edge not in doubled for edge in edges]
    return np.where(unclear, by_type, by_operator)


def _pooled(values: Scores, types: Labels) -> tuple[Float[np.ndarray, "t r"], list]:
    """Means over the edges of every (cell type, operation), and the cell types."""
    return group_means(values, codes(types)), [cell for cell, _ in dict.fromkeys(types)]
