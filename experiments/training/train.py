"""``train``: RFS pre-training of a network, in one process or under torchrun; it can stop after every step."""

import dataclasses
import json
import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
import torch

from mamltheory.errors import CheckpointError
from mamltheory.fewshot.evaluation import validation_accuracy
from mamltheory.fewshot.execution import Execution
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.network_file import NETWORK_FILE, network_bytes
from mamltheory.fewshot.trained import untrained_network
from mamltheory.fewshot.training import TrainConfig, TrainState, start_training, trained_to
from mamltheory.fewshot.training_state import inputs_of, restore, state_tensors
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import parameter_count
from mamltheory.runtime.checkpoint import check_state, load_state, save_state
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.distributed import World, data_parallel
from mamltheory.runtime.records import replace_file
from mamltheory.runtime.runlog import RunLog, check_complete, read_metrics

from ..data.counts import evaluate_shortage, refuse_shortage, train_shortage
from ..data.loading import data_of
from ..genotypes import network_size, read_genotype
from ..plotting import curve, figure, legend_below, save_figure
from ..program import PROGRAM
from ..runs import (
    FREE,
    CheckpointTimer,
    continue_with,
    continued_by,
    leading_stage,
    numbers_of,
    opened_run,
    quoted,
    say_if_finished,
    without_paths,
)
from .settings import Evaluate, Train


class EpochLine(TypedDict):
    """The keys of a line of a training's ``metrics.jsonl`` that are read."""

    epoch: Annotated[int, 1]
    loss: float
    accuracy: float
    learning_rate: float
    val_accuracy: NotRequired[float]
    val_half_width: NotRequired[float]


class TrainingContent(TypedDict):
    """The keys of a saved training that commands read."""

    epoch: Annotated[int, 0]
    step: Annotated[int, 0]
    genotype: dict[str, object] | None
    cpu_seconds: NotRequired[Annotated[float, 0]]


def train_and_draw(settings: Train) -> int:
    """Train the network, draw the learning curve and print the result; returns 0."""
    genotype = read_genotype(settings.genotype) if settings.network == "cells" else None
    with data_parallel(settings.device) as world:
        train_network(settings, genotype, world)
        if world.leads:
            draw_learning_curves(settings)
            print(training_result(settings))
    return 0


def training_result(settings: Train) -> str:
    """Loss and accuracy of the last epoch, and the next command, in two lines."""
    last = epoch_lines(settings, settings.epochs)[settings.epochs]
    validated = (
        f", {100 * last['val_accuracy']:.1f} % on few-shot validation tasks" if "val_accuracy" in last else ""
    )
    return (
        f"trained {settings.epochs} epochs: loss {last['loss']:.3f} nats, {100 * last['accuracy']:.1f} % of the "
        f"augmented training images{validated}\n"
        f"evaluate it: {evaluate_command(settings.out, data_of(settings))}"
    )


def evaluate_command(checkpoint: Path, data: ImageData) -> str:
    """The command that evaluates a network on the data of its training, with the flags that fit them."""
    short = evaluate_shortage(Evaluate(), data)
    flags = f" {short.flags()}" if short and short.fitting else ""
    return f"{PROGRAM} evaluate --checkpoint {quoted(checkpoint)}{flags}"


