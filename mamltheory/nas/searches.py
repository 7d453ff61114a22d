"""The searches as one function: Algorithm 1 by any criteria and protocol, and successive halving of short trainings."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mamltheory.accelerator import memory_budget
from mamltheory.arguments import (
    check_choice,
    check_function,
    check_kind,
    check_seed,
    check_whole,
    checked_device,
)
from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.datasets import Data, data_from
from mamltheory.fewshot.episodes import Episode, episode_tasks, sample_episode
from mamltheory.fewshot.images import ImageData, normalise, take
from mamltheory.fewshot.prototypes import prototype_accuracies, split_features
from mamltheory.fewshot.trained import TrainedNetwork
from mamltheory.fewshot.training import TrainConfig, TrainState, start_training, train_epoch
from mamltheory.fewshot.training_state import inputs_of
from mamltheory.linalg import Converged
from mamltheory.nas.algorithms.algorithm1 import step
from mamltheory.nas.algorithms.halving import DEFAULT_RUNGS, Measured, Rung, check_rungs, successive_halving
from mamltheory.nas.algorithms.rounds import Round, rounds_ahead
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import Decision, SearchState
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings, derived_network
from mamltheory.nas.protocols import METHODS, PROTOCOLS, Method, Protocol, criteria
from mamltheory.nas.scoring.linear_regions import random_patches
from mamltheory.nas.scoring.operator_gradient import GradientScorer
from mamltheory.nas.scoring.score import Score, Scorer, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.nas.sizes import Band, random_genotype_within
from mamltheory.notebook import notebook_bar
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task

PATCHES, PATCH_IMAGES = 3000, 300
"""Inputs of the region count (released code), and the images that they are cut from."""
FINAL_DRAWS = 4
"""New draws for the scores of the found network."""
VALIDATION_TASKS, WAYS, QUERIES = 1000, 5, 15
"""The tasks that measure a candidate of halving; they have one shot."""
TRIES = 20
"""Draws per cell that is wanted; the space holds few different cells of some sizes."""
RULES = (
    *("repeats", "ties", "difference", "estimator", "shrinkage", "stopping", "least_repeats"),
    "common_random_numbers",
)
"""The settings of a protocol that say how Algorithm 1 decides."""


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        method: of the search.
        genotype: the cells.
        network: of halving the trained network; otherwise the cells stacked at the size of the search, untrained.
        scores: of the network: C_N and R_N on new draws, none for random cells; of halving what each rung measured.
        trace: the decisions of Algorithm 1, round by round; none for halving.
        standings: the rungs of halving with the numbers of their candidates, the best first; none otherwise.
    """

    method: Method
    genotype: Genotype
    network: nn.Module
    scores: tuple[Score, ...] | tuple[Measured, ...]
    trace: tuple[Decision, ...] = ()
    standings: tuple[tuple[Rung, tuple[int, ...]], ...] = ()


