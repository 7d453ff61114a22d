"""Search methods run on a table of trained cells in place of training, thousands of times, in seconds.

A method draws cells without replacement, measures them, and chooses one. Its gain is the accuracy of what it chose less
the mean over all cells of the table, in two readings: of the network that it trained ("kept"), which includes luck of
the training, and of the same cell trained again ("retrained").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.halving import Measured, Rung, successive_halving
from mamltheory.nas.algorithms.surrogate import fit_surrogate
from mamltheory.nas.table import Table, TabledCell, Training
from mamltheory.rng import numpy_generator

BOOTSTRAPS = 100
NORMAL_QUANTILE = 1.96


@dataclass(eq=False)
class Draws:
    """The cells of a table in random order, and what a method has spent on them.

    Attributes:
        cells: in the order in which the method draws them.
        number: of the training that the method sees.
        shots: support images per class of the accuracies.
        seconds: CPU seconds spent so far.
        epochs: epochs trained so far.
    """

    cells: Sequence[TabledCell]
    number: int
    shots: int
    seconds: float = 0.0
    epochs: int = 0

    def __post_init__(self) -> None:
        self._trained = [0] * len(self.cells)
        self._scored = [False] * len(self.cells)

    def train(self, index: int, epochs: int) -> Measured:
        """Train a cell up to an epoch, and measure it; epochs that it has trained already cost nothing.

        Args:
            index: of the cell among those drawn.
            epochs: up to which it is trained, among those of the table.

        Returns:
            What was measured. A training that diverged costs the epochs that the table holds of it.
        """
        training = _training_of(self.cells[index], self.number)
        curve = training.curve
        ended = training.diverged and epochs not in curve.epochs
        reached = max((each for each in curve.epochs if each <= epochs), default=0) if ended else epochs
        before = self._trained[index]
        if reached > before:
            spent = curve.cpu_seconds[curve.at(before)] if before else 0.0
            self.seconds += float(curve.cpu_seconds[curve.at(reached)] - spent)
            self.epochs += reached - before
            self._trained[index] = reached
        if ended:
            return Measured(math.nan, math.nan, True)
        at = curve.at(epochs)
        return Measured(float(curve.loss[at]), float(curve.val[self.shots][at]))

    def score(self, index: int, name: str) -> float:
        """A training-free score, −∞ where it is singular; the first one costs the seconds of all scores of the cell."""
        cell = self.cells[index]
        if name not in cell.scores:
            raise ConfigurationError(
                f"the table has no score {name!r}: expected one of {', '.join(cell.scores)}"
            )
        if not self._scored[index]:
            self.seconds += cell.scoring_seconds
            self._scored[index] = True
        value = float(cell.scores[name].mean())
        return value if math.isfinite(value) else -math.inf


Method = Callable[[Draws], int]
"""Chooses a cell: it returns the index of one of the drawn cells."""


def at_random(draws: Draws) -> int:
    """The first cell that is drawn: what every method is compared with."""
    del draws
    return 0


def best_by_score(name: str, count: int) -> Method:
    """The cell with the largest training-free score.

    Args:
        name: of the score, as in the table.
        count: cells that are drawn and scored.

    Returns:
        The method.
    """
    return best_by_ranks((name,), count)


def best_by_ranks(names: Sequence[str], count: int) -> Method:
    """The cell with the largest sum of ranks, as the paper adds those of C_N and R_N.

    Args:
        names: of the scores, as in the table.
        count: cells that are drawn and scored.

    Returns:
        The method.
    """

    def choose(draws: Draws) -> int:
        rows = [[draws.score(i, name) for i in range(min(count, len(draws.cells)))] for name in names]
        return int(np.argmax(rankdata(rows, axis=1).sum(0)))

    return choose


def by_halving(rungs: Sequence[Rung]) -> Method:
    """Successive halving, as :func:`mamltheory.nas.algorithms.halving.successive_halving` runs it in a search.

    Args:
        rungs: whose epochs are among those of the table.

    Returns:
        The method.
    """

    def choose(draws: Draws) -> int:
        standings = successive_halving(
            len(draws.cells), rungs, lambda alive, rung: [draws.train(i, rung.epochs) for i in alive]
        )
        return standings[-1][1][0]

    return choose


def warm_started(known: Sequence[TabledCell], pool: int, rungs: Sequence[Rung], number: int = 0) -> Method:
    """Halving among the cells that a surrogate, fitted on other cells, predicts to be best.

    Args:
        known: the cells that the surrogate is fitted on; none of them may be drawn.
        pool: cells that are drawn, of which the first rung takes the best predicted.
        rungs: of the halving.
        number: of the training whose final accuracies the surrogate is fitted on.

    Returns:
        The method.
    """
    shots = 1
    accuracies = [final_accuracy(cell, number, shots) for cell in known]
    surrogate = fit_surrogate([cell.genotype for cell in known], accuracies)

    def choose(draws: Draws) -> int:
        count = min(pool, len(draws.cells))
        predicted = surrogate.predict([cell.genotype for cell in draws.cells[:count]])
        chosen = [int(i) for i in np.argsort(-predicted, kind="stable")[: rungs[0].candidates]]
        standings = successive_halving(
            len(chosen), rungs, lambda alive, rung: [draws.train(chosen[i], rung.epochs) for i in alive]
        )
        return chosen[standings[-1][1][0]]

    return choose


def final_accuracy(cell: TabledCell, number: int, shots: int) -> float:
    """Accuracy on the test classes after a training; 0 if it diverged. The table must hold the training."""
    training = _training_of(cell, number)
    if training.diverged:
        return 0.0
    if shots not in training.accuracy:
        raise ConfigurationError(
            f"the table has no accuracy with {shots} shots: expected one of "
            f"{', '.join(map(str, training.accuracy))}"
        )
    return training.accuracy[shots]


def _training_of(cell: TabledCell, number: int) -> Training:
    training = cell.trained(number)
    if training is None:
        raise ConfigurationError(
            f"a cell of the table has no training {number}: take a table with two of each"
        )
    return training


@dataclass(frozen=True)
class Gain:
    """A mean over replays with its 95 % interval over resampled tables, in percentage points."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Replay:
    """What a method gains over random cells of its size.

    Attributes:
        kept: gain of the network that the method trained.
        retrained: gain of the cell that it chose, trained again.
        seconds: CPU seconds of one search, had it been run.
        epochs: epochs that one search trains, over all candidates.
    """

    kept: Gain
    retrained: Gain
    seconds: float
    epochs: float


