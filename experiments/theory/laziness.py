"""``laziness``: where the kernel moves at every width, and where it moves less in wider networks.

Measured are the change of the MetaNTK in training and the distance of trained networks from the kernel regression of
Theorem 2, both between 0 and 1, under four controls:

    parameterisation   f of Eq. (16), f in NTK parameterisation, and the latter as f/√l with rates l times as large,
                       which is mean field (μP): there features are learnt at every width
    multiplier α       αf with rates 1/α² times as large: α → ∞ is lazy, α → 0 rich
    outer rate         η0 up to and beyond 2/σ_max(Φ̂_0), where the loss first grows and the kernel must shrink
    σ_w                smaller initial weights at a fixed width

All but the first curve are of the NTK parameterisation: in Eq. (16) with one rate the first layer of a network with one
hidden layer hardly moves, so that f/√l is lazy as well.
The kernels of αf at the rates η0/α² are those of f, and training it is training f with labels Y/α: both loops move
θ by the gradient of f times the residual (f − Y/α). So a multiplier is a factor of the labels, exactly.
"""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from mamltheory import (
    FullyConnected,
    GradientDescent,
    Model,
    Task,
    empirical_last_layer_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    meta_ntk,
    train,
)
from mamltheory.errors import ValueRangeError
from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.tasks import Parameters

from ..plotting import curve, figure, ticks_at
from .constants import sweep_settings
from .report import (
    falls_with_width,
    power_law_record,
    power_law_words,
    save_theory_figure,
    signed,
    subtitle,
    verdict_first,
)
from .settings import Laziness, Theory
from .sweep import (
    Measurement,
    Problem,
    Sweep,
    initialised,
    kernel_prediction,
    problem_of,
    run_sweep,
)

MULTIPLIERS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Output multipliers α, from rich to lazy."""
RATES = (0.5, 0.8, 0.95, 1.1, 1.3, 1.6)
"""Outer rates η0 in units of 2/σ_max(Φ̂_0) of the network."""
SIGMAS = (0.2, 0.3, 0.45, 0.7, 1.0, 1.5)
"""Standard deviations σ_w; σ_b is a fifteenth of it, as everywhere."""
MOVES = 0.05
"""Relative change from which on a kernel is said to move, and a prediction to be off."""
PARAMETERISATIONS = {"standard": "Eq. (16)", "ntk": "NTK", "mean field": "mean field, μP"}
MEASURES = {"drift": "change of the kernel", "error": "distance from Theorem 2"}


def plot_laziness(settings: Laziness) -> int:
    """Measure and draw; returns 0."""
    result = run_sweep(sweep_settings(settings), "laziness", Measurement("laziness", measure_controls))
    data = laziness_numbers(result)
    draw_laziness(settings, data)
    print(verdict_first(laziness_verdict(data)[1], laziness_result(data)))
    return 0


def laziness_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether the kernel moves in mean field alone, and that in a sentence, from the figure's ``data``."""
    measures = data["measures"]
    lazy = all(falls_with_width(laws[key]) for laws in measures.values() for key in ("standard", "ntk"))
    rich = all(not falls_with_width(laws["mean field"]) for laws in measures.values())
    holds = lazy and rich
    if holds:
        return (
            True,
            "In mean field the kernel moves at every width; in the other parameterisations less and less",
        )
    return False, "The parameterisations do not differ as the theory says"


def laziness_result(data: dict[str, Any]) -> list[str]:
    """How both measures go with the width in each parameterisation, in words."""
    return [
        power_law_words(f"{label}: the {MEASURES[name]}", data["measures"][name][key], data["widths"])
        for key, label in PARAMETERISATIONS.items()
        for name in MEASURES
    ]


def multiplied(model: Model, factor: float) -> Model:
    """αf, at rates and kernels that are divided by α²: the same kernels and the same outputs' speed as f.

    Args:
        model: f.
        factor: α.

    Returns:
        αf.
    """

    def function(params: Parameters, x: Tensor) -> Tensor:
        return factor * model(params, x)

    return dataclasses.replace(model, function=function, scale=model.scale * factor**2, network=None)


def with_labels(tasks: tuple[Task, ...], factor: float) -> tuple[Task, ...]:
    """The ``tasks`` with all labels multiplied by a ``factor``."""
    return tuple(
        Task(one.query_x, factor * one.query_y, one.support_x, factor * one.support_y) for one in tasks
    )


def disagreement(one: Tensor, other: Tensor) -> float:
    """‖a − b‖/(‖a‖ + ‖b‖): 0 for equal ones, 1 for those that have nothing in common or are not finite."""
    share = float((one - other).norm() / (one.norm() + other.norm()))
    return share if share <= 1 else 1.0


