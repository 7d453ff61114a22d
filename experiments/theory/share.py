"""How many initialisations keep to the bound (31) at every step: the probability in Theorem 3, over widths.

Many narrow networks are trained at once, as one batched computation; nothing but their residuals is kept.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binomtest
from torch import Tensor
from torch.func import grad_and_value, vmap

from experiments.theory.settings import Theory
from experiments.theory.sweep import Measurement, Problem, Sweep, network, sweep
from mamltheory import FullyConnected, generator
from mamltheory.bounds import theorem3_residual_bound
from mamltheory.inner_loop import meta_output, square_loss
from mamltheory.tasks import Parameters, query_labels

BATCH = 25
"""Networks that are trained together."""


def batch_of_starts(settings: Theory, net: FullyConnected, batch: int) -> Parameters:
    """θ_0 of the networks of a batch, stacked along a first dimension."""
    starts = [
        net.initialise(generator(settings.seed, "share init", net.width, BATCH * batch + i))
        for i in range(BATCH)
    ]
    return {name: torch.stack([start[name] for start in starts]) for name in starts[0]}


def batch_residuals(
    net: FullyConnected, starts: Parameters, problem: Problem, steps: int
) -> Float[Tensor, "networks t"]:
    """‖g(θ_t)‖ for t = 0 … steps of every network; one that diverges goes to infinity or NaN."""
    labels, rate = query_labels(problem.tasks), problem.eta0 / net.model.scale
    params, residuals = starts, []

    def loss(theta: Parameters) -> tuple[Tensor, Tensor]:
        outputs = torch.cat([meta_output(net.model, theta, task, problem.inner) for task in problem.tasks])
        return square_loss(outputs, labels), outputs

    slopes = vmap(grad_and_value(loss, has_aux=True))
    for _ in range(steps + 1):
        gradient, (_, outputs) = slopes(params)
        residuals.append((outputs - labels).norm(dim=1))
        params = {name: theta - rate * gradient[name] for name, theta in params.items()}
    return torch.stack(residuals, dim=1).detach()


def measure_share(settings: Theory, problem: Problem, pair: tuple[int, int]) -> dict[str, object]:
    """Of every network of a batch, whether its residual is below the bound (31) at all steps."""
    width, batch = pair
    net = network(settings, width)
    residuals = batch_residuals(net, batch_of_starts(settings, net, batch), problem, settings.steps)
    bound = theorem3_residual_bound(problem.eta0, problem.sigma_min, 1.0, settings.steps)
    held = (residuals <= residuals[:, :1] * bound * (1 + 1e-12)).all(dim=1)
    return {"width": width, "seed": batch, "held": [int(one) for one in held]}


def shares(settings: Theory, widths: tuple[int, ...], batches: int) -> Sweep:
    """The measurement above for ``batches`` batches of networks at every width."""
    narrow = dataclasses.replace(settings, widths=widths, seeds=batches)
    return sweep(narrow, "networks within the bound", Measurement(f"share-of-{BATCH}", measure_share))


def share_record(result: Sweep) -> dict[str, object]:
    """Networks within the bound, of how many, and the exact (Clopper–Pearson) 95 % interval of the probability."""
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
