"""The figure on a table of cells of one size: what predicts accuracy, at what price, and what a search gains by it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mamltheory.nas.statistics.resampled_ranks import Association

from ..plotting import COLOURS, figure, save_figure, ticks_at
from .table_findings import TableFindings
from .table_replays import Replays, Tried
from .table_words import LABELS, epochs_in_words, settings_words

SHOWN_EPOCHS = ("1", "2", "4", "12")
NETWORK, CELL = (COLOURS[0], "o"), (COLOURS[1], "s")
ACCURACIES = (
    "accuracy of one training, in which early values were read",
    "without epochs: mean accuracy of two trainings;\nwith epochs: accuracy of the other training",
)
"""With what a row is compared: circles and squares."""
SECONDS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
ASIDE = 1.06
"""Factor by which a point of two at one place on the logarithmic axis is moved."""
Row = tuple[str, str, Association, Association | None]
"""Group, label, association with this network's accuracy and with that of its cell."""


def draw_table(
    found: TableFindings, searches: Replays, out: Path, name: str, config: Mapping[str, Any]
) -> tuple[Path, Path, Path]:
    """Draw three panels and write them.

    Args:
        found: Associations with accuracy.
        searches: Replays of search methods.
        out: Folder of the files.
        name: Of the files.
        config: The settings behind the numbers, with those of the table.

    Returns:
        The paths of picture, PDF and numbers.
    """
    where = settings_words(config["table"], "data", "image_size", "cells", "channels", "epochs", "seed")
    with figure("page", 5.8) as (drawing, axes):
        axes[0, 0].remove()
        # Each part needs its own margins for its labels.
        left, right = drawing.subfigures(1, 2, width_ratios=(1, 1))
        above, below = right.subfigures(2, 1, height_ratios=(1, 1.35))
        draw_forest(left.subplots(), list(forest_rows(found)))
        draw_price(above.subplots(), found)
        draw_gains(below.subplots(), searches)
        drawing.suptitle(f"{found.cells} random cells of one size: what tells the better ones?\n{where}")
        return save_figure(drawing, name, {"findings": found, "searches": searches}, out, config)


def forest_rows(found: TableFindings) -> Iterator[Row]:
    """The rows that are drawn: all scores at initialisation; the JSON and the text hold all of a training."""
    rows = {(row.group, row.name): row for row in found.predictors}
    for name in ("parameters", "macs"):
        row = rows["size", name]
        yield "size", LABELS[name], row.network, row.mean
    for name in LABELS:
        if (free := rows.get(("training-free", name))) is not None:
            yield "at initialisation", LABELS[name], free.network, free.mean
    kernels = {(row.epoch, row.name): row.every for row in found.kernels}
    for name in ("maml condition", "regression accuracy"):
        for epoch in sorted({row.epoch for row in found.kernels} - {0}):
            if (kernel := kernels.get((epoch, name))) is not None:
                yield "training", f"{LABELS[name]}, {epochs_in_words(epoch)}", kernel, None
    for group, label in (("accuracy", "validation accuracy"), ("loss", "training loss")):
        for epoch in SHOWN_EPOCHS:
            if (during := rows.get((group, epoch))) is not None:  # type: ignore[call-overload]
                yield "training", f"{label}, {epochs_in_words(int(epoch))}", during.network, during.other


