"""``convergence``: the residual decays linearly, below the bound of Theorem 3, at every width."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mamltheory.finite_width.bounds import theorem3_residual_bound

from ..plotting import curve, figure, legend_below, ticks_at
from .report import save_theory_figure, subtitle, verdict_first
from .settings import Convergence, Theory
from .sweep import Sweep, run_sweep


def plot_convergence(settings: Convergence) -> int:
    """Measure and draw; returns 0."""
    result = run_sweep(settings, "convergence")
    draw_convergence(result)
    data = convergence_numbers(result)
    print(verdict_first(convergence_verdict(data)[1], [convergence_result(data)]))
    return 0


def convergence_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether all residuals are below the bound (31), and that in a sentence, from the figure's ``data``."""
    holds = bool(min(data["share_below_bound"]) == 1)
    if holds:
        return True, "The residual of every network stays below the bound of Theorem 3"
    return False, "Some networks leave the bound of Theorem 3"


def convergence_result(data: dict[str, Any]) -> str:
    """The rates and the verdict on the bound in a sentence."""
    below = ", ".join(
        f"{100 * share:.0f} % at width {width}"
        for width, share in zip(data["widths"], data["share_below_bound"], strict=True)
    )
    return (
        f"the residual falls by the factor {np.median(data['rates'][-1]):.3f} a step at width {data['widths'][-1]} "
        f"(wide limit {data['limit_rate']:.3f}, bound {data['bound_rate']:.3f}); below the bound at every step: "
        f"{below} of the networks"
    )


def convergence_numbers(result: Sweep) -> dict[str, Any]:
    """The numbers of the figure: relative residuals, the bound, and the rates of the runs and of the bound."""
    residuals = result.values("residuals")
    relative = residuals / residuals[..., :1]
    problem, steps = result.problem, result.settings.steps
    bound = theorem3_residual_bound(problem.eta0, problem.sigma_min, 1.0, steps).numpy()
    late = steps // 2
    rates = (residuals[..., -1] / residuals[..., late]) ** (1 / (steps - late))
    return {
        "widths": result.settings.widths,
        "median_relative_residual": np.median(relative, axis=1),
        "largest_relative_residual": relative.max(axis=1),
        "bound": bound,
        "rates": rates,
        "bound_rate": 1 - problem.eta0 * problem.sigma_min / 3,
        "limit_rate": 1 - problem.eta0 * problem.sigma_min,
        "share_below_bound": (relative <= bound * (1 + 1e-12)).all(axis=2).mean(axis=1),
    }


def draw_convergence(result: Sweep) -> None:
    """Draw residuals against steps with the bound, and rates against width."""
    convergence_figure(convergence_numbers(result), result.settings)


def convergence_figure(data: dict[str, Any], settings: Theory) -> None:
    """The figure of these numbers."""
    with figure("page", 3.4, columns=2) as (drawing, axes):
        drawing.suptitle(subtitle("MAML converges linearly, as Theorem 3 bounds it", settings))
        draw_residuals(axes[0, 0], data)
        legend_below(axes[0, 0], 3)
        draw_rates(axes[0, 1], data)
        save_theory_figure(drawing, "convergence", data, settings)


def draw_residuals(axes: Axes, data: dict[str, Any]) -> None:
    """Draw ‖F_t − 𝒴‖ relative to its start: the median over seeds, shaded up to the largest."""
    for i, width in enumerate(data["widths"]):
        style = curve(i) | {"marker": "None"}
        median, largest = data["median_relative_residual"][i], data["largest_relative_residual"][i]
        axes.semilogy(median, label=f"$l$ = {width}", **style)
        axes.fill_between(range(len(median)), median, largest, color=style["color"], alpha=0.12, linewidth=0)
    axes.fill_between([], [], [], color="0.5", alpha=0.25, linewidth=0, label="up to the worst seed")
    axes.semilogy(data["bound"], "k--", linewidth=1.6, label="bound (31)")
    axes.set_xlabel("meta-training step $t$")
    axes.set_ylabel(r"$\|F_t - \mathcal{Y}\| \;/\; \|F_0 - \mathcal{Y}\|$")


def draw_rates(axes: Axes, data: dict[str, Any]) -> None:
    """Draw the factor per step in the second half of the training, one point per seed."""
    for i, width in enumerate(data["widths"]):
        rates = data["rates"][i]
        axes.semilogx(
            [width] * len(rates), rates, linestyle="None", marker="o", color=curve(i)["color"], alpha=0.6
        )
    axes.axhline(data["bound_rate"], color="k", linestyle="--", label=r"bound, $1 - \eta_0\sigma_{\min}/3$")
    axes.axhline(data["limit_rate"], color="k", linestyle=":", label=r"wide limit, $1 - \eta_0\sigma_{\min}$")
    ticks_at(axes.xaxis, data["widths"])
    axes.set_xlabel("width $l$")
    axes.set_ylabel("factor of the residual per step\n(lower is faster)")
    legend_below(axes)
