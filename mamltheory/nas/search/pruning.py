"""Who goes in a round (lines 8 to 15 of Algorithm 1), and how far the repeats bear that out."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from mamltheory.nas.genotype import CELL_TYPES, NODES, Operator
from mamltheory.nas.scoring.score import Job
from mamltheory.nas.search.ranking import competitions, difference, losers, mean_difference, ranks
from mamltheory.nas.search.round_report import (
    RoundReport,
    decided_differences,
    parameter_size,
    reliability,
    undecided,
)
from mamltheory.nas.search.settings import Criterion, SearchSettings
from mamltheory.nas.search.state import Decision, SearchState
from mamltheory.rng import derived_seed


def group(state: SearchState, settings: SearchSettings) -> tuple[Operator, ...]:
    """The operators that are compared in this round: none when the search has finished.

    While an edge has a choice, all operators of such edges; then, with ``inputs="two"``, the edges of the
    first node that has more than two inputs.
    """
    live = state.candidates.operators()
    choices = tuple(o for o in live if len(state.candidates.on(o.cell, o.edge)) > 1)
    if choices or settings.inputs == "all":
        return choices
    for cell in CELL_TYPES:
        for node in range(NODES):
            inputs = tuple(o for o in live if o.cell == cell and o.edge.node == node)
            if len(inputs) > 2:
                return inputs
    return ()


def decide(
    state: SearchState, settings: SearchSettings, repeats: int
) -> tuple[tuple[Decision, ...], RoundReport]:
    """What the first ``repeats`` repeats of the round say of every operator, and how far they can be trusted."""
    operators, index = group(state, settings), (settings.seed, state.round_index)
    draws = deciding_draws(state, settings, operators, repeats)
    delta_c = [_mean(_draws(state, settings, "condition", o, repeats)) for o in operators]
    delta_r = [_mean(_draws(state, settings, "regions", o, repeats)) for o in operators]
    found = reliability(operators, draws, *index, history=state.history) if settings.shrinkage else None
    by_c = decided_differences(operators, draws, found, state.history) if found else delta_c
    ranks_c, ranks_r = ranks([-d for d in by_c], settings.ties), ranks(delta_r, settings.ties)
    # What is shrunk are the numbers that decide: all criteria in one.
    count_c = found is not None or "condition" in settings.criteria
    count_r = found is None and "regions" in settings.criteria
    total = {o: count_c * c + count_r * r for o, c, r in zip(operators, ranks_c, ranks_r, strict=True)}
    order = {
        o: (total[o], *(() if settings.ties == "index" else (-c, r)), *_last_resort(o, i, state, settings))
        for i, (o, c, r) in enumerate(zip(operators, by_c, delta_r, strict=True))
    }
    contests = competitions(operators)
    pruned = frozenset(o for members in contests.values() for o in losers(members, order))
    sums = {name: Counter(total[o] for o in members) for name, members in contests.items()}
    if found is None:
        found = reliability(operators, draws, *index, False, pruned)
    values = dict(zip(operators, zip(by_c, delta_r, strict=True), strict=True))
    drawn = _drawn(contests, pruned, values) if settings.criteria else ()
    open_edges = tuple(dict.fromkeys((*undecided(operators, draws, found), *drawn)))
    place = {o: name for name, members in contests.items() for o in members}
    trace = tuple(
        Decision(
            state.round_index,
            o,
            c,
            r,
            total[o],
            pruned=o in pruned,
            tied=sums[place[o]][total[o]] > 1,
            undecided=o in pruned and place[o] in open_edges,
        )
        for o, c, r in zip(operators, delta_c, delta_r, strict=True)
    )
    return trace, RoundReport(repeats if settings.criteria else 0, "fixed", open_edges, {}, found)


def deciding_draws(
    state: SearchState, settings: SearchSettings, operators: Sequence[Operator], repeats: int
) -> list[list[float]]:
    """Of every operator, one number a repeat, larger = better to take out: see
    :mod:`mamltheory.nas.search.round_report`.

    A repeat that says the same of all operators, as one in which no network can be scored, is left out. Ranks are
    those that decide, but that a position in the list is none: which of two equal operators comes first says nothing.
    """
    ties = "min" if settings.ties == "index" else settings.ties
    by_c, by_r = (
        [_draws(state, settings, criterion, o, repeats) for o in operators]
        for criterion in ("condition", "regions")
    )
    columns = list(zip(*(by_c if "condition" in settings.criteria else by_r), strict=True))
    if "condition" not in settings.criteria:
        columns = [[-d for d in column] for column in columns]
    elif "regions" in settings.criteria:
        columns = [
            [float(-a - b) for a, b in zip(ranks([-d for d in c], ties), ranks(r, ties), strict=True)]
            for c, r in zip(columns, zip(*by_r, strict=True), strict=True)
        ]
    columns = [column for column in columns if len(set(column)) > 1]
    return [list(draws) for draws in zip(*columns, strict=True)] if columns else [[] for _ in operators]


def _draws(
    state: SearchState, settings: SearchSettings, criterion: Criterion, operator: Operator, repeats: int
) -> list[float]:
    """ΔC or ΔR of every repeat; none for a criterion that is not in use."""
    if criterion not in settings.criteria:
        return []
    kind = settings.difference if criterion == "condition" else "absolute"
    beside, values = None if settings.common_random_numbers else operator, []
    for repeat in _comparable_repeats(state, settings, repeats):
        whole, part = (state.scores[Job(state.round_index, repeat, o, beside)] for o in (None, operator))
        values.append(difference(getattr(whole, criterion), getattr(part, criterion), kind))
    return values


def _comparable_repeats(state: SearchState, settings: SearchSettings, repeats: int) -> Sequence[int]:
    """Those in which the supernet of all candidates can be scored; all where there is none, or no common supernet."""
    if not settings.common_random_numbers:
        return range(repeats)
    whole = [state.scores[Job(state.round_index, repeat, None, None)] for repeat in range(repeats)]
    return [i for i, score in enumerate(whole) if math.isfinite(score.condition)] or range(repeats)


def _drawn(
    contests: Mapping[str, Sequence[Operator]],
    pruned: Collection[Operator],
    values: Mapping[Operator, tuple[float, float]],
) -> tuple[str, ...]:
    """Competitions in which an operator went whose values are those of one that stayed."""

    def found(members: Sequence[Operator], gone: bool) -> set[tuple[float, float]]:
        return {values[o] for o in members if (o in pruned) == gone}

    return tuple(name for name, members in contests.items() if found(members, True) & found(members, False))


def _mean(values: Sequence[float]) -> float:
    """ΔC or ΔR of line 4 or 6, averaged over the repeats; a single −∞ decides."""
    return mean_difference(values) if values else 0.0


def _last_resort(
    operator: Operator, index: int, state: SearchState, settings: SearchSettings
) -> tuple[int, int]:
    """What decides between operators that nothing else tells apart: with shrinkage the size, then a draw; for ties
    that go by the order of operators, that order.
    """
    if settings.ties != "min":
        return 0, index
    name = f"tie {operator.cell} {operator.edge.node} {operator.edge.source} {operator.operation}"
    size = parameter_size(operator) if settings.shrinkage else 0
    return size, derived_seed(settings.seed, name, state.round_index)
