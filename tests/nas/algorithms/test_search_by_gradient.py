import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.nas.algorithms.algorithm1 import prune, record_scores, run_search, step
from mamltheory.nas.algorithms.rounds import Round, reliability, shrunken_differences
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState, state_from_json, state_to_json
from mamltheory.nas.algorithms.stopping import MIN_REPEATS
from mamltheory.nas.genotype import Candidates, Edge, Operator
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.scoring import operator_gradient as gradient
from mamltheory.nas.scoring.operator_gradient import GradientScorer, OperatorGradients
from mamltheory.nas.scoring.score import Score, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.sizes import operator_parameters
from mamltheory.rng import generator, numpy_generator
from mamltheory.tasks import Task
from tests.reference.nas_toy import (
    THREE,
    argmin_per_edge,
    noisy_gradient_scorer,
    planted_scorer,
    planted_values,
    repeat_by_repeat,
    score_chunk,
)

ALL = Candidates().operators()
ZERO = dict.fromkeys(ALL, 0.0)
BY_GRADIENT = SearchSettings(repeats=2, criteria=("condition",), estimator="gradient")
SIZE = NetworkSettings(channels=4, cells=3, classes=3, stem_stride=2)


def draw_tasks(stream):
    labels = torch.eye(3)
    parts = [torch.randn(3, 3, 12, 12, generator=stream) for _ in range(2)]
    return [Task(parts[0], labels, parts[1], labels)]


def test_a_search_by_gradient_decides_like_one_by_leave_one_out_given_the_same_scores():
    values = planted_values(2)
    state = run_search(planted_scorer(values, ZERO), BY_GRADIENT)
    assert set(state.candidates.operators()) == argmin_per_edge(values)
    exact = run_search(planted_scorer(values, ZERO), replace(BY_GRADIENT, estimator="leave-one-out"))
    assert state.trace == exact.trace


@pytest.mark.slow
def test_a_gradient_that_does_not_fit_goes_on_with_fewer_samples_and_says_how_often(monkeypatch):
    scorer, usual = GradientScorer(CellScorer(SIZE, 0, draw_tasks)), gradient.record_tape
    plenty = scorer.scores(THREE.candidates, 0, 0)

    def small_device(most, network, part, *others):
        if len(part) > most:
            raise torch.OutOfMemoryError("full")
        return usual(network, part, *others)

    monkeypatch.setattr(gradient, "record_tape", partial(small_device, 2))
    found = scorer.scores(THREE.candidates, 0, 0)
    assert [score.halvings for score in (found[None], plenty[None])] == [2, 0]  # 6 samples, 3, 1
    logs = [[math.log(each[o].condition) for o in plenty] for each in (found, plenty)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-3)
    monkeypatch.setattr(gradient, "record_tape", partial(small_device, 0))
    with pytest.raises(torch.OutOfMemoryError):
        scorer.scores(THREE.candidates, 0, 0)


def test_a_search_by_gradient_asks_once_a_repeat():
    calls = []

    @repeat_by_repeat
    def scorer(candidates, round_index, repeat):
        calls.append((round_index, repeat))
        return dict.fromkeys((None, *candidates.operators()), Score(1.0, 1.0))

    run_search(scorer, BY_GRADIENT)
    assert calls == [(k, r) for k in range(6) for r in range(2)]


def test_a_search_by_gradient_can_be_stopped_after_each_repeat_and_taken_up():
    scorer = noisy_gradient_scorer({"skip_connect": 0.5}, 0.3)
    whole = run_search(scorer, BY_GRADIENT, THREE)
    state = THREE
    while not Round.of(state, BY_GRADIENT).is_finished:
        state = state_from_json(json.loads(json.dumps(state_to_json(state))))
        state = score_chunk(state, scorer, BY_GRADIENT)
    assert state == whole


def test_the_gradient_scorer_scores_the_repeats_of_the_cell_scorer():
    scorer = CellScorer(SIZE, 7, draw_tasks, None, ScoreSettings(outputs="sum", measure="harmonic"))
    candidates = Candidates().without(Operator("normal", Edge(0, 0), "conv_3x3"))
    found = GradientScorer(scorer).scores(candidates, 1, 2)
    assert found[None].condition == pytest.approx(scorer.scores([candidates], 1, 2)[0].condition, rel=1e-3)
    assert list(found) == [None, *candidates.operators()]
    assert all(score.condition > 0 and score.regions == 1.0 for score in found.values())


def twin_tasks(stream):
    images, labels = torch.randn(3, 3, 12, 12, generator=stream), torch.eye(3)
    return [Task(images, labels, images, labels)]


