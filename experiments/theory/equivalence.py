"""``equivalence``: trained networks against the closed forms of Theorem 2 on held-out tasks."""

from typing import Any

from ..plotting import figure
from .report import (
    draw_power_law,
    draw_reference,
    falls,
    power_law_record,
    save_theory_figure,
    subtitle,
)
from .settings import Equivalence
from .sweep import CLOSED_FORMS, Sweep, run_sweep

LABELS = {
    "empirical kernel": r"$\hat\Theta_0$ of the network",
    "limit kernel": r"$\Theta$, steps, $f_0$ kept",
    "limit kernel, printed time": r"$\Theta$, Eq. (12)'s exponentials",
    "limit kernel, no f_0": r"$\Theta$, $f_0$ dropped as in (12)",
}


def plot_equivalence(settings: Equivalence) -> int:
    """Measure and draw; returns 0."""
    result = run_sweep(settings, "equivalence")
    draw_equivalence(result)
    data = equivalence_numbers(result)
    for name in CLOSED_FORMS:
        print(falls(f"the deviation from the closed form with the {name}", data[name], settings.widths))
    return 0


def equivalence_numbers(result: Sweep) -> dict[str, Any]:
    """The relative deviations from every closed form, each with its fitted slope."""
    widths = result.settings.widths
    values = {name: result.values(f"test_deviations/{name}") for name in CLOSED_FORMS}
    return {"widths": widths, **{name: power_law_record(widths, value) for name, value in values.items()}}


def draw_equivalence(result: Sweep) -> None:
    """Draw the relative deviation on the held-out tasks against width."""
    with figure("page", 3.6) as (drawing, axes):
        drawing.suptitle(
            subtitle("Trained MAML becomes kernel regression with the MetaNTK (Theorem 2)", result.settings)
        )
        for i, name in enumerate(CLOSED_FORMS):
            values = result.values(f"test_deviations/{name}")
            draw_power_law(axes[0, 0], i, result.settings.widths, values, LABELS[name])
        draw_reference(axes[0, 0], result.settings.widths)
        axes[0, 0].set_xlabel("width $l$")
        axes[0, 0].set_ylabel(f"relative deviation on held-out tasks,\nafter {result.settings.steps} steps")
        axes[0, 0].legend(fontsize=7, loc="lower left")
        save_theory_figure(drawing, "equivalence", equivalence_numbers(result), result.settings)
