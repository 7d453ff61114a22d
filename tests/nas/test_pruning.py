import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.nas.pruning import difference, mean_difference, ranks


@given(
    a=st.floats(1, math.inf), b=st.floats(1, math.inf), kind=st.sampled_from(["log", "relative", "absolute"])
)
@settings(max_examples=60, deadline=None)
def test_differences_are_numbers_with_the_sign_of_the_improvement(a, b, kind):
    delta = difference(a, b, kind)
    assert not math.isnan(delta)
    assert delta >= 0 if a >= b else delta <= 0


def test_differences_have_the_printed_the_released_and_the_default_form():
    assert difference(6.0, 3.0, "absolute") == 3.0
    assert difference(6.0, 3.0, "relative") == 0.5
    assert difference(6.0, 3.0, "log") == pytest.approx(math.log(2))
    assert mean_difference([math.inf, -math.inf, 1.0]) == -math.inf
    assert mean_difference([math.inf, 1.0, 2.0]) == 1.5
    assert mean_difference([math.inf, math.inf]) == math.inf


def test_ranks_share_the_least_place_or_follow_the_index():
    values = [2.0, 1.0, 2.0, math.inf, -math.inf, 1.0]
    assert ranks(values, "min") == [4, 2, 4, 6, 1, 2]
    assert ranks(values, "index") == [4, 2, 5, 6, 1, 3]