def search(
    data: Data,
    method: Method = "metantk-nas",
    *,
    protocol: Protocol = "paper",
    size: NetworkSettings | None = None,
    image_size: int | None = None,
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    tasks: int | None = None,
    repeats: int | None = None,
    parameters: tuple[int, int] | None = None,
    rungs: Sequence[Rung] = DEFAULT_RUNGS,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Found:
    """Search a cell, in this process and memory; the command ``search`` does the same in a run that can be stopped.

    Args:
        data: images, or the name or the folder of a data set.
        method: "metantk-nas", "te-nas", "regions" and "random" prune a supernet without training, by their criteria;
            "halving" trains random cells of one size a little, keeps the best, and trains those further.
        protocol: how Algorithm 1 decides, see :mod:`mamltheory.nas.protocols`; halving does not use it.
        size: channels and number of stacked cells.
        image_size: side of images that are read, in pixels; None for the stored size.
        ways: classes of a task that scores a supernet.
        shots: support images per class.
        queries: query images per class.
        tasks: tasks of a score; None for the protocol's number.
        repeats: draws that are averaged, with stopping the most of them; None for the protocol's.
        parameters: of halving, the fewest and the most parameters of a network.
        rungs: of halving, the cells and the epochs of each stage.
        seed: seed of every random draw.
        device: where to compute.
        progress: is called with a line after every round or rung. A notebook shows a bar in any case.

    Returns:
        What was found. A ConfigurationError is raised for settings that do not fit, a DataError for wrong data.

    Example:
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> from mamltheory.nas import NetworkSettings, search
        >>> size = NetworkSettings(channels=2, cells=3, stem_stride=4)
        >>> found = search(glyph_data(16, 5, 2, 2, samples_per_class=4), "random", size=size, seed=1)
        >>> len(found.trace), found.scores
        (486, ())
    """
    _check_names(method, protocol, size, seed, progress)
    own = {name: value for name, value in (("tasks", tasks), ("repeats", repeats)) if value is not None}
    check_whole(ways=ways, shots=shots, queries=queries, **own)
    _check_parameters(method, parameters)
    device, data = str(checked_device(device)), data_from(data, image_size)
    size = dataclasses.replace(size or NetworkSettings(), classes=len(data.train.class_names))
    values = {**PROTOCOLS[protocol], **METHODS[method], **own}
    with _said(progress, _rounds(values["two_inputs"]) if parameters is None else len(_rungs(rungs))) as say:
        if parameters is not None:
            return _halved(data, size, _band(parameters), _rungs(rungs), seed, device, say)
        return _pruned(data, method, values, size, (ways, shots, queries), seed, device, say)


def _check_names(method: object, protocol: object, size: object, seed: object, progress: object) -> None:
    check_choice(get_args(Method), method=method)
    check_choice(get_args(Protocol), protocol=protocol)
    check_kind(NetworkSettings, size=size)
    check_seed(seed)
    check_function(progress=progress)


def _rounds(two_inputs: bool) -> int:
    return len(rounds_ahead(SearchState().candidates, "two" if two_inputs else "all"))


@contextmanager
def _said(progress: Callable[[str], None] | None, total: int) -> Iterator[Callable[[str], None]]:
    """A function for the line of every round or rung, which a notebook shows with a bar."""
    with notebook_bar("search", total, patience=0.0) as advance:

        def say(line: str) -> None:
            advance(note=line)
            if progress is not None:
                progress(line)

        yield say


def _check_parameters(method: str, parameters: object) -> None:
    if (parameters is None) == (method == "halving"):
        raise ConfigurationError(
            f"parameters is {parameters} for the method {method}: give halving two numbers such as (36000, 42000), and "
            "the other methods None"
        )


def _band(parameters: object) -> Band:
    if not isinstance(parameters, tuple | list) or len(parameters) != 2:
        raise ConfigurationError(
            f"parameters is {parameters!r:.80}: expected two numbers, as in (36000, 42000)"
        )
    check_whole(**dict(zip(("parameters[0]", "parameters[1]"), parameters, strict=True)))
    return Band(*parameters)


def _rungs(rungs: object) -> tuple[Rung, ...]:
    if not isinstance(rungs, Sequence) or not all(isinstance(rung, Rung) for rung in rungs):
        raise ConfigurationError(
            f"rungs is {rungs!r:.80}: expected a sequence of Rung, as in [Rung(8, 1), Rung(2, 4)]"
        )
    return check_rungs(rungs)


def _pruned(
    data: ImageData,
    method: Method,
    values: Mapping[str, Any],
    size: NetworkSettings,
    counts: tuple[int, int, int],
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> Found:
    """Algorithm 1 from the full supernet to its end."""
    chosen = criteria(method, bool(values["regions"]))
    rules = SearchSettings(
        seed=seed,
        criteria=chosen,
        inputs="two" if values["two_inputs"] else "all",
        **{name: values[name] for name in RULES},
    )
    kernel = ScoreSettings(
        "ntk" if method == "te-nas" else "maml",
        values["outputs"],
        measure=values["metric"],
        dynamics=Converged(ridge=1e-3),
    )
    scorer = CellScorer(
        network=dataclasses.replace(size, classes=counts[0], initialisation=values["initialisation"]),
        seed=seed,
        tasks=partial(draw_tasks, data, (values["tasks"], *counts)) if "condition" in chosen else None,
        patches=partial(draw_patches, data) if "regions" in chosen else None,
        settings=kernel,
        device=device,
        memory=memory_budget(device, 0) or None,  # one for all batches, on whose sizes the last bits depend
    )
    state = SearchState()
    while not Round.of(state, rules).is_finished:
        before, state = state, step(state, scorer_by(rules, scorer), rules)
        if state.round_index > before.round_index:
            left = len(state.candidates.operators())
            say(
                f"round {state.round_index}: {len(before.candidates.operators()) - left} operators left, {left} stay"
            )
    genotype, draws = state.candidates.genotype(), range(FINAL_DRAWS if chosen else 0)
    scores = tuple(scorer.scores([state.candidates], state.round_index, draw)[0] for draw in draws)
    network = derived_network(genotype, size, derived_seed(seed, "training weights"))
    return Found(method, genotype, network.to(device), scores, state.trace)


def draw_tasks(
    data: ImageData, counts: tuple[int, int, int, int], random: torch.Generator
) -> tuple[Task, ...]:
    """The tasks of one repeat from the training classes, without repeated images.

    Args:
        data: the images.
        counts: tasks, ways, shots and queries.
        random: draws the images.

    Returns:
        The tasks.
    """
    tasks, ways, shots, queries = counts
    seed = int(torch.randint(2**62, (1,), generator=random))
    return episode_tasks(data.train, tasks, ways, shots, queries, seed, mean=data.mean, std=data.std)


def draw_patches(data: ImageData, random: torch.Generator) -> Tensor:
    """The inputs of the region count in one repeat."""
    rows = torch.randint(len(data.train), (PATCH_IMAGES,), generator=random).numpy()
    return random_patches(normalise(take(data.train.images, rows), data.mean, data.std), PATCHES, random)


def scorer_by(rules: SearchSettings, scorer: CellScorer) -> Scorer:
    """The scorer that these rules name, with the size, settings and samplers of ``scorer``."""
    if rules.estimator == "gradient":
        return GradientScorer(scorer)
    return scorer if rules.common_random_numbers else IndependentDraws(scorer)


def _halved(
    data: ImageData,
    size: NetworkSettings,
    band: Band,
    rungs: tuple[Rung, ...],
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> Found:
    """Successive halving; all candidates share the initial weights of equal layers, the order and the augmentation."""
    cells = different_genotypes(band, rungs[0].candidates, generator(seed, "halving candidates"), size)
    last = rungs[-1].epochs
    milestones = tuple(each for each in (7, 10) if each < last)
    config = TrainConfig(
        learning_rate=0.1, epochs=last, milestones=milestones, drop_path=0.0, flip=data.mirrors, seed=seed
    )
    episodes = _validation_tasks(data, seed)
    alive: dict[int, TrainState] = {}
    measured: dict[int, list[Measured]] = {}

    def measure(numbers: Sequence[int], rung: Rung) -> list[Measured]:
        for number in set(alive) - set(numbers):
            del alive[number]  # weights and momenta of a cell that is out
        for number in numbers:
            if number not in alive:
                network = derived_network(cells[number], size, derived_seed(seed, "training weights"))
                alive[number] = start_training(network, data, config, device)
            alive[number], found = _trained_to(alive[number], rung.epochs, episodes)
            measured.setdefault(number, []).append(found)
        best = max((each[-1].accuracy for i, each in measured.items() if i in numbers), default=math.nan)
        say(
            f"epoch {rung.epochs}: {len(numbers)} cells, the best with {100 * best:.1f} % on validation tasks"
        )
        return [measured[number][-1] for number in numbers]

    standings = successive_halving(len(cells), rungs, measure)
    winner = standings[-1][1][0]
    if measured[winner][-1].diverged:
        raise ConfigurationError(
            "all trainings of the last rung diverged: choose other cells by another seed"
        )
    best = alive[winner].network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network = TrainedNetwork(best, inputs_of(data), data.train.class_names)
    ranked = tuple((rung, tuple(numbers)) for rung, numbers in standings)
    return Found("halving", cells[winner], network, tuple(measured[winner]), standings=ranked)


def different_genotypes(
    band: Band, count: int, random: torch.Generator, size: NetworkSettings
) -> tuple[Genotype, ...]:
    """Random genotypes of a band with two inputs per node, no two alike; raises ConfigurationError for too few."""
    found = dict[Genotype, None]()
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        found[random_genotype_within(band, random, size)] = None
    if len(found) < count:
        raise ConfigurationError(
            f"only {len(found)} different cells with {band} parameters were found, and {count} are needed: widen the "
            "band, or ask for fewer cells"
        )
    return tuple(found)


def _trained_to(state: TrainState, epoch: int, episodes: Sequence[Episode]) -> tuple[TrainState, Measured]:
    """A training at the end of an epoch, and its loss and accuracy there."""
    loss = math.nan
    try:
        while state.epoch < epoch:
            state, metrics = train_epoch(state)
            loss = math.nan if metrics is None else metrics.loss
    except ValueRangeError:
        return state, Measured(math.nan, math.nan, diverged=True)
    features = split_features(state.network, state.data.val, state.data.mean, state.data.std, state.device)
    return state, Measured(loss, float(prototype_accuracies(features, episodes).mean()))


def _validation_tasks(data: ImageData, seed: int) -> tuple[Episode, ...]:
    tasks_seed = derived_seed(seed, "halving tasks val")
    return tuple(sample_episode(data.val, WAYS, 1, QUERIES, tasks_seed, i) for i in range(VALIDATION_TASKS))
