"""The ledger as Markdown for a reader: the result first, then, folded, statements, errata and planted errors."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from tests.ledger.ledger import (
    FAILS,
    MISSING,
    VERDICTS,
    Erratum,
    Measured,
    Outcome,
    Statement,
    merged,
    of,
    verdict,
)

SEVERITIES = {
    "claim": "breaks the claim as stated (a repair is given)",
    "step": "breaks a step of a proof (repaired)",
    "constant": "changes a constant or a scale",
    "cosmetic": "a slip of the pen",
}
ROUNDING = 1e-7
"""Below it a measured error is rounding, whose digits differ between machines: only this is printed."""
BARS, PAGE = "verdict_bars", "paper_checks.html"
"""Names of the figure and of the page in ``figures/``."""


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
        _result(statements, verdicts, outcomes),
        _most_important(errata, outcomes),
        _pointers(),
        "## Statements\n",
        *_sections(statements, verdicts, outcomes),
        "## Errata\n",
        *_errata(errata, outcomes),
        "## How these files are made\n",
        _introduction(slow_date),
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


def _result(statements: Sequence[Statement], verdicts: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """What holds: the numbers of verdicts in a sentence, and the chief results."""
    counts = Counter(verdicts.values())
    checked = len(verdicts) - counts["not checkable here"]
    bad = {name: counts[name] for name in (FAILS, MISSING, "refuted")}
    if any(bad.values()):
        head = f"**Not everything holds: {_listed(bad)}.** Of the others that can be checked here,"
    else:
        head = (
            f"**With the corrections below, the paper's theory holds.** Of {checked} statements that can be checked "
            "here, none fails and none is beyond repair:"
        )
    lines = [
        f"{head} {counts['holds']} hold as printed, {counts['definition']} are definitions that the code follows, "
        f"{counts['holds under a condition']} hold under a condition that the paper does not state, and "
        f"{counts['holds as corrected']} hold as corrected. {counts['not checkable here']} more have a reason why "
        "they are not checked. A number stands with the bound that its test holds it against.\n"
    ]
    chosen = sorted((one for one in statements if one.important), key=lambda one: one.important)
    if chosen:
        lines.append("| what holds | as a formula | measured |\n|---|---|---|")
        for one in chosen:
            says = f"**{one.id}.** {one.consequence}"
            lines.append(_line(says, one.formula, _shown(one.id, one.numbers, outcomes)))
        lines.append("")
    return "\n".join(lines)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} × {name}" for name, count in counts.items() if count)


def _most_important(errata: Sequence[Erratum], outcomes: Sequence[Outcome]) -> str:
    chosen = sorted((one for one in errata if one.important), key=lambda one: one.important)
    if not chosen:
        return ""
    lines = ["| the errata that matter | correct is | measured |\n|---|---|---|"]
    for one in chosen:
        says = f"**{one.id}, {one.where}.** {one.consequence}"
        lines.append(_line(says, one.corrected, _shown(one.id, one.numbers, outcomes)))
    return "\n".join(lines) + "\n"


def _shown(subject: str, names: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """The numbers of these names, one on a line."""
    found = {number.what: number_text(number) for number in numbers_of(subject, outcomes)}
    return "<br>".join(found.get(what, f"{what}: NOT MEASURED") for what in names)


def _pointers() -> str:
    return (
        f"![Verdicts by section](figures/{BARS}.png)\n\n"
        f"[`figures/{PAGE}`](figures/{PAGE}), opened in a browser, is the same as a graph: what rests on what, with a\n"
        "filter by verdict and a search.\n"
    )


def _introduction(slow_date: str) -> str:
    slow = f" Rows marked ◷ rest on slow tests, last run on {slow_date}." if slow_date else ""
    return (
        "Written by `make ledger` from the outcomes of the tests; `make test` fails when this file is stale.\n"
        "Restatements are ours; symbols are the paper's, kernels carry 1/l, and time in every exponent is η0 t or\n"
        f"λ0 τ.{slow} A number is the worst over all cases of the test, beside the bound that it was held against;\n"
        "an error below 1e-7 is rounding.\n\n"
        "One row again, with its numbers (here that of Eq. (78); the name is the row's first column):\n\n"
        "```sh\n.venv/bin/python -m pytest -m '' --row 'Eq. (78)'\n```\n\n"
        "| verdict | meaning |\n|---|---|\n"
        + "".join(f"| {name} | {meaning} |\n" for name, meaning in VERDICTS.items())
    )


def numbers_of(subject: str, outcomes: Sequence[Outcome]) -> tuple[Measured, ...]:
    """What the tests measured of one statement or erratum; of a name that recurs, the number nearest its bound."""
    return _nearest(number for outcome in of(subject, outcomes) for number in outcome.measured)


def _nearest(measured: Iterable[Measured]) -> tuple[Measured, ...]:
    numbers: dict[str, Measured] = {}
    for one in measured:
        numbers[one.what] = one.worse(numbers[one.what]) if one.what in numbers else one
    return tuple(numbers.values())


def folded(title: str, about: str, content: str) -> str:
    """Content that a click on its title unfolds; Markdown inside needs the empty lines."""
    return f"<details><summary><b>{title}</b>: {about}</summary>\n\n{content}\n</details>\n"


def _sections(
    statements: Sequence[Statement], verdicts: dict[str, str], outcomes: Sequence[Outcome]
) -> list[str]:
    parts = []
    for where, group in groupby(statements, key=lambda one: one.where):
        members = list(group)
        counts = Counter(verdicts[one.id] for one in members)
        about = ", ".join(f"{counts[name]} × {name}" for name in VERDICTS if counts[name])
        rows = [_row(one, verdicts[one.id], of(one.id, outcomes)) for one in members]
        head = "| statement | verdict | what it says | measured | tests |\n|---|---|---|---|---|\n"
        parts.append(folded(where, about, head + "".join(rows)))
    return parts


def _row(statement: Statement, verdict_: str, outcomes: Sequence[Outcome]) -> str:
    notes = [statement.claim]
    notes += [f"*Condition:* {statement.condition}"] if statement.condition else []
    notes += [f"*Reason:* {statement.reason}"] if statement.reason and not outcomes else []
    notes += [f"*Errata:* {', '.join(statement.errata)}"] if statement.errata else []
    return _line(
        statement.id, f"**{verdict_}**", "<br>".join(notes), _numbers(outcomes), _tests(outcomes), end="\n"
    )


def _errata(errata: Sequence[Erratum], outcomes: Sequence[Outcome]) -> list[str]:
    proven = sum(bool(numbers_of(one.id, outcomes)) for one in errata)
    parts = [f"{len(errata)} errata, {proven} of them proven by numbers. By what they cost:\n"]
    head = "| no. | where | what is wrong | correct is | measured | tests |\n|---|---|---|---|---|---|\n"
    for severity, meaning in SEVERITIES.items():
        rows = [_erratum(one, of(one.id, outcomes)) for one in errata if one.severity == severity]
        if rows:
            parts.append(folded(f"{len(rows)} × {severity}", meaning, head + "".join(rows)))
    return parts


def _erratum(erratum: Erratum, outcomes: Sequence[Outcome]) -> str:
    tests = _tests(outcomes) or f"*Reason:* {erratum.reason or MISSING}"
    return _line(
        erratum.id, erratum.where, erratum.wrong, erratum.corrected, _numbers(outcomes), tests, end="\n"
    )


def _mutants(mutants: Sequence[tuple[str, str, str]]) -> str:
    rows = "".join(f"| {name} | `{file}` | `{test}` |\n" for name, file, test in sorted(map(tuple, mutants)))
    return folded(
        "Deliberate errors",
        f"each of {len(mutants)} wrong formulas, put into a copy of the code, makes the exact tests fail",
        "| error | file | first test that fails |\n|---|---|---|\n" + rows,
    )


def _numbers(outcomes: Sequence[Outcome]) -> str:
    return "<br>".join(number_text(one) for outcome in outcomes for one in _nearest(outcome.measured))


def number_text(one: Measured) -> str:
    """A measured number beside its bound, rounded so that it is the same on every machine."""
    sign = ">" if one.above else "<"
    value = "< 1e-7" if abs(one.value) < ROUNDING else _two_digits(one.value)
    return f"{one.what}: {value} ({sign} {_bound(one.bound)})"


def _bound(value: float) -> str:
    # two digits of a bound of 11.5 would be 12, which no value of 12 exceeds
    return f"{value:.3g}" if 0.01 <= abs(value) < 1000 else _two_digits(value)


def _two_digits(value: float) -> str:
    return f"{value:.1e}" if value and not 0.01 <= abs(value) < 1000 else f"{_rounded(value):g}"


def _rounded(value: float) -> float:
    return round(value, 1 - math.floor(math.log10(abs(value)))) if value else 0.0


def _tests(outcomes: Sequence[Outcome]) -> str:
    return "<br>".join(f"{'◷ ' if one.slow else ''}`{one.test}` ({one.cases})" for one in outcomes)


def _line(*cells: str, end: str = "") -> str:
    """A row of a table."""
    return f"| {' | '.join(_cell(text) for text in cells)} |{end}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
