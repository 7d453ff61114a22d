"""What the repeats of a round say, against plain loops and by hand."""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest

from mamltheory.nas.algorithms import stopping
from mamltheory.nas.algorithms.stopping import (
    MIN_REPEATS,
    Certainty,
    Compared,
    certainty,
    decisive_scores,
    may_stop,
    round_reliability,
    undecided_edges,
)
from mamltheory.nas.genotype import Edge, Operator
from mamltheory.nas.statistics.reliability import (
    half_agreement,
    permutation_null,
    shrunken_scores,
    single_repeat_reliability,
)
from mamltheory.rng import numpy_generator
from tests.reference import nas_reliability as slow

EDGES = list("abcbaacbcabab")
OPERATORS = [
    Operator(
        "reduce" if edge == "c" else "normal", Edge("abc".index(edge), 0), "vwxyz"[EDGES[:i].count(edge)]
    )
    for i, edge in enumerate(EDGES)
]


def planted(seed, repeats=4, signal=0.0, earlier=0):
    random = numpy_generator(seed, "stopping test")
    common = signal * random.standard_normal((13, 1))
    scores, before = (common + random.standard_normal((13, n)) for n in (repeats, earlier))
    return Compared(scores, EDGES, OPERATORS, before if earlier else None)


def bootstrap(values, random, draws):
    """The mean and one mean per draw, each deviation widened."""
    repeats = values.shape[1]
    counts = random.multinomial(repeats, [1 / repeats] * repeats, size=draws)
    centre = values.mean(1)
    means = [values @ each / repeats for each in counts]
    return [centre, *(centre + math.sqrt(repeats / (repeats - 1)) * (mean - centre) for mean in means)]


@pytest.mark.parametrize(("shrinkage", "earlier"), [(False, 3), (True, 0), (True, 1), (True, 2)])
def test_certainty_is_that_of_a_loop_over_bootstrap_draws(shrinkage, earlier):
    compared, draws = planted(1, signal=1.0, earlier=earlier), 11
    random, edges = numpy_generator(2, "loop"), EDGES
    own = bootstrap(slow.standardised(compared.scores, edges), random, draws)
    for share in (None, 0.25) if shrinkage else (None,):
        scores = own
        if shrinkage:
            lam = slow.shrunken(compared.scores, edges, compared.types)[1] if share is None else share
            scores = []
            random = numpy_generator(2, "loop")
            bootstrap(compared.scores, random, draws)
            past = own
            if earlier > 1:
                past = bootstrap(slow.standardised(compared.earlier, edges), random, draws)
            for one, old in zip(own, past, strict=True):
                pooled = (4 * one + earlier * old) / (4 + earlier) if earlier > 1 else one
                fits = [
                    slow.least_squares(each[:, None], edges, compared.types)[0][:, 0]
                    for each in (pooled, one)
                ]
                scores.append(fits[0] + lam * (one - fits[1]))
        same, regret = [], []
        pruned = {OPERATORS[5]}
        for rows in slow.rows_of(edges):
            best = 5 if 5 in rows else max(rows, key=scores[0].__getitem__)
            firsts = [max(rows, key=each.__getitem__) for each in scores[1:]]
            same.append(np.mean([first == best for first in firsts]))
            regret.append(np.mean([each[f] - each[best] for each, f in zip(scores[1:], firsts, strict=True)]))
        found = certainty(compared, numpy_generator(2, "loop"), shrinkage, share, pruned, draws)
        assert found.by_edge == pytest.approx(tuple(same))
        assert found.same == pytest.approx(np.mean(same))
        assert found.regret == pytest.approx(np.mean(regret))
    assert inspect.signature(certainty).parameters["draws"].default == 200


def test_a_search_stops_by_agreement_or_regret_or_budget_and_never_before_the_least_number():
    sure, unsure = Certainty(0.9, 0.5, ()), Certainty(0.5, 0.5, ())
    cheap = Certainty(0.5, 0.01, ())
    assert may_stop(sure, MIN_REPEATS - 1, 20) is None
    assert may_stop(sure, MIN_REPEATS, 20) == "agreement"
    assert may_stop(cheap, MIN_REPEATS, 20) == "regret"
    assert may_stop(unsure, 19, 20) is None
    assert may_stop(unsure, 20, 20) == may_stop(sure, 2, 2) == "budget"


def test_a_search_stops_at_85_per_cent_agreement_or_below_a_regret_of_5_hundredths():
    for same, regret, expected in (
        (0.85, 1.0, "agreement"),
        (0.849, 0.05, None),
        (0.849, 0.0499, "regret"),
    ):
        assert may_stop(Certainty(same, regret, ()), 4, 9) == expected
    assert may_stop(Certainty(1.0, 0.0, ()), 3, 9) is None
    assert may_stop(Certainty(1.0, 0.0, ()), 2, 9, 2) == "agreement"


