"""``ensemble``: Eq. (12) is the mean of trained networks over initialisations, with covariance Γ K Γᵀ about it.

The predictions on a held-out task are drawn along the great circle through its first two support samples. Kernels have
the terms of order 1/l that the limit drops: narrow networks of Eq. (16) are far from it for them alone.
"""

from typing import Any, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import vmap

from mamltheory import (
    GradientDescent,
    Task,
    analytic_last_layer_ntk,
    analytic_ntk,
    joint_inputs,
    kernel_regression,
    nngp,
)
from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.inner_loop import meta_output
from mamltheory.predictors import KernelPrediction

from ..plotting import COLOURS, curve, figure, legend_below, ticks_at
from .bounds import BATCH, batch_of_starts, trained_batch
from .constants import sweep_settings
from .report import save_theory_figure, subtitle, verdict_first
from .settings import Ensemble, Theory
from .sweep import Measurement, Problem, Sweep, network_of_width, run_sweep

POINTS = 49
"""Query samples on the circle."""
DRAWN = 12
"""Single networks that are drawn."""


def plot_ensemble(settings: Ensemble) -> int:
    """Measure and draw; returns 0."""
    batches = sweep_settings(settings, seeds=settings.batches)
    result = run_sweep(batches, "ensemble", Measurement(f"circle-of-{BATCH}", measure_outputs))
    data = ensemble_numbers(result)
    draw_ensemble(settings, data)
    print(verdict_first(ensemble_verdict(data)[1], [ensemble_result(data)]))
    return 0


def ensemble_verdict(data: dict[str, Any]) -> tuple[bool, str]:
    """Whether the distance of the mean falls from width to width, and that in a sentence, from ``data``."""
    holds = bool((np.diff(np.asarray(data["error_of_mean"])) < 0).all())
    if holds:
        return True, "The mean of trained networks approaches Eq. (12) as the width grows"
    return False, "That the mean of trained networks approaches Eq. (12) is not seen at these widths"


def ensemble_result(data: dict[str, Any]) -> str:
    """How far one network and the mean of all are from Eq. (12) at the largest width, in a sentence."""
    one = float(root_mean_square(np.asarray(data["error_of_one"]))[-1])
    return (
        f"at width {data['widths'][-1]} one network is {one:.2g} from Eq. (12) and the mean of all networks "
        f"{data['error_of_mean'][-1]:.2g}, where chance leaves {data['sampling_error'][-1]:.2g} (relative); their "
        f"deviation is {data['deviation_ratio'][-1]:.3f} of the predicted one"
    )


def circle_task(task: Task) -> tuple[Task, torch.Tensor]:
    """The ``task`` with queries on the great circle through its first two support samples, and the queries' angles."""
    first, second = task.support_x[0], task.support_x[1]
    tangent = second - (second @ first) * first
    tangent = tangent / tangent.norm()
    angles = torch.linspace(-torch.pi, torch.pi, POINTS, dtype=first.dtype)
    queries = angles.cos()[:, None] * first + angles.sin()[:, None] * tangent
    return Task(queries, torch.zeros(POINTS, 1, dtype=first.dtype), task.support_x, task.support_y), angles


def measure_outputs(settings: Theory, problem: Problem, pair: tuple[int, int]) -> dict[str, Any]:
    """Train a batch of networks of one width, and their outputs on the circle, network after network."""
    width, batch = pair
    net, (circle, _) = network_of_width(settings, width), circle_task(problem.test_tasks[0])
    _, params = trained_batch(net, batch_of_starts(settings, net, batch), problem, settings.steps)
    outputs = vmap(lambda theta: meta_output(net.model, theta, circle, problem.inner))(params)
    return {"width": width, "seed": batch, "outputs": outputs.detach().reshape(-1).tolist()}


def predicted_ensemble(settings: Theory, problem: Problem, width: int) -> KernelPrediction:
    """Mean and covariance on the circle of an ensemble of a ``width``, without any training."""
    circle, _ = circle_task(problem.test_tasks[0])
    net, x, inner = network_of_width(settings, width), joint_inputs((*problem.tasks, circle)), problem.inner
    last = analytic_last_layer_ntk(net, x, finite_width=True) if inner.algorithm == "anil" else None
    theta, outer = analytic_ntk(net, x, finite_width=True), GradientDescent(problem.eta0, settings.steps)
    return kernel_regression(theta, problem.tasks, [circle], inner.dynamics, outer, last, nngp=nngp(net, x))


