"""Algorithm 1 (MetaNTK-NAS): pruning a supernet by the change of C_N and R_N, as pure steps on a saved state.

In every round each live operator o_j is removed in turn (leave-one-out), and

    ΔC_j = C(𝒩_k) − C(𝒩_k without o_j),   ΔR_j = R(𝒩_k) − R(𝒩_k without o_j)

are ranked over all operators of both cell types: ΔC descending, ΔR ascending. On every edge the operator with the
least sum of ranks is pruned, until one operation per edge is left. The same function with other criteria is the NTK
search of TE-NAS (another scorer), the search by linear regions alone, and the random cell (no criterion).

Where the paper leaves a choice:

- Ties. The printed "index in the sorted list" lets the order of enumeration decide between equal operators, which are
  frequent because R_N is an integer. The default gives equal operators the same (least) rank; ``ties="index"`` is the
  printed form, ``"dense"`` that of the released code: no number is skipped after equal values, so that R_N, which takes
  few values, has small ranks and little influence. Equal sums of ranks on an edge are decided by the larger ΔC, then
  the smaller ΔR, then by a draw from (seed, round, operator), with ``"dense"`` by the order of operators in place of
  the draw; with ``"index"`` that order decides at once.
- Differences. The paper prints C − C'. Between repeats C_N varies by factors, so that the repeat with the largest C_N
  would dominate the mean of absolute differences: the default is log C − log C'. ``"relative"`` divides by C(𝒩_k), as
  the released code does; ``"absolute"`` is the printed form.
- Draws. All candidates of one repeat share weights, head, tasks and patches (common random numbers), and with them one
  score of the supernet; with ``common_random_numbers=False`` every candidate has independent draws.
- Second stage. The released code then keeps two inputs per node (``inputs="two"``): node by node, the edges of the node
  are removed in turn and ranked in the same way.
- Estimator. Leave-one-out, or with ``"gradient"`` the first-order difference of every operator from one gradient per
  repeat (:mod:`mamltheory.nas.scoring.operator_gradient`), for C_N alone. The scorer decides; the settings record it.
- Shrinkage. ΔC may be shrunk towards the mean of (cell type × operation) over this round and all earlier ones; see
  :mod:`mamltheory.nas.algorithms.stopping` for rounds and edges that the repeats leave open.
- Repeats. Their number is given, or with ``stopping`` the most that a round may take. All operators get the same
  number of repeats.

An infinite C_N means a network that cannot be trained: a candidate with C = ∞ ranks as worst to prune, whatever its
other repeats say. A repeat whose supernet has C = ∞ counts only where all of them are so.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import replace

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.nas.algorithms.ranking import losers, ranks
from mamltheory.nas.algorithms.rounds import (
    Round,
    longer_history,
    reliability,
    shrunken_differences,
    undecided_contests,
)
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.algorithms.state import Decision, RoundReport, SearchState
from mamltheory.nas.algorithms.stopping import RoundReliability
from mamltheory.nas.genotype import Candidates, Operator
from mamltheory.nas.scoring.score import Job, Score, Scorer, failures
from mamltheory.nas.sizes import operator_parameters
from mamltheory.rng import derived_seed


def run_search(
    scorer: Scorer | None, settings: SearchSettings, state: SearchState | None = None
) -> SearchState:
    """Algorithm 1 from a state (by default the full supernet) to its end; without criteria there is no scorer."""
    state = SearchState() if state is None else state  # line 1
    while not Round.of(state, settings).is_finished:  # line 2
        state = step(state, scorer, settings)  # lines 3 to 16
    return state  # line 17


def step(state: SearchState, scorer: Scorer | None, settings: SearchSettings) -> SearchState:
    """The state with the scores that its round lacks; then, once nothing is missing, the next round."""
    for jobs in Round.of(state, settings).chunks():  # one chunk per repeat
        if scorer is None:
            raise ConfigurationError("scores are missing and there is no scorer: give one, or criteria=()")
        state = record_scores(state, scorer(state.candidates, jobs))
    now = Round.of(state, settings)
    return state if now.pending() else prune(now)


def record_scores(state: SearchState, found: Mapping[Job, Score]) -> SearchState:
    """The state with more scores; raises CheckpointError for scores of another round."""
    for job in found:
        if job.round_index != state.round_index:
            raise CheckpointError(
                f"got a score of round {job.round_index} in round {state.round_index}: discard it"
            )
    return replace(state, scores={**state.scores, **found})


def prune(now: Round) -> SearchState:
    """Lines 3 to 16 of Algorithm 1, given all scores: every edge loses the operator with the least sum of ranks."""
    if missing := len(now.pending()):
        raise ConfigurationError(
            f"{missing} scores of round {now.state.round_index} are missing: record them first"
        )
    if now.is_finished:
        return now.state
    ties, criteria = now.settings.ties, now.settings.criteria
    delta_c = now.mean_differences("condition")  # lines 3 to 5
    delta_r = now.mean_differences("regions")  # lines 6 and 7
    ranked, found = delta_c, None
    if now.settings.shrinkage and (found := reliability(now)):
        ranked, criteria = shrunken_differences(now, found), ("condition",)  # one number for all criteria
    s_c = ranks([-delta for delta in ranked], ties)  # line 8
    s_r = ranks(delta_r, ties)  # line 9
    used_c, used_r = "condition" in criteria, "regions" in criteria
    s = [used_c * c + used_r * r for c, r in zip(s_c, s_r, strict=True)]  # line 10
    values = dict(zip(now.operators, zip(ranked, delta_r, strict=True), strict=True))
    order = {o: (s[i], *_tie_break(now, i, *values[o])) for i, o in enumerate(now.operators)}
    pruned: set[Operator] = set()
    for members in now.contests.values():  # line 12
        pruned |= losers(members, order)  # lines 13 and 14
    left = now.state.candidates.without(*(o for o in now.operators if o in pruned))  # line 15
    found = found if now.settings.shrinkage else reliability(now, pruned)
    undecided = undecided_contests(now, found, pruned, values)
    trace = _decisions(now, zip(now.operators, delta_c, delta_r, s, strict=True), pruned, undecided)
    return _next_round(now, left, trace, _report(now, found, undecided))  # line 16


def _tie_break(now: Round, place: int, condition: float, regions: float) -> tuple[float | int, ...]:
    """What decides between equal sums of ranks: ΔC, ΔR, with shrinkage the size, then a draw or the order."""
    settings, operator = now.settings, now.operators[place]
    if settings.ties == "index":
        return (place,)
    if settings.ties == "dense":
        return -condition, regions, place
    name = f"tie {operator.cell} {operator.edge.node} {operator.edge.source} {operator.operation}"
    size = operator_parameters(operator, now.state.candidates.space) if settings.shrinkage else 0
    return -condition, regions, size, derived_seed(settings.seed, name, now.state.round_index)


def _decisions(
    now: Round,
    rows: Iterable[tuple[Operator, float, float, int]],
    pruned: Collection[Operator],
    undecided: Collection[Hashable],
) -> tuple[Decision, ...]:
    """The trace of a round, from rows of operator, ΔC, ΔR and sum of ranks."""
    rows, contest = list(rows), now.contest_of
    counts = Counter((contest[o], rank) for o, _, _, rank in rows)
    return tuple(
        Decision(
            now.state.round_index,
            o,
            delta_c,
            delta_r,
            rank,
            pruned=o in pruned,
            tied=counts[contest[o], rank] > 1,
            undecided=o in pruned and contest[o] in undecided,
        )
        for o, delta_c, delta_r, rank in rows
    )


def _report(now: Round, found: RoundReliability | None, undecided: tuple[str, ...]) -> RoundReport:
    repeats, stopped = now.needed
    # Repeats that were computed in advance and not needed depend on the number of processes: they do not count.
    counted = [score for job, score in now.state.scores.items() if job.repeat < repeats]
    scored = repeats if now.settings.criteria else 0
    return RoundReport(scored, stopped or "budget", undecided, failures(counted), found)


def _next_round(
    now: Round, left: Candidates, trace: tuple[Decision, ...], report: RoundReport
) -> SearchState:
    state = now.state
    after = SearchState(left, state.round_index + 1, {}, state.trace + trace, (*state.reports, report))
    if now.settings.shrinkage and not left.is_single_path():
        after = replace(after, history=longer_history(now, Round.of(after, now.settings).operators))
    return after