def train_network(
    settings: Train,
    genotype: Genotype | None,
    world: World | None = None,
    until: int | None = None,
    shown: bool = True,
    free: Collection[str] = (),
) -> torch.nn.Module:
    """Run or continue the training in its run folder; on a CPU interruptions change no bit of the result.

    Args:
        settings: The settings.
        genotype: The cell; None for ResNet-12.
        world: The processes that train together; None for this one alone.
        until: The epoch after which this call ends; None for the last one.
        shown: Whether progress is shown.
        free: Settings, in addition to the usual ones, with which the training may continue when they differ.

    Returns:
        The trained network. CheckpointError is raised if another genotype was trained there, or this one beyond the
        epoch ``until``.
    """
    world = world or World()
    device = choose_device(world.device_name(settings.device)).device
    data = data_of(settings)
    refuse_shortage(train_shortage(settings, data))
    network = new_network(settings, genotype, inputs_of(data).classes)
    execution = Execution(settings.channels_last, world.rank, world.size)
    state = start_training(network, data, train_config(settings, data), device, execution)
    with _record(settings, world, device, free) as log:
        checkpoint, spent = load_state(settings.out / "state", report=print), 0.0
        if checkpoint is not None:
            check_state(checkpoint, TrainingContent)
            _check_genotype(checkpoint.state["genotype"], genotype, settings)
            state = restore(state, checkpoint.tensors, checkpoint.state)
            # Trainings of earlier versions do not know their time, of which a part would be no use.
            spent = checkpoint.state.get("cpu_seconds", math.nan)
            if log is not None:
                epoch_lines(settings, state.epoch)
                if shown:
                    say_if_finished(log, "trained")
        world.check_same((state.epoch, state.step), "epoch and step")
        until = settings.epochs if until is None else until
        _check_not_beyond(until, state, settings)
        state, spent = _remaining_steps(state, genotype, settings, world, log, until, shown, spent)
        if log is not None:
            if state.epoch == settings.epochs:
                file = network_bytes(state.network, inputs_of(data), data.train.class_names)
                replace_file(settings.out / NETWORK_FILE, file)
            seconds = {} if math.isnan(spent) else {"cpu_seconds": spent}
            log.close(epochs=state.epoch, parameters=parameter_count(network), **seconds)
    # A network that is loaded later has this format, and results should agree to the last bit.
    return state.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@contextmanager
def _record(
    settings: Train, world: World, device: torch.device, more: Collection[str]
) -> Iterator[RunLog | None]:
    """The record of the run in the leading process; None in the others."""
    again = continue_with("train", settings, world.size)
    if not world.leads:
        with continued_by(again):
            yield None
        return
    free = (*FREE, "save_minutes", *Train.IGNORED, *more)
    with opened_run("train", settings, device, free=free, processes=world.size, again=again) as log:
        yield log


def _remaining_steps(
    state: TrainState,
    genotype: Genotype | None,
    settings: Train,
    world: World,
    log: RunLog | None,
    until: int,
    shown: bool,
    spent: float,
) -> tuple[TrainState, float]:
    """Take the remaining steps; save the state after every epoch, after some minutes, and at a stop.

    Returns:
        The training at its end, and the CPU seconds of this process with those that were ``spent`` before.
    """
    begun = time.process_time() - spent
    name = json.loads(json.dumps(genotype.to_json())) if genotype is not None else None
    left = (until - state.epoch) * state.steps - state.step
    if log is not None and left:
        log.resume()
    with leading_stage(f"train in {settings.out}, steps", left, world.leads and shown) as advance:
        pauses = CheckpointTimer(settings.save_minutes, world.any, advance, settings.batch_size)
        pauses.note = f"epoch {state.epoch + 1}/{settings.epochs}"
        for now, metrics in trained_to(state, until, pauses):
            state = now
            pauses.note = f"epoch {min(state.epoch + 1, settings.epochs)}/{settings.epochs}"
            if log is not None:
                # A crash between the two repeats the line; the other order would lose an epoch.
                if metrics is not None:
                    log.log(**dataclasses.asdict(metrics), **_validated(state, settings))
                tensors, numbers = state_tensors(state)
                spent = time.process_time() - begun
                seconds = {} if math.isnan(spent) else {"cpu_seconds": spent}
                save_state(settings.out / "state", tensors, {**numbers, "genotype": name, **seconds})
            pauses.saved()
    return state, spent