def lazy_or_rich(net: FullyConnected, params: Parameters, problem: Problem, steps: int) -> dict[str, float]:
    """The change of Φ̂ within ``steps`` of training from ``params``, and the distance from the kernel regression.

    Args:
        net: The network.
        params: θ_0.
        problem: Tasks and learning rates.
        steps: Meta-training steps.

    Returns:
        Both measures; 1 where training diverges.
    """
    parts = (net.model, params, problem.tasks, problem.inner, problem.eta0, steps, problem.test_tasks)
    try:
        record = train(*parts, kernel_steps=(steps,))
    except ValueRangeError:
        return {"drift": 1.0, "error": 1.0}
    x = joint_inputs((*problem.tasks, *problem.test_tasks))
    theta = empirical_ntk(net.model, x, params=params)
    anil = problem.inner.algorithm == "anil"
    last = empirical_last_layer_ntk(net.model, x, params=params) if anil else None
    loops = (problem.inner.dynamics, GradientDescent(problem.eta0, steps))
    predicted = kernel_prediction(problem, theta, last, loops, net.model(params, x).reshape(-1))
    trained = record.observations[-1].test_outputs
    assert trained is not None, "the problem has held-out tasks"
    return {
        "drift": disagreement(record.kernels[steps], record.kernels[0]),
        "error": disagreement(predicted, trained),
    }


def in_ntk_parameterisation(
    net: FullyConnected,
    problem: Problem,
    settings: Theory,
    pair: tuple[int, int],
    sigma_w: float | None = None,
) -> tuple[FullyConnected, Parameters, Problem]:
    """The network of one (width, seed) in NTK parameterisation, its θ_0, and the rates that fit its kernels.

    Args:
        net: The network of Eq. (16).
        problem: The tasks.
        settings: Settings of the inner loop, and the seed.
        pair: Width and seed.
        sigma_w: σ_w, with σ_b a fifteenth of it; None for the network's.

    Returns:
        Network, parameters and problem.
    """
    weights = {} if sigma_w is None else {"sigma_w": sigma_w, "sigma_b": sigma_w / 15}
    other = dataclasses.replace(net, parameterisation="ntk", **weights)
    params = other.initialise(generator(settings.seed, "theory init", *pair))
    return other, params, problem_of(other, problem.tasks, problem.test_tasks, settings)


def multiplied_labels(problem: Problem, alpha: float) -> Problem:
    """The ``problem`` for αf, as that of f with labels over ``alpha``."""
    tasks, test_tasks = (with_labels(some, 1 / alpha) for some in (problem.tasks, problem.test_tasks))
    return dataclasses.replace(problem, tasks=tasks, test_tasks=test_tasks)


def measure_controls(settings: Theory, problem: Problem, pair: tuple[int, int]) -> dict[str, Any]:
    """Both measures of the network of one (width, seed) under every control."""
    standard, steps = initialised(settings, pair), settings.steps
    net, params, own = in_ntk_parameterisation(standard[0], problem, settings, pair)
    start = meta_ntk(net.model, own.tasks, own.inner.algorithm, own.inner.dynamics, params=params)
    critical = 2 / extreme_eigenvalues(start)[1]

    def multiplier(alpha: float) -> dict[str, float]:
        return lazy_or_rich(net, params, multiplied_labels(own, alpha), steps)

    def rate(ratio: float) -> dict[str, float]:
        return lazy_or_rich(net, params, dataclasses.replace(own, eta0=ratio * critical), steps)

    def sigma(sigma_w: float) -> dict[str, float]:
        return lazy_or_rich(*in_ntk_parameterisation(net, problem, settings, pair, sigma_w), steps)

    return {
        "width": pair[0],
        "seed": pair[1],
        "standard": lazy_or_rich(*standard, problem, steps),
        "ntk": multiplier(1.0),
        "mean field": multiplier(pair[0] ** -0.5),
        "multiplier": by_measure([multiplier(alpha) for alpha in MULTIPLIERS]),
        "rate": by_measure([rate(ratio) for ratio in RATES]),
        "sigma_w": by_measure([sigma(sigma_w) for sigma_w in SIGMAS]),
    }


def by_measure(found: list[dict[str, float]]) -> dict[str, list[float]]:
    """The values of every measure in a list."""
    return {name: [one[name] for one in found] for name in MEASURES}


def laziness_numbers(result: Sweep) -> dict[str, Any]:
    """Both measures under every control, and over the width their slopes."""
    widths, data = result.settings.widths, {}
    for measure in MEASURES:
        data[measure] = {
            **{
                name: power_law_record(widths, result.values(f"{name}/{measure}"))
                for name in PARAMETERISATIONS
            },
            **{name: result.values(f"{name}/{measure}") for name in ("multiplier", "rate", "sigma_w")},
        }
    return {
        "widths": widths, "multipliers": MULTIPLIERS, "rates": RATES, "sigmas": SIGMAS, "measures": data,
    }  # fmt: skip


