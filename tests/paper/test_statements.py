"""The paper's statements as data: complete, consistent, without circles, and known to every test that names one.

Nothing of the paper is left out: every statement has a test or a reason, every erratum numbers or a reason.
"""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.ledger.ledger import VERDICTS, Outcome, load, verdict

TESTS = Path(__file__).parents[1]
CONTENT = tomllib.loads((Path(__file__).parent / "statements.toml").read_text(encoding="utf-8"))
STATEMENTS = {entry["id"]: entry for entry in CONTENT["statement"]}
ERRATA = {entry["id"]: entry for entry in CONTENT["erratum"]}
KINDS = {"identity", "limit", "inequality", "definition", "algorithm", "arithmetic", "recipe", "experiment"}
NUMBERED = {
    *(f"Assumption {i}" for i in range(1, 6)),
    *(f"Lemma {i}" for i in range(1, 6)),
    *(f"Theorem {i}" for i in range(1, 5)),
    *(f"fn. {i}" for i in range(1, 14)),
    *(
        "Def. 1",
        "Def. 2",
        "Corollary 3.1",
        "Alg. 1 (MAML)",
        "Algorithm 1 (MetaNTK-NAS)",
        "Table 1",
        "Table 2",
    ),
}


def marks(source: str) -> Iterator[tuple[str, object]]:
    """(mark, argument) of every pytest.mark.paper and pytest.mark.erratum; None for one that is no plain string."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="mark"), attr="paper" | "erratum" as mark)
            ):
                for argument in node.args:
                    yield mark, argument.value if isinstance(argument, ast.Constant) else None


def unknown(source: str) -> list[tuple[str, object]]:
    known = {"paper": STATEMENTS, "erratum": ERRATA}
    return [(mark, name) for mark, name in marks(source) if name not in known[mark]]


def duplicates(entries: list[dict]) -> set[str]:
    ids = [entry["id"] for entry in entries]
    return {name for name in ids if ids.count(name) > 1}


def test_no_two_entries_share_an_id():
    assert not duplicates(CONTENT["statement"])
    assert not duplicates(CONTENT["erratum"])


@pytest.mark.parametrize(
    ("table", "required", "optional"),
    [
        (
            "statement",
            {"id", "where", "kind", "claim", "uses"},
            {
                *("restates", "errata", "reason", "condition"),
                *("important", "consequence", "formula", "numbers"),
            },
        ),
        (
            "erratum",
            {"id", "where", "wrong", "corrected", "severity", "statements"},
            {"reason", "important", "consequence", "numbers"},
        ),
    ],
)
def test_every_entry_has_the_fields_of_the_format_each_on_one_line(table, required, optional):
    for entry in CONTENT[table]:
        assert required <= set(entry) <= required | optional, entry["id"]
        for key, value in entry.items():
            texts = value if isinstance(value, list) else [str(value)]
            assert all(text.strip() == text != "" and "\n" not in text for text in texts), (entry["id"], key)
            assert len(set(texts)) == len(texts), (entry["id"], key)


def test_kinds_and_severities_are_the_known_ones():
    assert {entry["kind"] for entry in CONTENT["statement"]} <= KINDS
    assert {entry["severity"] for entry in CONTENT["erratum"]} == {"cosmetic", "constant", "step", "claim"}


def test_all_112_equations_are_there_in_the_order_of_the_paper():
    numbers = [int(name[5:-1]) for name in STATEMENTS if name.startswith("Eq. (")]
    assert numbers == list(range(1, 113))


def test_everything_else_that_the_paper_numbers_is_there():
    assert set(STATEMENTS) >= NUMBERED


def test_errata_are_numbered_without_a_gap():
    assert list(ERRATA) == [f"E{i}" for i in range(1, len(ERRATA) + 1)]
    assert len(ERRATA) >= 43


def test_three_errata_are_the_most_important_each_with_its_consequence_and_numbers():
    chosen = [entry for entry in ERRATA.values() if "important" in entry]
    assert sorted(entry["important"] for entry in chosen) == [1, 2, 3]
    assert all(entry["consequence"].endswith(".") and len(entry["numbers"]) >= 2 for entry in chosen)
    assert not any(
        "consequence" in entry or "numbers" in entry for entry in ERRATA.values() if entry not in chosen
    )


def test_the_results_that_the_summary_names_have_a_formula_a_consequence_and_numbers():
    chosen = [entry for entry in STATEMENTS.values() if "important" in entry]
    assert sorted(entry["important"] for entry in chosen) == [1, 2, 3, 4]
    for entry in chosen:
        assert {"consequence", "formula", "numbers"} <= set(entry), entry["id"]
        assert len(entry["numbers"]) >= 2, entry["id"]


def test_statements_rest_on_statements_of_the_file_without_a_circle():
    graph = {name: entry["uses"] for name, entry in STATEMENTS.items()}
    assert not {used for uses in graph.values() for used in uses} - set(STATEMENTS)
    assert len(list(TopologicalSorter(graph).static_order())) == len(
        STATEMENTS
    )  # raises CycleError for a circle


def corrections(source: str) -> Iterator[tuple[str, bool]]:
    """(statement, whether the test says that the printed form fails) of every pytest.mark.paper."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Attribute(attr="mark"), attr="paper")):
                corrected = any(one.arg == "corrected" for one in node.keywords)
                yield from ((one.value, corrected) for one in node.args if isinstance(one, ast.Constant))


