import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.nas.algorithms.algorithm1 import prune, record_scores, run_search, step
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState, state_from_json, state_to_json
from mamltheory.nas.genotype import CELL_TYPES, EDGES, Candidates, Genotype
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.scoring.score import Job, Score
from mamltheory.nas.sizes import operator_parameters
from tests.reference.nas_toy import (
    THREE,
    argmin_per_edge,
    literal_algorithm_1,
    network_by_network,
    noisy_scorer,
    planted_score,
    planted_scorer,
    planted_values,
    relabelled,
)

ALL = Candidates().operators()
ZERO = dict.fromkeys(ALL, 0.0)
ONCE = SearchSettings(repeats=1)


def survivors(scorer, search_settings, state=None):
    return set(run_search(scorer, search_settings, state).candidates.operators())


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)", "Sec. 5: both scores")
@given(seed=st.integers(0, 1000), kind=st.sampled_from(["log", "relative", "absolute"]))
@settings(max_examples=4, deadline=None)
def test_with_equal_regions_the_least_condition_number_survives_on_every_edge(seed, kind):
    values = planted_values(seed)
    chosen = survivors(planted_scorer(values, ZERO), replace(ONCE, difference=kind))
    assert chosen == argmin_per_edge(values)


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)", "Sec. 5: both scores")
@given(seed=st.integers(0, 1000))
@settings(max_examples=2, deadline=None)
def test_with_equal_condition_numbers_the_most_regions_survive_on_every_edge(seed):
    values = planted_values(seed)
    chosen = survivors(planted_scorer(ZERO, values), ONCE)
    assert chosen == argmin_per_edge({o: -v for o, v in values.items()})


def test_a_wrong_sign_of_the_condition_number_would_keep_the_worst():
    values = planted_values(3)
    flipped = planted_scorer({o: 200.0 - v for o, v in values.items()}, ZERO)
    assert survivors(flipped, ONCE) == argmin_per_edge({o: -v for o, v in values.items()})


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)", "Sec. 6.1: search schedule")
def test_the_search_takes_six_rounds_and_486_candidates_and_leaves_a_single_path():
    calls = []

    @network_by_network
    def scorer(candidates, round_index, _):
        calls.append((round_index, len(candidates.operators())))
        return Score(1.0, 1.0)

    state = run_search(scorer, ONCE)
    assert state.round_index == len(OPERATIONS) - 1 == 6
    assert state.candidates.is_single_path()
    assert len(state.candidates.operators()) == 18
    assert len(calls) == 486 + 6
    assert len(state.trace) == 486
    assert isinstance(state.candidates.genotype(), Genotype)
    assert [sum(d.pruned for d in state.trace if d.round_index == k) for k in range(6)] == [18] * 6


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)")
@given(seed=st.integers(0, 1000))
@settings(max_examples=3, deadline=None)
def test_index_ties_are_the_printed_algorithm(seed):
    draws = np.random.default_rng(seed)
    score = planted_score(
        {o: float(draws.integers(100)) for o in ALL}, {o: float(draws.integers(3)) for o in ALL}
    )
    literal, rounds = literal_algorithm_1(score, ALL)
    chosen = survivors(
        network_by_network(score), SearchSettings(repeats=1, ties="index", difference="absolute")
    )
    assert chosen == literal
    assert rounds == 6


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)")
def test_the_printed_ties_lose_the_best_operator_where_fair_ties_keep_it():
    kept = {"min": 0, "index": 0}
    for seed in range(2):
        values = planted_values(seed)
        for ties in ("min", "index"):
            chosen = survivors(planted_scorer(values, ZERO), SearchSettings(repeats=1, ties=ties))
            kept[ties] += chosen == argmin_per_edge(values)
    assert kept["min"] == 2
    assert kept["index"] < 2


def relabelling(seed):
    draws = np.random.default_rng(seed)

    def permuted(names):
        return dict(zip(names, [names[i] for i in draws.permutation(len(names))], strict=True))

    return permuted(OPERATIONS), permuted(EDGES), permuted(CELL_TYPES)


def result_is_equivariant(seed, ties):
    """Whether renaming operations, edges and cells before or after the search gives the same cells.

    R takes few values, so that ranks tie; C and R together tell all operators of an edge apart.
    """
    maps = relabelling(seed)
    condition = planted_values(seed)
    regions = {
        o: float(v) for o, v in zip(ALL, np.random.default_rng(seed).integers(3, size=126), strict=True)
    }
    names = {o: relabelled(o, *maps) for o in ALL}
    search_settings = SearchSettings(repeats=1, ties=ties)
    before = survivors(planted_scorer(condition, regions), search_settings)
    renamed = ({names[o]: v for o, v in values.items()} for values in (condition, regions))
    after = survivors(planted_scorer(*renamed), search_settings)
    return {names[o] for o in before} == after


def test_fair_ties_do_not_depend_on_the_labels_and_index_ties_do():
    assert all(result_is_equivariant(seed, "min") for seed in range(2))
    assert not all(result_is_equivariant(seed, "index") for seed in range(3))


