"""What a search says by default: a line for every round, and at the end the cell, its size, its score, how sure."""

import itertools
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from mamltheory.nas.algorithms.halving import Measured, Rung
from mamltheory.nas.algorithms.ranking import contests
from mamltheory.nas.algorithms.rounds import Round, rounds_ahead
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import Decision, RoundReport, SearchState
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.spelling import edge_words, operation_words, source_words
from mamltheory.notebook import duration

from ..program import PROGRAM

DECIDING = {
    "types": "the means of (cell type × operation) decide",
    "parameters": "the smaller operations leave",
    "operators": "they decide all the same",
}
DECIDED = {
    "types": "by the means of (cell type × operation)",
    "parameters": "by size",
    "operators": "by these scores all the same",
}
MOST_NAMED = 3
"""Operations that the line of a round names."""
LABEL = 14
"""Width of the first column of the summary."""
SLOWEST_READING = 0.02
"""Seconds an epoch; a rung that takes less was measured before, and was read."""


def round_words(before: SearchState, after: SearchState, inputs: Literal["all", "two"]) -> str:
    """A finished round: which operations it took out, what is left, and how sure its choices are."""
    decisions = [d for d in after.trace if d.round_index == before.round_index]
    gone = [d for d in decisions if d.pruned]
    number, ahead = before.round_index + 1, len(rounds_ahead(after.candidates, inputs))
    names = contests([d.operator for d in decisions])
    if any(len({o.edge for o in members}) > 1 for members in names.values()):
        where = "; ".join(
            f"{name} loses "
            + ", ".join(edge_words(*d.operator.edge) for d in gone if d.operator in names[name])
            for name in names
        )
    else:
        counts = Counter(operation_words(d.operator.operation) for d in gone)
        first, *rest = counts.most_common()
        more = sum(count for _, count in rest[MOST_NAMED - 1 :])
        parts = [f"{first[0]} leaves {first[1]} edge{'s' * (first[1] > 1)}"]
        parts += [f"{name} {count}" for name, count in rest[: MOST_NAMED - 1]]
        where = "; ".join([*parts, *([f"others {more}"] if more else [])])
    left = len(after.candidates.operators())
    sure = certainty_words(after.reports[-1], decisions)
    return f"round {number} of {number + ahead}: {where}; {left} operations stay; {sure}"


def certainty_words(report: RoundReport, decisions: Sequence[Decision]) -> str:
    """How sure the choices of a round are."""
    found, choices = report.reliability, len(contests([d.operator for d in decisions]))
    if not report.repeats:
        return "drawn at random"
    if found is None:
        return "how sure is not known, for no two repeats could be compared"
    if found.tied:
        return f"scores cannot be told from noise: {DECIDING[found.basis]}"
    return f"{choices - len(report.undecided)} of {choices} choices are clear"


def seconds_per_work(
    rules: SearchSettings, before: SearchState, after: SearchState, seconds: float
) -> float | None:
    """What a unit of work takes, from a round of so many seconds; None if nothing was computed in it."""
    ahead, repeats = rounds_ahead(before.candidates, rules.inputs), after.reports[-1].repeats
    needed = repeats * len(Round.of(before, rules).jobs(0))
    computed = 1 - len(before.scores) / needed if needed else 0.0
    return seconds / (computed * repeats * _work(rules, *ahead[0])) if computed > 0.01 else None


def left_words(rules: SearchSettings, after: SearchState, rate: float | None) -> str:
    """The time that is left after a round, at so many seconds a unit of work; empty where it is not known."""
    ahead = rounds_ahead(after.candidates, rules.inputs)
    if rate is None or not ahead:
        return ""
    left = rate * after.reports[-1].repeats * sum(_work(rules, *each) for each in ahead)
    return f"; about {duration(left)} to go"


def first_words(rules: SearchSettings, state: SearchState) -> str:
    """What a search begins with, before anything is scored."""
    ahead, operators = rounds_ahead(state.candidates, rules.inputs), len(state.candidates.operators())
    number, most = state.round_index + 1, "at most " if rules.stopping else ""
    return (
        f"round {number} of {number + len(ahead) - 1} begins: {operators} operations, {most}{rules.repeats} repeats; "
        "the times to go are estimates"
    )


