"""Curves of reliability: predicted and measured agree, and their intervals have the right width."""

import inspect
import math

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.nas.statistics.reliability import (
    half_agreement,
    mean_reliability,
    permutation_null,
    repeats_for,
    single_repeat_reliability,
    standardised,
)
from mamltheory.nas.statistics.repeatability import (
    _without_noise,
    corrected_correlation,
    half_correlations,
    reliability_difference,
    reliability_draws,
    repeat_correlation,
    repeatability,
)
from mamltheory.rng import numpy_generator

EDGES = [edge for edge in range(18) for _ in range(7)]


def draws(seed, purpose="stability"):
    return numpy_generator(seed, purpose)


def planted(seed, repeats, share):
    """Scores of reliability ``share``, repeats of different scale, edges of different level."""
    random = draws(seed, "planted")
    scores = np.sqrt(share) * random.standard_normal((126, 1))
    scores = scores + np.sqrt(1 - share) * random.standard_normal((126, repeats))
    scores = scores + np.repeat(random.standard_normal((18, repeats)), 7, 0)
    return scores * np.exp(random.standard_normal(repeats))


def test_what_independent_halves_show_is_what_spearman_and_brown_predict():
    found = [half_correlations(planted(seed, 12, 0.3), EDGES, draws(seed), 40) for seed in range(6)]
    assert set(found[0]) == {1, 2, 3, 4, 5, 6}
    for count in (1, 3, 6):
        mean = np.mean([each[count] for each in found])
        assert mean == pytest.approx(mean_reliability(0.3, count), abs=0.04)


def test_correlations_of_halves_are_those_of_each_draw():
    scores = planted(0, 5, 0.4)
    random = draws(3)
    expected = []
    for _ in range(4):
        order = random.permutation(5)
        centred = scores - scores.reshape(18, 7, 5).mean(1).repeat(7, 0)
        centred = centred / centred.std(0)
        parts = centred[:, order[:2]].mean(1), centred[:, order[2:4]].mean(1)
        expected.append(np.corrcoef(*parts)[0, 1])
    assert half_correlations(scores, EDGES, draws(3), 4)[2] == pytest.approx(np.mean(expected))


def test_the_spread_of_half_samples_is_the_standard_error_of_the_reliability():
    values, errors = [], []
    for seed in range(20):
        scores = planted(seed, 10, 0.3)
        values.append(single_repeat_reliability(scores, EDGES))
        errors.append(reliability_draws(scores, EDGES, draws(seed), 20).std())
    # Half the repeats are also noisier than all of them: the error is stated rather too wide.
    assert 0.8 < np.mean(errors) / np.std(values) < 2.2


def test_a_score_of_noise_is_inside_its_null_and_one_with_signal_is_outside():
    noise, signal = (repeatability(planted(1, 8, share), EDGES, 2.0, draws(0), 30) for share in (0.0, 0.5))
    assert noise.interval[0] < 0 < noise.interval[1]
    assert signal.null[0] < 0 < signal.null[1] < signal.interval[0]
    assert signal.repeats == 8
    assert signal.curve(np.array([1.0, signal.for_90])).tolist() == pytest.approx([signal.single, 0.9])
    assert noise.agreement.chance == pytest.approx(1 / 7)


def test_the_numbers_of_a_score_are_those_of_their_functions_one_after_the_other():
    scores, random = planted(4, 5, 0.4), draws(6)
    found = repeatability(scores, EDGES, 2.5, draws(6), 8)
    single = single_repeat_reliability(scores, EDGES)
    error = np.std(reliability_draws(scores, EDGES, random, 8))
    assert found.interval == pytest.approx((single - 1.96 * error, single + 1.96 * error))
    assert found.null == permutation_null(scores, EDGES, random, 8)
    assert found.halves == half_correlations(scores, EDGES, random, 8)
    assert found.agreement == half_agreement(scores, EDGES, random, draws=8)
    assert (found.repeats, found.single, found.for_90) == (5, single, repeats_for(single))
    assert found.seconds == 2.5


