"""How far the scores of a round can be trusted: variance components, shrinkage, and when to stop.

scores: operators × repeats, larger = better to take out. Only contrasts on an edge decide, and every repeat has a
scale of its own: a repeat is centred on every edge and divided by the standard deviation of what is left,

    x_or = signal_o + noise_or,    r₁ = Var(signal)/(Var(signal) + Var(noise)),

the reliability of one repeat (the intraclass correlation of a two-way analysis of variance). The mean of R repeats has
R r₁/(1 + (R − 1) r₁) (Spearman and Brown), which is the correlation to be expected between two independent searches.

Most of the signal is common to an operation on all edges of a cell type. Of the rest, the part that is specific to
edges, a share λ = R r_e/(1 + (R − 1) r_e) is signal, with r_e its reliability: the shrunken score is the mean of
(cell type × operation) plus λ times what the edge adds. Pure functions on arrays; randomness by an explicit generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError

Labels = Sequence
"""One hashable label for each operator: its edge, or its cell type and operation."""
Scores = Float[np.ndarray, "o r"]
Basis = Literal["operators", "types", "parameters"]
"""What decides a round: the operators' own scores, those of their (cell type × operation), or their size."""

MIN_REPEATS = 4
"""Repeats before a search may stop."""
ENOUGH_AGREEMENT, LITTLE_REGRET = 0.85, 0.05


def standardised(scores: Scores, edges: Labels) -> Scores:
    """Every repeat centred on each edge and divided by its standard deviation within edges.

    Raises ShapeError for labels that do not fit, ValueRangeError for numbers that are not finite.
    """
    if scores.ndim != 2 or scores.shape[0] != len(edges) or scores.shape[1] == 0:
        raise ShapeError(
            f"scores have shape {scores.shape} for {len(edges)} labels: expected labels × repeats"
        )
    if not np.isfinite(scores).all():
        raise ValueRangeError("scores contain NaN or infinite numbers: leave these operators or repeats out")
    places = _codes(edges)
    centred = scores - _group_means(scores, places)[places]
    freedom = max(len(scores) - len(set(places.tolist())), 1)
    scale = np.sqrt((centred**2).sum(0) / freedom)
    return centred / np.where(scale > 0, scale, 1.0)


def single_repeat_reliability(scores: Scores, edges: Labels, types: Labels | None = None) -> float:
    """r₁ within edges; with ``types`` the edge-specific one, after their common effect is removed as well.

    0 where nothing varies. May be negative, as any estimate of a variance component. Raises ConfigurationError for
    fewer than 2 repeats, and as :func:`standardised`.
    """
    if scores.shape[-1] < 2:
        raise ConfigurationError(f"reliability needs at least 2 repeats, got {scores.shape[-1]}")
    values = standardised(scores, edges)
    basis = _effects(edges, types)
    return _intraclass(values - basis @ (basis.T @ values), len(values) - basis.shape[1])


def _intraclass(residuals: Scores, freedom: int) -> float:
    """(MS_o − MS_e)/(MS_o + (R − 1) MS_e), with ``freedom`` contrasts between the operators."""
    repeats = residuals.shape[1]
    if freedom < 1:
        return 0.0
    means = residuals.mean(1, keepdims=True)
    between = repeats * float((means**2).sum()) / freedom
    within = float(((residuals - means) ** 2).sum()) / (freedom * (repeats - 1))
    total = between + (repeats - 1) * within
    return (between - within) / total if total > 1e-24 else 0.0


def mean_reliability(single: float, repeats: int) -> float:
    """Reliability of the mean of so many repeats, R r₁/(1 + (R − 1) r₁); 0 for r₁ ≤ 0."""
    return repeats * single / (1 + (repeats - 1) * single) if single > 0 else 0.0


def repeats_for(single: float, target: float = 0.9) -> float:
    """Repeats whose mean has the target reliability; ∞ for r₁ ≤ 0."""
    if not 0 < target < 1:
        raise ValueRangeError(f"target is {target}: expected a reliability between 0 and 1")
    return target * (1 - single) / (single * (1 - target)) if single > 0 else math.inf


