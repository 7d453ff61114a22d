"""Statistics of accuracies: intervals over tasks, deviations over runs, and the comparison of two methods.

Tasks that are drawn from the same images overlap: :func:`unit_accuracies` puts independent units in their place.

The tasks of one trained network and the runs of a method are two levels. An interval over tasks is about one
network. A statement about a method needs several runs, each with its search, training and evaluation.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from mamltheory.errors import ShapeError
from mamltheory.fewshot.episodes import Episode
from mamltheory.intervals import Interval, mean_interval
from mamltheory.rng import numpy_generator

PATTERNS = 2**16
"""The most sign patterns of a test."""
PERMUTATIONS, TOGETHER = 999, 32
"""The most permutations of a test of several networks, and how many of them are computed at once."""


@dataclass(frozen=True)
class Spread:
    """Mean over runs, the standard deviation of a single run (None for one run), and how many there are."""

    mean: float
    deviation: float | None
    runs: int


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a first method minus that of a second one; the runs are the samples.

    Attributes:
        differences: for every run, the mean over the tasks that both networks solved.
        task_errors: the standard error of each difference over its tasks.
        interval: mean of the differences with the t interval over runs.
        p_value: two-sided, of the sign-flip test, exact for up to 16 runs; with n runs it is at least
            ``least_p_value`` = 2^(1-n), so three runs never reach 5 %.
    """

    differences: tuple[float, ...]
    task_errors: tuple[float, ...]
    interval: Interval
    p_value: float

    @property
    def least_p_value(self) -> float:
        """The smallest p-value that so many runs can give."""
        return 2.0 ** (1 - len(self.differences))

    @property
    def t_p_value(self) -> float:
        """Two-sided p-value of Student's t test over the runs; it assumes normal differences, as the interval does."""
        mean, error = abs(self.interval.mean), float(stats.sem(np.array(self.differences)))
        if error == 0:
            return float(mean == 0)
        return float(2 * stats.t.sf(mean / error, len(self.differences) - 1))

    @property
    def shown(self) -> bool:
        """Whether the interval over runs excludes zero."""
        return abs(self.interval.mean) > self.interval.half_width

    @property
    def run_deviation(self) -> float:
        """Standard deviation of the difference between runs, beyond what the choice of tasks explains."""
        beyond = float(np.var(self.differences, ddof=1) - np.mean(np.square(self.task_errors)))
        return float(np.sqrt(max(beyond, 0.0)))


