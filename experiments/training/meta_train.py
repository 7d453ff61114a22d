"""``meta-train``: Conv4 by second-order MAML or ANIL on few-shot tasks; it can stop after every step."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np

from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.counts import fewer
from mamltheory.fewshot.evaluation import mean_interval
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.meta_train import (
    MetaTrainConfig,
    MetaTrainState,
    adapted_accuracies,
    meta_state_tensors,
    meta_train_step,
    restore_meta_training,
    start_meta_training,
)
from mamltheory.rng import derived_seed
from mamltheory.runtime.checkpoint import check_state, load_state, save_state
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.progress import stage
from mamltheory.runtime.runlog import RunLog, check_complete, read_metrics

from ..data.counts import meta_train_shortage, refuse_shortage
from ..data.loading import cached_data, source_in
from ..plotting import curve, figure, legend_below, save_figure
from ..runs import (
    FREE,
    CheckpointTimer,
    continue_with,
    numbers_of,
    opened_run,
    say_if_finished,
    without_paths,
)
from .settings import MetaTrain

QUERIES = 15  # per class in evaluations


class MetaTrainLine(TypedDict):
    """A line of a meta-training's ``metrics.jsonl``."""

    step: Annotated[int, 1]
    loss: float
    accuracy: float
    val_accuracy: float
    val_half_width: float


class MetaTrainContent(TypedDict):
    """The keys of a saved meta-training that this command adds; ``restore_meta_training`` checks the others."""

    cpu_seconds: NotRequired[Annotated[float, 0]]


NAMES = {"val": "validation", "test": "test"}


def meta_train(settings: MetaTrain) -> int:
    """Meta-train, print the accuracy on unseen classes before and after, and draw the curves; returns 0."""
    device = choose_device(settings.device).device
    data = cached_data(*source_in(settings))
    refuse_shortage(meta_train_shortage(settings, data))
    network = conv4(
        settings.ways, settings.image_size, derived_seed(settings.seed, "meta weights"), settings.channels
    )
    state = start_meta_training(network, data, meta_train_config(settings), device)
    free, again = (*FREE, "save_minutes"), continue_with("meta-train", settings)
    with opened_run("meta-train", settings, device, free=free, again=again) as log:
        before = accuracy_on_new_classes(state, settings)
        checkpoint, spent = load_state(settings.out / "state", report=print), 0.0
        if checkpoint is not None:
            check_state(checkpoint, MetaTrainContent)
            state = restore_meta_training(state, checkpoint.tensors, checkpoint.state)
            # Meta-trainings of earlier versions do not know their time, of which a part would be no use.
            spent = checkpoint.state.get("cpu_seconds", math.nan)
            curve_points(settings, state.step)
            say_if_finished(log, "trained")
        if state.step < settings.steps:
            log.resume()
        state, spent = remaining_steps(state, settings, log, spent)
        after = accuracy_on_new_classes(state, settings)
        log.close(before=before, accuracy=after[0], half_width=after[1], **_seconds(spent))
    print(describe_result(settings, before, after))
    draw_meta_curves(settings, before, after)
    return 0


def meta_train_config(settings: MetaTrain) -> MetaTrainConfig:
    """The settings of the steps."""
    names = (field.name for field in dataclasses.fields(MetaTrainConfig))
    return MetaTrainConfig(**{name: getattr(settings, name) for name in names})


def remaining_steps(
    state: MetaTrainState, settings: MetaTrain, log: RunLog, spent: float = 0.0
) -> tuple[MetaTrainState, float]:
    """Take the remaining steps; a line of the curve is of one step, so that a continued run repeats it exactly.

    Args:
        state: The meta-training so far.
        settings: The settings.
        log: The record of the run, which gets the lines of the curve.
        spent: CPU seconds of the steps so far; NaN if they are not known.

    Returns:
        The meta-training at its end, and the CPU seconds of all steps with the points of the curve.
    """
    begun = time.process_time() - spent
    with stage(f"meta-train in {settings.out}, steps", settings.steps - state.step) as advance:
        images = settings.tasks * settings.ways * (settings.shots + settings.queries)
        pauses = CheckpointTimer(settings.save_minutes, bool, advance, images)
        while state.step < settings.steps:
            due = is_due(state.step + 1, settings)
            state, metrics = meta_train_step(state, measured=due or state.device.type == "cpu")
            if metrics is not None:
                pauses.note = f"loss {metrics.loss:.3f}"
            if due and metrics is not None:
                mean, half_width = _accuracy(state, state.data.val, settings.validation_tasks, settings.seed)
                log.log(**dataclasses.asdict(metrics), val_accuracy=mean, val_half_width=half_width)
            if pauses() or due:
                tensors, numbers = meta_state_tensors(state)
                spent = time.process_time() - begun
                save_state(settings.out / "state", tensors, {**numbers, **_seconds(spent)})
                pauses.saved()
    return state, spent


