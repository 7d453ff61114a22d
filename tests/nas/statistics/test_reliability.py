import inspect
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.nas.algorithms.stopping import (
    SEPARATED,
    Compared,
    RoundReliability,
    certainty,
    decisive_scores,
    round_reliability,
)
from mamltheory.nas.genotype import Operator
from mamltheory.nas.statistics.reliability import (
    _halves,
    effects,
    half_agreement,
    mean_reliability,
    permutation_null,
    pooled_mean,
    repeats_for,
    shrunken_scores,
    single_repeat_reliability,
    standardised,
)
from mamltheory.rng import numpy_generator
from tests.reference import nas_reliability as slow

EDGES = [(cell, edge) for cell in range(2) for edge in range(9) for _ in range(7)]
OPERATORS = [Operator(cell, edge, i % 7) for i, (cell, edge) in enumerate(EDGES)]
TYPES = [(operator.cell, operator.operation) for operator in OPERATORS]


def draws(seed, purpose="draws"):
    return numpy_generator(seed, purpose)


def planted(seed, repeats, kind=0.0, specific=0.0, noise=1.0, edge=3.0):
    """Scores with components of known standard deviation: (cell × operation), operator, edge × repeat, noise; each
    repeat with a scale of its own. Returns the scores and the signal.
    """
    random = draws(seed, "planted")
    by_kind = kind * random.standard_normal((2, 7))
    signal = np.array([by_kind[each] for each in TYPES]) + specific * random.standard_normal(126)
    places = np.repeat(np.arange(18), 7)
    scores = signal[:, None] + noise * random.standard_normal((126, repeats))
    scores += edge * random.standard_normal((18, repeats))[places]
    return scores * np.exp(random.standard_normal(repeats)), signal


def compared(scores):
    return Compared(scores, EDGES, OPERATORS)


def within_edges(values):
    return (values.reshape(18, 7) - values.reshape(18, 7).mean(1, keepdims=True)).ravel()


def correlation(a, b):
    return np.corrcoef(within_edges(a), within_edges(b))[0, 1]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.75])
def test_the_reliability_of_one_repeat_is_the_planted_share_of_variance(share):
    found = [
        single_repeat_reliability(planted(seed, 10, specific=share**0.5, noise=(1 - share) ** 0.5)[0], EDGES)
        for seed in range(12)
    ]
    assert np.mean(found) == pytest.approx(share, abs=0.025)


