"""One measurement per width and seed, in most cases a training run with everything that the figures need.

Convergence, bounds, drift and equivalence share their runs: full-batch MAML (or ANIL) on the raw network of
Eq. (16), with η0 = 1/(σ_max + σ_min) of the limit kernel Φ, half of what Theorem 3 allows, and λ0 =
1/(2 σ_max(Θ)), that largest eigenvalue being of the support samples of any task.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import torch

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
from mamltheory.errors import CheckpointError
from mamltheory.files import reason
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.linalg import Dynamics
from mamltheory.maml import TrainingRecord
from mamltheory.runtime.progress import stage
from mamltheory.runtime.runlog import read_metrics
from mamltheory.runtime.workers import ON_ONE_THREAD, workers
from mamltheory.tasks import Parameters, query_labels

from ..runs import opened_run
from .settings import Theory
from .tasks import theory_tasks

CLOSED_FORMS = ("empirical kernel", "limit kernel", "limit kernel, printed time", "limit kernel, no f_0")
"""The closed forms that the trained network is compared with on held-out tasks.

The first two keep f_0 (109) and use discrete time; "printed time" uses the exponentials of Eqs. (12)–(13);
"no f_0" is Eq. (12) with discrete time and without the initial outputs, as Theorem 2 prints it.
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
    """Tasks and learning rates; they depend on the limit kernels alone and are the same for all widths."""
    return problem_of(network_of_width(settings, 1), *theory_tasks(settings), settings)


def problem_of(
    net: FullyConnected, tasks: tuple[Task, ...], test_tasks: tuple[Task, ...], settings: Theory
) -> Problem:
    """The tasks with the learning rates that fit a network's limit kernels; its width does not matter.

    Args:
        net: The network.
        tasks: The training tasks.
        test_tasks: The held-out tasks.
        settings: The inner loop's number of steps and algorithm.

    Returns:
        The problem.
    """
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
    """Train the network of one (width, seed) and measure everything that the figures need."""
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
    """‖trained − closed form‖/‖trained‖ on the held-out tasks at the last step, for every closed form.

    Args:
        net: The network.
        params: Its initial parameters.
        problem: Tasks and learning rates.
        record: The training.

    Returns:
        The relative deviation by name of the closed form.
    """
    model, inner, steps = net.model, problem.inner, len(record.observations) - 1
    x = joint_inputs((*problem.tasks, *problem.test_tasks))
    f0 = model(params, x).reshape(-1)
    anil = inner.algorithm == "anil"
    empirical = (
        empirical_ntk(model, x, params=params),
        empirical_last_layer_ntk(model, x, params=params) if anil else None,
    )
    limit = (analytic_ntk(net, x), analytic_last_layer_ntk(net, x) if anil else None)
    descent: tuple[Dynamics, Dynamics] = (inner.dynamics, GradientDescent(problem.eta0, steps))
    flow: tuple[Dynamics, Dynamics] = (
        GradientFlow(inner.lam0 * inner.tau),
        GradientFlow(problem.eta0 * steps),
    )
    forms = [(*empirical, descent, f0), (*limit, descent, f0), (*limit, flow, f0), (*limit, descent, None)]
    trained = record.observations[-1].test_outputs
    assert trained is not None, "the training has held-out tasks"
    return {
        name: float((kernel_prediction(problem, *form) - trained).norm() / trained.norm())
        for name, form in zip(CLOSED_FORMS, forms, strict=True)
    }


def kernel_prediction(
    problem: Problem,
    theta: torch.Tensor,
    last: torch.Tensor | None,
    dynamics: tuple[Dynamics, Dynamics],
    f0: torch.Tensor | None,
) -> torch.Tensor:
    """The outputs of the closed form on the held-out tasks.

    Args:
        problem: Tasks and learning rates.
        theta: NTK of all tasks.
        last: NTK of the last layer for ANIL, None for MAML.
        dynamics: Dynamics of the inner and of the outer loop.
        f0: Initial outputs on all tasks, or None to drop them.

    Returns:
        The outputs, flat.
    """
    predicted = kernel_regression(theta, problem.tasks, problem.test_tasks, *dynamics, last, f0).test
    assert predicted is not None, "the problem has held-out tasks"
    return predicted


@dataclass(frozen=True)
class Sweep:
    """All runs; ``rows`` are measurements as of :func:`measure_training`, by width and then by seed."""

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
                "the folder of this command there to run them again"
            ) from None


class _Row(TypedDict):
    """The keys of every line of a sweep; further ones depend on the measurement."""

    width: int
    seed: int
    cpu_seconds: NotRequired[Annotated[float, 0]]


def _shape(picked: list[object]) -> tuple[int, ...]:
    return (len(picked[0]),) if isinstance(picked[0], list) else ()


@dataclass(frozen=True)
class Measurement:
    """A measurement of one network.

    Attributes:
        name: Name in the run folder.
        function: Takes settings, problem and (width, seed), and returns the measurement.
        free_of: Settings that the results do not depend on.
    """

    name: str
    function: Callable[[Any, Problem, tuple[int, int]], dict[str, Any]]
    free_of: tuple[str, ...] = ()


def run_sweep(settings: Theory, command: str, measurement: Measurement | None = None) -> Sweep:
    """Measure the networks that the run folder lacks.

    Args:
        settings: Settings of the sweep.
        command: Name in the progress display.
        measurement: What is measured; None for :func:`measure_training`.

    Returns:
        The measurements of all widths and seeds.
    """
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
        done, seconds = {}, []
        for row in read_metrics(folder, _Row):
            seconds.append(row.pop("cpu_seconds", None))
            done[row["width"], row["seed"]] = row
        todo = [pair for pair in _pairs(settings) if pair not in done]
        if todo:
            log.resume()
        with workers(settings.jobs) as spread, stage(title, len(todo)) as advance:
            for pair, (row, spent) in spread(partial(_timed, chosen.function, settings, problem), todo):
                done[pair] = row
                seconds.append(spent)
                log.log(**row, cpu_seconds=spent)
                advance()
        # Networks of earlier versions do not know their time, and a sum over the others would be no use.
        spent_in_all = {} if None in seconds else {"cpu_seconds": sum(seconds)}
        log.close(runs=len(done), **spent_in_all)
    return Sweep(settings, problem, tuple(done[pair] for pair in _pairs(settings)))


def _timed(
    function: Callable[[Any, Problem, tuple[int, int]], dict[str, Any]],
    settings: Theory,
    problem: Problem,
    pair: tuple[int, int],
) -> tuple[dict[str, Any], float]:
    begun = time.process_time()
    return function(settings, problem, pair), time.process_time() - begun


def sweep_folder(settings: Theory, measurement: Measurement | None = None) -> Path:
    """The run folder of these settings; settings that change the numbers change the folder."""
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
