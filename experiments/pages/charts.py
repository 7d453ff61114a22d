"""Charts as inline SVG: text stays text, black takes the colour of the page, and nothing is fetched."""

import io
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mamltheory.files import read_regular
from mamltheory.nas.genotype import Genotype
from mamltheory.runtime.folders import MOST_BYTES

from ..plotting import curve, draw_genotype, figure, legend_below

FONT = "system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"
NO_METADATA: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
HEAD = "<svg role="
MARK = "\ue000"
"""Begins the names of the parts of a chart, until :func:`with_numbered_charts` tells those of several apart."""


def chart(draw: Callable[[Axes], None], label: str, height: float = 2.3, width: str = "column") -> Markup:
    """A chart.

    Args:
        draw: Draws into the axes.
        label: What it shows, for those who cannot see it.
        height: In inches.
        width: "column" or "page".

    Returns:
        The SVG element.
    """
    with figure(width, height) as (drawing, axes):
        draw(axes[0, 0])
        return svg_of(drawing, label)


def svg_of(drawing: Figure, label: str, crop: bool = False) -> Markup:
    """The figure as an SVG element that fills its place.

    Args:
        drawing: The figure.
        label: What it shows, for those who cannot see it.
        crop: Whether empty margins are cut off.

    Returns:
        The SVG element.
    """
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "mamltheory"})
    buffer = io.StringIO()
    drawing.savefig(
        buffer, format="svg", transparent=True, metadata=NO_METADATA, bbox_inches="tight" if crop else None
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", FONT, text).replace("#000000", "currentColor")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{MARK}", text)
    head = f'{HEAD}"img" aria-label="{Markup.escape(label)}"'
    return Markup(text.replace("<svg", head, 1).strip())


def with_numbered_charts(page: str) -> str:
    """The page with other names of parts in every chart: a browser looks for a name in the whole page."""
    first, *rest = page.split(HEAD)
    parts = [HEAD + part.replace(MARK, f"c{number}-") for number, part in enumerate(rest, 1)]
    return first + "".join(parts)


def embedded_image(file: Path, label: str) -> Markup:
    """A PNG file within the page."""
    data = b64encode(read_regular(file, MOST_BYTES)).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(label, data)


def cell_drawings(genotype: Genotype) -> Iterator[tuple[str, Markup]]:
    """(name, SVG) of each cell, in the manner of the figures."""
    for kind, edges in genotype.edges().items():
        with figure("page", 2.5) as (drawing, axes):
            draw_genotype(axes[0, 0], edges)
            yield kind, svg_of(drawing, f"{kind} cell", crop=True)


def line_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    labels: tuple[str, str],
    bars: Mapping[str, Sequence[float]] | None = None,
    levels: Mapping[str, float] | None = None,
    marks: Sequence[float] = (),
    log: bool = False,
) -> Markup:
    """Curves over steps or epochs.

    Args:
        curves: (x, y) by name.
        labels: Of both axes.
        bars: Half-widths of intervals at the points of a curve, by its name.
        levels: Horizontal lines by name, such as chance.
        marks: Vertical lines, such as milestones.
        log: Whether the vertical axis is logarithmic.

    Returns:
        The SVG element.
    """

    def draw(axes: Axes) -> None:
        for i, (name, (x, y)) in enumerate(curves.items()):
            style = (
                curve(i) | {"markevery": max(1, len(x) // 12)} | ({"marker": "None"} if len(x) > 60 else {})
            )
            if bars and name in bars:
                del style["markevery"]
                axes.errorbar(x, y, bars[name], capsize=2, label=name, **style)
            else:
                axes.plot(x, y, label=name, **style)
        for name, level in (levels or {}).items():
            axes.axhline(level, color="0.5", linestyle=":", label=name)
        for mark in marks:
            axes.axvline(mark, color="0.6", linestyle=":", linewidth=1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if len(curves) + len(levels or {}) > 1:
            legend_below(axes, 1 if max(map(len, curves)) > 24 else 2)

    return chart(draw, f"{labels[1]} over {labels[0]}: {', '.join(curves)}")


def interval_chart(
    rows: Sequence[tuple[str, float, float]], label: str, levels: Mapping[str, float] | None = None
) -> Markup:
    """Means with their intervals, one below the other.

    Args:
        rows: (name, mean, half-width).
        label: Of the horizontal axis.
        levels: Vertical lines by name.

    Returns:
        The SVG element.
    """

    def draw(axes: Axes) -> None:
        for place, (_, mean, half) in enumerate(rows):
            axes.errorbar(mean, place, xerr=half, capsize=3, **curve(0) | {"linestyle": "none"})
        for name, level in (levels or {}).items():
            axes.axvline(level, color="0.5", linestyle=":", label=name)
        axes.set_yticks(
            range(len(rows)), [name if len(name) < 60 else f"…{name[-57:]}" for name, _, _ in rows]
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(label)
        if levels:
            legend_below(axes)

    return chart(draw, label, 0.9 + 0.22 * len(rows), "page")


def histogram(values: np.ndarray, label: str, levels: Mapping[str, float]) -> Markup:
    """How often values occur, with vertical lines by name."""

    def draw(axes: Axes) -> None:
        axes.hist(
            values, bins=min(20, max(5, round(len(values) ** 0.5))), color=curve(0)["color"], alpha=0.75
        )
        for i, (name, level) in enumerate(levels.items()):
            axes.axvline(level, label=name, **curve(i + 1) | {"marker": "None"})
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(label)
        axes.set_ylabel("tasks")
        legend_below(axes, 2)

    return chart(draw, f"distribution of {label}")


def noise_chart(rounds: Sequence[int], values: Sequence[float], noise: np.ndarray) -> Markup:
    """The reliability of one repeat in every round, before the band that noise alone gives (rounds × 2)."""

    def draw(axes: Axes) -> None:
        edges = np.repeat(noise, 2, axis=0).T
        x = np.ravel([[k - 0.5, k + 0.5] for k in rounds])
        axes.fill_between(
            x, *edges, color="0.5", alpha=0.3, linewidth=0, label="what noise alone gives (95 %)"
        )
        axes.plot(rounds, values, label="of one repeat, $r_1$", **curve(0))
        axes.axhline(0, color="0.5", linewidth=0.7)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("round")
        axes.set_ylabel("reliability of the scores")
        legend_below(axes, 1)

    return chart(draw, "reliability of the scores by round, and what noise alone gives")