def permutation_null(
    scores: Scores, edges: Labels, random: np.random.Generator, draws: int = 200, level: float = 0.95
) -> tuple[float, float]:
    """Central interval of r₁ when operators change places on their edge, independently in every repeat."""
    values, places = standardised(scores, edges), _codes(edges)
    freedom = len(values) - len(set(places.tolist()))
    found = []
    for _ in range(draws):
        keys = random.random(values.shape)
        home = np.argsort(places, kind="stable")
        order = np.lexsort((keys.T, np.broadcast_to(places, keys.T.shape))).T
        shuffled = np.empty_like(values)
        shuffled[home] = np.take_along_axis(values, order, 0)
        found.append(_intraclass(shuffled, freedom))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau over pairs of operators of an edge, and the share of edges that lose the same one.

    Between two independent halves of the repeats, averaged over ways to halve them; intervals of 95 % from random
    halves and edges drawn with replacement. chance: the share for scores without signal.
    """

    tau: float
    tau_interval: tuple[float, float]
    same: float
    same_interval: tuple[float, float]
    chance: float


def half_agreement(
    scores: Scores,
    edges: Labels,
    random: np.random.Generator,
    types: Labels | None = None,
    draws: int = 200,
) -> Agreement:
    """Agreement between disjoint halves of the repeats, of means or, with ``types``, of shrunken scores.

    Raises ConfigurationError for fewer than 2 repeats; of an odd number one stays out in turn.
    """
    repeats = scores.shape[1]
    if repeats < 2:
        raise ConfigurationError(f"halves need at least 2 repeats, got {repeats}")
    places = _codes(edges)
    members = [np.flatnonzero(places == place) for place in range(places.max() + 1)]
    members = [each for each in members if len(each) > 1]
    taus, sames, tau_draws, same_draws = [], [], [], []
    for _ in range(draws):
        order = random.permutation(repeats)
        halves = order[: repeats // 2], order[repeats // 2 : 2 * (repeats // 2)]
        left, right = (_summary(scores[:, half], edges, types) for half in halves)
        pairs = np.array([_concordance(left[each], right[each]) for each in members])
        equal = np.array([left[each].argmax() == right[each].argmax() for each in members], float)
        chosen = random.integers(len(members), size=len(members))
        taus.append(pairs[:, 0].sum() / pairs[:, 1].sum())
        sames.append(equal.mean())
        tau_draws.append(pairs[chosen, 0].sum() / pairs[chosen, 1].sum())
        same_draws.append(equal[chosen].mean())
    chance = float(np.mean([1 / len(each) for each in members]))
    return Agreement(
        float(np.mean(taus)), _interval(tau_draws), float(np.mean(sames)), _interval(same_draws), chance
    )


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _concordance(left: np.ndarray, right: np.ndarray) -> tuple[float, int]:
    """Concordant less discordant pairs, and all pairs."""
    i, j = np.triu_indices(len(left), 1)
    signs = np.sign(left[i] - left[j]) * np.sign(right[i] - right[j])
    return float(signs.sum()), len(i)


def _summary(scores: Scores, edges: Labels, types: Labels | None) -> np.ndarray:
    """Mean of standardised repeats, or the shrunken score."""
    return standardised(scores, edges).mean(1) if types is None else shrunken_scores(scores, edges, types)[0]


def shrunken_scores(
    scores: Scores, edges: Labels, types: Labels, share: float | None = None
) -> tuple[Float[np.ndarray, " o"], float]:
    """(score of every operator in units of a repeat's standard deviation, λ): type effect + λ · what the edge adds.

    share: λ, by default R r_e/(1 + (R − 1) r_e) with r_e the edge-specific reliability, and 0 for a single repeat.
    """
    if share is None:
        repeats = scores.shape[1]
        specific = single_repeat_reliability(scores, edges, types) if repeats > 1 else 0.0
        share = mean_reliability(specific, repeats)
    mean = standardised(scores, edges).mean(1)
    basis = _effects(edges, types)
    common = basis @ (basis.T @ mean)
    return common + share * (mean - common), share


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
    values, places = standardised(scores, edges), _codes(edges)
    weights = random.multinomial(repeats, np.full(repeats, 1 / repeats), size=draws).T / repeats
    centre = values.mean(1, keepdims=True)
    means = centre + math.sqrt(repeats / (repeats - 1)) * (values @ weights - centre)
    if types is not None:
        share = shrunken_scores(scores, edges, types)[1]
        basis = _effects(edges, types)
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


def _codes(labels: Labels) -> np.ndarray:
    """Numbers 0, 1, … of the labels in order of first appearance."""
    numbers: dict = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels])


def _group_means(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    sums = np.zeros((codes.max() + 1, *values.shape[1:]))
    np.add.at(sums, codes, values)
    return sums / np.bincount(codes).reshape(-1, *[1] * (values.ndim - 1))


def _effects(edges: Labels, types: Labels | None) -> np.ndarray:
    """Orthonormal basis of what edges, and types, have in common: o × rank."""
    both = [edges] if types is None else [edges, types]
    columns = [np.eye(codes.max() + 1)[codes] for codes in map(_codes, both)]
    vectors, sizes, _ = np.linalg.svd(np.concatenate(columns, 1), full_matrices=False)
    return vectors[:, sizes > 1e-9 * sizes[0]]


def _pooled(values: Scores, types: Labels) -> tuple[Float[np.ndarray, "t r"], list]:
    """Means over the edges of every (cell type, operation), and the cell types."""
    codes = _codes(types)
    return _group_means(values, codes), [cell for cell, _ in dict.fromkeys(types)]
