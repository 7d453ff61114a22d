"""The meta-loss (2) of MAML and ANIL and its exact gradient (3).

    𝓛(θ) = ½ ‖F_θ(𝒳, 𝒳', 𝒴') − 𝒴‖²

The gradient is taken through the inner loop, so that it has the Hessian term of Eq. (3) exactly; first-order MAML
drops that term when the inner loop says so. Two methods give the same numbers:

    factored   fully connected networks: fast weights as low-rank factors (mamltheory.factored.fast_weights), all tasks
               in one product against the shared weight; neither a task's weights nor a gradient is formed in training
    generic    any other network: torch.func, one task after the other (``chunk``: several)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad_and_value

from mamltheory.errors import ConfigurationError, UnsupportedModelError, ValueRangeError
from mamltheory.factored.fast_weights import TaskStack, adapted_pass, factor_path, stack_tasks
from mamltheory.factored.meta_gradient import FactoredGradient, factored_meta_gradient
from mamltheory.guard import ready_for_tasks
from mamltheory.inner_loop import InnerLoop, algorithm_of, plain_gradient, query_output, square_loss
from mamltheory.kernels.layers.allocator import keep_freed_memory
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model, in_transform
from mamltheory.tasks import Parameters, Task, check_tasks, params_optional, query_labels

Method = Literal["auto", "factored", "generic"]
Chosen = Literal["factored", "generic"]


def meta_method(model: Model | nn.Module, tasks: Sequence[Task], inner: InnerLoop) -> Chosen:
    """The method that "auto" stands for: "factored" for a fully connected network while it is cheaper.

    In every step factors of τm rows cost 12 N m l (τm + n) operations beyond the shared products, and per-task
    weights 6 N m l²: a wide network is "generic" from τm + n ≥ l/2 on. Below 384 rows the number of operations
    counts and not their size, and factors are faster at any width (measured on one core).

    Args:
        model: the network, centred or not.
        tasks: the tasks.
        inner: the inner loop.

    Returns:
        "factored" or "generic".

    Raises:
        ConfigurationError: the network or the inner loop is something else.

    Example:
        >>> import torch
        >>> from mamltheory import FullyConnected, InnerLoop, Task, meta_method
        >>> x, y = torch.zeros(2, 3), torch.zeros(2, 1)
        >>> meta_method(FullyConnected(3, width=64, depth=1).model, [Task(x, y, x, y)], InnerLoop(0.1))
        'factored'
    """
    tasks = check_tasks(tasks)
    if not isinstance(model, Model | nn.Module) or not isinstance(inner, InnerLoop):
        raise ConfigurationError(
            f"got a {type(model).__name__} and a {type(inner).__name__}: expected a Model or torch.nn.Module, and an "
            "InnerLoop"
        )
    if isinstance(model, nn.Module) or model.network is None or not inner.plain:
        return "generic"
    rows = max(inner.tau * len(task.support_x) + len(task.query_x) for task in tasks)
    return "factored" if rows < max(model.network.width / 2, 384) else "generic"


def chosen_method(method: Method, model: Model, tasks: Sequence[Task], inner: InnerLoop) -> Chosen:
    """``method``, or what "auto" stands for with model, tasks and inner loop; an error if there is none."""
    if not isinstance(method, str) or method not in ("auto", "factored", "generic"):
        raise ValueRangeError(f"method is {method!r}: expected 'auto', 'factored' or 'generic'")
    if method == "factored" and model.network is None:
        raise UnsupportedModelError(
            "method='factored' needs a FullyConnected network, centred or not: take method='generic'"
        )
    if method == "factored" and not inner.plain:
        raise ConfigurationError(
            "method='factored' needs one rate for all steps and parameters of the algorithm: take method='generic'"
        )
    return meta_method(model, tasks, inner) if method == "auto" else method


@params_optional
@plain_numerics()
def meta_outputs(
    model: Model | nn.Module,
    params: Parameters | None,
    tasks: Sequence[Task],
    inner: InnerLoop,
    method: Method = "auto",
) -> Float[Tensor, " Nnk"]:
    """F_θ(𝒳, 𝒳', 𝒴'), Eq. (20): the meta-outputs of all tasks, one after the other; differentiable.

    Errors are those of :func:`meta_gradient`.

    Args:
        model: a Model, or a torch module.
        params: θ; None, or left out, for those that a module holds.
        tasks: the tasks.
        inner: the inner loop.
        method: as for :func:`meta_gradient`.

    Returns:
        The outputs of each task, flattened sample-major.

    Example:
        >>> import torch
        >>> from mamltheory import InnerLoop, Model, Task, meta_outputs
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> meta_outputs(line, {"w": torch.zeros(1, 1)}, [Task(x, y, x, y)] * 2, InnerLoop(lam0=0.5))
        tensor([1., 1.])
    """
    model, params = ready_for_tasks(model, params, tasks, algorithm_of(inner))
    return _meta_outputs(model, params, tasks, inner, method)


def _meta_outputs(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop, method: Method
) -> Tensor:
    """:func:`meta_outputs` of a network that has been checked."""
    tasks = check_tasks(tasks)
    if chosen_method(method, model, tasks, inner) == "generic" or model.network is None:
        return torch.cat([query_output(model, params, task, inner) for task in tasks])
    stacks, outputs = stack_tasks(tasks, model), []
    for stack in stacks:
        path = factor_path(model.network, params, stack.support_x, stack.support_y, inner)
        outputs.append(adapted_pass(path, stack.query_x).output)
    return _in_order(stacks, outputs)


def _in_order(stacks: Sequence[TaskStack], outputs: Sequence[Tensor]) -> Float[Tensor, " Nnk"]:
    """The stacks' outputs, minus those of θ0 for a centred network, in the order of the tasks."""
    parts: dict[int, Tensor] = {}
    for stack, output in zip(stacks, outputs, strict=True):
        shifted = output if stack.offset is None else output - stack.offset
        parts.update(zip(stack.index, shifted.flatten(1).unbind(), strict=True))
    return torch.cat([parts[i] for i in range(len(parts))])


