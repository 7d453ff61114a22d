"""Rank correlations of one list of cells, with bootstrap intervals over the cells by products of matrices.

A resample is a row of weights, how often each cell was drawn. With signs s_ij of the differences, the concordance of a
resample is wᵀ(s ∘ s')w, so that a thousand resamples of 150 cells take milliseconds. Values may be −∞, such as the
score of a singular kernel: they rank last.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from mamltheory.errors import ConfigurationError, ValueRangeError

Values = Float[np.ndarray, " n"]
Weights = Float[np.ndarray, "d n"]
Statistic = Float[np.ndarray, " d"]
LEVEL = 0.95
FEWEST = 4


def bootstrap_weights(count: int, draws: int, random: np.random.Generator) -> Weights:
    """How often every cell occurs: once in the first row, and as drawn with replacement in the others.

    Args:
        count: number of cells, at least 4.
        draws: number of resamples.
        random: their generator.

    Returns:
        draws + 1 rows.

    Raises:
        ConfigurationError: for smaller numbers.
    """
    if count < FEWEST or draws < 1:
        raise ConfigurationError(f"got {count} cells and {draws} draws: expected at least {FEWEST} and 1")
    drawn = random.multinomial(count, np.full(count, 1 / count), size=draws)
    return np.concatenate([np.ones((1, count)), drawn])


def weighted_tau(x: Values, y: Values, weights: Weights) -> Statistic:
    """Kendall's τ_b in every resample; a cell that was drawn twice is tied with itself. NaN where all are tied."""
    a, b = _signs(x), _signs(y)
    untied = _form(np.abs(a), weights) * _form(np.abs(b), weights)
    return _ratio(_form(a * b, weights), untied)


def weighted_spearman(x: Values, y: Values, weights: Weights) -> Statistic:
    """Spearman's ρ in every resample; ties share their mean rank. NaN for constants."""
    return _pearson(_ranks(x, weights), _ranks(y, weights), weights)


def weighted_partial(x: Values, y: Values, given: Values, weights: Weights) -> Statistic:
    """Partial correlation of ranks (ρ_xy − ρ_xz ρ_yz)/√((1 − ρ_xz²)(1 − ρ_yz²)); z is ``given``."""
    a, b, c = (_ranks(values, weights) for values in (x, y, given))
    xy, xz, yz = (_pearson(one, other, weights) for one, other in ((a, b), (a, c), (b, c)))
    left = (1 - xz**2) * (1 - yz**2)
    return _ratio(xy - xz * yz, np.where(left > 1e-12, left, 0.0))


@dataclass(frozen=True)
class Resampled:
    """A statistic with its 95 % bootstrap interval over the cells."""

    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Association:
    """How a quantity goes with accuracy.

    Attributes:
        tau: Kendall's τ.
        rho: Spearman's ρ.
        partial: ρ given a third quantity.
        tau_p: two-sided p of the τ.
        partial_p: two-sided p of the partial ρ.
    """

    tau: Resampled
    rho: Resampled
    partial: Resampled
    tau_p: float
    partial_p: float


def associate(x: Values, y: Values, given: Values, weights: Weights) -> Association:
    """Both correlations and the partial one, on the same resamples.

    Args:
        x: of every cell; −∞ ranks last.
        y: accuracy.
        given: for the partial correlation.
        weights: of :func:`bootstrap_weights`.

    Returns:
        The numbers.

    Raises:
        ValueRangeError: a value is NaN.
    """
    if any(np.isnan(each).any() for each in (x, y, given)):
        raise ValueRangeError("a value is NaN: give −∞ for what ranks last")
    partial = _resampled(weighted_partial(x, y, given, weights))
    # Ranks, since scipy takes no infinite values.
    tau_p = float(stats.kendalltau(stats.rankdata(x), stats.rankdata(y)).pvalue)
    return Association(
        _resampled(weighted_tau(x, y, weights)),
        _resampled(weighted_spearman(x, y, weights)),
        partial,
        1.0 if math.isnan(tau_p) else tau_p,
        _p_of_partial(partial.value, len(x)),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p of every hypothesis: an error in any of them is rarer than the level."""
    adjusted, least = {}, 0.0
    for index, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - index) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def _p_of_partial(rho: float, count: int) -> float:
    """By Student's t with n − 3 degrees of freedom."""
    if math.isnan(rho):
        return 1.0
    t = rho * math.sqrt((count - 3) / max(1 - rho**2, 1e-300))
    return float(2 * stats.t.sf(abs(t), count - 3))


def _resampled(values: Statistic) -> Resampled:
    """The first row is the statistic of the cells themselves."""
    known = values[1:][~np.isnan(values[1:])]
    if not len(known):
        return Resampled(float(values[0]), (math.nan, math.nan))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Resampled(float(values[0]), (float(low), float(high)))


def _signs(values: Values) -> Float[np.ndarray, "n n"]:
    # Comparisons rather than differences, because −∞ − (−∞) is NaN.
    above = values[:, None] > values
    return above.astype(float) - above.T


def _form(matrix: Float[np.ndarray, "n n"], weights: Weights) -> Statistic:
    return ((weights @ matrix) * weights).sum(1)


def _ranks(values: Values, weights: Weights) -> Weights:
    """Mid-ranks in every resample, but for a constant."""
    before = (values[:, None] < values) + 0.5 * (values[:, None] == values)
    return weights @ before


def _pearson(x: Weights, y: Weights, weights: Weights) -> Statistic:
    total = weights.sum(1, keepdims=True)
    a, b = (values - (weights * values).sum(1, keepdims=True) / total for values in (x, y))
    products = ((weights * one * other).sum(1) for one, other in ((a, b), (a, a), (b, b)))
    above, left, right = products
    return _ratio(above, left * right)


def _ratio(above: Statistic, square: Statistic) -> Statistic:
    """above/√square; NaN where the square is 0."""
    return np.where(square > 0, above / np.sqrt(np.where(square > 0, square, math.inf)), np.nan)
