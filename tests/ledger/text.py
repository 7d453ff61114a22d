"""The ledger as Markdown for a reader: a summary, the statements in the paper's order, the errata, how to re-run."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from tests.ledger.ledger import MISSING, VERDICTS, Erratum, Measured, Outcome, Statement, merged, of, verdict

SEVERITIES = {
    "claim": "breaks the claim as stated (a repair is given)",
    "step": "breaks a step of a proof (repaired)",
    "constant": "changes a constant or a scale",
    "cosmetic": "a slip of the pen",
}
ROUNDING = 1e-7
"""Below it a measured error is rounding, whose digits differ between machines: only this is printed."""


def render(
    statements: Sequence[Statement],
    errata: Sequence[Erratum],
    outcomes: Sequence[Outcome],
    slow_date: str = "",
    mutants: Sequence[tuple[str, str, str]] = (),
) -> str:
    """The whole file.

    slow_date: when the slow tests were last run, whose outcomes are among the others. mutants: (name, file,
    test that caught it) of every deliberate error in the code.
    """
    outcomes = merged(outcomes)
    verdicts = {one.id: verdict(one, of(one.id, outcomes)) for one in statements}
    parts = [
        "# The paper's statements, checked by machine\n",
        _introduction(slow_date),
        _summary(verdicts, errata, outcomes),
        "## Statements\n",
        *_sections(statements, verdicts, outcomes),
        "## Errata\n",
        *_errata(errata, outcomes),
        "## Deliberate errors\n",
        _mutants(mutants),
    ]
    return "\n".join(parts)


def skeleton(text: str) -> str:
    """The text without the measured values, whose last digits differ between machines: what must not be stale."""
    masked = re.sub(r": (?:< )?[-+.\de]+(?: \(([<>]))", r": … (\1", text)
    # processes hand in the cases of a test in any order
    return re.sub(
        r"[^|\n]*<br>[^|\n]*", lambda cell: "<br>".join(sorted(cell[0].strip().split("<br>"))), masked
    )


def _introduction(slow_date: str) -> str:
    slow = f" Rows marked ◷ rest on slow tests, last run on {slow_date}." if slow_date else ""
    return (
        "Written by `make ledger` from the outcomes of the tests; `make test` fails when this file is stale.\n"
        "Restatements are ours; symbols are the paper's, kernels carry 1/l, and time in every exponent is η0 t or\n"
        f"λ0 τ.{slow} A number is the worst over all cases of the test, beside the bound that it was held against;\n"
        "an error below 1e-7 is rounding.\n\n"
        "One row again, with its numbers (here that of Eq. (78); the name is the row's first column):\n\n"
        "```sh\n.venv/bin/python -m pytest -m '' --row 'Eq. (78)'\n```\n"
    )


def _summary(verdicts: dict[str, str], errata: Sequence[Erratum], outcomes: Sequence[Outcome]) -> str:
    counts = Counter(verdicts.values())
    lines = ["## Summary\n", "| verdict | statements | meaning |", "|---|---|---|"]
    lines += [f"| {name} | {counts[name]} | {text} |" for name, text in VERDICTS.items() if counts[name]]
    proven = sum(bool(numbers_of(one.id, outcomes)) for one in errata)
    lines.append(f"\n{len(errata)} errata, {proven} of them proven by numbers below. By what they cost:\n")
    kinds = Counter(one.severity for one in errata)
    lines += [f"- {kinds[severity]} × {text}" for severity, text in SEVERITIES.items() if kinds[severity]]
    return "\n".join(lines) + "\n" + _most_important(errata, outcomes)


def _most_important(errata: Sequence[Erratum], outcomes: Sequence[Outcome]) -> str:
    chosen = sorted((one for one in errata if one.important), key=lambda one: one.important)
    if not chosen:
        return ""
    entries = []
    for place, one in enumerate(chosen, 1):
        found = {number.what: number_text(number) for number in numbers_of(one.id, outcomes)}
        shown = "; ".join(found.get(what, f"{what}: NOT MEASURED") for what in one.numbers)
        entries.append(
            f"{place}. **{one.id}, {one.where}.** {one.consequence} Correct is: {one.corrected}. Measured: {shown}."
        )
    return "\nThe most important, by their consequences:\n\n" + "\n".join(entries) + "\n"


def numbers_of(subject: str, outcomes: Sequence[Outcome]) -> tuple[Measured, ...]:
    """What the tests measured of one statement or erratum; of a name that recurs, the number nearest its bound."""
    return _nearest(number for outcome in of(subject, outcomes) for number in outcome.measured)


def _nearest(measured: Iterable[Measured]) -> tuple[Measured, ...]:
    numbers: dict[str, Measured] = {}
    for one in measured:
        numbers[one.what] = one.worse(numbers[one.what]) if one.what in numbers else one
    return tuple(numbers.values())


def _sections(
    statements: Sequence[Statement], verdicts: dict[str, str], outcomes: Sequence[Outcome]
) -> list[str]:
    parts = []
    for where, group in groupby(statements, key=lambda one: one.where):
        rows = [_row(one, verdicts[one.id], of(one.id, outcomes)) for one in group]
        head = "| statement | verdict | what it says | measured | tests |\n|---|---|---|---|---|\n"
        parts.append(f"### {where}\n\n{head}" + "".join(rows))
    return parts


def _row(statement: Statement, verdict_: str, outcomes: Sequence[Outcome]) -> str:
    notes = [statement.claim]
    notes += [f"*Condition:* {statement.condition}"] if statement.condition else []
    notes += [f"*Reason:* {statement.reason}"] if statement.reason and not outcomes else []
    notes += [f"*Errata:* {', '.join(statement.errata)}"] if statement.errata else []
    cells = (statement.id, f"**{verdict_}**", "<br>".join(notes), _numbers(outcomes), _tests(outcomes))
    return f"| {' | '.join(_cell(text) for text in cells)} |\n"


def _errata(errata: Sequence[Erratum], outcomes: Sequence[Outcome]) -> list[str]:
    rows = [
        "| no. | where | what is wrong | correct is | cost | measured | tests |\n|---|---|---|---|---|---|---|\n"
    ]
    for one in errata:
        found = of(one.id, outcomes)
        tests = _tests(found) or f"*Reason:* {one.reason or MISSING}"
        cells = (one.id, one.where, one.wrong, one.corrected, one.severity, _numbers(found), tests)
        rows.append(f"| {' | '.join(_cell(text) for text in cells)} |\n")
    return ["".join(rows)]


def _mutants(mutants: Sequence[tuple[str, str, str]]) -> str:
    head = (
        f"Each of {len(mutants)} wrong formulas, put into a copy of the code, makes the exact tests fail.\n\n"
        "| error | file | first test that fails |\n|---|---|---|\n"
    )
    return head + "".join(
        f"| {name} | `{file}` | `{test}` |\n" for name, file, test in sorted(map(tuple, mutants))
    )


def _numbers(outcomes: Sequence[Outcome]) -> str:
    return "<br>".join(number_text(one) for outcome in outcomes for one in _nearest(outcome.measured))


def number_text(one: Measured) -> str:
    """A measured number beside its bound, rounded so that it is the same on every machine."""
    sign = ">" if one.above else "<"
    value = "< 1e-7" if abs(one.value) < ROUNDING else _two_digits(one.value)
    return f"{one.what}: {value} ({sign} {_two_digits(one.bound)})"


def _two_digits(value: float) -> str:
    return f"{value:.1e}" if value and not 0.01 <= abs(value) < 1000 else f"{_rounded(value):g}"


def _rounded(value: float) -> float:
    return round(value, 1 - math.floor(math.log10(abs(value)))) if value else 0.0


def _tests(outcomes: Sequence[Outcome]) -> str:
    return "<br>".join(f"{'◷ ' if one.slow else ''}`{one.test}` ({one.cases})" for one in outcomes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
