"""Search methods on planted tables: what they gain is known, and so is what they cost."""

import inspect
import math
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.halving import DEFAULT_RUNGS, Rung
from mamltheory.nas.algorithms.replay import (
    Draws,
    at_random,
    best_by_ranks,
    best_by_score,
    by_halving,
    final_accuracy,
    replay,
    warm_started,
)
from mamltheory.nas.algorithms.surrogate import operation_counts
from mamltheory.rng import numpy_generator
from tests.nas.tables import EPOCHS, SCORING_SECONDS, SECONDS, genotypes, synthetic_table
from tests.reference.nas_replay import expected_gain_of_best
from tests.strategies import as_users_run_it

CELLS = 40


def accuracies(count=CELLS, seed=0):
    return 0.6 + 0.03 * numpy_generator(seed, "final").standard_normal(count)


@lru_cache
def planted_table():
    """Cells with equal trainings, early accuracies that are the final ones, and three scores."""
    final = accuracies()
    scores = {
        "perfect": final.tolist(),
        "useless": numpy_generator(0, "useless").standard_normal(CELLS).tolist(),
        "singular": [None] * CELLS,
    }
    return synthetic_table(final, scores=scores)


def final_of(table, number=0):
    """Final accuracies in points."""
    return np.array([100 * final_accuracy(cell, number, 1) for cell in table.cells])


def test_a_perfect_score_of_all_cells_gains_the_maximum_and_costs_the_scoring():
    table = planted_table()
    found = replay(best_by_score("perfect", CELLS), table, draws=20, bootstraps=5)
    most = final_of(table).max() - final_of(table).mean()
    assert found.kept.mean == pytest.approx(most, rel=1e-12)
    assert found.retrained.mean == pytest.approx(most, rel=1e-12)
    assert (found.seconds, found.epochs) == (pytest.approx(CELLS * SCORING_SECONDS), 0)
    assert found.kept.low < found.kept.mean < found.kept.high


def test_a_useless_score_gains_nothing():
    found = replay(best_by_score("useless", 8), planted_table(), draws=300, bootstraps=30)
    for gain in (found.kept, found.retrained):
        assert gain.low < 0 < gain.high
        assert abs(gain.mean) < 1.5


def test_a_random_cell_gains_nothing_and_costs_nothing():
    found = replay(at_random, planted_table(), draws=500, bootstraps=30)
    assert found.kept.low < 0 < found.kept.high
    assert abs(found.kept.mean) < 4 * final_of(planted_table()).std() / 500**0.5
    assert (found.seconds, found.epochs) == (0, 0)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_best_of_some_cells_gains_what_all_sets_of_so_many_gain(count):
    final = accuracies(9)
    scores = final + 0.03 * numpy_generator(0, "noisy score").standard_normal(9)
    table = synthetic_table(final, scores={"noisy": scores.tolist()})
    found = replay(best_by_score("noisy", count), table, draws=1500, bootstraps=0)
    expected = expected_gain_of_best(final_of(table), scores, count)
    assert found.kept.mean == pytest.approx(expected, abs=4 * final_of(table).std() / 1500**0.5)
    assert math.isinf(found.kept.high)


def test_luck_of_the_training_is_kept_and_is_gone_when_the_cell_is_trained_again():
    random = numpy_generator(0, "luck")
    cells = 0.6 + 0.01 * random.standard_normal(CELLS)
    table = synthetic_table(cells[:, None] + 0.04 * random.standard_normal((CELLS, 2)))
    found = replay(by_halving((Rung(CELLS, 12),)), table, draws=40, bootstraps=0)
    both = np.array([final_of(table, number) for number in (0, 1)])
    leads, again = [], []
    for number in (0, 1):
        best = both[number].argmax()
        leads.append(both[number, best] - both[number].mean())
        again.append(both[1 - number, best] - both[1 - number].mean())
    assert min(leads) - 1e-9 <= found.kept.mean <= max(leads) + 1e-9
    assert min(again) - 1e-9 <= found.retrained.mean <= max(again) + 1e-9
    assert found.kept.mean > found.retrained.mean


