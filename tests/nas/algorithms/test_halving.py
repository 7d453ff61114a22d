"""Successive halving keeps what sorting keeps, and rungs that cannot be are refused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.halving import (
    DEFAULT_RUNGS,
    Measured,
    Rung,
    check_rungs,
    epochs_of,
    ranked,
    successive_halving,
)
from tests.reference.nas_halving import halving_survivors
from tests.strategies import as_users_run_it


def halve(measures, count, rungs):
    """(candidates of every rung, the calls of the measure)."""
    calls = []

    def measure(alive, rung):
        calls.append((list(alive), rung))
        return [measures[i, rung.epochs] for i in alive]

    standings = successive_halving(count, rungs, measure)
    assert [rung for rung, _ in standings] == list(rungs)
    return [alive for _, alive in standings], calls


few = st.sampled_from([0.1, 0.2, 0.3, math.nan, math.inf])  # few values, so that many candidates are equal
measured = st.builds(Measured, few, few, st.booleans())


@given(data=st.data(), by=st.lists(st.sampled_from(["accuracy", "loss"]), min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_every_rung_keeps_what_sorting_keeps(data, by):
    count = data.draw(st.integers(6, 9))
    rungs = (Rung(6, 1, by[0]), Rung(3, 2, by[1]), Rung(2, 5, by[2]))
    measures = {(i, rung.epochs): data.draw(measured) for i in range(count) for rung in rungs}
    found, calls = halve(measures, count, rungs)
    assert found == halving_survivors(measures, count, rungs)
    assert [alive for alive, _ in calls] == [list(range(6)), found[0][:3], found[1][:2]]


def test_planted_candidates_survive_and_the_ranking_of_the_rung_decides():
    # Candidate 3 is the most accurate early and 5 has the least loss late; 0 is the best of neither.
    early = [0.3, 0.2, 0.1, 0.9, 0.4, 0.8]
    late = [0.5, 0.1, 0.2, 0.6, 0.7, 0.05]
    measures = {(i, 2): Measured(9.0 - i, a) for i, a in enumerate(early)}
    measures |= {(i, 4): Measured(loss, 0.5 - i / 100) for i, loss in enumerate(late)}
    by_loss, _ = halve(measures, 6, (Rung(6, 2), Rung(3, 4, "loss")))
    assert by_loss == [[3, 5, 4, 0, 1, 2], [5, 3, 4]]
    by_accuracy, _ = halve(measures, 6, (Rung(6, 2), Rung(3, 4)))
    assert by_accuracy[1] == [3, 4, 5]
    by_loss_first, _ = halve(measures, 6, (Rung(6, 2, "loss"), Rung(2, 4)))
    assert by_loss_first == [[5, 4, 3, 2, 1, 0], [4, 5]]


def test_diverged_candidates_are_last_and_equal_ones_keep_their_order():
    diverged, nothing = Measured(0.0, 1.0, True), Measured(math.nan, math.nan)
    same = Measured(0.5, 0.5)
    candidates = [diverged, same, nothing, same, Measured(0.4, 0.6), same]
    for by in ("accuracy", "loss"):
        assert ranked(candidates, by) == [4, 1, 3, 5, 0, 2]
    assert diverged.merit("loss") == diverged.merit("accuracy") == -math.inf
    assert Measured(math.inf, 0.7).merit("loss") == -math.inf
    assert Measured(math.inf, 0.7).merit("accuracy") == 0.7


def test_further_candidates_than_the_first_rung_takes_are_not_trained():
    measures = {(i, 1): Measured(1.0, i / 10) for i in range(5)}
    found, calls = halve(measures, 5, (Rung(3, 1),))
    assert found == [[2, 1, 0]]
    assert calls == [([0, 1, 2], Rung(3, 1))]


def test_the_default_costs_nine_trainings_and_a_third():
    assert epochs_of(DEFAULT_RUNGS) == 112 == 32 * 2 + 8 * 2 + 4 * 8
    assert check_rungs(DEFAULT_RUNGS) == DEFAULT_RUNGS
    assert [rung.by for rung in DEFAULT_RUNGS] == ["accuracy", "accuracy", "loss"]
    assert epochs_of([Rung(5, 7)]) == 35


@pytest.mark.parametrize(
    ("rungs", "message"),
    [
        ([], "there is no rung: give at least one"),
        ([Rung(4, 1), Rung(4, 2)], "4 candidates at epoch 2 follows one of 4 .* expected fewer candidates"),
        ([Rung(4, 1), Rung(8, 2)], "8 candidates at epoch 2 follows one of 4"),
        ([Rung(4, 2), Rung(2, 2)], "2 candidates at epoch 2 follows one of 4 at epoch 2: .* more epochs"),
        ([Rung(4, 1), Rung(3, 2), Rung(2, 1)], "2 candidates at epoch 1 follows one of 3"),
    ],
)
def test_rungs_must_fall_in_candidates_and_grow_in_epochs(rungs, message):
    with pytest.raises(ConfigurationError, match=message) as refused:
        successive_halving(9, rungs, lambda *_: pytest.fail("nothing may be trained"))
    assert "\n" not in str(refused.value)


def test_a_first_rung_that_takes_more_than_there_are_is_refused():
    with pytest.raises(ConfigurationError, match="takes 32 candidates and there are 31: draw more, or lower"):
        successive_halving(31, DEFAULT_RUNGS, lambda *_: pytest.fail("nothing may be trained"))


@pytest.mark.parametrize("wrong", [(0, 1, "loss"), (1, 0, "loss"), (-2, 1, "accuracy"), (1, 1, "size")])
def test_impossible_rungs_are_refused(wrong):
    with (
        as_users_run_it(),
        pytest.raises(ConfigurationError, match="expected numbers from 1 up, and accuracy or loss"),
    ):
        Rung(*wrong)
