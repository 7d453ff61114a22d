"""What a user's score may return, and how searches compare it."""

import math

import pytest
import torch

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.nas.scoring.own_score import OwnScore, own_scores

NETWORK = torch.nn.Linear(1, 1)


def of(value, largest_is_best=False):
    return OwnScore(lambda *_: value, largest_is_best).value(NETWORK, ())


@pytest.mark.parametrize("largest", [False, True])
def test_the_infinity_that_counts_as_worst_is_a_score_and_the_other_is_not(largest):
    worst = -math.inf if largest else math.inf
    assert of(worst, largest) == worst
    assert OwnScore(max, largest).ranked(worst) == math.inf
    assert OwnScore(max, largest).ranked(2.0) == (-2.0 if largest else 2.0)
    for wrong in (-worst, math.nan):
        with pytest.raises(ConfigurationError, match=f"expected a finite number, or {worst} for"):
            of(wrong, largest)


def test_one_real_number_is_a_score_and_nothing_else():
    for value in (2, 2.0, torch.tensor(2), torch.tensor([[2.0]])):
        assert of(value) == 2.0
    for wrong in (True, "2", None, 2j, torch.zeros(2), torch.tensor(2j)):
        with pytest.raises(ConfigurationError, match="expected one number"):
            of(wrong)


def test_errors_of_a_score_are_named_and_those_of_this_package_pass():
    def fails(network, _):
        raise ShapeError("of mine") if network is NETWORK else KeyError("lost")

    with pytest.raises(ShapeError, match="of mine"):
        OwnScore(fails).value(NETWORK, ())
    with pytest.raises(ConfigurationError, match="the score fails fails: KeyError: 'lost'"):
        OwnScore(fails).value(torch.nn.Identity(), ())


def test_networks_and_tasks_are_moved_and_scored_in_turn():
    networks, seen = [torch.nn.Linear(1, k) for k in (1, 2)], []
    score = OwnScore(
        lambda network, tasks: seen.append(tasks) or network.weight.is_meta + network.out_features, True
    )
    assert own_scores(score, networks, (), "meta") == [-2, -3]
    assert seen == [[], []]
