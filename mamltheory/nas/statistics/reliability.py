"""How far scores can be trusted: variance components, permutation null, agreement of halves, and shrinkage.

Scores are operators × repeats, larger = better to prune. Only contrasts on an edge decide, and repeats differ in scale:
each repeat is centred on every edge and divided by the standard deviation of the residuals,

    x_or = signal_o + noise_or,    r₁ = Var(signal)/(Var(signal) + Var(noise)),

the reliability of one repeat (the intraclass correlation of a two-way analysis of variance). The mean of R repeats has
the reliability R r₁/(1 + (R − 1) r₁) (Spearman and Brown), the expected correlation between two independent searches.

Most of the signal is common to an operation on all edges of a cell type. Of the part that is specific to edges, a share
λ = R r_e/(1 + (R − 1) r_e) is signal, with r_e its reliability: the shrunken score is the mean of (cell type ×
operation) plus λ times what the edge adds. The means over types may include the repeats of earlier rounds
(``earlier``), whose supernets held more operators: the effects of types hardly change from round to round. Pure
functions on arrays with explicit generators.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError

Labels = Sequence
"""One hashable label for each operator: its edge, or its cell type and operation."""
Scores = Float[np.ndarray, "o r"]
Earlier = Float[np.ndarray, "o e"]
"""The same operators in the repeats of earlier rounds."""


def standardised(scores: Scores, edges: Labels) -> Scores:
    """Every repeat centred on each edge and divided by its standard deviation within edges; raises for NaN and ±∞."""
    if scores.ndim != 2 or scores.shape[0] != len(edges) or scores.shape[1] == 0:
        raise ShapeError(
            f"scores have shape {scores.shape} for {len(edges)} labels: expected labels × repeats"
        )
    if not np.isfinite(scores).all():
        raise ValueRangeError("scores contain NaN or infinite numbers: leave these operators or repeats out")
    places = codes(edges)
    centred = scores - group_means(scores, places)[places]
    freedom = max(len(scores) - len(set(places.tolist())), 1)
    scale = np.sqrt((centred**2).sum(0) / freedom)
    return centred / np.where(scale > 0, scale, math.inf)


def single_repeat_reliability(scores: Scores, edges: Labels, types: Labels | None = None) -> float:
    """r₁ within edges, of at least 2 repeats; with ``types`` that of the residuals of the effects of types."""
    # It may be negative, as any estimate of a variance component.
    if scores.shape[-1] < 2:
        raise ConfigurationError(f"reliability needs at least 2 repeats, got {scores.shape[-1]}")
    values = standardised(scores, edges)
    basis = effects(edges, types)
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
    """Reliability R r₁/(1 + (R − 1) r₁) of the mean of several repeats; 0 for r₁ ≤ 0."""
    return repeats * single / (1 + (repeats - 1) * single) if single > 0 else 0.0


def repeats_for(single: float, target: float = 0.9) -> float:
    """Repeats whose mean has the target reliability; ∞ for r₁ ≤ 0."""
    if not 0 < target < 1:
        raise ValueRangeError(f"target is {target}: expected a reliability between 0 and 1")
    return target * (1 - single) / (single * (1 - target)) if single > 0 else math.inf


def permutation_null(
    scores: Scores, edges: Labels, random: np.random.Generator, draws: int = 200, level: float = 0.95
) -> tuple[float, float]:
    """Central interval of r₁ when operators change places on their edge, independently in every repeat.

    Args:
        scores: operators × repeats.
        edges: the edge of every operator.
        random: generator of the permutations.
        draws: number of permutations.
        level: probability of the interval.

    Returns:
        The ends of the interval.
    """
    values, places = standardised(scores, edges), codes(edges)
    freedom = len(values) - len(set(places.tolist()))
    home, found = np.argsort(places, kind="stable"), []
    for _ in range(draws):
        order = np.argsort(places[:, None] + random.random(values.shape), axis=0)
        shuffled = np.empty_like(values)
        shuffled[home] = np.take_along_axis(values, order, 0)
        found.append(_intraclass(shuffled, freedom))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Agreement:
    """Agreement between two independent halves of the repeats, averaged over ways to halve them.

    The intervals are 95 % intervals from random halves and edges drawn with replacement.

    Attributes:
        tau: Kendall's tau over the pairs of operators of an edge.
        tau_interval: of ``tau``.
        same: share of edges on which both halves prune the same operator.
        same_interval: of ``same``.
        chance: the share for scores without signal.
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
    earlier: Earlier | None = None,
) -> Agreement:
    """Agreement between disjoint halves of the repeats; of an odd number of repeats, every draw omits one.

    Every half is scored as :func:`shrunken_scores` scores a search that has these repeats alone, h = ⌊R/2⌋ of the
    round and g = ⌊E/2⌋ of earlier rounds: its effects of types are those of the mean

        (h · mean over its repeats of the round + g · mean over its earlier repeats)/(h + g).

    So each draw compares two independent searches of h and g repeats, and where repeats are exchangeable, ``tau`` and
    ``same`` are unbiased for what such searches agree on. Weights R and E in place of h and g, which differ when one
    of the two is odd, would score halves as no search does.

    Args:
        scores: operators × repeats.
        edges: the edge of every operator.
        random: generator of halves and edges.
        types: the type of every operator, to compare shrunken scores in place of means.
        draws: number of ways to halve the repeats.
        earlier: repeats of earlier rounds, halved like the others; see :func:`shrunken_scores`.

    Returns:
        The agreement.

    Raises:
        ConfigurationError: for fewer than 2 repeats.
    """
    if scores.shape[1] < 2:
        raise ConfigurationError(f"halves need at least 2 repeats, got {scores.shape[1]}")
    halves = _halves(scores.shape[1], draws, random)
    if earlier is not None and earlier.shape[1] < 2:
        earlier = None  # a single repeat has no halves
    before = None if earlier is None else (earlier, _halves(earlier.shape[1], draws, random))
    left, right = (
        _summaries(scores, half, edges, types, before and (before[0], before[1][k]))
        for k, half in enumerate(halves)
    )
    members = [rows for rows in members_of(edges) if len(rows) > 1]
    concordant = np.array([_concordance(left[each], right[each]) for each in members])
    pairs = np.array([len(each) * (len(each) - 1) / 2 for each in members])
    equal = np.array([left[each].argmax(0) == right[each].argmax(0) for each in members], float)
    chosen = random.integers(len(members), size=(len(members), draws))
    drawn = np.take_along_axis(concordant, chosen, 0).sum(0) / pairs[chosen].sum(0)
    return Agreement(
        tau=float(concordant.sum(0).mean() / pairs.sum()),
        tau_interval=_interval(drawn),
        same=float(equal.mean()),
        same_interval=_interval(np.take_along_axis(equal, chosen, 0).mean(0)),
        chance=float(np.mean([1 / len(each) for each in members])),
    )


