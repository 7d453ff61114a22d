"""Statistics of scores against accuracies: known answers, slow twins, and intervals that cover."""

import inspect
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.nas.statistics import rank_correlation
from mamltheory.nas.statistics.rank_correlation import (
    Resamples,
    _tau_of_pool,
    cronbach_alpha,
    finite_scores,
    kendall_tau,
    noise_ceiling,
    partial_spearman,
    resamples,
    score_reliability,
    score_validity,
    score_values,
    spearman,
)
from mamltheory.rng import numpy_generator
from tests.reference import nas_reliability as slow


def draws(seed, purpose="validity"):
    return numpy_generator(seed, purpose)


def planted(seed, networks=60, pools=4, initialisations=3, between_pools=0.0, noise=0.0):
    """Scores = signal + what a pool adds to a network + noise of an initialisation; and the signal."""
    random = draws(seed, "planted")
    signal = random.standard_normal(networks)
    scores = np.tile(signal[:, None, None], (1, pools, initialisations))
    scores += between_pools * random.standard_normal((networks, pools, 1))
    return scores + noise * random.standard_normal(scores.shape), signal


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([3, 7, 1000]), count=st.integers(3, 30))
@settings(max_examples=25, deadline=None)
def test_rank_correlations_are_scipys_with_and_without_ties(seed, levels, count):
    random = draws(seed)
    x, y = (random.integers(levels, size=count).astype(float) for _ in range(2))
    for ours, theirs in ((kendall_tau, stats.kendalltau), (spearman, stats.spearmanr)):
        if len(set(x)) > 1 and len(set(y)) > 1:
            assert ours(x, y) == pytest.approx(theirs(x, y).statistic, abs=1e-12)
        else:
            assert math.isnan(ours(x, y))


def test_statistics_of_many_draws_are_those_of_each():
    x, y, z = draws(0).standard_normal((3, 5, 2, 9))
    for statistic, arrays in ((kendall_tau, (x, y)), (spearman, (x, y)), (partial_spearman, (x, y, z))):
        one_by_one = [[statistic(*(a[i, j] for a in arrays)) for j in range(2)] for i in range(5)]
        np.testing.assert_allclose(statistic(*arrays), one_by_one)


def test_scores_of_many_draws_are_those_of_each():
    components = [planted(seed, networks=6, between_pools=1.0, noise=1.0)[0] for seed in (0, 1)]
    drawn = resamples(6, 4, 10, draws(0))
    for chosen in (components, components[:1]):
        together = score_values(chosen, drawn)
        for i in range(10):
            means = []
            for scores in chosen:
                by_pool = scores.mean(2)
                moved = by_pool[:, drawn.pools[i]].mean(1) - by_pool.mean(1)
                means.append((by_pool.mean(1) + math.sqrt(4 / 3) * moved)[drawn.networks[i]])
            expected = means[0] if len(means) == 1 else sum(stats.rankdata(mean) for mean in means)
            np.testing.assert_allclose(together[i], expected)


def test_validity_is_that_of_a_loop_over_the_draws_by_scipy():
    random = draws(3)
    accuracy, size = random.standard_normal((2, 7))
    one, two = (accuracy[:, None, None] + random.standard_normal((7, 3, 2)) for _ in range(2))
    names = {"size": [size[:, None, None]], "one": [one], "both": [one, two]}
    found = score_validity(names, accuracy, size, draws(1), 15)
    drawn, every = resamples(7, 3, 15, draws(1)), np.arange(3)
    for name, components in names.items():
        value = slow.validity(components, accuracy, size, np.arange(7), every)
        both, alone = (
            [
                slow.validity(components, accuracy, size, networks, each)
                for networks, each in zip(drawn.networks, pools, strict=True)
            ]
            for pools in (drawn.pools, [every] * 15)
        )
        for k, statistic in enumerate(("tau", "rho", "partial", "ahead")):
            estimate = getattr(found[name], statistic)
            assert estimate.value == pytest.approx(value[k], rel=1e-9, abs=1e-12, nan_ok=True)
            for interval, each in ((estimate.interval, both), (estimate.networks_alone, alone)):
                numbers = np.array(each)[:, k]
                known = numbers[~np.isnan(numbers)]
                expected = np.quantile(known, [0.025, 0.975]) if len(known) else [math.nan] * 2
                np.testing.assert_allclose(interval, expected, rtol=1e-9, atol=1e-12)
    assert inspect.signature(score_validity).parameters["draws"].default == 1000


