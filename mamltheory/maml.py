"""Full-batch MAML and ANIL: meta-loss (2), exact meta-gradient (3), gradient descent (28), and what to watch.

    𝓛(θ) = ½ ‖F_θ(𝒳, 𝒳', 𝒴') − 𝒴‖²,   θ_{t+1} = θ_t − η J(θ_t)ᵀ (F_{θ_t} − 𝒴),   η = η0 / l

The gradient is taken through the inner loop, so that it has the Hessian term of Eq. (3) exactly; first-order MAML
leaves it out when the inner loop says so. Two methods give the same numbers:

    factored   fully connected networks: fast weights as low-rank factors (mamltheory.factored.fast_weights), all tasks
               in one product against the shared weight, no task's weights and no gradient ever formed in training
    generic    any other network: torch.func, one task after the other (``chunk``: several)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad_and_value

from mamltheory.allocator import keep_freed_memory
from mamltheory.errors import UnsupportedModelError, ValueRangeError
from mamltheory.factored.fast_weights import TaskStack, adapted_pass, factor_path, stack_tasks
from mamltheory.factored.meta_gradient import FactoredGradient, factored_meta_gradient
from mamltheory.guard import ready_for_tasks
from mamltheory.inner_loop import InnerLoop, algorithm_of, plain_gradient, query_output, square_loss
from mamltheory.kernels.empirical_meta import empirical_meta_ntk
from mamltheory.linalg import GradientDescent
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model, in_transform, output_of
from mamltheory.tasks import Parameters, Task, check_tasks, query_labels

Method = Literal["auto", "factored", "generic"]


def meta_method(model: Model, tasks: Sequence[Task], inner: InnerLoop) -> Literal["factored", "generic"]:
    """The method that "auto" stands for: "factored" for a fully connected network, centred or not, while it pays.

    In every step factors of τm rows cost 12 N m l (τm + n) operations beyond the shared products, and weights of
    a task's own 6 N m l²: a wide network is "generic" from τm + n ≥ l/2 on. Below 384 rows the number of
    operations counts and not their size, and factors are faster at any width (measured on one core).
    """
    if model.network is None:
        return "generic"
    rows = max(inner.tau * len(task.support_x) + len(task.query_x) for task in tasks)
    return "factored" if rows < max(model.network.width / 2, 384) else "generic"


def _chosen(method: Method, model: Model, tasks: Sequence[Task], inner: InnerLoop) -> str:
    if method not in ("auto", "factored", "generic"):
        raise ValueRangeError(f"method is {method!r}: expected 'auto', 'factored' or 'generic'")
    if method == "factored" and model.network is None:
        raise UnsupportedModelError(
            "method='factored' needs a FullyConnected network, centred or not: take method='generic'"
        )
    return meta_method(model, tasks, inner) if method == "auto" else method


@plain_numerics()
def meta_outputs(
    model: Model | nn.Module,
    params: Parameters | None,
    tasks: Sequence[Task],
    inner: InnerLoop,
    method: Method = "auto",
) -> Float[Tensor, " Nnk"]:
    """F_θ(𝒳, 𝒳', 𝒴'), Eq. (20): the meta-outputs of all tasks, one after the other; differentiable.

    Arguments and errors as for :func:`meta_gradient`.
    """
    model, params = ready_for_tasks(model, params, tasks, algorithm_of(inner))
    return _meta_outputs(model, params, tasks, inner, method)


def _meta_outputs(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop, method: Method
) -> Tensor:
    """:func:`meta_outputs` of a network that has been checked."""
    tasks = check_tasks(tasks)
    if _chosen(method, model, tasks, inner) == "generic":
        return torch.cat([query_output(model, params, task, inner) for task in tasks])
    stacks = stack_tasks(tasks, model)
    return _in_order(stacks, [_outputs(model, params, stack, inner) for stack in stacks])


def _outputs(model: Model, params: Parameters, stack: TaskStack, inner: InnerLoop) -> Tensor:
    path = factor_path(model.network, params, stack.support_x, stack.support_y, inner)
    return adapted_pass(path, stack.query_x).output


def _in_order(stacks: Sequence[TaskStack], outputs: Sequence[Tensor]) -> Float[Tensor, " Nnk"]:
    """The stacks' outputs, less those of θ0 for a centred network, in the order of the tasks."""
    parts = {}
    for stack, output in zip(stacks, outputs, strict=True):
        shifted = output if stack.offset is None else output - stack.offset
        parts.update(zip(stack.index, shifted.flatten(1).unbind(), strict=True))
    return torch.cat([parts[i] for i in range(len(parts))])


