"""Training by MAML or ANIL: gradient descent (28) on the meta-loss, with a record of every step.

    θ_{t+1} = θ_t − η J(θ_t)ᵀ (F_{θ_t} − 𝒴),   η = η0 / l

or on the loss of a batch of tasks at every step, with momentum, and of some parameters alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.dynamics import (
    Dynamics,
    GradientDescent,
    SampledDescent,
    ScheduledDescent,
    check_momentum,
    checked_batches,
)
from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.factored.meta_gradient import FactoredGradient
from mamltheory.guard import ready_for_tasks
from mamltheory.inner_loop import InnerLoop, algorithm_of, square_loss
from mamltheory.kernels.empirical_meta import empirical_meta_ntk
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model, output_of
from mamltheory.notebook import notebook_bar
from mamltheory.objective import Chosen, DenseGradient, MetaObjective, Method, chosen_method
from mamltheory.tasks import (
    Parameters,
    Select,
    Task,
    check_tasks,
    params_optional,
    query_labels,
    selected_names,
)


@dataclass(frozen=True)
class MetaState:
    """The state of a training run before step t: θ_t, and the path length Σ_{s≤t} ‖θ_s − θ_{s−1}‖."""

    params: Parameters
    step: int = 0
    path_length: float = 0.0


@dataclass(frozen=True)
class Optimiser:
    """What outer steps do besides following the gradient of the whole loss.

    Args:
        momentum: μ of heavy-ball momentum: v ← μ v + ∇𝓛, θ ← θ − η v.
        batches: for every step the numbers of the tasks whose losses it sums (SGD); None for all tasks. A record of
            training has the loss and the outputs of all tasks nevertheless.
        select: names of the parameters that move, or a predicate on names; None for all that require a gradient.

    Raises:
        ValueRangeError: a momentum outside of [0, 1), or batches that are not whole numbers.

    Example:
        >>> from mamltheory import Optimiser
        >>> Optimiser(batches=((0, 1), (2, 3))).dynamics(eta0=0.5, steps=2, rows=1)
        SampledDescent(rate=0.5, batches=((0, 1), (2, 3)), rows=1, momentum=0.0)
    """

    momentum: float = 0.0
    batches: tuple[tuple[int, ...], ...] | None = None
    select: Select = None

    def __post_init__(self) -> None:
        check_momentum(self.momentum)
        if self.batches is not None:
            object.__setattr__(self, "batches", checked_batches(self.batches))

    def dynamics(self, eta0: float, steps: int, rows: int | tuple[int, ...] = 1) -> Dynamics:
        """The same outer loop as a function of the MetaNTK, for closed forms.

        Args:
            eta0: η0.
            steps: how many steps.
            rows: n·k, or one number for each task where they differ; needed with batches alone.

        Returns:
            GradientDescent, ScheduledDescent with momentum, or SampledDescent with batches.
        """
        if self.batches is not None:
            return SampledDescent(eta0, self.batches, rows, self.momentum)
        return (
            ScheduledDescent((eta0,) * steps, self.momentum)
            if self.momentum
            else GradientDescent(eta0, steps)
        )


def check_optimiser(optimiser: Optimiser, steps: int, tasks: int) -> None:
    """A ConfigurationError unless it is an Optimiser with one batch a step, or none, of tasks that exist."""
    if not isinstance(optimiser, Optimiser):
        raise ConfigurationError(f"optimiser is {optimiser!r}: expected Optimiser(momentum, batches, select)")
    if optimiser.batches is None:
        return
    last = max(map(max, optimiser.batches), default=0)
    if len(optimiser.batches) != steps or last >= tasks:
        raise ConfigurationError(
            f"got {len(optimiser.batches)} batches of tasks up to {last}, for {steps} steps on {tasks} tasks: expected "
            f"one batch a step, of tasks from 0 to {tasks - 1}"
        )


@dataclass(frozen=True)
class Observation:
    """What is recorded at θ_t: loss, meta-outputs on training and test tasks, ‖θ_t − θ_0‖, path length."""

    step: int
    loss: float
    outputs: Float[Tensor, " Nnk"]
    test_outputs: Float[Tensor, " p"] | None
    movement: float
    path_length: float


@dataclass(frozen=True)
class TrainingRecord:
    """A whole training run.

    Args:
        observations: one per step, t = 0 … ``steps``.
        params: the trained parameters.
        kernels: Φ̂_t by the steps at which it was asked for.
        method: how the meta-gradient was computed, as :func:`mamltheory.objective.meta_method` names it.
    """

    observations: tuple[Observation, ...]
    params: Parameters
    kernels: dict[int, Float[Tensor, "p p"]] = field(default_factory=dict)
    method: Chosen = "generic"

    def __repr__(self) -> str:
        first, last = self.observations[0], self.observations[-1]
        kernels = f", kernels at {sorted(self.kernels)}" if self.kernels else ""
        return (
            f"TrainingRecord({last.step} steps, loss {first.loss:.3g} → {last.loss:.3g}, moved {last.movement:.3g}"
            f"{kernels}, method {self.method!r})"
        )

    def losses(self) -> Float[Tensor, " t"]:
        """𝓛(θ_t) for t = 0 … steps."""
        return torch.tensor([seen.loss for seen in self.observations], dtype=torch.float64)

    def kernel_drift(self) -> dict[int, float]:
        """‖Φ̂_t − Φ̂_0‖_F of Eq. (30) for every step at which the kernel was taken."""
        return {step: float((kernel - self.kernels[0]).norm()) for step, kernel in self.kernels.items()}


def distance(params: Parameters, other: Parameters) -> float:
    """‖θ − θ̄‖₂ over all parameters, block by block, without memory of the parameters' size."""
    parts = [
        torch.linalg.vector_norm(one - two, dtype=torch.float64)
        for name in params
        if params[name].is_floating_point()
        for one, two in zip(_blocks(params[name]), _blocks(other[name]), strict=True)
    ]
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
    """Gradient descent (28) without end.

    Args:
        model: a Model, or a torch module.
        params: θ_0.
        tasks: the training tasks.
        inner: the inner loop.
        eta0: η0; the rate is η = η0 / l.
        test_tasks: tasks whose outputs are recorded as well.
        method: as for :func:`mamltheory.objective.meta_gradient`.

    Returns:
        θ_t and what is recorded of it, for t = 0, 1, 2, …, until a ValueRangeError says that the loss diverges. Every
        θ_t is a new tensor.
    """
    model, params = ready_for_tasks(model, params, (*check_tasks(tasks), *test_tasks), algorithm_of(inner))
    return _descend(model, params, tasks, inner, eta0, test_tasks, method, Optimiser(), reuse=False)


