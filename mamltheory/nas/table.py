"""A table of trained cells of one size: search methods are tried on it in seconds.

The command ``tabulate`` makes such a table, and :func:`load_table` reads one. The package holds one of random
cells on the embedded glyphs. All cells lie in one band of parameters, so that nothing in it is explained by size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from mamltheory.errors import CheckpointError, ConfigurationError, GenotypeError
from mamltheory.files import reason, shown
from mamltheory.nas.genotype import Genotype
from mamltheory.strict_json import misfit, read_json_file

TABLE_FILE = "table.json"
EMBEDDED_TABLE = "table_glyphs.json"
MOST_BYTES = 3 * 2**20
DIGITS = 6


@dataclass(frozen=True, eq=False)
class Curve:
    """What a training gave after some of its epochs.

    Attributes:
        epochs: numbers of finished epochs, increasing.
        loss: mean cross-entropy over each of these epochs, in nats.
        train_accuracy: share of the augmented training images that were recognised in each of these epochs.
        val: few-shot accuracy on the validation classes by number of shots, a fraction.
        test: the same on the test classes.
        cpu_seconds: CPU seconds of the training up to there.
    """

    epochs: tuple[int, ...]
    loss: np.ndarray
    train_accuracy: np.ndarray
    val: Mapping[int, np.ndarray]
    test: Mapping[int, np.ndarray]
    cpu_seconds: np.ndarray

    def at(self, epoch: int) -> int:
        """The position of an epoch; raises ConfigurationError if nothing was recorded after it."""
        if epoch not in self.epochs:
            raise ConfigurationError(
                f"the table holds nothing after epoch {epoch}: expected one of {', '.join(map(str, self.epochs))}"
            )
        return self.epochs.index(epoch)


@dataclass(frozen=True, eq=False)
class Training:
    """One training of a cell's network.

    Attributes:
        number: of the training; other numbers have other weights, order and augmentation.
        factor: of width and epochs; 1 for the table's own scale.
        parameters: of the network.
        macs: multiply-accumulates for one image.
        curve: its course, up to where it diverged if it did.
        accuracy: final few-shot accuracy on the test classes by number of shots, by a logistic head; NaN if it
            diverged.
        diverged: whether its loss was not finite.
        scores: kernel scores of the network in training by epoch and name; larger is better, NaN where singular.
    """

    number: int
    factor: int
    parameters: int
    macs: int
    curve: Curve
    accuracy: Mapping[int, float]
    diverged: bool
    scores: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, eq=False)
class TabledCell:
    """A genotype, its scores at initialisation and its trainings.

    Attributes:
        genotype: the cells.
        trainings: of its networks, at least one.
        scores: training-free scores by name, one number per pool of images; larger is better, NaN where singular.
        scoring_seconds: CPU seconds of all these scores.
    """

    genotype: Genotype
    trainings: tuple[Training, ...]
    scores: Mapping[str, np.ndarray]
    scoring_seconds: float

    def trained(self, number: int = 0, factor: int = 1) -> Training | None:
        """The training of this number and factor, or None if the table lacks it."""
        found = (each for each in self.trainings if (each.number, each.factor) == (number, factor))
        return next(found, None)


@dataclass(frozen=True, eq=False)
class Table:
    """Trained cells of one band of size.

    Attributes:
        settings: with which the table was made.
        cells: the cells, in the order in which they were drawn.
    """

    settings: Mapping[str, Any]
    cells: tuple[TabledCell, ...]

    def having(self, trainings: Iterable[tuple[int, int]]) -> tuple[TabledCell, ...]:
        """The cells that have all of these trainings.

        Args:
            trainings: pairs of (number, factor).

        Returns:
            The cells, in the order of the table.
        """
        wanted = tuple(trainings)
        return tuple(cell for cell in self.cells if all(cell.trained(*each) for each in wanted))


class _Training(TypedDict):
    training: Annotated[int, 0]
    factor: Annotated[int, 1]
    parameters: Annotated[int, 1]
    macs: Annotated[int, 1]
    diverged: bool
    epoch: list[int]
    loss: list[float]
    train_accuracy: list[float]
    val: dict[str, list[float]]
    test: dict[str, list[float]]
    cpu_seconds: list[float]
    accuracy: NotRequired[dict[str, float]]
    trained_scores: NotRequired[dict[str, dict[str, float | None]]]


class _Cell(TypedDict):
    genotype: dict[str, object]
    trainings: list[_Training]
    scores: dict[str, list[float | None]]
    scoring_cpu_seconds: float


class _Table(TypedDict):
    settings: dict[str, object]
    cells: list[_Cell]


def table_of(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of a table, from the records of single trainings.

    Args:
        settings: with which they were measured.
        records: of ``tabulate``.

    Returns:
        JSON values that :func:`table_from` reads; cells whose scores are missing are left out.
    """
    cells: dict[int, dict[str, Any]] = {}
    for record in records:
        cell = cells.setdefault(record["network"], {"genotype": record["genotype"], "trainings": []})
        if "scores" in record:
            cell |= {name: record[name] for name in ("scores", "scoring_cpu_seconds")}
        points = record["checkpoints"]
        names = ("training", "factor", "parameters", "macs", "diverged", "accuracy", "trained_scores")
        row = {name: record[name] for name in names if name in record}
        row["epoch"] = [point["epoch"] for point in points]
        for name in ("loss", "train_accuracy", "cpu_seconds"):
            row[name] = [point[name] for point in points]
        for name in ("val", "test"):
            shots = points[0][name] if points else ()
            row[name] = {k: [point[name][k] for point in points] for k in shots}
        cell["trainings"].append(row)
    for cell in cells.values():
        cell["trainings"].sort(key=lambda row: (row["factor"], row["training"]))
    complete = [cells[index] for index in sorted(cells) if "scores" in cells[index]]
    return _rounded({"settings": dict(settings), "cells": complete})