def over_runs(values: Sequence[int | float]) -> Spread:
    """Mean and standard deviation (n-1) over runs, which the tables of the paper print after ±."""
    if not len(values):
        raise ShapeError("got no runs: a mean needs at least one")
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def compare_runs(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> Comparison:
    """Return the comparison of two methods over runs.

    Args:
        first: for every run, the accuracies of one method on its tasks.
        second: the accuracies of the other method on the same tasks in the same order.

    Raises:
        ShapeError: the runs or their tasks do not pair up, or there is only one run.
    """
    shapes = [np.shape(a) == np.shape(b) for a, b in zip(first, second, strict=False)]
    if len(first) != len(second) or not all(shapes):
        raise ShapeError(
            f"got {len(first)} and {len(second)} runs, with tasks {[len(a) for a in first]} and "
            f"{[len(b) for b in second]}: give both methods' accuracies on the same tasks of each run"
        )
    pairs = [np.asarray(a) - np.asarray(b) for a, b in zip(first, second, strict=True)]
    differences = np.array([pair.mean() for pair in pairs])
    errors = tuple(float(stats.sem(pair)) for pair in pairs)
    interval = mean_interval(differences)  # first, for it refuses a single run
    return Comparison(tuple(differences.tolist()), errors, interval, sign_flip_p_value(differences))


def compare_networks(first: np.ndarray, second: np.ndarray) -> Interval:
    """Return the mean accuracy of some networks minus that of others, with an interval over networks and tasks.

    The variances of both means over networks and of the difference over tasks are added, with Welch's degrees of
    freedom. A single network is not a sample: the interval is then about that network.

    Args:
        first: accuracies of one or more networks, networks × tasks.
        second: accuracies of at least two others on the same tasks, networks × tasks.

    Raises:
        ShapeError: the tasks differ in number, or there are too few networks or tasks.
    """
    if first.shape[1] != second.shape[1] or not len(first) or len(second) < 2 or first.shape[1] < 2:
        raise ShapeError(
            f"got accuracies of shapes {first.shape} and {second.shape}: expected at least one network and two others, "
            "each on the same two or more tasks"
        )
    samples = [group.mean(axis=1) for group in (first, second) if len(group) > 1]
    difference = first.mean(axis=0) - second.mean(axis=0)
    parts = np.array([stats.sem(each) ** 2 for each in (*samples, difference)])
    freedom = np.array([len(each) - 1 for each in (*samples, difference)])
    total = parts.sum()
    half = stats.t.ppf(0.975, total**2 / (parts**2 / freedom).sum()) * np.sqrt(total) if total else 0.0
    return Interval(float(difference.mean()), float(half))


def unit_accuracies(
    hits: Bool[np.ndarray, "tasks ways queries"], episodes: Sequence[Episode], members: Sequence[Sized]
) -> Float[np.ndarray, " units"]:
    """The contributions of independent units to the accuracy on overlapping tasks, as jackknife pseudo-values.

    The units are the classes, or the images where every task has all classes. A thousand tasks know no more than the
    classes or images from which they are drawn. Let θ be the accuracy, and θ₋ᵢ that of all answers in which unit i
    takes no part, neither as support nor as query. One of K classes has the pseudo-value θ + (K - 1)(θ - θ₋ᵢ), and one
    of n images in one of K classes θ + K(n - 1)(θ - θ₋ᵢ). The variance of their mean estimates that of θ.

    Args:
        hits: whether each query of each task is classified correctly.
        episodes: the tasks.
        members: the images of every class.

    Returns:
        One fraction per unit, which may be below 0 or above 1. A unit in all tasks, or in none, has θ.
    """
    if hits.shape[1] < len(members):
        inside = np.zeros((len(members), len(hits)), bool)
        for task, episode in enumerate(episodes):
            inside[episode.classes, task] = True
        accuracies = hits.mean((1, 2))
        whole, left = accuracies.mean(), (~inside).sum(1)
        without = np.where(left > 0, (~inside) @ accuracies / np.maximum(left, 1), whole)
        return whole + (len(members) - 1) * (whole - without)
    whole, without = _without_each_image(hits, episodes, sum(map(len, members)))
    values = np.empty(len(without))
    for row in members:
        rows = np.asarray(row)
        values[rows] = whole + len(members) * (len(rows) - 1) * (whole - without[rows])
    return values


def _without_each_image(
    hits: np.ndarray, episodes: Sequence[Episode], images: int
) -> tuple[float, np.ndarray]:
    """The accuracy, and for every image that of the answers in which it takes no part; all classes count alike."""
    order = [np.argsort(each.classes) for each in episodes]
    support, query = (
        np.stack([getattr(each, name)[rows] for each, rows in zip(episodes, order, strict=True)])
        for name in ("support", "query")
    )
    hits = np.stack([each[rows] for each, rows in zip(hits, order, strict=True)])
    tasks, ways, queries = hits.shape
    supports = np.bincount(support.ravel(), minlength=images)  # tasks with the image among the support
    parts = []
    for way in range(ways):
        asked = np.bincount(query[:, way].ravel(), minlength=images)
        right = np.bincount(query[:, way].ravel(), hits[:, way].ravel(), images)
        lost = np.bincount(support.ravel(), np.repeat(hits[:, way].sum(1), support[0].size), images)
        left = tasks * queries - queries * supports - asked
        mean = hits[:, way].mean()
        parts.append(np.where(left > 0, (hits[:, way].sum() - lost - right) / np.maximum(left, 1), mean))
    return float(hits.mean()), np.mean(parts, axis=0)


def permutation_p_value(values: Float[np.ndarray, "networks units"]) -> float:
    """The p-value of the hypothesis that all networks are equally good, by permutations of them within every unit.

    Under the hypothesis the numbers of a unit could as well belong to the networks in another order. The statistic is
    the variance of the networks' means; for two networks this is :func:`sign_flip_p_value`. All orders are taken if
    there are at most ``PERMUTATIONS``. Otherwise as many are drawn, always the same ones, and the observed order counts
    as one more. So the p-value is never zero, and never below 1/(networks!)^(units - 1).

    Args:
        values: contributions of independent units to the accuracy of every network, at least two of each.

    Returns:
        The p-value.
    """

    def variance(*rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(np.var([row.mean(axis) for row in rows], axis=0))

    found = stats.permutation_test(
        tuple(values),
        variance,
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=TOGETHER,
        rng=numpy_generator(0, "permutations"),
    )
    return float(found.pvalue)


def sign_flip_p_value(differences: np.ndarray) -> float:
    """Return twice the share of sign patterns whose mean is at least as far on the observed side, and at most 1.

    The only assumption is that a difference is as likely to be -d as d if the methods are equal. All 2ⁿ patterns are
    taken for up to 16 differences, which is exact; beyond, as many are drawn at random, always the same ones.
    """
    found = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=PATTERNS,
        rng=numpy_generator(0, "sign flips"),
    )
    return float(found.pvalue)