def ensemble_numbers(result: Sweep) -> dict[str, Any]:
    """The predictions, single networks, and how far they and their mean are from Eq. (12) at every width."""
    settings, task, widths = result.settings, result.problem.test_tasks[0], result.settings.widths
    predicted = [predicted_ensemble(settings, result.problem, width) for width in widths]
    mean = np.array([one.test.numpy() for one in predicted])
    variance = np.array([cast(Tensor, one.test_covariance).diagonal().numpy() for one in predicted])
    outputs = result.values("outputs").reshape(len(widths), -1, POINTS)
    networks, size = outputs.shape[1], np.linalg.norm(mean, axis=1)
    first, second = task.support_x[0], task.support_x[1]
    between = torch.linalg.vector_norm(second - (second @ first) * first)
    return {
        "widths": widths,
        "angles": circle_task(task)[1].numpy(),
        "support_angles": [0.0, float(torch.atan2(between, second @ first))],
        "support_labels": task.support_y[:2, 0].tolist(),
        "mean": mean,
        "standard_deviation": np.sqrt(variance),
        "networks": outputs[-1, :DRAWN],
        "mean_of_networks": outputs.mean(axis=1),
        "deviation_of_networks": outputs.std(axis=1, ddof=1),
        "error_of_one": np.linalg.norm(outputs - mean[:, None], axis=2) / size[:, None],
        "error_of_mean": np.linalg.norm(outputs.mean(axis=1) - mean, axis=1) / size,
        "sampling_error": np.sqrt(variance.sum(axis=1) / networks) / size,
        "deviation_ratio": np.median(outputs.std(axis=1, ddof=1) / np.sqrt(variance), axis=1),
    }


def draw_ensemble(settings: Ensemble, data: dict[str, Any]) -> None:
    """Draw the predictions with their uncertainty, and the errors of one network and of the mean over the width."""
    with figure("page", 3.3, columns=2) as (drawing, axes):
        claim = "Eq. (12) is the mean of trained networks over initialisations, not what one network predicts"
        networks = f"{BATCH * settings.batches} networks"
        drawing.suptitle(subtitle(claim, settings).replace(f"{settings.seeds} seeds", f"{networks}, seeds"))
        draw_predictions(axes[0, 0], settings, data)
        draw_errors(axes[0, 1], settings, data)
        save_theory_figure(drawing, "ensemble", data, settings)


def draw_predictions(axes: Axes, settings: Ensemble, data: dict[str, Any]) -> None:
    """Draw the limit's mean and two standard deviations on the circle, and trained networks of the largest width."""
    angles = np.asarray(data["angles"])
    mean, deviation = (np.asarray(data[name])[-1] for name in ("mean", "standard_deviation"))
    for i, network in enumerate(np.asarray(data["networks"])):
        label = f"trained networks, $l$ = {settings.widths[-1]}" if i == 0 else None
        axes.plot(angles, network, color="0.45", linewidth=0.5, alpha=0.8, label=label)
    band = (mean - 2 * deviation, mean + 2 * deviation)
    axes.fill_between(
        angles, *band, color=COLOURS[0], alpha=0.2, linewidth=0, label=r"Eq. (12) $\pm$ 2 standard deviations"
    )
    axes.plot(angles, mean, color=COLOURS[0], linewidth=1.8, label="Eq. (12)")
    average = np.asarray(data["mean_of_networks"])[-1]
    axes.plot(angles, average, "--", color=COLOURS[1], label=f"mean of {BATCH * settings.batches} networks")
    axes.plot(data["support_angles"], data["support_labels"], "k*", markersize=9, label="support samples")
    axes.set_xticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], ["−π", "−π/2", "0", "π/2", "π"])
    axes.set_xlabel("angle on the circle through the support samples")
    axes.set_ylabel("output on the held-out task")
    legend_below(axes, 2)


def draw_errors(axes: Axes, settings: Ensemble, data: dict[str, Any]) -> None:
    """Draw the distance to Eq. (12) of one network and of the mean of all, which falls to what chance leaves."""
    widths, one, mean = settings.widths, np.asarray(data["error_of_one"]), np.asarray(data["error_of_mean"])
    axes.loglog(widths, root_mean_square(one), label="one network (rms)", **curve(0))
    axes.loglog(widths, mean, label=f"mean of {BATCH * settings.batches} networks", **curve(1))
    label = f"expected of {BATCH * settings.batches} networks by chance"
    axes.loglog(widths, data["sampling_error"], "k:", label=label)
    ticks_at(axes.xaxis, widths)
    axes.set_xlabel("width $l$")
    axes.set_ylabel("relative distance to Eq. (12)")
    legend_below(axes)
