import json
import math
from dataclasses import replace

import pytest
import torch

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Candidates, Edge, Operator
from mamltheory.nas.gradient import GradientScorer
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.round_report import decided_differences, parameter_size, reliability
from mamltheory.nas.scores import CellScorer, Score, ScoreSettings
from mamltheory.nas.search import (
    SearchSettings,
    SearchState,
    is_finished,
    pending,
    run_search,
    step,
)
from mamltheory.nas.search_state import state_from_json, state_to_json
from mamltheory.rng import generator, numpy_generator
from mamltheory.types import Task
from tests.reference.nas_toy import argmin_per_edge, planted_scorer, planted_values

ALL = Candidates().operators()
ZERO = dict.fromkeys(ALL, 0.0)
BY_GRADIENT = SearchSettings(repeats=2, criteria=("condition",), estimator="gradient")
SIZE = NetworkSettings(channels=4, cells=3, classes=3, stem_stride=2)


def draw_tasks(stream):
    labels = torch.eye(3)
    parts = [torch.randn(3, 3, 12, 12, generator=stream) for _ in range(2)]
    return [Task(parts[0], labels, parts[1], labels)]


def planted_gradient(values):
    """What a gradient scorer returns, from the exact scores of planted values."""
    exact = planted_scorer(values, ZERO)

    def score(candidates, *_):
        return {None: exact(candidates), **{o: exact(candidates.without(o)) for o in candidates.operators()}}

    return score


def noisy_scorer(signal, noise, seed=0):
    """log C of a candidate: less the signal of what was taken out, with fresh noise in every repeat."""

    def score(candidates, round_index, repeat):
        found = {None: Score(1.0, 1.0)}
        for o in candidates.operators():
            draw = numpy_generator(seed, f"noise {o}", round_index, repeat).standard_normal()
            found[o] = Score(math.exp(-signal.get(o.operation, 0.0) - noise * draw), 1.0)
        return found

    return score


def test_a_search_by_gradient_decides_like_one_by_leave_one_out_given_the_same_scores():
    values = planted_values(2)
    state = run_search(planted_gradient(values), BY_GRADIENT)
    assert set(state.candidates.operators()) == argmin_per_edge(values)
    exact = run_search(planted_scorer(values, ZERO), replace(BY_GRADIENT, estimator="leave-one-out"))
    assert state.trace == exact.trace


def test_a_search_by_gradient_asks_once_a_repeat():
    calls = []

    def scorer(candidates, round_index, repeat):
        calls.append((round_index, repeat))
        return dict.fromkeys((None, *candidates.operators()), Score(1.0, 1.0))

    run_search(scorer, BY_GRADIENT)
    assert calls == [(k, r) for k in range(6) for r in range(2)]


def test_a_search_by_gradient_can_be_stopped_after_each_repeat_and_taken_up():
    scorer = noisy_scorer({"skip_connect": 0.5}, 0.3)
    whole = run_search(scorer, BY_GRADIENT)
    state = SearchState()
    while not is_finished(state, BY_GRADIENT):
        state = state_from_json(json.loads(json.dumps(state_to_json(state))))
        state = step(state, scorer, BY_GRADIENT, limit=1)
    assert state == whole


def test_the_gradient_scorer_scores_the_repeats_of_the_cell_scorer():
    scorer = CellScorer(SIZE, 7, draw_tasks, None, ScoreSettings(outputs="sum", measure="harmonic"))
    candidates = Candidates().without(Operator("normal", Edge(0, 0), "conv_3x3"))
    found = GradientScorer(scorer)(candidates, 1, 2)
    assert found[None].condition == pytest.approx(scorer(candidates, 1, 2).condition, rel=1e-3)
    assert list(found) == [None, *candidates.operators()]
    assert all(score.condition > 0 and score.regions == 1.0 for score in found.values())


def twin_tasks(stream):
    images, labels = torch.randn(3, 3, 12, 12, generator=stream), torch.eye(3)
    return [Task(images, labels, images, labels)]


def test_a_singular_kernel_says_nothing_and_stops_nothing():
    scorer = GradientScorer(CellScorer(SIZE, 7, twin_tasks, None, ScoreSettings("ntk", "sum")))
    state = SearchState()
    found = scorer(state.candidates, 0, 0)
    assert {score.condition for score in found.values()} == {math.inf}
    state = step(state, lambda *_: found, BY_GRADIENT)
    assert state.round_index == 1
    assert all(decision.delta_condition == 0 for decision in state.trace)


def test_rounds_report_the_reliability_of_what_they_saw():
    signal = {"skip_connect": 2.0, "conv_3x3": 1.0}
    settings = replace(BY_GRADIENT, repeats=5)
    clear = step(SearchState(), noisy_scorer(signal, 0.3), settings).reports[0].reliability
    noise = step(SearchState(), noisy_scorer({}, 0.3), settings).reports[0].reliability
    assert clear.single > 0.8 > 0.2 > noise.single
    assert not clear.tied
    assert noise.tied
    assert clear.agreement.same == 1.0


def test_a_single_repeat_has_no_reliability():
    once = replace(BY_GRADIENT, repeats=1)
    assert step(SearchState(), noisy_scorer({}, 1.0), once).reports[0].reliability is None
    unscored = replace(once, criteria=(), estimator="leave-one-out", shrinkage=True)
    assert {report.reliability for report in run_search(None, unscored).reports} == {None}


def test_shrinkage_makes_independent_searches_prune_alike():
    signal = {"skip_connect": 1.0, "avg_pool_3x3BN": 0.6}

    def pruned(settings, seed):
        state = step(SearchState(), noisy_scorer(signal, 1.0, seed), settings)
        return {d.operator for d in state.trace if d.pruned}

    plain, shrunk = (replace(BY_GRADIENT, repeats=4, shrinkage=on) for on in (False, True))
    same = {s.shrinkage: len(pruned(s, 1) & pruned(s, 2)) for s in (plain, shrunk)}
    assert same[True] > same[False] + 3


def test_a_round_of_noise_is_decided_by_size_and_not_by_noise():
    settings = replace(BY_GRADIENT, repeats=4, shrinkage=True)
    states = (step(SearchState(), noisy_scorer({}, 1.0, seed), settings) for seed in range(10))
    by_size = next(s for s in states if s.reports[0].reliability.basis == "parameters")
    for cell, edge in {o[:2] for o in ALL}:
        gone = next(d.operator for d in by_size.trace if d.pruned and d.operator[:2] == (cell, edge))
        assert parameter_size(gone) == max(parameter_size(o) for o in ALL if o[:2] == (cell, edge))


def test_an_operator_without_which_the_network_cannot_be_trained_is_never_pruned_for_shrinkage():
    operators = ALL[:14]
    draws = [[float(v) for v in row] for row in torch.randn(14, 4, generator=generator(0, "draws")).tolist()]
    draws[3][1] = -math.inf
    report = reliability(operators, draws, 0, 0)
    decided = decided_differences(operators, draws, report)
    assert decided[3] == -math.inf
    assert all(math.isfinite(value) for i, value in enumerate(decided) if i != 3)


def test_gradients_of_linear_regions_are_refused():
    with pytest.raises(ConfigurationError, match="C_N alone"):
        SearchSettings(estimator="gradient")
    with pytest.raises(ConfigurationError, match="needs tasks"):
        GradientScorer(CellScorer(SIZE, 0))


def test_nothing_is_pending_in_a_finished_search():
    state = run_search(planted_gradient(planted_values(0)), BY_GRADIENT)
    assert pending(state, BY_GRADIENT) == ()
    assert len(state.reports) == 6