def _descend(
    model: Model, params: Parameters, tasks: Sequence[Task], inner: InnerLoop, eta0: float,
    test_tasks: Sequence[Task], method: Method, optimiser: Optimiser, reuse: bool, last: int | None = None,
) -> Iterator[tuple[MetaState, Observation]]:  # fmt: skip
    """:func:`descend` up to step ``last``; with ``reuse``, θ_{t+1} takes the memory of θ_t, except that of θ_0."""
    GradientDescent(eta0, 1)  # checks the rate
    objective, test_tasks = MetaObjective(model, tasks, inner, method), tuple(test_tasks)
    step_direction = _directions(objective, params, optimiser)
    labels, rate = query_labels(objective.tasks), eta0 / model.scale
    state, start, limit = MetaState(params), params, _largest_loss(model, params, objective.tasks)
    while True:
        gradient = None  # the last step needs the outputs alone
        if state.step == last:
            outputs = objective.outputs(state.params)
        else:
            gradient, outputs = step_direction(state)
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
                f"learning rates are too large, eta0 = {eta0} or lam0 = {inner.lam0}; stay below "
                "mamltheory.largest_inner_rate(model, tasks, inner) with lam0, and then below "
                "mamltheory.largest_rate(meta_ntk(...)) with eta0"
            )
        yield state, seen
        if gradient is None:
            return
        moved = state.params
        if not reuse or state.step == 0:
            moved = {k: v if k in model.frozen else v.detach().clone() for k, v in moved.items()}
        length = gradient.step_(moved, rate)
        state = MetaState(moved, state.step + 1, state.path_length + length)


