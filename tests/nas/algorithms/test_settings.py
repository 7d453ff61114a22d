"""The settings of a search: what they are by default, and what is refused."""

import dataclasses

import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.settings import SearchSettings
from tests.strategies import as_users_run_it


def test_a_search_has_these_settings_by_default():
    assert dataclasses.asdict(SearchSettings()) == {
        "seed": 0,
        "repeats": 3,
        "criteria": ("condition", "regions"),
        "ties": "min",
        "difference": "log",
        "inputs": "all",
        "estimator": "leave-one-out",
        "shrinkage": False,
        "stopping": False,
        "least_repeats": 4,
        "common_random_numbers": True,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ties": "max"}, "ties is 'max': expected one of"),
        ({"inputs": "three"}, "inputs is 'three': expected one of"),
        ({"least_repeats": 1}, "agreement takes at least 2"),
        ({"estimator": "gradient"}, "the gradient scores C_N alone"),
    ],
)
def test_unknown_values_are_refused(wrong, message):
    with as_users_run_it(), pytest.raises(ConfigurationError, match=message):
        SearchSettings(**wrong)
