import json

import pytest

from mamltheory.errors import DataError
from tests.ledger import plugin as ledger_plugin
from tests.ledger.ledger import MISSING, Erratum, Measured, Outcome, Statement, load, merged, verdict
from tests.ledger.text import number_text, render, skeleton

pytest_plugins = "pytester"
PLAIN = Statement("Eq. (2)", "Section 3", "identity", "the loss")


def outcome(passed=True, **more):
    return Outcome("Eq. (2)", "test_a", passed, **more)


@pytest.mark.parametrize(
    ("statement", "outcomes", "expected"),
    [
        (PLAIN, [outcome()], "holds"),
        (PLAIN, [outcome(), outcome(False)], "FAILS"),
        (PLAIN, [outcome(corrected=True), outcome()], "holds as corrected"),
        (PLAIN, [outcome(False, corrected=True)], "FAILS"),
        (PLAIN, [outcome(refuted=True)], "refuted"),
        (PLAIN, [], MISSING),
        (Statement("T", "", "experiment", "", reason="needs ImageNet"), [], "not checkable here"),
        (Statement("T", "", "identity", "", condition="l large"), [outcome()], "holds under a condition"),
        (Statement("T", "", "definition", ""), [outcome()], "definition"),
        (Statement("T", "", "definition", ""), [], MISSING),
    ],
)
def test_the_verdict_follows_from_the_outcomes(statement, outcomes, expected):
    assert verdict(statement, outcomes) == expected


def test_cases_of_one_test_are_added_up_and_the_worst_number_is_kept():
    small, large = Measured("error", 1e-12, 1e-10), Measured("error", 3e-11, 1e-10)
    margin, less = Measured("margin", 0.5, 0.1, above=True), Measured("margin", 0.2, 0.1, above=True)
    (total,) = merged([outcome(measured=(large, margin)), outcome(measured=(small, less))])
    assert total.cases == 2
    assert total.measured == (large, less)


def test_the_text_has_a_row_for_every_statement_and_erratum_with_number_and_bound():
    statements = (
        PLAIN,
        Statement("Table 1", "Section 6", "experiment", "accuracies", reason="needs ImageNet"),
    )
    errata = (
        Erratum("E1", "Eq. (2)", "a | sign", "the other", "claim", ("Eq. (2)",)),
        Erratum("E2", "Eq. (2)", "a name", "another", "cosmetic", reason="nothing depends on it"),
    )
    numbers = (Measured("error", 2.34e-3, 1e-2), Measured("rounding", 3e-16, 1e-10))
    proof = Outcome("E1", "test_b", True, measured=numbers[:1])
    text = render(statements, errata, [outcome(measured=numbers), proof])
    row = next(line for line in text.splitlines() if line.startswith("| Eq. (2) |"))
    assert "**holds**" in row
    assert "error: 2.3e-03 (< 0.01)" in row
    assert "rounding: < 1e-7" in row
    assert "`test_a` (1)" in row
    assert "| Table 1 | **not checkable here** |" in text
    assert r"a \| sign" in text
    assert "*Reason:* nothing depends on it" in text
    assert "2 errata, 1 of them proven by numbers" in text
    assert "Of 1 statements that can be checked here, none fails" in text
    assert "1 hold as printed" in text
    assert "the errata that matter" not in text
    assert "<b>Section 3</b>: 1 × holds</summary>" in text
    assert text.count("<details>") == text.count("\n</details>\n") == 2 + 2 + 1


def test_what_fails_is_said_first():
    text = render([PLAIN], [], [outcome(False)])
    assert "**Not everything holds: 1 × FAILS.** Of the others" in text
    assert "theory holds" not in text


def test_the_results_stand_first_with_formula_and_number():
    chief = Statement("Eq. (3)", "Section 3", "identity", "", important=1, consequence="It is so.", formula="|a|",
                      numbers=("error", "gap"))  # fmt: skip
    text = render([PLAIN, chief], [], [Outcome("Eq. (3)", "t", True, measured=(Measured("error", 0.5, 1),))])
    assert text.splitlines()[6] == (
        r"| **Eq. (3).** It is so. | \|a\| | error: 0.5 (< 1)<br>gap: NOT MEASURED |"
    )


