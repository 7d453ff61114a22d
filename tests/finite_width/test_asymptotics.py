import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ShapeError, ValueRangeError
from mamltheory.finite_width.asymptotics import fit_power_law, root_mean_square
from mamltheory.rng import numpy_generator
from tests.strategies import as_users_run_it

WIDTHS = [64, 128, 256, 512, 1024]


def scattered(slope, seeds, index, sigma=0.35):
    noise = numpy_generator(0, "scatter", index).standard_normal((len(WIDTHS), seeds))
    return 3 * np.power(np.array(WIDTHS, float), slope)[:, None] * np.exp(sigma * noise)


@settings(max_examples=40)
@given(st.floats(-3, 3), st.floats(1e-3, 1e3))
def test_an_exact_power_law_is_recovered_exactly(slope, prefactor):
    law = fit_power_law(WIDTHS, prefactor * np.array(WIDTHS, float) ** slope)
    assert law.slope == pytest.approx(slope, abs=1e-12)
    assert law.prefactor == pytest.approx(prefactor, rel=1e-10)
    assert law.high - law.low < 1e-6
    assert law([100.0]) == pytest.approx(prefactor * 100.0**slope, rel=1e-10)


@pytest.mark.parametrize("seeds", [1, 8])
def test_the_interval_covers_the_slope_in_95_percent_of_all_experiments(seeds):
    """2000 experiments: the standard error of the coverage is 0.5 %, the window is 5 of them."""
    laws = [fit_power_law(WIDTHS, scattered(-0.5, seeds, i)) for i in range(2000)]
    covered = np.mean([law.low <= -0.5 <= law.high for law in laws])
    assert abs(covered - 0.95) < 0.025
    assert np.mean([law.slope for law in laws]) == pytest.approx(-0.5, abs=0.03)
    narrow = np.mean([law.high - law.low for law in laws])
    assert narrow < 2.0 / math.sqrt(seeds)


def test_the_slope_does_not_depend_on_the_order_of_widths_or_seeds():
    values = scattered(-1.0, 6, 0)
    law, turned = fit_power_law(WIDTHS, values), fit_power_law(WIDTHS[::-1], values[::-1, ::-1])
    assert turned.slope == pytest.approx(law.slope, rel=1e-12)
    assert turned.low == pytest.approx(law.low, rel=1e-12)


def test_the_root_mean_square_is_taken_over_the_seeds():
    assert root_mean_square(np.array([[3.0, 4.0], [0.0, 2.0]])).tolist() == pytest.approx([12.5**0.5, 2**0.5])


@pytest.mark.parametrize(
    ("widths", "values", "error", "message"),
    [
        ([64, 128], np.ones(2), ShapeError, "3 values"),
        ([64, 64, 64], np.ones(3), ShapeError, "2 widths"),
        ([64, 128, 256], np.ones((2, 3)), ShapeError, "widths × seeds"),
        ([64, 128, 256, 512], np.ones((2, 4)), ShapeError, "widths × seeds"),
        ([64, 128], np.ones((2, 2, 2)), ShapeError, "widths × seeds"),
        ([64, 128, 256], np.array([1.0, 0.0, 1.0]), ValueRangeError, "positive"),
        ([64, 128, 256], np.array([1.0, -1.0, 1.0]), ValueRangeError, "positive"),
        ([64, 128, 256], np.array([1.0, math.nan, 1.0]), ValueRangeError, "finite"),
        ([64, 128, 256], np.array([1.0, math.inf, 1.0]), ValueRangeError, "finite"),
        ([0, 128, 256], np.ones(3), ValueRangeError, "widths"),
        ([-64, 128, 256], np.ones(3), ValueRangeError, "widths"),
    ],
)
def test_what_has_no_slope_is_refused(widths, values, error, message):
    with as_users_run_it(), pytest.raises(error, match=message):
        fit_power_law(widths, values)