def _rounded(value: Any) -> Any:
    """Floats with six digits, which are more than their noise leaves."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def load_table(path: Path | str | None = None) -> Table:
    """Read a table of trained cells.

    Args:
        path: a file of ``tabulate``; None for the table of glyphs in this package.

    Returns:
        The table.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.

    Example:
        >>> table = load_table()
        >>> len(table.cells) >= 150
        True
    """
    file = Path(path) if path is not None else Path(str(resources.files("mamltheory.nas") / EMBEDDED_TABLE))
    try:
        return table_from(read_json_file(file, MOST_BYTES))
    except OSError as error:
        raise CheckpointError(
            f"cannot read the table {file}: {reason(error)}; name a file of `tabulate`"
        ) from None
    except (ValueError, GenotypeError) as error:
        raise CheckpointError(
            f"{file} holds no table of cells: {reason(error)}; name a file of `tabulate`"
        ) from None


def table_from(content: object) -> Table:
    """The table in JSON values; raises ValueError or GenotypeError for anything else."""
    wrong = misfit(content, _Table, "the table")
    if wrong or not isinstance(content, dict):
        raise ValueError(wrong)
    return Table(content["settings"], tuple(_cell(each) for each in content["cells"]))


def _cell(cell: Mapping[str, Any]) -> TabledCell:
    scores = {name: np.array([_number(v) for v in values]) for name, values in cell["scores"].items()}
    trainings = tuple(_training(each) for each in cell["trainings"])
    return TabledCell(Genotype.from_json(cell["genotype"]), trainings, scores, cell["scoring_cpu_seconds"])


def _training(row: Mapping[str, Any]) -> Training:
    series = [
        row["loss"],
        row["train_accuracy"],
        row["cpu_seconds"],
        *row["val"].values(),
        *row["test"].values(),
    ]
    if any(len(each) != len(row["epoch"]) for each in series):
        raise ValueError(f"a training has {len(row['epoch'])} epochs and series of other lengths")
    if row["epoch"] != sorted(set(row["epoch"])):
        raise ValueError(f"a training has the epochs {shown(row['epoch'])}: expected them to increase")
    if not row["diverged"] and not row.get("accuracy"):
        raise ValueError("a training that did not diverge lacks its final accuracy")
    val, test = ({int(k): _series(v) for k, v in row[name].items()} for name in ("val", "test"))
    curve = Curve(
        tuple(row["epoch"]),
        _series(row["loss"]),
        _series(row["train_accuracy"]),
        val,
        test,
        _series(row["cpu_seconds"]),
    )
    accuracy = {int(k): float(v) for k, v in row.get("accuracy", {}).items()}
    scores = {
        int(epoch): {name: _number(value) for name, value in each.items()}
        for epoch, each in row.get("trained_scores", {}).items()
    }
    return Training(
        row["training"],
        row["factor"],
        row["parameters"],
        row["macs"],
        curve,
        {1: math.nan, 5: math.nan} if row["diverged"] else accuracy,
        row["diverged"],
        scores,
    )


def _series(values: Sequence[float | int | str]) -> np.ndarray:
    return np.array(values, dtype=float)  # also of "inf" and "nan", as JSON holds them


def _number(value: float | int | str | None) -> float:
    return math.nan if value is None else float(value)
