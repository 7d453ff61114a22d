"""The ledger of the paper: statements and errata as data, and verdicts that follow from test outcomes alone.

A test names the statements that it verifies and the errata that it proves, and records measured numbers. Nothing
here is ever typed by hand but the restatements of the paper: a statement without a test needs a reason.
"""

import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mamltheory.errors import DataError

Kind = Literal[
    "identity", "limit", "inequality", "definition", "algorithm", "arithmetic", "recipe", "experiment"
]
FAILS, MISSING = "FAILS", "NO TEST AND NO REASON"
VERDICTS = {
    FAILS: "a test that names it failed",
    MISSING: "neither a test nor a reason",
    "refuted": "the printed statement is false, and there is nothing to put in its place",
    "holds as corrected": "the tests assert that the printed form fails and that the corrected one holds",
    "holds under a condition": "it holds under a condition that the paper does not state",
    "holds": "every test that names it passed",
    "definition": "a definition, and the code follows it (every test that names it passed)",
    "not checkable here": "the reason is given",
}
"""Every verdict, worst first, with what it means."""
COLOURS = dict(
    zip(
        VERDICTS,
        ("#000000", "#000000", "#D55E00", "#E69F00", "#F0E442", "#009E73", "#56B4E9", "#D9D9D9"),
        strict=True,
    )
)
"""Of Okabe and Ito, readable with every common colour blindness."""


@dataclass(frozen=True)
class Statement:
    """A numbered statement of the paper in our words, with what it rests on; see ``tests/paper/statements.toml``.

    important: its place among the results that the summary names, 0 for none; these have a consequence in one sentence,
    a formula, and the names of the measured numbers that show it.
    """

    id: str
    where: str
    kind: Kind
    claim: str
    uses: tuple[str, ...] = ()
    restates: tuple[str, ...] = ()
    errata: tuple[str, ...] = ()
    reason: str = ""
    condition: str = ""
    important: int = 0
    consequence: str = ""
    formula: str = ""
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Erratum:
    """An error of the paper with its correction; ``severity`` says what it costs.

    reason: why no number proves it. important: its place among the errata that the summary names, 0 for none; these
    have a consequence in one sentence and the names of the measured numbers that show it.
    """

    id: str
    where: str
    wrong: str
    corrected: str
    severity: Literal["cosmetic", "constant", "step", "claim"]
    statements: tuple[str, ...] = ()
    reason: str = ""
    important: int = 0
    consequence: str = ""
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A number that a test measured, with the bound that it was held against."""

    what: str
    value: float
    bound: float
    above: bool = False

    def worse(self, other: "Measured") -> "Measured":
        """The one of the two that lies nearer to the bound."""
        pick = min if self.above else max
        return pick(self, other, key=lambda one: one.value)


@dataclass(frozen=True)
class Outcome:
    """What one test says of one statement or erratum, all its cases taken together."""

    subject: str
    test: str
    passed: bool
    cases: int = 1
    corrected: bool = False
    refuted: bool = False
    slow: bool = False
    measured: tuple[Measured, ...] = ()

    def __add__(self, other: "Outcome") -> "Outcome":
        """The same test's next case."""
        numbers = {one.what: one for one in self.measured}
        for one in other.measured:
            numbers[one.what] = one.worse(numbers[one.what]) if one.what in numbers else one
        return Outcome(
            self.subject,
            self.test,
            self.passed and other.passed,
            self.cases + other.cases,
            self.corrected or other.corrected,
            self.refuted or other.refuted,
            self.slow or other.slow,
            tuple(numbers.values()),
        )


def load(path: Path) -> tuple[tuple[Statement, ...], tuple[Erratum, ...]]:
    """Statements and errata of the file, in its order; raises DataError for one that does not fit the format."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        statements = tuple(Statement(**_tuples(entry)) for entry in content["statement"])
        errata = tuple(Erratum(**_tuples(entry)) for entry in content["erratum"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path.name} has an entry that is no statement or erratum: {error}") from error
    return statements, errata


def _tuples(entry: dict[str, object]) -> dict[str, object]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def merged(outcomes: Collection[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes with the cases of one test added up, sorted by test."""
    total: dict[tuple[str, str], Outcome] = {}
    for one in outcomes:
        key = one.subject, one.test
        total[key] = total[key] + one if key in total else one
    return tuple(total[key] for key in sorted(total))


def verdict(statement: Statement, outcomes: Sequence[Outcome]) -> str:
    """One of VERDICTS, from the outcomes of the tests that name the statement."""
    if any(not one.passed for one in outcomes):
        return FAILS
    if not outcomes:
        return "not checkable here" if statement.reason else MISSING
    if any(one.refuted for one in outcomes):
        return "refuted"
    if any(one.corrected for one in outcomes):
        return "holds as corrected"
    if statement.condition:
        return "holds under a condition"
    return "definition" if statement.kind == "definition" else "holds"


def of(subject: str, outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes that speak of one statement or erratum."""
    return tuple(one for one in outcomes if one.subject == subject)
