"""Scores of candidates of the cell search, C_N and R_N: all of a batch at once, and one by one.

One repeat of a round: its tasks, weights and patches, and some of its candidates. A search takes three repeats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.benchmarks.cases import Case, Group, Method, Result, Sizes
from experiments.benchmarks.sample_gradients import ScoreProblem, build_score
from mamltheory import generator
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.nas.scoring.condition_number import candidate_conditions, condition_score
from mamltheory.nas.scoring.linear_regions import activation_patterns, region_counts, thin_network
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.sizes import multiply_accumulates

OURS, SINGLE = "ours", "one by one"
SETTINGS = ScoreSettings(outputs="sum")


@dataclass(frozen=True)
class ScoringProblem:
    """The network and tasks of a repeat, its patches, and the candidates to be scored, the supernet first."""

    repeat: ScoreProblem
    patches: Tensor
    candidates: tuple[Candidates, ...]
    seed: int


def _candidates(count: int) -> tuple[Candidates, ...]:
    """The supernet and candidates of a first round, spread over its 126 operators."""
    operators = Candidates().operators()
    places = [(2 * i + 1) * len(operators) // (2 * max(count - 1, 1)) for i in range(count - 1)]
    return (Candidates(), *(Candidates().without(operators[place]) for place in places))


def floor(sizes: Sizes) -> float:
    """FLOP of a score's products, 2 for each: Σ over candidates of 6 n M + n² P.

    n images with M multiply-accumulates each, once forward, once back and once for the P weights' gradients, and
    half of the n² inner products of these. Neither what candidates share is taken off nor what flows back to images.
    """
    size = NetworkSettings(channels=sizes["channels"], cells=sizes["cells"]).for_search(sizes["ways"])
    image = torch.zeros(1, size.input_channels, sizes["image"], sizes["image"])
    count, total = 2 * sizes["ways"] * sizes["tasks"], 0
    for candidates in _candidates(sizes["candidates"]):
        network = supernet(candidates, size, 0)
        weights = sum(value.numel() for value in network.parameters() if value.dim() > 1)
        total += 6 * count * multiply_accumulates(network, image) + count**2 * weights
    return float(total)


def build_scoring(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> ScoringProblem:
    """Supernet, tasks and candidates; patches of random numbers, float32."""
    repeat, candidates = build_score(sizes, dtype, device, seed), _candidates(sizes["candidates"])
    patches = torch.randn(sizes["patches"], 1, 3, 3, generator=generator(seed, "benchmark patches"))
    return ScoringProblem(repeat, patches.to(device), candidates, seed)


def ours_scoring(problem: ScoringProblem) -> Callable[[], Result]:
    """Conditions and regions of the batch, as the search computes them."""
    repeat = problem.repeat

    def call() -> Result:
        conditions = candidate_conditions(repeat.network, problem.candidates, repeat.tasks, SETTINGS)
        regions = region_counts(problem.candidates, problem.patches, problem.seed)
        return _scores([value for value, _ in conditions], regions)

    return call


def single_scoring(problem: ScoringProblem) -> Callable[[], Result]:
    """A network at a time: the plain kernel, and the distinct rows of the plain thin network's patterns."""
    repeat = problem.repeat

    def regions(candidates: Candidates) -> int:
        thin = thin_network(candidates, problem.seed).to(problem.patches.device)
        return len(torch.unique(activation_patterns(thin, problem.patches, thin.feature_map), dim=0))

    def call() -> Result:
        conditions = [
            condition_score(repeat.network.restrict(each), repeat.tasks, SETTINGS)
            for each in problem.candidates
        ]
        return _scores(conditions, [regions(each) for each in problem.candidates])

    return call


def _scores(conditions: list[float], regions: list[int]) -> Result:
    """Each number by itself, so that each difference is relative to its own."""
    return tuple(torch.tensor(value, dtype=torch.float64) for value in (*conditions, *regions))


SCORING = Group(
    "candidate scores",
    build_scoring,
    (
        Method(OURS, ours_scoring, ours=True),
        Method(SINGLE, single_scoring),
    ),
    Method("one by one, float64", single_scoring),
    floor=floor,
    quick={
        "channels": 2, "image": 8, "ways": 2, "tasks": 1, "cells": 3, "candidates": 2, "patches": 50
    },
)  # fmt: skip
_SIZES = {"image": 32, "ways": 5, "tasks": 3, "patches": 3000}
_CHECK = {"channels": 16, "image": 16, "cells": 3, "patches": 300}


def _case(channels: int, cells: int, candidates: int, methods: tuple[str, ...]) -> Case:
    title = (
        f"scores of {candidates} candidate{'s' if candidates > 1 else ''}, {channels} channels, {cells} cells"
    )
    return Case(
        f"scoring-{channels}-{candidates}",
        title,
        SCORING,
        {"channels": channels, "cells": cells, "candidates": candidates, **_SIZES},
        methods,
        _CHECK,
    )


CASES = (
    _case(16, 3, 1, (OURS, SINGLE)),
    _case(16, 3, 6, (OURS, SINGLE)),
    # Ours alone, for it takes long enough; that results agree is checked on a small network in any case.
    _case(48, 5, 1, (OURS,)),
    _case(48, 5, 6, (OURS,)),
)
