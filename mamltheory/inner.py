"""The inner loop: τ gradient steps on a task's support samples, Eq. (1), line 5 of Algorithm 1 and Eq. (83).

    θ_{s+1} = θ_s − λ P ∇ℓ(f_{θ_s}(X'), Y'),   ℓ(ŷ, y) = ½ Σ (ŷ − y)²,   λ = λ0 / l

P is the identity for MAML and the projection on the last linear layer for ANIL. Eq. (1) prints the step
without λ; line 5 of the algorithm has it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from mamltheory.errors import UnsupportedModelError, ValueRangeError
from mamltheory.linalg import GradientDescent
from mamltheory.networks import Model, output_of
from mamltheory.types import Parameters, Task

Algorithm = Literal["maml", "anil"]


@dataclass(frozen=True)
class InnerLoop:
    """How a task is adapted to: ``tau`` steps of rate λ = lam0 / scale, of all parameters or the head.

    first_order: leave out the derivative of the adaptation in the meta-gradient (first-order MAML).
    Raises ValueRangeError for a negative lam0 or tau, or an unknown algorithm.
    """

    lam0: float
    tau: int = 1
    algorithm: Algorithm = "maml"
    first_order: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lam0) and self.lam0 >= 0):
            raise ValueRangeError(f"lam0 is {self.lam0}: expected a finite number of at least 0")
        if self.tau < 0 or self.tau != int(self.tau):
            raise ValueRangeError(f"tau is {self.tau}: expected a whole number of inner steps, at least 0")
        if self.algorithm not in ("maml", "anil"):
            raise ValueRangeError(f"algorithm is {self.algorithm!r}: expected 'maml' or 'anil'")

    @property
    def dynamics(self) -> GradientDescent:
        """The same loop as a function of the kernel: τ steps of rate λ0 on Θ (which carries 1/l)."""
        return GradientDescent(self.lam0, self.tau)


def square_loss(prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """ℓ(ŷ, y) = ½ ‖ŷ − y‖², a sum over samples and outputs (no mean)."""
    return (prediction - target).square().sum() / 2


def adapted_names(model: Model, params: Parameters, inner: InnerLoop) -> frozenset[str]:
    """Names of the parameters that the inner loop moves: all for MAML, the head's for ANIL.

    Raises UnsupportedModelError for ANIL when the network has no linear head.
    """
    if inner.algorithm == "maml":
        return frozenset(params)
    if not model.head:
        raise UnsupportedModelError(
            "ANIL adapts the last linear layer, and this network has none: use algorithm='maml'"
        )
    return model.head


def support_gradient(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> Parameters:
    """P ∇_θ ℓ(f_θ(X'), Y'), only the entries that the inner loop moves."""
    names = adapted_names(model, params, inner)
    moving = {name: value for name, value in params.items() if name in names}

    def loss(part: Parameters) -> Tensor:
        return square_loss(output_of(model, {**params, **part}, task.support_x), task.support_y)

    return grad(loss)(moving)


def inner_path(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> list[Parameters]:
    """θ_0, θ_1, …, θ_τ of the inner loop, differentiable in ``params``."""
    path = [params]
    rate = inner.lam0 / model.scale
    for _ in range(inner.tau):
        gradient = support_gradient(model, path[-1], task, inner)
        if inner.first_order:
            gradient = {name: value.detach() for name, value in gradient.items()}
        moved = {name: path[-1][name] - rate * value for name, value in gradient.items()}
        path.append({**path[-1], **moved})
    return path


def adapt(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> Parameters:
    """θ' = θ_τ, the parameters adapted to the task's support samples, Eq. (1)."""
    return inner_path(model, params, task, inner)[-1]


def meta_output(model: Model, params: Parameters, task: Task, inner: InnerLoop) -> Float[Tensor, " nk"]:
    """F_θ(X, X', Y') = f_{θ'}(X), Eq. (1): the adapted network on the queries, flattened sample-major."""
    return output_of(model, adapt(model, params, task, inner), task.query_x).reshape(-1)
