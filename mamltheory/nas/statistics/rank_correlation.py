"""Rank correlation of a training-free score with accuracy, compared with that of the number of parameters.

Two things are random: the networks, and the classes (a *pool*) whose images the score sees. Both are resampled:
intervals over networks alone ignore the choice of the pool and are too narrow. A score that follows the number of
parameters predicts accuracy as well as that number does; the difference of the two taus on common draws, and the
partial correlation, show what the score adds.

Scores are networks × pools × initialisations, larger = better. Pure functions on arrays.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import chi2, rankdata

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError

Vector = Float[np.ndarray, " n"]
Batch = Float[np.ndarray, "*b n"]
Statistic = Float[np.ndarray, "*b"]
Scores = Float[np.ndarray, "n p i"]
Components = Sequence[Scores]
"""One array, or several whose ranks are added as Algorithm 1 does."""

LEVEL = 0.95
PAIRS_AT_ONCE = 2**21
"""Pairs of networks that are compared in one array operation."""


def kendall_tau(x: Batch, y: Batch) -> Statistic:
    """Kendall's τ_b along the last axis: concordant minus discordant pairs, over √(pairs untied in x · those in y)."""
    # A network that was drawn twice is tied with itself in both, and counts for nothing.
    _check_finite("x or y", x, y)
    first, second = np.triu_indices(x.shape[-1], 1)
    flat = [values.reshape(-1, x.shape[-1]) for values in (x, y)]
    rows, found = max(1, PAIRS_AT_ONCE // max(len(first), 1)), []
    for start in range(0, len(flat[0]), rows):
        part = [values[start : start + rows] for values in flat]
        a, b = (np.sign(values[:, first] - values[:, second]) for values in part)
        found.append(_ratio((a * b).sum(1), (a**2).sum(1) * (b**2).sum(1)))
    return np.concatenate(found).reshape(x.shape[:-1])


def spearman(x: Batch, y: Batch) -> Statistic:
    """Pearson's correlation of the ranks along the last axis, ties sharing their mean rank; NaN for constants."""
    _check_finite("x or y", x, y)
    return _pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def partial_spearman(x: Batch, y: Batch, given: Batch) -> Statistic:
    """Partial correlation of ranks (ρ_xy − ρ_xz ρ_yz)/√((1 − ρ_xz²)(1 − ρ_yz²)); z is ``given``."""
    xy, xz, yz = spearman(x, y), spearman(x, given), spearman(y, given)
    left = (1 - xz**2) * (1 - yz**2)
    return _ratio(xy - xz * yz, np.where(left > 1e-12, left, 0.0))


def cronbach_alpha(items: Float[np.ndarray, "n k"]) -> float:
    """Reliability of the sum of k ≥ 2 items: k/(k − 1) · (1 − Σ Var(item)/Var(sum)); NaN if the sum is constant."""
    if items.ndim != 2 or items.shape[1] < 2 or len(items) < 2:
        raise ShapeError(f"items have shape {items.shape}: expected networks × items, at least 2 of each")
    _check_finite("items", items)
    total = float(items.sum(1).var(ddof=1))
    share = float(items.var(0, ddof=1).sum()) / total if total > 0 else math.nan
    return items.shape[1] / (items.shape[1] - 1) * (1 - share)


@dataclass(frozen=True)
class ScoreReliability:
    """Cronbach's α over initialisations within a class pool (mean over pools), and over class pools; NaN for one."""

    initialisations: float
    pools: float


def score_reliability(scores: Scores) -> ScoreReliability:
    """The reliability of the means over initialisations, and over pools."""
    _, pools, initialisations = scores.shape
    within = math.nan
    if initialisations > 1:
        within = float(np.mean([cronbach_alpha(scores[:, pool]) for pool in range(pools)]))
    return ScoreReliability(within, cronbach_alpha(scores.mean(2)) if pools > 1 else math.nan)


@dataclass(frozen=True)
class Ceiling:
    """What a perfect score could reach given the randomness of training, from networks trained twice.

    Attributes:
        pairs: number of networks trained twice.
        tau: Kendall's tau between their two accuracies.
        pearson: correlation between them.
        deviation: standard deviation of one accuracy under the randomness of training.
        reliability: share of the variance over all networks that is not this noise.
        highest_rho: expected ρ of the true accuracies, √reliability.
        highest_tau: expected τ of the true accuracies, 2/π · arcsin of ``highest_rho`` (normal).
        highest_tau_interval: its 95 % interval, from the χ² interval of the deviation.
    """

    pairs: int
    tau: float
    pearson: float
    deviation: float
    reliability: float
    highest_rho: float
    highest_tau: float
    highest_tau_interval: tuple[float, float]


def noise_ceiling(accuracy: Vector, again: Float[np.ndarray, " m"], rows: Int[np.ndarray, " m"]) -> Ceiling:
    """Noise ceiling from the accuracies ``again`` of a second training of at least 3 networks ``rows``."""
    # A shift common to all second trainings does not count as noise.
    if len(again) != len(rows) or len(rows) < 3:
        raise ShapeError(
            f"got {len(again)} second accuracies for {len(rows)} networks: give at least 3 pairs"
        )
    _check_finite("accuracies", accuracy, again)
    first = accuracy[rows]
    noise, total = float((again - first).var(ddof=1)) / 2, float(accuracy.var(ddof=1))
    # The variance of the differences follows χ², with one degree of freedom less than there are pairs.
    edges = chi2.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2], len(rows) - 1) / (len(rows) - 1)
    low, high = (_share(noise / float(edge), total) for edge in edges)
    reliability = _share(noise, total)
    tau, pearson = float(kendall_tau(first, again)), float(_pearson(first, again))
    deviation, rho = math.sqrt(noise), math.sqrt(reliability)
    interval = (_normal_tau(math.sqrt(low)), _normal_tau(math.sqrt(high)))
    return Ceiling(len(rows), tau, pearson, deviation, reliability, rho, _normal_tau(rho), interval)


