"""What a table of cells of one size says about scores, early training and scale, in numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import rankdata

from mamltheory.nas.algorithms.halving import Ranking
from mamltheory.nas.algorithms.replay import final_accuracy
from mamltheory.nas.algorithms.surrogate import FEWEST
from mamltheory.nas.statistics.rank_correlation import Ceiling, noise_ceiling, score_reliability
from mamltheory.nas.statistics.resampled_ranks import Association, associate, bootstrap_weights, holm
from mamltheory.nas.table import Table, TabledCell, Training
from mamltheory.rng import numpy_generator

SHOTS = 1
BOTH = ((0, 1), (1, 1))
"""Two trainings at the table's own scale."""
DOUBLED = ((0, 1), (0, 2))
"""A training at this scale, and one at twice the width and twice the epochs."""
FEWEST_CELLS = 2 * FEWEST
"""Each half of the cells must suffice for a surrogate."""
SUMS = {"paper": ("maml condition", "regions"), "te-nas": ("ntk condition", "regions")}
Column = np.ndarray
Cells = Sequence[TabledCell]
Group = Literal["size", "training-free", "accuracy", "loss"]


@dataclass(frozen=True)
class Predictor:
    """A quantity that is known before the end of a training, and what it says about final accuracy.

    Attributes:
        group: of what kind it is.
        name: of the score, or the number of epochs.
        seconds: mean CPU seconds until it is known.
        network: with the final accuracy of training 0, which early training follows; the partial is given log
            parameters.
        mean: with the mean of both trainings.
        other: with the final accuracy of training 1.
        adjusted: Holm's p of the τ with the mean, among all training-free scores; NaN for other groups.
        reliability: Cronbach's α over pools of classes; NaN for other groups.
    """

    group: Group
    name: str
    seconds: float
    network: Association
    mean: Association
    other: Association
    adjusted: float = math.nan
    reliability: float = math.nan


@dataclass(frozen=True)
class KernelScore:
    """A kernel score of a network in training, and the final accuracy of this training.

    Attributes:
        epoch: after which it was taken.
        name: of the score.
        every: on all scored cells; the partial is given few-shot accuracy of this epoch, at epoch 0 log parameters.
        even: on the cells at even positions of the table.
        odd: on the others.
        tau_adjusted: Holm's p of the τ on all cells, among all scores and epochs.
        partial_adjusted: the same of the partial correlation.
    """

    epoch: int
    name: str
    every: Association
    even: Association
    odd: Association
    tau_adjusted: float
    partial_adjusted: float


@dataclass(frozen=True)
class TableFindings:
    """What goes with final accuracy; parts for which the table has too few cells are empty."""

    cells: int
    diverged: int
    noise: Ceiling
    between: float
    predictors: Sequence[Predictor]
    kernels: Sequence[KernelScore]
    few_shot: Mapping[int, Association]
    scale: Mapping[str, Association]
    scale_cells: int
    scored_cells: int


def table_findings(table: Table, draws: int, seed: int) -> TableFindings:
    """What goes with final accuracy among the cells of a table.

    Args:
        table: with at least 16 cells that were trained twice.
        draws: resamples of the cells.
        seed: of the resamples.

    Returns:
        The numbers.
    """
    cells = table.having(BOTH)
    finals = np.array([accuracies(cells, number) for number in (0, 1)])
    sound = (finals > 0).all(0)
    noise = noise_ceiling(finals[0, sound], finals[1, sound], np.arange(sound.sum()))
    variance = float(finals[:, sound].var(1, ddof=1).mean())
    scored = tuple(cell for cell in table.cells if (run := cell.trained(0)) and run.scores)
    doubled = table.having(DOUBLED)
    kernels, few_shot = kernel_scores(table, draws, seed)
    return TableFindings(
        cells=len(cells),
        diverged=int((finals == 0).sum()),
        noise=noise,
        between=math.sqrt(max(0.0, variance - noise.deviation**2)),
        predictors=predictors(cells, draws, seed),
        kernels=kernels,
        few_shot=few_shot,
        scale=across_scales(doubled, draws, seed),
        scale_cells=len(doubled),
        scored_cells=len(scored),
    )


def accuracies(cells: Cells, number: int = 0, factor: int = 1) -> Column:
    """Final accuracies; 0 for a training that diverged."""
    if factor == 1:
        return np.array([final_accuracy(cell, number, SHOTS) for cell in cells])
    runs = [_run(cell, number, factor) for cell in cells]
    return np.array([0.0 if run.diverged else run.accuracy[SHOTS] for run in runs])


def _run(cell: TabledCell, number: int = 0, factor: int = 1) -> Training:
    found = cell.trained(number, factor)
    assert found is not None, "the cells were chosen to have it"
    return found


def during(cells: Cells, epoch: int, by: Ranking) -> Column:
    """Few-shot accuracy or minus the loss of training 0 after an epoch; −∞ if it had diverged."""
    found = []
    for curve in (_run(cell).curve for cell in cells):
        known = epoch in curve.epochs
        series = curve.val[SHOTS] if by == "accuracy" else -curve.loss
        found.append(float(series[curve.at(epoch)]) if known else -math.inf)
    return np.array(found)


def epochs_of_table(cells: Cells) -> tuple[int, ...]:
    """The recorded epochs of a training that did not diverge."""
    return max((_run(cell).curve.epochs for cell in cells), key=len)


def sizes(cells: Cells) -> Column:
    """Log parameters."""
    return np.log([_run(cell).parameters for cell in cells])