def test_draws_are_halves_of_the_repeats_on_edges_drawn_with_replacement():
    edges = list("abbacaccb")
    members = [[0, 3, 5], [1, 2, 8], [4, 6, 7]]
    pair = draws(0).standard_normal((2, 9, 5)) + draws(1).standard_normal((9, 1))
    samples, random = [], np.random.default_rng(3)
    for _ in range(6):
        half, chosen = random.permutation(5)[:2], random.integers(3, size=3)
        rows = [row for place in chosen for row in members[place]]
        names = [k for k in range(3) for _ in range(3)]
        samples.append([(each[rows][:, half], names) for each in pair])
    by_hand = np.array([[single_repeat_reliability(*each) for each in sample] for sample in samples])
    for each, expected in zip(pair, by_hand.T, strict=True):
        np.testing.assert_allclose(reliability_draws(each, edges, np.random.default_rng(3), 6), expected)
    first, second = (single_repeat_reliability(each, edges) for each in pair)
    apart = (by_hand[:, 0] - by_hand[:, 1]).std()
    found = reliability_difference(*pair, edges, 3, 6)
    assert found.value == pytest.approx(first - second)
    assert found.interval == pytest.approx((first - second - 1.96 * apart, first - second + 1.96 * apart))
    found = corrected_correlation(*pair, edges, np.random.default_rng(3), 6)
    apart = np.nanstd([_without_noise(a, b, names) for (a, names), (b, _) in samples])
    assert found.interval == pytest.approx((found.value - 1.96 * apart, found.value + 1.96 * apart))


def test_a_repeat_without_differences_correlates_with_nothing():
    pair = np.stack([planted(0, 4, 0.5), planted(1, 4, 0.5)])
    pair[0, :, 2] = 5.0
    values = [standardised(each, EDGES) for each in pair]
    each = [np.corrcoef(values[0][:, k], values[1][:, k])[0, 1] for k in (0, 1, 3)]
    assert repeat_correlation(*pair, EDGES) == pytest.approx(sum(each) / 4)
    assert half_correlations(np.ones((126, 2)), EDGES, draws(0), 3) == {1: 0.0}
    one, other = draws(0).standard_normal((2, 2, 40))  # of two operators every correlation is 1 or −1
    alike = (one[0] > one[1]) == (other[0] > other[1])
    assert repeat_correlation(one, other, ["a", "a"]) == pytest.approx(2 * alike.mean() - 1)
    assert half_correlations(np.array([[0.0, 2, 1, 4], [1, 0, 0, 0]]), ["a", "a"], draws(0), 1)[1] in (-1, 1)


def test_all_statistics_take_two_hundred_draws_by_default():
    for each in (repeatability, half_correlations, reliability_difference, corrected_correlation):
        assert inspect.signature(each).parameters["draws"].default == 200


def test_a_difference_on_common_repeats_cancels_what_they_share():
    scores = planted(0, 8, 0.3)
    same = reliability_difference(scores, 3 * scores, EDGES, 0, 20)
    assert same.value == pytest.approx(0)
    assert same.interval == pytest.approx((0, 0), abs=1e-9)
    signal = draws(5).standard_normal((126, 1))
    better = reliability_difference(scores / scores.std(0) + 2 * signal, scores, EDGES, 0, 20)
    assert better.interval[0] > 0
    assert repeat_correlation(scores, 3 * scores, EDGES) == pytest.approx(1)
    assert abs(repeat_correlation(scores, planted(1, 8, 0.0), EDGES)) < 0.1


def test_a_correlation_corrected_for_noise_is_that_of_the_signals():
    found = []
    for seed in range(6):
        random = draws(seed, "signals")
        common, others = random.standard_normal((126, 1)), random.standard_normal((126, 1))
        signals = (common, 0.6 * common + 0.8 * others)
        shared = random.standard_normal((126, 16))  # noise of the draws that both scores see
        pair = [signal + shared + random.standard_normal((126, 16)) for signal in signals]
        found.append(corrected_correlation(*pair, EDGES, draws(seed), 40))
    assert np.mean([each.value for each in found]) == pytest.approx(0.6, abs=0.08)
    assert sum(low < 0.6 < high for low, high in (each.interval for each in found)) >= 4
    values = standardised(pair[0], EDGES), standardised(pair[1], EDGES)

    def slowly(a, b):
        return sum(float(a[:, i] @ b[:, j]) for i in range(16) for j in range(16) if i != j)

    expected = slowly(*values) / math.sqrt(slowly(values[0], values[0]) * slowly(values[1], values[1]))
    assert found[-1].value == pytest.approx(expected)
    assert corrected_correlation(pair[0], 3 * pair[0], EDGES, draws(0), 20).value == pytest.approx(1)
    assert math.isnan(corrected_correlation(pair[0], 0 * pair[0], EDGES, draws(0), 20).value)


def test_too_few_or_other_repeats_are_refused():
    with pytest.raises(ConfigurationError, match="at least 4 repeats, got 3"):
        repeatability(planted(0, 3, 0.5), EDGES, 1.0, draws(0))
    for compare in (
        repeat_correlation,
        lambda a, b, e: reliability_difference(a, b, e, 0),
        lambda a, b, e: corrected_correlation(a, b, e, draws(0)),
    ):
        with pytest.raises(ShapeError, match="the same repeats of both"):
            compare(planted(0, 4, 0.5), planted(0, 5, 0.5), EDGES)
