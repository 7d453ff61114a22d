"""How reliable a score of operators becomes with repeats: the curve that is predicted, and what is measured.

One repeat of reliability r₁ (see :mod:`mamltheory.nas.statistics.reliability`) predicts R r₁/(1 + (R − 1) r₁) for the
mean of R repeats. The measured points are correlations between means of disjoint sets of m repeats, which share nothing
but the operators. scores: operators × repeats. Pure functions on arrays.
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
    codes,
    half_agreement,
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

    single, interval: r₁ within edges and its 95 % interval. null: central 95 % of r₁ when operators change places.
    halves: correlation between means of m disjoint repeats, by m. agreement: between halves of all repeats.
    for_90: repeats whose mean has reliability 0.9. seconds: of CPU, a repeat.
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
        """Predicted reliability of the mean of so many repeats; whole numbers are not required."""
        return predicted_reliability(self.single, repeats)


def predicted_reliability(single: float, repeats: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """Spearman and Brown's R r₁/(1 + (R − 1) r₁) along a curve; 0 for r₁ ≤ 0."""
    known = max(single, 0.0)
    return repeats * known / (1 + (repeats - 1) * known)


def repeatability(
    scores: Scores, edges: Labels, seconds: float, random: np.random.Generator, draws: int = 200
) -> Repeatability:
    """All numbers of one score; raises ConfigurationError for fewer than 4 repeats."""
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

    Repeats are not drawn with replacement, since one that occurs twice agrees with itself; half of them without
    replacement have the right variance (delete-half jackknife). The draws depend on ``random`` and the shape alone:
    two scores of the same repeats, drawn alike, can be compared pair by pair.
    """
    resampled = _resampled(scores.shape[1], edges, random, draws)
    return np.array([single_repeat_reliability(scores[where], names) for where, names in resampled])


def _resampled(
    repeats: int, edges: Labels, random: np.random.Generator, draws: int
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], list[int]]]:
    """Where the scores of half of the repeats on drawn edges are, and the names of these edges, draw by draw."""
    if repeats < 4:
        raise ConfigurationError(f"an interval of the reliability needs at least 4 repeats, got {repeats}")
    places = codes(edges)
    members = [np.flatnonzero(places == place) for place in range(places.max() + 1)]
    for _ in range(draws):
        half = random.permutation(repeats)[: repeats // 2]
        chosen = random.integers(len(members), size=len(members))
        rows = np.concatenate([members[place] for place in chosen])
        names = np.repeat(np.arange(len(members)), [len(members[place]) for place in chosen])
        yield np.ix_(rows, half), names.tolist()


def half_correlations(
    scores: Scores, edges: Labels, random: np.random.Generator, draws: int = 200
) -> dict[int, float]:
    """Mean correlation within edges between means of m repeats and of m others, for m = 1, …, R/2."""
    values, repeats = standardised(scores, edges), scores.shape[1]
    orders = np.stack([random.permutation(repeats) for _ in range(draws)])
    found = {}
    for count in range(1, repeats // 2 + 1):
        left, right = (values[:, part].mean(2) for part in (orders[:, :count], orders[:, count : 2 * count]))
        # Every repeat is centred on every edge, so these are correlations without a further mean.
        scale = np.sqrt((left**2).sum(0) * (right**2).sum(0))
        found[count] = float(((left * right).sum(0) / np.where(scale > 0, scale, 1.0)).mean())
    return found


@dataclass(frozen=True)
class Difference:
    """What is found of two scores on the same repeats, as r₁ of one less that of the other, and its 95 % interval."""

    value: float
    interval: tuple[float, float]


def reliability_difference(
    first: Scores, second: Float[np.ndarray, "q s"], edges: Labels, seed: int, draws: int = 200
) -> Difference:
    """r₁ of ``first`` less that of ``second``, repeat by repeat on common random numbers; paired interval.

    Raises ShapeError for other repeats or operators.
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
    """Correlation within edges between what two scores say without their noise, and its 95 % interval.

    Repeats a_i and b_i are on the same random numbers. Only products of different ones are used, in which no noise is
    common: Σ_{i≠j} ⟨a_i, b_j⟩/√(Σ_{i≠j} ⟨a_i, a_j⟩ Σ_{i≠j} ⟨b_i, b_j⟩), which may exceed 1; NaN where a score has no
    signal. Raises ShapeError for other repeats or operators, ConfigurationError for fewer than 4 repeats.
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