def meta_loss(
    model: Model | nn.Module, params: Parameters | None, tasks: Sequence[Task], inner: InnerLoop
) -> Float[Tensor, ""]:
    """𝓛(θ) of Eq. (2): half the squared residual of the meta-outputs, summed over tasks, samples and outputs.

    Arguments and errors as for :func:`meta_gradient`.
    """
    return square_loss(meta_outputs(model, params, tasks, inner), query_labels(tasks))


@plain_numerics()
def meta_gradient(
    model: Model | nn.Module,
    params: Parameters | None,
    tasks: Sequence[Task],
    inner: InnerLoop,
    method: Method = "auto",
    chunk: int | None = None,
) -> tuple[Parameters, Float[Tensor, " Nnk"]]:
    """∇𝓛(θ) of Eq. (3), second order through all τ steps, and the meta-outputs F_θ on the way.

    (The step size λ, which Eq. (3) leaves out before the Hessian, is there.)

    Args:
        model: a Model, or a torch module.
        params: θ; None for a module's own.
        tasks: the tasks; their labels have one column an output.
        inner: the inner loop.
        method: "auto" for what :func:`meta_method` says, or one of the two by name.
        chunk: how many tasks have their activations alive at a time; None for all of one size (factored) or one
            (generic).

    Returns:
        The gradient by every parameter that is not frozen, and the meta-outputs Nnk.

    Raises:
        ValueRangeError: weights that are not finite, or an unknown method.
        ShapeError: parameters or labels that are not the network's.
        UnsupportedModelError: a network that mixes samples or draws at random; method="factored" where the network is
            not fully connected.
    """
    model, params = ready_for_tasks(model, params, tasks, algorithm_of(inner))
    gradient, outputs = _Objective(model, tasks, inner, method, chunk).gradient(params)
    dense = gradient.dense()
    return {name: dense[name] for name in params if name in dense}, outputs


@dataclass(frozen=True, eq=False)
class _DenseGradient:
    """∇𝓛 as it is, with the interface of FactoredGradient."""

    values: Parameters

    def dense(self) -> Parameters:
        return self.values

    def step_(self, params: Parameters, rate: float) -> float:
        for name, gradient in self.values.items():
            params[name].sub_(gradient, alpha=rate)
        return rate * _norm(self.values)


class _Objective:
    """The meta-loss of given tasks as a function of θ alone."""

    def __init__(
        self, model: Model, tasks: Sequence[Task], inner: InnerLoop, method: Method, chunk: int | None = None
    ) -> None:
        keep_freed_memory()
        if chunk is not None and chunk < 1:
            raise ValueRangeError(f"chunk is {chunk}: expected at least 1 task at a time, or None")
        self.model, self.tasks, self.inner = model, check_tasks(tasks), inner
        self.method, self.chunk = _chosen(method, model, self.tasks, inner), chunk
        self.stacks = stack_tasks(self.tasks, model, chunk) if self.method == "factored" else ()

    @plain_numerics()
    def gradient(self, params: Parameters) -> tuple[FactoredGradient | _DenseGradient, Tensor]:
        """∇𝓛(θ) and F_θ."""
        if self.method == "generic":
            return self._generic(params)
        gradient, outputs = factored_meta_gradient(self.model.network, params, self.stacks, self.inner)
        return gradient, _in_order(self.stacks, outputs)

    @plain_numerics()
    @torch.no_grad()
    def outputs(self, params: Parameters, tasks: Sequence[Task] | None = None) -> Tensor:
        """F_θ alone, on the tasks or on others."""
        return _meta_outputs(self.model, params, tasks or self.tasks, self.inner, self.method)

    def _generic(self, params: Parameters) -> tuple[_DenseGradient, Tensor]:
        total, seen, step = {}, [], self.chunk or 1
        for some in (self.tasks[i : i + step] for i in range(0, len(self.tasks), step)):
            gradient, outputs = self._of(some, params)
            seen.append(outputs)
            for name, value in gradient.items():
                total[name] = total[name].add_(value) if name in total else value
        return _DenseGradient(total), torch.cat(seen)

    def _of(self, tasks: Sequence[Task], params: Parameters) -> tuple[Parameters, Tensor]:
        labels, moving = query_labels(tasks), self.model.moving(params)

        def loss(own: Parameters) -> tuple[Tensor, Tensor]:
            outputs = _meta_outputs(self.model, {**params, **own}, tasks, self.inner, "generic")
            return square_loss(outputs, labels), outputs

        if in_transform(moving):
            gradient, (_, outputs) = grad_and_value(loss, has_aux=True)(moving)
        else:
            seen: list[Tensor] = []

            def alone(own: Parameters) -> Tensor:
                value, outputs = loss(own)
                seen.append(outputs)
                return value

            gradient, outputs = plain_gradient(alone, moving), seen[0]
        return gradient, outputs.detach()


