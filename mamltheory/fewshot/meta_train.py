"""Meta-training of a real network by the theory's own MAML and ANIL: the baselines of Table 1.

Its gradient (3) is that of :func:`mamltheory.objective.meta_gradient`, second order through all inner steps. As in the
theory, the loss is the squared error, here on centred one-hot labels (1 − 1/ways and −1/ways), not the cross-entropy
of the original experiments. The predicted class is that of the largest output. The outer step is that of Adam, as in
the original experiments, on a new batch of tasks in every step.

`meta_train_step` takes a state to the next one. Tasks are pure functions of (seed, step), so that on the CPU a
saved state continues bit for bit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mamltheory.errors import CheckpointError, ConfigurationError, ValueRangeError
from mamltheory.fewshot.episodes import episode_tasks, sample_episode, tasks_of_episodes
from mamltheory.fewshot.images import ImageData, ImageSplit, fingerprint
from mamltheory.files import shown
from mamltheory.guard import ready_for_tasks
from mamltheory.inner_loop import Algorithm, InnerLoop, query_output
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model, from_module
from mamltheory.objective import MetaObjective
from mamltheory.tasks import Parameters, Task


@dataclass(frozen=True)
class MetaTrainConfig:
    """Settings of the meta-training.

    Attributes:
        algorithm: "maml" or "anil".
        ways: classes of a task.
        shots, queries: support and query images per class.
        tasks: tasks of an outer step.
        inner_steps: steps of the inner loop.
        inner_rate: λ, for the sum of the losses of the support.
        learning_rate: that of Adam.
        seed: seed of the tasks.
    """

    algorithm: Algorithm = "maml"
    ways: int = 5
    shots: int = 1
    queries: int = 5
    tasks: int = 4
    inner_steps: int = 1
    inner_rate: float = 0.1
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.ways < 2 or min(self.shots, self.queries, self.tasks) < 1:
            raise ConfigurationError(
                f"ways {self.ways}, shots {self.shots}, queries {self.queries}, tasks {self.tasks}: expected at "
                "least 2 ways and 1 of the others"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ConfigurationError(f"learning_rate {self.learning_rate} must be positive and finite")
        self.inner()

    def inner(self) -> InnerLoop:
        """The inner loop of Eq. (1), with its second-order terms."""
        return InnerLoop(self.inner_rate, self.inner_steps, self.algorithm)


@dataclass(frozen=True, eq=False)
class MetaTrainState:
    """A meta-training after ``step`` outer steps; parameters and optimiser are updated in place.

    Attributes:
        model: the network as a function.
        params: θ.
        optimizer: Adam.
        data: the data set.
        config: the settings.
        device: where the training runs.
        step: number of outer steps.
        checked: whether the model has been checked on samples, and knows the head that ANIL adapts.
    """

    model: Model
    params: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Adam
    data: ImageData
    config: MetaTrainConfig
    device: torch.device
    step: int = 0
    checked: bool = False

    @property
    def values(self) -> Parameters:
        """θ as plain tensors, which share the memory of the parameters."""
        return {name: value.detach() for name, value in self.params.items()}


@dataclass(frozen=True)
class StepMetrics:
    """Squared loss per query sample and accuracy on the tasks of a step, after adaptation."""

    step: int
    loss: float
    accuracy: float


def start_meta_training(
    network: torch.nn.Module, data: ImageData, config: MetaTrainConfig, device: torch.device | str = "cpu"
) -> MetaTrainState:
    """Return the state before the first step; UnsupportedModelError for a network with batch statistics.

    Args:
        network: the network, which is moved to the device.
        data: the data set.
        config: the settings.
        device: where the training runs.
    """
    device = torch.device(device)
    model, values = from_module(network.to(device))
    params = {name: torch.nn.Parameter(value) for name, value in values.items()}
    optimizer = torch.optim.Adam(params.values(), config.learning_rate)
    return MetaTrainState(model, params, optimizer, data, config, device)


def meta_train_step(
    state: MetaTrainState, measured: bool = True
) -> tuple[MetaTrainState, StepMetrics | None]:
    """One outer step on the next batch of tasks.

    The first step of a process checks the network. Later ones wait for a GPU only to measure.

    Args:
        state: the meta-training.
        measured: whether the loss is read, and a ValueRangeError raised when it is not finite.

    Returns:
        The new state, and the means over the step's tasks, if they are measured.
    """
    config, data = state.config, state.data
    tasks = episode_tasks(
        data.train, config.tasks, config.ways, config.shots, config.queries, config.seed, state.step,
        mean=data.mean, std=data.std, centred=True, device=state.device,
    )  # fmt: skip
    model = _checked_model(state, tasks)
    objective, outputs = MetaObjective(model, tasks, config.inner(), "auto").gradient(state.values)
    gradient = objective.dense()
    truth = torch.stack([task.query_y for task in tasks]).flatten(0, 1)
    outputs = outputs.view_as(truth)
    metrics = _metrics(state, outputs, truth) if measured else None
    for name, parameter in state.params.items():
        parameter.grad = gradient[name] / len(truth)
    state.optimizer.step()
    return replace(state, model=model, checked=True, step=state.step + 1), metrics


def _checked_model(state: MetaTrainState, tasks: Sequence[Task]) -> Model:
    """The model, checked on the tasks unless it was checked before."""
    if state.checked:
        return state.model
    with plain_numerics():
        return ready_for_tasks(state.model, state.values, tasks, state.config.algorithm)[0]


def _metrics(state: MetaTrainState, outputs: Tensor, truth: Tensor) -> StepMetrics:
    """Loss and accuracy of a step, in one transfer from the device."""
    loss = (outputs - truth).square().sum() / 2 / len(truth)
    right = (outputs.argmax(1) == truth.argmax(1)).double().mean()
    metrics = StepMetrics(state.step + 1, *torch.stack([loss.double(), right]).tolist())
    if not math.isfinite(metrics.loss):
        raise ValueRangeError(
            f"the meta-loss is {metrics.loss} at step {state.step}: {_advice(state.config)}"
        )
    return metrics


def _advice(config: MetaTrainConfig) -> str:
    return f"lower inner_rate ({config.inner_rate:g}) or learning_rate ({config.learning_rate:g})"


def adapted_accuracies(
    state: MetaTrainState, split: ImageSplit, tasks: int, queries: int, seed: int
) -> np.ndarray:
    """Return the accuracy on the queries of each task, after the inner loop on their support.

    Args:
        state: the meta-training.
        split: the images.
        tasks: number of tasks; task i is a pure function of (seed, i), as in the other evaluations.
        queries: query images per class.
        seed: seed of the tasks.
    """
    config, data, values, found = state.config, state.data, state.values, []
    for i in range(tasks):
        episode = sample_episode(split, config.ways, config.shots, queries, seed, i)
        (task,) = tasks_of_episodes(
            split, [episode], mean=data.mean, std=data.std, centred=True, device=state.device
        )
        state = replace(state, model=_checked_model(state, [task]), checked=True)
        with torch.no_grad(), plain_numerics():
            outputs = query_output(state.model, values, task, config.inner()).view_as(task.query_y)
        found.append((outputs.argmax(1) == task.query_y.argmax(1)).double().mean())
    return torch.stack(found).cpu().numpy()


def meta_state_tensors(state: MetaTrainState) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The state to save: named CPU tensors, and numbers and settings as JSON values.

    Returns:
        The tensors and the values.

    Raises:
        ValueRangeError: a parameter is not finite; steps that are not measured do not notice.
    """
    tensors = {f"params/{name}": value for name, value in state.values.items()}
    for name, parameter in state.params.items():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{kind}/{name}": moments[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in moments}
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    for name, value in copies.items():
        if not bool(value.isfinite().all()):
            raise ValueRangeError(
                f"{name!r} is not finite after step {state.step}, and is not saved: {_advice(state.config)}"
            )
    return copies, {"step": state.step, "config": asdict(state.config), "data": _data_record(state.data)}


