"""``tabulate``: random cells of one size, trained and scored, as a table on which search methods are tried."""

import dataclasses
import math
import time
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from mamltheory.errors import ValueRangeError
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.prototypes import followed_accuracies
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.fewshot.uploads import normalise, take
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import Network, derived_network, parameter_count
from mamltheory.nas.scoring.pool import PoolSettings, PoolTasks, trained_scores
from mamltheory.nas.short_trainings import different_genotypes
from mamltheory.nas.sizes import Band, multiply_accumulates
from mamltheory.nas.table import TABLE_FILE, table_from, table_of
from mamltheory.rng import derived_seed, generator, numpy_generator
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.distributed import shared_name
from mamltheory.runtime.interrupt import check_interrupted
from mamltheory.runtime.records import replace_file, to_json

from ..data.counts import refuse_shortage, study_shortage
from ..data.loading import data_of
from ..genotypes import network_size
from ..runs import without_paths
from ..settings import limits_of
from .correlation import accuracy, draw_pool_tasks, score_network
from .measurements import Record, measure_missing
from .settings import POOL_IMAGES, WAYS, Correlation, Tabulate
from .table_report import report_table

SHOTS, QUERIES = (1, 5), 15
JOINT_TASKS, BATCHES, REGRESSION_TASKS = 3, 24, 200
"""Tasks with a joint MetaNTK, batches of them, and tasks of kernel regression."""
NORM_IMAGES = 512
"""Images whose statistics the norms of an untrained network take."""
COUNTS = ("networks", "trainings", "doubled", "scored")


class Item(NamedTuple):
    """A training: number of the genotype, number of its training, and the factor of width and epochs."""

    network: int
    training: int
    factor: int


def tabulate_cells(settings: Tabulate) -> int:
    """Measure the missing trainings and write ``table.json``; returns 0."""
    device = shared_name(choose_device(settings.device).device)
    refuse_shortage(study_shortage(settings, data_of(settings)))
    genotypes_of(settings)  # a band without cells is found before anything is trained
    records = measure_missing(
        settings,
        "tabulate",
        trainings_of(settings),
        partial(measure_training, settings, device),
        COUNTS,
        device,
    )
    table = table_of(recorded_settings(settings), list(records.values()))
    path = settings.out / TABLE_FILE
    replace_file(path, to_json(table).encode())
    print(f"wrote {path}: {len(table['cells'])} cells, {len(records)} trainings")
    report_table(table_from(table), settings.out, settings.draws, settings.seed)
    return 0


def recorded_settings(settings: Tabulate) -> dict[str, Any]:
    """The settings that decide the numbers of the table."""
    return {key: value for key, value in without_paths(settings).items() if key != "draws"}


def trainings_of(settings: Tabulate) -> dict[str, Item]:
    """All trainings by name: of every genotype in turn, and then those at twice the scale."""
    items = [Item(i, t, 1) for i in range(settings.networks) for t in range(settings.trainings)]
    items += [Item(i, 0, 2) for i in range(settings.doubled)]
    return {_name(item): item for item in items}


def _name(item: Item) -> str:
    kind = (
        f"training-{item.training}" if item.factor == 1 else f"factor-{item.factor}-training-{item.training}"
    )
    return f"network-{item.network:03d}-{kind}"


@lru_cache(maxsize=4)
def genotypes_of(settings: Tabulate) -> tuple[Genotype, ...]:
    """The random genotypes of the band, no two alike; more networks keep the first ones."""
    size = network_size(settings, len(data_of(settings).train.class_names))
    band, random = Band(*limits_of(settings.parameters)), generator(settings.seed, "table genotypes")
    return different_genotypes(band, settings.networks, random, size, settings.inputs, check_interrupted)


def measure_training(settings: Tabulate, device: str, item: Item) -> Record:
    """Losses, accuracies and scores of one training."""
    begun, genotype = time.process_time(), genotypes_of(settings)[item.network]
    record = item._asdict() | {"genotype": genotype.to_json()}
    if item.factor == 1 and item.training == 0:
        scored = score_network(_score_settings(settings), device, genotype)
        # One number per pool: the mean over the initialisations.
        record["scores"] = {name: _finite(values.mean(1)) for name, values in scored["scores"].items()}
        record["scoring_cpu_seconds"] = scored["scoring_cpu_seconds"]
    record |= train_and_follow(settings, device, genotype, item)
    return record | {"cpu_seconds": time.process_time() - begun}