def test_a_tie_goes_to_the_types_of_all_rounds_where_these_have_signal():
    bases = set()
    for seed in range(4):
        compared = planted(seed, earlier=3 * (seed % 2))
        if seed > 1:  # types that differ between edges of their cell
            by_type = {kind: 3.0 * k for k, kind in enumerate(dict.fromkeys(compared.types))}
            moved = compared.scores + [[by_type[kind]] for kind in compared.types]
            compared = replace(compared, scores=moved)
        values = slow.standardised(compared.scores, EDGES)
        if compared.earlier is not None:
            values = np.concatenate([values, slow.standardised(compared.earlier, EDGES)], 1)
        means = np.array([values[rows].mean(0) for rows in slow.rows_of(compared.types)])
        cells = [cell for cell, _ in dict.fromkeys(compared.types)]
        null = permutation_null(means, cells, numpy_generator(seed, "tie"))
        expected = "types" if single_repeat_reliability(means, cells) > null[1] else "parameters"
        assert stopping._basis_of_a_tie(compared, numpy_generator(seed, "tie")) == expected
        bases.add(expected)
    assert bases == {"types", "parameters"}


@pytest.mark.parametrize("shrinkage", [True, False])
@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_what_a_round_knows_is_what_its_functions_say_one_after_the_other(shrinkage, signal):
    compared, random = planted(3, signal=signal, earlier=2), numpy_generator(1, "round")
    scores, types = compared.scores, compared.types
    found = round_reliability(compared, numpy_generator(1, "round"), shrinkage, {OPERATORS[2]})
    single = single_repeat_reliability(scores, EDGES)
    assert (found.repeats, found.single) == (4, single)
    assert found.specific == single_repeat_reliability(scores, EDGES, types)
    assert found.null == permutation_null(scores, EDGES, random)
    basis = "operators"
    if shrinkage and single <= found.null[1]:
        basis = stopping._basis_of_a_tie(compared, random)
    assert found.basis == basis
    assert (basis == "operators") == (signal > 0 or not shrinkage)
    share = shrunken_scores(scores, EDGES, types)[1]
    assert found.share == share
    used = types if shrinkage else None
    assert found.agreement == half_agreement(scores, EDGES, random, used, earlier=compared.earlier)
    lam = 0.0 if basis == "types" else share
    assert found.certainty == certainty(compared, random, shrinkage, lam, {OPERATORS[2]})
    assert inspect.signature(round_reliability).parameters["shrinkage"].default is True
    assert replace(found, single=found.null[1]).tied
    assert not replace(found, single=found.null[1] + 1e-9).tied


def test_scores_without_any_difference_are_a_tie():
    found = round_reliability(replace(planted(0), scores=np.ones((13, 3))), numpy_generator(0, "round"))
    assert (found.single, found.null, found.basis) == (0.0, (0.0, 0.0), "parameters")


def test_edges_are_undecided_below_nine_tenths_or_where_sizes_decide():
    compared = Compared(np.zeros((5, 2)), list("aabcc"), OPERATORS[:5])
    found = round_reliability(planted(0), numpy_generator(0, "round"))
    sure = replace(found, basis="types", certainty=Certainty(0.5, 0.5, (0.89, 0.1, 0.9)))
    assert undecided_edges(compared, sure) == ("a",)
    assert undecided_edges(compared, replace(sure, basis="parameters")) == ("a", "c")


def test_the_scores_that_decide_are_those_of_all_repeats_or_of_the_types():
    compared = planted(6, signal=0.5, earlier=3)
    by_type, by_operator = (
        slow.shrunken(compared.scores, EDGES, compared.types, share, compared.earlier)[0]
        for share in (0.0, None)
    )
    for basis, undecided, rows in (("types", (), "abc"), ("operators", ("b",), "b"), ("operators", (), "")):
        found = decisive_scores(compared, range(13), basis, undecided)
        np.testing.assert_allclose(
            found, np.where([each in rows for each in EDGES], by_type, by_operator), rtol=1e-9
        )
    doubled = replace(compared, operators=[*OPERATORS[:4], OPERATORS[0], *OPERATORS[5:]])
    own = shrunken_scores(compared.scores, EDGES, doubled.types, None, compared.earlier)[0]
    of_a = np.array([each == "a" for each in EDGES])
    np.testing.assert_array_equal(decisive_scores(doubled, range(13), "types")[of_a], own[of_a])
