"""``drift``: in wider networks parameters and kernel move less, and the initial kernel is nearer to the limit."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mamltheory.finite_width.asymptotics import root_mean_square

from ..plotting import curve, figure, legend_below, tall_left, ticks_at
from .constants import constants, drift_bounds, path_bounds
from .report import (
    draw_power_law,
    falls_with_width,
    power_law_record,
    power_law_words,
    save_theory_figure,
    subtitle,
    verdict_first,
)
from .settings import Drift, Theory
from .sweep import Sweep, run_sweep

MOVEMENTS = {
    "path_length": r"path $\sum_t \|\theta_t - \theta_{t-1}\|$",
    "movement": r"distance $\|\theta_T - \theta_0\|$",
}
DRIFT = {"kernel_drift": "measured"}
DEVIATION = {"kernel_deviation": "measured"}
PANELS: tuple[tuple[str, dict[str, str], str | None, str], ...] = (
    ("Parameters", MOVEMENTS, "(29)", r"norm of the change of $\theta$"),
    ("MetaNTK while training", DRIFT, "(30)", r"$\sup_t \|\hat\Phi_t - \hat\Phi_0\|_F$"),
    ("MetaNTK before training", DEVIATION, None, r"$\|\hat\Phi_0 - \Phi\|_F \;/\; \|\Phi\|_F$"),
)
"""Title, measurements, equation of the bound and y label of every panel; a panel has quantities of one unit."""


def plot_drift(settings: Drift) -> int:
    """Measure and draw; returns 0."""
    result = run_sweep(settings, "drift")
    data = draw_drift(result)
    print(verdict_first(drift_verdict(data)[1], drift_result(data)))
    return 0


def drift_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether all movements fall with the width, and that in a sentence, from the figure's ``data``."""
    holds = all(falls_with_width(data[name]) for name in (*MOVEMENTS, *DRIFT, *DEVIATION))
    if holds:
        return True, "Parameters and kernel move less the wider the network"
    return False, "Not every movement falls with the width"


def drift_result(data: dict[str, Any]) -> list[str]:
    """How each measurement goes with the width, in words."""
    widths = data["widths"]
    return [
        power_law_words(f"the {name.replace('_', ' ')}", data[name], widths)
        for name in (*MOVEMENTS, *DRIFT, *DEVIATION)
    ]


def drift_numbers(result: Sweep, measured: Sweep) -> dict[str, Any]:
    """The measurements with fitted slopes, and the bounds (29) and (30) with the measured constants."""
    widths = result.settings.widths
    fits = {name: power_law_record(widths, result.values(name)) for name in MOVEMENTS | DRIFT | DEVIATION}
    bounds = {"bound (29)": path_bounds(result, measured), "bound (30)": drift_bounds(result, measured)}
    records = {name: {"values": v, "rms": root_mean_square(v)} for name, v in bounds.items()}
    return {"widths": widths, "bound widths": measured.settings.widths, **fits, **records}


def draw_drift(result: Sweep) -> dict[str, Any]:
    """Draw parameter movement, and kernel drift and distance from the limit, against width; returns the numbers."""
    data = drift_numbers(result, constants(result.settings))
    drift_figure(data, result.settings)
    return data


def drift_figure(data: dict[str, Any], settings: Theory) -> None:
    """The figure of these numbers."""
    with figure("page", 5.2, rows=2, columns=2) as (drawing, axes):
        drawing.suptitle(
            subtitle("The wider the network, the less it moves: Theorem 3 and Lemma 3", settings)
        )
        for panel, (title, measurements, equation, label) in zip(tall_left(axes), PANELS, strict=True):
            for i, (name, words) in enumerate(measurements.items()):
                draw_power_law(panel, i, settings.widths, np.asarray(data[name]["values"]), words, solid=True)
            if equation is not None:
                draw_bound(panel, settings.widths, np.asarray(data[f"bound {equation}"]["rms"]), equation)
            panel.set_title(title)
            panel.set_xlabel("width $l$")
            panel.set_ylabel(label)
            legend_below(panel)
        save_theory_figure(drawing, "drift", data, settings)


def draw_bound(axes: Axes, widths: tuple[int, ...], bound: np.ndarray, equation: str) -> None:
    """Draw the bound on the first measurement in its colour, as far as its constants were measured.

    Args:
        axes: The panel.
        widths: The widths.
        bound: The bound at the first of them.
        equation: Its number in the paper.
    """
    style = curve(0) | {"linestyle": "--", "markerfacecolor": "white"}
    known = f", up to $l$ = {widths[len(bound) - 1]}" * (len(bound) < len(widths))
    label = f"bound {equation} with the measured $K$, $R_0${known}"
    axes.loglog(widths[: len(bound)], bound, label=label, **style)
    ticks_at(axes.xaxis, widths)