def test_halving_costs_112_epochs_and_gains_the_best_of_the_cells_it_draws():
    table = planted_table()
    found = replay(by_halving(DEFAULT_RUNGS), table, draws=30, bootstraps=2)
    assert found.epochs == 112
    assert found.seconds == pytest.approx(112 * SECONDS)
    alone = replay(best_by_score("perfect", 32), table, draws=30, bootstraps=2)
    assert found.kept.mean == alone.kept.mean  # the same draws, each of which gives its best cell


def test_epochs_that_a_cell_has_trained_cost_nothing():
    table = planted_table()
    draws = Draws(table.cells, 0, 1)
    for epochs, trained in ((4, 4), (4, 4), (2, 4), (12, 12), (1, 12)):
        draws.train(3, epochs)
        assert (draws.epochs, draws.seconds) == (trained, pytest.approx(trained * SECONDS))
    draws.train(4, 2)
    assert (draws.epochs, draws.seconds) == (14, pytest.approx(14 * SECONDS))
    with pytest.raises(
        ConfigurationError, match="nothing after epoch 5: expected one of 1, 2, 3, 4, 6, 8, 12"
    ):
        draws.train(0, 5)


def test_a_training_gives_the_row_of_its_number_and_epoch():
    random = numpy_generator(0, "curves")
    accuracy, loss = random.random((2, 4, 2, len(EPOCHS)))
    table = synthetic_table(accuracies(4), accuracy, loss)
    for number in (0, 1):
        draws = Draws(table.cells, number, 5)
        for i, epoch in enumerate(EPOCHS):
            found = draws.train(2, epoch)
            assert found.accuracy == pytest.approx(accuracy[2, number, i], rel=1e-5)
            assert found.loss == pytest.approx(loss[2, number, i], rel=1e-5)


def test_a_training_that_diverged_is_last_counts_as_zero_and_costs_nothing_after_its_end():
    final = accuracies(6)
    table = synthetic_table(final, diverged={(2, 0): 4, (2, 1): 4, (5, 0): 0, (5, 1): 0})
    draws = Draws(table.cells, 0, 1)
    assert not draws.train(2, 4).diverged
    assert draws.train(2, 6).diverged
    assert draws.train(5, 1).diverged
    assert draws.epochs == 4
    at_once = Draws(table.cells, 0, 1)
    assert at_once.train(2, 12).diverged
    assert (at_once.epochs, at_once.seconds) == (
        4,
        pytest.approx(4 * SECONDS),
    )  # all that the table holds of it
    assert final_accuracy(table.cells[2], 0, 1) == final_accuracy(table.cells[5], 1, 1) == 0
    best = replay(by_halving((Rung(6, 1), Rung(2, 12))), table, draws=10, bootstraps=0)
    assert best.kept.mean == pytest.approx(final_of(table).max() - final_of(table).mean())


def test_singular_scores_are_never_chosen_before_others():
    final = accuracies(6)
    scores = {"some": [None, 1.0, None, 2.0, 0.5, None], "none": [None] * 6}
    table = synthetic_table(final, scores=scores)
    draws = Draws(table.cells, 0, 1)
    assert [draws.score(i, "some") for i in range(3)] == [-math.inf, 1, -math.inf]
    assert draws.seconds == 3 * SCORING_SECONDS
    assert best_by_score("some", 6)(Draws(table.cells, 0, 1)) == 3
    assert best_by_score("some", 3)(Draws(table.cells, 0, 1)) == 1
    assert best_by_score("some", 1)(Draws(table.cells, 0, 1)) == 0
    assert best_by_score("none", 6)(Draws(table.cells, 0, 1)) == 0
    assert best_by_score("some", 99)(Draws(table.cells, 0, 1)) == 3


