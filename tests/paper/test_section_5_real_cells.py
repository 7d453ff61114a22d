"""Section 5 on cells of the search space: both scores of random networks, and Algorithm 1 on supernets of them.

The search's own code computes; the twin in ``tests/reference/nas_cells.py`` writes the networks out layer by layer,
takes one backward pass an output, and compares regions as sets.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch

from mamltheory import generator
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.genotype import CELL_TYPES, EDGES, Candidates, random_genotype
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.scoring.linear_regions import random_patches, thin_network
from mamltheory.nas.scoring.score import Score, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.rng import derived_seed
from tests.nas.cases import draw_tasks
from tests.reference.nas_cells import condition_numbers, linear_regions
from tests.reference.nas_toy import literal_algorithm_1

SIZE = NetworkSettings(channels=2, cells=3, classes=3, stem_stride=2)
FLOAT32 = 2e-3
"""The search differentiates in float32; the error of C_N is that times C_N."""


def draw_patches(stream, count=200):
    """Patches of smooth images, some of which lie in one region."""
    images = torch.rand(10, 3, 5, 5, generator=stream)
    return random_patches(torch.nn.functional.interpolate(images, size=20, mode="bilinear"), count, stream)


def scorer_of(seed, kernel="maml", outputs="full", count=2):
    """The search's scorer at its smallest sizes."""
    return CellScorer(
        SIZE, seed, partial(draw_tasks, count=count), draw_patches, ScoreSettings(kernel, outputs)
    )


class Twin:
    """Both scores without the search's code, on the draws of one repeat: weights, tasks and patches."""

    def __init__(self, scorer, *index):
        self.network = supernet(Candidates(), SIZE, derived_seed(scorer.seed, "score-weights", *index))
        self.thin = thin_network(Candidates(), derived_seed(scorer.seed, "thin-weights", *index))
        self.tasks = scorer.tasks(generator(scorer.seed, "score-tasks", *index))
        self.patches = scorer.patches(generator(scorer.seed, "score-patches", *index))
        self.settings = scorer.settings

    def conditions(self, candidates):
        """C_N for MAML's and ANIL's kernel."""
        return condition_numbers(
            self.network, candidates, self.tasks, self.settings.dynamics, self.settings.outputs
        )

    def regions(self, candidates):
        return linear_regions(self.thin, candidates, self.patches)

    def score(self, candidates):
        return Score(self.conditions(candidates)[0], float(self.regions(candidates)))


def order(values):
    return np.argsort(values).tolist()


@pytest.mark.paper("Eq. (14)", "Eq. (15)", "Sec. 1: indicator", "Sec. 5: both scores")
@pytest.mark.parametrize("count", [6, pytest.param(16, marks=pytest.mark.slow)])
def test_both_scores_of_random_cells_are_those_of_networks_written_out_and_rank_them_alike(count, measured):
    """Cells with two inputs a node and with nine edges in turn, with the kernels of MAML and of ANIL.

    The search counts regions in float32. Where the terms of a node cancel to about 1e-9, as in one of these cells,
    rounding decides which ReLUs are on and can add regions.
    """
    cells = [
        random_genotype(generator(seed, "cell"), ("two", "all")[seed % 2]).candidates()
        for seed in range(count)
    ]
    twin = Twin(scorer_of(0), 0, 0)
    conditions = np.array([twin.conditions(cell) for cell in cells])
    regions = [twin.regions(cell) for cell in cells]
    for i, kernel in enumerate(("maml", "anil")):
        scores = scorer_of(0, kernel).scores(cells, 0, 0)
        own, expected = np.array([score.condition for score in scores]), conditions[:, i]
        assert order(own) == order(expected)
        changed = sum(score.regions != r for score, r in zip(scores, regions, strict=True))
        measured("cells of which rounding in float32 changes R_N", changed, below=0.5 + count // 16)
        measured("error of C_N of a cell", max(abs(own / expected - 1)), below=FLOAT32)
    measured("largest over least C_N of the cells", conditions.max() / conditions.min(), above=4)
    measured("largest less least R_N of the cells", max(regions) - min(regions), above=5)


def some_candidates(seed, open_edges, choices=3):
    """A supernet with so many of the 18 edges open, each with so many random operations."""
    draws = np.random.default_rng(seed)
    chosen = set(draws.permutation(18)[:open_edges].tolist())
    live = [
        tuple(OPERATIONS[o] for o in sorted(draws.permutation(7)[: choices if edge in chosen else 1]))
        for edge in range(18)
    ]
    return Candidates(tuple(live[:9]), tuple(live[9:]))


def position(values, value):
    """Line 8 or 9 with the least rank for equal values: one more than how many are smaller."""
    return 1 + sum(other < value for other in values)


def pruned_by_hand(candidates, score):
    """One round of Algorithm 1 on an edge after the other: (ΔC, ΔR) of the operators, and who is pruned."""
    live = [o for o in candidates.operators() if len(candidates.on(o.cell, o.edge)) > 1]
    whole = score(candidates)
    deltas = {}
    for o in live:
        part = score(candidates.without(o))
        deltas[o] = math.log(whole.condition) - math.log(part.condition), whole.regions - part.regions
    falling, rising = [-c for c, _ in deltas.values()], [r for _, r in deltas.values()]
    key = {o: (position(falling, -c) + position(rising, r), -c) for o, (c, r) in deltas.items()}
    edges = [[o for o in live if (o.cell, o.edge) == (cell, edge)] for cell in CELL_TYPES for edge in EDGES]
    return deltas, {min(members, key=key.__getitem__) for members in edges if members}


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)", "Sec. 5: both scores")
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_decision_of_algorithm_1_on_real_cells_follows_from_scores_of_networks_written_out(
    seed, measured
):
    """Three operations on each of two edges, so two rounds, one repeat each."""
    scorer, candidates = scorer_of(seed, "maml", "sum", 1), some_candidates(seed, 2)
    state = run_search(scorer, SearchSettings(repeats=1), SearchState(candidates))
    assert state.round_index == 2
    assert state.candidates.is_single_path()
    for round_index in range(2):
        deltas, pruned = pruned_by_hand(candidates, Twin(scorer, round_index, 0).score)
        decisions = {d.operator: d for d in state.trace if d.round_index == round_index}
        assert set(decisions) == set(deltas)
        assert {o for o, d in decisions.items() if d.pruned} == pruned
        assert all(decisions[o].delta_regions == r for o, (_, r) in deltas.items())
        error = max(abs(decisions[o].delta_condition - c) for o, (c, _) in deltas.items())
        measured("error of ΔC", error, below=FLOAT32)
        candidates = candidates.without(*pruned)
    assert candidates == state.candidates


@pytest.mark.slow
@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)", "Sec. 5: both scores")
def test_algorithm_1_as_printed_on_all_edges_of_real_cells_finds_the_path_of_networks_written_out():
    """Three operations on every edge: 92 networks; ranks are indices and C is compared by plain differences."""
    scorer, candidates = scorer_of(3, "maml", "sum", 1), some_candidates(3, 18)
    twins = [Twin(scorer, round_index, 0) for round_index in range(2)]

    def score(network):
        return twins[0 if len(network.operators()) > 36 else 1].score(network)

    survivors, rounds = literal_algorithm_1(score, candidates.operators())
    printed = SearchSettings(repeats=1, ties="index", difference="absolute")
    state = run_search(scorer, printed, SearchState(candidates))
    assert rounds == state.round_index == 2
    assert set(state.candidates.operators()) == survivors