def all_rounds_words(rules: SearchSettings, state: SearchState, done: int, total: int, seconds: float) -> str:
    """The time that is left for this round and those after it, when a part of this one took so many seconds."""
    works = [_work(rules, *each) for each in rounds_ahead(state.candidates, rules.inputs)]
    whole = seconds * total / done * sum(works) / works[0]
    return f"about {duration(max(0.0, whole - seconds))} for all rounds"


def _work(rules: SearchSettings, live: int, competing: int) -> int:
    """Of a repeat: a gradient goes once through the supernet, leave-one-out once for every operator."""
    return live if rules.estimator == "gradient" else live * (competing + 1)


def rung_words(rungs: Sequence[Rung], rung: Rung, measured: Sequence[Measured], seconds: float) -> str:
    """A finished rung of halving: what was trained, how well, how many are trained further, and how long that takes."""
    place = rungs.index(rung)
    before = rungs[place - 1].epochs if place else 0
    good = [100 * each.accuracy for each in measured if not each.diverged]
    parts = [
        f"rung {place + 1} of {len(rungs)}: {len(measured)} cells at epoch {rung.epochs}",
        f"accuracy {min(good):.1f} to {max(good):.1f} %",
    ]
    if lost := len(measured) - len(good):
        parts.append(f"{lost} diverged and {'is' if lost == 1 else 'are'} last")
    if place + 1 < len(rungs):
        parts.append(f"the best {rungs[place + 1].candidates} by {rung.by} are trained further")
        rate = seconds / (len(measured) * (rung.epochs - before))
        epochs = [b.candidates * (b.epochs - a.epochs) for a, b in itertools.pairwise(rungs[place:])]
        if rate > SLOWEST_READING:
            parts.append(f"about {duration(rate * sum(epochs))} to go")
    return "; ".join(parts)


def p_in_words(p: float) -> str:
    """The p-value of a test, which is never said to be zero."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def task_words(tasks: Mapping[str, int] | None) -> str:
    """The tasks that measured the candidates of halving, as ``search.json`` says; earlier records say nothing."""
    if tasks is None:
        return "few-shot accuracy on validation classes"
    ways, shots, classes = (tasks[name] for name in ("ways", "shots", "classes"))
    return f"{ways}-way {shots}-shot accuracy, {classes} validation classes"


def verdict_words(reports: Sequence[RoundReport]) -> str:
    """How much the scores of a whole search are worth."""
    rounds = len(reports)
    if not any(report.repeats for report in reports):
        return "nothing was scored: every choice was drawn at random"
    known = [report for report in reports if report.reliability is not None]
    if not known:
        return "how sure is not known: no two repeats of a round could be compared"
    tied = Counter(r.reliability.basis for r in known if r.reliability is not None and r.reliability.tied)
    undecided = sum(len(r.undecided) for r in known if r.reliability is not None and not r.reliability.tied)
    if not tied:
        return f"every round can be told from noise; {undecided} choices are not clear"
    ways = ", ".join(f"{count} decided {DECIDED[basis]}" for basis, count in tied.items())
    all_of = "all" if tied.total() == rounds else f"{tied.total()} of"
    advice = (
        "; scores do not set this cell apart from others of its size" if 2 * tied.total() > rounds else ""
    )
    return f"{all_of} {rounds} rounds cannot be told from noise ({ways}){advice}"


def cell_rows(genotype: Genotype) -> list[tuple[str, str]]:
    """The cells as rows of the summary: a line for every node, its operations with their sources."""
    rows = []
    for title, cell in (("normal cell", genotype.normal), ("reduce cell", genotype.reduce)):
        operations = {name for node in cell.nodes for name, _ in node}
        if len(operations) == 1:
            count = sum(map(len, cell.nodes))
            rows.append((title, f"all {count} edges: {operation_words(operations.pop())}"))
            continue
        for i, node in enumerate(cell.nodes):
            inputs = "; ".join(f"{operation_words(name)} ({source_words(source)})" for name, source in node)
            rows.append((title if i == 0 else "", f"node {i}: {inputs}"))
    return rows


def summary(rows: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Rows of a label and a text, aligned; rows without text are left out, and only commands exceed the width."""
    lines = []
    for label, text in rows:
        whole = width is None or text.startswith(PROGRAM)
        parts = [text] if whole or not text else textwrap.wrap(text, max(width - LABEL - 1, 20))
        lines += [
            f"{name:<{LABEL}} {part}"
            for name, part in zip((label, *[""] * len(parts)), parts, strict=False)
            if part
        ]
    return "\n".join(lines)
