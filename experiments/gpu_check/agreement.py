"""Stages that compare the device with the CPU: the theory, the scores of cells, and few-shot training."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import mamltheory as mt
from mamltheory.accelerator import float32_products
from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.evaluation import EvaluationConfig, evaluate_network
from mamltheory.fewshot.execution import Precision
from mamltheory.fewshot.meta_train import MetaTrainConfig, meta_train_step, start_meta_training
from mamltheory.fewshot.training import start_training, train_epoch
from mamltheory.nas.scoring.condition_number import candidate_conditions, condition_score
from mamltheory.nas.scoring.linear_regions import random_patches, region_counts
from mamltheory.nas.scoring.operator_gradient import operator_gradients
from mamltheory.nas.scoring.score import Job, ScoreSettings
from mamltheory.nas.scoring.scorers import IndependentDraws

from .machine import Line, Machine, attempt, largest_difference, tensors_in
from .problems import (
    HARMONIC,
    TRAINING,
    cell_network,
    cell_problem,
    noise_images,
    noise_tasks,
)

Cases = Mapping[str, Callable[[], Any]]
"""Computations by name, whose results may be nested."""

ALGORITHMS, METHODS = ("maml", "anil"), ("factored", "generic")


def compared(machine: Machine, cases: Callable[[str], Cases], tolerance: float) -> Iterator[Line]:
    """A line for each case: how far the device is from the CPU, or the error.

    Args:
        machine: The device.
        cases: Takes the name of a device and returns the same computations on it.
        tolerance: The largest difference that is allowed, in units of the largest number.

    Yields:
        The lines.
    """
    there, here = cases(machine.name), cases("cpu")

    def look(what: str) -> Line:
        found = there[what]()
        if not all(each.is_cuda for each in tensors_in(found)):
            return Line(what, "the result is on the CPU", good=False)
        gap = largest_difference(found, here[what]())
        return Line(what, gap, f"from the CPU, at most {tolerance:g}", gap <= tolerance)

    for what in here:
        yield attempt(what, partial(look, what))


def check_theory(machine: Machine) -> Iterator[Line]:
    """The public kernels, meta-gradients and training: of a wide network in float64, of a module in float32."""
    yield from compared(machine, theory_of_a_net, 1e-8)
    yield from compared(machine, theory_of_a_module, 1e-3)


def theory_of_a_net(device: str) -> Cases:
    """Every kernel of the package, meta-gradients, training and the closed form for a small wide network."""
    random, net = mt.generator(0, "gpu-check points"), mt.FullyConnected(3, 8, 2, 2, "erf", sigma_b=0.3)

    def points(count: int, size: int) -> Tensor:
        drawn = torch.randn(count, size, generator=random, dtype=torch.float64)
        return nn.functional.normalize(drawn, dim=-1).to(device)

    x, *tasks = (
        points(4, 3),
        *(mt.Task(points(2, 3), points(2, 2), points(3, 3), points(3, 2)) for _ in "abc"),
    )
    params = {name: value.to(device) for name, value in net.initialise(mt.generator(0, "init")).items()}
    tasks, others, f, time, steps = (
        tasks[:2],
        tasks[2:],
        net.model,
        mt.GradientDescent(0.2, 2),
        mt.InnerLoop(0.2, 2),
    )
    gram = x @ x.T + torch.eye(4, dtype=x.dtype, device=device)

    def trained(method: Any) -> Any:
        record = mt.train(f, params, tasks, steps, 0.1, 2, others, kernel_steps=(1,), method=method)
        last = record.observations[-1]
        return record.params, last.outputs, last.test_outputs, record.kernels[1]

    def regressed() -> Any:
        samples, outer = mt.joint_inputs([*tasks, *others]), mt.GradientDescent(0.1, 5)
        theta, f0 = mt.empirical_ntk(f, samples, params=params), f(params, samples).flatten()
        found = mt.kernel_regression(theta, tasks, others, inner=time, outer=outer, f0=f0)
        return found.train, found.test

    cases: dict[str, Callable[[], Any]] = {
        "empirical_ntk": partial(mt.empirical_ntk, f, x, params=params),
        "empirical_ntk of two lists, in chunks": partial(
            mt.empirical_ntk, f, x, x[:2], params=params, chunk=1
        ),
        "empirical_ntk of sums": partial(mt.empirical_ntk, f, x, params=params, outputs="sum"),
        "empirical_last_layer_ntk": partial(mt.empirical_last_layer_ntk, f, x, params=params),
        "analytic_ntk": partial(mt.analytic_ntk, net, x),
        "nngp": partial(mt.nngp, net, x),
        "analytic_last_layer_ntk": partial(mt.analytic_last_layer_ntk, net, x),
        "analytic_meta_ntk": partial(mt.analytic_meta_ntk, net, tasks, "maml", time),
        "time_operator": partial(mt.time_operator, gram, time),
        "residual_operator": partial(mt.residual_operator, gram, time),
        "condition_number": lambda: float(mt.condition_number(gram)),
        "kernel_regression": regressed,
    }
    for a in ALGORITHMS:
        inner: Any = mt.InnerLoop(0.2, 2, a)
        cases[f"meta_ntk, {a}"] = partial(mt.meta_ntk, f, tasks, a, dynamics=time, params=params)
        for m in METHODS:
            meta_ntk = partial(mt.empirical_meta_ntk, f, tasks, inner, params=params, method=m)
            cases[f"empirical_meta_ntk, {a}, {m}"] = meta_ntk
            cases[f"meta_gradient, {a}, {m}"] = partial(mt.meta_gradient, f, params, tasks, inner, m)
    return {**cases, **{f"train, {m}": partial(trained, m) for m in METHODS}}


def theory_of_a_module(device: str) -> Cases:
    """Kernels and meta-gradients of a module with convolutions."""
    network, random = conv4(2, 16, 0, channels=4).to(device), mt.generator(0, "gpu-check tasks")
    tasks = [task.to(device) for task in noise_tasks(16, 2, 2, random)]
    x, time, inner = mt.joint_inputs(tasks), mt.Converged(ridge=1e-3), mt.InnerLoop(0.01, 2)
    return {
        "empirical_ntk of a module": partial(mt.empirical_ntk, network, x),
        "empirical_ntk of a module, by autograd": partial(mt.empirical_ntk, network, x, method="generic"),
        "meta_ntk of a module, maml": partial(mt.meta_ntk, network, tasks, dynamics=time),
        "meta_ntk of a module, anil": partial(mt.meta_ntk, network, tasks, "anil", dynamics=time),
        "empirical_meta_ntk of a module": partial(mt.empirical_meta_ntk, network, tasks, inner),
        "meta_gradient of a module": partial(mt.meta_gradient, network, None, tasks, inner),
        "meta_outputs of a module": partial(mt.meta_outputs, network, None, tasks, inner),
    }


def check_scores(machine: Machine) -> Iterator[Line]:
    """Scores of cells: batched, with independent draws, alone, by gradient, and by regions."""
    problem, random = cell_problem(machine, 16), mt.generator(0, "gpu-check patches")
    some, tasks, whole = problem.candidates(3), problem.tasks(), problem.whole
    patches = random_patches(torch.rand(4, 3, 8, 8, generator=random), 20 if machine.fake else 3000, random)
    kinds = (
        ScoreSettings("maml", "sum"),
        ScoreSettings("anil", "full", "all", "harmonic"),
        ScoreSettings("ntk", "sum"),
    )

    def double(d: str) -> Cases:
        network = problem.network(d, torch.float64)
        return {
            **{f"a batch, {s.kernel}": partial(candidate_conditions, network, some, tasks, s) for s in kinds},
            "a network alone": partial(condition_score, network, tasks, HARMONIC),
            "all operators by gradient": lambda: vars(operator_gradients(network, whole, tasks, HARMONIC)),
        }

    def single(d: str) -> Cases:
        first, network = whole.operators()[0], problem.network(d)
        jobs, scorer = (
            [Job(0, 0, removed, first) for removed in (None, first)],
            IndependentDraws(problem.scorer(d)),
        )
        return {
            "a batch in float32": partial(candidate_conditions, network, some, tasks, HARMONIC),
            "independent draws in float32": lambda: [
                score.condition for score in scorer(whole, jobs).values()
            ],
            "linear regions": partial(region_counts, some, patches.to(d), 0),
        }

    yield from compared(machine, double, 1e-4)
    yield from compared(machine, single, 1e-2)
    yield from compared(machine, products, 1e-5)


def products(device: str) -> Cases:
    """A matrix product and a convolution as kernels compute them; TF32 would be wrong in the fourth digit."""
    random = mt.generator(0, "gpu-check products")
    x, weight = (
        torch.randn(*shape, generator=random).to(device) for shape in ((8, 16, 16, 16), (16, 16, 3, 3))
    )
    inside = float32_products()
    return {
        "float32 products, which are not in TF32": inside(lambda: (x @ x.mT, nn.functional.conv2d(x, weight)))
    }


def check_fewshot(machine: Machine) -> Iterator[Line]:
    """Training of a searched network in every precision against float32 on the CPU, evaluation, and meta-training."""
    data, network = noise_images(16, 3, 8), partial(cell_network, 2 if machine.fake else 16)

    def losses(d: str, precision: Precision) -> list[float]:
        config = replace(TRAINING, precision="fp32" if d == "cpu" else precision)
        state, found = start_training(network(), data, config, d), []
        for _ in range(config.epochs):
            state, metrics = train_epoch(state)
            found.append(metrics.loss)
        return found

    def accuracy(d: str, head: Any) -> float:
        config = EvaluationConfig(ways=2, shots=1, queries=3, tasks=10, head=head, copies=2)
        found = evaluate_network(network(), data.test, data.mean, data.std, config, 0, device=d)
        return (
            1 + found.interval.mean
        )  # the difference is then one of accuracies, and no quotient of small ones

    def meta_losses(d: str, algorithm: Any) -> list[float]:
        config = MetaTrainConfig(algorithm, ways=2, queries=1, tasks=2, inner_steps=2, inner_rate=0.05)
        state, first = meta_train_step(start_meta_training(conv4(2, 16, 0, channels=4), data, config, d))
        return [first.loss, meta_train_step(state)[1].loss]

    def trainings(d: str) -> Cases:
        return {f"training in {p}": partial(losses, d, p) for p in ("fp32", "tf32", "bf16", "fp16")}

    def others(d: str) -> Cases:
        heads = {f"accuracy, {h}": partial(accuracy, d, h) for h in ("logistic", "nearest-centroid")}
        return {**heads, **{f"meta-training, {a}": partial(meta_losses, d, a) for a in ALGORITHMS}}

    yield from compared(machine, trainings, 0.1)
    yield from compared(machine, others, 0.1)
