"""Successive halving: train many cells a little, keep the best, train those further (Jamieson and Talwalkar, 2016).

The algorithm knows nothing of training. A function measures candidates after a number of epochs; the command gives it
trainings, and :mod:`mamltheory.nas.algorithms.replay` the rows of a table. Optuna's pruner decides about one trial when
that reports, so what it keeps depends on the order in which workers finish; here a rung is ranked as a whole.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy import stats

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.fewshot.statistics import permutation_p_value

Ranking = Literal["accuracy", "loss"]
"""What ranks a rung: few-shot accuracy on the validation classes, or the training loss of the last epoch."""


@dataclass(frozen=True)
class Rung:
    """Part of the search in which all candidates that are left train up to the same epoch.

    Attributes:
        candidates: how many enter.
        epochs: of training in all, those of earlier rungs included.
        by: what ranks them.

    Raises:
        ConfigurationError: a number below 1, or another ranking.
    """

    candidates: int
    epochs: int
    by: Ranking = "accuracy"

    def __post_init__(self) -> None:
        if min(self.candidates, self.epochs) < 1 or self.by not in get_args(Ranking):
            raise ConfigurationError(
                f"a rung of {self.candidates} candidates at epoch {self.epochs} by {self.by!r}: expected numbers "
                "from 1 up, and accuracy or loss"
            )


ROUNDING = 1e-12
"""Relative size below which differences of accuracies are rounding."""

DEFAULT_RUNGS = (Rung(32, 2), Rung(8, 4), Rung(4, 12, "loss"))
"""32 → 8 → 4 candidates at 2, 4 and 12 epochs: 112 epochs, as nine trainings of 12."""


@dataclass(frozen=True)
class Measured:
    """A candidate after some epochs.

    Attributes:
        loss: mean training loss of the last epoch.
        accuracy: few-shot accuracy on the validation classes, a fraction.
        diverged: whether the loss was not finite; such a candidate is last in every ranking.
    """

    loss: float
    accuracy: float
    diverged: bool = False

    def merit(self, by: Ranking) -> float:
        """Larger is better; −∞ for a training that diverged."""
        value = -self.loss if by == "loss" else self.accuracy
        return -math.inf if self.diverged or not math.isfinite(value) else value


def check_rungs(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs; raises ConfigurationError unless candidates fall and epochs grow from rung to rung."""
    if not rungs:
        raise ConfigurationError("there is no rung: give at least one number of candidates and of epochs")
    for one, other in itertools.pairwise(rungs):
        if not other.candidates < one.candidates or not other.epochs > one.epochs:
            raise ConfigurationError(
                f"a rung of {other.candidates} candidates at epoch {other.epochs} follows one of {one.candidates} at "
                f"epoch {one.epochs}: expected fewer candidates and more epochs in every rung"
            )
    return tuple(rungs)


def epochs_of(rungs: Sequence[Rung]) -> int:
    """All epochs that the rungs train, over all candidates."""
    before = (0, *(rung.epochs for rung in rungs))
    return sum(rung.candidates * (rung.epochs - start) for rung, start in zip(rungs, before, strict=False))


def ranked(measured: Sequence[Measured], by: Ranking) -> list[int]:
    """Positions of the candidates, the best first; equal ones in their order."""
    return sorted(range(len(measured)), key=lambda i: -measured[i].merit(by))


def check_trained(measured: Sequence[Measured], rung: Rung, advice: str) -> None:
    """Raise ConfigurationError, whose message ends with an advice, if all trainings of a rung diverged."""
    if all(each.diverged for each in measured):
        raise ConfigurationError(f"all {len(measured)} trainings diverged by epoch {rung.epochs}: {advice}")


def successive_halving(
    count: int, rungs: Sequence[Rung], measure: Callable[[Sequence[int], Rung], Sequence[Measured]]
) -> list[tuple[Rung, list[int]]]:
    """Run the rungs.

    Args:
        count: number of candidates, at least as many as the first rung takes; further ones are not used.
        rungs: with fewer candidates and more epochs each.
        measure: (numbers of candidates, rung) -> what each of them gives after the rung's epochs.

    Returns:
        Every rung with its candidates, the best first. The first candidate of the last rung is what was found.

    Raises:
        ConfigurationError: too few candidates, or rungs in the wrong order.
    """
    rungs = check_rungs(rungs)
    if count < rungs[0].candidates:
        raise ConfigurationError(
            f"the first rung takes {rungs[0].candidates} candidates and there are {count}: draw more, or lower it"
        )
    alive, standings = list(range(count)), []
    for rung in rungs:
        alive = alive[: rung.candidates]
        alive = [alive[i] for i in ranked(measure(alive, rung), rung.by)]
        standings.append((rung, alive))
    return standings


@dataclass(frozen=True)
class Headroom:
    """How much the networks of a rung differ, and what the best of them can be ahead of their mean.

    Attributes:
        deviation: standard deviation of the networks' accuracies beyond the noise of the units, a fraction.
        p_value: of the permutation test that all networks are equally accurate on classes or images such as these.
        most: expected lead of the best of so many networks over their mean, if each were known exactly. Half of it or
            more may be luck of the training.
        luck: the lead that the best would seem to have if all were equally accurate, for there are few units.
    """

    deviation: float
    p_value: float
    most: float
    luck: float

    @property
    def differ(self) -> bool:
        """Whether the networks can be told apart, at 5 %."""
        return self.p_value <= 0.05


def headroom(accuracies: Float[np.ndarray, "networks units"]) -> Headroom:
    """What can be gained by choosing among these networks, which were tested on the same units.

    Two-way analysis of variance: accuracy = mean + network + unit + rest. With U units,
        E[mean square of networks] = σ²_rest + U σ²_network,  E[mean square of the rest] = σ²_rest.
    The p-value needs no normal rest: see :func:`mamltheory.fewshot.statistics.permutation_p_value`.

    Args:
        accuracies: of every network on every unit, at least two of each. Units must be independent, as classes are;
            tasks that share images are not.

    Returns:
        The estimate; its deviation is zero where units explain all differences.

    Raises:
        ShapeError: fewer than two networks or units.
    """
    n, units = accuracies.shape
    if min(n, units) < 2:
        raise ShapeError(f"got {n} networks and {units} units: expected at least two of each")
    networks, columns = accuracies.mean(1), accuracies.mean(0)
    rest = accuracies - networks[:, None] - columns + accuracies.mean()
    squares = units * float(networks.var(ddof=1)), float((rest**2).sum()) / ((n - 1) * (units - 1))
    # Rounding must not pass for a difference where the networks are equal on every unit.
    rounding = units * (ROUNDING * float(np.abs(accuracies).max())) ** 2
    between, within = (0.0 if square <= rounding else square for square in squares)
    p_value = permutation_p_value(accuracies) if between else 1.0
    deviation, lead = math.sqrt(max(0.0, between - within) / units), _expected_maximum(n)
    return Headroom(deviation, p_value, deviation * lead, math.sqrt(within / units) * lead)


def _expected_maximum(count: int) -> float:
    """The expected largest of ``count`` standard normal numbers, by the quantiles of the largest."""
    levels = (np.arange(4096) + 0.5) / 4096
    return float(stats.norm.ppf(levels ** (1 / count)).mean())