def predictors(cells: Cells, draws: int, seed: int) -> list[Predictor]:
    """What was known at initialisation and during training 0, against final accuracy."""
    weights = bootstrap_weights(len(cells), draws, numpy_generator(seed, "table bootstrap"))
    finals = [accuracies(cells, number) for number in (0, 1)]
    targets, size = (finals[0], (finals[0] + finals[1]) / 2, finals[1]), sizes(cells)
    rows = []
    for group, name, seconds, values in quantities(cells):
        found = [associate(values, target, size, weights) for target in targets]
        rows.append(Predictor(group, name, seconds, *found))
    free = {row.name: row.mean.tau_p for row in rows if row.group == "training-free"}
    adjusted, pools = holm(free), pool_scores(cells)
    return [
        Predictor(
            **{name: getattr(row, name) for name in ("group", "name", "seconds", "network", "mean", "other")},
            adjusted=adjusted[row.name],
            reliability=_reliability(pools, row.name),
        )
        if row.group == "training-free"
        else row
        for row in rows
    ]


def quantities(cells: Cells) -> Iterator[tuple[Group, str, float, Column]]:
    """(group, name, CPU seconds, one number per cell; larger is better) of all that is tried."""
    yield "size", "parameters", 0.0, sizes(cells)
    yield "size", "macs", 0.0, np.log([_run(cell).macs for cell in cells])
    seconds, pools = float(np.mean([cell.scoring_seconds for cell in cells])), pool_scores(cells)
    means = {name: values.mean(1) for name, values in pools.items()}
    for name, values in means.items():
        yield "training-free", name, seconds, values
    for name, parts in SUMS.items():
        if {*parts} <= means.keys():
            yield "training-free", name, seconds, np.sum([rankdata(means[part]) for part in parts], 0)
    whole = [cell for cell in cells if not _run(cell).diverged]
    for by in ("accuracy", "loss"):
        for epoch in epochs_of_table(cells):
            spent = [_run(cell).curve.cpu_seconds[_run(cell).curve.at(epoch)] for cell in whole]
            yield by, str(epoch), float(np.mean(spent)), during(cells, epoch, by)


def pool_scores(cells: Cells) -> dict[str, np.ndarray]:
    """Scores at initialisation by name, cells × pools; −∞ where singular."""
    found = {name: np.array([cell.scores[name] for cell in cells]) for name in cells[0].scores}
    return {name: np.where(np.isnan(values), -np.inf, values) for name, values in found.items()}


def _reliability(pools: Mapping[str, np.ndarray], name: str) -> float:
    parts = [pools[part] for part in SUMS.get(name, (name,))]
    values = parts[0] if len(parts) == 1 else np.sum([rankdata(each, axis=0) for each in parts], 0)
    return score_reliability(values[:, :, None]).pools if np.isfinite(values).all() else math.nan


def kernel_scores(table: Table, draws: int, seed: int) -> tuple[list[KernelScore], dict[int, Association]]:
    """Kernel scores of networks in training, and few-shot accuracy of the same networks at the same epochs."""
    places = [i for i, cell in enumerate(table.cells) if (run := cell.trained(0)) and run.scores]
    cells = [table.cells[i] for i in places]
    if len(cells) < FEWEST_CELLS:
        return [], {}
    random = numpy_generator(seed, "table kernels")
    even = np.array([place % 2 == 0 for place in places])
    parts = {"every": np.full(len(cells), True), "even": even, "odd": ~even}
    weights = {name: bootstrap_weights(int(part.sum()), draws, random) for name, part in parts.items()}
    final, size = accuracies(cells), sizes(cells)
    rows: list[tuple[int, str, dict[str, Association]]] = []
    few_shot = {}
    for epoch in max((_run(cell).scores for cell in cells), key=len):
        given = during(cells, epoch, "accuracy") if epoch else size
        if epoch:
            few_shot[epoch] = associate(given, final, size, weights["every"])
        for name in next(iter(_run(cells[0]).scores.values())):
            raw = np.array([_run(cell).scores.get(epoch, {}).get(name, math.nan) for cell in cells])
            values = np.where(np.isnan(raw), -np.inf, raw)
            found = {
                kind: associate(values[part], final[part], given[part], weights[kind])
                for kind, part in parts.items()
            }
            rows.append((epoch, name, found))
    taus = holm({f"{epoch} {name}": found["every"].tau_p for epoch, name, found in rows})
    partials = holm({f"{epoch} {name}": found["every"].partial_p for epoch, name, found in rows})
    listed = [
        KernelScore(epoch, name, **found, tau_adjusted=taus[key], partial_adjusted=partials[key])
        for epoch, name, found in rows
        for key in (f"{epoch} {name}",)
    ]
    return listed, few_shot


def chosen_kernel(kernels: Sequence[KernelScore]) -> KernelScore:
    """The score with the largest partial correlation, whatever its sign, on the even cells."""
    return max(kernels, key=lambda row: abs(np.nan_to_num(row.even.partial.value)))


def across_scales(cells: Cells, draws: int, seed: int) -> dict[str, Association]:
    """What a training at the table's scale says about one at twice the width and twice the epochs."""
    if len(cells) < FEWEST_CELLS:
        return {}
    weights = bootstrap_weights(len(cells), draws, numpy_generator(seed, "table scales"))
    large, size, first = accuracies(cells, 0, 2), sizes(cells), accuracies(cells)
    columns = {f"val {epoch}": during(cells, epoch, "accuracy") for epoch in epochs_of_table(cells)}
    columns["final"] = first
    if all(cell.trained(1) for cell in cells):
        second = accuracies(cells, 1)
        columns["mean"] = (first + second) / 2
    found = {name: associate(values, large, size, weights) for name, values in columns.items()}
    if "mean" in found:
        found["same scale"] = associate(first, second, size, weights)
    return found