def test_pairs_that_are_compared_in_parts_give_the_same_correlations(monkeypatch):
    x, y = draws(0).standard_normal((2, 5, 2, 4))
    whole = kendall_tau(x, y)
    for pairs in (1, 13):  # of 6 pairs in each of ten rows
        monkeypatch.setattr(rank_correlation, "PAIRS_AT_ONCE", pairs)
        np.testing.assert_array_equal(kendall_tau(x, y), whole)
    assert np.isnan(kendall_tau(np.ones((2, 1)), np.ones((2, 1)))).all(), "one network has no pairs"
    two, back = np.array([0.1, 0.2]), np.array([0.4, 0.3])
    assert [kendall_tau(two, back), spearman(two, back)] == pytest.approx([-1, -1])


def test_every_network_and_every_pool_is_drawn_equally_often():
    drawn = resamples(5, 3, 2000, draws(0))
    for chosen, count in ((drawn.networks, 5), (drawn.pools, 3)):
        assert chosen.shape == (2000, count)
        shares = np.bincount(chosen.ravel(), minlength=count) / chosen.size
        np.testing.assert_allclose(shares, np.full(count, 1 / count), atol=0.03)  # five standard errors


def test_a_network_drawn_twice_counts_for_nothing_in_tau():
    x, y = (draws(seed).standard_normal(12) for seed in (0, 1))
    assert kendall_tau(np.tile(x, 2), np.tile(y, 2)) == pytest.approx(kendall_tau(x, y))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_partial_correlation_is_that_of_the_residuals_of_the_ranks(seed):
    x, y, z = draws(seed).standard_normal((3, 25))
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    design = np.stack([np.ones(25), ranks[2]], 1)
    left = [v - design @ np.linalg.lstsq(design, v, rcond=None)[0] for v in ranks[:2]]
    assert partial_spearman(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)


def test_a_score_that_follows_the_size_alone_adds_nothing_to_it():
    random = draws(0)
    size = random.standard_normal(400)
    accuracy = size + random.standard_normal(400)
    follower, other = size + 0.1 * random.standard_normal(400), accuracy - size
    assert abs(partial_spearman(follower, accuracy, size)) < 0.15 < spearman(follower, accuracy)
    assert partial_spearman(other, accuracy, size) > 0.9
    assert math.isnan(partial_spearman(np.exp(size), accuracy, size))


def test_alpha_is_the_share_of_variance_that_is_signal():
    """Items of signal variance 1 and noise variance 2: the mean of 4 has reliability 1/(1 + 2/4)."""
    random = draws(0)
    signal = random.standard_normal((4000, 1))
    items = signal + math.sqrt(2) * random.standard_normal((4000, 4))
    fresh = signal + math.sqrt(2) * random.standard_normal((4000, 4))
    assert cronbach_alpha(items) == pytest.approx(2 / 3, abs=0.03)
    assert np.corrcoef(items.mean(1), fresh.mean(1))[0, 1] == pytest.approx(cronbach_alpha(items), abs=0.03)
    assert cronbach_alpha(np.tile(signal, (1, 3))) == pytest.approx(1)


def test_cronbachs_alpha_of_three_small_rows_is_that_by_hand():
    """Variances .01 and .04 of the items, .07 of their sum: α = 2 (1 − 5/7)."""
    assert math.isnan(cronbach_alpha(np.array([[1.0, 2], [2, 1]])))
    assert cronbach_alpha(np.array([[1, 2], [3, 4], [2, 6]]) / 10) == pytest.approx(4 / 7, rel=1e-12)


def test_reliability_over_pools_sees_what_reliability_over_initialisations_cannot():
    scores = planted(0, networks=2000, between_pools=1.0, noise=1.0)[0]
    found = score_reliability(scores)
    assert found.pools == pytest.approx(cronbach_alpha(scores.sum(2)))
    assert found.initialisations == pytest.approx(1 - 1 / 7, abs=0.02)  # (1 + 1)/(1 + 1 + 1/3)
    assert found.pools == pytest.approx(3 / 4, abs=0.03)  # 1/(1 + (1 + 1/3)/4)
    assert score_reliability(scores[:, :, :2]).initialisations == pytest.approx(1 - 1 / 5, abs=0.03)
    assert math.isnan(score_reliability(planted(0, pools=1)[0]).pools)
    assert math.isnan(score_reliability(planted(0, initialisations=1)[0]).initialisations)


