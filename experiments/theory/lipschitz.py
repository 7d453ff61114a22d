"""``lipschitz``: the Lipschitz constant of MAML's Jacobian does not grow with the width, except across a kink."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes

from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.finite_width.lipschitz import lipschitz_ratio
from mamltheory.tasks import Parameters

from ..plotting import curve, figure, legend_below, ticks_at
from .constants import constants, sweep_settings
from .report import (
    draw_power_law,
    power_law_record,
    power_law_words,
    save_theory_figure,
    subtitle,
    verdict_first,
)
from .settings import Lipschitz
from .sweep import Sweep, initialised, make_problem

DISTANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
"""ε: distances of two parameter vectors on the two sides of a kink."""
CONSTANTS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
"""Ticks of the panels of K."""
NAMES = {"erf": "erf", "tanh": "tanh", "relu": "ReLU"}


def plot_lipschitz(settings: Lipschitz) -> int:
    """Measure and draw; returns 0."""
    depths = range(1, settings.depth + 1)
    data = {f"L = {depth}": constants_at_depth(settings, depth) for depth in depths}
    kinks = {name: ratios_across_kink(settings, name) for name in settings.activations}
    kink = {"depth": settings.depth, "width": settings.widths[-1], "distances": DISTANCES, "ratios": kinks}
    draw_lipschitz(settings, data, kink)
    print(verdict_first(lipschitz_verdict(data)[1], lipschitz_result(data | {"kink": kink}, settings.widths)))
    return 0


def lipschitz_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether no slope of the constant is above zero, and that in a sentence, from the figure's ``data``."""
    laws = [r["rate_of_change"] for name, column in data.items() if name != "kink" for r in column.values()]
    holds = all(law["low"] <= 0 for law in laws)
    if holds:
        return True, "The constant of Lemma 1 does not grow with the width"
    return False, "The constant of Lemma 1 grows with the width"


def lipschitz_result(data: dict[str, Any], widths: Sequence[int]) -> list[str]:
    """How the constant goes with the width for each depth and activation, and what a kink does to it, in words."""
    lines = [
        power_law_words(
            f"{depth}, {NAMES[activation]}: the rate of change of the Jacobian",
            record["rate_of_change"],
            widths,
        )
        for depth, column_ in data.items()
        if depth != "kink"
        for activation, record in column_.items()
    ]
    kink = data["kink"]
    first, last = kink["distances"][0], kink["distances"][-1]
    for activation, ratios in kink["ratios"].items():
        lines.append(
            f"across a kink of ReLU, {NAMES[activation]}: {ratios[0]:.2g} at distance {first:g}, "
            f"{ratios[-1]:.2g} at {last:g}"
        )
    return lines


def constants_at_depth(settings: Lipschitz, depth: int) -> dict[str, Any]:
    """The constants of every activation at one depth."""
    chosen = {name: sweep_settings(settings, depth=depth, activation=name) for name in settings.activations}
    return {name: lipschitz_numbers(constants(one)) for name, one in chosen.items()}


def lipschitz_numbers(measured: Sweep) -> dict[str, Any]:
    """Both lines of Eq. (25) over widths, each with its fitted slope."""
    widths = measured.settings.widths
    names = ("rate_of_change", "jacobian_size")
    return {name: power_law_record(widths, measured.values(name)) for name in names}


def kink_pair(params: Parameters, sample: torch.Tensor, distance: float) -> tuple[Parameters, Parameters]:
    """θ and θ̄ at a distance, on two sides of the kink of the first-layer neuron that is nearest to it at ``sample``."""
    preactivation = params["weight1"] @ sample + params["bias1"]
    neuron = int(preactivation.abs().argmin())
    sides = []
    for sign in (1, -1):
        bias = params["bias1"].clone()
        bias[neuron] -= preactivation[neuron] - sign * distance / 2
        sides.append({**params, "bias1": bias})
    return sides[0], sides[1]


def ratios_across_kink(settings: Lipschitz, activation: str) -> list[float]:
    """‖J(θ) − J(θ̄)‖_F/(√l ‖θ − θ̄‖) of Eq. (25) at every distance, for the first of the widest networks."""
    chosen = sweep_settings(settings, activation=activation)
    problem = make_problem(chosen)
    net, params = initialised(chosen, (settings.widths[-1], 0))
    # The kink is at a support sample: the inner loop would move the neuron away from a kink at a query.
    pairs = [kink_pair(params, problem.tasks[0].support_x[0], distance) for distance in DISTANCES]
    return [lipschitz_ratio(net.model, *pair, problem.tasks, problem.inner) for pair in pairs]


def draw_lipschitz(settings: Lipschitz, data: dict[str, Any], kink: dict[str, Any]) -> None:
    """Draw the constant over widths, with a panel for every depth, and the ratio across a kink over its distance."""
    with figure("page", 3.3, columns=settings.depth + 1) as (drawing, axes):
        claim = "Lemma 1: the Lipschitz constant $K$ of MAML's Jacobian does not grow with the width"
        drawing.suptitle(subtitle(claim, settings))
        for panel, (title, column_) in zip(axes[0], data.items(), strict=False):
            panel.set_title(f"for the change of $J/\\sqrt{{l}}$\n${title}$, at $\\theta_0$")
            draw_constants(panel, settings, column_)
        for panel in axes[0, :-1]:
            low, high = panel.get_ylim()
            ticks_at(panel.yaxis, [tick for tick in CONSTANTS if low <= tick <= high])
            legend_below(panel)
        axes[0, 0].set_ylabel("least $K$ of Lemma 1")
        draw_kink(axes[0, -1], kink)
        legend_below(axes[0, -1])
        save_theory_figure(drawing, "lipschitz", {**data, "kink": kink}, settings)


def draw_constants(axes: Axes, settings: Lipschitz, data: dict[str, Any]) -> None:
    """Draw the worst rate of change of J/√l for every activation, and its size as dotted lines."""
    for i, (activation, record) in enumerate(data.items()):
        values, size = (np.asarray(record[name]["values"]) for name in ("rate_of_change", "jacobian_size"))
        draw_power_law(axes, i, settings.widths, values, NAMES[activation])
        axes.loglog(settings.widths, root_mean_square(size), ":", color=curve(i)["color"], linewidth=1)
    axes.plot([], [], ":", color="0.3", linewidth=1, label="for the size $\\|J\\|_F/\\sqrt{l}$")
    ticks_at(axes.xaxis, settings.widths)
    axes.set_xlabel("width $l$")


def draw_kink(axes: Axes, kink: dict[str, Any]) -> None:
    """The ratio of Eq. (25) across a kink of ReLU grows as 1/ε; smooth activations have none."""
    for i, (activation, ratios) in enumerate(kink["ratios"].items()):
        axes.loglog(kink["distances"], np.asarray(ratios), label=NAMES[activation], **curve(i))
    axes.invert_xaxis()
    axes.set_title(f"across a kink of ReLU\n$L$ = {kink['depth']}, $l$ = {kink['width']}")
    axes.set_xlabel(r"$\|\theta - \bar\theta\|$, falling")
    axes.set_ylabel(r"$\|J(\theta) - J(\bar\theta)\|_F\,/\,(\sqrt{l}\,\|\theta - \bar\theta\|)$")
