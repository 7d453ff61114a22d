"""``plateau``: wide networks do not approach the printed closed form (12)–(13), but that of discrete time.

The centred network f_θ − f_{θ0} is trained, so that both closed forms are exactly defined without f_0.
"""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    analytic_last_layer_ntk,
    analytic_ntk,
    centred,
    joint_inputs,
    train,
)
from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.linalg import Dynamics

from ..plotting import curve, figure, legend_below, ticks_at
from .constants import sweep_settings
from .report import (
    draw_power_law,
    falls_with_width,
    power_law_record,
    power_law_words,
    save_theory_figure,
    signed,
    subtitle,
    verdict_first,
)
from .settings import Plateau
from .sweep import (
    Measurement,
    Problem,
    Sweep,
    initialised,
    kernel_prediction,
    make_problem,
    network_of_width,
    run_sweep,
)

DEPTHS = (1, 2, 3)
"""Hidden layers for the comparison of the two limits over the number of inner steps."""


def plot_plateau(settings: Plateau) -> int:
    """Measure and draw; returns 0."""
    result = run_sweep(sweep_settings(settings), "plateau", Measurement("plateau", measure_deviations))
    data = plateau_numbers(settings, result)
    draw_plateau(settings, data)
    print(verdict_first(plateau_verdict(data)[1], plateau_result(data)))
    return 0


def plateau_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether the form in discrete time is approached with the width, and that in a sentence, from ``data``."""
    holds = falls_with_width(data["discrete"])
    if holds:
        return (
            True,
            f"The closed form in discrete time is approached; the printed one stops at {data['plateau']:.3f}",
        )
    return False, "That networks approach the closed form in discrete time is not seen at these widths"


def plateau_result(data: dict[str, Any]) -> list[str]:
    """How the deviations from both closed forms go with the width, in words."""
    widths = data["widths"]
    return [
        power_law_words("the deviation from the closed form in discrete time", data["discrete"], widths),
        f"the printed form stops at a deviation of {data['plateau']:.3f}; at width {widths[-1]} it is "
        f"{data['printed']['rms'][-1]:.3f}",
    ]


def limits(
    net: FullyConnected, problem: Problem, inner: InnerLoop, descent: Dynamics, flow: Dynamics
) -> tuple[Tensor, Tensor]:
    """The outputs on the held-out tasks at infinite width, of discrete steps and as printed.

    Args:
        net: The network.
        problem: Tasks and learning rates.
        inner: The inner loop.
        descent: Outer dynamics in discrete time.
        flow: Outer dynamics as printed.

    Returns:
        The outputs of discrete steps, and those of the printed form.
    """
    x = joint_inputs((*problem.tasks, *problem.test_tasks))
    kernels = analytic_ntk(net, x), analytic_last_layer_ntk(net, x) if inner.algorithm == "anil" else None
    printed = GradientFlow(inner.lam0 * inner.tau)
    return (
        kernel_prediction(problem, *kernels, (inner.dynamics, descent), None),
        kernel_prediction(problem, *kernels, (printed, flow), None),
    )


def limits_in_time(net: FullyConnected, problem: Problem, steps: int) -> tuple[Tensor, Tensor]:
    """Both closed forms after ``steps`` steps: of discrete steps, and with both exponentials as printed."""
    eta0 = problem.eta0
    return limits(net, problem, problem.inner, GradientDescent(eta0, steps), GradientFlow(eta0 * steps))


def gap(closed_forms: tuple[Tensor, Tensor]) -> float:
    """‖printed − discrete‖/‖discrete‖: the distance between the two limits."""
    discrete, printed = closed_forms
    return float((printed - discrete).norm() / discrete.norm())


def measure_deviations(settings: Plateau, problem: Problem, pair: tuple[int, int]) -> dict[str, Any]:
    """‖trained − closed form‖ on the held-out tasks for both forms, in units of the discrete one's norm."""
    net, params = initialised(settings, pair)
    parts = (problem.tasks, problem.inner, problem.eta0, settings.steps, problem.test_tasks)
    trained = train(centred(net.model, params), params, *parts).observations[-1].test_outputs
    assert trained is not None, "the training has held-out tasks"
    forms = limits_in_time(net, problem, settings.steps)
    discrete, printed = (float((trained - form).norm() / forms[0].norm()) for form in forms)
    return {"width": pair[0], "seed": pair[1], "discrete": discrete, "printed": printed}


