"""What the methods and protocols decide by, as the paper and the released code have it."""

import math

import pytest

from mamltheory.nas.protocols import KERNELS, METHODS, OWN_SCORE, PROTOCOLS, criteria


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_methods_rank_by_what_they_are_named_for_under_every_protocol(protocol):
    found = {
        method: criteria(method, {**PROTOCOLS[protocol], **changes}["regions"])
        for method, changes in METHODS.items()
    }
    assert found["te-nas"] == ("condition", "regions")
    assert found["regions"] == ("regions",)
    assert found["random"] == found["halving"] == ()
    assert found["metantk-nas"] == (("condition",) if protocol == "stable" else ("condition", "regions"))


def test_only_the_stable_protocol_stops_early_and_estimates_by_gradients():
    for name, values in PROTOCOLS.items():
        stable = name == "stable"
        assert (values["stopping"], values["shrinkage"], values["estimator"] == "gradient") == (stable,) * 3
        assert values["two_inputs"] == (name == "released")
        assert not {**values, **METHODS["random"]}["stopping"]
        assert {**values, **METHODS["te-nas"]}["estimator"] == "leave-one-out"
        assert values["repeats"] == {"paper": 3, "released": 3, "stable": 16}[name]
        assert values["tasks"] == {"paper": 3, "released": 3, "stable": 12}[name]


def test_the_methods_and_own_scores_change_these_settings_and_no_others():
    singly = {"estimator": "leave-one-out", "shrinkage": False}
    assert {
        "metantk-nas": {},
        "halving": {},
        "te-nas": singly
        | {"metric": "condition", "outputs": "sum", "difference": "relative", "regions": True},
        "regions": singly | {"regions": True},
        "random": singly | {"regions": False, "stopping": False, "ties": "min"},
    } == METHODS
    common = {"estimator": "leave-one-out", "regions": False}
    assert common | {"difference": "absolute", "common_random_numbers": True} == OWN_SCORE
    assert {"te-nas": {"kernel": "ntk", "inner_time": math.inf, "ridge": 0.001}} == KERNELS


def test_the_protocols_differ_from_the_paper_in_these_settings():
    paper = PROTOCOLS["paper"]
    assert paper == {
        "metric": "condition",
        "estimator": "leave-one-out",
        "regions": True,
        "outputs": "full",
        "tasks": 3,
        "repeats": 3,
        "stopping": False,
        "least_repeats": 4,
        "shrinkage": False,
        "difference": "absolute",
        "ties": "min",
        "initialisation": "kaiming",
        "common_random_numbers": True,
        "two_inputs": False,
    }
    changes = {name: {k: v for k, v in of.items() if v != paper[k]} for name, of in PROTOCOLS.items()}
    assert changes["released"] == {
        "outputs": "sum",
        "difference": "relative",
        "ties": "dense",
        "initialisation": "default",
        "common_random_numbers": False,
        "two_inputs": True,
    }
    assert changes["stable"] == {
        "metric": "harmonic",
        "estimator": "gradient",
        "regions": False,
        "outputs": "sum",
        "tasks": 12,
        "repeats": 16,
        "stopping": True,
        "least_repeats": 8,
        "shrinkage": True,
        "difference": "log",
    }
