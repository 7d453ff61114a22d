"""``bounds``: the bounds of Theorem 3 against networks of 1, 2 and 3 hidden layers.

The probability in Theorem 3 is the share of initialisations that satisfy the bound (31) at every step. Many narrow
networks are trained for it as one batch, of which only the residuals are kept.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from scipy.stats import binomtest
from torch import Tensor
from torch.func import grad_and_value, vmap

from mamltheory import FullyConnected, generator
from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.finite_width.bounds import theorem3_residual_bound
from mamltheory.inner_loop import meta_output, square_loss
from mamltheory.tasks import Parameters, query_labels

from ..plotting import curve, figure, legend_below, ticks_at
from . import convergence
from .constants import constants, drift_bounds, lemma1_constant, path_bounds, sweep_settings
from .report import (
    draw_power_law,
    power_law_record,
    save_theory_figure,
    subtitle,
    verdict_first,
)
from .settings import Bounds, Theory
from .sweep import Measurement, Problem, Sweep, network_of_width, run_sweep

BATCH = 25
"""Networks in a batch."""


def batch_of_starts(settings: Theory, net: FullyConnected, batch: int) -> Parameters:
    """θ_0 of the networks in a batch, stacked along a first dimension."""
    starts = [
        net.initialise(generator(settings.seed, "share init", net.width, BATCH * batch + i))
        for i in range(BATCH)
    ]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def trained_batch(
    net: FullyConnected, starts: Parameters, problem: Problem, steps: int
) -> tuple[Float[Tensor, "networks t"], Parameters]:
    """Train many networks as one batch; residuals are infinite or NaN for a network that diverges.

    Args:
        net: The network.
        starts: θ_0 of all networks, stacked along a first dimension.
        problem: Tasks and learning rates.
        steps: Meta-training steps.

    Returns:
        ‖g(θ_t)‖ for t = 0 … steps of every network, and the trained parameters, stacked.
    """
    labels, rate = query_labels(problem.tasks), problem.eta0 / net.model.scale
    params, residuals = starts, []

    def loss(theta: Parameters) -> tuple[Tensor, Tensor]:
        outputs = torch.cat([meta_output(net.model, theta, task, problem.inner) for task in problem.tasks])
        return square_loss(outputs, labels), outputs

    slopes = vmap(grad_and_value(loss, has_aux=True))
    for step in range(steps + 1):
        gradient, (_, outputs) = slopes(params)
        residuals.append((outputs - labels).norm(dim=1))
        if step < steps:
            params = {name: theta - rate * gradient[name] for name, theta in params.items()}
    return torch.stack(residuals, dim=1).detach(), {name: theta.detach() for name, theta in params.items()}


def batch_residuals(
    net: FullyConnected, starts: Parameters, problem: Problem, steps: int
) -> Float[Tensor, "networks t"]:
    """The residuals of :func:`trained_batch`, of which the arguments are."""
    return trained_batch(net, starts, problem, steps)[0]


def measure_share(settings: Theory, problem: Problem, pair: tuple[int, int]) -> dict[str, Any]:
    """For every network in a batch, whether its residual is below the bound (31) at all steps."""
    width, batch = pair
    net = network_of_width(settings, width)
    residuals = batch_residuals(net, batch_of_starts(settings, net, batch), problem, settings.steps)
    bound = theorem3_residual_bound(problem.eta0, problem.sigma_min, 1.0, settings.steps)
    held = (residuals <= residuals[:, :1] * bound * (1 + 1e-12)).all(dim=1)
    return {"width": width, "seed": batch, "held": [int(one) for one in held]}


def shares(settings: Theory, widths: tuple[int, ...], batches: int) -> Sweep:
    """Measurements of :func:`measure_share` for a number of batches at every width."""
    narrow = dataclasses.replace(settings, widths=widths, seeds=batches)
    return run_sweep(narrow, "networks within the bound", Measurement(f"share-of-{BATCH}", measure_share))


def share_record(result: Sweep) -> dict[str, Any]:
    """The share of networks within the bound, with the exact (Clopper–Pearson) 95 % interval of the probability."""
    held = result.values("held")
    networks = held.shape[1] * held.shape[2]
    counts = held.sum(axis=(1, 2)).astype(int)
    intervals = [binomtest(int(count), networks).proportion_ci(0.95, "exact") for count in counts]
    return {
        "widths": result.settings.widths,
        "networks": networks,
        "within_bound": counts,
        "share": counts / networks,
        "low": np.array([interval.low for interval in intervals]),
        "high": np.array([interval.high for interval in intervals]),
    }


HEIGHTS = (1.0, 1.0, 1.0, 0.8)
MOVEMENTS = {
    "path_length": ("path", "bound (29)", r"path $\sum_t \|\theta_t - \theta_{t-1}\|$"),
    "kernel_drift": ("drift", "bound (30)", r"drift $\sup_t \|\hat\Phi_t - \hat\Phi_0\|_F$"),
}
"""Name, bound and y label of what moves; a row of panels for each, for the norms are of different objects."""


def plot_bounds(settings: Bounds) -> int:
    """Measure and draw; returns 0."""
    columns = {f"L = {depth}": bounds_at_depth(settings, depth) for depth in range(1, settings.depth + 1)}
    draw_bounds(settings, columns)
    print(verdict_first(bounds_verdict(columns)[1], bounds_result(columns)))
    return 0


def bounds_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether all networks are within the bound at every depth, and that in a sentence, from the figure's ``data``."""
    shares = [column["residual"]["share_below_bound"] for column in data.values()]
    holds = bool(min(map(min, shares)) == 1)
    if holds:
        return True, "Every network stays below the bound of Theorem 3, at every depth and width"
    return False, (
        f"Networks within the bound of Theorem 3: {100 * min(share[-1] for share in shares):.0f} % at the largest "
        "width, fewer in narrow ones"
    )


