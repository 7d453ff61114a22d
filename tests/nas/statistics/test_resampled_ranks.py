"""Rank correlations of weighted cells equal those of the resampled lists themselves; Holm's adjustment by hand."""

import numpy as np
import pytest
from scipy import stats

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.nas.statistics import resampled_ranks
from mamltheory.nas.statistics.rank_correlation import kendall_tau, partial_spearman, spearman
from mamltheory.rng import numpy_generator


def drawn(count=17, draws=9):
    random = numpy_generator(0, "lists")
    x, y, z = random.integers(6, size=(3, count)).astype(float)
    return x, y, z, resampled_ranks.bootstrap_weights(count, draws, random)


@pytest.mark.parametrize("row", range(10))
def test_weights_stand_for_a_list_in_which_cells_are_repeated(row):
    x, y, z, weights = drawn()
    chosen = np.repeat(np.arange(len(x)), weights[row].astype(int))
    a, b, c = x[chosen], y[chosen], z[chosen]
    assert resampled_ranks.weighted_tau(x, y, weights)[row] == pytest.approx(float(kendall_tau(a, b)))
    assert resampled_ranks.weighted_spearman(x, y, weights)[row] == pytest.approx(float(spearman(a, b)))
    assert resampled_ranks.weighted_partial(x, y, z, weights)[row] == pytest.approx(
        float(partial_spearman(a, b, c))
    )


def test_an_infinite_score_ranks_last_and_a_constant_has_no_correlation():
    x, y, z, weights = drawn()
    x[3] = x[5] = -np.inf
    found = resampled_ranks.associate(x, y, z, weights)
    x[3] = x[5] = -1
    assert found == resampled_ranks.associate(x, y, z, weights)
    none = resampled_ranks.associate(np.zeros(17), y, z, weights)
    assert np.isnan(none.tau.value)
    assert np.isnan(none.partial.interval).all()
    assert none.tau_p == none.partial_p == 1


def test_p_values_tell_a_relation_from_none():
    random = numpy_generator(1, "lists")
    x, noise, z = random.standard_normal((3, 40))
    weights = resampled_ranks.bootstrap_weights(40, 200, random)
    found = resampled_ranks.associate(x, x + 0.5 * noise, z, weights)
    assert found.tau_p < 1e-6
    assert found.partial_p < 1e-6
    assert found.tau.interval[0] > 0.3
    none = resampled_ranks.associate(x, noise, z, weights)
    assert none.tau_p > 0.05
    assert none.partial.interval[0] < 0 < none.partial.interval[1]


@pytest.mark.parametrize("x", [[0, 0, 0, 0, 1], [0, 3, 1, 1, 2]])
def test_an_association_is_that_of_repeated_lists_by_scipy(x):
    """With one cell that differs, some lists are constant: their correlations do not count."""
    x, y, z = np.array([x, [1.0, 2, 0, 3, 4], [2.0, 0, 1, 4, 3]], float)
    random = numpy_generator(2, "lists")
    weights = resampled_ranks.bootstrap_weights(5, 20, random)
    np.testing.assert_array_equal(weights[0], np.ones(5))
    counts = numpy_generator(2, "lists").multinomial(5, [0.2] * 5, size=20)
    np.testing.assert_array_equal(weights[1:], counts)
    found = resampled_ranks.associate(x, y, z, weights)
    lists = [np.repeat(np.arange(5), each) for each in (np.ones(5, int), *counts)]
    for statistic, values in (
        (found.tau, [float(kendall_tau(x[rows], y[rows])) for rows in lists]),
        (found.rho, [float(spearman(x[rows], y[rows])) for rows in lists]),
        (found.partial, [float(partial_spearman(x[rows], y[rows], z[rows])) for rows in lists]),
    ):
        assert statistic.value == pytest.approx(values[0])
        assert statistic.interval == pytest.approx(tuple(np.nanquantile(values[1:], [0.025, 0.975])))
    assert found.tau_p == pytest.approx(stats.kendalltau(x, y).pvalue)
    t = found.partial.value / np.sqrt((1 - found.partial.value**2) / (5 - 3))
    assert found.partial_p == pytest.approx(2 * stats.t.sf(abs(t), 2))
    assert resampled_ranks.associate(y, y, z, weights).partial_p < 1e-12
    two = np.array([[0.1, 0.2]]), np.array([[0.4, 0.3]]), np.ones((1, 2))
    assert resampled_ranks._pearson(*two).tolist() == pytest.approx([-1])


def test_holm_multiplies_the_least_by_all_and_never_falls():
    adjusted = resampled_ranks.holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert adjusted == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9})
    assert resampled_ranks.holm({"a": 0.8, "b": 0.6}) == {"a": 1.0, "b": 1.0}


def test_too_few_cells_and_missing_values_are_refused():
    with pytest.raises(ConfigurationError, match="got 3 cells"):
        resampled_ranks.bootstrap_weights(3, 10, numpy_generator(0, "few"))
    assert resampled_ranks.bootstrap_weights(4, 1, numpy_generator(0, "few")).shape == (2, 4)
    _, y, z, weights = drawn()
    with pytest.raises(ValueRangeError, match="give −∞"):
        resampled_ranks.associate(np.full(17, np.nan), y, z, weights)
