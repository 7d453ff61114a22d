"""``evaluate``: the accuracy of a trained network on few-shot tasks of unseen classes."""

import dataclasses
import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from mamltheory.errors import CheckpointError
from mamltheory.fewshot.evaluation import Evaluation, EvaluationConfig, batches
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.trained import evaluate_by
from mamltheory.files import shown
from mamltheory.nas.network import parameter_count
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import sha256, to_json
from mamltheory.runtime.runlog import RUN_FILE, read_run
from mamltheory.strict_json import misfit

from ..data.counts import evaluate_shortage, refuse_shortage
from ..runs import opened_run
from .settings import Evaluate
from .trained import read_training


def print_evaluation(settings: Evaluate) -> int:
    """Evaluate and print the result; returns 0."""
    print(record_evaluation(settings)["description"])
    return 0


def record_evaluation(settings: Evaluate) -> dict[str, Any]:
    """Evaluate a finished training and record it.

    Returns:
        The results in the record; they hold the number of correct images of every task, for paired comparisons.
    """
    training = read_training(settings.checkpoint)
    device, data = choose_device(settings.device), training.data(settings.data)
    settings = dataclasses.replace(settings, data=settings.data or training.settings.data)
    refuse_shortage(evaluate_shortage(settings, data))
    network = training.network.to(device.device)
    total = batches(getattr(data, settings.split), evaluation_config(settings, data), settings.seed)
    title = f"evaluate on {settings.tasks} tasks, batches of images"
    with opened_run("evaluate", settings, device.device) as log:
        with stage(title, total) as advance:
            try:
                result = evaluate_on_tasks(network, data, settings, advance)
            except Exception:
                check_interrupted()  # Ctrl-C reaches joblib's processes as well, and they break under it
                raise
        training_run = identity(read_run(settings.checkpoint))
        closed: dict[str, Any] = log.close(**results_of(result, network), training=training_run).record
        return closed["results"]


def results_of(result: Evaluation, network: torch.nn.Module) -> dict[str, Any]:
    """The results in the record: interval over tasks, size of the network, and the count of every task."""
    interval = result.interval
    return {
        "accuracy": interval.mean,
        "half_width": interval.half_width,
        "description": result.describe(),
        "parameters": parameter_count(network),
        "weights": digest_of(network.state_dict()),
        "tasks_digest": result.tasks_digest,
        "queries_per_task": result.config.ways * result.config.queries,
        "correct": result.correct.tolist(),
        "cpu_seconds": result.cpu_seconds,
    }


class EvaluationResults(TypedDict):
    """The results that a table reads from a record; see :func:`results_of`."""

    accuracy: float
    half_width: float
    parameters: Annotated[int, 1]
    tasks_digest: str
    queries_per_task: Annotated[int, 1]
    correct: list[int] | str
    """The count of every task; earlier versions wrote the numbers in one text."""
    training: str


def check_results(folder: Path, results: Any) -> None:
    """Raise CheckpointError unless these results of a run folder are those of an evaluation."""
    wrong = misfit(results, EvaluationResults, "results")
    if wrong is None and not re.fullmatch(r"\d{1,9}( \d{1,9})*", " ".join(map(str, _counts(results)))):
        wrong = f"results['correct'] is {shown(results['correct'])}: expected a count for every task"
    if wrong is None and not abs(accuracies_of(results).mean() - float(results["accuracy"])) < 1e-6:
        wrong = f"the accuracy is {results['accuracy']}, and not the mean of its tasks"
    if wrong:
        raise CheckpointError(
            f"{folder / RUN_FILE} is not the record of an evaluation ({wrong}): remove the folder and evaluate again"
        )


def identity(record: dict[str, Any]) -> str:
    """A digest of the settings and the start of a run; it stays the same when the run continues."""
    content = {key: record.get(key) for key in ("command", "config", "started")}
    return sha256(to_json(content).encode())


def accuracies_of(results: dict[str, Any]) -> np.ndarray:
    """The accuracy on every task, from the record of an evaluation."""
    return np.array([int(count) for count in _counts(results)]) / results["queries_per_task"]


def _counts(results: dict[str, Any]) -> list[Any]:
    correct = results["correct"]
    return correct.split(" ") if isinstance(correct, str) else correct


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, for the question whether an evaluation is of the weights in a folder."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def evaluation_config(settings: Evaluate, data: ImageData) -> EvaluationConfig:
    """The procedure; images are mirrored unless the data are characters."""
    names = ("ways", "shots", "queries", "tasks", "head", "C")
    same: dict[str, Any] = {name: getattr(settings, name) for name in names}
    return EvaluationConfig(**same, copies=settings.augment, flip=data.mirrors)


def evaluate_on_tasks(
    network: torch.nn.Module, data: ImageData, settings: Evaluate, advance: Callable[[], None] | None = None
) -> Evaluation:
    """The accuracy on tasks that depend on seed and data, but not on the network.

    Args:
        network: The trained network, which stays on its device.
        data: The images.
        settings: Settings of the evaluation.
        advance: Called before every batch of images.

    Returns:
        The evaluation.
    """

    def before_batch() -> None:
        # joblib also asks for batches from its own threads, where an exception would be lost.
        if threading.current_thread() is threading.main_thread():
            check_interrupted()
        if advance is not None:
            advance()

    config = evaluation_config(settings, data)
    return evaluate_by(network, data, config, settings.split, settings.seed, settings.jobs, before_batch)
