"""Nothing of the paper is left out: every statement has a test or a reason, every erratum numbers or a reason."""

import ast

from tests.paper.test_statements import ERRATA, STATEMENTS, TESTS, marks


def uncovered(named, statements, errata):
    """(statements without test and reason, errata without measured numbers and reason)."""
    without = [
        name for name, one in statements.items() if ("paper", name) not in named and not one.get("reason")
    ]
    unproven = [
        name for name, one in errata.items() if ("number", name) not in named and not one.get("reason")
    ]
    return without, unproven


def named_by_tests():
    # a test of the marks themselves quotes some in a string, which is no mark
    sources = [file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py")]
    return {mark for source in sources for mark in (*marks(source), *numbers(source))}


def numbers(source):
    """("number", erratum) for every erratum of a test that holds measured numbers against bounds."""
    for test in ast.walk(ast.parse(source)):
        if isinstance(test, ast.FunctionDef) and "measured" in {one.arg for one in test.args.args}:
            for mark in test.decorator_list:
                yield from (("number", name) for kind, name in marks(ast.unparse(mark)) if kind == "erratum")


def test_every_statement_has_a_test_or_a_reason_and_every_erratum_numbers_or_a_reason():
    assert uncovered(named_by_tests(), STATEMENTS, ERRATA) == ([], [])


def test_what_is_not_covered_is_named():
    statements = {"Eq. (1)": {}, "Eq. (2)": {}, "fn. 1": {"reason": "history"}}
    errata = {"E1": {}, "E2": {}, "E3": {"reason": "a misspelt name"}, "E4": {}}
    named = {("paper", "Eq. (1)"), ("number", "E2"), ("erratum", "E4")}
    assert uncovered(named, statements, errata) == (["Eq. (2)"], ["E1", "E4"])


def test_only_a_test_that_measures_proves_an_erratum_by_a_number():
    source = """
@pytest.mark.erratum("E1")
def test_a(measured): pass
@pytest.mark.erratum("E2")
def test_b(): pass
"""
    assert list(numbers(source)) == [("number", "E1")]
