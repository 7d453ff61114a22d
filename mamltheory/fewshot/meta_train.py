"""Meta-training of a real network by the theory's own MAML and ANIL: the baselines of Table 1.

The meta-gradient (3) is :func:`mamltheory.objective.meta_gradient`, second order through all inner steps. As in the
theory, the loss is the squared one, here on centred one-hot labels (1 − 1/ways and −1/ways), and not the
cross-entropy of the original experiments; a sample counts to the class of its largest output. The outer step
is Adam's, as in the original experiments, on a new batch of tasks in every step.

`meta_train_step` takes a state to the next one. Tasks are pure functions of (seed, step), so that on the CPU a
saved state continues bit for bit.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mamltheory.errors import CheckpointError, ConfigurationError, ValueRangeError
from mamltheory.fewshot.episodes import episode_task, episode_tasks, sample_episode
from mamltheory.fewshot.images import ImageData, ImageSplit, fingerprint, normalise, take
from mamltheory.files import shown
from mamltheory.inner_loop import Algorithm, InnerLoop, meta_output
from mamltheory.networks import Model, from_module
from mamltheory.objective import meta_gradient
from mamltheory.tasks import Parameters


@dataclass(frozen=True)
class MetaTrainConfig:
    """Settings of the meta-training. `tasks` of `ways`, `shots` and `queries` per class make an outer step;
    `inner_rate` is λ on the summed loss of a task's support; `learning_rate` is Adam's.
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
    """Where a meta-training stands after `step` outer steps; parameters and optimiser are updated in place."""

    model: Model
    params: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Adam
    data: ImageData
    config: MetaTrainConfig
    device: torch.device
    step: int = 0

    @property
    def values(self) -> Parameters:
        """θ as plain tensors, sharing the parameters' memory."""
        return {name: value.detach() for name, value in self.params.items()}


@dataclass(frozen=True)
class StepMetrics:
    """Of the query samples of a step's tasks, after adaptation: squared loss per sample, and accuracy."""

    step: int
    loss: float
    accuracy: float


def start_meta_training(
    network: torch.nn.Module, data: ImageData, config: MetaTrainConfig, device: torch.device | str = "cpu"
) -> MetaTrainState:
    """The state before the first step. Raises UnsupportedModelError for a network with batch statistics."""
    device = torch.device(device)
    model, values = from_module(network.to(device))
    params = {name: torch.nn.Parameter(value) for name, value in values.items()}
    optimizer = torch.optim.Adam(params.values(), config.learning_rate)
    return MetaTrainState(model, params, optimizer, data, config, device)


def meta_train_step(state: MetaTrainState) -> tuple[MetaTrainState, StepMetrics]:
    """One outer step on a batch of tasks of its own; raises ValueRangeError when the loss is not finite."""
    config, data = state.config, state.data
    tasks = episode_tasks(
        data.train, config.tasks, config.ways, config.shots, config.queries, config.seed, state.step,
        mean=data.mean, std=data.std, centred=True, device=state.device,
    )  # fmt: skip
    gradient, outputs = meta_gradient(state.model, state.values, tasks, config.inner())
    truth = torch.stack([task.query_y for task in tasks]).flatten(0, 1)
    outputs = outputs.view_as(truth)
    loss = float((outputs - truth).square().sum() / 2 / len(truth))
    if not math.isfinite(loss):
        raise ValueRangeError(
            f"the meta-loss is {loss} at step {state.step}: lower inner_rate ({config.inner_rate:g}) or "
            f"learning_rate ({config.learning_rate:g})"
        )
    for name, parameter in state.params.items():
        parameter.grad = gradient[name] / len(truth)
    state.optimizer.step()
    accuracy = float((outputs.argmax(1) == truth.argmax(1)).double().mean())
    return replace(state, step=state.step + 1), StepMetrics(state.step + 1, loss, accuracy)


def adapted_accuracies(
    state: MetaTrainState, split: ImageSplit, tasks: int, queries: int, seed: int
) -> np.ndarray:
    """Accuracy on the queries of each of so many tasks of a split, after the inner loop on its support.

    Task i is a pure function of (seed, i): episodes of :func:`sample_episode`, as in the other evaluations.
    """
    config, found = state.config, np.empty(tasks)
    for i in range(tasks):
        episode = sample_episode(split, config.ways, config.shots, queries, seed, i)
        query, support = (
            normalise(take(split.images, rows.ravel(), state.device), state.data.mean, state.data.std)
            for rows in (episode.query, episode.support)
        )
        task = episode_task(episode, query, support, centred=True)
        with torch.no_grad():
            outputs = meta_output(state.model, state.values, task, config.inner()).view_as(task.query_y)
        found[i] = float((outputs.argmax(1) == task.query_y.argmax(1)).double().mean())
    return found


def meta_state_tensors(state: MetaTrainState) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Everything that a continuation needs: named CPU tensors, and numbers and settings fit for JSON."""
    tensors = {f"params/{name}": value for name, value in state.values.items()}
    for name, parameter in state.params.items():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{kind}/{name}": moments[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in moments}
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    return copies, {"step": state.step, "config": asdict(state.config), "data": _data_record(state.data)}


def restore_meta_training(
    state: MetaTrainState, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]
) -> MetaTrainState:
    """The saved state in a fresh one of the same network, data and settings; raises CheckpointError otherwise."""
    ours = {"config": asdict(state.config), "data": _data_record(state.data)}
    different = [name for name, value in ours.items() if numbers.get(name) != value]
    if different:
        raise CheckpointError(
            f"the saved meta-training has another {different[0]}: continue with its own, or start anew"
        )
    step = numbers.get("step")
    if type(step) is not int or not 0 <= step < 2**63:
        raise CheckpointError(
            f"the saved meta-training says step {shown(step)}: expected a whole number; start anew"
        )
    kinds = ("params", "exp_avg", "exp_avg_sq") if step else ("params",)
    for name, parameter in state.params.items():
        saved = {kind: tensors.get(f"{kind}/{name}") for kind in kinds}
        if any(value is None or value.shape != parameter.shape for value in saved.values()):
            raise CheckpointError(f"the saved meta-training does not fit the parameter {name}: start anew")
        own = {kind: value.to(parameter.device, parameter.dtype, copy=True) for kind, value in saved.items()}
        with torch.no_grad():
            parameter.copy_(own.pop("params"))
        if step:
            state.optimizer.state[parameter] = {"step": torch.tensor(float(step)), **own}
    return replace(state, step=step)


def _data_record(data: ImageData) -> str:
    return f"{data.name} {fingerprint(data.train)}"
