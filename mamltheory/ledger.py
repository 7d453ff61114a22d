"""The ledger of the paper's statements: what each test run says of each of them, as Markdown.

A verdict is derived from test outcomes alone, never typed: the tests name the statements that they verify.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

HEADER = """# What the tests say of the paper's statements

Written by `make ledger` from the outcomes of the fast tests; `make test` fails when this file is out of date.
A statement *holds* when every test that names it passed. It *holds as corrected* when the test asserts both that
the printed formula fails and that the corrected one holds; the test's docstring says what was corrected. One row
again: `.venv/bin/python -m pytest -k NAME`, NAME being a test of the row.

| statement | verdict | tests | cases |
|---|---|---|---|
"""
KINDS = ("Sec.", "Def.", "Assumption", "Alg.", "Eq.", "Theorem", "Lemma", "Corollary", "fn.", "Erratum")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one test case for one of the statements that it names.

    corrected: the test asserts that the printed form fails and that a corrected one holds.
    """

    statement: str
    test: str
    passed: bool
    corrected: bool = False


def reading_order(statement: str) -> tuple[int, int, str]:
    """Sort key: by kind, then by number."""
    kind = next((i for i, name in enumerate(KINDS) if statement.startswith(name)), len(KINDS))
    number = re.search(r"\d+", statement)
    return kind, int(number.group()) if number else 0, statement


def render(outcomes: Iterable[Outcome]) -> str:
    """The ledger as Markdown: one row a statement, in the paper's order."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.statement, []).append(outcome)
    return HEADER + "".join(_row(statement, rows[statement]) for statement in sorted(rows, key=reading_order))


def _row(statement: str, outcomes: list[Outcome]) -> str:
    failed = sum(not outcome.passed for outcome in outcomes)
    corrected = any(outcome.corrected for outcome in outcomes)
    verdict = f"FAILS in {failed}" if failed else "holds as corrected" if corrected else "holds"
    tests = "<br>".join(f"`{name}`" for name in sorted({outcome.test for outcome in outcomes}))
    return f"| {statement} | {verdict} | {tests} | {len(outcomes)} |\n"
