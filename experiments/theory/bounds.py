"""``bounds``: how far the bounds of Theorem 3 lie above what networks of 1, 2 and 3 hidden layers do."""

import numpy as np
from matplotlib.axes import Axes

from experiments.plotting import curve, figure, ticks_at
from experiments.theory import convergence
from experiments.theory.constants import constants, drift_bounds, lemma1_constant, path_bounds, theory
from experiments.theory.report import draw_power_law, finish, legend_room, power_law_record, subtitle
from experiments.theory.settings import Bounds
from experiments.theory.share import share_record, shares
from experiments.theory.sweep import Sweep, sweep
from mamltheory.asymptotics import root_mean_square

HEIGHTS = (1.0, 1.25, 0.8)


def run(settings: Bounds) -> int:
    """Measure and draw; returns 0."""
    draw(settings, {f"L = {depth}": column(settings, depth) for depth in range(1, settings.depth + 1)})
    return 0


def column(settings: Bounds, depth: int) -> dict[str, object]:
    """All numbers of one depth."""
    chosen = theory(settings, depth=depth)
    result = sweep(chosen, "bounds")
    data = numbers(result, constants(chosen))
    return data | {"share": share_record(shares(chosen, settings.share_widths, settings.batches))}


def numbers(result: Sweep, measured: Sweep) -> dict[str, object]:
    """Residuals, path and drift with their bounds, and by how much they keep below them."""
    widths = result.settings.widths
    bounds = {"path_length": path_bounds(result, measured), "kernel_drift": drift_bounds(result, measured)}
    sides = {
        name: power_law_record(widths, result.values(name))
        | {
            "bound": bound,
            "bound_rms": root_mean_square(bound),
            "median_share_of_bound": np.median(result.values(name) / bound, axis=1),
        }
        for name, bound in bounds.items()
    }
    return {
        "residual": convergence.numbers(result),
        **sides,
        "K": lemma1_constant(measured),
        "R0": result.values("residuals")[..., 0],
        "sigma_min": result.problem.sigma_min,
        "eta0": result.problem.eta0,
    }


def draw(settings: Bounds, columns: dict[str, dict[str, object]]) -> None:
    """Residual, movement and probability, a column for every depth."""
    with figure("page", 6.8, 3, len(columns), sharey="row", height_ratios=HEIGHTS) as (drawing, axes):
        where = subtitle("The bounds of Theorem 3 hold from small widths on, with much to spare", settings)
        drawing.suptitle(where.replace(f"$L$ = {settings.depth}; ", ""))
        for i, (title, data) in enumerate(columns.items()):
            axes[0, i].set_title(f"${title}$")
            draw_residuals(axes[0, i], data["residual"])
            draw_movement(axes[1, i], data)
            draw_share(axes[2, i], data["share"])
            if i > 0:
                for panel in axes[:, i]:
                    panel.set_ylabel("")
        axes[0, 0].legend(fontsize=6.5, loc="lower left", handlelength=2.6)
        legend_room(axes[1, 0], 0.5)
        finish(drawing, "bounds", columns, settings)


def draw_residuals(axes: Axes, data: dict[str, object]) -> None:
    """The residual with the bound (31), and the rate of the limit kernel, to which wide networks tend."""
    convergence.draw_residuals(axes, data)
    axes.semilogy(data["limit_rate"] ** np.arange(len(data["bound"])), "k:", label="wide limit")
    axes.get_legend().remove()


def draw_movement(axes: Axes, data: dict[str, object]) -> None:
    """Path length and kernel drift against width, and (29) and (30) above them in the same colours."""
    widths = data["residual"]["widths"]
    for i, (name, label, bound) in enumerate(
        (("path_length", "path", "bound (29)"), ("kernel_drift", "drift", "bound (30)"))
    ):
        draw_power_law(axes, i, widths, data[name]["values"], label, solid=True)
        style = curve(i) | {"linestyle": "--", "markerfacecolor": "white"}
        axes.loglog(widths, data[name]["bound_rms"], label=bound, **style)
    ticks_at(axes.xaxis, widths)
    axes.set_xlabel("width $l$")
    axes.set_ylabel("path of $\\theta$, drift of $\\hat\\Phi$ (norms)")
    axes.legend(fontsize=6, loc="lower left", handlelength=2.6)


def draw_share(axes: Axes, data: dict[str, object]) -> None:
    """The share of networks within the bound at every step, with its interval."""
    share = np.asarray(data["share"])
    errors = np.array([share - data["low"], data["high"] - share])
    axes.errorbar(data["widths"], share, errors, capsize=2.5, **curve(2) | {"linestyle": "-"})
    axes.set_xscale("log")
    axes.set_ylim(-0.04, 1.04)
    ticks_at(axes.xaxis, data["widths"])
    axes.set_xlabel("width $l$")
    axes.set_ylabel(f"share of {data['networks']} networks\nwithin (31) at every step")
