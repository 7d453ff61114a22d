"""Shared parts of the theory figures: subtitles, slopes with intervals, and files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mamltheory.finite_width.asymptotics import PowerLaw, fit_power_law, root_mean_square

from ..plotting import curve, save_figure, ticks_at
from .settings import Widths


def subtitle(claim: str, settings: Widths) -> str:
    """The claim, and below it the setting of the measurements."""
    where = {"sphere": "points on the sphere", "glyphs": "glyph images"}[settings.tasks]
    activation = getattr(settings, "activation", None)
    net = f" {activation}, $L$ = {settings.depth};" if activation else ""
    loop = f"{settings.algorithm.upper()}, $\\tau$ = {settings.tau};"
    return f"{claim}\n{loop}{net} {settings.task_count} tasks of {where}; {settings.seeds} seeds from {settings.seed}"


def save_theory_figure(drawing: Figure, name: str, data: Mapping[str, Any], settings: Widths) -> None:
    """Save the figure as NAME_TASKS.{png,pdf,json} and print the path.

    Args:
        drawing: The figure.
        name: NAME.
        data: The numbers that are drawn.
        settings: Settings of the measurements, with TASKS and the folder.
    """
    config = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "runs", "jobs")}
    paths = save_figure(drawing, f"{name}_{settings.tasks}", data, settings.out, config, settings.seed)
    print(f"wrote {paths[0]} (and .pdf, .json)")


def draw_power_law(
    axes: Axes,
    index: int,
    widths: tuple[int, ...],
    values: np.ndarray,
    label: str,
    solid: bool = False,
) -> PowerLaw:
    """Draw the root mean square over seeds against width, every seed as a faint point, and the fitted power law.

    The legend has its exponent with the 95 % interval.

    Args:
        axes: The panel.
        index: Number of the curve, which decides its style.
        widths: The widths.
        values: Measurements, widths × seeds.
        label: Name of the curve.
        solid: Whether the line is solid, in panels where dashes have another meaning.

    Returns:
        The fitted power law.
    """
    law, style = fit_power_law(widths, values), curve(index)
    text = f"{label} $\\propto l^{{{law.slope:.2f}}}$ [{signed(law.low)}, {signed(law.high)}]"
    axes.loglog(widths, root_mean_square(values), label=text, **style | {"linestyle": "None"})
    line = style | {"marker": "None"} | ({"linestyle": "-"} if solid else {})
    axes.loglog(widths, law(widths), **line)
    for width, row in zip(widths, values, strict=True):
        axes.loglog([width] * len(row), row, linestyle="None", marker=".", color=style["color"], alpha=0.25)
    ticks_at(axes.xaxis, widths)
    return law


def signed(value: float) -> str:
    """Two decimals, with a minus sign and not a hyphen."""
    return f"{value:.2f}".replace("-", "−")


def power_law_words(what: str, law: Mapping[str, Any], widths: Sequence[int]) -> str:
    """A result in words: the power law in the width of :func:`power_law_record`, and the last value."""
    slope, low, high = (signed(law[name]) for name in ("slope", "low", "high"))
    return f"{what} goes as width^{slope} [{low}, {high}] and is {law['rms'][-1]:.2g} at width {widths[-1]}"


def verdict_first(verdict: str, details: Sequence[str]) -> str:
    """The lines of a result: the verdict first, then the ``details`` that it rests on."""
    return "\n".join([f"{verdict}:", *(f"  {line}" for line in details)])


def falls_with_width(law: Mapping[str, Any]) -> bool:
    """Whether the interval of a slope, of :func:`power_law_record`, lies below zero."""
    return bool(law["high"] < 0)


def draw_reference(axes: Axes, widths: tuple[int, ...], start: float, slope: float = -0.5) -> None:
    """Draw a line with the slope of the paper.

    Args:
        axes: The panel.
        widths: The widths.
        start: Its height at the first of them, among the data: it needs no space then.
        slope: Its slope.
    """
    line = start * (np.asarray(widths) / widths[0]) ** slope
    axes.loglog(
        widths,
        line,
        color="0.4",
        linewidth=1,
        linestyle=(0, (1, 1)),
        label=f"slope −{-slope:g}, that of the paper",
    )
    ticks_at(axes.xaxis, widths)


def power_law_record(widths: tuple[int, ...], values: np.ndarray) -> dict[str, Any]:
    """A measurement with its fit, for the JSON of the figure."""
    return {
        "values": values,
        "rms": root_mean_square(values),
        **dataclasses.asdict(fit_power_law(widths, values)),
    }
