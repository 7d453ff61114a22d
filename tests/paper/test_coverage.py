"""Nothing of the paper is left out: every statement has a test or a reason, every erratum that matters a proof."""

from tests.paper.test_statements import ERRATA, STATEMENTS, TESTS, marks


def uncovered(named, statements, errata):
    """(statements without test and reason, errata beyond slips of the pen without test)."""
    without = [
        name for name, one in statements.items() if ("paper", name) not in named and not one.get("reason")
    ]
    unproven = [
        name
        for name, one in errata.items()
        if ("erratum", name) not in named and one["severity"] != "cosmetic"
    ]
    return without, unproven


def named_by_tests():
    # a test of the marks themselves quotes some in a string, which is no mark
    return {mark for file in TESTS.rglob("test_*.py") for mark in marks(file.read_text(encoding="utf-8"))}


def test_every_statement_has_a_test_or_a_reason_and_every_erratum_that_matters_a_test():
    assert uncovered(named_by_tests(), STATEMENTS, ERRATA) == ([], [])


def test_what_is_not_covered_is_named():
    statements = {"Eq. (1)": {}, "Eq. (2)": {}, "fn. 1": {"reason": "history"}}
    errata = {"E1": {"severity": "claim"}, "E2": {"severity": "step"}, "E3": {"severity": "cosmetic"}}
    named = {("paper", "Eq. (1)"), ("erratum", "E2")}
    assert uncovered(named, statements, errata) == (["Eq. (2)"], ["E1"])