@params_optional
def meta_loss(
    model: Model | nn.Module, params: Parameters | None, tasks: Sequence[Task], inner: InnerLoop
) -> Float[Tensor, ""]:
    """𝓛(θ) of Eq. (2): half the squared residual of the meta-outputs, summed over tasks, samples and outputs.

    Errors are those of :func:`meta_gradient`.

    Args:
        model: a Model, or a torch module.
        params: θ; None, or left out, for those that a module holds.
        tasks: the tasks.
        inner: the inner loop.

    Returns:
        The loss, differentiable.

    Example:
        >>> import torch
        >>> from mamltheory import InnerLoop, Model, Task, meta_loss
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> meta_loss(line, {"w": torch.zeros(1, 1)}, [Task(x, y, x, y)], InnerLoop(lam0=0.5))
        tensor(0.5000)
    """
    return square_loss(meta_outputs(model, params, tasks, inner), query_labels(tasks))


@params_optional
@plain_numerics()
def meta_gradient(
    model: Model | nn.Module,
    params: Parameters | None,
    tasks: Sequence[Task],
    inner: InnerLoop,
    method: Method = "auto",
    chunk: int | None = None,
) -> tuple[Parameters, Float[Tensor, " Nnk"]]:
    """∇𝓛(θ) of Eq. (3), second order through all τ steps.

    The step size λ, which is missing before the Hessian in Eq. (3), is included. A ValueRangeError names weights that
    are not finite, a ShapeError parameters or labels that are not the network's, an UnsupportedModelError a network
    that mixes samples or draws at random.

    Args:
        model: a Model, or a torch module.
        params: θ; None, or left out, for those that a module holds.
        tasks: the tasks; their labels have one column per output.
        inner: the inner loop.
        method: "auto" for what :func:`meta_method` says, or one of the two by name.
        chunk: how many tasks have their activations in memory at once; None for all of one size (factored) or one
            (generic).

    Returns:
        The gradient for every parameter that is not frozen, and the meta-outputs F_θ.

    Example:
        >>> import torch
        >>> from mamltheory import InnerLoop, Model, Task, meta_gradient
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> meta_gradient(line, {"w": torch.zeros(1, 1)}, [Task(x, y, x, y)], InnerLoop(lam0=0.5))
        ({'w': tensor([[-0.5000]])}, tensor([1.]))
    """
    model, params = ready_for_tasks(model, params, tasks, algorithm_of(inner))
    gradient, outputs = MetaObjective(model, tasks, inner, method, chunk).gradient(params)
    dense = gradient.dense()
    return {name: dense[name] for name in params if name in dense}, outputs


