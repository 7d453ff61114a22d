"""``correlation``: random networks of the search space, trained and scored; which score predicts their accuracy?"""

import time
from functools import lru_cache, partial

import numpy as np
import torch

from mamltheory.fewshot.episodes import sample_episode, sample_episodes
from mamltheory.fewshot.evaluation import EvaluationConfig, evaluate_network
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.fewshot.uploads import normalise, take
from mamltheory.nas.genotype import Genotype, random_genotype
from mamltheory.nas.network import Network, derived_network, parameter_count, supernet
from mamltheory.nas.scoring.linear_regions import random_patches, region_count
from mamltheory.nas.scoring.pool import Batch, PoolSettings, PoolTasks, pooled_scores
from mamltheory.nas.sizes import Band, multiply_accumulates, random_genotype_within
from mamltheory.nas.table import load_table
from mamltheory.rng import derived_seed, generator, numpy_generator
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.interrupt import check_interrupted

from ..data.counts import refuse_shortage, study_shortage
from ..data.loading import cached_data, data_of, source_in
from ..genotypes import network_size
from ..settings import EMBEDDED_DATA, limits_of
from .correlation_report import report_correlation
from .measurements import Record, measure_missing
from .settings import WAYS, Correlation
from .table_report import report_table

COUNTS = ("networks", "repeated")
SHOTS = (1, 5)
QUERIES = 15
Item = tuple[int, int]
"""Number of the genotype, and of its training: 0, or 1 for the noise ceiling."""


def study_correlation(settings: Correlation) -> int:
    """Measure the missing networks, draw the figure and write the table; returns 0."""
    if settings.table is not None:
        table = load_table(None if settings.table == EMBEDDED_DATA else settings.table)
        report_table(table, settings.out, settings.draws, settings.seed)
        return 0
    device = str(choose_device(settings.device).device)
    refuse_shortage(study_shortage(settings, data_of(settings)))  # before anything is trained
    draw_pool(settings, 0)
    genotype_of(settings, 0)  # and a band without cells
    records = measure_missing(
        settings,
        "correlation",
        trainings_of(settings),
        partial(measure_network, settings, device),
        COUNTS,
        device,
    )
    report_correlation(settings, records)
    return 0


def trainings_of(settings: Correlation) -> dict[str, Item]:
    """All trainings by name; second trainings are spread over the first, so that a stopped study has some."""
    pairs = [(i, 0) for i in range(settings.networks)] + [(i, 1) for i in range(settings.repeated)]
    spacing = settings.networks // settings.repeated
    pairs.sort(key=lambda pair: (pair[0] * (spacing if pair[1] else 1), pair[1]))
    return {f"network-{i:03d}-training-{training}": (i, training) for i, training in pairs}


def genotype_of(settings: Correlation, index: int) -> Genotype:
    """A random genotype, of the band if one is given."""
    random = generator(settings.seed, "study genotype", index)
    if settings.parameters is None:
        return random_genotype(random, inputs=settings.inputs)
    size = network_size(settings, len(data_of(settings).train.class_names))
    return random_genotype_within(Band(*limits_of(settings.parameters)), random, size, settings.inputs)


def measure_network(settings: Correlation, device: str, item: Item) -> Record:
    """Size, accuracies and (with the first training) all scores of one network."""
    index, training = item
    data, begun = data_of(settings), time.process_time()
    genotype = genotype_of(settings, index)
    record = {"network": index, "training": training, "genotype": genotype.to_json()}
    record |= train_and_test(settings, device, genotype, data, training)
    if training == 0:
        record |= score_network(settings, device, genotype)
    return record | {"cpu_seconds": time.process_time() - begun}


