"""Accuracy of every trained network against its size, and differences to random cells of one size."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..plotting import curve, figure, save_figure, ticks_at
from ..runs import without_paths
from .results import Results, compared_pairs
from .settings import ONE_SIZE, RECIPES, SHOTS, SIZED, Experiment, Method, Table
from .sheets import NAMES

SIZE_TICKS = (5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000, 20_000)
"""Thousands of parameters on the axis of sizes."""

LEAST_BREAK, BROKEN_SHARE = 0.25, 0.12
"""Share of the axis of sizes from which on a gap without networks is broken, and what it takes then."""


def draw_figures(results: Results, experiment: Experiment) -> list[str]:
    """Draw sizes, or differences to random cells where all cells are of one size; returns the names of the figures."""
    if not set(results.settings.methods) <= set(ONE_SIZE):
        return [draw_sizes(results, experiment)]
    name = draw_differences(results, experiment)
    return [] if name is None else [name]


def draw_differences(results: Results, experiment: Experiment) -> str | None:
    """Draw each method minus random cells of its size, every run and the mean with its interval over runs.

    Args:
        results: The measurements.
        experiment: Data and size.

    Returns:
        The name of the figure; None if no method has two runs in common with the random cells.
    """
    settings = results.settings
    pairs = [pair for pair in compared_pairs(settings) if pair[1] == "random-band"]
    found = {
        (method, shots): comparison
        for method, control in pairs
        for shots in SHOTS
        if (comparison := results.comparison(experiment, method, control, shots)) is not None
    }
    if not found:
        return None
    records = [
        {"method": method, "shots": shots, **asdict(comparison)}
        for (method, shots), comparison in found.items()
    ]
    return differences_figure(records, settings, experiment)


def differences_figure(records: Sequence[Mapping[str, Any]], settings: Table, experiment: Experiment) -> str:
    """Draw the comparisons of every method and number of shots; returns the name."""
    methods: list[Method] = list(dict.fromkeys(each["method"] for each in records))
    with figure("page", 1.5 + 0.38 * len(methods), columns=len(SHOTS), sharey=True) as (drawing, axes):
        drawing.suptitle(f"Searches against random cells of their size\n{_where(settings, experiment)}")
        for panel, shots in zip(axes[0], SHOTS, strict=True):
            panel.axvline(0, color="0.4", linewidth=0.8)
            for each in (each for each in records if each["shots"] == shots):
                place, mean = methods.index(each["method"]), each["interval"]
                style = curve(place) | {"linestyle": "none"}
                points = [100 * one for one in each["differences"]]
                panel.plot(points, [place - 0.18] * len(points), **style | {"markerfacecolor": "white"})
                panel.errorbar(
                    100 * mean["mean"], place + 0.18, xerr=100 * mean["half_width"], capsize=3, **style
                )
            panel.set_xlabel(
                f"{shots}-shot accuracy minus that of random\ncells of its size (percentage points)"
            )
            panel.set_ylim(len(methods) - 0.4, -0.6)
        axes[0, 0].set_yticks(range(len(methods)), [NAMES[method] for method in methods])
        marks = {"color": "0.3", "marker": "o"}
        handles = [
            Line2D([], [], **marks, linestyle="none", markerfacecolor="white", label="a run"),
            Line2D([], [], **marks, label="mean of the runs with its 95 % interval"),
        ]
        drawing.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
        data = {"data": RECIPES[experiment].data, "differences": records}
        name = _name(settings, experiment, "differences")
        save_figure(drawing, name, data, settings.out, without_paths(settings), settings.seed)
    return name


def _where(settings: Table, experiment: Experiment) -> str:
    """Data, networks and runs, for the second line of a title."""
    recipe = RECIPES[experiment]
    return (
        f"{recipe.data}, {recipe.train.cells} cells of {recipe.train.channels} channels; {settings.runs} runs, "
        f"seeds from {settings.seed}"
    )


def _name(settings: Table, experiment: Experiment, ending: str) -> str:
    """The name of a figure, which has the experiment once where the table is named after it."""
    word = experiment.replace("-", "_")
    known = f"_{word}_" in f"_{settings.name}_"
    return "_".join(("table", settings.name, *([] if known else [word]), ending))


def draw_sizes(results: Results, experiment: Experiment) -> str:
    """Draw a panel for each number of shots and a point for each run with its interval over tasks; returns the name."""
    points = {method: _points(results, experiment, method) for method in results.settings.methods}
    return sizes_figure(points, results.settings, experiment)


def sizes_figure(
    points: Mapping[Method, Sequence[Mapping[str, Any]]], settings: Table, experiment: Experiment
) -> str:
    """Draw the points of every method; returns the name."""
    marked = [method for method in settings.methods if method not in SIZED]
    sizes = [point["parameters"] / 1000 for found in points.values() for point in found]
    with figure("page", 3.8, columns=len(SHOTS)) as (drawing, axes):
        drawing.suptitle(f"Accuracy and size of every trained network\n{_where(settings, experiment)}")
        for panel, shots in zip(axes[0], SHOTS, strict=True):
            for method, found in points.items():
                chosen = [point for point in found if point["shots"] == shots]
                columns = (
                    [point[key] for point in chosen] for key in ("parameters", "per_cent", "half_width")
                )
                x, y, error = columns
                x = [number / 1000 for number in x]
                style = curve(marked.index(SIZED.get(method, method))) | {"linestyle": "none"}
                hollow = {"markerfacecolor": "white"} if method in SIZED else {}
                panel.errorbar(x, y, error, **style | hollow, label=NAMES[method])
            size_axis(panel, sizes)
            panel.set_ylabel(f"5-way {shots}-shot accuracy (%)")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside lower center", ncols=3)
        name = _name(settings, experiment, "sizes")
        data = {"data": RECIPES[experiment].data, "methods": points}
        save_figure(drawing, name, data, settings.out, without_paths(settings), settings.seed)
    return name


def size_axis(panel: Axes, sizes: Sequence[float]) -> None:
    """A logarithmic axis, broken at a gap that would leave much of the panel empty.

    Args:
        panel: The panel.
        sizes: The thousands of parameters of all points.
    """
    panel.set_xlabel("thousand parameters")
    known = np.unique(np.log(sizes))
    steps, extent = np.diff(known), float(np.ptp(known))
    if len(steps) < 2 or steps.max() < LEAST_BREAK * extent:
        panel.set_xscale("log")
        ticks_at(panel.xaxis, [t for t in SIZE_TICKS if min(sizes) / 1.5 < t < 1.5 * max(sizes)])
        return
    gap = int(steps.argmax())
    # Piecewise linear in the logarithm, with the gap shortened.
    corners = np.array([known[0] - 1, known[gap], known[gap + 1], known[-1] + 1])
    places = np.cumsum([0, *(np.diff(corners) * (1, BROKEN_SHARE * extent / steps[gap], 1))])

    def forward(thousands: np.ndarray) -> np.ndarray:
        return np.interp(np.log(np.maximum(thousands, 1e-9)), corners, places)

    def backward(place: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(place, places, corners))

    panel.set_xscale("function", functions=(forward, backward))
    panel.set_xlim(*np.exp([known[0] - 0.08 * extent, known[-1] + 0.08 * extent]))
    low, high, most = np.exp([known[gap], known[gap + 1], known[-1]])
    below = [t for t in SIZE_TICKS if min(sizes) / 1.1 < t < 1.05 * low]
    above = [t for t in SIZE_TICKS if high <= t <= 1.05 * most]
    ticks_at(panel.xaxis, [*below, *(above or [round(high)])])
    middle = backward(places[1:3].mean())
    panel.text(middle, 0, "//", transform=panel.get_xaxis_transform(), ha="center", va="center", fontsize=9)


def _points(results: Results, experiment: Experiment, method: Method) -> list[dict[str, Any]]:
    return [
        {
            "seed": measured.run.seed,
            "shots": shots,
            "parameters": measured.parameters,
            "per_cent": 100 * found["accuracy"],
            "half_width": 100 * found["half_width"],
        }
        for measured in results.of(experiment, method)
        for shots, found in measured.evaluations.items()
    ]
