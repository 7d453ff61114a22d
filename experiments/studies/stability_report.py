"""The results of the study of repeated scores: reliability against repeats and against CPU seconds, and a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mamltheory.nas.genotype import Candidates
from mamltheory.nas.statistics.reliability import mean_reliability
from mamltheory.nas.statistics.repeatability import (
    Difference,
    Repeatability,
    corrected_correlation,
    predicted_reliability,
    reliability_difference,
    repeat_correlation,
    repeatability,
)
from mamltheory.rng import derived_seed, numpy_generator
from mamltheory.runtime.records import replace_file

from ..plotting import COLOURS, LINE_STYLES, MARKERS, figure, save_figure, ticks_at
from ..terminal import for_terminal
from .correlation_report import figure_settings, number, span
from .measurements import Record, check_repeats
from .settings import Stability as Settings

Name = tuple[str, int, str]
"""Estimator, joint tasks, measure."""
LEAST_REPEATS, MOST_REPEATS = 4, 64
ESTIMATORS = {"gradient": "gradient", "exact": "one by one"}
MEASURE_NAMES = {"condition": "condition number", "harmonic": "harmonic"}


@dataclass(frozen=True, eq=False)
class StabilityFindings:
    """Scores (operators × repeats) and their stability by name, and comparisons on common repeats."""

    scores: Mapping[Name, np.ndarray]
    stability: Mapping[Name, Repeatability]
    harmonic_gain: Mapping[str, Difference]
    task_gain: Mapping[str, Difference]
    gradient_gain: Mapping[str, Difference]
    agreement: Mapping[str, float]
    alike: Mapping[str, Difference]
    evaluations: Mapping[str, float]
    infinite: int


def report_stability(settings: Settings, records: Mapping[str, Record]) -> None:
    """Write ``stability.{png,pdf,json,md}`` and print the table."""
    check_repeats(records, settings.runs, len(edges()))
    found = stability_findings(settings, list(records.values()))
    text = stability_table(settings, found)
    draw_stability(settings, found)
    replace_file(settings.out / "stability.md", text.encode())
    print(f"{for_terminal(text)}wrote {settings.out / 'stability.md'}")


def edges() -> list[tuple]:
    """The edge of every operator of the supernet; a search compares operators on one edge."""
    return [(operator.cell, tuple(operator.edge)) for operator in Candidates().operators()]


def stability_findings(settings: Settings, records: list[Record]) -> StabilityFindings:
    """The statistics of the repeats."""
    columns: dict[Name, list] = {}
    seconds: dict[Name, list] = {}
    infinite = 0
    for record in sorted(records, key=lambda r: (r["estimator"] != "gradient", r["tasks"], r["repeat"])):
        for measure, values in record["differences"].items():
            name = (record["estimator"], record["tasks"], measure)
            if not np.isfinite(np.asarray(values, float)).all():
                infinite += 1
                continue
            columns.setdefault(name, []).append((record["repeat"], values))
            seconds.setdefault(name, []).append(record["cpu_seconds"][measure])
    columns = {name: pairs for name, pairs in columns.items() if len(pairs) >= LEAST_REPEATS}
    scores = {name: np.array([v for _, v in pairs], float).T for name, pairs in columns.items()}
    found = {}
    for i, (name, values) in enumerate(scores.items()):
        random = numpy_generator(settings.seed, "study stability", i)
        found[name] = repeatability(values, edges(), float(np.mean(seconds[name])), random, settings.draws)
    alike = _alike(settings, columns)
    return StabilityFindings(
        scores, found, *_comparisons(settings, columns), alike, _evaluations(records), infinite
    )


def _alike(settings: Settings, columns: Mapping[Name, list]) -> dict[str, Difference]:
    """The correlation of the two measures of a kernel, corrected for noise."""
    found = {}
    for estimator, tasks, measure in columns:
        other = (estimator, tasks, "condition")
        if measure == "harmonic" and other in columns:
            pair = _common(columns, (estimator, tasks, measure), other)
            if pair[0].shape[1] >= LEAST_REPEATS:
                random = numpy_generator(settings.seed, "study correlation")
                where = f"{ESTIMATORS[estimator]}, T = {tasks}"
                found[where] = corrected_correlation(pair[0], pair[1], edges(), random, settings.draws)
    return found


def _comparisons(settings: Settings, columns: Mapping[Name, list]) -> tuple[dict, dict, dict, dict]:
    """Paired differences of r₁ for measures, numbers of tasks and estimators, if there are enough common repeats."""

    def paired(first: Name, second: Name) -> Difference | None:
        if {first, second} - set(columns):
            return None
        pair = _common(columns, first, second)
        if pair[0].shape[1] < LEAST_REPEATS:
            return None
        seed = derived_seed(settings.seed, "study differences")
        return reliability_difference(pair[0], pair[1], edges(), seed, settings.draws)

    harmonic, more, gradient, agreement = {}, {}, {}, {}
    for estimator, tasks, measure in columns:
        if measure == "harmonic":
            pair = ((estimator, tasks, "harmonic"), (estimator, tasks, "condition"))
            harmonic[f"{ESTIMATORS[estimator]}, T = {tasks}"] = paired(*pair)
        if estimator == "exact":
            pair = (("gradient", tasks, measure), ("exact", tasks, measure))
            gradient[measure] = paired(*pair)
            if gradient[measure] is not None:
                first, second = _common(columns, *pair)
                agreement[measure] = repeat_correlation(first, second, edges())
    fewest, most = settings.gradient_tasks[0], settings.gradient_tasks[-1]
    if most > fewest:
        for measure in MEASURE_NAMES:
            more[measure] = paired(("gradient", most, measure), ("gradient", fewest, measure))
    kept = [{key: d for key, d in each.items() if d is not None} for each in (harmonic, more, gradient)]
    return kept[0], kept[1], kept[2], agreement


def _common(columns: Mapping[Name, list], *names: Name) -> list[np.ndarray]:
    """The scores of these names on their common repeats."""
    by_repeat = [dict(columns[name]) for name in names]
    shared = sorted(set.intersection(*map(set, by_repeat)))
    return [
        np.array([each[repeat] for repeat in shared], float).reshape(len(shared), -1).T for each in by_repeat
    ]


def _evaluations(records: list[Record]) -> dict[str, float]:
    """CPU seconds of the gradient over those of one score of the supernet, by joint tasks: the median over repeats."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["estimator"] == "gradient":
            ratio = np.mean(list(record["cpu_seconds"].values())) / record["evaluation_seconds"]
            found.setdefault(str(record["tasks"]), []).append(float(ratio))
    return {tasks: float(np.median(ratios)) for tasks, ratios in found.items()}