def test_a_warm_start_trains_the_cells_that_the_surrogate_predicts_to_be_best():
    drawn = genotypes(30, seed=1)
    counts = np.array([operation_counts(each) for each in drawn])
    final = 0.6 + counts @ (0.02 * numpy_generator(0, "truth").standard_normal(14))
    table = synthetic_table(final, seed=1)
    known, others = table.cells[:20], table.cells[20:]
    truth = final[20:]
    for pool in (10, 6):
        draws = Draws(others, 0, 1)
        chosen = warm_started(known, pool, (Rung(3, 1), Rung(1, 2)))(draws)
        assert chosen == truth[:pool].argmax()
        assert draws.epochs == 4
        trained = [i for i in range(10) if draws._trained[i]]
        assert set(trained) == set(np.argsort(-truth[:pool])[:3])
    with pytest.raises(ConfigurationError, match="takes 3 candidates and there are 2"):
        warm_started(known, 2, (Rung(3, 1),))(Draws(others, 0, 1))
    found = replay(warm_started(known, 10, (Rung(1, 1),)), others, draws=5, bootstraps=0)
    assert found.kept.mean == pytest.approx(
        final_of(table)[20:].max() - final_of(table)[20:].mean(), rel=1e-4
    )


def test_cells_that_are_predicted_alike_are_trained_in_the_order_of_the_draw(monkeypatch):
    table = planted_table()
    predicted = np.arange(CELLS) % 2.0
    alike = SimpleNamespace(predict=lambda genotypes: predicted[: len(genotypes)])
    monkeypatch.setattr("mamltheory.nas.algorithms.replay.fit_surrogate", lambda *_: alike)
    draws = Draws(table.cells, 0, 1)
    warm_started(table.cells[:8], CELLS, (Rung(25, 1),))(draws)
    assert np.flatnonzero(draws._trained).tolist() == sorted([*range(1, 40, 2), 0, 2, 4, 6, 8])


def watched(seen):
    """The first cell, noting what was drawn."""

    def choose(draws):
        seen.append((tuple(id(cell) for cell in draws.cells), draws.number))
        return 0

    return choose


def test_draws_depend_on_the_seed_alone_and_take_either_training():
    table, seen = planted_table(), {}
    for name, seed, bootstraps in (("one", 0, 2), ("again", 0, 0), ("other", 1, 0)):
        seen[name] = []
        replay(watched(seen[name]), table, draws=20, seed=seed, bootstraps=bootstraps)
    assert seen["one"][:20] == seen["again"]
    assert seen["other"] != seen["again"]
    assert len(set(seen["again"])) == 20
    assert {number for _, number in seen["again"]} == {0, 1}
    assert all(sorted(order) == sorted(map(id, table.cells)) for order, _ in seen["again"])
    method = best_by_score("useless", 5)
    assert replay(method, table, 20, bootstraps=3) == replay(method, table, 20, bootstraps=3)


def test_intervals_hold_the_gain_on_the_tables_that_might_have_been_drawn():
    """Accuracy and score are normal with correlation ρ: the best of 5 gains ρ σ E max of 5 normal numbers."""
    truth, held, widths, means = 100 * 0.6 * 0.03 * 1.16296, 0, [], []
    for index in range(16):
        random = numpy_generator(index, "joint")
        score = random.standard_normal(CELLS)
        final = 0.6 + 0.03 * (0.6 * score + 0.8 * random.standard_normal(CELLS))
        with as_users_run_it():  # thousands of calls, whose shapes need no check each time
            table = synthetic_table(final, scores={"informed": score.tolist()})
            gain = replay(best_by_score("informed", 5), table, draws=120, bootstraps=20).kept
        held += gain.low <= truth <= gain.high
        widths.append((gain.high - gain.low) / 2)
        means.append(gain.mean)
    assert held >= 13
    assert np.mean(means) == pytest.approx(truth, abs=4 * np.std(means) / 16**0.5)
    assert 1.5 < np.mean(widths) / np.std(means) < 5


