"""``table``: Tables 1 and 2 and similar ones from finished runs, next to the numbers of the paper."""

from dataclasses import asdict
from itertools import chain
from typing import Any

from mamltheory.runtime.records import replace_file, to_json

from ..runs import continued_by, without_paths
from ..terminal import for_terminal
from .figure import draw_figures
from .markup import csv_text, latex, markdown
from .paper_results import PAPER_RESULTS, SOURCE, PaperResult
from .pipeline import make_missing_runs
from .results import Measured, Results, collect_results, compared_pairs
from .settings import EMBEDDED, RECIPES, Experiment, Method, Table
from .sheets import NAMES, sheets


def make_table(settings: Table) -> int:
    """Make the missing runs on request, write the table in four formats and print it; returns 0."""
    if settings.missing == "make":
        with continued_by("the same command; every run continues in its folder"):
            make_missing_runs(settings)
    results = collect_results(settings)
    print(for_terminal(write_files(results)))
    for experiment in settings.experiments:
        if any(m.evaluations for m in results.measured if m.run.experiment == experiment):
            for name in draw_figures(results, experiment):
                print(f"wrote {settings.out}/{name}.png (and .pdf, .json)")
    lacking = [m.run for m in results.measured if set(m.evaluations) != set(m.run.recipe.evaluate)]
    if lacking:
        print(
            f"{len(lacking)} of {len(results.measured)} runs are missing or unfinished; --missing make makes them"
        )
    print(f"wrote {settings.out}/table_{settings.name}.md (and .tex, .csv, .json)")
    return 0


def write_files(results: Results) -> str:
    """Write the four files; returns the Markdown."""
    settings, parts = results.settings, sheets(results)
    text = "\n".join(map(markdown, parts))
    contents = {
        "md": text,
        "tex": "% Needs the packages booktabs and amssymb.\n" + "\n".join(map(latex, parts)),
        "csv": csv_text([*_paper_lines(settings), *chain(*map(_own_lines, results.measured))]),
        "json": to_json(table_record(results)),
    }
    for end, content in contents.items():
        replace_file(settings.out / f"table_{settings.name}.{end}", content.encode())
    return text


def table_record(results: Results) -> dict[str, Any]:
    """The numbers of the table with their run folders and digests."""
    return {
        "settings": without_paths(results.settings),
        "recipes": {name: asdict(RECIPES[name]) for name in results.settings.experiments},
        "runs": [_run_record(measured) for measured in results.measured],
        "means": [_mean(results, *key) for key in _cells(results)],
        "comparisons": [
            _comparison(results, experiment, pair, shots)
            for experiment in results.settings.experiments
            for pair in compared_pairs(results.settings)
            for shots in RECIPES[experiment].evaluate
        ],
        "paper": {"source": SOURCE, "results": [asdict(printed) for printed in _printed(results.settings)]},
    }


def _cells(results: Results) -> list[tuple[Experiment, Method, int]]:
    settings = results.settings
    return [
        (experiment, method, shots)
        for experiment in settings.experiments
        for method in settings.methods
        for shots in RECIPES[experiment].evaluate
    ]


def _run_record(measured: Measured) -> dict[str, Any]:
    kept = ("accuracy", "half_width", "description", "tasks_digest", "weights")
    accuracy = {
        f"{shots}-shot": {key: results[key] for key in kept}
        for shots, results in measured.evaluations.items()
    }
    run = measured.run
    return {
        "experiment": run.experiment,
        "method": run.method,
        "seed": run.seed,
        "cell": run.cell,
        "parameters": measured.parameters,
        "search_seconds": measured.search_seconds,
        "accuracy": accuracy,
        "sources": measured.sources,
    }


def _mean(results: Results, experiment: Experiment, method: Method, shots: int) -> dict[str, Any]:
    spread = results.accuracy(experiment, method, shots)
    groups = results.by_seed(experiment, method, shots).values()
    folders = [m.sources[f"evaluate-{shots}-shot"] for m in chain(*groups)]
    named = {"experiment": experiment, "method": method, "shots": shots}
    return {**named, "per_cent": None if spread is None else asdict(spread), "sources": folders}


def _comparison(
    results: Results, experiment: Experiment, pair: tuple[Method, Method], shots: int
) -> dict[str, Any]:
    found = results.comparison(experiment, *pair, shots)
    named = {"experiment": experiment, "of": pair[0], "minus": pair[1], "shots": shots}
    if found is None:
        return {**named, "result": None}
    extra = {
        "least_p_value": found.least_p_value,
        "t_p_value": found.t_p_value,
        "run_deviation": found.run_deviation,
    }
    return {**named, "result": {**asdict(found), **extra}}


def _printed(settings: Table) -> list[PaperResult]:
    """The rows of the paper, if the table has experiments of the paper."""
    return list(PAPER_RESULTS) if not set(settings.experiments) <= set(EMBEDDED) else []


def _paper_lines(settings: Table) -> list[dict[str, Any]]:
    return [
        _csv_line(
            source="paper",
            table=printed.table,
            model=printed.model,
            data=printed.data,
            cells=printed.cells,
            shots=shots,
            parameters=printed.parameters,
            search_hours=printed.hours,
            accuracy=mean,
            plus_minus=deviation,
            plus_minus_is="as quoted" if printed.quoted else "standard deviation over runs",
        )
        for printed in _printed(settings)
        for shots, (mean, deviation) in printed.accuracy.items()
    ]


def _own_lines(measured: Measured) -> list[dict[str, Any]]:
    """A line for every number of shots; without accuracy if the run is missing."""
    run, lines = measured.run, []
    hours = None if measured.search_seconds is None else measured.search_seconds / 3600
    for shots in run.recipe.evaluate:
        results = measured.evaluations.get(shots, {})
        lines.append(
            _csv_line(
                source="this code",
                model=NAMES[run.method],
                data=run.recipe.data,
                cells=run.recipe.train.cells,
                seed=run.seed,
                shots=shots,
                parameters=measured.parameters,
                search_hours=hours,
                accuracy=100 * results["accuracy"] if results else None,
                plus_minus=100 * results["half_width"] if results else None,
                plus_minus_is="95 % interval over tasks",
                folder=run.folder.as_posix(),
            )
        )
    return lines


CSV_COLUMNS = (
    *("source", "table", "model", "data", "cells", "seed", "shots", "parameters", "search_hours"),
    *("accuracy", "plus_minus", "plus_minus_is", "folder"),
)


def _csv_line(**values: object) -> dict[str, Any]:
    return {key: values.get(key) for key in CSV_COLUMNS}