@cache
def foreseen() -> dict[str, str]:
    """The verdict of every statement when all tests pass, from the marks alone."""
    sources = [text for file in TESTS.rglob("test_*.py") if "mark.paper" in (text := file.read_text("utf-8"))]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in STATEMENTS}
    for name, corrected in (pair for source in sources for pair in corrections(source)):
        outcomes.get(name, []).append(Outcome(name, "test", True, corrected=corrected))
    statements, _ = load(Path(__file__).parent / "statements.toml")
    return {one.id: verdict(one, outcomes[one.id]) for one in statements}


def contradictions(statements, verdicts):
    """Rows that do not have the worst verdict of the rows that they restate; a definition counts as what holds."""
    order = list(VERDICTS)

    def rank(name):
        return order.index("holds" if verdicts[name] == "definition" else verdicts[name])

    return [
        name
        for name, one in statements.items()
        if one.get("restates") and rank(name) != min(rank(other) for other in one["restates"])
    ]


def too_good(statements, errata, verdicts):
    """Rows that hold without more, though an erratum that is more than a slip of the pen belongs to them."""
    return [
        name
        for name, one in statements.items()
        if verdicts[name] in ("holds", "definition")
        and any(errata[e]["severity"] != "cosmetic" for e in one.get("errata", ()))
    ]


def test_a_row_that_restates_others_has_their_worst_verdict():
    restated = {other for one in STATEMENTS.values() for other in one.get("restates", ())}
    assert len(restated) > 20
    assert restated <= set(STATEMENTS)
    assert contradictions(STATEMENTS, foreseen()) == []


def test_a_row_with_an_erratum_of_weight_does_not_simply_hold():
    assert too_good(STATEMENTS, ERRATA, foreseen()) == []


def test_a_contradiction_and_a_verdict_that_is_too_good_are_named():
    statements = {
        "Eq. (1)": {"errata": ["E1"]},
        "Eq. (2)": {"restates": ["Eq. (1)", "Eq. (3)"], "errata": ["E2"]},
        "Eq. (3)": {"restates": ["Eq. (4)"]},
        "Eq. (4)": {},
    }
    errata = {"E1": {"severity": "cosmetic"}, "E2": {"severity": "step"}}
    verdicts = dict.fromkeys(statements, "holds") | {"Eq. (4)": "definition"}
    assert contradictions(statements, verdicts) == []
    assert too_good(statements, errata, verdicts) == ["Eq. (2)"]
    verdicts["Eq. (1)"] = "holds as corrected"
    assert contradictions(statements, verdicts) == ["Eq. (2)"]
    source = """
@pytest.mark.paper("Eq. (2)", corrected=True)
@pytest.mark.paper("Eq. (3)")
def test(): pass
"""
    assert list(corrections(source)) == [("Eq. (2)", True), ("Eq. (3)", False)]


def test_statements_and_errata_name_each_other():
    of_statements = {(name, e) for name, entry in STATEMENTS.items() for e in entry.get("errata", ())}
    of_errata = {(name, e) for e, entry in ERRATA.items() for name in entry["statements"]}
    assert of_statements == of_errata
    assert {name for name, _ in of_errata} <= set(STATEMENTS)
    assert {e for _, e in of_errata} == set(ERRATA)


def test_every_mark_names_a_statement_or_an_erratum_of_the_file():
    wrong = {str(file.relative_to(TESTS)): unknown(file.read_text("utf-8")) for file in TESTS.rglob("*.py")}
    assert {file: names for file, names in wrong.items() if names} == {}


def test_a_mark_is_found_wherever_it_stands_and_a_wrong_one_is_named():
    source = """
pytestmark = pytest.mark.paper("Eq. (2)", "Eq. (113)")
@pytest.mark.erratum("E0")
@pytest.mark.parametrize("a", [pytest.param(1, marks=pytest.mark.paper(name, corrected=True))])
def test(a): pass
"""
    assert next(marks(source)) == ("paper", "Eq. (2)")
    assert set(unknown(source)) == {("paper", "Eq. (113)"), ("erratum", "E0"), ("paper", None)}


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