def gradient_step(model: Model, params: Parameters, gradient: Parameters, eta0: float) -> Parameters:
    """θ − (η0 / l) ∇𝓛, Eq. (28), as new parameters; those without a gradient stay."""
    return {
        name: value - eta0 / model.scale * gradient[name] if name in gradient else value
        for name, value in params.items()
    }


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
    """A whole run: one observation a step (0 … steps), and Φ̂_t at the steps where it was asked for.

    method: how the meta-gradient was taken, as :func:`meta_method` names it.
    """

    observations: tuple[Observation, ...]
    params: Parameters
    kernels: dict[int, Float[Tensor, "p p"]] = field(default_factory=dict)
    method: Literal["factored", "generic"] = "generic"

    def losses(self) -> Float[Tensor, " t"]:
        """𝓛(θ_t) for t = 0 … steps."""
        return torch.tensor([seen.loss for seen in self.observations], dtype=torch.float64)

    def kernel_drift(self) -> dict[int, float]:
        """‖Φ̂_t − Φ̂_0‖_F of Eq. (30) for every step at which the kernel was taken."""
        return {step: float((kernel - self.kernels[0]).norm()) for step, kernel in self.kernels.items()}


def distance(params: Parameters, other: Parameters) -> float:
    """‖θ − θ̄‖₂ over all parameters, block by block: no memory of the parameters' size."""
    parts = [
        torch.linalg.vector_norm(one - two, dtype=torch.float64)
        for name in params
        if params[name].is_floating_point()
        for one, two in zip(_blocks(params[name]), _blocks(other[name]), strict=True)
    ]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def _norm(params: Parameters) -> float:
    parts = [torch.linalg.vector_norm(value, dtype=torch.float64) for value in params.values()]
    return float(torch.linalg.vector_norm(torch.stack(parts)))


def _blocks(value: Tensor) -> tuple[Tensor, ...]:
    return value.flatten().split(2**18)


def descend(
    model: Model,
    params: Parameters,
    tasks: Sequence[Task],
    inner: InnerLoop,
    eta0: float,
    test_tasks: Sequence[Task] = (),
    method: Method = "auto",
) -> Iterator[tuple[MetaState, Observation]]:
    """Gradient descent (28) without end: yields θ_t with what is seen of it, for t = 0, 1, 2, …

    Every θ_t yielded is the caller's to keep. Raises ValueRangeError when the loss diverges.
    """
    model, params = ready_for_tasks(model, params, (*check_tasks(tasks), *test_tasks), algorithm_of(inner))
    return _descend(model, params, tasks, inner, eta0, test_tasks, method, reuse=False)