def label(name: Name) -> str:
    """The name of a score in the table."""
    estimator, tasks, measure = name
    if estimator == "regions":
        return "linear regions, one by one"
    return f"{MEASURE_NAMES[measure]}, {ESTIMATORS[estimator]}, T = {tasks}"


def style(name: Name, settings: Settings) -> dict[str, Any]:
    """Colour by estimator and tasks; solid lines for the harmonic number, dashed ones for the condition number."""
    estimator, tasks, measure = name
    if estimator == "gradient":
        place = settings.gradient_tasks.index(tasks)
    else:
        place = {"exact": len(COLOURS) - 1, "regions": len(COLOURS) - 2}[estimator]
    place %= len(COLOURS)
    return {
        "color": COLOURS[place],
        "marker": MARKERS[place],
        "linestyle": LINE_STYLES[0 if measure == "harmonic" else 3 if estimator == "regions" else 1],
    }


def draw_stability(settings: Settings, found: StabilityFindings) -> None:
    """Draw reliability against repeats, with measurements from independent halves, and against CPU seconds."""
    with figure("page", 4.3, columns=2, sharey=True) as (drawing, axes):
        against_repeats(axes[0, 0], settings, found)
        against_seconds(axes[0, 1], settings, found)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=7)
        drawing.suptitle(
            f"Reliability of operator scores: {settings.kernel.upper()}, first round, {settings.channels} channels, "
            f"{settings.cells} cells; {settings.data}, seed {settings.seed}"
        )
        paths = save_figure(
            drawing,
            "stability",
            stability_numbers(found),
            settings.out,
            figure_settings(settings),
            settings.seed,
        )
    print(f"wrote {paths[0]} (and .pdf, .json)")


def against_repeats(axes: Axes, settings: Settings, found: StabilityFindings) -> None:
    """Draw predicted curves, the interval at one repeat, and correlations between disjoint halves."""
    grid = np.geomspace(1, MOST_REPEATS, 60)
    null = max(each.null[1] for name, each in found.stability.items() if name[0] == "gradient")
    band = predicted_reliability(null, grid)
    axes.fill_between(grid, 0, band, color="0.85", zorder=0)
    axes.fill_between([], [], [], color="0.85", label="no signal: what noise alone gives")
    for i, (name, each) in enumerate(found.stability.items()):
        look = style(name, settings)
        axes.plot(grid, each.curve(grid), **look | {"marker": "None"})
        counts = [m for m in each.halves if m & (m - 1) == 0]
        points = look | {"linestyle": "None", "label": label(name)}
        if name[2] == "condition":
            points["markerfacecolor"] = "white"
        axes.plot(counts, [each.halves[m] for m in counts], **points)
        axes.plot([0.93 - 0.025 * i] * 2, each.interval, color=look["color"], linewidth=1.2)
    axes.set_xscale("log")
    ticks_at(axes.xaxis, (1, 2, 4, 8, 16, 32, 64))
    axes.set_ylim(-0.15, 1)
    axes.set_xlabel("repeats (bars left of 1: 95 % interval of $r_1$)")
    axes.set_ylabel("reliability; points: between independent means")


