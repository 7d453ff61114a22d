"""The second-order meta-gradient (3) of a wide network: ours, and one step of the libraries for MAML.

Floor: every product of z W or g Wᵀ with a shared l × l weight, its adjoint, and its part of the gradient.
The inner steps use a weight 2τ times on the m support samples of a task, the outer output once on its n queries:

    3 · 2 · N (2τ m + n) · Σ_{p ≥ 2} l_{p-1} l_p   +   2 · 2 · N (m + n) d l

(the input layer needs its value and its gradient only). For n = m and τ = 1 that is 9 products of N m × l × l.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mamltheory import meta_gradient
from mamltheory.factored.fast_weights import stack_tasks
from mamltheory.factored.meta_gradient import FactoredGradient, factored_meta_gradient
from mamltheory.inner_loop import square_loss
from mamltheory.kernels.layers.allocator import keep_freed_memory

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

OURS, FUSED, LOOP = "ours", "ours, fused step", "PyTorch loop"
STEP = 1e-3
"""η0 of the fused steps: so small that many of them leave the problem as it is."""
Gradient = tuple[Tensor, ...]


def meta_gradient_flop(sizes: Sizes) -> float:
    """FLOP of the matrix products that the exact meta-gradient needs; the formula is the module's."""
    shapes = weight_shapes(sizes)
    tasks, inner = sizes["tasks"], 2 * sizes["tau"] * sizes["supports"]
    hidden = sum(a * b for a, b in shapes[1:])
    first = 4 * tasks * (sizes["supports"] + sizes["queries"]) * shapes[0][0] * shapes[0][1]
    return float(6 * tasks * (inner + sizes["queries"]) * hidden + first)


def our_gradient(problem: MetaProblem) -> Callable[[], Gradient]:
    """The package's meta-gradient."""
    model = problem.net.model

    def call() -> Gradient:
        gradient, _ = meta_gradient(model, problem.params, problem.tasks, problem.inner)
        return tuple(gradient[name] for name in problem.params)

    return call


def fused_step(problem: MetaProblem) -> Callable[[], FactoredGradient]:
    """The package's gradient and its step of descent in one product, in place, as its training takes it."""
    model, rate = problem.net.model, STEP / problem.net.model.scale
    keep_freed_memory()  # as training does

    def call() -> FactoredGradient:
        stacks = stack_tasks(problem.tasks, model)
        gradient, _ = factored_meta_gradient(problem.net, problem.params, stacks, problem.inner)
        gradient.step_(problem.params, rate)
        return gradient

    return call


def applied_gradient(problem: MetaProblem, gradient: FactoredGradient) -> Gradient:
    """The gradient that a fused step has applied."""
    dense = gradient.dense()
    return tuple(dense[name] for name in problem.params)


def gradient_by_loop(problem: MetaProblem) -> Callable[[], Gradient]:
    """What people write by hand: ``create_graph`` through the inner steps, one task after the other."""
    module = problem.module
    activation, params = module[1], tuple(module.parameters())

    def forward(weights: Sequence[Tensor], x: Tensor) -> Tensor:
        for i in range(0, len(weights), 2):
            x = nn.functional.linear(activation(x) if i else x, weights[i], weights[i + 1])
        return x

    def call() -> Gradient:
        total = [torch.zeros_like(value) for value in params]
        for task in problem.tasks:
            weights: Sequence[Tensor] = params
            for _ in range(problem.inner.tau):
                loss = square_loss(forward(weights, task.support_x), task.support_y)
                step = torch.autograd.grad(loss, weights, create_graph=True)
                weights = [w - problem.rate * g for w, g in zip(weights, step, strict=True)]
            loss = square_loss(forward(weights, task.query_x), task.query_y)
            for part, grad in zip(total, torch.autograd.grad(loss, params), strict=True):
                part += grad
        return tuple(total)

    return call


