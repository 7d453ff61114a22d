"""``verify``: the theorems for your own network, named as MODULE:FUNCTION, a function of the width.

Tasks are random points on the unit sphere of the shape that the network takes, or those that your own function returns.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mamltheory import InnerLoop, Task, generator, verify
from mamltheory.errors import ConfigurationError
from mamltheory.finite_width.bounds import theorem3_residual_bound
from mamltheory.finite_width.verdicts import RULE, Verdict, bounds_of
from mamltheory.finite_width.verification import Build, Verification, drawn, found_scale, stable_inner_loop
from mamltheory.networks import output_of
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import replace_file

from ..named import function_of
from ..plotting import curve, figure, legend_below, save_figure, ticks_at
from ..runs import without_paths
from .report import draw_power_law
from .settings import Verify

EXAMPLE = f"{__package__}.example_networks:convolutional_network"
PANELS = {
    "path": r"path $\sum_t\|\theta_t - \theta_{t-1}\|$",
    "drift": r"change of the kernel",
    "K": "$K$ of Lemma 1",
    "scatter": "scatter of the initial kernel",
    "deviation": "distance from\nkernel regression",
}
MARKS = {True: "holds", False: "does not hold", None: "undecided"}


def verify_network(settings: Verify) -> int:
    """Measure, print the verdicts, and write the report and its figure; returns 0."""
    settings = dataclasses.replace(settings, network=settings.network or EXAMPLE)
    build = function_of(settings.network)
    tasks, test_tasks = tasks_of(settings, build)
    power = found_scale(build, settings.widths, tasks, settings.seeds, settings.seed)
    widest = settings.widths[-1]
    loop = InnerLoop(0.0, settings.tau, settings.algorithm)
    inner = stable_inner_loop(
        build, widest, float(widest) ** power, (*tasks, *test_tasks), loop, settings.seed
    )
    with stage(f"verify {settings.network}", len(settings.widths) * settings.seeds) as advance:

        def after(*_: int) -> None:
            check_interrupted()
            advance()

        found = verify(
            build,
            settings.widths,
            tasks,
            inner,
            test_tasks=test_tasks,
            steps=settings.steps,
            seeds=settings.seeds,
            scale=lambda width: float(width) ** power,
            lipschitz=settings.lipschitz,
            seed=settings.seed,
            after=after,
        )
    print(found)
    write_verification(settings, found, power)
    return 0


def tasks_of(settings: Verify, build: Build) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(training tasks, held-out tasks): of the named function, or random points with random labels."""
    if settings.tasks:
        both = function_of(settings.tasks)()
        if not (isinstance(both, tuple) and len(both) == 2):
            raise ConfigurationError(
                f"{settings.tasks!r} gives a {type(both).__name__}: expected (training tasks, held-out tasks)"
            )
        return tuple(both[0]), tuple(both[1])
    random = generator(settings.seed, "verify tasks")
    count, samples = 2 * settings.task_count, settings.samples
    x = torch.randn(count, 2 * samples, *settings.shape, generator=random, dtype=torch.float64)
    x = x / x.flatten(2).norm(dim=2).reshape(count, 2 * samples, *[1] * len(settings.shape))
    model, params = drawn(build, settings.widths[0], 1.0, settings.seed, 0)
    outputs = output_of(model, params, x[0, :1]).shape[1]
    y = torch.randn(count, 2 * samples, outputs, generator=random, dtype=torch.float64)
    tasks = tuple(
        Task(xs[:samples], ys[:samples], xs[samples:], ys[samples:]) for xs, ys in zip(x, y, strict=True)
    )
    return tasks[: settings.task_count], tasks[settings.task_count :]