def _descend(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop, eta0: float,
    test_tasks: Sequence[Task], method: Method, reuse: bool, last: int | None = None,
) -> Iterator[tuple[MetaState, Observation]]:  # fmt: skip
    """``reuse``: θ_{t+1} takes the memory of θ_t, except that of θ_0.  last: the step that ends it, if any does."""
    GradientDescent(eta0, 1)  # checks the rate
    objective, test_tasks = _Objective(model, tasks, inner, method), tuple(test_tasks)
    labels, rate = query_labels(objective.tasks), eta0 / model.scale
    state, start, limit = MetaState(params), params, _largest_loss(model, params, objective.tasks)
    while True:
        gradient = None  # the last step needs the outputs alone
        if state.step == last:
            outputs = objective.outputs(state.params)
        else:
            gradient, outputs = objective.gradient(state.params)
        seen = Observation(
            step=state.step,
            loss=float(square_loss(outputs, labels)),
            outputs=outputs.detach(),
            test_outputs=objective.outputs(state.params, test_tasks) if test_tasks else None,
            movement=distance(state.params, start),
            path_length=state.path_length,
        )
        if not seen.loss <= limit:
            raise ValueRangeError(
                f"the meta-loss is {seen.loss:.3g} at step {state.step}, where no loop that converges takes it: the "
                f"learning rates are too large; take "
                f"eta0 < 2/(sigma_max + sigma_min) of the MetaNTK and lam0 < 2/sigma_max of the NTK (eta0 = {eta0}, "
                f"lam0 = {inner.lam0})"
            )
        yield state, seen
        if gradient is None:
            return
        moved = state.params
        if not reuse or state.step == 0:
            moved = {k: v if k in model.frozen else v.detach().clone() for k, v in moved.items()}
        length = gradient.step_(moved, rate)
        state = MetaState(moved, state.step + 1, state.path_length + length)


def _largest_loss(model: Model, params: Parameters, tasks: Sequence[Task]) -> float:
    """A loss that only a diverging loop reaches: 10⁸ times that of the labels and the outputs at θ_0 by themselves."""
    with torch.no_grad():
        start = torch.cat([output_of(model, params, task.query_x) for task in tasks])
    size = float(start.double().square().sum() + query_labels(tasks).double().square().sum()) / 2
    return max(1e8 * size, torch.finfo(start.dtype).tiny)


@plain_numerics()
def train(
    model: Model | nn.Module,
    params: Parameters | None,
    tasks: Sequence[Task],
    inner: InnerLoop,
    eta0: float,
    steps: int,
    test_tasks: Sequence[Task] = (),
    kernel_steps: Sequence[int] = (),
    method: Method = "auto",
) -> TrainingRecord:
    """``steps`` steps of full-batch MAML or ANIL from ``params``, Eq. (28), with a record of every step.

    Memory: θ_t beside the given θ_0, which stays as it is, and the activations; "generic" holds a gradient too.

    Args:
        model: a Model, or a torch module.
        params: θ_0; None for a module's own. The module keeps its weights: the trained ones are in the record.
        tasks: the training tasks.
        inner: the inner loop.
        eta0: the outer rate; a step is η0 / l.
        steps: how many steps.
        test_tasks: tasks whose outputs are recorded, too.
        kernel_steps: the steps at which the empirical MetaNTK Φ̂_t is taken too (step 0 always comes with them).
        method: as for :func:`meta_gradient`; the record names the one that was taken.

    Raises:
        ValueRangeError: steps that do not exist, or a loss that diverges.
        MamlTheoryError: as :func:`meta_gradient`.
    """
    GradientDescent(eta0, steps)  # checks both
    if not all(0 <= step <= steps for step in kernel_steps):
        raise ValueRangeError(f"kernel_steps is {list(kernel_steps)}: expected steps from 0 to {steps}")
    wanted = {0, *kernel_steps} if kernel_steps else set()
    model, params = ready_for_tasks(model, params, (*check_tasks(tasks), *test_tasks), algorithm_of(inner))
    chosen = _chosen(method, model, tasks, inner)
    observations, kernels = [], {}
    for state, seen in _descend(model, params, tasks, inner, eta0, test_tasks, chosen, True, steps):
        observations.append(seen)
        if state.step in wanted:
            kernels[state.step] = empirical_meta_ntk(model, tasks, inner, params=state.params)
    return TrainingRecord(tuple(observations), state.params, kernels, chosen)