def gap_over_steps(settings: Plateau, depth: int) -> list[float]:
    """The gap for every number of inner steps at one λ0τ after full training, which leaves the inner loop alone."""
    problem, net = (
        make_problem(sweep_settings(settings, depth=depth)),
        network_of_width(sweep_settings(settings, depth=depth), 1),
    )
    time = problem.inner.lam0 * settings.tau
    loops = [dataclasses.replace(problem.inner, lam0=time / tau, tau=tau) for tau in settings.taus]
    return [gap(limits(net, problem, loop, Converged(), Converged())) for loop in loops]


def plateau_numbers(settings: Plateau, result: Sweep) -> dict[str, Any]:
    """Deviations from both forms over widths, the plateau, and the plateau over the number of inner steps."""
    gaps = {f"L = {depth}": np.array(gap_over_steps(settings, depth)) for depth in DEPTHS}
    net, printed = network_of_width(result.settings, 1), result.values("printed")
    return {
        "widths": settings.widths,
        "discrete": power_law_record(settings.widths, result.values("discrete")),
        "printed": {"values": printed, "rms": root_mean_square(printed)},
        "plateau": gap(limits_in_time(net, result.problem, settings.steps)),
        "inner_time": result.problem.inner.lam0 * settings.tau,
        "taus": settings.taus,
        "gaps": {name: power_law_record(settings.taus, values) for name, values in gaps.items()},
    }


def draw_plateau(settings: Plateau, data: dict[str, Any]) -> None:
    """Deviation against width with the plateau, and the plateau against the number of inner steps."""
    with figure("page", 3.6, columns=2) as (drawing, axes):
        claim = "At finite $\\tau$ the printed form of Theorem 2 stops short, the discrete one does not"
        drawing.suptitle(subtitle(claim, settings))
        draw_deviations(axes[0, 0], settings, data)
        draw_gaps(axes[0, 1], settings, data)
        save_theory_figure(drawing, "plateau", data, settings)


def draw_deviations(axes: Axes, settings: Plateau, data: dict[str, Any]) -> None:
    """Both deviations over widths, every seed a faint point, and the gap of the two limits as a line."""
    widths, printed = settings.widths, data["printed"]
    draw_power_law(axes, 0, widths, np.asarray(data["discrete"]["values"]), "discrete time", solid=True)
    style = curve(1)
    axes.loglog(widths, printed["rms"], label="printed, $e^{-\\lambda\\tau\\Theta}$", **style)
    for width, row in zip(widths, printed["values"], strict=True):
        axes.loglog([width] * len(row), row, linestyle="None", marker=".", color=style["color"], alpha=0.25)
    label = f"gap of the two limits, {data['plateau']:.3f}"
    axes.axhline(data["plateau"], color="k", linestyle=":", label=label)
    ticks_at(axes.xaxis, widths)
    axes.set_xlabel("width $l$")
    axes.set_ylabel(f"relative deviation of the outputs\non held-out tasks, {settings.steps} steps")
    legend_below(axes)


def draw_gaps(axes: Axes, settings: Plateau, data: dict[str, Any]) -> None:
    """The gap over the number of inner steps: it falls as 1/τ, and is never 0."""
    taus = np.asarray(settings.taus)
    for i, (name, record) in enumerate(data["gaps"].items()):
        axes.loglog(
            taus, record["values"], label=f"${name}$: slope {signed(record['slope'])}", **curve(i + 2)
        )
    top = max(record["values"][0] for record in data["gaps"].values())
    reference = 1.6 * top * taus[0] / taus
    axes.loglog(taus, reference, color="0.4", linewidth=1, linestyle=(0, (1, 1)), label="slope −1")
    ticks_at(axes.xaxis, settings.taus)
    axes.set_xlabel("inner steps $\\tau$, at the same $\\lambda_0\\tau$")
    axes.set_ylabel("relative gap of the two limits,\nfully trained")
    legend_below(axes)