def _directions(
    objective: MetaObjective, params: Parameters, optimiser: Optimiser
) -> Callable[[MetaState], tuple[FactoredGradient | DenseGradient, Tensor]]:
    """The map from a state to what its step follows, and the outputs of all tasks; to be called once a step."""
    names = None if optimiser.select is None else selected_names(params, optimiser.select)
    if names is None and optimiser.batches is None and optimiser.momentum == 0:
        return lambda state: objective.gradient(state.params)
    batches: dict[tuple[int, ...], MetaObjective] = {}
    velocity: Parameters = {}

    def direction(state: MetaState) -> tuple[DenseGradient, Tensor]:
        if optimiser.batches is None:
            gradient, outputs = objective.gradient(state.params)
        else:
            batch = optimiser.batches[state.step]
            if batch not in batches:
                batches[batch] = objective.on([objective.tasks[i] for i in batch])
            gradient, _ = batches[batch].gradient(state.params)
            outputs = objective.outputs(state.params)
        dense = gradient.dense()
        for name in dense if names is None else names & set(dense):
            old = velocity.get(name)
            velocity[name] = dense[name] if old is None else optimiser.momentum * old + dense[name]
        return DenseGradient(dict(velocity)), outputs

    return direction


def _largest_loss(model: Model, params: Parameters, tasks: Sequence[Task]) -> float:
    """A loss that only a diverging loop reaches: 10⁸ times that of the labels and of the outputs at θ_0, each alone."""
    with torch.no_grad():
        start = torch.cat([output_of(model, params, task.query_x) for task in tasks])
    size = float(start.double().square().sum() + query_labels(tasks).double().square().sum()) / 2
    return max(1e8 * size, torch.finfo(start.dtype).tiny)


def _check_training(eta0: float, steps: int, kernel_steps: Sequence[int], progress: object) -> None:
    GradientDescent(eta0, steps)  # checks both
    if not all(0 <= step <= steps for step in kernel_steps):
        raise ValueRangeError(f"kernel_steps is {list(kernel_steps)}: expected steps from 0 to {steps}")
    if progress is not None and not callable(progress):
        raise ConfigurationError(
            f"progress is {progress!r:.80}: expected a function of what is recorded, or None"
        )


@params_optional
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
    progress: Callable[[Observation], None] | None = None,
    optimiser: Optimiser = Optimiser(),
) -> TrainingRecord:
    """``steps`` steps of MAML or ANIL from ``params``, Eq. (28), with a record of every step.

    Memory: θ_t and the given θ_0, which stays as it is, and the activations; "generic" also holds a gradient. Errors
    are those of :func:`mamltheory.objective.meta_gradient`, and of a diverging loss or batches that do not fit.

    Args:
        model: a Model, or a torch module.
        params: θ_0; None, or left out, for those that a module holds. The module keeps its weights: the trained ones
            are in the record.
        tasks: the training tasks.
        inner: the inner loop.
        eta0: η0; the rate is η = η0 / l.
        steps: how many steps.
        test_tasks: tasks whose outputs are recorded as well.
        kernel_steps: the steps at which the empirical MetaNTK Φ̂_t is recorded; step 0 always comes with them.
        method: as for :func:`mamltheory.objective.meta_gradient`; the record names the one that was used.
        progress: is called with every step's observation, as ``lambda seen: print(seen.loss)``; notebooks show a bar.
        optimiser: momentum, batches of tasks, and the parameters that move; none and all by default.

    Returns:
        The record; ValueRangeError is raised for ``kernel_steps`` outside of it, ConfigurationError for wrong progress.

    Example:
        >>> import torch
        >>> from mamltheory import InnerLoop, Model, Task, train
        >>> line = Model(lambda params, x: x @ params["w"])
        >>> x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
        >>> record = train(line, {"w": torch.zeros(1, 1)}, [Task(x, y, x, y)], InnerLoop(0.5), eta0=1.0, steps=2)
        >>> record.losses()
        tensor([0.5000, 0.2812, 0.1582], dtype=torch.float64)
    """
    _check_training(eta0, steps, kernel_steps, progress)
    wanted = {0, *kernel_steps} if kernel_steps else set()
    model, params = ready_for_tasks(model, params, (*check_tasks(tasks), *test_tasks), algorithm_of(inner))
    chosen = chosen_method(method, model, tasks, inner)
    check_optimiser(optimiser, steps, len(tasks))
    observations, kernels = [], {}
    run = _descend(model, params, tasks, inner, eta0, test_tasks, chosen, optimiser, True, steps)
    with notebook_bar("train", steps + 1) as advance:
        for state, seen in run:
            observations.append(seen)
            if progress is not None:
                progress(seen)
            if state.step in wanted:
                kernels[state.step] = empirical_meta_ntk(model, tasks, inner, params=state.params)
            advance(note=f"loss {seen.loss:.4g}")
    return TrainingRecord(tuple(observations), state.params, kernels, chosen)
