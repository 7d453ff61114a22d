"""One measurement per width and seed; most often a training run, and everything that the figures need to know of it.

Convergence, bounds, drift and equivalence look at the same runs: full-batch MAML (or ANIL) on the raw network of
Eq. (16), with η0 = 1/(σ_max + σ_min) of the limit kernel Φ, half of what Theorem 3 allows, and λ0 =
1/(2 σ_max(Θ)), that largest eigenvalue being of the support samples of any task.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from experiments.runs import opened_run
from experiments.theory.settings import Theory
from experiments.theory.tasks import theory_tasks
from mamltheory import (
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_last_layer_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    train,
)
from mamltheory.bounds import extreme_eigenvalues
from mamltheory.errors import CheckpointError
from mamltheory.files import reason
from mamltheory.maml import TrainingRecord
from mamltheory.runtime.progress import stage
from mamltheory.runtime.runlog import read_metrics
from mamltheory.runtime.workers import ON_ONE_THREAD, workers
from mamltheory.tasks import Parameters, query_labels

CLOSED_FORMS = ("empirical kernel", "limit kernel", "limit kernel, printed time", "limit kernel, no f_0")
"""What the trained network is compared with on held-out tasks.

The first two keep f_0 (109) and use discrete time; "printed time" has the exponentials of Eqs. (12)–(13) in
their place; "no f_0" is Eq. (12) with discrete time but without the initial outputs, as Theorem 2 prints it.
"""


@dataclass(frozen=True)
class Problem:
    """The tasks and learning rates that all widths share, and the limit kernel's extreme eigenvalues."""

    tasks: tuple[Task, ...]
    test_tasks: tuple[Task, ...]
    inner: InnerLoop
    eta0: float
    sigma_min: float
    sigma_max: float


def network_of_width(settings: Theory, width: int) -> FullyConnected:
    """The network of Eq. (16) at one width; σ_w = 1.5, σ_b = 0.1."""
    return FullyConnected(settings.dimension, width, settings.depth, activation=settings.activation)


def make_problem(settings: Theory) -> Problem:
    """Tasks and learning rates; they depend on the limit kernels alone, so that all widths share them."""
    tasks, test_tasks = theory_tasks(settings)
    net = network_of_width(settings, 1)
    top = max(extreme_eigenvalues(analytic_ntk(net, task.support_x))[1] for task in (*tasks, *test_tasks))
    inner = InnerLoop(0.5 / top, settings.tau, settings.algorithm)
    low, high = extreme_eigenvalues(analytic_meta_ntk(net, tasks, settings.algorithm, inner.dynamics))
    return Problem(tasks, test_tasks, inner, 1 / (low + high), low, high)


def initialised(settings: Theory, pair: tuple[int, int]) -> tuple[FullyConnected, Parameters]:
    """The network of one (width, seed), the same for every measurement."""
    width, seed = pair
    net = network_of_width(settings, width)
    return net, net.initialise(generator(settings.seed, "theory init", width, seed))