def _validated(state: TrainState, settings: Train) -> dict[str, float]:
    """Few-shot accuracy on the validation classes, if it is due after this epoch."""
    if not settings.validate_every or state.epoch % settings.validate_every:
        return {}
    tasks, seed = settings.validation_tasks, settings.seed
    result = validation_accuracy(state.network, state.data, tasks, seed, state.device)
    return {"val_accuracy": result.mean, "val_half_width": result.half_width}


def train_config(settings: Train, data: ImageData) -> TrainConfig:
    """The recipe; images are mirrored unless the data are characters."""
    names = (
        *("batch_size", "learning_rate", "momentum", "weight_decay", "epochs", "milestones", "drop_path"),
        *("precision", "seed"),
    )
    return TrainConfig(**{name: getattr(settings, name) for name in names}, flip=data.mirrors)


def new_network(settings: Train, genotype: Genotype | None, classes: int) -> torch.nn.Module:
    """The untrained network for a number of classes; its weights depend on the seed alone."""
    cells = genotype if settings.network == "cells" else None
    return untrained_network(cells, network_size(settings, classes), settings.seed)


def _check_genotype(saved: object, genotype: Genotype | None, settings: Train) -> None:
    ours = genotype.to_json() if genotype is not None else None
    if json.dumps(saved) != json.dumps(ours):
        raise CheckpointError(f"{settings.out} trains another genotype: choose another --out")


def _check_not_beyond(until: int, state: TrainState, settings: Train) -> None:
    if (state.epoch, state.step) > (until, 0):
        raise CheckpointError(
            f"{settings.out} is trained beyond epoch {until}, whose weights are needed: remove this folder, and "
            "they are trained again"
        )


def epoch_lines(settings: Train, epochs: int) -> dict[int, dict[str, Any]]:
    """The metrics of every epoch; raises CheckpointError unless all of the first ``epochs`` are there."""
    lines = read_metrics(settings.out, EpochLine)
    check_complete(settings.out, lines, "epoch", range(1, epochs + 1))
    return {row["epoch"]: row for row in map(numbers_of, lines)}


def draw_learning_curves(settings: Train) -> None:
    """Draw training loss and accuracy, and validation accuracy if any, with the milestones of the learning rate."""
    rows = epoch_lines(settings, settings.epochs)
    data = {
        name: [row[name] for row in rows.values()] for name in ("epoch", "loss", "accuracy", "learning_rate")
    }
    seen = [row for row in rows.values() if "val_accuracy" in row]
    for name in ("epoch", "val_accuracy", "val_half_width") if seen else ():
        data[f"val_{name.removeprefix('val_')}"] = [row[name] for row in seen]
    with figure("page", 2.9, columns=2) as (drawing, axes):
        drawing.suptitle(f"Training on {Path(settings.data).name}, seed {settings.seed}")
        for i, (panel, name) in enumerate(zip(axes[0], ("loss", "accuracy"), strict=True)):
            some = max(1, len(data["epoch"]) // 20)
            values = [each * {"loss": 1, "accuracy": 100}[name] for each in data[name]]
            panel.plot(data["epoch"], values, markevery=some, label="training, all classes", **curve(i))
            for milestone in settings.milestones:
                panel.axvline(milestone + 0.5, color="0.6", linestyle=":")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.set_xlabel("epoch" + " (dotted: the learning rate falls)" * bool(settings.milestones))
            panel.set_ylabel(
                {"loss": "training cross-entropy (nats)", "accuracy": "training accuracy (%)"}[name]
            )
        if seen:
            value, width = (100 * np.array(data[name]) for name in ("val_accuracy", "val_half_width"))
            bars = {"x": data["val_epoch"], "y": value, "yerr": width}
            axes[0, 1].errorbar(**bars, label="validation, few-shot", capsize=2, **curve(2))
            axes[0, 1].set_ylabel("accuracy (%)")
            legend_below(axes[0, 1], 2)
        paths = save_figure(
            drawing, "learning_curves", data, settings.out, without_paths(settings), settings.seed
        )
    print(f"wrote {paths[0]} (and .pdf, .json)")