def restore_meta_training(
    state: MetaTrainState, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]
) -> MetaTrainState:
    """The saved state, loaded into a new one; CheckpointError unless network, data and settings are the same."""
    ours = {"config": asdict(state.config), "data": _data_record(state.data)}
    different = [name for name, value in ours.items() if numbers.get(name) != value]
    if different:
        raise CheckpointError(
            f"the saved meta-training has another {different[0]}: continue with that, or start again"
        )
    step = numbers.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise CheckpointError(
            f"the saved meta-training says step {shown(step)}: expected a whole number; start again"
        )
    kinds = ("params", "exp_avg", "exp_avg_sq") if step else ("params",)
    for name, parameter in state.params.items():
        keys = {kind: f"{kind}/{name}" for kind in kinds}
        if any(key not in tensors or tensors[key].shape != parameter.shape for key in keys.values()):
            raise CheckpointError(f"the saved meta-training does not fit the parameter {name}: start again")
        saved = {kind: tensors[key] for kind, key in keys.items()}
        own = {kind: value.to(parameter.device, parameter.dtype, copy=True) for kind, value in saved.items()}
        with torch.no_grad():
            parameter.copy_(own.pop("params"))
        if step:
            state.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **own}
    return replace(state, step=step)


def _data_record(data: ImageData) -> str:
    return f"{data.name} {fingerprint(data.train)}"
