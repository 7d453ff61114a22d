"""The results of the study of repeated scores: reliability of one and of several repeats, CPU seconds, and a table."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mamltheory.nas.genotype import Candidates
from mamltheory.nas.statistics.reliability import mean_reliability, repeats_for
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

from ..plotting import curve, figure, save_figure
from ..terminal import for_terminal
from .correlation_report import HARMONIC, figure_settings, number, span
from .measurements import Record, check_repeats
from .settings import Stability as Settings

Name = tuple[str, int, str]
"""Estimator, joint tasks, measure."""
LEAST_REPEATS = 4
ESTIMATORS = {"gradient": "gradient", "exact": "one by one"}
MEASURE_NAMES = {"condition": "condition number", "harmonic": "harmonic"}
NOISE: dict[str, Any] = {"color": "0.82", "linewidth": 5, "solid_capstyle": "butt", "zorder": 0.8}
PREDICTED: dict[str, Any] = {"color": "k", "marker": "|", "markersize": 8, "linestyle": "None"}
ENDLESS = 1e9
"""CPU seconds beyond all axes: the end of an interval without an upper end."""


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


def draw_stability(settings: Settings, found: StabilityFindings) -> None:
    """Draw a row for each score: the reliability of one repeat and of several, and CPU seconds for 0.9."""
    names = list(found.stability)
    with figure("page", 1.7 + 0.2 * len(names), columns=3, sharey=True) as (drawing, axes):
        one, several, seconds = axes[0]
        for row, (name, each) in enumerate(found.stability.items()):
            draw_single(one, row, each, look(name))
            draw_mean(several, row, each, common_half(found), look(name))
            draw_seconds(seconds, row, each, look(name))
        for panel in (one, several):
            panel.axvline(0, color="0.3", linewidth=0.7, zorder=0.5)
            panel.set_xlim(-0.18, 1.03)
        one.set_title("one repeat")
        several.set_title(f"mean of {common_half(found)} repeats")
        seconds.set_title("until reliability 0.9")
        one.set_xlabel("reliability $r_1$")
        several.set_xlabel("correlation of two means")
        seconds.set_xlabel("CPU seconds")
        scale_seconds(seconds, found)
        one.set_yticks(range(len(names)), [label(name) for name in names], fontsize=7)
        one.set_ylim(len(names) - 0.4, -0.6)
        below = {"loc": "outside lower center", "ncols": 5, "fontsize": 7, "frameon": False}
        words = f"{HARMONIC}; T: tasks in a kernel"
        drawing.legend(handles=kinds(), title=words, title_fontsize=7, handlelength=1.5, **below)
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


def look(name: Name) -> dict[str, Any]:
    """Colour and marker of a measure; rows tell estimators and numbers of tasks apart."""
    return curve(list(dict.fromkeys((*MEASURE_NAMES, "regions"))).index(name[2])) | {"linestyle": "None"}


def common_half(found: StabilityFindings) -> int:
    """The largest power of two of repeats for which every score has two disjoint means."""
    shared = set.intersection(*(set(each.halves) for each in found.stability.values()))
    return max(m for m in shared if m & (m - 1) == 0)


def draw_single(axes: Axes, row: int, each: Repeatability, style: Mapping[str, Any]) -> None:
    """Draw the reliability of one repeat with its interval, over what noise alone gives."""
    axes.plot(each.null, (row, row), **NOISE)
    axes.plot(each.interval, (row, row), color=style["color"])
    axes.plot(each.single, row, **style)


def draw_mean(axes: Axes, row: int, each: Repeatability, count: int, style: Mapping[str, Any]) -> None:
    """Draw the correlation between means of ``count`` repeats, and what one repeat predicts for it."""
    repeats = np.array([float(count)])
    axes.plot((0, *predicted_reliability(each.null[1], repeats)), (row, row), **NOISE)
    axes.plot(each.halves[count], row, **style)
    axes.plot(each.curve(repeats), row, **PREDICTED)


def draw_seconds(axes: Axes, row: int, each: Repeatability, style: Mapping[str, Any]) -> None:
    """Draw the CPU seconds for reliability 0.9, with an interval that may have no upper end."""
    least, most = (each.seconds * repeats_for(bound) for bound in reversed(each.interval))
    if math.isfinite(each.for_90):
        axes.plot(each.seconds * each.for_90, row, **style)
    if math.isfinite(least):
        axes.plot((least, most if math.isfinite(most) else ENDLESS), (row, row), color=style["color"])
    if math.isinf(most):
        axes.plot(1, row, **style | {"marker": ">"}, transform=axes.get_yaxis_transform(), clip_on=False)


def scale_seconds(axes: Axes, found: StabilityFindings) -> None:
    """Fit the logarithmic axis of seconds to all values and to those ends of intervals that exist."""
    ends = [
        each.seconds * repeats_for(value)
        for each in found.stability.values()
        for value in (each.single, *each.interval)
    ]
    known = [end for end in ends if 0 < end < math.inf]
    axes.set_xscale("log")
    if known:
        axes.set_xlim(min(known) / 2, 3 * max(known))


def kinds() -> list[Line2D]:
    """What the marks of the figure are, for its legend."""
    measured = {"color": "0.3", "marker": "o", "linestyle": "None"}
    marks = {
        "measured": measured,
        "95 % interval": {"color": "0.3"},
        "what noise alone gives (95 %)": NOISE,
        "predicted from one repeat": PREDICTED,
        "no upper end": measured | {"marker": ">"},
    }
    return [Line2D([], [], **style, label=label) for label, style in marks.items()]


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
