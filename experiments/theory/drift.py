"""``drift``: the wider a network, the less parameters and kernel move, and the nearer the limit it begins."""

from experiments.settings import Drift
from experiments.theory.report import draw_power_law, draw_reference, finish, power_law_record, subtitle
from experiments.theory.sweep import Sweep, sweep
from mamltheory.plotting import figure

MOVEMENTS = {
    "path_length": r"path $\sum_t \|\theta_t - \theta_{t-1}\|$",
    "movement": r"distance $\|\theta_T - \theta_0\|$",
}
KERNELS = {
    "kernel_drift": r"drift $\sup_t \|\hat\Phi_t - \hat\Phi_0\|_F$",
    "kernel_deviation": r"start $\|\hat\Phi_0 - \Phi\|_F / \|\Phi\|_F$",
}


def run(settings: Drift) -> int:
    """Measure and draw; returns 0."""
    draw(sweep(settings, "drift"))
    return 0


def numbers(result: Sweep) -> dict[str, object]:
    """Every measurement with its fitted slope."""
    widths = result.settings.widths
    fits = {name: power_law_record(widths, result.values(name)) for name in MOVEMENTS | KERNELS}
    return {"widths": widths, **fits}


def draw(result: Sweep) -> None:
    """Parameter movement against width, and kernel drift and distance from the limit against width."""
    widths = result.settings.widths
    with figure("page", 3.2, columns=2) as (drawing, axes):
        drawing.suptitle(
            subtitle("The wider the network, the less it moves: Theorem 3 and Lemma 3", result.settings)
        )
        for panel, (title, measurements) in zip(
            axes[0], {"parameters (29)": MOVEMENTS, "MetaNTK (30)": KERNELS}.items(), strict=True
        ):
            for i, (name, label) in enumerate(measurements.items()):
                draw_power_law(panel, i, widths, result.values(name), label)
            panel.set_title(title)
            draw_reference(panel, widths)
            panel.set_xlabel("width $l$")
            panel.legend(fontsize=7, loc="lower left")
        axes[0, 0].set_ylabel("movement of $\\theta$ (norm)")
        axes[0, 1].set_ylabel("change of the kernel (norm)")
        finish(drawing, "drift", numbers(result), result.settings)
