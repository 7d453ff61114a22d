"""The measurements in the finished runs of a table, with their run folders."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.fewshot.statistics import Comparison, Spread, compare_runs, over_runs
from mamltheory.runtime.records import sha256
from mamltheory.runtime.runlog import RUN_FILE
from mamltheory.strict_json import misfit

from ..training.evaluate import accuracies_of
from .pipeline import (
    Run,
    finished_evaluation,
    finished_run,
    runs_of,
    search_settings,
    train_settings,
)
from .settings import CELLS, CONTROLLED, ONE_SIZE, SIZED, Experiment, Method, Table


class _Spent(TypedDict):
    cpu_seconds: NotRequired[Annotated[float, 0] | None]


class _Search(TypedDict):
    """The keys of the record of a search that are read."""

    environment: dict[str, object]
    results: _Spent
    starts: int
    started: str
    ended: str


@dataclass(frozen=True)
class Measured:
    """The measurements of one run.

    Attributes:
        run: The run.
        evaluations: Results of the evaluation by number of shots.
        parameters: Number of parameters, if known.
        search_seconds: Duration of the search, if known.
        sources: Run folders and the SHA-256 of their records, by stage.
    """

    run: Run
    evaluations: dict[int, dict[str, Any]]
    parameters: int | None
    search_seconds: float | None
    sources: dict[str, dict[str, str]]

    def accuracies(self, shots: int) -> np.ndarray:
        """The accuracy on every task."""
        return accuracies_of(self.evaluations[shots])


@dataclass(frozen=True)
class Results:
    """The measurements in the run folders of a table."""

    settings: Table
    measured: tuple[Measured, ...]

    def of(self, experiment: Experiment, method: Method, shots: int | None = None) -> list[Measured]:
        """The runs of a method by seed; with ``shots``, those that were evaluated on that number."""
        return [
            m
            for m in self.measured
            if (m.run.experiment, m.run.method) == (experiment, method)
            and (shots is None or shots in m.evaluations)
        ]

    def by_seed(self, experiment: Experiment, method: Method, shots: int) -> dict[int, list[Measured]]:
        """The evaluated cells of every run of a method, by seed; a run that lacks one of its cells is left out."""
        found: dict[int, list[Measured]] = {}
        for m in self.of(experiment, method, shots):
            found.setdefault(m.run.seed, []).append(m)
        return {seed: cells for seed, cells in found.items() if len(cells) == CELLS.get(method, 1)}

    def accuracy(self, experiment: Experiment, method: Method, shots: int) -> Spread | None:
        """Mean and standard deviation over runs, in per cent; None without a run. A run is the mean of its cells."""
        found = [
            float(np.mean([100 * m.evaluations[shots]["accuracy"] for m in cells]))
            for cells in self.by_seed(experiment, method, shots).values()
        ]
        return over_runs(found) if found else None

    def parameters(self, experiment: Experiment, method: Method) -> Spread | None:
        """Mean and standard deviation over runs of the networks' sizes; the size of a run is the mean of its cells."""
        sizes: dict[int, list[int]] = {}
        for m in self.of(experiment, method):
            if m.parameters is not None:
                sizes.setdefault(m.run.seed, []).append(m.parameters)
        return over_runs([float(np.mean(each)) for each in sizes.values()]) if sizes else None

    def search_seconds(self, experiment: Experiment, method: Method) -> Spread | None:
        """Mean and standard deviation of the known durations of the searches."""
        times = [m.search_seconds for m in self.of(experiment, method) if m.search_seconds is not None]
        return over_runs(times) if times else None

    def comparison(
        self, experiment: Experiment, method: Method, other: Method, shots: int
    ) -> Comparison | None:
        """A method minus another one on common tasks; the cells of one run are averaged on every task.

        Args:
            experiment: Data and size.
            method: The method.
            other: The method that is subtracted.
            shots: Support images per class.

        Returns:
            The comparison; None below two common runs.

        Raises:
            ConfigurationError: Two runs with the same seed were evaluated on different tasks.
        """
        ours, others = (self.by_seed(experiment, each, shots) for each in (method, other))
        pairs = [(ours[seed], cells) for seed, cells in others.items() if seed in ours]
        for first, *rest in ([*one, *two] for one, two in pairs):
            for second in rest:
                if first.evaluations[shots]["tasks_digest"] != second.evaluations[shots]["tasks_digest"]:
                    raise ConfigurationError(
                        f"{first.run.folder} and {second.run.folder} were evaluated on different tasks: evaluate "
                        "one of them again"
                    )
        if len(pairs) < 2:
            return None
        means = ([_task_means(pair[i], shots) for pair in pairs] for i in range(2))
        return compare_runs(*means)


def _task_means(cells: list[Measured], shots: int) -> np.ndarray:
    """The mean accuracy of several networks on every task."""
    return np.mean([m.accuracies(shots) for m in cells], axis=0)


def compared_pairs(settings: Table) -> tuple[tuple[Method, Method], ...]:
    """The comparisons of a table, as (method, the one that is subtracted from it).

    Args:
        settings: Settings of the table.

    Returns:
        MetaNTK-NAS and every other method, searches and random cells of their size, and, among methods that compare
        cells of one size, the pairs of ``CONTROLLED``.
    """
    others = [method for method in settings.methods if method != "metantk" and method not in ONE_SIZE]
    known = [pair for pair in CONTROLLED if set(pair) <= set(settings.methods)]
    return (*((SIZED.get(method, "metantk"), method) for method in others), *known)


def collect_results(settings: Table) -> Results:
    """The measurements in the run folders; missing and unfinished runs have no evaluations."""
    return Results(settings, tuple(_measured(settings, run) for run in runs_of(settings)))


def _measured(settings: Table, run: Run) -> Measured:
    records = {shots: finished_evaluation(settings, run, shots) for shots in run.recipe.evaluate}
    evaluations = {shots: record["results"] for shots, record in records.items() if record is not None}
    searching, sources = search_settings(settings, run), {}
    searched = finished_run(searching, "search") if searching is not None else None
    if searched is not None:
        sources["search"] = _source(run.folder / "search")
    if evaluations:
        sources["train"] = _source(train_settings(settings, run).out)
    for shots in evaluations:
        sources[f"evaluate-{shots}-shot"] = _source(run.folder / f"evaluate-{shots}-shot")
    sizes = {results["parameters"] for results in evaluations.values()}
    seconds = _seconds(searched, run.folder / "search")
    return Measured(run, evaluations, min(sizes, default=None), seconds, sources)


def _source(folder: Path) -> dict[str, str]:
    return {"folder": folder.as_posix(), "sha256": sha256((folder / RUN_FILE).read_bytes())}


def _seconds(record: dict[str, Any] | None, folder: Path) -> float | None:
    """The CPU time of a search on a CPU; on a GPU the time from beginning to end."""
    if record is None:
        return None
    if wrong := misfit(record, _Search, "it"):
        raise CheckpointError(
            f"{folder / RUN_FILE} is not the record of a finished search ({wrong}): search again with the same settings"
        )
    if record["environment"].get("device") == "cpu":
        seconds = record["results"].get("cpu_seconds")
        return None if seconds is None else float(seconds)
    if record["starts"] != 1:
        return None  # the time includes a pause
    begun, ended = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    return (ended - begun).total_seconds()