def write_verification(settings: Verify, found: Verification, power: int) -> None:
    """Write verification.md with a verdict for every statement, and its figure; print the paths.

    Args:
        settings: The settings of the command.
        found: What was measured.
        power: p of the scale l^p.
    """
    scale = {0: "1", 1: "l"}.get(power, f"l^{power}")
    lines = [f"# {settings.network}", ""]
    lines += ["| statement | verdict |", "|---|---|"]
    lines += [f"| {one.statement} | {_emphasised(one)} |" for one in found.verdicts]
    lines += [
        "",
        f"Widths {', '.join(map(str, found.widths))} with {settings.seeds} seeds each; {settings.algorithm.upper()}, "
        f"τ = {settings.tau}, {settings.steps} steps; kernels and rates divided by {scale}, the power of the width by "
        f"which the NTK was found to grow; λ0 = {found.inner.lam0:.3g}, η0 = {found.eta0:.3g}, "
        f"σ_min = {found.sigma_min:.3g} at the largest width. Slopes of log-log fits with 95 % intervals.",
        "",
        RULE,
        "",
        "![Measurements](verification.png)",
    ]
    report = settings.out / "verification.md"
    replace_file(report, ("\n".join(lines) + "\n").encode())
    figure_path = draw_verification(settings, found)
    print(f"wrote {report} and {figure_path} (and .pdf, .json)")


def _emphasised(verdict: Verdict) -> str:
    """The text of a verdict, which begins with whether the statement holds; that in bold."""
    mark = MARKS[verdict.holds]
    return f"**{mark}**{verdict.text.removeprefix(mark)}"


def draw_verification(settings: Verify, found: Verification) -> str:
    """Draw the residuals with their bound and every measurement over the width; returns the path of the PNG."""
    data: dict[str, Any] = {
        "widths": found.widths,
        "scales": found.scales,
        "eta0": found.eta0,
        "lam0": found.inner.lam0,
        "sigma_min": found.sigma_min,
        "values": found.values,
        "verdicts": [vars(one) for one in found.verdicts],
    }
    with figure("page", 6.2, 2, 3) as (drawing, axes):
        drawing.suptitle(figure_title(settings))
        draw_relative_residuals(axes[0, 0], found)
        bounds = bounds_of(found.widths, found.values, found.sigma_min) if "K" in found.values else None
        for i, (panel, (name, label)) in enumerate(zip(axes.flat[1:], PANELS.items(), strict=True)):
            if name not in found.values:
                panel.set_axis_off()
                continue
            values = np.maximum(found.values[name], np.finfo(float).tiny)
            draw_power_law(panel, i, found.widths, values, "", solid=True)
            if name == "path" and bounds is not None:
                panel.loglog(found.widths, np.median(bounds[0], axis=1), "k--", label="bound (29)")
            panel.set_title(label)
            panel.set_xlabel("width $l$")
            ticks_at(panel.xaxis, found.widths)  # the line of the bound put others
            few_ticks(panel)
            legend_below(panel)
        paths = save_figure(
            drawing, "verification", data, settings.out, without_paths(settings), settings.seed
        )
    return str(paths[0])


def draw_relative_residuals(axes: Axes, found: Verification) -> None:
    """Draw ‖F_t − 𝒴‖ relative to its start, the median over seeds, with the bound (31)."""
    residuals = found.values["residuals"]
    for i, (width, rows) in enumerate(zip(found.widths, residuals, strict=True)):
        style = curve(i) | {"marker": "None"}
        axes.semilogy(np.median(rows / rows[:, :1], axis=0), label=f"$l$ = {width}", **style)
    steps = residuals.shape[-1] - 1
    axes.semilogy(theorem3_residual_bound(found.eta0, found.sigma_min, 1.0, steps), "k--", label="bound (31)")
    axes.set_title("residual")
    axes.set_xlabel("step $t$")
    legend_below(axes, 2)


def few_ticks(axes: Axes) -> None:
    """Ticks of the vertical axis at 1, 2 and 5 times powers of ten, or at these powers where they are many."""
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def figure_title(settings: Verify) -> str:
    """The title of the figure: the network and its training, and below it the data, tasks and seeds."""
    shape = "×".join(map(str, settings.shape))
    data = (
        f"tasks of {settings.tasks}"
        if settings.tasks
        else (f"{settings.task_count} tasks of random points of shape {shape}, and as many held out")
    )
    return (
        f"{settings.network}: {settings.algorithm.upper()}, τ = {settings.tau}, {settings.steps} steps\n"
        f"{data}; {settings.seeds} initialisations per width, seed {settings.seed}"
    )