def measure_training(settings: Theory, problem: Problem, pair: tuple[int, int]) -> dict[str, Any]:
    """Train one network, of one (width, seed), and measure all that the figures need."""
    width, seed = pair
    net, params = initialised(settings, pair)
    every = max(1, settings.steps // 5)
    record = train(
        net.model,
        params,
        problem.tasks,
        problem.inner,
        problem.eta0,
        settings.steps,
        problem.test_tasks,
        kernel_steps=range(0, settings.steps + 1, every),
    )
    start, labels = record.kernels[0], query_labels(problem.tasks)
    limit = analytic_meta_ntk(
        net, problem.tasks, problem.inner.algorithm, problem.inner.dynamics, finite_width=True
    )
    return {
        "width": width,
        "seed": seed,
        "residuals": [float((seen.outputs - labels).norm()) for seen in record.observations],
        "movement": record.observations[-1].movement,
        "path_length": record.observations[-1].path_length,
        "kernel_drift": max(record.kernel_drift().values()),
        "kernel_norm": float(start.norm()),
        "kernel_deviation": float((start - limit).norm() / limit.norm()),
        "test_deviations": held_out_deviations(net, params, problem, record),
    }


def held_out_deviations(
    net: FullyConnected, params: Parameters, problem: Problem, record: TrainingRecord
) -> dict[str, float]:
    """‖trained − closed form‖/‖trained‖ on the held-out tasks at the last step, for every closed form."""
    model, inner, steps = net.model, problem.inner, len(record.observations) - 1
    x = joint_inputs((*problem.tasks, *problem.test_tasks))
    f0 = model(params, x).reshape(-1)
    anil = inner.algorithm == "anil"
    empirical = (empirical_ntk(model, x, params=params), None)
    limit = (analytic_ntk(net, x), analytic_last_layer_ntk(net, x) if anil else None)
    if anil:
        empirical = (empirical[0], empirical_last_layer_ntk(model, x, params=params))
    descent = (inner.dynamics, GradientDescent(problem.eta0, steps))
    flow = (GradientFlow(inner.lam0 * inner.tau), GradientFlow(problem.eta0 * steps))
    forms = [(*empirical, descent, f0), (*limit, descent, f0), (*limit, flow, f0), (*limit, descent, None)]
    trained = record.observations[-1].test_outputs
    return {
        name: float((kernel_prediction(problem, *form) - trained).norm() / trained.norm())
        for name, form in zip(CLOSED_FORMS, forms, strict=True)
    }


def kernel_prediction(
    problem: Problem,
    theta: torch.Tensor,
    last: torch.Tensor | None,
    dynamics: tuple,
    f0: torch.Tensor | None,
) -> torch.Tensor:
    """The closed form's outputs on the held-out tasks."""
    return kernel_regression(theta, problem.tasks, problem.test_tasks, *dynamics, last, f0).test


@dataclass(frozen=True)
class Sweep:
    """All runs: ``rows`` as :func:`measure_training` gives them, width by width and seed by seed."""

    settings: Theory
    problem: Problem
    rows: tuple[dict[str, Any], ...]

    def values(self, name: str) -> np.ndarray:
        """One measurement as widths × seeds; "test_deviations/NAME" for a closed form."""
        group, _, key = name.partition("/")
        shape = (len(self.settings.widths), self.settings.seeds)
        try:
            picked = [row[group][key] if key else row[group] for row in self.rows]
            return np.asarray(picked, float).reshape(*shape, *_shape(picked))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"the runs in {self.settings.runs} hold no {name} of every width and seed ({reason(error)}): remove "
                "the folder of this command there, and they are run again"
            ) from None


class _Row(TypedDict):
    """What every line of a sweep has; the rest is the measurement's own."""

    width: int
    seed: int


def _shape(picked: list[object]) -> tuple[int, ...]:
    return (len(picked[0]),) if isinstance(picked[0], list) else ()


@dataclass(frozen=True)
class Measurement:
    """Another function of (settings, problem, (width, seed)) than :func:`measure_training`, under a name of its own.

    free_of: settings that its results do not depend on.
    """

    name: str
    function: Callable[[Theory, Problem, tuple[int, int]], dict[str, Any]]
    free_of: tuple[str, ...] = ()


def run_sweep(settings: Theory, command: str, measurement: Measurement | None = None) -> Sweep:
    """Run or take up the sweep; every finished run lies in the run folder, and is not done again."""
    chosen = measurement or Measurement("sweep", measure_training)
    problem = make_problem(settings)
    folder = sweep_folder(settings, measurement)
    title = f"{command} ({settings.tasks}, L = {settings.depth}, {settings.activation})"
    with opened_run(
        f"theory {chosen.name}",
        settings,
        folder=folder,
        config=_identity(settings, chosen.free_of),
        free=("widths", "seeds", *ON_ONE_THREAD),
        again=f"the same command; finished runs lie in {folder}",
    ) as log:
        done = {(row["width"], row["seed"]): row for row in read_metrics(folder, _Row)}
        todo = [pair for pair in _pairs(settings) if pair not in done]
        with workers(settings.jobs) as spread, stage(title, len(todo)) as advance:
            for pair, row in spread(partial(chosen.function, settings, problem), todo):
                done[pair] = row
                log.log(**row)
                advance()
        log.close(runs=len(done))
    return Sweep(settings, problem, tuple(done[pair] for pair in _pairs(settings)))


def sweep_folder(settings: Theory, measurement: Measurement | None = None) -> Path:
    """Where the runs of these settings lie: settings that give other numbers have another folder."""
    s, free_of = settings, measurement.free_of if measurement else ()
    steps = "" if "steps" in free_of else f"-t{s.steps}"
    net = f"{s.tasks}-{s.activation}-L{s.depth}-d{s.dimension}"
    name = f"{net}-{s.algorithm}-tau{s.tau}{steps}-N{s.task_count}-seed{s.seed}"
    return s.runs / (f"{name}-{measurement.name}" if measurement else name)


def _identity(settings: Theory, free_of: tuple[str, ...]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(Theory)} - {"out", "runs", "jobs", *free_of}
    return {name: getattr(settings, name) for name in sorted(names)}


def _pairs(settings: Theory) -> Iterator[tuple[int, int]]:
    return ((width, seed) for width in settings.widths for seed in range(settings.seeds))
