"""The inner loop: τ gradient steps on a task's support samples, Eq. (1), line 5 of Algorithm 1 and Eq. (83).

    θ_{s+1} = θ_s − λ P ∇ℓ(f_{θ_s}(X'), Y'),   ℓ(ŷ, y) = ½ Σ (ŷ − y)²,   λ = λ0 / l

P is the identity for MAML and the projection on the last linear layer for ANIL. Eq. (1) prints the step
without λ; line 5 of the algorithm has it.

Variants: a rate for each step (λ_s), a choice of the parameters that move (BOIL, CAVIA, the last k layers: another P),
and a factor for each parameter (Meta-SGD: P = Λ diagonal). Their kernel is 𝒦 = (1/l) ∇_S f Λ ∇_S fᵀ inside A, Θ outside
(:func:`mamltheory.kernels.adaptation.adaptation_ntk`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad

from mamltheory.accelerator import out_of_memory
from mamltheory.dynamics import GradientDescent, ScheduledDescent, is_number
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.guard import ready_for_tasks
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model, in_transform, not_differentiable, output_of
from mamltheory.tasks import Parameters, Select, Task, params_optional, selected_names

Algorithm = Literal["maml", "anil"]


@dataclass(frozen=True)
class InnerLoop:
    """The inner loop of MAML or ANIL.

    Args:
        lam0: λ0, or a tuple with one for each step; the rate is λ = λ0 / l, with l the scale of the model.
        tau: τ, the number of steps.
        algorithm: "maml" adapts all parameters, "anil" the last linear layer.
        first_order: drop the derivative of the adaptation in the meta-gradient (first-order MAML).
        select: names of the parameters that move, or a predicate on names, among those of the algorithm: without the
            head for BOIL, the context alone for CAVIA.
        factors: Λ by names of parameters: factors of the rate, numbers or tensors of the parameter's shape (Meta-SGD);
            1 for the others.

    Raises:
        ValueRangeError: a negative ``lam0`` or ``tau``, an unknown algorithm, or factors that are not finite.

    Example:
        >>> from mamltheory import InnerLoop
        >>> InnerLoop(lam0=0.1, tau=2, algorithm="anil").dynamics
        GradientDescent(rate=0.1, steps=2)
        >>> InnerLoop(lam0=(0.2, 0.1), tau=2, select=lambda name: name != "bias").dynamics
        ScheduledDescent(rates=(0.2, 0.1), momentum=0.0)
    """

    lam0: float | tuple[float, ...]
    tau: int = 1
    algorithm: Algorithm = "maml"
    first_order: bool = False
    select: Select = None
    factors: Mapping[str, float | Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.lam0, tuple) and not (is_number(self.lam0) and self.lam0 >= 0):
            raise ValueRangeError(f"lam0 is {self.lam0!r}: expected a finite number of at least 0")
        if not (is_number(self.tau) and self.tau >= 0 and self.tau == int(self.tau)):
            raise ValueRangeError(f"tau is {self.tau!r}: expected a whole number of inner steps, at least 0")
        if not isinstance(self.algorithm, str) or self.algorithm not in ("maml", "anil"):
            raise ValueRangeError(f"algorithm is {self.algorithm!r}: expected 'maml' or 'anil'")
        if isinstance(self.lam0, tuple) and len(ScheduledDescent(self.lam0).rates) != self.tau:
            raise ValueRangeError(
                f"lam0 has {len(self.lam0)} rates and tau is {self.tau}: expected one rate for each step"
            )
        for name, factor in _entries(self.factors):
            if not isinstance(name, str) or not _is_finite(factor):
                raise ValueRangeError(
                    f"the factor of {name!r} is {factor!r}: expected a finite number or tensor for a name"
                )

    @property
    def dynamics(self) -> GradientDescent | ScheduledDescent:
        """The same loop as a function of the kernel 𝒦, which carries 1/l and Λ, in τ steps of rate λ0."""
        if isinstance(self.lam0, tuple):
            return ScheduledDescent(self.lam0)
        return GradientDescent(self.lam0, self.tau)

    @property
    def rates(self) -> tuple[float, ...]:
        """λ0 of every step."""
        return self.lam0 if isinstance(self.lam0, tuple) else (self.lam0,) * int(self.tau)

    @property
    def rate(self) -> float:
        """λ0 of all steps; a ConfigurationError where they differ."""
        if isinstance(self.lam0, tuple):
            raise ConfigurationError(f"lam0 is {self.lam0}: expected one rate for all steps")
        return self.lam0

    @property
    def plain(self) -> bool:
        """Whether all steps have one rate, for all parameters of the algorithm, as loops in factored form have."""
        return not isinstance(self.lam0, tuple) and self.select is None and self.factors is None

    def scaled(self, gradient: Parameters) -> Parameters:
        """Λ times a gradient by name; a ShapeError for a factor of another shape than its parameter."""
        factors, result = dict(self.factors or {}), dict(gradient)
        for name in set(factors) & set(gradient):
            factor, value = factors[name], gradient[name]
            if isinstance(factor, Tensor):
                if factor.dim() and factor.shape != value.shape[-factor.dim() :]:
                    raise ShapeError(
                        f"the factor of {name!r} has shape {tuple(factor.shape)}: expected a number or the parameter's "
                        f"shape {tuple(value.shape)}"
                    )
                factor = factor.to(value)
            result[name] = factor * value
        return result


def _entries(factors: object) -> list[tuple[object, object]]:
    """The factors by name; a ValueRangeError unless they are a mapping or None."""
    if not isinstance(factors, Mapping | None):
        raise ValueRangeError(f"factors is {factors!r}: expected a dict from names to numbers or tensors")
    return list((factors or {}).items())


def _is_finite(factor: object) -> bool:
    if isinstance(factor, Tensor):
        return factor.is_floating_point() and not factor.is_sparse and bool(torch.isfinite(factor).all())
    return is_number(factor)


def algorithm_of(inner: InnerLoop) -> Algorithm:
    """The inner loop's algorithm; a ConfigurationError says that it is not an InnerLoop."""
    if not isinstance(inner, InnerLoop):
        raise ConfigurationError(
            f"the inner loop is {inner!r}: expected InnerLoop(lam0, tau, algorithm), for example InnerLoop(0.1, 1)"
        )
    return inner.algorithm