def bounds_result(columns: dict[str, dict[str, Any]]) -> list[str]:
    """The rates and the verdict on the bound for every depth, a sentence each."""
    return [f"{depth}: {convergence.convergence_result(data['residual'])}" for depth, data in columns.items()]


def bounds_at_depth(settings: Bounds, depth: int) -> dict[str, Any]:
    """All numbers of one depth."""
    chosen = sweep_settings(settings, depth=depth)
    result = run_sweep(chosen, "bounds")
    data = bounds_numbers(result, constants(chosen))
    return data | {"share": share_record(shares(chosen, settings.share_widths, settings.batches))}


def bounds_numbers(result: Sweep, measured: Sweep) -> dict[str, Any]:
    """Residuals, path and drift with their bounds and the ratios to them."""
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
        "residual": convergence.convergence_numbers(result),
        **sides,
        "K": lemma1_constant(measured),
        "R0": result.values("residuals")[..., 0],
        "sigma_min": result.problem.sigma_min,
        "eta0": result.problem.eta0,
    }


def draw_bounds(settings: Bounds, columns: dict[str, dict[str, Any]]) -> None:
    """Draw residual, path, drift and probability, with a column for every depth."""
    with figure("page", 9.4, len(HEIGHTS), len(columns), sharey="row", height_ratios=HEIGHTS) as (
        drawing,
        axes,
    ):
        where = subtitle(claim(columns), settings)
        drawing.suptitle(where.replace(f"$L$ = {settings.depth}; ", ""))
        for i, (title, data) in enumerate(columns.items()):
            axes[0, i].set_title(f"${title}$\n{networks_beyond(data['residual'])}", fontsize=8)
            draw_residuals_with_limit(axes[0, i], data["residual"])
            for j, name in enumerate(MOVEMENTS):
                draw_movement(axes[j + 1, i], data, j, name)
            draw_share(axes[-1, i], data["share"])
            if i > 0:
                for panel in axes[:, i]:
                    panel.set_ylabel("")
        residuals = axes[0, 0].get_legend_handles_labels()
        drawing.legend(
            *residuals,
            loc="outside lower center",
            ncols=6,
            frameon=False,
            fontsize=7,
            title="Top row",
            title_fontsize=7,
        )
        save_theory_figure(drawing, "bounds", columns, settings)


def claim(columns: dict[str, dict[str, Any]]) -> str:
    """What the numbers of the figure say about the bounds, in a line for the rate and one for path and drift."""
    counted = [
        (width, share)
        for data in columns.values()
        for part, name in ((data["share"], "share"), (data["residual"], "share_below_bound"))
        for width, share in zip(part["widths"], part[name], strict=True)
    ]
    beyond = max((width for width, share in counted if share < 1), default=0)
    within = sorted({width for width, _ in counted if width > beyond})
    rate = f"Every network from $l$ = {within[0]} on" if within else "Not every network, at any width,"
    ratio = max(
        np.max(np.asarray(data[name]["values"]) / np.asarray(data[name]["bound"]))
        for data in columns.values()
        for name in MOVEMENTS
    )
    return f"{rate} is within bound (31) of Theorem 3;\npath and drift are at most {100 * ratio:.2g} % of their bounds"


def networks_beyond(data: dict[str, Any]) -> str:
    """How many of the networks that are drawn leave the bound (31) at some step, in words."""
    rates = np.asarray(data["rates"])
    left = np.round(rates.shape[1] * (1 - np.asarray(data["share_below_bound"]))).astype(int)
    where = ", ".join(str(width) for width, count in zip(data["widths"], left, strict=True) if count)
    return f"{left.sum() or 'none'} of {rates.size} beyond bound (31)" + f", at $l$ = {where}" * bool(where)


def draw_residuals_with_limit(axes: Axes, data: dict[str, Any]) -> None:
    """Draw the residual with the bound (31) and the rate of the limit kernel."""
    convergence.draw_residuals(axes, data)
    axes.semilogy(data["limit_rate"] ** np.arange(len(data["bound"])), "k:", label="wide limit")


def draw_movement(axes: Axes, data: dict[str, Any], index: int, name: str) -> None:
    """Draw one of ``MOVEMENTS`` against width with its bound.

    Args:
        axes: The panel.
        data: The numbers of one depth.
        index: Number of the curve, which decides its style.
        name: Which movement.
    """
    widths, (label, bound, words) = data["residual"]["widths"], MOVEMENTS[name]
    draw_power_law(axes, index, widths, np.asarray(data[name]["values"]), label, solid=True)
    style = curve(index) | {"linestyle": "--", "markerfacecolor": "white"}
    axes.loglog(widths, data[name]["bound_rms"], label=bound, **style)
    ticks_at(axes.xaxis, widths)
    axes.set_xlabel("width $l$")
    axes.set_ylabel(words)
    legend_below(axes)


def draw_share(axes: Axes, data: dict[str, Any]) -> None:
    """Draw the share of networks within the bound at every step, with its interval."""
    share = np.asarray(data["share"])
    errors = np.array([share - data["low"], data["high"] - share])
    axes.errorbar(data["widths"], share, errors, capsize=2.5, **curve(2) | {"linestyle": "-"})
    axes.set_xscale("log")
    axes.set_ylim(-0.04, 1.04)
    ticks_at(axes.xaxis, data["widths"])
    axes.set_xlabel("width $l$")
    axes.set_ylabel(f"share of {data['networks']} networks\nwithin (31)\nat every step")