def _halves(repeats: int, draws: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Weights (repeats × draws) of the means over each of two disjoint halves."""
    halves = np.zeros((2, repeats, draws))
    for draw in range(draws):
        order = random.permutation(repeats)
        halves[0, order[: repeats // 2], draw] = 2 / (repeats - repeats % 2)
        halves[1, order[repeats // 2 : 2 * (repeats // 2)], draw] = 2 / (repeats - repeats % 2)
    return halves[0], halves[1]


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _concordance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Concordant minus discordant pairs of the operators of an edge, in every draw."""
    i, j = np.triu_indices(len(left), 1)
    return (np.sign(left[i] - left[j]) * np.sign(right[i] - right[j])).sum(0)


def _summaries(
    scores: Scores,
    halves: np.ndarray,
    edges: Labels,
    types: Labels | None,
    before: tuple[Earlier, np.ndarray] | None,
) -> np.ndarray:
    """Mean over the standardised repeats of every half (a column), or its shrunken score."""
    values = standardised(scores, edges)
    means = values @ halves
    if types is None:
        return means
    basis = effects(edges, types)
    rest = values - basis @ (basis.T @ values)
    shares = [_signal_share(rest[:, half > 0], len(values) - basis.shape[1]) for half in halves.T]
    pooled = means
    if before is not None:
        counts = len(halves) // 2, len(before[1]) // 2
        pooled = weighted_mean(means, counts[0], standardised(before[0], edges) @ before[1], counts[1])
    return combined(means, pooled, basis, np.array(shares))


def weighted_mean(means: np.ndarray, repeats: int, others: np.ndarray, more: int) -> np.ndarray:
    """Mean over all repeats, from the means over ``repeats`` of them and over ``more`` others."""
    return (repeats * means + more * others) / (repeats + more)


def combined(
    means: np.ndarray, pooled: np.ndarray, basis: np.ndarray, share: np.ndarray | float
) -> np.ndarray:
    """The shrunken score: effects of types plus λ times what edges add.

    Args:
        means: means over the repeats of the round.
        pooled: means that include the repeats of earlier rounds.
        basis: of :func:`effects`.
        share: λ.

    Returns:
        An array of the shape of ``means``.
    """
    return basis @ (basis.T @ pooled) + share * (means - basis @ (basis.T @ means))


def _signal_share(rest: Scores, freedom: int) -> float:
    """λ from the residuals of the effects of edges and types; 0 for a single repeat."""
    repeats = rest.shape[1]
    return mean_reliability(_intraclass(rest, freedom), repeats) if repeats > 1 else 0.0


def pooled_mean(scores: Scores, edges: Labels, earlier: Earlier | None) -> Float[np.ndarray, " o"]:
    """Mean over the standardised repeats of this round and of earlier ones, with equal weights."""
    mean = standardised(scores, edges).mean(1)
    if earlier is None or earlier.shape[1] == 0:
        return mean
    return weighted_mean(mean, scores.shape[1], standardised(earlier, edges).mean(1), earlier.shape[1])


def shrunken_scores(
    scores: Scores,
    edges: Labels,
    types: Labels,
    share: float | None = None,
    earlier: Earlier | None = None,
) -> tuple[Float[np.ndarray, " o"], float]:
    """Effects of types plus λ times what edges add, in standard deviations of one repeat.

    Args:
        scores: operators × repeats.
        edges: the edge of every operator.
        types: the type of every operator.
        share: λ, by default R r_e/(1 + (R − 1) r_e) with r_e the edge-specific reliability; 0 for a single repeat.
        earlier: the same operators in the repeats of earlier rounds, for the effects of types alone.

    Returns:
        (score of every operator, λ).
    """
    values, basis = standardised(scores, edges), effects(edges, types)
    rest = values - basis @ (basis.T @ values)
    if share is None:
        share = _signal_share(rest, len(values) - basis.shape[1])
    return combined(values.mean(1), pooled_mean(scores, edges, earlier), basis, share), share


def codes(labels: Labels) -> np.ndarray:
    """Numbers 0, 1, … of the labels in order of first appearance."""
    numbers: dict = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels])


def members_of(labels: Labels) -> list[np.ndarray]:
    """For every label its rows."""
    numbers = codes(labels)
    return [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]


def group_means(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Means of the rows with equal numbers."""
    sums = np.zeros((numbers.max() + 1, *values.shape[1:]))
    np.add.at(sums, numbers, values)
    return sums / np.bincount(numbers).reshape(-1, *[1] * (values.ndim - 1))


def effects(edges: Labels, types: Labels | None) -> np.ndarray:
    """Orthonormal basis (operators × rank) of the effects of edges, and of types where given."""
    both = [edges] if types is None else [edges, types]
    columns = [np.eye(numbers.max() + 1)[numbers] for numbers in map(codes, both)]
    vectors, sizes, _ = np.linalg.svd(np.concatenate(columns, 1), full_matrices=False)
    return vectors[:, sizes > 1e-9 * sizes[0]]