def test_tables_without_enough_cells_or_with_unknown_names_are_refused():
    table = planted_table()
    for few, draws in ((table.cells[:3], 5), (table.cells, 0)):
        with pytest.raises(ConfigurationError, match="a replay needs 4 cells and 1 draw"):
            replay(at_random, few, draws=draws)
    with pytest.raises(
        ConfigurationError, match="no score 'magic': expected one of perfect, useless, singular"
    ):
        replay(best_by_score("magic", 3), table, draws=2, bootstraps=0)
    with pytest.raises(ConfigurationError, match="no accuracy with 3 shots: expected one of 1, 5"):
        replay(at_random, table, draws=2, shots=3, bootstraps=0)
    with pytest.raises(ConfigurationError, match="takes 41 candidates and there are 40"):
        replay(by_halving((Rung(41, 1),)), table, draws=2, bootstraps=0)
    with pytest.raises(ConfigurationError, match="has no training 7"):
        final_accuracy(table.cells[0], 7, 1)


def test_cells_with_one_training_are_left_out():
    full, other = planted_table().cells, synthetic_table(accuracies(5), seed=3).cells
    single = [type(cell)(cell.genotype, cell.trainings[:1], cell.scores, 0.0) for cell in other]
    seen = []
    replay(watched(seen), [*single, *full[:6]], draws=3, bootstraps=0)
    assert all(set(order) == set(map(id, full[:6])) for order, _ in seen)
    assert str(replay(at_random, full[:6], draws=3, bootstraps=2).kept).count(",") == 1


@pytest.mark.parametrize(("draws", "tenth"), [(25, 2), (5, 1)])
def test_a_replay_is_a_loop_over_permutations_and_over_resampled_tables(draws, tenth):
    random = numpy_generator(3, "loop")
    final, scores = 0.5 + 0.1 * random.standard_normal((7, 2)), random.standard_normal(7)
    table, shots = synthetic_table(final, scores={"noisy": scores.tolist()}), 5
    found = replay(best_by_score("noisy", 3), table, draws, 4, shots, 6)

    def searches(rows, count, random):
        points = 100 * np.array([[table.cells[i].trained(k).accuracy[shots] for i in rows] for k in (0, 1)])
        gains = []
        for _ in range(count):
            order, number = random.permutation(7), int(random.integers(2))
            best = max(order[:3], key=lambda place: scores[rows[place]])
            gains.append([points[k, best] - points[k].mean() for k in (number, 1 - number)])
        return np.mean(gains, 0)

    means = searches(range(7), draws, numpy_generator(4, "replay"))
    spread = []
    for index in range(6):
        own = numpy_generator(4, "replay bootstrap", index)
        spread.append(searches(own.integers(7, size=7), tenth, own))
    width = 1.96 * np.std(spread, axis=0, ddof=1)
    for gain, mean, half in zip((found.kept, found.retrained), means, width, strict=True):
        assert (gain.mean, gain.low, gain.high) == pytest.approx((mean, mean - half, mean + half))
    assert (found.seconds, found.epochs) == (3 * SCORING_SECONDS, 0)
    single = replay(best_by_score("noisy", 3), table, 5, bootstraps=2)
    assert single == replay(best_by_score("noisy", 3), table, 5, 0, 1, 2)
    defaults = {name: each.default for name, each in inspect.signature(replay).parameters.items()}
    assert (defaults["draws"], defaults["bootstraps"]) == (2000, 100)
    assert inspect.signature(warm_started).parameters["number"].default == 0


def test_a_score_is_paid_once_a_cell_and_the_sum_of_ranks_decides():
    table = synthetic_table([0.5, 0.6, 0.7], scores={"a": [1.0, 2.0, None], "b": [9.0, 7.0, 8.0]})
    draws = Draws(table.cells, 0, 1)
    assert [draws.score(2, "b"), draws.score(2, "a"), draws.seconds] == [8.0, -math.inf, SCORING_SECONDS]
    assert best_by_ranks(("a", "b"), 3)(Draws(table.cells, 0, 1)) == 0
    assert best_by_ranks(("b", "a"), 9)(Draws(table.cells[1:], 0, 1)) == 0
    assert best_by_ranks(("b",), 2)(Draws(table.cells[1:], 0, 1)) == 1
