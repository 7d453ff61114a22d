"""Repeats that other processes computed in advance, and that a round did not need, leave no trace in it."""

import math

from mamltheory.nas.algorithms.algorithm1 import prune, record_scores
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.scoring.score import Score
from mamltheory.rng import numpy_generator
from tests.reference.nas_toy import repeat_by_repeat

RULES = SearchSettings(repeats=8, criteria=("condition",), estimator="gradient", stopping=True)


@repeat_by_repeat
def scored(candidates, round_index, repeat):
    """Operations differ clearly; in later repeats one operator cannot be scored."""
    random = numpy_generator(0, "made-up scores", round_index, repeat)
    found = {None: Score(1.0, 1.0)}
    for operator in candidates.operators():
        size = 3.0 * OPERATIONS.index(operator.operation) + 0.1 * random.normal()
        found[operator] = Score(math.exp(-size), 1.0)
    if repeat >= 4:
        found[candidates.operators()[0]] = Score(math.inf, 1.0)
    return found


def after_repeats(count):
    state = SearchState()
    for repeat in range(count):
        jobs = Round.of(state, RULES).jobs(repeat)
        state = record_scores(state, scored(state.candidates, jobs))
    return prune(Round.of(state, RULES))


def test_a_round_does_not_depend_on_repeats_that_were_computed_in_advance():
    alone, ahead = after_repeats(4), after_repeats(7)
    assert alone.reports[0].repeats == 4
    assert alone.reports[0].failures == {}
    assert ahead == alone
