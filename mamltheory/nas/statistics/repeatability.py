"""How reliable a score of operators becomes with repeats, as predicted and as measured.

One repeat of reliability r₁ (:mod:`mamltheory.nas.statistics.reliability`) predicts R r₁/(1 + (R − 1) r₁) for the mean
of R repeats. Correlations between means over disjoint sets of m repeats measure it. Scores are operators × repeats.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.nas.statistics.reliability import (
    Agreement,
    Labels,
    Scores,
    half_agreement,
    members_of,
    permutation_null,
    repeats_for,
    single_repeat_reliability,
    standardised,
)

Draws = Float[np.ndarray, " d"]
NORMAL = 1.96
"""Half-width of a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Repeatability:
    """What repeats of a score are worth.

    Attributes:
        repeats: their number.
        single: r₁ within edges.
        interval: its 95 % interval.
        null: central 95 % of r₁ when operators change places.
        halves: correlation between means over m disjoint repeats, by m.
        agreement: between halves of all repeats.
        for_90: repeats whose mean has reliability 0.9.
        seconds: CPU seconds per repeat.
    """

    repeats: int
    single: float
    interval: tuple[float, float]
    null: tuple[float, float]
    halves: Mapping[int, float]
    agreement: Agreement
    for_90: float
    seconds: float

    def curve(self, repeats: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
        """Predicted reliability of the mean of several repeats; their numbers need not be whole."""
        return predicted_reliability(self.single, repeats)


def predicted_reliability(single: float, repeats: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """Spearman and Brown's R r₁/(1 + (R − 1) r₁) along a curve; 0 for r₁ ≤ 0."""
    known = max(single, 0.0)
    return repeats * known / (1 + (repeats - 1) * known)


def repeatability(
    scores: Scores, edges: Labels, seconds: float, random: np.random.Generator, draws: int = 200
) -> Repeatability:
    """All numbers of one score.

    Args:
        scores: operators × repeats, at least 4 of them.
        edges: the edge of every operator.
        seconds: CPU seconds per repeat.
        random: generator of all draws.
        draws: number of draws of each kind.

    Returns:
        The numbers.
    """
    single = single_repeat_reliability(scores, edges)
    error = float(reliability_draws(scores, edges, random, draws).std())
    return Repeatability(
        repeats=scores.shape[1],
        single=single,
        interval=(single - NORMAL * error, single + NORMAL * error),
        null=permutation_null(scores, edges, random, draws),
        halves=half_correlations(scores, edges, random, draws),
        agreement=half_agreement(scores, edges, random, draws=draws),
        for_90=repeats_for(single),
        seconds=seconds,
    )


def reliability_draws(scores: Scores, edges: Labels, random: np.random.Generator, draws: int) -> Draws:
    """r₁ from random halves of the repeats and edges drawn with replacement; their spread is the standard error of r₁.

    Repeats are not drawn with replacement, since a repeat that occurs twice agrees with itself. Half of them without
    replacement have the right variance (delete-half jackknife).

    Args:
        scores: operators × repeats.
        edges: the edge of every operator.
        random: generator of the draws, which depend on it and on the shape alone: two scores of the same repeats can
            be compared draw by draw.
        draws: their number.

    Returns:
        One r₁ per draw.
    """
    resampled = _resampled(scores.shape[1], edges, random, draws)
    return np.array([single_repeat_reliability(scores[where], names) for where, names in resampled])


def _resampled(
    repeats: int, edges: Labels, random: np.random.Generator, draws: int
) -> Iterator[tuple[tuple[np.ndarray, ...], list[int]]]:
    """For every draw the index of half of the repeats on drawn edges, and the names of these edges."""
    if repeats < 4:
        raise ConfigurationError(f"an interval of the reliability needs at least 4 repeats, got {repeats}")
    members = members_of(edges)
    for _ in range(draws):
        half = random.permutation(repeats)[: repeats // 2]
        chosen = random.integers(len(members), size=len(members))
        rows = np.concatenate([members[place] for place in chosen])
        names = np.repeat(np.arange(len(members)), [len(members[place]) for place in chosen])
        yield np.ix_(rows, half), names.tolist()


def half_correlations(
    scores: Scores, edges: Labels, random: np.random.Generator, draws: int = 200
) -> dict[int, float]:
    """Mean correlation within edges between means over m repeats and over m others, for m = 1, …, R/2.

    Args:
        scores: operators × repeats.
        edges: the edge of every operator.
        random: generator of the orders of repeats.
        draws: number of orders.

    Returns:
        The correlation by m.
    """
    values, repeats = standardised(scores, edges), scores.shape[1]
    orders = np.stack([random.permutation(repeats) for _ in range(draws)])
    found = {}
    for count in range(1, repeats // 2 + 1):
        left, right = (values[:, part].mean(2) for part in (orders[:, :count], orders[:, count : 2 * count]))
        # Every repeat is centred on every edge, so these are correlations without a further mean.
        scale = np.sqrt((left**2).sum(0) * (right**2).sum(0))
        found[count] = float(((left * right).sum(0) / np.where(scale > 0, scale, math.inf)).mean())
    return found


@dataclass(frozen=True)
class Difference:
    """A comparison of two scores on the same repeats, and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def reliability_difference(
    first: Scores, second: Float[np.ndarray, "q s"], edges: Labels, seed: int, draws: int = 200
) -> Difference:
    """r₁ of one score minus that of another on common random numbers, with a paired interval.

    Args:
        first: operators × repeats.
        second: the same operators and repeats, by another score.
        edges: the edge of every operator.
        seed: of the draws, which are the same for both.
        draws: their number.

    Returns:
        The difference.
    """
    _check_same_repeats(first, second)
    value = single_repeat_reliability(first, edges) - single_repeat_reliability(second, edges)
    pair = [reliability_draws(each, edges, np.random.default_rng(seed), draws) for each in (first, second)]
    error = float((pair[0] - pair[1]).std())
    return Difference(value, (value - NORMAL * error, value + NORMAL * error))


def repeat_correlation(first: Scores, second: Float[np.ndarray, "q s"], edges: Labels) -> float:
    """Mean over repeats of the correlation within edges between two estimates from the same random numbers."""
    _check_same_repeats(first, second)
    left, right = standardised(first, edges), standardised(second, edges)
    scale = np.sqrt((left**2).sum(0) * (right**2).sum(0))
    return float(((left * right).sum(0) / np.where(scale > 0, scale, math.inf)).mean())


def corrected_correlation(
    first: Scores,
    second: Float[np.ndarray, "q s"],
    edges: Labels,
    random: np.random.Generator,
    draws: int = 200,
) -> Difference:
    """Correlation within edges between the signals of two scores, corrected for their noise; NaN without signal.

    Repeats a_i and b_i use the same random numbers. Products of different repeats share no noise:
    Σ_{i≠j} ⟨a_i, b_j⟩/√(Σ_{i≠j} ⟨a_i, a_j⟩ Σ_{i≠j} ⟨b_i, b_j⟩), which may exceed 1.

    Args:
        first: operators × repeats, at least 4 of them.
        second: the same operators and repeats, by another score.
        edges: the edge of every operator.
        random: generator of the draws.
        draws: number of draws for the interval.

    Returns:
        The correlation.
    """
    _check_same_repeats(first, second)
    value = _without_noise(first, second, edges)
    resampled = _resampled(first.shape[1], edges, random, draws)
    found = [_without_noise(first[where], second[where], names) for where, names in resampled]
    error = float(np.nanstd(found)) if np.isfinite(found).any() else math.nan
    return Difference(value, (value - NORMAL * error, value + NORMAL * error))


def _without_noise(first: Scores, second: Scores, edges: Labels) -> float:
    left, right = standardised(first, edges), standardised(second, edges)

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float((a.sum(1) * b.sum(1)).sum() - (a * b).sum())

    scale = apart(left, left), apart(right, right)
    return apart(left, right) / math.sqrt(scale[0] * scale[1]) if min(scale) > 0 else math.nan


def _check_same_repeats(first: Scores, second: Float[np.ndarray, "q s"]) -> None:
    if first.shape != second.shape:
        raise ShapeError(
            f"scores have shapes {first.shape} and {second.shape}: give the same repeats of both"
        )