def draw_laziness(settings: Laziness, data: dict[str, Any]) -> None:
    """Draw a row for each measure and a column for each control."""
    with figure("page", 4.9, len(MEASURES), 4, sharex="col") as (drawing, axes):
        drawing.suptitle(subtitle(claim(data), settings), fontsize=9)
        for row, (measure, label) in zip(axes, MEASURES.items(), strict=True):
            found = data["measures"][measure]
            draw_parameterisations(row[0], settings.widths, found)
            controls = (("multiplier", MULTIPLIERS), ("rate", RATES), ("sigma_w", SIGMAS))
            for panel, (name, values) in zip(row[1:], controls, strict=True):
                draw_control(panel, values, np.asarray(found[name]))
            row[1].set_xscale("log")
            critical = row[2].axvline(1, color="k", linestyle=":", linewidth=1)
            row[3].set_xscale("log")
            ticks_at(row[3].xaxis, SIGMAS)
            row[3].tick_params(axis="x", labelsize=7)
            # The first panel has a decade that no other reaches.
            limits = np.array([panel.dataLim.intervaly for panel in row[1:]])
            for panel in row[1:]:
                panel.set_ylim(limits.min() / 1.5, 1.5 * limits.max())
            for panel in row[2:]:
                panel.tick_params(axis="y", which="both", labelleft=False)
            row[0].set_ylabel("relative " + label.replace(" of ", "\nof ").replace(" from ", "\nfrom "))
        titles = ("parameterisation", "output multiplier", "outer rate", "initial weights")
        names = ("width $l$", r"$\alpha$", r"$\eta_0 \,\sigma_{\max}(\hat\Phi_0)/2$", r"$\sigma_w$")
        for column, (title, name) in enumerate(zip(titles, names, strict=True)):
            axes[0, column].set_title(title)
            axes[-1, column].set_xlabel(name)
        handles = [*axes[0, 0].get_lines(), *axes[0, 1].get_lines(), critical]
        names = [parameterisation_label(name, data) for name in PARAMETERISATIONS]
        names += [*(f"$l$ = {width}" for width in settings.widths), "critical rate"]
        relative = r"relative: $\|a - b\| / (\|a\| + \|b\|)$, which is 1 at most"
        below = {"loc": "outside lower center", "ncols": 3, "fontsize": 7, "frameon": False}
        drawing.legend(handles, names, title=relative, title_fontsize=7, **below)
        save_theory_figure(drawing, "laziness", data, settings)


def claim(data: dict[str, Any]) -> str:
    """What the numbers say of every panel; a question if they do not say it."""
    rich, lazy = [], []
    for found in data["measures"].values():
        by_rate = root_mean_square(np.moveaxis(np.asarray(found["rate"]), 1, -1))
        beyond = np.asarray(RATES) > 1
        rich += [np.asarray(found["mean field"]["rms"])[:, None], by_rate[:, beyond]]
        lazy += [np.asarray(found[name]["rms"])[:, None] for name in ("standard", "ntk")]
        lazy += [
            root_mean_square(np.moveaxis(np.asarray(found[name]), 1, -1))
            for name in ("multiplier", "sigma_w")
        ]
        lazy += [by_rate[:, ~beyond]]
    if all((each > MOVES).all() for each in rich) and all((each[-1] < each[0]).all() for each in lazy):
        return (
            "In mean field and beyond the critical rate the kernel moves, and Theorem 2 is off, at every width;\n"
            "elsewhere, even at small multipliers and weights, both fall from the narrowest to the widest"
        )
    return "How far does the kernel move, and how far is Theorem 2 off, as networks get wider?"


def draw_parameterisations(axes: Axes, widths: tuple[int, ...], found: dict[str, Any]) -> None:
    """Draw a measure over the width for every parameterisation."""
    for i, name in enumerate(PARAMETERISATIONS):
        axes.loglog(widths, found[name]["rms"], **curve(i + 3))
    ticks_at(axes.xaxis, widths)


def parameterisation_label(name: str, data: dict[str, Any]) -> str:
    """Its name, and by which powers of the width both measures go."""
    first, second = (signed(data["measures"][measure][name]["slope"]) for measure in MEASURES)
    return f"{PARAMETERISATIONS[name]}: powers of $l$ {first} above, {second} below"


def draw_control(axes: Axes, values: tuple[float, ...], found: np.ndarray) -> None:
    """Draw a measure over the values of a control, with a curve for every width.

    Args:
        axes: The panel.
        values: The values of the control.
        found: The measure, widths × seeds × values.
    """
    for i, rows in enumerate(found):
        axes.plot(values, root_mean_square(rows.T), **curve(i))
    axes.set_yscale("log")