def gradient_by_torch_func(problem: MetaProblem) -> Callable[[], Gradient]:
    """``torch.func``: gradients of gradients, all tasks at once by ``vmap``, as in its MAML example."""
    module = problem.module
    params = {name: value.detach() for name, value in module.named_parameters()}
    parts = ("support_x", "support_y", "query_x", "query_y")
    stacked = [torch.stack([getattr(task, part) for task in problem.tasks]) for part in parts]

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return square_loss(torch.func.functional_call(module, weights, (x,)), y)

    def task_loss(theta: dict[str, Tensor], sx: Tensor, sy: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
        weights = theta
        for _ in range(problem.inner.tau):
            step = torch.func.grad(loss)(weights, sx, sy)
            weights = {name: value - problem.rate * step[name] for name, value in weights.items()}
        return loss(weights, qx, qy)

    def total(theta: dict[str, Tensor]) -> Tensor:
        return torch.vmap(task_loss, in_dims=(None, 0, 0, 0, 0))(theta, *stacked).sum()

    return lambda: tuple(torch.func.grad(total)(params).values())


def _gradients(params: Iterable[Tensor]) -> Gradient:
    return tuple(value.grad.clone() for value in params if value.grad is not None)


def gradient_by_higher(problem: MetaProblem) -> Callable[[], Gradient]:
    """higher: ``innerloop_ctx`` with differentiable SGD, one task after the other."""
    from higher import innerloop_ctx

    module = problem.module
    optimiser = torch.optim.SGD(module.parameters(), lr=problem.rate)

    def call() -> Gradient:
        module.zero_grad()
        for task in problem.tasks:
            with innerloop_ctx(module, optimiser, copy_initial_weights=False) as (copy, steps):
                for _ in range(problem.inner.tau):
                    steps.step(square_loss(copy(task.support_x), task.support_y))
                square_loss(copy(task.query_x), task.query_y).backward()
        return _gradients(module.parameters())

    return call


def gradient_by_learn2learn(problem: MetaProblem) -> Callable[[], Gradient]:
    """learn2learn: ``MAML(...).clone().adapt(loss)``, one task after the other."""
    from learn2learn.algorithms import MAML

    learner = MAML(problem.module, lr=problem.rate, first_order=False)

    def call() -> Gradient:
        learner.zero_grad()
        for task in problem.tasks:
            copy = learner.clone()
            for _ in range(problem.inner.tau):
                copy.adapt(square_loss(copy(task.support_x), task.support_y))
            square_loss(copy(task.query_x), task.query_y).backward()
        return _gradients(learner.parameters())

    return call


def gradient_by_torchopt(problem: MetaProblem) -> Callable[[], Gradient]:
    """TorchOpt: ``MetaSGD`` with the network's state taken and put back, as in its MAML example."""
    from torchopt import MetaSGD, extract_state_dict, recover_state_dict

    module = problem.module
    params = tuple(module.parameters())
    optimiser = MetaSGD(module, lr=problem.rate)

    def call() -> Gradient:
        for value in params:
            value.grad = None
        start = extract_state_dict(module, by="reference"), extract_state_dict(optimiser, by="reference")
        for task in problem.tasks:
            for _ in range(problem.inner.tau):
                optimiser.step(square_loss(module(task.support_x), task.support_y))
            square_loss(module(task.query_x), task.query_y).backward()
            recover_state_dict(module, start[0])
            recover_state_dict(optimiser, start[1])
        return _gradients(params)

    return call


PEERS = (
    Method(LOOP, gradient_by_loop),
    Method("torch.func", gradient_by_torch_func),
    Method("higher", gradient_by_higher, "higher"),
    Method("learn2learn", gradient_by_learn2learn, "learn2learn"),
    Method("TorchOpt", gradient_by_torchopt, "torchopt"),
)
BASE: Sizes = {
    "width": 1024, "depth": 2, "outputs": 1, "activation": "erf", "dimension": 16,
    "tasks": 16, "queries": 10, "supports": 10, "tau": 1,
}  # fmt: skip
GROUP = Group(
    "meta-gradient",
    meta_problem,
    (
        Method(OURS, our_gradient, ours=True),
        Method(FUSED, fused_step, ours=True, read=applied_gradient),
        *PEERS,
    ),
    Method("plain loop in float64", gradient_by_loop),
    quick={"width": 12, "tasks": 2, "queries": 3, "supports": 3},
    floor=meta_gradient_flop,
    parameters=fully_connected_parameters,
    scaling={
        "width": (1024, 2048, 4096),
        "tasks": (8, 16, 32),
        "samples": (5, 10, 20),
        "outputs": (1, 4, 16),
        "tau": (1, 2, 4),
    },
    scaling_base={**BASE, "width": 2048},
)


_case = partial(
    case_of_width, "meta-gradient", GROUP, methods=(OURS, FUSED, *(method.name for method in PEERS))
)
CASES = (
    _case(256),
    _case(512, tuned=True),
    _case(512, 5, tuned=True),
    _case(1024),
    _case(2048, tuned=True),
    _case(4096, check={"tasks": 2}),
    _case(8192, methods=(OURS, FUSED, LOOP), check={"tasks": 2}, tuned=True),
)