def _share(noise: float, total: float) -> float:
    """Share of a variance that is not noise, at least 0."""
    return max(1 - noise / total, 0.0) if total > 0 else 0.0


def _normal_tau(rho: float) -> float:
    """Kendall's τ of a normal pair of this correlation."""
    return 2 / math.pi * math.asin(rho)


def finite_scores(scores: Scores) -> Scores:
    """Scores with −∞ (a singular kernel) replaced by the least finite score of the same pool and initialisation."""
    if np.isnan(scores).any() or np.isposinf(scores).any():
        raise ValueRangeError(
            "scores contain NaN or +∞: a score must be a number, or −∞ for a singular kernel"
        )
    least = np.where(np.isfinite(scores), scores, np.inf).min(0)
    if np.isinf(least).any():
        raise ValueRangeError(
            "all networks have an infinite score for some pool and initialisation: draw tasks without repeated images"
        )
    return np.maximum(scores, least)


@dataclass(frozen=True, eq=False)
class Resamples:
    """Draws with replacement: which networks, and which class pools."""

    networks: Int[np.ndarray, "d n"]
    pools: Int[np.ndarray, "d p"]

    def with_all_pools(self) -> "Resamples":
        """The same networks, on every pool once."""
        held = np.arange(self.pools.shape[1])
        return replace(self, pools=np.broadcast_to(held, self.pools.shape))


def resamples(networks: int, pools: int, draws: int, random: np.random.Generator) -> Resamples:
    """Draws with replacement.

    Args:
        networks: number of networks, at least 3.
        pools: number of class pools.
        draws: number of draws.
        random: their generator.

    Returns:
        The draws.

    Raises:
        ConfigurationError: for smaller numbers.
    """
    if networks < 3 or pools < 1 or draws < 1:
        raise ConfigurationError(
            f"networks {networks}, pools {pools}, draws {draws}: expected at least 3, 1 and 1"
        )
    chosen = random.integers(networks, size=(draws, networks))
    return Resamples(chosen, random.integers(pools, size=(draws, pools)))


def score_values(components: Components, draws: Resamples | None = None) -> Batch:
    """One number per network: the mean over pools and initialisations, or the sum of the ranks of several means."""
    means = [_drawn_mean(scores, draws) for scores in components]
    return means[0] if len(means) == 1 else np.sum([rankdata(mean, axis=-1) for mean in means], 0)