def test_the_noise_ceiling_finds_the_planted_noise_whatever_both_trainings_share():
    random = draws(0)
    truth = random.standard_normal(3000)
    first, again = (truth + 0.5 * random.standard_normal(3000) for _ in range(2))
    rows = np.arange(1500)
    found = noise_ceiling(first, again[rows] + 7.0, rows)
    assert found.pairs == 1500
    assert found.deviation == pytest.approx(0.5, abs=0.02)
    assert found.reliability == pytest.approx(0.8, abs=0.02)
    assert found.pearson == pytest.approx(0.8, abs=0.02)
    assert found.highest_rho == pytest.approx(np.corrcoef(first, truth)[0, 1], abs=0.01)
    assert found.highest_tau == pytest.approx(kendall_tau(first[:800], truth[:800]), abs=0.02)


def test_few_pairs_leave_the_ceiling_open_and_many_close_it():
    random, widths = draws(2), []
    truth = random.standard_normal(3000)
    first, again = (truth + 0.5 * random.standard_normal(3000) for _ in range(2))
    for pairs in (8, 2000):
        rows = np.arange(pairs)
        found = noise_ceiling(first, again[rows], rows)
        low, high = found.highest_tau_interval
        assert low <= found.highest_tau <= high
        widths.append(high - low)
    assert widths[0] > 0.2 > 0.02 > widths[1]


def test_a_perfectly_repeatable_accuracy_has_no_ceiling_below_one_and_noise_has_one_of_zero():
    x, y = draws(0).standard_normal((2, 40))
    assert noise_ceiling(x, x[:5], np.arange(5)).highest_tau == pytest.approx(1)
    assert noise_ceiling(x, 10 * y[:20], np.arange(20)).highest_tau == 0


def test_singular_kernels_rank_last_and_change_no_other_score():
    scores = planted(0, networks=5)[0]
    broken = scores.copy()
    broken[2, 1, 0] = -math.inf
    repaired = finite_scores(broken)
    assert repaired[2, 1, 0] == np.delete(scores[:, 1, 0], 2).min()
    broken[2, 1, 0] = repaired[2, 1, 0]
    np.testing.assert_array_equal(repaired, broken)


def test_the_score_of_the_paper_is_a_sum_of_ranks():
    a, b = (planted(seed, networks=6, between_pools=1.0, noise=1.0)[0] for seed in (0, 1))
    expected = stats.rankdata(a.mean((1, 2))) + stats.rankdata(b.mean((1, 2)))
    np.testing.assert_array_equal(score_values([a, b]), expected)
    np.testing.assert_allclose(score_values([a, b * 1000]), expected)
    np.testing.assert_allclose(score_values([a]), a.mean((1, 2)))


def test_draws_of_pools_spread_as_the_mean_of_fresh_pools_does():
    """Without widening, draws of P = 4 pools have 3/4 of the variance of a mean of 4 pools."""
    scores = planted(0, networks=300, pools=4, between_pools=1.0)[0]
    drawn = resamples(300, 4, 400, draws(0))
    held = np.broadcast_to(np.arange(300), (400, 300))
    values = score_values([scores], Resamples(held, drawn.pools))
    assert values.var(0).mean() == pytest.approx(1 / 4, rel=0.1)


def test_intervals_over_networks_cover_the_true_tau_at_their_level():
    """For normal pairs of correlation 0.5, tau is 2/π · arcsin(0.5) = 1/3."""
    inside = 0
    for seed in range(25):
        scores, signal = planted(seed, networks=30, pools=1, initialisations=1)
        accuracy = 0.5 * signal + math.sqrt(0.75) * draws(seed, "rest").standard_normal(30)
        found = score_validity({"score": [scores]}, accuracy, accuracy, draws(seed), 100)["score"].tau
        inside += found.networks_alone[0] <= 1 / 3 <= found.networks_alone[1]
    assert inside >= 20  # 95 % of 25 is 23.8, with a standard deviation of 1.1


def test_intervals_over_pools_too_are_wider_where_pools_differ_and_the_same_where_they_do_not():
    accuracy = planted(0)[1] + draws(1).standard_normal(60)

    def width(interval):
        return interval[1] - interval[0]

    ratios = []
    for between in (0.0, 2.0):
        found = score_validity(
            {"s": [planted(0, between_pools=between)[0]]}, accuracy, accuracy, draws(0), 150
        )
        ratios.append(width(found["s"].rho.interval) / width(found["s"].rho.networks_alone))
        taus = found["s"].tau_by_pool
        assert len(taus) == 4
        assert (max(taus) > min(taus) + 0.05) == (between > 0)
    assert ratios[0] == pytest.approx(1)
    assert ratios[1] > 1.2


