"""What can be gained by choosing: against least squares, and against simulations whose deviations are known."""

import itertools

import numpy as np
import pytest
from scipy import integrate, stats

from mamltheory.errors import ShapeError
from mamltheory.fewshot.statistics import sign_flip_p_value
from mamltheory.nas.algorithms.halving import _expected_maximum, headroom
from mamltheory.rng import numpy_generator
from tests.reference.nas_headroom import f_test_of_networks


def simulated(index, networks, tasks, deviation, rest=0.1):
    """(accuracies, true accuracies of the networks): effects of networks and tasks and a rest, all normal."""
    random = numpy_generator(0, "headroom", index)
    true = 0.6 + deviation * random.standard_normal(networks)
    noise = rest * random.standard_normal((networks, tasks))
    return true[:, None] + 0.15 * random.standard_normal(tasks) + noise, true


@pytest.mark.parametrize("deviation", [0.0, 0.02, 0.2])
def test_the_deviation_is_that_of_least_squares_with_and_without_networks(deviation):
    accuracies, _ = simulated(0, 5, 9, deviation)
    found = headroom(accuracies)
    ratio = f_test_of_networks(accuracies)[0]
    assert (found.deviation > 0) == (ratio > 1)
    within = (
        (accuracies - accuracies.mean(1, keepdims=True) - accuracies.mean(0) + accuracies.mean()) ** 2
    ).sum()
    assert found.deviation**2 * 9 == pytest.approx(max(0, ratio - 1) * within / (4 * 8), abs=1e-12)


@pytest.mark.parametrize("deviation", [0.0, 0.1])
def test_the_p_value_is_the_share_of_orders_within_units_with_as_large_a_ratio_of_variances(deviation):
    accuracies, _ = simulated(1, 3, 4, deviation)
    ratio = f_test_of_networks(accuracies)[0]
    orders = itertools.product(itertools.permutations(range(3)), repeat=3)
    ratios = [
        f_test_of_networks(
            np.stack([accuracies[rows, unit] for unit, rows in enumerate((*each, (0, 1, 2)))], 1)
        )[0]
        for each in orders
    ]
    exact = np.mean(
        np.array(ratios) >= ratio * (1 - 1e-9)
    )  # all 216 orders, but for a common one of all units
    assert headroom(accuracies).p_value == pytest.approx(exact, abs=0.03), "drawn orders, for there are 1296"
    pair = accuracies[:2, :3]
    assert headroom(pair).p_value == pytest.approx(sign_flip_p_value(pair[0] - pair[1]), abs=1e-12)


def test_a_known_deviation_is_found_and_the_most_is_the_lead_of_the_best():
    runs = [simulated(i, 30, 60, 0.04) for i in range(60)]
    found = [headroom(accuracies) for accuracies, _ in runs]
    assert np.mean([each.deviation**2 for each in found]) ** 0.5 == pytest.approx(0.04, rel=0.06)
    lead = np.mean([true.max() - true.mean() for _, true in runs])
    assert np.mean([each.most for each in found]) == pytest.approx(lead, rel=0.08)
    assert {each.p_value for each in found} == {1e-3}


def test_p_values_are_uniform_where_networks_are_equal():
    found = [headroom(simulated(i, 6, 10, 0.0)[0]) for i in range(200)]
    assert stats.kstest([each.p_value for each in found], "uniform").pvalue > 0.01
    assert any(each.deviation == each.most == 0 for each in found)


def test_p_values_are_small_where_networks_differ_by_as_much_as_the_noise_of_their_means():
    found = [headroom(simulated(i, 15, 40, 0.016)[0]).p_value for i in range(30)]
    assert np.mean(np.array(found) < 0.05) > 0.4  # the F test finds 0.61 of them


def test_among_more_networks_more_can_be_gained():
    found = [headroom(simulated(1, n, 40, 0.2)[0]) for n in (2, 4, 8, 32, 128)]
    leads = [each.most / each.deviation for each in found]
    assert leads == sorted(leads)
    assert leads[0] == pytest.approx(np.pi**-0.5, abs=1e-4)


@pytest.mark.parametrize("same_tasks", [True, False])
def test_networks_that_are_equal_on_every_task_have_no_headroom_whatever_the_rounding(same_tasks):
    for index in range(50):
        random = numpy_generator(index, "equal networks")
        row = np.full(35, random.random()) if same_tasks else random.random(35)
        found = headroom(np.tile(row, (20, 1)))
        assert (found.deviation, found.p_value, found.most) == (0, 1, 0)
        assert found.luck == 0


def test_networks_that_differ_by_a_constant_on_every_unit_have_the_least_p_value():
    random = numpy_generator(0, "additive")
    found = headroom(random.random(30) + 0.1 * np.arange(4)[:, None])
    assert found.p_value == 1e-3
    assert found.deviation == pytest.approx(0.1 * np.std(np.arange(4), ddof=1))
    tiny = headroom(1e-9 * np.arange(4)[:, None] + np.full((4, 30), 0.5))  # small, and far above the rounding
    assert tiny.p_value == 1e-3
    assert tiny.deviation == pytest.approx(1e-9 * np.arange(4).std(ddof=1), rel=1e-5)


def test_the_expected_maximum_is_that_of_normal_numbers():
    for count in (1, 2, 5, 32, 200):
        exact, _ = integrate.quad(
            lambda x, n=count: x * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1), -12, 12
        )
        assert _expected_maximum(count) == pytest.approx(exact, abs=1e-4)
    assert _expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert _expected_maximum(2) == pytest.approx(np.pi**-0.5, abs=1e-5)
    drawn = numpy_generator(0, "maxima").standard_normal((20_000, 32)).max(1)
    assert _expected_maximum(32) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 20_000**0.5)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_one_network_or_one_task_says_nothing(shape):
    with pytest.raises(ShapeError, match="expected at least two of each"):
        headroom(np.zeros(shape))
