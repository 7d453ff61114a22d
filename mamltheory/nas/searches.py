"""The searches as one function: Algorithm 1 by any criteria and protocol, and searches among cells of one size."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, get_args

from torch import nn

from mamltheory.accelerator import memory_budget
from mamltheory.arguments import (
    check_choice,
    check_function,
    check_kind,
    check_seed,
    check_whole,
    checked_device,
)
from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.counts import TaskCounts, check_counts
from mamltheory.fewshot.datasets import Data, data_from
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.trained import TrainedNetwork
from mamltheory.fewshot.training_state import inputs_of
from mamltheory.nas import short_trainings
from mamltheory.nas.algorithms.algorithm1 import step
from mamltheory.nas.algorithms.halving import DEFAULT_RUNGS, Measured, Rung, check_rungs
from mamltheory.nas.algorithms.rounds import Round, rounds_ahead
from mamltheory.nas.algorithms.sampled import SAMPLED, SampledCell, rank_cells, scored_cells
from mamltheory.nas.algorithms.state import Decision, SearchState
from mamltheory.nas.genotype import Candidates, Genotype
from mamltheory.nas.network import NetworkSettings, derived_network
from mamltheory.nas.protocols import (
    KERNEL,
    KERNELS,
    METHODS,
    OWN_SCORE,
    PROTOCOLS,
    Method,
    Protocol,
    criteria,
)
from mamltheory.nas.scoring.own_score import OwnScore
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.search_scorer import final_scores, scorer_by, search_rules, search_scorer
from mamltheory.nas.sizes import Band, usual_band
from mamltheory.nas.space import PAPER, Space, check_operations, checked_space
from mamltheory.notebook import shown_progress
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        method: of the search.
        genotype: the cells.
        network: of halving the trained network; otherwise the cells stacked at the size of the search, untrained.
        scores: of the network on new draws: C_N and R_N, or what an own score returned, none for random cells; of
            halving what each rung measured.
        trace: the decisions of Algorithm 1, round by round; none for halving.
        standings: the rungs of halving with the numbers of their candidates, the best first; none otherwise.
        sampled: the cells that scores ranked at one size, the best first; none otherwise. Their ``parameters`` are
            those of the network that is trained; the network that an own score gets has others, see :class:`OwnScore`.

    Example:
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> from mamltheory.nas import NetworkSettings, search
        >>> data, size = glyph_data(16, 5, 2, 2, samples_per_class=4), NetworkSettings(2, 3, stem_stride=4)
        >>> found = search(data, "random", size=size, seed=1)
        >>> len(found.trace), found.scores
        (486, ())

        Of six random cells with 2500 to 3200 parameters, the one that an own score ranks first:

        >>> from mamltheory.nas import OwnScore
        >>> def convolutions(network, tasks):
        ...     return sum(parameter.dim() == 4 for parameter in network.parameters())
        >>> most, few = OwnScore(convolutions, largest_is_best=True), {"repeats": 1, "ways": 2, "tasks": 1}
        >>> found = search(data, score=most, size=size, parameters=(2500, 3200), samples=6, **few)
        >>> [(cell.score, cell.rank) for cell in found.sampled]
        [(46.0, 1), (46.0, 1), (42.0, 3), (42.0, 3), (40.0, 5), (30.0, 6)]
    """

    method: Method
    genotype: Genotype
    network: nn.Module
    scores: tuple[Score, ...] | tuple[Measured, ...] | tuple[float, ...]
    trace: tuple[Decision, ...] = ()
    standings: tuple[tuple[Rung, tuple[int, ...]], ...] = ()
    sampled: tuple[SampledCell, ...] = ()

    def __repr__(self) -> str:
        numbers = sum(parameter.numel() for parameter in self.network.parameters())
        parts = {
            "scores": self.scores,
            "decisions": self.trace,
            "rungs": self.standings,
            "cells": self.sampled,
        }
        counts = "".join(f", {len(each)} {name}" for name, each in parts.items() if each)
        return f"Found({self.method!r}, {self.genotype!r}, {numbers:,} parameters{counts})"


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
    samples: int = 16,
    rungs: Sequence[Rung] = DEFAULT_RUNGS,
    space: Space = PAPER,
    score: OwnScore | Callable[[nn.Module, Sequence[Task]], float] | None = None,
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
        parameters: fewest and most, of cells that halving trains (None: the median size ± 8 %) or metantk-nas ranks.
        samples: how many of them.
        rungs: of halving, the cells and the epochs of each stage.
        space: the operations and the nodes of the cells.
        score: an OwnScore, or a function of network and tasks with small numbers for good ones, in place of C_N.
        seed: seed of every random draw.
        device: where to compute.
        progress: is called with a line after every round or rung; by default a terminal shows it, a notebook a bar.

    Returns:
        What was found. ConfigurationError is raised for wrong settings, DataError for data. See :class:`Found`.
    """
    _check_names(method, protocol, size, space, seed, progress)
    band, stages = _band(method, parameters), _rungs(rungs) if method == "halving" else ()
    counts = {"ways": ways, "shots": shots, "queries": queries, "tasks": tasks, "repeats": repeats}
    values = _values(method, protocol, own := _own_score(score, method), counts) | {"seed": seed}
    device, data = str(checked_device(device)), data_from(data, image_size)
    size = dataclasses.replace(size or NetworkSettings(), classes=len(data.train.class_names))
    with _said(progress, len(stages) or (values["repeats"] if band else _rounds(space, values))) as say:
        if stages:
            return _halved(data, size, space, band, stages, seed, device, say, progress)
        scorer = _scorer(data, method, values, size, own, device)
        if band:
            return _sampled(scorer, values, size, space, band, samples, say)
        return _pruned(scorer, method, values, size, space, say)


def _values(
    method: Method, protocol: Protocol, own: OwnScore | None, counts: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of the protocol, as the method, an own score and what was given change them."""
    usual = {**PROTOCOLS[protocol], **KERNELS.get(method, KERNEL), **METHODS[method]}
    given = {name: value for name, value in counts.items() if value is not None or name not in usual}
    check_whole(**given)
    return {**usual, **(OWN_SCORE if own else {}), **given}


