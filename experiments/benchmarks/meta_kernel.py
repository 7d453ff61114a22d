"""The empirical MetaNTK (4): ours, and the ways in which people get rows of a Jacobian through an inner loop.

Floor, with D₂ the weights above the input layer: the tangent of a support pass and its way back for each of the
k n rows of each task in each step, the first-order rows and the inner loop itself, and a Gram matrix whose
factors are shared by the rows of a task:

    4 N τ k n m D₂   +   2 N n (1 + k) D₂ + 4 N τ m D₂   +   (N k n)² m τ Σ (l_{p-1} + l_p)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mamltheory import Task, empirical_meta_ntk
from mamltheory.inner_loop import square_loss

from .problems import (
    Group,
    MetaProblem,
    Method,
    Sizes,
    case_of_width,
    fully_connected_parameters,
    meta_problem,
    weight_shapes,
)

OURS, ROWS, JACREV = "ours", "autograd rows", "torch.func jacrev"


def metantk_flop(sizes: Sizes) -> float:
    """FLOP of the structured rows and their Gram matrix; the formula is the module's."""
    shapes = weight_shapes(sizes)
    above = sum(a * b for a, b in shapes[1:])
    tasks, n, m, k, tau = (sizes[name] for name in ("tasks", "queries", "supports", "outputs", "tau"))
    rows = 4 * tasks * tau * k * n * m * above
    passes = 2 * tasks * n * (1 + k) * above + 4 * tasks * tau * m * above
    gram = (tasks * k * n) ** 2 * m * tau * sum(a + b for a, b in shapes)
    return float(rows + passes + gram)


def our_metantk(problem: MetaProblem) -> Callable[[], Tensor]:
    """The package's MetaNTK."""
    model = problem.net.model
    return lambda: empirical_meta_ntk(model, problem.tasks, problem.inner, params=problem.params)


def metantk_by_backward_passes(problem: MetaProblem) -> Callable[[], Tensor]:
    """``create_graph`` through the inner steps and a backward pass for each row, as MAML code does."""
    module = problem.module
    names, params = [list(part) for part in zip(*module.named_parameters(), strict=True)]

    def outputs(task: Task) -> Tensor:
        weights = params
        for _ in range(problem.inner.tau):
            predicted = torch.func.functional_call(
                module, dict(zip(names, weights, strict=True)), (task.support_x,)
            )
            step = torch.autograd.grad(square_loss(predicted, task.support_y), weights, create_graph=True)
            weights = [w - problem.rate * g for w, g in zip(weights, step, strict=True)]
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (task.query_x,))

    def call() -> Tensor:
        rows = []
        for task in problem.tasks:
            for output in outputs(task).reshape(-1):
                grads = torch.autograd.grad(output, params, retain_graph=True)
                rows.append(torch.cat([grad.reshape(-1) for grad in grads]))
        jacobian = torch.stack(rows)
        return jacobian @ jacobian.T / problem.net.model.scale

    return call


def metantk_by_jacrev(problem: MetaProblem) -> Callable[[], Tensor]:
    """``torch.func.jacrev`` of the meta-outputs of each task, and the rows' products."""
    module = problem.module
    start = {name: value.detach() for name, value in module.named_parameters()}

    def loss(weights: dict[str, Tensor], task: Task) -> Tensor:
        return square_loss(torch.func.functional_call(module, weights, (task.support_x,)), task.support_y)

    def outputs(theta: dict[str, Tensor], task: Task) -> Tensor:
        weights = theta
        for _ in range(problem.inner.tau):
            step = torch.func.grad(loss)(weights, task)
            weights = {name: value - problem.rate * step[name] for name, value in weights.items()}
        return torch.func.functional_call(module, weights, (task.query_x,)).reshape(-1)

    def call() -> Tensor:
        rows = []
        for task in problem.tasks:
            parts = torch.func.jacrev(outputs)(start, task)
            rows.append(torch.cat([part.flatten(1) for part in parts.values()], dim=1))
        jacobian = torch.cat(rows)
        return jacobian @ jacobian.T / problem.net.model.scale

    return call


BASE: Sizes = {
    "width": 1024, "depth": 2, "outputs": 5, "activation": "relu", "dimension": 64,
    "tasks": 4, "queries": 5, "supports": 5, "tau": 1,
}  # fmt: skip
GROUP = Group(
    "MetaNTK",
    meta_problem,
    (
        Method(OURS, our_metantk, ours=True),
        Method(ROWS, metantk_by_backward_passes),
        Method(JACREV, metantk_by_jacrev),
    ),
    Method("autograd rows in float64", metantk_by_backward_passes),
    quick={"width": 12, "tasks": 2, "queries": 2, "supports": 2, "outputs": 2},
    floor=metantk_flop,
    parameters=fully_connected_parameters,
    scaling={
        "width": (512, 1024, 2048, 4096),
        "tasks": (2, 4, 8),
        "samples": (3, 5, 10),
        "outputs": (2, 5, 10),
        "tau": (1, 2, 4),
    },
    scaling_base=BASE,
)


_case = partial(case_of_width, "metantk", GROUP, methods=(OURS, ROWS, JACREV))
CASES = (
    _case(256),
    _case(512),
    _case(1024, tuned=True),
    _case(1024, 5, tuned=True),
    _case(2048, methods=(OURS, ROWS), check={"tasks": 2, "queries": 2}),
    _case(4096, methods=(OURS,), check={"tasks": 2, "queries": 2, "outputs": 1}),
    _case(8192, methods=(OURS,), check={"tasks": 2, "queries": 2, "outputs": 1}),
)
