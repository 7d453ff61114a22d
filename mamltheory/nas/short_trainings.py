"""Successive halving of short trainings: its candidates, their recipe, and the tasks that measure them.

:func:`mamltheory.nas.search` runs the rungs in memory, and the command ``search`` in run folders; both call these
functions, so that they keep the same cells and the same weights.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.counts import TaskCounts, fewer
from mamltheory.fewshot.episodes import Episode, sample_episode
from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.prototypes import prototype_hits, split_features
from mamltheory.fewshot.trained import untrained_network
from mamltheory.fewshot.training import TrainConfig, TrainState, start_training, trained_to
from mamltheory.nas.algorithms.halving import Measured, Rung, check_trained, successive_halving
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.sizes import Band, random_genotype_within
from mamltheory.nas.space import PAPER, Space
from mamltheory.rng import derived_seed

WAYS, SHOTS, QUERIES = 5, 1, 15
"""The tasks that measure a candidate; data with fewer classes or images have as many as there are."""
VALIDATION_TASKS = 1000
RATE, MILESTONES = 0.1, (7, 10)
"""The learning rate of the candidates, and the epochs after which it falls, of those that a training has."""
CANDIDATES = "halving candidates"
"""The stream of random numbers that draws the cells."""
TRIES = 20
"""Draws per cell that is wanted; the space holds few different cells of some sizes."""


def different_genotypes(
    band: Band,
    count: int,
    random: torch.Generator,
    size: NetworkSettings,
    inputs: Literal["all", "two"] = "two",
    check: Callable[[], None] = lambda: None,
    space: Space = PAPER,
) -> tuple[Genotype, ...]:
    """Random genotypes of a band, no two alike.

    Args:
        band: the sizes of the network that are allowed.
        count: number of cells.
        random: draws the cells.
        size: channels, cells and classes of the network whose parameters are counted.
        inputs: "two" for nodes with two inputs, or "all".
        check: is called after every draw, and may raise.
        space: of the cells.

    Returns:
        The genotypes, in the order in which they were drawn.

    Raises:
        ConfigurationError: the band has too few.
    """
    found = dict[Genotype, None]()
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        found[random_genotype_within(band, random, size, inputs, space=space)] = None
        check()
    if len(found) < count:
        raise ConfigurationError(
            f"only {len(found)} different cells with {band} parameters were found, and {count} are needed: widen the "
            "band, or ask for fewer cells"
        )
    return tuple(found)


def task_counts(data: ImageData, name: str) -> TaskCounts:
    """The tasks of a split, "val" or "test", that measure a candidate: of at most 5 ways and 15 queries."""
    ways, queries = fewer(getattr(data, name), WAYS, SHOTS, QUERIES)
    return TaskCounts(name, ways, SHOTS, queries)


def questions(data: ImageData, name: str) -> int:
    """Images that a candidate classifies in one of these tasks."""
    ways, queries = fewer(getattr(data, name), WAYS, SHOTS, QUERIES)
    return ways * queries


def ranking_tasks(
    data: ImageData, name: str, seed: int, tasks: int = VALIDATION_TASKS
) -> tuple[Episode, ...]:
    """The tasks that measure all candidates: a function of split, seed and number of tasks."""
    split: ImageSplit = getattr(data, name)
    ways, queries = fewer(split, WAYS, SHOTS, QUERIES)
    drawn = derived_seed(seed, f"halving tasks {name}")
    return tuple(sample_episode(split, ways, SHOTS, queries, drawn, i) for i in range(tasks))


def ranking_accuracies(
    network: nn.Module, data: ImageData, name: str, tasks: Sequence[Episode], device: torch.device | str
) -> np.ndarray:
    """The accuracy of a candidate on every task; the arguments are those of :func:`ranking_hits`."""
    return accuracies_of(ranking_hits(network, data, name, tasks, device))


def accuracies_of(hits: np.ndarray) -> np.ndarray:
    """The accuracy on every task, from which queries are classified correctly, tasks × ways × queries."""
    return hits.reshape(len(hits), -1).mean(1)


def units_of(data: ImageData, name: str) -> tuple[int, Literal["class", "image"]]:
    """What is independent in these tasks, and how many there are: classes, or images where a task has all classes."""
    split: ImageSplit = getattr(data, name)
    classes = len(split.class_names)
    return (classes, "class") if classes > WAYS else (len(split), "image")


def ranking_hits(
    network: nn.Module, data: ImageData, name: str, tasks: Sequence[Episode], device: torch.device | str
) -> np.ndarray:
    """Whether a candidate classifies each query of each task correctly, by the nearest prototype.

    Args:
        network: the network in training, in any memory layout; it stays as it is.
        data: the images.
        name: "val" or "test".
        tasks: tasks of that split.
        device: where the network is.

    Returns:
        Booleans, tasks × ways × queries.
    """
    if not all(each.is_contiguous() for each in network.state_dict().values()):
        # Sums may round differently in another layout, and a saved network has this one.
        network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    features = split_features(network, getattr(data, name), data.mean, data.std, device)
    return prototype_hits(features, tasks)


def recipe(data: ImageData, epochs: int, seed: int) -> TrainConfig:
    """The usual training of a candidate: no drop path, mirrored images unless the data are characters.

    Args:
        data: the images; a batch has at most all of them.
        epochs: length of the training.
        seed: seed of order and augmentation.

    Returns:
        The recipe.
    """
    milestones = tuple(each for each in MILESTONES if each < epochs)
    return TrainConfig(
        batch_size=min(TrainConfig.batch_size, len(data.train)),
        learning_rate=RATE,
        epochs=epochs,
        milestones=milestones,
        drop_path=0.0,
        flip=data.mirrors,
        seed=seed,
    )


Standings = tuple[tuple[Rung, tuple[int, ...]], ...]


def halve_in_memory(
    data: ImageData,
    cells: Sequence[Genotype],
    rungs: Sequence[Rung],
    size: NetworkSettings,
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> tuple[Standings, nn.Module, tuple[Measured, ...]]:
    """Run the rungs in memory; all candidates share the initial weights of equal layers, order and augmentation.

    Args:
        data: the images.
        cells: the candidates.
        rungs: how many of them are trained how long.
        size: channels and number of the stacked cells, and classes.
        seed: seed of weights, tasks, order and augmentation.
        device: where to compute.
        say: is called with a line after every rung.

    Returns:
        The standings of the rungs, the network of the best cell, and what each rung measured of it.
    """
    tasks, config = ranking_tasks(data, "val", seed), recipe(data, rungs[-1].epochs, seed)
    alive: dict[int, TrainState] = {}
    measured: dict[int, list[Measured]] = {}

    def measure(numbers: Sequence[int], rung: Rung) -> list[Measured]:
        for number in set(alive) - set(numbers):
            del alive[number]  # weights and momenta of a cell that is out
        for number in numbers:
            if number not in alive:
                alive[number] = start_training(
                    untrained_network(cells[number], size, seed), data, config, device
                )
            alive[number], last = _trained(alive[number], rung.epochs, tasks)
            measured.setdefault(number, []).append(last)
        found = [measured[number][-1] for number in numbers]
        check_trained(found, rung, "choose other cells by another seed")
        best = max(each.accuracy for each in found if not each.diverged)
        say(
            f"epoch {rung.epochs}: {len(numbers)} cells, the best with {100 * best:.1f} % on validation tasks"
        )
        return found

    standings = successive_halving(len(cells), rungs, measure)
    winner = standings[-1][1][0]
    network = alive[winner].network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return tuple((rung, tuple(numbers)) for rung, numbers in standings), network, tuple(measured[winner])


def _trained(state: TrainState, epoch: int, tasks: Sequence[Episode]) -> tuple[TrainState, Measured]:
    """A training at the end of an epoch, and its loss and accuracy there."""
    loss = math.nan
    try:
        for now, metrics in trained_to(state, epoch):
            state, loss = now, math.nan if metrics is None else metrics.loss
    except ValueRangeError:
        return state, Measured(math.nan, math.nan, diverged=True)
    accuracies = ranking_accuracies(state.network, state.data, "val", tasks, state.device)
    return state, Measured(loss, float(accuracies.mean()))