def square_loss(prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """ℓ(ŷ, y) = ½ ‖ŷ − y‖², a sum over samples and outputs (no mean)."""
    return (prediction - target).square().sum() / 2


def adapted_names(model: Model, params: Parameters, inner: InnerLoop) -> frozenset[str]:
    """Names of the parameters that the inner loop moves: the algorithm's except frozen ones, among ``inner.select``."""
    names = _algorithm_names(model, params, inner)
    unknown = {name for name, _ in _entries(inner.factors)} - set(params)
    if unknown:
        raise ConfigurationError(
            f"factors names {sorted(map(str, unknown))}, but the network has {sorted(params)}"
        )
    if inner.select is None:
        return names
    chosen = names & selected_names(params, inner.select)
    if not chosen:
        raise ConfigurationError(
            f"select names none of the parameters {sorted(names)} that the algorithm moves"
        )
    return chosen


def _algorithm_names(model: Model, params: Parameters, inner: InnerLoop) -> frozenset[str]:
    moving = frozenset(model.moving(params))
    if not moving:
        raise ConfigurationError("no parameter requires a gradient: call network.requires_grad_(True)")
    if inner.algorithm == "maml":
        return moving
    if not model.head:
        raise UnsupportedModelError(
            "ANIL adapts the last linear layer, and this network has none: use algorithm='maml'"
        )
    if not model.head & moving:
        raise ConfigurationError(
            f"all of the head {sorted(model.head)} is frozen: call .requires_grad_(True) on it"
        )
    return model.head & moving


def support_gradient(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> Parameters:
    """P ∇_θ ℓ(f_θ(X'), Y') for the ``model`` f at ``params`` θ on the ``task``: the entries that the loop moves."""
    names = adapted_names(model, params, inner)
    moving = {name: value for name, value in params.items() if name in names}

    def loss(part: Parameters) -> Tensor:
        return square_loss(output_of(model, {**params, **part}, task.support_x), task.support_y)

    return grad(loss)(moving) if in_transform(moving) else plain_gradient(loss, moving)


def plain_gradient(loss: Callable[[Parameters], Tensor], values: Parameters) -> Parameters:
    """∇ loss by plain autograd, differentiable where the values are; a NetworkError where torch has no derivative."""
    graph = any(value.requires_grad for value in values.values())
    leaves = {name: v if v.requires_grad else v.detach().requires_grad_() for name, v in values.items()}
    try:
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                loss(leaves),
                list(leaves.values()),
                create_graph=graph,
                allow_unused=True,
                materialize_grads=True,
            )
    except UnsupportedModelError:
        raise
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        raise not_differentiable(values, error) from error
    return dict(zip(leaves, gradients, strict=True))


def inner_path(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> list[Parameters]:
    """θ_0, θ_1, …, θ_τ of the ``inner`` loop of the ``model`` on the ``task``, differentiable in ``params``."""
    path = [params]
    for lam0 in inner.rates:
        rate = lam0 / model.scale
        gradient = inner.scaled(support_gradient(model, path[-1], task, inner))
        if inner.first_order:
            gradient = {name: value.detach() for name, value in gradient.items()}
        moved = {name: path[-1][name] - rate * value for name, value in gradient.items()}
        path.append({**path[-1], **moved})
    return path


@params_optional
@plain_numerics()
def adapt(model: Model | nn.Module, params: Parameters | None, task: Task, inner: InnerLoop) -> Parameters:
    """θ' = θ_τ, the parameters adapted to the task's support samples, Eq. (1).

    Errors are those of :func:`mamltheory.guard.ready_for_tasks`.

    Args:
        model: a network, as a Model or a torch module.
        params: θ; None, or left out, for those that a module holds.
        task: the task; its queries are not used.
        inner: the inner loop.

    Returns:
        All parameters; those that the loop does not move are the given ones.

    Example:
        >>> import torch
        >>> from mamltheory import InnerLoop, Model, Task, adapt
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> adapt(line, {"w": torch.zeros(1, 1)}, Task(x, y, x, y), InnerLoop(lam0=0.5, tau=1))
        {'w': tensor([[1.]])}
    """
    model, params = ready_for_tasks(model, params, [task], algorithm_of(inner))
    return inner_path(model, params, task, inner)[-1]


@params_optional
@plain_numerics()
def meta_output(
    model: Model | nn.Module, params: Parameters | None, task: Task, inner: InnerLoop
) -> Float[Tensor, " nk"]:
    """F_θ(X, X', Y') = f_{θ'}(X), Eq. (1): the output of the adapted network on the queries.

    Errors are those of :func:`mamltheory.guard.ready_for_tasks`.

    Args:
        model: a network, as a Model or a torch module.
        params: θ; None, or left out, for those that a module holds.
        task: the task; the labels of its queries are not used.
        inner: the inner loop.

    Returns:
        The outputs, flattened sample-major.

    Example:
        >>> import torch
        >>> from mamltheory import InnerLoop, Model, Task, meta_output
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> meta_output(line, {"w": torch.zeros(1, 1)}, Task(3 * x, y, x, y), InnerLoop(lam0=0.5, tau=1))
        tensor([3.])
    """
    model, params = ready_for_tasks(model, params, [task], algorithm_of(inner))
    return query_output(model, params, task, inner)


def query_output(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> Float[Tensor, " nk"]:
    """:func:`meta_output` of model, params, task and inner loop that have been checked."""
    return output_of(model, inner_path(model, params, task, inner)[-1], task.query_x).reshape(-1)