def train_and_test(
    settings: Correlation, device: str, genotype: Genotype, data: ImageData, training: int
) -> Record:
    """Size and accuracies of a trained network; all networks share weights, order and augmentation.

    Args:
        settings: Settings of the study.
        device: Where to compute.
        genotype: The cells.
        data: The images.
        training: Number of the training.

    Returns:
        The entries of the record.
    """
    seed, size = (
        derived_seed(settings.seed, "study training", training),
        network_size(settings, len(data.train.class_names)),
    )
    # Depthwise convolutions are half again as fast with channels last.
    network = derived_network(genotype, size, seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = ("batch_size", "learning_rate", "epochs", "milestones")
    config = TrainConfig(
        **{name: getattr(settings, name) for name in names}, drop_path=0.0, flip=data.mirrors, seed=seed
    )
    state = start_training(network, data, config, device)
    for _ in range(settings.epochs):
        state, metrics = train_epoch(state)
        check_interrupted()
    assert metrics is not None, "an epoch without a pause has metrics"
    image = torch.zeros(1, 3, settings.image_size, settings.image_size, device=device)
    return {
        "parameters": parameter_count(network),
        "macs": multiply_accumulates(network, image),
        "train_accuracy": metrics.accuracy,
        "accuracy": {str(shots): accuracy(settings, network, data, shots, device) for shots in SHOTS},
    }


def accuracy(settings: Correlation, network: Network, data: ImageData, shots: int, device: str) -> float:
    """Mean accuracy of a logistic head on unseen classes.

    Args:
        settings: Settings of the study.
        network: The trained network.
        data: The images.
        shots: Support images per class.
        device: Where to compute.

    Returns:
        The accuracy on tasks that are the same for all networks.
    """
    config = EvaluationConfig(
        WAYS, shots, QUERIES, settings.test_tasks, copies=0, head="logistic", flip=data.mirrors
    )
    result = evaluate_network(network, data.test, data.mean, data.std, config, settings.seed, device=device)
    return result.interval.mean


def score_network(settings: Correlation, device: str, genotype: Genotype) -> Record:
    """All scores, each pools × initialisations; larger is better."""
    begun = time.process_time()
    candidates = genotype.candidates()
    rows = []
    for pool in range(settings.pools):
        images, patches = draw_pool(settings, pool)
        for init in range(settings.initialisations):
            seed = derived_seed(settings.seed, "study weights", pool, init)
            network = supernet(candidates, network_size(settings, WAYS), seed).to(device)
            tasks = draw_pool_tasks(settings, len(images) // settings.pool_images, pool, init)
            scores = pooled_scores(network, images, tasks, PoolSettings(settings.outputs))
            random = generator(settings.seed, "study patches", pool, init)
            drawn = random_patches(patches, settings.patches, random).to(device)
            scores["regions"] = float(region_count(candidates, drawn, seed))
            rows.append(scores)
            check_interrupted()
    shape = (settings.pools, settings.initialisations)
    arrays = {name: np.array([row[name] for row in rows]).reshape(shape) for name in rows[0]}
    return {"scores": arrays, "scoring_cpu_seconds": time.process_time() - begun}


@lru_cache(maxsize=8)
def draw_pool(settings: Correlation, pool: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of one class pool by class, and all images of its classes (for patches)."""
    data = cached_data(*source_in(settings))
    members, size = data.train.members, len(data.train.members) // settings.pools
    order = numpy_generator(settings.seed, "study pools").permutation(len(members))
    classes = order[pool * size : (pool + 1) * size]
    random = numpy_generator(settings.seed, "study pool images", pool)
    rows = np.concatenate([random.permutation(members[c])[: settings.pool_images] for c in classes])
    every = np.concatenate([members[c] for c in classes])[:: max(1, len(members[0]) // 10)]
    pool_images, patches = (
        normalise(take(data.train.images, part), data.mean, data.std) for part in (rows, every)
    )
    return pool_images, patches


def draw_pool_tasks(settings: Correlation, classes: int, pool: int, init: int) -> PoolTasks:
    """The tasks of a pool, which are the same for all networks.

    Args:
        settings: Settings of the study.
        classes: Number of classes in the pool.
        pool: Number of the pool.
        init: Number of the initialisation.

    Returns:
        The tasks.
    """
    members = np.arange(classes * settings.pool_images).reshape(classes, -1)
    seed = derived_seed(settings.seed, "study tasks", pool, init)
    batches = []
    for index in range(settings.batches):
        episodes = sample_episodes(list(members), settings.joint_tasks, WAYS, 1, 1, seed, index)
        parts = [np.stack([getattr(e, name).ravel() for e in episodes]) for name in ("query", "support")]
        batches.append(Batch(*map(torch.from_numpy, parts)))
    counts = (WAYS, 1, settings.pool_images - 1, seed)
    single = [sample_episode(list(members), *counts, i) for i in range(settings.regression_tasks)]
    query, support = (np.stack([getattr(e, name) for e in single]) for name in ("query", "support"))
    return PoolTasks(batches, torch.from_numpy(query), torch.from_numpy(support))
