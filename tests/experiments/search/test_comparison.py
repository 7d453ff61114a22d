"""The comparison of protocols, on searches whose scores are planted."""

import dataclasses
import json

import pytest

from experiments.search import comparison, search
from experiments.search.comparison_report import comparison_table
from experiments.search.settings import Protocols
from mamltheory.nas.algorithms.algorithm1 import step
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.runtime.records import to_json
from tests.reference.nas_toy import noisy_gradient_scorer

RULES = SearchSettings(repeats=2, criteria=("condition",), estimator="gradient")
SIGNAL = {
    "avg_pool_3x3BN": 6.0,
    "skip_connect": 5.0,
    "max_pool_3x3BN": 4.0,
    "conv_3x3": 3.0,
    "dil_conv_3x3": 2.0,
}


def leave(settings, noise, rounds=6):
    """A run folder as a search leaves it, after so many rounds of 10 CPU seconds."""
    state = SearchState()
    settings.out.mkdir(parents=True)
    with (settings.out / "metrics.jsonl").open("a") as metrics:
        while not Round.of(state, RULES).is_finished and len(state.reports) < rounds:
            state = step(state, noisy_gradient_scorer(SIGNAL, noise, settings.seed), RULES)
            metrics.write(
                to_json({"round": state.round_index, "cpu_seconds": 10.0 * state.round_index}, None)
            )
    search.write_state(settings, search.SavedSearch(state, 10.0 * rounds))


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """Settings of a comparison of two clear, two noisy, and two unfinished searches that has been reported."""
    folder = tmp_path_factory.mktemp("protocols")
    settings = Protocols(runs=folder / "runs", out=folder / "figures", stable=2, measure=False)
    for name, noise, rounds in (("stable", 0.1, 6), ("paper", 30.0, 6), ("released", 1.0, 2)):
        for each in settings.searches()[name]:
            leave(each, noise, rounds)
    assert comparison.compare_protocols(settings) == 0
    return settings


def test_searches_that_agree_are_told_from_searches_that_do_not(reported):
    found = json.loads((reported.out / "protocols.json").read_text())["protocols"]
    clear, noisy = found["stable"]["summary"], found["paper"]["summary"]
    assert clear["first_two"] == 1.0
    assert clear["rounds"][:5] == [1.0] * 5
    assert noisy["first_two"] < 0.5
    assert 0 <= noisy["final"] < 10 <= clear["final"] <= 18
    assert clear["cpu_seconds"] == 60.0
    assert clear["reliability_early"] > 0.9 > 0.5 > noisy["reliability_early"]
    assert found["stable"]["searches"]["1"]["rounds"][3]["cpu_seconds"] == 10.0


def test_unfinished_searches_are_compared_as_far_as_they_have_come(reported):
    found = json.loads((reported.out / "protocols.json").read_text())["protocols"]["released"]
    assert found["summary"]["final"] is found["summary"]["cpu_seconds"] is None
    assert found["summary"]["rounds"][2:] == [None] * 4
    assert "| released | 2, 1 | – (unfinished)" in (reported.out / "protocols.md").read_text()


def test_the_table_says_what_chance_gives_and_on_what_it_was_measured(reported):
    found = json.loads((reported.out / "protocols.json").read_text())
    text = comparison_table(found)
    assert "2.6 of 18" in text
    assert found["machine"]["processor"] in text
    assert {path.name for path in reported.out.iterdir()} >= {"protocols_figure.png", "protocols.md"}


def test_searches_of_a_protocol_differ_in_their_seeds_alone():
    searches = Protocols().searches()
    assert {name: len(each) for name, each in searches.items()} == {"paper": 2, "released": 2, "stable": 4}
    first, second = searches["stable"][:2]
    assert dataclasses.replace(first, seed=second.seed, out=second.out) == second