def test_operators_that_nothing_tells_apart_are_drawn_fairly_and_reproducibly():
    first = [run_search(None, SearchSettings(seed=s, criteria=())).candidates for s in (0, 1, 0)]
    assert first[0] == first[2] != first[1]
    kept = [
        n
        for s in range(12)
        for c in [run_search(None, SearchSettings(seed=s, criteria=()))]
        for n in (o.operation for o in c.candidates.operators())
    ]
    counts = [kept.count(name) for name in OPERATIONS]
    assert sum(counts) == 216
    assert max(abs(count - 216 / 7) for count in counts) < 4 * math.sqrt(216 * 6 / 49)


def test_equal_ranks_on_an_edge_are_decided_by_the_condition_number():
    start = single_choice(("skip_connect", "conv_3x3"))
    a, b = Round.of(SearchState(start), ONCE).operators
    values = {a: 1.0, b: 2.0}
    regions = {a: 1.0, b: 2.0}

    @network_by_network
    def scorer(candidates, *_):
        live = [o for o in candidates.operators() if o in values]
        return Score(1 + sum(values[o] for o in live), sum(regions[o] for o in live))

    state = run_search(scorer, ONCE, SearchState(start))
    assert [d.tied for d in state.trace] == [True, True]
    assert a in state.candidates.operators()
    assert b not in state.candidates.operators()


def single_choice(names):
    """Candidates whose only choice is on the first normal edge."""
    rest = (("conv_3x3",),) * 8
    return Candidates(normal=(names, *rest), reduce=(("conv_3x3",), *rest))


def test_an_infinite_condition_number_is_never_preferred_and_never_nan():
    start = single_choice(("skip_connect", "conv_3x3", "max_pool_3x3BN"))

    @network_by_network
    def scorer(candidates, _, repeat):
        untrainable = "conv_3x3" not in candidates.normal[0] and repeat == 1
        return Score(math.inf if untrainable else float(len(candidates.normal[0])), 1.0)

    state = run_search(scorer, SearchSettings(repeats=3), SearchState(start))
    assert state.candidates.normal[0] == ("conv_3x3",)
    assert -math.inf in {d.delta_condition for d in state.trace}
    assert state_from_json(json.loads(json.dumps(state_to_json(state), allow_nan=False))) == state


def test_one_supernet_score_serves_all_candidates_of_a_repeat():
    jobs = Round.of(SearchState(), SearchSettings(repeats=2)).pending()
    assert len(jobs) == 2 * 127
    assert [job for job in jobs if job.removed is None] == [Job(0, 0, None), Job(0, 1, None)]


def test_the_second_stage_keeps_the_two_best_inputs_of_every_node_with_14_more_candidates():
    values, calls = planted_values(1), []

    @network_by_network
    def scorer(candidates, *_):
        calls.append(candidates)
        return planted_score(values, ZERO)(candidates)

    single = survivors(planted_scorer(values, ZERO), ONCE)
    state = run_search(scorer, SearchSettings(repeats=1, inputs="two"))
    assert len(state.trace) == 500
    assert len(calls) == 500 + 10
    expected = set()
    for cell in CELL_TYPES:
        for node in range(3):
            inputs = sorted((o for o in single if (o.cell, o.edge.node) == (cell, node)), key=values.get)
            expected.update(inputs[:2])
    assert set(state.candidates.operators()) == expected
    assert [len(node) for node in state.candidates.genotype().normal.nodes] == [2, 2, 2]


def test_a_criterion_that_is_left_out_has_no_say():
    values = planted_values(5)
    scorer = planted_scorer(values, planted_values(6))
    chosen = survivors(scorer, SearchSettings(repeats=1, criteria=("condition",)))
    assert chosen == argmin_per_edge(values)


def test_repeats_are_averaged():
    start = single_choice(("skip_connect", "conv_3x3"))
    by_repeat = [{"skip_connect": 3.0, "conv_3x3": 2.0}, {"skip_connect": 1.0, "conv_3x3": 4.0}]

    @network_by_network
    def scorer(candidates, _, repeat):
        return Score(1 + sum(by_repeat[repeat][name] for name in candidates.normal[0]), 1.0)

    kept = [
        run_search(scorer, SearchSettings(repeats=n, difference="absolute"), SearchState(start))
        for n in (1, 2)
    ]
    assert [state.candidates.normal[0] for state in kept] == [("conv_3x3",), ("skip_connect",)]
    assert {d.operator.operation: d.delta_condition for d in kept[1].trace} == {
        "skip_connect": 2,
        "conv_3x3": 3,
    }