def _drawn_mean(scores: Scores, draws: Resamples | None) -> Batch:
    by_pool = scores.mean(2)
    centre, pools = by_pool.mean(1), scores.shape[1]
    if draws is None:
        return centre
    if pools == 1:
        return centre[draws.networks]
    # Draws of P pools are too narrow by √((P − 1)/P): deviations from the mean over all pools are widened.
    counts = np.stack([(draws.pools == pool).sum(1) for pool in range(pools)], 1)
    wider = math.sqrt(pools / (pools - 1)) * (counts - 1) / pools  # a share of 1/P each leaves the centre
    return np.take_along_axis(centre + wider @ by_pool.T, draws.networks, 1)


@dataclass(frozen=True)
class Estimate:
    """A statistic, its 95 % bootstrap interval over networks and class pools, and the one over networks alone."""

    value: float
    interval: tuple[float, float]
    networks_alone: tuple[float, float]


@dataclass(frozen=True)
class Validity:
    """How well a score predicts accuracy.

    Attributes:
        tau: Kendall's τ.
        rho: Spearman's ρ.
        partial: ρ given the size.
        ahead: τ minus the τ of the size.
        tau_by_pool: τ of every class pool alone.
    """

    tau: Estimate
    rho: Estimate
    partial: Estimate
    ahead: Estimate
    tau_by_pool: tuple[float, ...]


def score_validity(
    scores: Mapping[str, Components],
    accuracy: Vector,
    size: Vector,
    random: np.random.Generator,
    draws: int = 1000,
) -> dict[str, Validity]:
    """Validity of every score on the same draws of networks and pools, so that differences are paired.

    Args:
        scores: by name.
        accuracy: of every network.
        size: of every network, such as log parameters.
        random: generator of the draws.
        draws: number of draws.

    Returns:
        The validity by name.
    """
    pools = max(each[0].shape[1] for each in scores.values())
    both = resamples(len(accuracy), pools, draws, random)
    sets = (None, both, both.with_all_pools())
    found = {}
    for name, components in scores.items():
        tau, rho, partial, ahead = (
            _estimate(components, each, accuracy, size, sets)
            for each in (_tau, _rho, partial_spearman, _ahead)
        )
        by_pool = tuple(_tau_of_pool(components, accuracy, pool) for pool in range(pools))
        found[name] = Validity(tau, rho, partial, ahead, by_pool)
    return found


def _tau(values: Batch, accuracy: Batch, _: Batch) -> Statistic:
    return kendall_tau(values, accuracy)


def _rho(values: Batch, accuracy: Batch, _: Batch) -> Statistic:
    return spearman(values, accuracy)


def _ahead(values: Batch, accuracy: Batch, size: Batch) -> Statistic:
    return np.asarray(kendall_tau(values, accuracy) - kendall_tau(size, accuracy))


def _estimate(
    components: Components,
    statistic: Callable[[Batch, Batch, Batch], Statistic],
    accuracy: Vector,
    size: Vector,
    sets: Sequence[Resamples | None],
) -> Estimate:
    """A statistic, without draws for its value, with draws of networks and pools, and with draws of networks alone."""
    found = []
    for draws in sets:
        rows = ... if draws is None else draws.networks
        found.append(statistic(score_values(components, draws), accuracy[rows], size[rows]))
    return Estimate(float(found[0]), _interval(found[1]), _interval(found[2]))


def _tau_of_pool(components: Components, accuracy: Vector, pool: int) -> float:
    alone = [scores[:, [pool]] if scores.shape[1] > 1 else scores for scores in components]
    return float(kendall_tau(score_values(alone), accuracy))


def _interval(values: Float[np.ndarray, " d"]) -> tuple[float, float]:
    """Central interval of the values that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _pearson(x: Batch, y: Batch) -> Statistic:
    a, b = (values - values.mean(-1, keepdims=True) for values in (x, y))
    return _ratio((a * b).sum(-1), (a**2).sum(-1) * (b**2).sum(-1))


def _ratio(above: np.ndarray | float, square: np.ndarray | float) -> np.ndarray:
    """above/√square; NaN where the square is 0."""
    above, square = np.asarray(above, float), np.asarray(square, float)
    return np.asarray(np.where(square > 0, above / np.sqrt(np.where(square > 0, square, math.inf)), np.nan))


def _check_finite(name: str, *arrays: np.ndarray) -> None:
    if not all(np.isfinite(values).all() for values in arrays):
        raise ValueRangeError(
            f"{name} contain NaN or infinite numbers: see finite_scores for singular kernels"
        )