def test_a_singular_kernel_says_nothing_and_stops_nothing():
    scorer = GradientScorer(CellScorer(SIZE, 7, twin_tasks, None, ScoreSettings("ntk", "sum")))
    state = SearchState()
    found = scorer.scores(state.candidates, 0, 0)
    assert {score.condition for score in found.values()} == {math.inf}
    state = step(state, repeat_by_repeat(lambda *_: found), BY_GRADIENT)
    assert state.round_index == 1
    assert all(decision.delta_condition == 0 for decision in state.trace)


def test_rounds_report_the_reliability_of_what_they_saw():
    signal = {"skip_connect": 2.0, "conv_3x3": 1.0}
    settings = replace(BY_GRADIENT, repeats=5)
    clear = step(SearchState(), noisy_gradient_scorer(signal, 0.3), settings).reports[0].reliability
    noise = step(SearchState(), noisy_gradient_scorer({}, 0.3), settings).reports[0].reliability
    assert clear.single > 0.8 > 0.2 > noise.single
    assert not clear.tied
    assert noise.tied
    assert clear.agreement.same == 1.0


def test_a_single_repeat_has_no_reliability():
    once = replace(BY_GRADIENT, repeats=1)
    assert step(SearchState(), noisy_gradient_scorer({}, 1.0), once).reports[0].reliability is None
    unscored = replace(once, criteria=(), estimator="leave-one-out", shrinkage=True)
    assert {report.reliability for report in run_search(None, unscored).reports} == {None}


def test_shrinkage_makes_independent_searches_prune_alike():
    signal = {"skip_connect": 1.0, "avg_pool_3x3BN": 0.6}

    def pruned(settings, seed):
        state = step(SearchState(), noisy_gradient_scorer(signal, 1.0, seed), settings)
        return {d.operator for d in state.trace if d.pruned}

    plain, shrunk = (replace(BY_GRADIENT, repeats=4, shrinkage=on) for on in (False, True))
    same = {s.shrinkage: len(pruned(s, 1) & pruned(s, 2)) for s in (plain, shrunk)}
    assert same[True] > same[False] + 3


def test_a_round_of_noise_is_decided_by_size_and_not_by_noise():
    settings = replace(BY_GRADIENT, repeats=4, shrinkage=True)
    states = (step(SearchState(), noisy_gradient_scorer({}, 1.0, seed), settings) for seed in range(10))
    by_size = next(s for s in states if s.reports[0].reliability.basis == "parameters")
    for cell, edge in {o[:2] for o in ALL}:
        gone = next(d.operator for d in by_size.trace if d.pruned and d.operator[:2] == (cell, edge))
        assert operator_parameters(gone) == min(operator_parameters(o) for o in ALL if o[:2] == (cell, edge))


def test_an_operator_without_which_the_network_cannot_be_trained_is_never_pruned_for_shrinkage():
    draws = torch.randn(126, 4, generator=generator(0, "draws")).double().numpy()
    draws[3, 1] = -math.inf
    now = with_draws(draws)
    decided = shrunken_differences(now, reliability(now))
    assert decided[3] == -math.inf
    assert all(math.isfinite(value) for i, value in enumerate(decided) if i != 3)


def with_draws(draws, index=0, history=None):
    """A round with shrinkage whose scores give these draws: log C is 0 for the supernet."""
    rules = replace(BY_GRADIENT, repeats=draws.shape[1], shrinkage=True)
    state = SearchState(round_index=index, history=history or {})
    scores = {}
    for repeat, column in enumerate(draws.T):
        whole, *others = Round.of(state, rules).jobs(repeat)
        scores[whole] = Score(1.0, 1.0)
        scores |= {job: Score(math.exp(-d), 1.0) for job, d in zip(others, column, strict=True)}
    return Round.of(record_scores(state, scores), rules)


def test_gradients_of_linear_regions_are_refused():
    with pytest.raises(ConfigurationError, match="C_N alone"):
        SearchSettings(estimator="gradient")
    with pytest.raises(ConfigurationError, match="needs tasks"):
        GradientScorer(CellScorer(SIZE, 0))


def test_nothing_is_pending_in_a_finished_search():
    state = run_search(planted_scorer(planted_values(0), ZERO), BY_GRADIENT)
    assert Round.of(state, BY_GRADIENT).pending() == ()
    assert len(state.reports) == 6


STOPPING = replace(BY_GRADIENT, repeats=9, shrinkage=True, stopping=True)
CLEAR = {"avg_pool_3x3BN": 3.0, "skip_connect": 2.0, "max_pool_3x3BN": 1.0}


def test_a_round_stops_when_its_repeats_agree_and_not_before_the_least_number():
    report = step_to_end_of_round(SearchState(), noisy_gradient_scorer(CLEAR, 0.3)).reports[0]
    assert (report.repeats, report.stopped, report.undecided) == (MIN_REPEATS, "agreement", ())
    without = step_to_end_of_round(
        SearchState(), noisy_gradient_scorer({}, 1.0), replace(STOPPING, shrinkage=False)
    )
    assert (without.reports[0].repeats, without.reports[0].stopped) == (9, "budget")
    assert len(without.reports[0].undecided) > 9