def test_the_summary_names_the_most_important_errata_with_the_numbers_of_the_tests():
    def erratum(name, place, *numbers):
        return Erratum(name, "Eq. (2)", "a", "b = c", "claim", (), "", place, f"{name} matters.", numbers)

    errata = [erratum("E1", 2, "gap"), erratum("E2", 1, "error", "loss"), erratum("E3", 0)]
    worse, better = Measured("error", 0.5, 0.2, above=True), Measured("error", 0.7, 0.2, above=True)
    text = render([], errata, [Outcome("E2", name, True, measured=(one,)) for name, one in
                               (("test_a", better), ("test_b", worse))])  # fmt: skip
    summary = text[text.index("| the errata that matter") : text.index("## Statements")].split("\n")[2:]
    assert summary[0] == (
        "| **E2, Eq. (2).** E2 matters. | b = c | error: 0.5 (> 0.2)<br>loss: NOT MEASURED |"
    )
    assert summary[1].startswith("| **E1, Eq. (2).** E1 matters.")
    assert "E3 matters" not in text


def test_a_row_is_run_and_printed_alone(pytester):
    """By the command that the ledger names, on a test suite of its own."""
    pytester.makepyfile(
        conftest="from tests.ledger.plugin import *",
        test_some="""
import pytest
@pytest.mark.paper("Eq. (1)")
def test_one(measured): measured("error", 0.25, below=1)
@pytest.mark.erratum("E1")
@pytest.mark.slow
def test_two(measured): measured("gap", 3, above=1)
def test_three(): pass
""",
    )
    for row, test, number in (
        ("Eq. (1)", "test_one", "error: 0.25 (< 1)"),
        ("E1", "test_two", "gap: 3 (> 1)"),
    ):
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-m", "", "--row", row)
        result.assert_outcomes(passed=1, deselected=2)
        result.stdout.fnmatch_lines([f"*{test}*", f"*{number}*"])


def test_values_may_differ_between_machines_and_nothing_else():
    def text(value, bound, passed=True):
        return skeleton(render([PLAIN], [], [outcome(passed, measured=(Measured("error", value, bound),))]))

    assert text(2.3e-3, 1e-2) == text(2.4e-3, 1e-2) == text(-3.0, 1e-2) == text(1e-12, 1e-2)
    assert text(2.3e-3, 1e-2) != text(2.3e-3, 2e-2)
    assert text(2.3e-3, 1e-2) != text(2.3e-3, 1e-2, passed=False)


def test_a_bound_is_not_rounded_to_the_value_that_it_bounds():
    assert number_text(Measured("share", 12, 11.5, above=True)) == "share: 12 (> 11.5)"


def test_a_text_is_out_of_date_when_it_is_missing_or_says_something_else(tmp_path):
    path, text = tmp_path / "page.html", "error: 0.5 (< 1)"
    assert ledger_plugin.is_stale(path, text)
    path.write_text("error: 0.25 (< 1)", encoding="utf-8")
    assert not ledger_plugin.is_stale(path, text)
    assert ledger_plugin.is_stale(path, text.replace("1)", "2)"))


def test_the_order_in_which_cases_report_does_not_make_the_ledger_stale():
    numbers = (Measured("a", 0.1, 1.0), Measured("b", 0.2, 1.0))
    one, other, less = (
        render([PLAIN], [], [outcome(measured=m)]) for m in (numbers, numbers[::-1], numbers[:1])
    )
    assert one != other
    assert skeleton(one) == skeleton(other) != skeleton(less)


def test_the_stored_outcomes_of_the_slow_tests_belong_to_the_code_as_it_is():
    stored = json.loads(ledger_plugin.SLOW.read_text(encoding="utf-8"))["tested_code"]
    assert stored == ledger_plugin.tested_code(), (
        "the theory's modules changed since: run make slow, then make ledger"
    )


def test_an_entry_that_does_not_fit_the_format_is_named(tmp_path):
    path = tmp_path / "statements.toml"
    path.write_text('erratum = []\n[[statement]]\nid = "Eq. (1)"\nwere = "Section 3"\n')
    with pytest.raises(DataError, match=r"statements\.toml"):
        load(path)


def test_a_number_beyond_its_bound_fails_and_is_noted(measured, request):
    measured("ratio", 0.5, below=1)
    with pytest.raises(AssertionError, match="ratio is 2"):
        measured("ratio", 2, below=1)
    noted = [value for key, value in request.node.user_properties if key == "measured"]
    assert noted == [("ratio", 0.5, 1.0, False), ("ratio", 2.0, 1.0, False)]