def draw_forest(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw τ of every row with its interval; training-free scores are shaded."""
    shaded = [i for i, row in enumerate(rows) if row[0] == "at initialisation"]
    if shaded:
        axes.axhspan(shaded[0] - 0.5, shaded[-1] + 0.5, color="0.93", zorder=0)
    for place, (_, _, network, cell) in enumerate(rows):
        draw_interval(axes, place - 0.15, network.tau.value, network.tau.interval, NETWORK)
        if cell is not None:
            draw_interval(axes, place + 0.15, cell.tau.value, cell.tau.interval, CELL)
    finish_rows(axes, [row[1] for row in rows], ACCURACIES)
    axes.set_xlabel("Kendall's $\\tau$ with final 1-shot accuracy\n(lines: 95 %; shaded: at initialisation)")


def draw_interval(
    axes: Axes, y: float, value: float, interval: tuple[float, float], kind: tuple[str, str]
) -> None:
    """Draw a value with its interval.

    Args:
        axes: The panel.
        y: Height of the row.
        value: The value.
        interval: Its limits.
        kind: Colour and marker.
    """
    colour, marker = kind
    axes.plot(interval, (y, y), color=colour, linewidth=1)
    axes.plot(value, y, color=colour, marker=marker, markersize=3.2)


def finish_rows(axes: Axes, labels: Sequence[str], kinds: tuple[str, str]) -> None:
    """Label the rows, and say what the two markers are.

    Args:
        axes: The panel.
        labels: Of the rows, from the top.
        kinds: What circles and squares are.
    """
    axes.axvline(0, color="0.3", linewidth=0.7)
    axes.set_yticks(
        range(len(labels)), [label.replace("C_N", "$C_N$").replace("R_N", "$R_N$") for label in labels]
    )
    axes.tick_params(axis="y", labelsize=6.5)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=3.2, linewidth=1, label=label)
        for (colour, marker), label in zip((NETWORK, CELL), kinds, strict=True)
    ]
    figure_of = axes.get_figure()
    assert figure_of is not None, "the panel lies in a figure"
    columns = 1 if "\n" in kinds[1] else 2
    figure_of.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=7)


def draw_price(axes: Axes, found: TableFindings) -> None:
    """Draw τ against the CPU seconds until a quantity is known."""
    kinds = (("accuracy", "validation accuracy", COLOURS[2], "o"), ("loss", "training loss", COLOURS[3], "^"))
    for group, label, colour, marker in kinds:
        rows = [row for row in found.predictors if row.group == group]
        seconds = [row.seconds for row in rows]
        axes.plot(seconds, [row.network.tau.value for row in rows], color=colour, marker=marker, label=label)
        low, high = zip(*(row.network.tau.interval for row in rows), strict=True)
        axes.fill_between(seconds, low, high, color=colour, alpha=0.15, linewidth=0)
        other = [row.other.tau.value for row in rows]
        axes.plot(seconds, other, color=colour, linestyle=":", marker=marker, markersize=2)
    scores = {row.name: row for row in found.predictors if row.group == "training-free"}
    # They take the same seconds, and are drawn on two sides of them.
    for name, label, marker, side in (("maml condition", "$C_N$", "X", -1), ("regions", "$R_N$", "P", 1)):
        if name in scores:
            place = scores[name].seconds * ASIDE**side, scores[name].mean.tau.value
            axes.plot(*place, color="black", marker=marker, markersize=5, linestyle="None", label=label)
    axes.axhline(0, color="0.3", linewidth=0.7)
    axes.set_xscale("log")
    spent = [row.seconds for row in found.predictors if row.seconds > 0]
    ticks_at(axes.xaxis, [t for t in SECONDS if min(spent) * 0.9 < t < max(spent) * 1.2])
    place = f"; $C_N$ and $R_N$ at {scores['regions'].seconds:.1f}" if "regions" in scores else ""
    axes.set_xlabel(f"CPU seconds a cell{place}\n(dotted: the other training; bands: 95 %)")
    axes.set_ylabel("Kendall's $\\tau$")
    figure_of = axes.get_figure()
    assert figure_of is not None, "the panel lies in a figure"
    figure_of.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=7, columnspacing=1)


def draw_gains(axes: Axes, searches: Replays) -> None:
    """Draw what search methods gain."""
    rows: list[tuple[str, Tried]] = [(each.label, each) for each in searches.all]
    for each in searches.confirmed:
        if each.label == searches.chosen:
            kind = "and warm start" if each.group == "warm start" else "chosen on half"
            rows.append((f"{kind}: {each.label}", each))
    for place, (_, each) in enumerate(rows):
        kept, retrained = each.found.kept, each.found.retrained
        draw_interval(axes, place - 0.15, kept.mean, (kept.low, kept.high), NETWORK)
        draw_interval(axes, place + 0.15, retrained.mean, (retrained.low, retrained.high), CELL)
    labels = [_short(label, each) for label, each in rows]
    finish_rows(axes, labels, ("network that it trained", "its cell trained again"))
    axes.set_xlabel("gain over random cells\n(percentage points)")


def _short(label: str, each: Tried) -> str:
    """The label without the epochs of rungs, which the text holds, with the price."""
    return f"{label.split(' at ')[0].replace(' by accuracy after', ' after')} ({each.found.seconds:.0f} s)"