def step_to_end_of_round(state, scorer, settings=STOPPING):
    while not state.reports:
        state = step(state, scorer, settings)
    return state


def test_the_number_of_repeats_follows_from_the_scores_alone():
    """Interrupted after every repeat, or with repeats computed in advance and in another order: the same search."""
    scorer = noisy_gradient_scorer({**CLEAR, "conv_3x3": 0.3}, 4.0)
    whole = run_search(scorer, STOPPING, THREE)
    assert len({report.repeats for report in whole.reports}) > 1
    resumed, ahead = THREE, THREE
    while not Round.of(resumed, STOPPING).is_finished:
        resumed = state_from_json(json.loads(json.dumps(state_to_json(resumed), allow_nan=False)))
        resumed = score_chunk(resumed, scorer, STOPPING)
    while not (now := Round.of(ahead, STOPPING)).is_finished:
        for chunk in reversed(now.chunks(ahead=3)):
            ahead = record_scores(ahead, scorer(ahead.candidates, chunk))
        now = Round.of(ahead, STOPPING)
        ahead = ahead if now.pending() else prune(now)
    assert resumed == whole
    assert ahead == whole


def test_repeats_in_which_nothing_can_be_scored_do_not_count():
    usual = noisy_gradient_scorer(CLEAR, 0.3)

    def scorer(candidates, jobs):
        singular = Score(math.inf, 1.0, "singular")
        return usual(candidates, jobs) | {job: singular for job in jobs if job.repeat < 3}

    report = step_to_end_of_round(SearchState(), scorer).reports[0]
    assert report.repeats == 3 + MIN_REPEATS
    assert report.reliability.repeats == MIN_REPEATS
    assert report.failures == {"singular": 3 * 127}


def test_what_earlier_rounds_say_of_types_decides_where_a_round_says_nothing():
    """The order of operations shows in earlier repeats alone; those of the round are noise."""
    random = numpy_generator(0, "rounds")
    order = np.array([OPERATIONS.index(o.operation) for o in ALL], dtype=float)
    history = {
        o: tuple(row) for o, row in zip(ALL, order[:, None] + random.normal(size=(126, 6)), strict=True)
    }
    draws = random.normal(size=(126, 5))
    rounds = [with_draws(draws, 1, h) for h in ({}, history)]
    alone, with_history = map(reliability, rounds)
    assert alone.tied
    assert with_history.tied
    assert (alone.single, alone.null) == (with_history.single, with_history.null)
    assert with_history.basis == "types"
    decided = dict(zip(ALL, shrunken_differences(rounds[1], with_history), strict=True))
    for cell, edge in {o[:2] for o in ALL}:
        members = [o for o in ALL if o[:2] == (cell, edge)]
        assert max(members, key=decided.get).operation == OPERATIONS[-1]
    assert with_history.certainty.same > alone.certainty.same


def test_a_search_remembers_the_repeats_of_all_rounds_for_the_operators_that_compete():
    state = run_until(4, noisy_gradient_scorer(CLEAR, 0.3))
    assert set(state.history) == set(state.candidates.operators())
    repeats = sum(report.reliability.repeats for report in state.reports)
    assert {len(values) for values in state.history.values()} == {repeats}
    assert run_search(noisy_gradient_scorer({}, 1.0), replace(STOPPING, shrinkage=False)).history == {}


def run_until(rounds, scorer):
    state = SearchState()
    while len(state.reports) < rounds:
        state = step(state, scorer, STOPPING)
    return state


@pytest.mark.parametrize("overflow", ["kernel", "gradient"])
def test_a_score_that_is_not_a_number_is_a_failure_and_no_crash(monkeypatch, overflow):
    broken = Operator("normal", Edge(0, 0), "conv_3x3")

    def overflowing(*_, **__):
        if overflow == "kernel":
            raise ValueRangeError("the kernel has NaN or infinite entries")
        return OperatorGradients(1.0, {o: math.nan if o == broken else 0.0 for o in ALL})

    monkeypatch.setattr(gradient, "operator_gradients", overflowing)
    scorer = GradientScorer(CellScorer(SIZE, 7, draw_tasks, None, ScoreSettings("ntk", "sum")))
    state = step(SearchState(), scorer, BY_GRADIENT)
    spoilt = 127 if overflow == "kernel" else 7  # an edge's differences share their gradients
    assert state.reports[0].failures == {"not finite": 2 * spoilt}
    assert overflow == "kernel" or -math.inf in {d.delta_condition for d in state.trace}