def test_a_score_equal_to_the_size_is_exactly_as_far_ahead_as_nothing():
    random = draws(0)
    size = random.standard_normal(30)
    accuracy = size + random.standard_normal(30)
    same, better = (values[:, None, None] for values in (size, accuracy + 0.1 * size))
    found = score_validity({"size": [same], "better": [better]}, accuracy, size, draws(1), 100)
    assert found["size"].ahead.value == 0
    assert found["size"].ahead.interval == (0, 0)
    assert math.isnan(found["size"].partial.value)
    assert found["better"].ahead.interval[0] > 0
    assert found["better"].partial.interval[0] > 0.5


def test_what_cannot_be_ranked_is_refused():
    ok = np.arange(4.0)
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        spearman(ok, np.array([0, 1, 2, math.nan]))
    with pytest.raises(ShapeError, match="networks × items"):
        cronbach_alpha(ok[:, None])
    for refused in (
        lambda: cronbach_alpha(np.array([[1, 2], [math.nan, 4]])),
        lambda: noise_ceiling(ok, np.array([1, 2, math.inf]), np.arange(3)),
    ):
        with pytest.raises(ValueRangeError, match="NaN or infinite"):
            refused()
    with pytest.raises(ValueRangeError, match="accuracies"):
        noise_ceiling(ok, np.array([1, 2, math.inf]), np.arange(3))
    with pytest.raises(ShapeError, match="at least 3 pairs"):
        noise_ceiling(ok, ok[:2], np.arange(2))
    with pytest.raises(ConfigurationError, match="at least 3"):
        resamples(2, 1, 10, draws(0))
    with pytest.raises(ValueRangeError, match=r"NaN or \+∞"):
        finite_scores(np.full((3, 1, 1), math.nan))
    with pytest.raises(ValueRangeError, match="without repeated images"):
        finite_scores(np.full((3, 1, 1), -math.inf))


def test_the_noise_ceiling_of_three_pairs_is_that_by_hand():
    """Differences −1, 0 and 1 have variance 1, of which half is noise; accuracies 1, 2 and 6 have variance 7."""
    accuracy = np.array([1.0, 2.0, 6.0])
    found = noise_ceiling(accuracy, np.array([0.0, 2.0, 7.0]), np.arange(3))
    assert found.deviation == pytest.approx(math.sqrt(0.5), rel=1e-12)
    assert found.reliability == pytest.approx(1 - 0.5 / 7, rel=1e-12)
    assert noise_ceiling(np.full(4, 2.0), accuracy, np.arange(3)).reliability == 0.0


def test_the_noise_ceiling_of_some_networks_is_that_by_scipy():
    random = draws(8)
    accuracy = random.standard_normal(9) / 10
    rows = np.array([7, 2, 5, 0, 4, 8])
    again = accuracy[rows] + 0.03 * random.standard_normal(6)
    found = noise_ceiling(accuracy, again, rows)
    noise = np.var(again - accuracy[rows], ddof=1) / 2
    shares = [
        1 - noise * scale / np.var(accuracy, ddof=1)
        for scale in (1, 5 / stats.chi2.ppf(0.025, 5), 5 / stats.chi2.ppf(0.975, 5))
    ]
    assert min(shares) > 0
    middle, low, high = (2 / math.pi * math.asin(math.sqrt(share)) for share in shares)
    assert found.highest_rho == pytest.approx(math.sqrt(shares[0]), rel=1e-12)
    assert (found.highest_tau, *found.highest_tau_interval) == pytest.approx((middle, low, high), rel=1e-9)
    assert found.tau == pytest.approx(stats.kendalltau(accuracy[rows], again).statistic)
    assert found.pearson == pytest.approx(np.corrcoef(accuracy[rows], again)[0, 1])
    assert found.pairs == 6


def test_the_rank_correlation_of_a_pool_is_that_of_its_scores_alone():
    scores = np.array([[[1.0], [3.0]], [[2.0], [2.0]], [[3.0], [1.0]]])
    accuracy = np.array([0.1, 0.2, 0.3])
    assert [_tau_of_pool([scores], accuracy, pool) for pool in range(2)] == [1.0, -1.0]
    assert _tau_of_pool([scores[:, :1]], accuracy, 1) == 1.0  # a score without pools