def _check_names(
    method: object, protocol: object, size: object, space: object, seed: object, progress: object
) -> None:
    check_choice(get_args(Method), method=method)
    check_choice(get_args(Protocol), protocol=protocol)
    check_kind(NetworkSettings, size=size)
    check_seed(seed)
    check_function(progress=progress)
    check_operations(checked_space(space))


def _own_score(score: object, method: str) -> OwnScore | None:
    if score is None:
        return None
    if method != "metantk-nas":
        raise ConfigurationError(
            f"an own score was given to the method {method}: it takes the place of the criteria of metantk-nas, leave "
            "the method out"
        )
    return score if isinstance(score, OwnScore) else OwnScore(score)  # type: ignore[arg-type]


def _rounds(space: Space, values: Mapping[str, Any]) -> int:
    return len(rounds_ahead(Candidates.of(space), "two" if values["two_inputs"] else "all"))


@contextmanager
def _said(progress: Callable[[str], None] | None, total: int) -> Iterator[Callable[[str], None]]:
    """A function for the line of every round or rung, which a notebook or a terminal shows."""
    with shown_progress("search", total, patience=0.0, quiet=progress is not None) as advance:

        def say(line: str) -> None:
            advance(note=line)
            if progress is not None:
                progress(line)

        yield say


def _band(method: str, parameters: object) -> Band | None:
    """The sizes that were given to a search among cells of one size; None if there are none."""
    if parameters is None:
        return None
    if method not in ("halving", "metantk-nas"):
        raise ConfigurationError(
            f"parameters is {parameters!r:.80} for the method {method}: leave it out, or choose halving or metantk-nas"
        )
    if not isinstance(parameters, tuple | list) or len(parameters) != 2:
        raise ConfigurationError(
            f"parameters is {parameters!r:.80}: expected two numbers, as in (36000, 42000)"
        )
    check_whole(**dict(zip(("parameters[0]", "parameters[1]"), parameters, strict=True)))
    return Band(*parameters)


def _usual_band(
    size: NetworkSettings, seed: int, space: Space, progress: Callable[[str], None] | None
) -> Band:
    """The sizes that halving takes where none were given, which it says."""
    band = usual_band(size, seed, space=space)
    if progress is not None:
        progress(f"{band.words}; parameters chooses others")
    return band


