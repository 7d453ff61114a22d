"""The compared methods are settings of one search: each says what decides, and nothing else changes."""

import dataclasses
import math

import pytest

from experiments.search import search
from experiments.search.settings import SEARCH, Search
from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.protocols import METHODS
from tests.experiments.tiny import SIZE, nearly_done

CRITERIA = {
    "metantk-nas": ("condition", "regions"),
    "te-nas": ("condition", "regions"),
    "regions": ("regions",),
    "random": (),
    "halving": (),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_what_decides_and_leaves_the_protocols_repeats_ties_and_inputs(method):
    for protocol in ("paper", "released"):
        usual, chosen = (Search(protocol=protocol, method=m).resolved() for m in ("metantk-nas", method))
        for name in ("repeats", "tasks", "two_inputs", "common_random_numbers", "initialisation"):
            expected = True if (method, name) == ("halving", "two_inputs") else getattr(usual, name)
            assert getattr(chosen, name) == expected, name
        assert chosen.ties == ("min" if method == "random" else usual.ties)
        assert chosen.criteria == CRITERIA[method]
        assert search.rules_of(chosen).criteria == CRITERIA[method]
        assert chosen.resolved() == chosen
    scorer = search.scorer_of(Search(method=method), "cpu")
    assert (scorer.tasks is not None) == ("condition" in CRITERIA[method])
    assert (scorer.patches is not None) == ("regions" in CRITERIA[method])


def test_te_nas_has_the_plain_kernel_of_summed_outputs_whatever_kernel_a_preset_names():
    for preset in ("mini-5", "mini-8"):
        chosen = dataclasses.replace(SEARCH[preset], method="te-nas").resolved()
        assert (chosen.kernel, chosen.outputs, chosen.difference) == ("ntk", "sum", "relative")
        assert (chosen.inner_time, chosen.metric, chosen.estimator) == (
            math.inf,
            "condition",
            "leave-one-out",
        )
        assert search.scorer_of(chosen, "cpu").settings.kernel == "ntk"


def test_what_is_given_by_itself_stands_above_the_method():
    chosen = Search(method="te-nas", difference="log", regions=False).resolved()
    assert (chosen.difference, chosen.criteria) == ("log", ("condition",))
    with pytest.raises(ConfigurationError, match="--no-regions"):
        Search(method="regions", estimator="gradient")


def test_a_random_cell_needs_no_scores_and_every_seed_has_its_own():
    found = []
    for seed in range(3):
        rules = search.rules_of(Search(**SIZE, method="random", seed=seed))
        assert Round.of(SearchState(), rules).pending() == ()
        found.append(run_search(None, rules).candidates.genotype())
    assert len({str(each) for each in found}) == 3
    rules = search.rules_of(Search(method="random", protocol="released"))
    genotype = run_search(None, rules).candidates.genotype()
    assert all(len(node) == 2 for node in genotype.normal.nodes)
    assert len({operation for *_, operation in genotype.edges()["normal"]}) > 1
    assert run_search(None, rules, nearly_done()).candidates.genotype()