def replay(
    method: Method,
    table: Table | Sequence[TabledCell],
    draws: int = 2000,
    seed: int = 0,
    shots: int = 1,
    bootstraps: int = BOOTSTRAPS,
) -> Replay:
    """Run a search method on a table many times; deterministic.

    Every draw permutes the cells and takes one of the two trainings for the method's own. The interval is for what a
    table of so many cells leaves uncertain: twice the deviation over tables of cells resampled with replacement. It is
    centred on the gain on the table itself, because repeated cells lower the best of a resampled one.

    Args:
        method: is given the cells in random order, and returns the index of its choice.
        table: the table, or some of its cells; those with two trainings are used.
        draws: number of searches on the table itself.
        seed: of the permutations and the resampling.
        shots: support images per class of the accuracies that are gained.
        bootstraps: resampled tables, each with a tenth of the draws.

    Returns:
        The gains.

    Raises:
        ConfigurationError: fewer than 4 cells have two trainings.

    Example:
        >>> from mamltheory.nas.table import load_table
        >>> found = replay(at_random, load_table(), draws=20, bootstraps=4)
        >>> found.seconds
        0.0
    """
    cells = table.cells if isinstance(table, Table) else tuple(table)
    cells = tuple(cell for cell in cells if cell.trained(0) and cell.trained(1))
    if len(cells) < 4 or draws < 1:
        raise ConfigurationError(
            f"{len(cells)} cells with two trainings and {draws} draws: a replay needs 4 cells and 1 draw"
        )
    gains, costs = _searches(method, cells, draws, numpy_generator(seed, "replay"), shots)
    resampled = []
    for index in range(bootstraps):
        random = numpy_generator(seed, "replay bootstrap", index)
        own = [cells[i] for i in random.integers(len(cells), size=len(cells))]
        resampled.append(_searches(method, own, max(1, draws // 10), random, shots)[0].mean(0))
    width = NORMAL_QUANTILE * np.std(resampled, axis=0, ddof=1) if bootstraps > 1 else np.full(2, math.inf)
    kept, retrained = (
        Gain(float(mean), float(mean - w), float(mean + w))
        for mean, w in zip(gains.mean(0), width, strict=True)
    )
    return Replay(kept, retrained, float(costs[:, 0].mean()), float(costs[:, 1].mean()))


def _searches(
    method: Method, cells: Sequence[TabledCell], draws: int, random: np.random.Generator, shots: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gains (kept, retrained) in points and costs (seconds, epochs), with a row for each search."""
    accuracies = np.array(
        [[100 * final_accuracy(cell, number, shots) for cell in cells] for number in (0, 1)]
    )
    means = accuracies.mean(1)
    gains, costs = np.empty((draws, 2)), np.empty((draws, 2))
    for row in range(draws):
        order, number = random.permutation(len(cells)), int(random.integers(2))
        drawn = Draws([cells[i] for i in order], number, shots)
        chosen = order[method(drawn)]
        gains[row] = [accuracies[k, chosen] - means[k] for k in (number, 1 - number)]
        costs[row] = drawn.seconds, drawn.epochs
    return gains, costs