def _seconds(spent: float) -> dict[str, float]:
    return {} if math.isnan(spent) else {"cpu_seconds": spent}


def accuracy_on_new_classes(state: MetaTrainState, settings: MetaTrain) -> tuple[float, float]:
    """Mean accuracy on tasks of the test (or validation) classes, and the half-width of its 95 % interval."""
    split = {"val": state.data.val, "test": state.data.test}[settings.split]
    return _accuracy(state, split, settings.test_tasks, settings.seed)


def _accuracy(state: MetaTrainState, split: ImageSplit, tasks: int, seed: int) -> tuple[float, float]:
    interval = mean_interval(adapted_accuracies(state, split, tasks, _queries(split, state), seed))
    return interval.mean, interval.half_width


def _queries(split: ImageSplit, state: MetaTrainState) -> int:
    return fewer(split, state.config.ways, state.config.shots, QUERIES)[1]


def describe_result(settings: MetaTrain, before: tuple[float, float], after: tuple[float, float]) -> str:
    """The result in one line."""
    percent = [f"{100 * mean:.2f} ± {100 * half_width:.2f} %" for mean, half_width in (after, before)]
    tasks = f"{settings.test_tasks} tasks of unseen {NAMES[settings.split]} classes"
    how = f"{settings.algorithm.upper()} with {settings.inner_steps} inner step(s) of rate {settings.inner_rate:g}"
    return (
        f"{percent[0]} (95 % interval over {tasks}; {percent[1]} before training): Conv4, {how}, "
        f"{settings.ways}-way {settings.shots}-shot, squared loss, seed {settings.seed}"
    )


def is_due(step: int, settings: MetaTrain) -> bool:
    """Whether the curve has a point at this step."""
    return step % settings.report_every == 0 or step == settings.steps


def curve_points(settings: MetaTrain, steps: int) -> dict[int, dict[str, Any]]:
    """The points of the curve by step; raises CheckpointError unless all up to ``steps`` exist."""
    lines = read_metrics(settings.out, MetaTrainLine)
    due = (step for step in range(1, steps + 1) if is_due(step, settings))
    check_complete(settings.out, lines, "step", due)
    return {row["step"]: row for row in map(numbers_of, lines)}


def draw_meta_curves(settings: MetaTrain, before: tuple[float, float], after: tuple[float, float]) -> None:
    """Draw meta-loss and accuracies against outer steps, with chance and the accuracy on the test classes."""
    rows = curve_points(settings, settings.steps)
    names = ("step", "loss", "accuracy", "val_accuracy", "val_half_width")
    data: dict[str, Any] = {name: [row[name] for row in rows.values()] for name in names}
    data |= {"test_before": list(before), "test_after": list(after), "chance": 1 / settings.ways}
    with figure("page", 3.2, columns=2) as (drawing, axes):
        where = f"{Path(settings.data).name}, {settings.ways}-way {settings.shots}-shot, seed {settings.seed}"
        drawing.suptitle(f"Meta-training of Conv4 by {settings.algorithm.upper()}\n{where}")
        left, right = axes[0]
        left.plot(data["step"], data["loss"], **curve(0))
        left.set_ylabel("squared loss per query sample")
        right.errorbar(
            data["step"],
            100 * np.array(data["val_accuracy"]),
            100 * np.array(data["val_half_width"]),
            capsize=2,
            label="validation",
            **curve(2),
        )
        ends = ([0, settings.steps], *(100 * np.array(each) for each in zip(before, after, strict=True)))
        name = f"{NAMES[settings.split]}, before and after"
        right.errorbar(*ends, capsize=3, label=name, **curve(1) | {"linestyle": "none"})
        right.axhline(100 * data["chance"], color="0.4", linestyle=":", label="chance")
        right.set_ylabel("accuracy on new classes (%)")
        legend_below(right)
        for panel in (left, right):
            panel.set_xlabel("outer steps")
        paths = save_figure(
            drawing, "meta_curves", data, settings.out, without_paths(settings), settings.seed
        )
    print(f"wrote {paths[0]} (and .pdf, .json)")