def test_without_signal_the_reliability_is_zero_on_average():
    found = [single_repeat_reliability(planted(seed, 4)[0], EDGES) for seed in range(40)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 40**0.5
    assert min(found) < 0 < max(found)


def test_the_edge_specific_reliability_does_not_see_what_operations_have_in_common():
    common = [planted(seed, 8, kind=1.0)[0] for seed in range(12)]
    assert np.mean([single_repeat_reliability(x, EDGES) for x in common]) > 0.3
    assert abs(np.mean([single_repeat_reliability(x, EDGES, TYPES) for x in common])) < 0.02
    specific = [planted(seed, 8, kind=1.0, specific=0.5)[0] for seed in range(12)]
    found = np.mean([single_repeat_reliability(x, EDGES, TYPES) for x in specific])
    assert found == pytest.approx(0.2, abs=0.03)


@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_neither_the_level_of_an_edge_nor_the_scale_of_a_repeat_matters(seed):
    scores = planted(seed, 5, specific=1.0)[0]
    random = draws(seed, "nuisance")
    moved = scores * np.exp(random.standard_normal(5)) + np.repeat(random.standard_normal((18, 5)), 7, 0)
    np.testing.assert_allclose(standardised(moved, EDGES), standardised(scores, EDGES), atol=1e-9)
    assert single_repeat_reliability(moved, EDGES) == pytest.approx(single_repeat_reliability(scores, EDGES))


def test_spearman_and_brown_is_the_correlation_between_two_independent_means():
    found = []
    for seed in range(8):
        scores, _ = planted(seed, 12, specific=0.5)
        values = standardised(scores, EDGES)
        found.append(correlation(values[:, :6].mean(1), values[:, 6:].mean(1)))
    assert np.mean(found) == pytest.approx(mean_reliability(0.2, 6), abs=0.05)


@given(single=st.floats(0.01, 0.99), target=st.floats(0.05, 0.95))
@settings(max_examples=20, deadline=None)
def test_the_repeats_that_a_target_needs_reach_it(single, target):
    repeats = repeats_for(single, target)
    assert repeats * single / (1 + (repeats - 1) * single) == pytest.approx(target)


UNEVEN = list("abcbaacbcaba")
KINDS = list("vwxxwxyyuyzz")


@pytest.mark.parametrize(("repeats", "before"), [(5, 3), (3, 2), (2, 4)])
def test_on_edges_of_any_size_the_statistics_are_those_of_plain_loops(repeats, before):
    """Operators of an edge are not neighbours, repeats differ in scale, and a type stands once alone."""
    random = draws(repeats, "loops")
    signal = random.standard_normal((12, 1))
    scores, earlier = (signal + np.exp(random.standard_normal((12, n))) for n in (repeats, before))
    scores = scores * np.arange(1, repeats + 1)
    values = standardised(scores, UNEVEN)
    np.testing.assert_allclose(values, slow.standardised(scores, UNEVEN), rtol=1e-9)
    for types in (None, KINDS):
        found = single_repeat_reliability(scores, UNEVEN, types)
        assert found == pytest.approx(slow.reliability(values, UNEVEN, types), rel=1e-9)
        for old in (None, earlier):
            agreement = half_agreement(scores, UNEVEN, draws(1), types, 7, old)
            numbers = agreement.tau, *agreement.tau_interval, agreement.same, *agreement.same_interval
            expected = slow.agreement(scores, UNEVEN, draws(1), types, 7, old)
            np.testing.assert_allclose([*numbers, agreement.chance], expected, rtol=1e-9)
    for share in (None, 0.3):
        found, lam = shrunken_scores(scores, UNEVEN, KINDS, share, earlier)
        expected, slow_lam = slow.shrunken(scores, UNEVEN, KINDS, share, earlier)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert lam == pytest.approx(slow_lam, rel=1e-9)
    null = permutation_null(scores, UNEVEN, draws(2), 9, 0.8)
    np.testing.assert_allclose(null, slow.permutation_null(scores, UNEVEN, draws(2), 9, 0.8), rtol=1e-9)


@pytest.mark.parametrize("repeats", [2, 5])
def test_halves_are_means_over_disjoint_repeats(repeats):
    left, right = _halves(repeats, 4, draws(0))
    for half in (left, right):
        np.testing.assert_allclose(np.sort(half, 0)[-(repeats // 2) :], 1 / (repeats // 2))
        np.testing.assert_allclose(half.sum(0), 1)
    assert not (left * right).any()


def test_a_null_of_many_operators_is_that_of_plain_loops_too():
    scores, edges = draws(0).standard_normal((126, 2)), [i % 18 for i in range(126)]
    expected = slow.permutation_null(scores, edges, draws(1), 2, 0.95)
    np.testing.assert_allclose(permutation_null(scores, edges, draws(1), 2), expected, rtol=1e-9)


def test_what_nothing_is_left_to_compare_with_is_unreliable():
    scores = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert single_repeat_reliability(scores, ["a", "b"]) == 0.0
    assert single_repeat_reliability(scores, ["a", "a"]) == pytest.approx(1)
    np.testing.assert_array_equal(standardised(scores, ["a", "b"]), np.zeros((2, 2)))
    tiny = np.array([[1e-6, 2e-6], [3e-6, 0.0], [2e-6, 7e-6]])
    np.testing.assert_allclose(
        standardised(tiny, list("aab")), [[-(0.5**0.5), 0.5**0.5], [0.5**0.5, -(0.5**0.5)], [0, 0]]
    )
    assert single_repeat_reliability(scores, ["a", "a"], ["x", "y"]) == 0.0
    shrunk, share = shrunken_scores(scores[:, :1], ["a", "a"], ["x", "x"])
    assert (share, *shrunk) == pytest.approx((0, 0, 0), abs=1e-12)
    np.testing.assert_array_equal(
        pooled_mean(scores, ["a", "a"], scores[:, :0]), pooled_mean(scores, ["a", "a"], None)
    )


def test_the_defaults_are_two_hundred_draws_and_intervals_of_95_per_cent():
    chosen = [inspect.signature(each).parameters for each in (permutation_null, half_agreement)]
    assert [each["draws"].default for each in chosen] == [200, 200]
    assert chosen[0]["level"].default == 0.95
    assert repeats_for(0.1) == pytest.approx(81)  # 0.9 · 0.9/(0.1 · 0.1)


def test_no_number_of_repeats_makes_noise_reliable():
    assert repeats_for(0.0) == repeats_for(-0.1) == math.inf
    assert mean_reliability(-0.1, 10) == 0.0


def test_the_permutation_null_is_exceeded_as_often_as_its_level_says():
    above = below = 0
    for seed in range(120):
        scores = planted(seed, 6)[0]
        low, high = permutation_null(scores, EDGES, draws(seed), draws=80, level=0.9)
        found = single_repeat_reliability(scores, EDGES)
        above, below = above + (found > high), below + (found < low)
    # 5 % on either side of 120: 6 expected, with a standard deviation of 2.4
    assert 1 <= above <= 14
    assert 1 <= below <= 14


def test_permuted_operators_stay_on_their_edge():
    """A signal between edges alone can neither enter the reliability nor widen its null."""
    plain, loud = (permutation_null(planted(0, 6, edge=e)[0], EDGES, draws(0)) for e in (0.0, 100.0))
    np.testing.assert_allclose(plain, loud, atol=1e-9)


def test_shrinkage_predicts_held_out_repeats_better_than_the_plain_mean():
    gains = []
    for seed in range(10):
        scores, signal = planted(seed, 6, kind=0.6, specific=0.2)
        shrunk, share = shrunken_scores(scores, EDGES, TYPES)
        plain = standardised(scores, EDGES).mean(1)
        assert 0 <= share < 0.6
        gains.append(correlation(shrunk, signal) - correlation(plain, signal))
    assert np.mean(gains) > 0.02
    assert min(gains) > -0.02


def test_shrinkage_keeps_an_edges_own_message_when_repeats_bear_it_out():
    scores, signal = planted(0, 40, kind=0.5, specific=1.0)
    shrunk, share = shrunken_scores(scores, EDGES, TYPES)
    assert share > 0.95
    assert correlation(shrunk, signal) > 0.97


def test_without_edge_specific_signal_all_edges_get_one_order():
    shrunk = shrunken_scores(planted(3, 6, kind=1.0)[0], EDGES, TYPES, share=0.0)[0].reshape(2, 9, 7)
    np.testing.assert_allclose(shrunk, np.broadcast_to(shrunk[:, :1], shrunk.shape), atol=1e-9)


def test_the_repeats_of_earlier_rounds_count_as_much_as_those_of_the_round():
    scores, earlier = planted(0, 5)[0], planted(1, 3)[0]
    values, before = standardised(scores, EDGES), standardised(earlier, EDGES)
    np.testing.assert_allclose(pooled_mean(scores, EDGES, None), values.sum(1) / 5)
    both = (values.sum(1) + before.sum(1)) / 8
    np.testing.assert_allclose(pooled_mean(scores, EDGES, earlier), both)


def test_independent_halves_agree_by_chance_without_signal_and_fully_with_it():
    noise = half_agreement(planted(1, 6)[0], EDGES, draws(0))
    assert noise.chance == pytest.approx(1 / 7)
    assert noise.tau_interval[0] < 0 < noise.tau_interval[1]
    assert noise.same_interval[0] <= noise.chance <= noise.same_interval[1]
    clear = half_agreement(planted(1, 6, specific=10.0)[0], EDGES, draws(0))
    assert clear.same > 0.9
    assert clear.tau > 0.85
    assert 0.5 < clear.tau_interval[0] <= clear.tau <= clear.tau_interval[1] <= 1
    shrunk, plain = (half_agreement(planted(2, 6, kind=1.0)[0], EDGES, draws(0), t) for t in (TYPES, None))
    assert shrunk.same > plain.same + 0.1


def test_halves_take_no_notice_of_a_single_earlier_repeat():
    scores, earlier = planted(2, 6, kind=1.0)[0], planted(3, 1)[0]
    found = [half_agreement(scores, EDGES, draws(0), TYPES, 10, each) for each in (earlier, None)]
    assert found[0] == found[1]


def test_agreement_of_halves_grows_as_the_reliability_says():
    """For normal scores, tau = 2/π · arcsin(correlation)."""
    found = [half_agreement(planted(s, 12, specific=0.5)[0], EDGES, draws(s), draws=40) for s in range(8)]
    expected = 2 / math.pi * math.asin(mean_reliability(0.2, 6))
    assert np.mean([each.tau for each in found]) == pytest.approx(expected, abs=0.05)


def test_certainty_grows_with_the_signal_and_the_regret_falls():
    weak, strong = (certainty(compared(planted(0, 6, specific=s)[0]), draws(0), False) for s in (0.0, 20.0))
    assert weak.same < 0.6 < 0.95 < strong.same
    assert weak.regret > 0.2 > 0.05 > strong.regret >= 0
    assert len(strong.by_edge) == 18


def test_a_regret_is_small_where_the_candidates_are_equally_good():
    """Two operators of an edge that cannot be told apart cost nothing, however unsure the choice."""
    scores = np.tile(np.array([1.0, 1.0, -1.0]), 18)[:, None] + 0.01 * draws(0).standard_normal((54, 8))
    operators = [Operator("normal", edge, i) for edge in range(18) for i in range(3)]
    found = certainty(Compared(scores, [o.edge for o in operators], operators), draws(1), False)
    assert found.regret < 0.05
    assert found.same < 0.95


def test_a_round_of_noise_is_a_tie_and_one_with_signal_is_not():
    noise = [round_reliability(compared(planted(s, 6)[0]), draws(s)) for s in range(8)]
    assert sum(each.tied for each in noise) >= 6
    clear = round_reliability(compared(planted(0, 6, specific=1.0)[0]), draws(0))
    assert clear.basis == "operators"
    assert not clear.tied
    assert clear.null[0] < 0 < clear.null[1] < clear.single
    assert 0.5 < clear.share <= 1


def test_a_tie_is_decided_by_types_where_these_have_signal():
    """Too weak to be seen operator by operator, a common effect shows once nine edges are pooled."""
    found = [round_reliability(compared(planted(s, 4, kind=0.2)[0]), draws(s)) for s in range(12)]
    assert {each.basis for each in found} >= {"types"}


def test_decisions_are_by_shrunken_scores_by_types_or_by_size():
    scores, parameters = planted(5, 5, kind=0.5, specific=0.5)[0], list(range(126))
    by = {b: decisive_scores(compared(scores), parameters, b) for b in ("operators", "types", "parameters")}
    np.testing.assert_array_equal(by["operators"], shrunken_scores(scores, EDGES, TYPES)[0])
    np.testing.assert_array_equal(by["types"], shrunken_scores(scores, EDGES, TYPES, 0.0)[0])
    assert by["parameters"].tolist() == [-size for size in parameters]


def test_an_undecided_edge_goes_by_its_types_and_leaves_the_others_to_their_operators():
    scores, unclear = planted(5, 5, kind=0.5, specific=0.5)[0], {EDGES[0], EDGES[-1]}
    decided = decisive_scores(compared(scores), range(126), "operators", unclear)
    by_operator, by_type = (shrunken_scores(scores, EDGES, TYPES, share)[0] for share in (None, 0.0))
    open_rows = np.array([edge in unclear for edge in EDGES])
    np.testing.assert_array_equal(decided[open_rows], by_type[open_rows])
    np.testing.assert_array_equal(decided[~open_rows], by_operator[~open_rows])


def test_inputs_of_a_node_that_are_of_one_type_are_never_told_apart_by_types():
    scores = draws(3).standard_normal((4, 6)) + np.arange(4)[:, None]
    operators = [Operator("normal", source, "conv_3x3") for source in range(4)]
    nodes = Compared(scores, ["node"] * 4, operators)
    own = shrunken_scores(scores, nodes.edges, nodes.types)[0]
    for basis, unclear in (("operators", {"node"}), ("types", ())):
        decided = decisive_scores(nodes, [9] * 4, basis, unclear)
        np.testing.assert_array_equal(decided, own)
        assert len(np.unique(decided.round(6))) == 4


def test_with_undecided_edges_left_to_the_types_independent_repeats_decide_alike():
    """Where edges add little to the types, that little is what two sets of repeats would disagree on."""
    places, agree = np.arange(126).reshape(18, 7), {True: [], False: []}
    for seed in range(6):
        signal = planted(seed, 1, kind=1.0, specific=0.3)[1]
        gone = {True: [], False: []}
        for half in range(2):
            noise = draws(seed, f"half {half}").standard_normal((126, 5))
            scores = signal[:, None] + noise
            sure = round_reliability(compared(scores), draws(seed)).certainty.by_edge
            unclear = {edge for edge, p in zip(dict.fromkeys(EDGES), sure, strict=True) if p < SEPARATED}
            for rule, edges in ((True, unclear), (False, ())):
                decided = decisive_scores(compared(scores), range(126), "operators", edges)
                gone[rule].append(decided[places].argmax(1))
        for rule, (first, second) in gone.items():
            agree[rule].append((first == second).mean())
    assert np.mean(agree[True]) > np.mean(agree[False]) + 0.05


def test_what_a_round_knows_of_its_scores_depends_on_the_seed_and_the_scores_alone():
    scores = planted(0, 5, kind=0.3)[0]
    first, second = (round_reliability(compared(scores), draws(4)) for _ in range(2))
    assert first == second
    assert RoundReliability.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_edges_need_not_have_the_same_number_of_operators():
    keep = np.flatnonzero(draws(0).random(126) < 0.6)
    scores = planted(0, 8, kind=0.5, specific=0.5)[0][keep]
    found = round_reliability(
        Compared(scores, [EDGES[i] for i in keep], [OPERATORS[i] for i in keep]), draws(0)
    )
    assert 0.1 < found.single < 0.6


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(ConfigurationError, match="at least 2 repeats, got 1"):
        single_repeat_reliability(np.zeros((126, 1)), EDGES)
    with pytest.raises(ConfigurationError, match="halves need"):
        half_agreement(np.zeros((126, 1)), EDGES, draws(0))
    with pytest.raises(ConfigurationError, match="bootstrap"):
        certainty(compared(np.zeros((126, 1))), draws(0), False)
    with pytest.raises(ShapeError, match="125 labels"):
        standardised(np.zeros((126, 3)), EDGES[1:])
    with pytest.raises(ValueRangeError, match="NaN or infinite"):
        standardised(np.full((126, 3), np.nan), EDGES)
    with pytest.raises(ValueRangeError, match="target is 1"):
        repeats_for(0.5, 1.0)
    assert single_repeat_reliability(np.zeros((126, 3)), EDGES) == 0.0


def test_the_effects_of_one_edge_are_its_mean_alone():
    basis = effects(["edge"] * 4, None)
    assert np.abs(basis) == pytest.approx(np.full((4, 1), 0.5))
    assert effects(["a", "b", "b"], ["x", "y", "y"]).shape == (
        3,
        2,
    )  # the types say nothing that the edges do not


def test_edges_with_two_operators_left_agree_by_chance_in_half_of_the_cases():
    pairs, alone = [("normal", i) for i in range(4) for _ in range(2)], [("normal", 9)]
    scores = draws(3).standard_normal((9, 12))
    found = half_agreement(scores, pairs + alone, draws(0))
    assert found.chance == 0.5
    assert -1 <= found.tau_interval[0] <= found.tau_interval[1] <= 1


def test_earlier_repeats_with_a_clear_signal_make_halves_agree():
    noise, clear = planted(1, 4)[0], planted(5, 4, kind=30.0)[0]
    alone, together = (half_agreement(noise, EDGES, draws(0), TYPES, 40, each) for each in (None, clear))
    assert alone.tau < 0.3 < 0.6 < together.tau
