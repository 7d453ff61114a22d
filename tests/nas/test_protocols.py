"""What the methods and protocols decide by, as the paper and the released code have it."""

import pytest

from mamltheory.nas.protocols import METHODS, PROTOCOLS, criteria


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
