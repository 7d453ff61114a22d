"""Full-batch MAML and ANIL: meta-loss (2), exact meta-gradient (3), gradient descent (28), and what to watch.

    𝓛(θ) = ½ ‖F_θ(𝒳, 𝒳', 𝒴') − 𝒴‖²,   θ_{t+1} = θ_t − η J(θ_t)ᵀ (F_{θ_t} − 𝒴),   η = η0 / l

The gradient is taken through the inner loop, so that it has the Hessian term of Eq. (3) exactly; first-order MAML
leaves it out when the inner loop says so.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad_and_value

from mamltheory.errors import ValueRangeError
from mamltheory.inner import InnerLoop, meta_outputs, square_loss
from mamltheory.kernels.empirical_meta import empirical_meta_ntk
from mamltheory.linalg import GradientDescent
from mamltheory.networks import Model, check_finite
from mamltheory.types import Parameters, Task, check_tasks, query_labels


def meta_loss(model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop) -> Float[Tensor, ""]:
    """𝓛(θ) of Eq. (2): half the squared residual of the meta-outputs, summed over tasks, samples and outputs."""
    tasks = check_tasks(tasks)
    return square_loss(meta_outputs(model, params, tasks, inner), query_labels(tasks))


def meta_gradient(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop
) -> tuple[Parameters, Float[Tensor, " Nnk"]]:
    """∇𝓛(θ) of Eq. (3), second order through all τ steps, and the meta-outputs F_θ on the way.

    (The step size λ, which Eq. (3) leaves out before the Hessian, is there.)
    """
    tasks = check_tasks(tasks)
    labels = query_labels(tasks)

    def loss(theta: Parameters) -> tuple[Tensor, Tensor]:
        outputs = meta_outputs(model, theta, tasks, inner)
        return square_loss(outputs, labels), outputs

    gradient, (_, outputs) = grad_and_value(loss, has_aux=True)(params)
    return gradient, outputs


def gradient_step(model: Model, params: Parameters, gradient: Parameters, eta0: float) -> Parameters:
    """θ − (η0 / l) ∇𝓛, Eq. (28)."""
    return {name: value - eta0 / model.scale * gradient[name] for name, value in params.items()}


@dataclass(frozen=True)
class MetaState:
    """Where a training run stands before step ``step``: the parameters, and the length of the path so far."""

    params: Parameters
    step: int = 0
    path_length: float = 0.0


@dataclass(frozen=True)
class Observation:
    """What is seen of θ_t: loss 𝓛(θ_t), meta-outputs on the training (and test) tasks, ‖θ_t − θ_0‖, path length."""

    step: int
    loss: float
    outputs: Float[Tensor, " Nnk"]
    test_outputs: Float[Tensor, " p"] | None
    movement: float
    path_length: float


@dataclass(frozen=True)
class TrainingRecord:
    """A whole run: one observation a step (0 … steps), and Φ̂_t at the steps where it was asked for."""

    observations: tuple[Observation, ...]
    params: Parameters
    kernels: dict[int, Float[Tensor, "p p"]] = field(default_factory=dict)

    def losses(self) -> Float[Tensor, " t"]:
        """𝓛(θ_t) for t = 0 … steps."""
        return torch.tensor([seen.loss for seen in self.observations], dtype=torch.float64)

    def kernel_drift(self) -> dict[int, float]:
        """‖Φ̂_t − Φ̂_0‖_F of Eq. (30) for every step at which the kernel was taken."""
        return {step: float((kernel - self.kernels[0]).norm()) for step, kernel in self.kernels.items()}


def distance(params: Parameters, other: Parameters) -> float:
    """‖θ − θ̄‖₂ over all parameters."""
    return float(sum((params[name] - other[name]).double().square().sum() for name in params)) ** 0.5


def descend(
    model: Model,
    params: Parameters,
    tasks: Sequence[Task],
    inner: InnerLoop,
    eta0: float,
    test_tasks: Sequence[Task] = (),
) -> Iterator[tuple[MetaState, Observation]]:
    """Gradient descent (28) without end: yields θ_t with what is seen of it, for t = 0, 1, 2, …

    Raises ValueRangeError when the loss stops being finite.
    """
    GradientDescent(eta0, 1)  # checks the rate
    tasks, test_tasks = check_tasks(tasks), tuple(test_tasks)
    check_tasks((*tasks, *test_tasks))
    state, start = MetaState(check_finite(params)), params
    while True:
        gradient, outputs = meta_gradient(model, state.params, tasks, inner)
        seen = Observation(
            step=state.step,
            loss=float(square_loss(outputs, query_labels(tasks))),
            outputs=outputs.detach(),
            test_outputs=meta_outputs(model, state.params, test_tasks, inner) if test_tasks else None,
            movement=distance(state.params, start),
            path_length=state.path_length,
        )
        if not math.isfinite(seen.loss):
            raise ValueRangeError(
                f"the meta-loss is {seen.loss} at step {state.step}: the learning rates are too large; take "
                f"eta0 < 2/(sigma_max + sigma_min) of the MetaNTK and lam0 < 2/sigma_max of the NTK (eta0 = {eta0}, "
                f"lam0 = {inner.lam0})"
            )
        yield state, seen
        moved = gradient_step(model, state.params, gradient, eta0)
        state = MetaState(moved, state.step + 1, state.path_length + distance(moved, state.params))


def train(
    model: Model,
    params: Parameters,
    tasks: Sequence[Task],
    inner: InnerLoop,
    eta0: float,
    steps: int,
    test_tasks: Sequence[Task] = (),
    kernel_steps: Sequence[int] = (),
) -> TrainingRecord:
    """``steps`` steps of full-batch MAML or ANIL from ``params``, Eq. (28), with a record of every step.

    kernel_steps: the steps at which the empirical MetaNTK Φ̂_t is taken too (step 0 always comes with them).
    Raises ValueRangeError for steps that do not exist, or when the loss stops being finite.
    """
    GradientDescent(eta0, steps)  # checks both
    if not all(0 <= step <= steps for step in kernel_steps):
        raise ValueRangeError(f"kernel_steps is {list(kernel_steps)}: expected steps from 0 to {steps}")
    wanted = {0, *kernel_steps} if kernel_steps else set()
    observations, kernels = [], {}
    for state, seen in descend(model, params, tasks, inner, eta0, test_tasks):
        observations.append(seen)
        if state.step in wanted:
            kernels[state.step] = empirical_meta_ntk(model, tasks, inner, params=state.params)
        if state.step == steps:
            return TrainingRecord(tuple(observations), state.params, kernels)
    raise AssertionError("descend never ends by itself")
