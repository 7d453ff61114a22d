"""``train``: RFS pre-training of the network that stacks a genotype's cells, resumable after every epoch."""

import dataclasses
import json
from pathlib import Path

from experiments.cells.common import (
    begin,
    data_of,
    network_size,
    quoted,
    read_genotype,
    recorded,
    without_paths,
)
from experiments.config import read_config, settings_from
from experiments.requirements import require
from experiments.settings import Train
from mamltheory.errors import CheckpointError
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.train import (
    TrainConfig,
    TrainState,
    restore,
    start_training,
    state_tensors,
    train_epoch,
)
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import Network, derived_network, parameter_count
from mamltheory.plotting import curve, figure, save
from mamltheory.rng import derived_seed
from mamltheory.runtime.checkpoint import load
from mamltheory.runtime.checkpoint import save as save_state
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.runlog import RunLog, read_metrics


def run(settings: Train) -> int:
    """Train the genotype of the settings and draw the learning curve; returns 0."""
    train(settings, read_genotype(settings.genotype))
    draw_curves(settings)
    return 0


def train(settings: Train, genotype: Genotype) -> Network:
    """Run or take up the training in its run folder; on a CPU interruptions change no bit of the result."""
    device, data = choose_device(settings.device), data_of(settings)
    network = new_network(settings, genotype, data)
    state = start_training(network, data, config_of(settings, data), device.device)
    log = begin(settings, "train", device.device)
    with recorded(log, _continue_with(settings)):
        checkpoint = load(settings.out / "state", report=print)
        if checkpoint is not None:
            _check_genotype(checkpoint.state["genotype"], genotype, settings)
            state = restore(state, checkpoint.tensors, checkpoint.state)
        state = remaining_epochs(state, genotype, settings, log)
    log.close(epochs=state.epoch, parameters=parameter_count(network))
    return state.network


def remaining_epochs(state: TrainState, genotype: Genotype, settings: Train, log: RunLog) -> TrainState:
    """All epochs that are left, each saved when it is done."""
    steps = len(state.data.train) // settings.batch_size
    left = settings.epochs - state.epoch
    with stage(f"train ({settings.out.name})", left * steps) as advance:
        for _ in range(left):
            state, metrics = train_epoch(state, on_step=lambda *_: advance())
            tensors, numbers = state_tensors(state)
            # Logged first: a crash in between repeats the line, and never leaves out an epoch.
            log.log(**dataclasses.asdict(metrics))
            save_state(settings.out / "state", tensors, {**numbers, "genotype": genotype.to_json()})
            check_interrupted()
    return state


def config_of(settings: Train, data: ImageData) -> TrainConfig:
    """The recipe; images are mirrored where a mirrored image shows the same class (not so for characters)."""
    names = (
        "batch_size",
        "learning_rate",
        "momentum",
        "weight_decay",
        "epochs",
        "milestones",
        "drop_path",
        "seed",
    )
    return TrainConfig(**{name: getattr(settings, name) for name in names}, flip=data.mirrors)


def new_network(settings: Train, genotype: Genotype, data: ImageData) -> Network:
    """The untrained network; its weights depend on the seed alone."""
    size = network_size(settings, len(data.train.class_names))
    return derived_network(genotype, size, derived_seed(settings.seed, "training weights"))


def trained_network(settings: Train, genotype: Genotype, data: ImageData) -> Network:
    """The network as its run folder holds it; raises CheckpointError when the training has not finished."""
    checkpoint = load(settings.out / "state", report=print)
    if checkpoint is None or checkpoint.state["epoch"] < settings.epochs:
        done = 0 if checkpoint is None else checkpoint.state["epoch"]
        raise CheckpointError(
            f"{settings.out} holds {done} of {settings.epochs} epochs: finish it with {_continue_with(settings)}"
        )
    network = new_network(settings, genotype, data)
    prefix = "network/"
    weights = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items() if k.startswith(prefix)}
    network.load_state_dict(weights)
    return network


def settings_of_run(folder: Path) -> tuple[Train, Genotype]:
    """The settings and the genotype that a training's run folder records."""
    require(
        (folder / "run.json").is_file(), f"{folder} is no run folder: train first, or name another folder"
    )
    settings = settings_from(Train, read_config(folder, "train"))
    checkpoint = load(folder / "state", report=print)
    if checkpoint is None:
        raise CheckpointError(f"{folder} holds no finished epoch yet: train first")
    return dataclasses.replace(settings, out=folder), Genotype.from_json(checkpoint.state["genotype"])


def _continue_with(settings: Train) -> str:
    return f"python -m experiments train --config {quoted(settings.out)}"


def _check_genotype(saved: object, genotype: Genotype, settings: Train) -> None:
    if json.dumps(saved) != json.dumps(genotype.to_json()):
        raise CheckpointError(f"{settings.out} trains another genotype: choose another --out")


def draw_curves(settings: Train) -> None:
    """Training loss and accuracy against epochs, with the learning rate's falls."""
    rows = {row["epoch"]: row for row in read_metrics(settings.out)}
    data = {
        name: [row[name] for row in rows.values()] for name in ("epoch", "loss", "accuracy", "learning_rate")
    }
    with figure("page", 2.6, columns=2) as (drawing, axes):
        for i, (panel, name) in enumerate(zip(axes[0], ("loss", "accuracy"), strict=True)):
            panel.plot(data["epoch"], data[name], **curve(i))
            for milestone in settings.milestones:
                panel.axvline(milestone + 0.5, color="0.6", linestyle=":")
            panel.set_xlabel("epoch (dotted: the learning rate falls)")
            panel.set_ylabel({"loss": "training cross-entropy (nats)", "accuracy": "training accuracy"}[name])
        paths = save(drawing, "learning_curves", data, settings.out, without_paths(settings), settings.seed)
    print(f"wrote {paths[0]} (and .pdf, .json)")
