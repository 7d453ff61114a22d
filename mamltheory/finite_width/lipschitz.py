"""How fast the Jacobian J of the real MAML changes with its parameters: the constant K of Lemma 1, Eq. (25).

    ‖J(θ) − J(θ̄)‖_F / √l ≤ K ‖θ − θ̄‖,    ‖J(θ)‖_F / √l ≤ K

To first order J(θ + v) − J(θ) = DJ(θ)[v], whose rows are ∇²F_a v. Its worst case over unit vectors v is the root of
the largest eigenvalue of DJᵀ DJ = Σ_a (∇²F_a)², found by Lanczos iteration, which takes two Hessian-vector products
per output and iteration, and no Hessian. It is the smallest K at the point, and a lower bound of K over a ball.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.func import grad, vjp

from mamltheory.errors import ValueRangeError
from mamltheory.guard import ready_for_tasks
from mamltheory.inner_loop import InnerLoop, algorithm_of, query_output
from mamltheory.kernels.empirical_meta import stacked_meta_jacobian
from mamltheory.networks import Model
from mamltheory.tasks import Parameters, Task, check_tasks


def norm(parts: Parameters) -> float:
    """‖·‖ over all entries of all parts: ‖v‖₂ of a parameter vector, ‖J‖_F of a Jacobian."""
    return float(sum(part.double().square().sum() for part in parts.values())) ** 0.5


def jacobian_size(model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop) -> float:
    """‖J(θ)‖_F / √l of the ``model`` at ``params``, which K bounds in the second line of Eq. (25)."""
    return norm(stacked_meta_jacobian(model, params, tasks, inner)) / model.scale**0.5


def lipschitz_ratio(
    model: Model, params: Parameters, other: Parameters, tasks: Sequence[Task], inner: InnerLoop
) -> float:
    """‖J(θ) − J(θ̄)‖_F / (√l ‖θ − θ̄‖) of one pair, which K bounds in the first line of Eq. (25).

    Args:
        model: the network.
        params: θ.
        other: θ̄.
        tasks: the tasks of J.
        inner: the inner loop.

    Returns:
        The ratio.

    Raises:
        ValueRangeError: the two parameter vectors coincide.
    """
    distance = norm({name: params[name] - other[name] for name in params})
    if distance == 0:
        raise ValueRangeError("the two parameter vectors coincide: a ratio needs two different ones")
    one, two = (stacked_meta_jacobian(model, theta, tasks, inner) for theta in (params, other))
    return norm({name: one[name] - two[name] for name in one}) / (model.scale**0.5 * distance)


def lipschitz_along(
    model: Model, params: Parameters, direction: Parameters, tasks: Sequence[Task], inner: InnerLoop
) -> float:
    """‖DJ(θ)[v]‖_F / (√l ‖v‖): the ratio of Eq. (25) for θ and θ + εv as ε → 0.

    Args:
        model: the network.
        params: θ.
        direction: v.
        tasks: the tasks of J.
        inner: the inner loop.

    Returns:
        The ratio.

    Raises:
        ValueRangeError: the direction is zero.
    """
    length = norm(direction)
    if length == 0:
        raise ValueRangeError("the direction is zero: give one along which the parameters move")
    rows = [product(direction) for product in _hessian_products(model, params, tasks, inner)]
    return sum(norm(row) ** 2 for row in rows) ** 0.5 / (model.scale**0.5 * length)


def lipschitz_constant(
    model: Model,
    params: Parameters,
    tasks: Sequence[Task],
    inner: InnerLoop,
    generator: torch.Generator,
    tolerance: float = 1e-3,
) -> float:
    """K of Eq. (25) at a point, the maximum of ‖DJ(θ)[v]‖_F / (√l ‖v‖): √(λ_max(Σ_a (∇²F_a)²) / l).

    With no inner steps, one query and one output it is ‖∇²f‖_op / √l of Eqs. (37) to (40). For ReLU it is the
    constant of the linear piece on which θ lies, and Lemma 1 has no K.

    Args:
        model: the network.
        params: θ.
        tasks: the tasks of J.
        inner: the inner loop.
        generator: for the start vector, on which the result depends within ``tolerance`` alone.
        tolerance: the relative error of K.

    Returns:
        K.
    """
    products = _hessian_products(model, params, tasks, inner)
    like = next(iter(params.values()))
    size = sum(value.numel() for value in params.values())

    def squared(vector: np.ndarray) -> np.ndarray:
        direction = _unflatten(torch.from_numpy(vector.reshape(-1)).to(like), params)
        return reduce(np.add, (_flatten(product(product(direction))) for product in products))

    start = torch.randn(size, generator=generator, dtype=torch.float64).numpy()
    operator = LinearOperator((size, size), matvec=squared, dtype=np.float64)
    # the eigenvalue is K², and more than 8 vectors between restarts save no products
    options = {"tol": 2 * tolerance, "ncv": min(8, size), "v0": start, "return_eigenvectors": False}
    largest = eigsh(operator, k=1, which="LA", **options)
    return float(max(largest[0], 0.0) / model.scale) ** 0.5


def _hessian_products(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop
) -> list[Callable[[Parameters], Parameters]]:
    """The maps v ↦ ∇²F_a(θ) v for every meta-output a of every task (the Hessian is symmetric, so one reverse pass)."""
    tasks = check_tasks(tasks)
    model, params = ready_for_tasks(model, params, tasks, algorithm_of(inner))
    pullbacks = []
    for task in tasks:
        for row in range(task.query_y.numel()):

            def single(theta: Parameters, task: Task = task, row: int = row) -> Tensor:
                return query_output(model, theta, task, inner)[row]

            pullbacks.append(vjp(grad(single), params)[1])
    return [partial(_pulled_back, pullback) for pullback in pullbacks]


def _pulled_back(pullback: Callable[[Parameters], tuple[Parameters]], vector: Parameters) -> Parameters:
    return pullback(vector)[0]


def _flatten(parts: Parameters) -> np.ndarray:
    return torch.cat([part.detach().reshape(-1) for part in parts.values()]).double().cpu().numpy()


def _unflatten(vector: Tensor, like: Parameters) -> Parameters:
    parts = torch.split(vector, [value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