def test_misuse_is_refused_with_advice():
    with pytest.raises(ConfigurationError, match="repeats is 0"):
        SearchSettings(repeats=0)
    with pytest.raises(ConfigurationError, match="at most once"):
        SearchSettings(criteria=("regions", "regions"))
    with pytest.raises(ConfigurationError, match="254 scores"):
        prune(Round.of(SearchState(), SearchSettings(repeats=2)))
    with pytest.raises(ConfigurationError, match="there is no scorer"):
        step(SearchState(), None, ONCE)
    with pytest.raises(CheckpointError, match="round 3"):
        record_scores(SearchState(), {Job(3, 0, None): Score(1.0, 1.0)})
    with pytest.raises(CheckpointError, match="not a saved search"):
        state_from_json({"round": 0})


@pytest.mark.parametrize("reason", ["no gradient", "singular", "not finite"])
def test_operators_without_which_nothing_can_be_scored_stay_and_are_counted_by_reason(reason):
    start = single_choice(("skip_connect", "conv_3x3", "max_pool_3x3BN"))

    @network_by_network
    def scorer(candidates, _, repeat):
        broken = "conv_3x3" not in candidates.normal[0] and repeat == 1
        found = float(len(candidates.normal[0]))
        return Score(math.inf, 1.0, reason) if broken else Score(found, 1.0)

    state = run_search(scorer, SearchSettings(repeats=3), SearchState(start))
    assert state.candidates.normal[0] == ("conv_3x3",)
    assert [report.failures for report in state.reports] == [{reason: 1}, {reason: 1}]
    assert state_from_json(json.loads(json.dumps(state_to_json(state), allow_nan=False))) == state


@pytest.mark.parametrize(
    ("cured", "shared"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_a_repeat_without_a_score_of_the_supernet_leaves_the_decision_to_the_others(shared, cured):
    values = planted_values(4)
    plain = planted_score(values, ZERO)

    @network_by_network
    def scorer(candidates, _, repeat):
        whole = len(candidates.operators()) % 18 == 0
        if repeat == 1 and (whole or not cured):
            return Score(math.inf, 1.0, "singular")
        return plain(candidates)

    chosen = SearchSettings(repeats=3, common_random_numbers=shared)
    state = run_search(scorer, chosen)
    assert set(state.candidates.operators()) == argmin_per_edge(values)
    assert all(math.isfinite(decision.delta_condition) for decision in state.trace)
    assert all(report.failures["singular"] > 0 for report in state.reports)
    if shared:  # what is reported is of the repeats that decided
        assert {report.reliability.repeats for report in state.reports} == {2}


@pytest.mark.parametrize("value", [math.inf, 1.0])
@pytest.mark.parametrize("ties", ["min", "dense", "index"])
def test_edges_on_which_nothing_tells_operators_apart_are_undecided(value, ties):
    state = run_search(
        network_by_network(lambda *_: Score(value, 1.0)), SearchSettings(repeats=2, ties=ties), THREE
    )
    assert [len(report.undecided) for report in state.reports] == [18, 18]
    assert all(decision.undecided == decision.pruned for decision in state.trace)
    assert not any(
        report.undecided for report in run_search(None, SearchSettings(criteria=()), THREE).reports
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_with_shrinkage_the_smaller_goes_where_nothing_can_be_scored(seed):
    rules = SearchSettings(criteria=("condition",), repeats=8, stopping=True, shrinkage=True, seed=seed)
    state = run_search(network_by_network(lambda *_: Score(math.inf, 1.0)), rules, THREE)
    for report in state.reports:
        assert len(report.undecided) == 18
        assert report.reliability is None
    for decision in (d for d in state.trace if d.pruned):
        rivals = [
            d.operator
            for d in state.trace
            if (d.round_index, d.operator.cell, d.operator.edge)
            == (decision.round_index, decision.operator.cell, decision.operator.edge)
        ]
        assert operator_parameters(decision.operator) == min(map(operator_parameters, rivals))


def test_without_common_random_numbers_every_candidate_has_a_supernet_of_its_own():
    search_settings, asked = SearchSettings(repeats=1, common_random_numbers=False), []
    values = planted_values(4)

    def score(network, job):
        # what a pair has in common cancels, as long as it is a pair
        noise = 1000.0 * ALL.index(job.pair)
        return Score(noise + planted_score(values, ZERO)(network).condition, 1.0)

    def scorer(candidates, jobs):
        asked.extend(jobs)
        return {job: score(job.network(candidates), job) for job in jobs}

    state = run_search(scorer, replace(search_settings, difference="absolute"))
    assert len(asked) == 2 * 486
    assert [job.removed for job in asked[:4]] == [None, ALL[0], None, ALL[1]]
    assert set(state.candidates.operators()) == argmin_per_edge(values)
    with pytest.raises(ConfigurationError, match="one gradient serves all"):
        SearchSettings(criteria=("condition",), estimator="gradient", common_random_numbers=False)


def test_a_round_of_both_criteria_reports_the_reliability_of_its_sums_of_ranks():
    report = run_search(noisy_scorer, SearchSettings(repeats=4), THREE).reports[0]
    assert report.stopped == "fixed"
    assert report.repeats == 4
    assert report.reliability.tied
    assert report.reliability.basis == "operators"
    assert len(report.undecided) > 9