def against_seconds(axes: Axes, settings: Settings, found: StabilityFindings) -> None:
    """Draw the predicted curves against CPU seconds."""
    seconds = [each.seconds for each in found.stability.values()]
    most = max(600, 10 * max(seconds))
    for name, each in found.stability.items():
        grid = np.geomspace(1, max(MOST_REPEATS, most / each.seconds), 80)
        axes.plot(grid * each.seconds, each.curve(grid), **style(name, settings) | {"marker": "None"})
    axes.axhline(0.9, color="0.5", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xlim(min(seconds) / 1.5, most)
    axes.set_xlabel("CPU seconds (dotted: reliability 0.9)")
    axes.set_ylabel("predicted reliability")


def stability_numbers(found: StabilityFindings) -> dict[str, Any]:
    """The numbers for the JSON."""
    keys = {name: " ".join(map(str, name)) for name in found.stability}
    return {
        "stability": {keys[name]: each for name, each in found.stability.items()},
        "harmonic_less_condition": found.harmonic_gain,
        "most_less_fewest_tasks": found.task_gain,
        "gradient_less_one_by_one": found.gradient_gain,
        "correlation_with_one_by_one": found.agreement,
        "harmonic_with_condition_without_noise": found.alike,
        "gradient_in_evaluations": found.evaluations,
        "repeats_left_out_as_infinite": found.infinite,
        "operators": [" ".join(map(str, (o.cell, *o.edge, o.operation))) for o in Candidates().operators()],
        "scores": {keys[name]: values for name, values in found.scores.items()},
    }


def stability_table(settings: Settings, found: StabilityFindings) -> str:
    """The table with notes and claims."""
    lines = [
        "| score | repeats | r₁ | null | halves: measured (predicted) | τ of halves | same operator out | "
        "repeats for 0.9 | CPU s a repeat | CPU s for 0.9 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found.stability.items():
        half = max(each.halves)
        halves = f"{number(each.halves[half])} ({number(mean_reliability(each.single, half))})"
        same, needed = each.agreement, each.for_90
        lines.append(
            f"| {label(name)} | {each.repeats} | {number(each.single)} {span(each.interval)} | {span(each.null)} | "
            f"{halves} | {number(same.tau)} {span(same.tau_interval)} | {number(same.same)} | {whole(needed)} | "
            f"{each.seconds:.1f} | {whole(needed * each.seconds)} |"
        )
    chance = next(iter(found.stability.values())).agreement.chance
    lines += [
        "",
        f"Supernet of all operations, {settings.channels} channels, {settings.cells} cells, stem stride "
        f"{settings.stem_stride}, kernel {settings.kernel} ({settings.outputs} of the outputs), 5-way 1-shot tasks "
        f"with 1 query a class on {settings.data}; T tasks in one kernel. r₁: reliability of one repeat within edges, "
        "with its 95 % interval over repeats and edges, and the central 95 % where operators change places. Same "
        f"operator out: share of edges on which two independent halves remove the same one; chance {number(chance)}. "
        f"CPU seconds of one thread on a shared machine. {found.infinite} repeats were infinite and are left out.",
        "",
        *claim_lines(found),
    ]
    return "\n".join(lines) + "\n"


def whole(value: float) -> str:
    """A whole number, or the sign of infinity."""
    return "∞" if math.isinf(value) else f"{value:.0f}"


def gain_verdict(difference: Difference) -> str:
    """The verdict of an interval on a claimed gain."""
    low, high = difference.interval
    verdict = "confirmed" if low > 0 else "contradicted" if high < 0 else "not resolved"
    return f"{verdict}, {number(difference.value)} {span(difference.interval)}"


def claim_lines(found: StabilityFindings) -> list[str]:
    """Claims about the scores, with their verdicts."""
    harmonic = "; ".join(f"{where}: {gain_verdict(d)}" for where, d in found.harmonic_gain.items())
    lines = [f"- The harmonic number has a higher r₁ than the condition number: {harmonic}."]
    alike = "; ".join(f"{where}: {number(d.value)} {span(d.interval)}" for where, d in found.alike.items())
    if alike:
        lines.append(
            f"- Both rank the operators alike (correlation within edges, corrected for noise): {alike}."
        )
    if found.task_gain:
        tasks = [t for e, t, _ in found.stability if e == "gradient"]
        more = "; ".join(f"{MEASURE_NAMES[m]}: {gain_verdict(d)}" for m, d in found.task_gain.items())
        lines.append(f"- r₁ grows from T = {min(tasks)} to T = {max(tasks)}: {more}.")
    ratios = ", ".join(f"{ratio:.1f} at T = {tasks}" for tasks, ratio in found.evaluations.items())
    lines.append(f"- A gradient costs about four evaluations of the supernet: {ratios} (median).")
    gradient = "; ".join(
        f"{MEASURE_NAMES[m]}: correlation {number(found.agreement[m])} repeat by repeat; higher r₁ on the same "
        f"repeats {gain_verdict(d)}"
        for m, d in found.gradient_gain.items()
    )
    if gradient:
        lines.append(f"- The gradient stands for taking operators out one by one: {gradient}.")
    return lines