def train_and_follow(settings: Tabulate, device: str, genotype: Genotype, item: Item) -> Record:
    """Train a network, and note loss and few-shot accuracies at the checkpoints.

    Args:
        settings: Settings of the command.
        device: Where to compute.
        genotype: The cells.
        item: The training.

    Returns:
        The entries of the record. A training that diverges ends there, with the checkpoints before.
    """
    data, factor = data_of(settings), item.factor
    seed = derived_seed(settings.seed, "table training", item.training)
    wide = dataclasses.replace(settings, channels=settings.channels * factor)
    network = derived_network(genotype, network_size(wide, len(data.train.class_names)), seed)
    state = start_training(network, data, training_config(settings, data, seed, factor), device)
    image = torch.zeros(1, 3, settings.image_size, settings.image_size, device=device)
    record: Record = {
        "seed": seed,
        "parameters": parameter_count(network),
        "macs": multiply_accumulates(network, image),
        "checkpoints": [],
        "diverged": False,
    }
    scored = item.training == 0 and factor == 1 and item.network < settings.scored
    at = settings.scored_epochs if scored else ()
    if 0 in at:
        settle_norms(network, data, device)
        record["trained_scores"] = {"0": score_trained(settings, network)}
        network = derived_network(genotype, network_size(wide, len(data.train.class_names)), seed)
        state = start_training(network, data, training_config(settings, data, seed, factor), device)
    seconds = 0.0
    for epoch in range(1, settings.epochs * factor + 1):
        begun = time.process_time()
        try:
            state, metrics = train_epoch(state)
        except ValueRangeError:  # the loss is not finite: the cell is last in every ranking
            return record | {"diverged": True}
        seconds += time.process_time() - begun
        check_interrupted()
        assert metrics is not None, "an epoch without a pause has metrics"
        if epoch % factor == 0 and epoch // factor in settings.checkpoints:
            found = followed_accuracies(
                network, data, ("val", "test"), SHOTS, WAYS, QUERIES, settings.tasks, settings.seed, device
            )
            record["checkpoints"].append(
                {
                    "epoch": epoch,
                    "loss": metrics.loss,
                    "train_accuracy": metrics.accuracy,
                    **{name: {str(k): value for k, value in each.items()} for name, each in found.items()},
                    "cpu_seconds": seconds,
                }
            )
        if epoch in at:
            record["trained_scores"][str(epoch)] = score_trained(settings, network)
    tested = dataclasses.replace(_score_settings(settings), test_tasks=settings.test_tasks)
    record["accuracy"] = {str(k): accuracy(tested, network, data, k, device) for k in SHOTS}
    return record


def training_config(settings: Tabulate, data: ImageData, seed: int, factor: int = 1) -> TrainConfig:
    """The recipe; with a factor, epochs and milestones are that many times as many."""
    return TrainConfig(
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs * factor,
        milestones=tuple(factor * milestone for milestone in settings.milestones),
        drop_path=0.0,
        flip=data.mirrors,
        seed=seed,
    )


def settle_norms(network: Network, data: ImageData, device: str) -> None:
    """Give the batch norms of an untrained network the statistics of training images."""
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    rows = np.linspace(0, len(data.train) - 1, min(NORM_IMAGES, len(data.train))).astype(int)
    with torch.no_grad():
        network.train()(normalise(take(data.train.images, rows, device), data.mean, data.std))


def score_trained(settings: Tabulate, network: Network) -> dict[str, float]:
    """The kernel scores of a network in training, on images of the validation classes."""
    images, tasks = _validation_pool(settings)
    found = trained_scores(network, images, tasks, PoolSettings(), settings.seed)
    return {name: value if math.isfinite(value) else None for name, value in found.items()}  # type: ignore[misc]


@lru_cache(maxsize=2)
def _validation_pool(settings: Tabulate) -> tuple[torch.Tensor, PoolTasks]:
    data = data_of(settings)
    random = numpy_generator(settings.seed, "table validation pool")
    rows = np.concatenate([random.permutation(members)[:POOL_IMAGES] for members in data.val.members])
    images = normalise(take(data.val.images, rows), data.mean, data.std)
    return images, draw_pool_tasks(_score_settings(settings), len(data.val.members), settings.pools, 0)


def _score_settings(settings: Tabulate) -> Correlation:
    """The settings of the scores, in the words of ``correlation``."""
    shared = {field.name for field in dataclasses.fields(Correlation)}
    values: dict[str, Any] = {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(Tabulate)
        if field.name in shared and field.name not in ("networks", "out", "jobs")
    }
    return Correlation(
        **values,
        pool_images=POOL_IMAGES,
        joint_tasks=JOINT_TASKS,
        batches=BATCHES,
        regression_tasks=REGRESSION_TASKS,
    )


def _finite(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