def _rungs(rungs: object) -> tuple[Rung, ...]:
    if not isinstance(rungs, Sequence) or not all(isinstance(rung, Rung) for rung in rungs):
        raise ConfigurationError(
            f"rungs is {rungs!r:.80}: expected a sequence of Rung, as in [Rung(8, 1), Rung(2, 4)]"
        )
    return check_rungs(rungs)


def _scorer(
    data: ImageData,
    method: Method,
    values: Mapping[str, Any],
    size: NetworkSettings,
    own: OwnScore | None,
    device: str,
) -> CellScorer:
    """The scorer by the criteria of a method, on data that are large enough for its tasks."""
    chosen = criteria(method, bool(values["regions"]))
    if "condition" in chosen:
        counts = {name: values[name] for name in ("ways", "shots", "queries", "tasks")}
        check_counts(data, counts, [TaskCounts("train", tasks="tasks")])
    memory = memory_budget(device, 0) or None  # one for all batches, on whose sizes the last bits depend
    return search_scorer(lambda: data, chosen, values, size, device, own, memory)


def _pruned(
    scorer: CellScorer,
    method: Method,
    values: Mapping[str, Any],
    size: NetworkSettings,
    space: Space,
    say: Callable[[str], None],
) -> Found:
    """Algorithm 1 from the full supernet to its end."""
    rules = search_rules(criteria(method, bool(values["regions"])), values)
    state = SearchState(Candidates.of(space))
    while not Round.of(state, rules).is_finished:
        before, state = state, step(state, scorer_by(rules, scorer), rules)
        if state.round_index > before.round_index:
            left = len(state.candidates.operators())
            say(
                f"round {state.round_index}: {len(before.candidates.operators()) - left} operators left, {left} stay"
            )
    genotype = state.candidates.genotype()
    return _found(scorer, method, genotype, size, state.round_index, trace=state.trace)


def _sampled(
    scorer: CellScorer,
    values: Mapping[str, Any],
    size: NetworkSettings,
    space: Space,
    band: Band,
    samples: int,
    say: Callable[[str], None],
) -> Found:
    """The best of random cells of one size by the scores of all of them."""
    check_whole(least=2, samples=samples)
    cells = short_trainings.different_genotypes(
        band, samples, generator(scorer.seed, SAMPLED), size, space=space
    )
    rows = []
    for repeat in range(values["repeats"]):
        rows.append(scorer.scores([cell.candidates() for cell in cells], 0, repeat))
        say(f"repeat {repeat + 1}: {samples} cells scored")
    ranking = rank_cells(rows, values["ties"], bool(values["regions"]), own=scorer.own is not None)
    ranked = sorted(scored_cells(cells, ranking, size, scorer.own), key=attrgetter("rank"))
    return _found(scorer, "metantk-nas", ranked[0].genotype, size, 1, sampled=tuple(ranked))


def _found(
    scorer: CellScorer, method: Method, genotype: Genotype, size: NetworkSettings, index: int, **more: Any
) -> Found:
    """What was found, with its untrained network and its scores on new draws."""
    scores = final_scores(scorer, genotype.candidates(), index) if method != "random" else ()
    own = scorer.own
    found = tuple(own.ranked(each.condition) for each in scores) if own else scores
    network = derived_network(genotype, size, derived_seed(scorer.seed, "training weights"))
    return Found(method, genotype, network.to(scorer.device), found, **more)


def _halved(
    data: ImageData,
    size: NetworkSettings,
    space: Space,
    band: Band | None,
    rungs: tuple[Rung, ...],
    seed: int,
    device: str,
    say: Callable[[str], None],
    progress: Callable[[str], None] | None,
) -> Found:
    """Successive halving of random cells of one size."""
    band = band or _usual_band(size, seed, space, progress)
    check_counts(data, {}, [short_trainings.task_counts(data, "val")])
    stream = generator(seed, short_trainings.CANDIDATES)
    cells = short_trainings.different_genotypes(band, rungs[0].candidates, stream, size, space=space)
    standings, best, measured = short_trainings.halve_in_memory(data, cells, rungs, size, seed, device, say)
    network = TrainedNetwork(best, inputs_of(data), data.train.class_names)
    return Found("halving", cells[standings[-1][1][0]], network, measured, standings=standings)
