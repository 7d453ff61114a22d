import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.nas.algorithms.algorithm1 import prune, record_scores, run_search
from mamltheory.nas.algorithms.ranking import contests, difference, losers, mean_difference, ranks
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.genotype import Edge, Operator
from tests.reference.nas_toy import argmin_per_edge, planted_scorer, planted_values


@given(
    a=st.floats(1, math.inf), b=st.floats(1, math.inf), kind=st.sampled_from(["log", "relative", "absolute"])
)
@settings(max_examples=60, deadline=None)
def test_differences_are_numbers_with_the_sign_of_the_improvement(a, b, kind):
    delta = difference(a, b, kind)
    assert not math.isnan(delta)
    assert delta >= 0 if a >= b else delta <= 0


def test_differences_have_the_printed_the_released_and_the_default_form():
    assert difference(6.0, 3.0, "absolute") == 3.0
    assert difference(6.0, 3.0, "relative") == 0.5
    assert difference(6.0, 3.0, "log") == pytest.approx(math.log(2))
    assert mean_difference([math.inf, -math.inf, 1.0]) == -math.inf
    assert mean_difference([math.inf, 1.0, 2.0, 6.0]) == 3.0
    assert mean_difference([math.inf, math.inf]) == math.inf
    assert mean_difference([]) == 0.0


def test_ranks_share_the_least_place_or_follow_the_index():
    values = [2.0, 1.0, 2.0, math.inf, -math.inf, 1.0]
    assert ranks(values, "min") == [4, 2, 4, 6, 1, 2]
    assert ranks(values, "index") == [4, 2, 5, 6, 1, 3]
    assert ranks(values, "dense") == [3, 2, 3, 4, 1, 2]


def test_an_edge_loses_its_first_operator_and_a_node_all_but_the_last_two_inputs():
    names = ("conv_1x5_5x1", "skip_connect", "avg_pool_3x3", "none")
    on_an_edge = [Operator("normal", Edge(2, 0), name) for name in names[:3]]
    order = dict(zip(on_an_edge, ((2,), (1,), (3,)), strict=True))
    assert losers(on_an_edge, order) == {on_an_edge[1]}
    of_a_node = [Operator("reduce", Edge(2, source), "skip_connect") for source in range(4)]
    order = dict(zip(of_a_node, ((4,), (1,), (3,), (2,)), strict=True))
    assert losers(of_a_node, order) == {of_a_node[1], of_a_node[3]}
    assert losers(of_a_node[1:], order) == {of_a_node[1]}
    assert losers(of_a_node[2:], order) == set()


def test_operators_compete_on_edges_until_every_edge_has_one_and_then_on_nodes():
    edges = [Operator("normal", Edge(1, source), "conv_3x3") for source in range(3)]
    assert {name: len(members) for name, members in contests(edges).items()} == {"normal node 1": 3}
    more = [*edges, Operator("normal", Edge(1, 0), "skip_connect")]
    assert sorted(len(members) for members in contests(more).values()) == [1, 1, 2]


def survivors(scorer, ties):
    return set(run_search(scorer, SearchSettings(repeats=1, ties=ties)).candidates.operators())


@pytest.mark.parametrize("seed", range(3))
def test_two_values_of_the_regions_do_not_outweigh_a_condition_number_when_ranks_leave_no_gaps(seed):
    """Dense ranks of two values differ by one, and equal sums go by C: as if there were no regions at all."""
    values = planted_values(seed)
    regions = {
        o: float(v) for o, v in zip(values, np.random.default_rng(seed).integers(2, size=126), strict=True)
    }
    scorer = planted_scorer(values, regions)
    assert survivors(scorer, "dense") == argmin_per_edge(values)
    assert survivors(scorer, "min") != argmin_per_edge(values)


@pytest.mark.parametrize("ties", ["min", "dense"])
def test_the_statistics_of_a_round_are_of_the_ranks_that_decide(ties):
    """One repeat: its sums of ranks put the operators of every edge in the order of the decision."""
    draws = np.random.default_rng(7)
    values = planted_values(7)
    regions = {o: float(v) for o, v in zip(values, draws.integers(2, size=126), strict=True)}
    once, scorer, state = SearchSettings(repeats=1, ties=ties), planted_scorer(values, regions), SearchState()
    jobs = Round.of(state, once).pending()
    now = Round.of(record_scores(state, scorer(state.candidates, jobs)), once)
    judged = dict(zip(now.operators, now.decisive[:, 0].tolist(), strict=True))
    for decision in prune(now).trace:
        same_edge = [
            o for o in now.operators if (o.cell, o.edge) == (decision.operator.cell, decision.operator.edge)
        ]
        assert not decision.pruned or judged[decision.operator] == max(judged[o] for o in same_edge)
