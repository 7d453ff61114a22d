"""``equivalence``: trained networks against the closed forms of Theorem 2 on held-out tasks."""

from typing import Any

import numpy as np

from ..plotting import figure, legend_below
from .report import (
    draw_power_law,
    draw_reference,
    falls_with_width,
    power_law_record,
    power_law_words,
    save_theory_figure,
    subtitle,
    verdict_first,
)
from .settings import Equivalence, Theory
from .sweep import CLOSED_FORMS, Sweep, run_sweep

LABELS = {
    "empirical kernel": r"kernel of the network itself, initial outputs $f_0$ kept",
    "limit kernel": r"limit kernel, discrete steps, $f_0$ kept",
    "limit kernel, printed time": r"limit kernel, exponentials as in Eq. (12), $f_0$ kept",
    "limit kernel, no f_0": r"limit kernel, without $f_0$ as in Eq. (12)",
}


def plot_equivalence(settings: Equivalence) -> int:
    """Measure and draw; returns 0."""
    result = run_sweep(settings, "equivalence")
    draw_equivalence(result)
    data = equivalence_numbers(result)
    print(verdict_first(equivalence_verdict(data)[1], equivalence_result(data)))
    return 0


def equivalence_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether the deviations from both exact forms fall with the width, and that in a sentence, from ``data``."""
    holds = falls_with_width(data["empirical kernel"]) and falls_with_width(data["limit kernel"])
    if holds:
        return True, "Trained networks approach kernel regression as the width grows"
    return False, "That trained networks approach kernel regression is not seen at these widths"


def equivalence_result(data: dict[str, Any]) -> list[str]:
    """How the deviation from every closed form goes with the width, in words."""
    return [
        power_law_words(f"{plain_label(name)}: the deviation", data[name], data["widths"])
        for name in CLOSED_FORMS
    ]


def plain_label(name: str) -> str:
    """The name of a closed form in the legend, as plain text."""
    return LABELS[name].replace("$", "")


def equivalence_numbers(result: Sweep) -> dict[str, Any]:
    """The relative deviations from every closed form, each with its fitted slope."""
    widths = result.settings.widths
    values = {name: result.values(f"test_deviations/{name}") for name in CLOSED_FORMS}
    return {"widths": widths, **{name: power_law_record(widths, value) for name, value in values.items()}}


def draw_equivalence(result: Sweep) -> None:
    """Draw the relative deviation on the held-out tasks against width."""
    equivalence_figure(equivalence_numbers(result), result.settings)


def equivalence_figure(data: dict[str, Any], settings: Theory) -> None:
    """The figure of these numbers."""
    with figure("page", 3.9) as (drawing, axes):
        claim = "Trained MAML becomes kernel regression with the MetaNTK (Theorem 2, mended: $f_0$ is kept)"
        drawing.suptitle(subtitle(claim, settings))
        panel = axes[0, 0]
        for i, name in enumerate(CLOSED_FORMS):
            draw_power_law(panel, i, settings.widths, np.asarray(data[name]["values"]), LABELS[name])
        nearest = [data[name]["rms"][0] for name in list(CLOSED_FORMS)[:2]]
        draw_reference(panel, settings.widths, float(np.sqrt(np.prod(nearest))))
        panel.set_xlabel("width $l$")
        panel.set_ylabel(f"relative deviation of the outputs\non held-out tasks, {settings.steps} steps")
        legend_below(panel)
        save_theory_figure(drawing, "equivalence", data, settings)
