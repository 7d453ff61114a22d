"""What the theory figures have in common: subtitles, slopes with intervals, files and the lines on screen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plotting import curve, save_figure, ticks_at
from experiments.theory.settings import Widths
from mamltheory.asymptotics import PowerLaw, fit_power_law, root_mean_square


def subtitle(claim: str, settings: Widths) -> str:
    """The claim, and below it the setting in which it is seen."""
    where = {"sphere": "points on the sphere", "glyphs": "glyph images"}[settings.tasks]
    activation = getattr(settings, "activation", None)
    net = f" {activation}, $L$ = {settings.depth};" if activation else ""
    loop = f"{settings.algorithm.upper()}, $\\tau$ = {settings.tau};"
    return f"{claim}\n{loop}{net} {settings.task_count} tasks of {where}; {settings.seeds} seeds"


def save_theory_figure(drawing: Figure, name: str, data: Mapping[str, Any], settings: Widths) -> None:
    """Save the figure as NAME_TASKS.{png,pdf,json} and say so."""
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
    brief: bool = False,
) -> PowerLaw:
    """Root mean square over seeds against width, every seed a faint point, and the fitted power law.

    solid: a plain line, where dashes mean something else. brief: a label for narrow panels.
    """
    law, style = fit_power_law(widths, values), curve(index)
    slope, low, high = map(signed, (law.slope, law.low, law.high))
    text = f"{label}{'' if brief else ': slope'} {slope} [{low}, {high}]"
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


def legend_room(axes: Axes, share: float) -> None:
    """Lengthen a logarithmic y-axis downwards by a share of its length, for a legend under the data."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / (high / low) ** share, high)


def draw_reference(axes: Axes, widths: tuple[int, ...], slope: float = -0.5) -> None:
    """A line of the slope that the paper proves, below the data, and room for the legend under it."""
    low, high = axes.get_ylim()
    line = 0.8 * low * (np.asarray(widths) / widths[-1]) ** slope
    axes.loglog(
        widths, line, color="0.4", linewidth=1, linestyle=(0, (1, 1)), label=f"slope −{-slope:g}, the paper's"
    )
    axes.set_ylim(low / (high / low) ** 0.5, high)
    ticks_at(axes.xaxis, widths)


def power_law_record(widths: tuple[int, ...], values: np.ndarray) -> dict[str, Any]:
    """A measurement with its fit, for the JSON beside the figure."""
    return {
        "values": values,
        "rms": root_mean_square(values),
        **dataclasses.asdict(fit_power_law(widths, values)),
    }
