"""What search methods gain on the embedded table: 150 cells, each trained twice, 60 again at twice the scale."""

from functools import lru_cache

import pytest

from mamltheory.nas.algorithms.halving import DEFAULT_RUNGS, Rung
from mamltheory.nas.algorithms.replay import at_random, best_by_ranks, best_by_score, by_halving, replay
from mamltheory.nas.table import load_table

DRAWS, BOOTSTRAPS = 400, 20
SMALL = (Rung(16, 4), Rung(4, 12, "loss"))
"""Rungs that fit in half of the table."""


@lru_cache
def cells(first=0):
    """Every second cell of the table that was trained twice."""
    return load_table().having([(0, 1), (1, 1)])[first::2]


def gain(method, of):
    return replay(method, of, draws=DRAWS, bootstraps=BOOTSTRAPS)


def test_the_table_has_two_trainings_of_every_cell_and_sixty_at_twice_the_scale():
    table = load_table()
    assert len(table.cells) == len(table.having([(0, 1), (1, 1)])) >= 150
    assert len(table.having([(0, 1), (0, 2)])) >= 60


@pytest.mark.parametrize("half", [0, 1])
def test_the_default_rungs_gain_on_either_half(half):
    found = gain(by_halving(DEFAULT_RUNGS), cells(half))
    assert found.kept.low > 3
    assert found.retrained.low > 1.5
    assert found.seconds < 260


@pytest.mark.parametrize("half", [0, 1])
def test_halving_gains_more_than_random_cells_on_either_half(half):
    found = gain(by_halving(SMALL), cells(half))
    assert found.kept.low > 1.5
    assert found.retrained.low > 0
    assert found.epochs == 16 * 4 + 4 * 8


def test_the_default_rungs_gain_for_the_network_and_for_its_cell():
    found = gain(by_halving(DEFAULT_RUNGS), load_table())
    assert found.kept.low > 4
    assert found.retrained.low > 3
    assert found.epochs == 112


def test_the_scores_of_the_paper_gain_nothing_that_can_be_told_from_chance():
    table = load_table()
    for method in (
        at_random,
        best_by_score("maml condition", 16),
        best_by_ranks(("maml condition", "regions"), 16),
    ):
        found = gain(method, table)
        assert found.retrained.low < 0.5, "a training-free score that gained would be news"