@dataclass(frozen=True, eq=False)
class DenseGradient:
    """∇𝓛 by name, with the interface of FactoredGradient."""

    values: Parameters

    def dense(self) -> Parameters:
        """∇𝓛 by name."""
        return self.values

    def step_(self, params: Parameters, rate: float) -> float:
        """θ ← θ − rate · ∇𝓛, *in place*, and ‖rate · ∇𝓛‖."""
        for name, gradient in self.values.items():
            params[name].sub_(gradient, alpha=rate)
        norms = [torch.linalg.vector_norm(value, dtype=torch.float64) for value in self.values.values()]
        return rate * float(torch.linalg.vector_norm(torch.stack(norms)))


class MetaObjective:
    """The meta-loss of given tasks as a function of θ alone, for a network that has been checked."""

    def __init__(
        self, model: Model, tasks: Sequence[Task], inner: InnerLoop, method: Method, chunk: int | None = None
    ) -> None:
        keep_freed_memory()
        if chunk is not None and chunk < 1:
            raise ValueRangeError(f"chunk is {chunk}: expected at least 1 task, or None")
        self.model, self.tasks, self.inner = model, check_tasks(tasks), inner
        self.method, self.chunk = chosen_method(method, model, self.tasks, inner), chunk
        self.stacks = stack_tasks(self.tasks, model, chunk) if self.method == "factored" else ()

    def on(self, tasks: Sequence[Task]) -> "MetaObjective":
        """The same loss of other tasks."""
        return MetaObjective(self.model, tasks, self.inner, self.method, self.chunk)

    @plain_numerics()
    def gradient(self, params: Parameters) -> tuple[FactoredGradient | DenseGradient, Tensor]:
        """∇𝓛(θ) and F_θ."""
        if self.method == "generic" or self.model.network is None:
            return self._generic(params)
        gradient, outputs = factored_meta_gradient(self.model.network, params, self.stacks, self.inner)
        return gradient, _in_order(self.stacks, outputs)

    @plain_numerics()
    @torch.no_grad()
    def outputs(self, params: Parameters, tasks: Sequence[Task] | None = None) -> Tensor:
        """F_θ alone, on the tasks or on others."""
        return _meta_outputs(self.model, params, tasks or self.tasks, self.inner, self.method)

    def _generic(self, params: Parameters) -> tuple[DenseGradient, Tensor]:
        total: Parameters = {}
        seen, step = [], self.chunk or 1
        for some in (self.tasks[i : i + step] for i in range(0, len(self.tasks), step)):
            gradient, outputs = self._autograd(some, params)
            seen.append(outputs)
            for name, value in gradient.items():
                total[name] = total[name].add_(value) if name in total else value
        return DenseGradient(total), torch.cat(seen)

    def _autograd(self, tasks: Sequence[Task], params: Parameters) -> tuple[Parameters, Tensor]:
        labels, moving = query_labels(tasks), self.model.moving(params)

        def loss(part: Parameters) -> tuple[Tensor, Tensor]:
            outputs = _meta_outputs(self.model, {**params, **part}, tasks, self.inner, "generic")
            return square_loss(outputs, labels), outputs

        if in_transform(moving):
            gradient, (_, outputs) = grad_and_value(loss, has_aux=True)(moving)
        else:
            seen: list[Tensor] = []

            def loss_alone(part: Parameters) -> Tensor:
                value, outputs = loss(part)
                seen.append(outputs)
                return value

            gradient, outputs = plain_gradient(loss_alone, moving), seen[0]
        return gradient, outputs.detach()
