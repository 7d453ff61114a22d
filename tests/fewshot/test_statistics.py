"""Intervals over tasks, deviations over runs, and the comparison of two methods over both."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mamltheory.errors import ShapeError
from mamltheory.fewshot.episodes import sample_episode
from mamltheory.fewshot.prototypes import prototype_hits
from mamltheory.fewshot.statistics import (
    PATTERNS,
    compare_networks,
    compare_runs,
    over_runs,
    permutation_p_value,
    sign_flip_p_value,
    unit_accuracies,
)
from mamltheory.intervals import Interval, mean_interval
from mamltheory.rng import numpy_generator


def two_methods(runs, tasks, effect, run_sd, seed=0):
    """Accuracies of two methods: tasks of common difficulty, runs of their own luck, and a true difference."""
    random = numpy_generator(seed, "two methods")
    difficulty = random.normal(0.7, 0.1, (runs, tasks))
    luck = random.normal(0, run_sd, (2, runs, 1))
    first, second = (difficulty + luck[i] + random.normal(0, 0.02, (runs, tasks)) for i in range(2))
    return list(first + effect), list(second)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_the_interval_is_that_of_scipy(values):
    values = np.array(values)
    interval = mean_interval(values)
    if values.std() < 1e-9:
        assert interval.half_width == pytest.approx(0, abs=1e-8)
        return
    low, high = stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=stats.sem(values))
    assert interval.mean - interval.half_width == pytest.approx(low, abs=1e-9)
    assert interval.mean + interval.half_width == pytest.approx(high, abs=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = numpy_generator(0, "coverage")
    intervals = [mean_interval(random.normal(0.6, 0.1, 12)) for _ in range(4000)]
    covered = np.mean([abs(i.mean - 0.6) <= i.half_width for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.014)  # four standard errors


def test_one_value_has_no_interval():
    with pytest.raises(ShapeError, match="at least two"):
        mean_interval(np.array([0.5]))


def test_the_deviation_is_that_of_a_single_run_and_one_run_has_none():
    spread = over_runs([0.5, 0.6, 0.7])
    assert (spread.mean, spread.deviation, spread.runs) == (pytest.approx(0.6), pytest.approx(0.1), 3)
    assert over_runs([0.4]).deviation is None
    with pytest.raises(ShapeError, match="no runs"):
        over_runs([])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_the_p_value_is_the_share_of_all_sign_patterns_with_as_large_a_sum(values):
    values = np.round(np.array(values), 6)
    signs = np.array(list(itertools.product((-1, 1), repeat=len(values))))
    as_large = np.abs(signs @ values) >= abs(values.sum()) - 1e-9
    # The smaller tail is doubled, which is the same for a symmetric distribution.
    assert sign_flip_p_value(values) == pytest.approx(as_large.mean(), abs=1e-12)


def two_equal_networks(index, classes, images, tasks=120):
    """(right answers of both on overlapping tasks, the tasks, the members): equally good on the images of any draw."""
    random, ways = numpy_generator(index, "equal networks"), min(5, classes)
    members = [np.arange(images * i, images * (i + 1)) for i in range(classes)]
    episodes = [sample_episode(members, ways, 1, min(15, images - 1), index, i) for i in range(tasks)]
    centres = random.standard_normal((classes, 4)).repeat(images, 0)
    shared, own = random.standard_normal((len(centres), 4)), random.standard_normal((2, len(centres), 4))
    return [prototype_hits(centres + 0.7 * shared + 0.7 * each, episodes) for each in own], episodes, members


@pytest.mark.parametrize(("classes", "images"), [(2, 12), (7, 10)])
def test_equal_networks_differ_in_one_of_twenty_draws_by_units_and_in_most_by_overlapping_tasks(
    classes, images
):
    by_units, by_tasks = 0, 0
    for index in range(40):
        hits, episodes, members = two_equal_networks(index, classes, images)
        units = np.array([unit_accuracies(each, episodes, members) for each in hits])
        by_units += permutation_p_value(units) <= 0.05
        by_tasks += permutation_p_value(np.array([each.mean((1, 2)) for each in hits])) <= 0.05
    assert by_units <= stats.binom.ppf(0.99, 40, 0.05)
    assert by_tasks > 20


@pytest.mark.parametrize(("classes", "images"), [(3, 8), (8, 10)])
def test_a_pseudo_value_is_that_of_the_accuracy_without_the_class_or_the_image(classes, images):
    (hits, _), episodes, members = two_equal_networks(0, classes, images, 40)
    found, whole = unit_accuracies(hits, episodes, members), hits.mean()
    unit = 5
    if classes > 5:
        kept = [right.mean() for right, each in zip(hits, episodes, strict=True) if unit not in each.classes]
        expected = whole + (classes - 1) * (whole - np.mean(kept))
    else:
        kept = {label: [] for label in range(classes)}
        for right, each in zip(hits, episodes, strict=True):
            for row, label in enumerate(each.classes if unit not in each.support else ()):
                kept[label] += [
                    hit for hit, image in zip(right[row], each.query[row], strict=True) if image != unit
                ]
        without = np.mean([np.mean(each) for each in kept.values()])
        expected = whole + classes * (images - 1) * (whole - without)
    assert found[unit] == pytest.approx(expected, abs=1e-12)
    assert len(found) == (classes if classes > 5 else classes * images)


def test_networks_that_differ_on_every_unit_have_a_small_p_value_and_never_zero():
    values = np.random.default_rng(0).random(12) + np.array([[0.0], [0.5], [1.0]])
    assert permutation_p_value(values) == 1e-3
    assert permutation_p_value(values[:2, :4]) == 2 / 2**4 == sign_flip_p_value(values[0, :4] - values[1, :4])


def test_beyond_sixteen_runs_the_p_value_is_an_estimate_that_does_not_change():
    values = numpy_generator(0, "differences").normal(0.5, 1, 20)
    found = sign_flip_p_value(values)
    assert PATTERNS == 65_536
    assert found == sign_flip_p_value(values)
    sums = np.zeros(1)
    for value in values:  # all 2²⁰ patterns of signs
        sums = np.concatenate([sums + value, sums - value])
    expected = np.mean(np.abs(sums) >= abs(values.sum()) * (1 - 1e-12))
    assert found == pytest.approx(expected, rel=0.4)  # four standard errors of 65,536 patterns


def test_three_runs_cannot_reach_five_per_cent_however_large_the_difference():
    comparison = compare_runs(*two_methods(3, 50, 0.5, 0.001))
    assert comparison.p_value == comparison.least_p_value == 0.25
    assert compare_runs(*two_methods(6, 50, 0.5, 0.001)).p_value == 2 / 64


def test_many_tasks_do_not_make_up_for_runs():
    """Methods that are alike differ in most pairs of runs; only the interval over runs knows."""
    few = [compare_runs(*two_methods(3, 400, 0.0, 0.03, seed)) for seed in range(400)]
    over_tasks = np.mean([abs(c.differences[0]) > 2 * c.task_errors[0] for c in few])
    assert over_tasks > 0.8
    assert np.mean([c.shown for c in few]) == pytest.approx(0.05, abs=0.033)  # three standard errors


def test_a_true_difference_is_found_and_the_runs_own_deviation_estimated():
    comparison = compare_runs(*two_methods(16, 200, 0.05, 0.02))
    assert comparison.shown
    assert comparison.p_value < 1e-3
    assert comparison.interval.mean == pytest.approx(0.05, abs=0.02)
    assert comparison.run_deviation == pytest.approx(0.02 * 2**0.5, rel=0.5)
    assert compare_runs(*two_methods(16, 5, 0.05, 0.0)).run_deviation < 0.01


def test_the_deviation_between_runs_is_what_the_tasks_leave_of_the_variance():
    first, second = two_methods(5, 40, 0.0, 0.05)
    comparison = compare_runs(first, second)
    pairs = [a - b for a, b in zip(first, second, strict=True)]
    between = np.var([pair.mean() for pair in pairs], ddof=1)
    within = sum(pair.var(ddof=1) / len(pair) for pair in pairs) / len(pairs)
    assert comparison.run_deviation == pytest.approx((between - within) ** 0.5)


def test_methods_with_the_same_accuracies_are_not_shown_to_differ():
    same, _ = two_methods(4, 30, 0.0, 0.01)
    comparison = compare_runs(same, same)
    assert comparison.interval == Interval(0.0, 0.0)
    assert not comparison.shown
    assert comparison.p_value == comparison.t_p_value == 1


def test_the_comparison_changes_its_sign_with_the_order_of_the_methods():
    first, second = two_methods(4, 30, 0.02, 0.01)
    there, back = compare_runs(first, second), compare_runs(second, first)
    assert there.interval.mean == -back.interval.mean
    assert (there.p_value, there.interval.half_width) == (back.p_value, back.interval.half_width)


def test_runs_that_do_not_pair_up_are_refused():
    first, second = two_methods(3, 30, 0.0, 0.01)
    for a, b in ((first, second[:2]), (first, [*second[:2], second[2][:-1]]), (first[:1], second[:1])):
        with pytest.raises(ShapeError):
            compare_runs(a, b)


def test_the_t_test_of_a_comparison_is_that_of_scipy():
    for effect in (0.0, 0.05):
        found = compare_runs(*two_methods(6, 30, effect, 0.03))
        assert found.t_p_value == pytest.approx(stats.ttest_1samp(found.differences, 0.0).pvalue)
        assert (found.t_p_value < 0.05) == found.shown
        assert found.interval.half_width == pytest.approx(
            stats.t.ppf(0.975, 5) * stats.sem(found.differences)
        )
    first, second = two_methods(3, 4, 0.0, 0.1)
    pairs = [a - b for a, b in zip(first, second, strict=True)]
    found = compare_runs(first, second)
    assert found.differences == pytest.approx([pair.mean() for pair in pairs])
    assert found.task_errors == pytest.approx([pair.std(ddof=1) / 2 for pair in pairs])
    same = [np.full(4, 0.5)] * 3
    assert compare_runs(same, same).t_p_value == 1.0
    assert compare_runs([each + 0.25 for each in same], same).t_p_value == 0.0


@pytest.mark.parametrize("count", [1, 3])
def test_the_interval_over_networks_and_tasks_covers_the_true_difference(count):
    random = numpy_generator(count, "networks and tasks")
    covered, trials = 0, 300
    for _ in range(trials):
        difficulty = random.normal(0.7, 0.1, 40)
        luck = random.normal(0, 0.03, (count + 3, 1))
        solved = difficulty + luck + random.normal(0, 0.05, (count + 3, 40))
        # A single network is not a sample of networks: its luck belongs to the difference.
        true = luck[0, 0] if count == 1 else 0.0
        found = compare_networks(solved[:count], solved[count:])
        covered += abs(found.mean - true) <= found.half_width
    assert 0.92 <= covered / trials <= 0.995


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_interval_over_networks_and_tasks_has_welchs_degrees_of_freedom(count):
    first, second = (numpy_generator(k, "networks").uniform(0, 1, (k, 5)) for k in (count, 4))
    difference = first.mean(0) - second.mean(0)
    groups = [second.mean(1), difference] + ([first.mean(1)] if count > 1 else [])
    variances = [np.var(each, ddof=1) / len(each) for each in groups]
    freedom = sum(variances) ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(variances, groups, strict=True))
    found = compare_networks(first, second)
    assert found.mean == pytest.approx(difference.mean())
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * sum(variances) ** 0.5)


def test_networks_are_compared_by_their_means_on_common_tasks():
    random = numpy_generator(0, "a few networks")
    first, second = random.uniform(0, 1, (2, 10)), random.uniform(0, 1, (3, 10))
    assert compare_networks(first, second).mean == pytest.approx(first.mean() - second.mean())
    assert compare_networks(np.ones((2, 3)), np.zeros((2, 3))) == Interval(1.0, 0.0)
    for wrong in ((first, second[:1]), (first[:, :3], second), (first[:0], second)):
        with pytest.raises(ShapeError, match="at least one network and two others"):
            compare_networks(*wrong)
