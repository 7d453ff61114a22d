"""The MetaNTK of the real inner loop: Φ̂ = (1/l) ∇F ∇Fᵀ (Eqs. 4 and 24), of any network.

Networks of Eq. (16) have it in factored form (:mod:`mamltheory.factored.meta_jacobian`). For the others it comes from
rows of ∇F. One inner step is θ_{s+1} = θ_s − λ P ∇ℓ(θ_s), so ∂θ_{s+1}/∂θ_s = I − λ P H_s with the Hessian H_s of
the support loss, and by the chain rule a row of ∇F is

    v_τ = a row of ∇f_{θ_τ}(X),   v_s = v_{s+1} − λ H_s P v_{s+1},   s = τ−1, …, 0:

τ Hessian-vector products a row, no Hessian.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from mamltheory.errors import UnsupportedModelError, ValueRangeError
from mamltheory.factored.meta_ntk import factored_meta_ntk
from mamltheory.guard import ready_for_tasks
from mamltheory.inner_loop import (
    InnerLoop,
    adapted_names,
    algorithm_of,
    inner_path,
    query_output,
    square_loss,
)
from mamltheory.kernels.layers.jacobian import check_dtype, checked_rows, gram, jacobian
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model, output_of
from mamltheory.tasks import Parameters, Task, check_tasks

MetaMethod = Literal["auto", "factored", "generic"]
"""How the MetaNTK is computed: "factored" for networks of Eq. (16), "generic" for any, or whichever fits."""


def meta_jacobian(
    model: Model, params: Parameters, task: Task, inner: InnerLoop, chunk: int | None = None
) -> Parameters:
    """∇_θ F_θ(X, X', Y') of one task, by Hessian-vector products.

    Args:
        model: the network.
        params: its parameters θ.
        task: the task.
        inner: the inner loop.
        chunk: most rows differentiated together; None for all.

    Returns:
        For every parameter that moves, n·k × its shape.
    """
    path = inner_path(model, params, task, inner)
    rows = jacobian(model, path[-1], task.query_x, chunk=chunk)
    if inner.first_order:
        return rows
    names = adapted_names(model, params, inner)
    for theta, lam0 in zip(reversed(path[:-1]), reversed(inner.rates), strict=True):
        product, rate = _hessian_vector_product(model, theta, task), lam0 / model.scale

        def step(
            row: Parameters, product: Callable[[Parameters], Parameters] = product, rate: float = rate
        ) -> Parameters:
            moved = {name: value if name in names else torch.zeros_like(value) for name, value in row.items()}
            curvature = product(inner.scaled(moved))
            return {name: value - rate * curvature[name] for name, value in row.items()}

        rows = vmap(step, chunk_size=chunk)(rows)
    return rows


def checked_meta_jacobian(
    model: Model, params: Parameters, task: Task, inner: InnerLoop, chunk: int | None = None
) -> Parameters:
    """:func:`meta_jacobian`, if it adds up to one plain backward pass through the inner loop; else plain rows.

    Returns:
        The rows. The arguments model, params, task, inner and chunk are those of :func:`meta_jacobian`.
    """
    moving = model.moving(params)

    def whole(own: Parameters) -> Tensor:
        return query_output(model, {**params, **own}, task, inner)

    with torch.no_grad():
        outputs = whole({})
    cotangents = torch.eye(len(outputs), dtype=outputs.dtype, device=outputs.device)[None]
    rows = checked_rows(
        lambda: {
            name: value[None] for name, value in meta_jacobian(model, params, task, inner, chunk).items()
        },
        lambda own: whole(own)[None],
        lambda own, _: whole(own),
        cotangents,
        moving,
    )
    return {name: value[0] for name, value in rows.items()}


def _hessian_vector_product(
    model: Model, theta: Parameters, task: Task
) -> Callable[[Parameters], Parameters]:
    """The map v -> ∇²_θ ℓ(f_θ(X'), Y') v, by one reverse pass over the gradient (the Hessian is symmetric)."""

    def loss(params: Parameters) -> Tensor:
        return square_loss(output_of(model, {**theta, **params}, task.support_x), task.support_y)

    pullback = vjp(grad(loss), model.moving(theta))[1]
    return lambda vector: pullback(vector)[0]


@plain_numerics()
def empirical_meta_ntk(
    model: Model | nn.Module,
    tasks: Sequence[Task],
    inner: InnerLoop,
    other: Sequence[Task] | None = None,
    *,
    params: Parameters | None = None,
    chunk: int | None = None,
    memory: int | None = None,
    method: MetaMethod = "auto",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical MetaNTK Φ̂ = (1/l) ∇F ∇Fᵀ, Eqs. (4) and (24), of the real inner loop.

    Args:
        model: any network. A module's parameters that do not require a gradient stay constant.
        tasks: of the rows; their support labels matter.
        inner: the inner loop.
        other: the tasks of the columns; None for the symmetric kernel.
        params: values of the parameters; None for a module's own.
        chunk: most rows that "generic" differentiates together; it holds Nnk · D numbers of the network's dtype.
        memory: bytes of temporary tensors of "factored" (None: 2 GiB on a CPU, on CUDA by the free memory).
        method: "auto" takes "factored" for ``FullyConnected(...).model`` and its centred form, else "generic".
        dtype: of the kernel and of its accumulation, float64 for None.

    Returns:
        The kernel, Nnk × Nnk. Other errors are raised as by :func:`mamltheory.kernels.empirical.empirical_ntk`.

    Raises:
        UnsupportedModelError: "factored" for a network that does not show its layers.
        ValueRangeError: no such method.

    Example:
        >>> import torch, mamltheory as mt
        >>> label = torch.zeros(1, 1)
        >>> task = mt.Task(torch.tensor([[1.0]]), label, torch.tensor([[0.0]]), label)
        >>> inner = mt.InnerLoop(lam0=0.5)  # F(x) = f(x) - (f(0) - 0) / 2 has the gradient (1, 1/2) by (w, b)
        >>> mt.empirical_meta_ntk(torch.nn.Linear(1, 1), [task], inner).item()
        1.25
    """
    if not isinstance(method, str) or method not in ("auto", "factored", "generic"):
        raise ValueRangeError(f"method is {method!r}: expected 'auto', 'factored' or 'generic'")
    check_dtype(dtype)
    dtype = dtype or torch.float64
    tasks, other = check_tasks(tasks), None if other is None else check_tasks(other)
    pure, params = ready_for_tasks(model, params, (*tasks, *(other or ())), algorithm_of(inner))
    if pure.network is not None and inner.plain and method != "generic":
        kernel = factored_meta_ntk(
            pure.network, params, tasks, inner, other, origin=pure.origin, memory=memory, dtype=dtype
        )
        return kernel / pure.scale
    if method == "factored":
        raise UnsupportedModelError(
            "only FullyConnected(...).model and its centred form show their layers, and only an inner loop of one rate "
            "for all parameters has factors: use method='auto' or 'generic'"
        )
    rows = stacked_meta_jacobian(pure, params, tasks, inner, chunk)
    columns = rows if other is None else stacked_meta_jacobian(pure, params, other, inner, chunk)
    return gram(rows, columns, dtype) / pure.scale


def stacked_meta_jacobian(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop, chunk: int | None = None
) -> Parameters:
    """J(θ) = ∇_θ F_θ(𝒳, 𝒳', 𝒴'), Eq. (22).

    Returns:
        The rows of all ``tasks``, one task after the other. The arguments model, params, inner and chunk are those of
        :func:`meta_jacobian`.
    """
    parts = [checked_meta_jacobian(model, params, task, inner, chunk) for task in check_tasks(tasks)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
