"""``search.json``, and what a search prints with ``--verbose``: reliabilities, codes of edges, undecided edges."""

from collections import Counter
from collections.abc import Collection, Mapping
from string import ascii_lowercase
from typing import Any

from mamltheory.nas.algorithms.ranking import mean_difference
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.state import RoundReport, SearchState, decision_to_json
from mamltheory.nas.genotype import CELL_TYPES, Candidates, Operator
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.space import Space
from mamltheory.nas.spelling import cells_in_words, edge_words, operation_words

LETTERS = dict(zip(OPERATIONS, "ksdamfc", strict=True))
RULES = {"types": "the means of (cell type × operation)", "parameters": "size: the smaller goes"}


def letters_of(space: Space) -> dict[str, str]:
    """A letter for every operation: the usual ones if all are the paper's, otherwise in the order of the alphabet."""
    if set(space.operations) <= set(LETTERS):
        return {name: LETTERS[name] for name in space.operations}
    return dict(zip(space.operations, ascii_lowercase, strict=False))


def legend(space: Space) -> str:
    """What the letters of a search mean."""
    names, last = letters_of(space), space.edges[-1]
    return (
        "operations: "
        + ", ".join(f"{letter} {operation_words(name)}" for name, letter in names.items())
        + f"; edges from {edge_words(0, 0)} to {edge_words(*last)}; capital: goes in this round, dot: has gone"
    )


def worst_so_far(now: Round) -> str:
    """The operations that are worst on most edges so far, for the progress line; empty before the first repeat."""
    if not now.settings.criteria or now.complete == 0:
        return ""
    draws = now.draws(now.complete)
    if not draws.shape[1]:
        return ""
    mean = dict(zip(now.operators, map(mean_difference, draws.tolist()), strict=True))
    worst = [max(members, key=mean.__getitem__) for members in now.contests.values()]
    counts = Counter(operation_words(operator.operation) for operator in worst)
    return "worst so far: " + "; ".join(f"{name} on {count} edges" for name, count in counts.most_common(2))


def edge_lines(candidates: Candidates, worst: Collection[Operator]) -> list[str]:
    """One line per cell: the letters of the live operations on every edge, the worst one as a capital."""
    lines, letters = [], letters_of(candidates.space)
    for cell in CELL_TYPES:
        words = []
        for edge in candidates.space.edges:
            live = {
                name: letters[name].upper() if Operator(cell, edge, name) in worst else letters[name]
                for name in candidates.on(cell, edge)
            }
            words.append("".join(live.get(name, ".") for name in letters))
        lines.append(f"  {cell:<6} {' '.join(words)}")
    return lines


def round_lines(before: SearchState, after: SearchState) -> list[str]:
    """The result of a finished round, and the operations on every edge at its end."""
    report, count = after.reports[-1], sum(d.round_index == before.round_index for d in after.trace)
    pruned = {d.operator for d in after.trace if d.pruned and d.round_index == before.round_index}
    title = f"round {before.round_index + 1}: {count} operators, {describe_round(report)}"
    return [title, *edge_lines(before.candidates, pruned)]


def describe_round(report: RoundReport) -> str:
    """The report of a round in one line."""
    parts = [f"{report.repeats} repeats ({report.stopped})"]
    found = report.reliability
    if found is None:
        parts.append("reliability unknown: it needs two repeats")
    else:
        agreement = found.agreement
        parts += [
            f"r₁ {found.single:.2f} (noise {found.null[0]:.2f} to {found.null[1]:.2f})",
            f"halves: tau {agreement.tau:.2f} [{_interval(agreement.tau_interval)}], same operator "
            f"{agreement.same:.2f} [{_interval(agreement.same_interval)}] (chance {agreement.chance:.2f})",
            f"{len(report.undecided)} of {len(found.certainty.by_edge)} undecided",
        ]
        if found.tied:
            rule = RULES.get(found.basis)
            parts.append("a tie, decided by " + (rule or "its scores all the same"))
    if report.failures:
        parts.append(f"infinite scores: {_counts(report.failures)}")
    return "; ".join(parts)


def closing_lines(state: SearchState) -> list[str]:
    """Undecided edges and ties in each round, and the number of infinite scores."""
    lines = []
    for k, report in enumerate(state.reports, 1):
        if report.undecided:
            lines.append(f"undecided edges in round {k}: {', '.join(report.undecided)}")
    unknown = [str(k) for k, r in enumerate(state.reports, 1) if r.repeats and r.reliability is None]
    if unknown:
        lines.append(f"rounds in which no two repeats could be compared: {', '.join(unknown)}")
    if any(not report.repeats for report in state.reports):
        lines.append("nothing was scored: every choice was drawn at random")
    ties = [str(k) for k, r in enumerate(state.reports, 1) if r.reliability and r.reliability.tied]
    if ties:
        lines.append(f"rounds whose scores cannot be told from noise: {', '.join(ties)}")
    if failed := failures_of(state):
        lines.append(f"infinite scores: {_counts(failed)}; these networks ranked as the worst choice")
    return lines or ["no edge stayed undecided, and no score was infinite"]


def failures_of(state: SearchState) -> dict[str, int]:
    """Number of infinite scores in the whole search, by reason."""
    total: Counter[str] = Counter()
    for report in state.reports:
        total.update(report.failures)
    return dict(total)


def search_record(state: SearchState, settings: dict[str, Any]) -> dict[str, Any]:
    """The content of ``search.json``: settings, a report for every round, and the trace."""
    genotype = state.candidates.genotype()
    return {
        "settings": settings,
        "genotype": genotype.to_json(),
        "words": cells_in_words(genotype.edges()),
        "rounds": [report.to_json() for report in state.reports],
        "undecided": {str(k): list(r.undecided) for k, r in enumerate(state.reports)},
        "failures": failures_of(state),
        # Rows: [round, [cell, [node, source], operation], ΔC, ΔR, rank, pruned, tied, undecided].
        "trace": [decision_to_json(decision) for decision in state.trace],
    }


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.2f}, {bounds[1]:.2f}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
