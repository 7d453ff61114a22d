"""Algorithm 1 (MetaNTK-NAS): pruning a supernet by the change of C_N and R_N, as pure steps on a saved state.

In every round each live operator o_j is taken out in turn, and

    ΔC_j = C(𝒩_k) − C(𝒩_k without o_j),   ΔR_j = R(𝒩_k) − R(𝒩_k without o_j)

are ranked over all operators of both cell types: ΔC descending, ΔR ascending. On every edge the operator
with the least sum of ranks goes, until one operation an edge is left. The same function with other criteria
is the NTK search of TE-NAS (another scorer), the search by linear regions alone, and the random cell (no
criterion).

Where the paper leaves a choice:

- Ties. The printed "index in the sorted list" lets the order of enumeration decide between equal operators,
  which are frequent because R_N is an integer. The default gives equal operators the same (least) rank;
  ``ties="index"`` is the printed form. ``"dense"`` is the released code's: no rank is left out after equal values, so
  that R_N, which takes few values, has small ranks and little say. Equal sums of ranks on an edge are decided by the
  larger ΔC, then the smaller ΔR, then by a draw from (seed, round, operator), with ``"dense"`` by the order of
  operators in place of the draw; with ``"index"`` that order decides at once.
- Differences. The paper prints C − C'. Between repeats C_N varies by factors, so that the mean of absolute
  differences is governed by the repeat with the largest C_N: the default is log C − log C'. ``"relative"``
  divides by C(𝒩_k), as the released code does; ``"absolute"`` is the printed form.
- Draws. All candidates of a repeat share weights, head, tasks and patches, and with them one score of the
  supernet; with ``common_random_numbers=False`` every candidate has draws of its own
  (:mod:`mamltheory.nas.scoring.scorers`).
- Second stage. The released code goes on to keep two inputs per node (``inputs="two"``): node by node, the
  edges of the node are taken out in turn and ranked in the same way.
- Estimator. ``"gradient"`` takes the first-order difference of every operator from one gradient a repeat
  (:mod:`mamltheory.nas.scoring.operator_gradient`) instead of one score for each; C_N alone has one.
- Shrinkage. ΔC may be shrunk towards the mean of (cell type × operation) over this round and all earlier ones; a
  round whose ΔC cannot be told from noise, and an edge whose repeats do not separate the operator to go, are then
  decided by the rule of :func:`mamltheory.nas.search.stopping.decided_scores` instead.
- Repeats. Their number is given, or with ``stopping`` the most that a round may take: it stops earlier by
  :func:`mamltheory.nas.search.stopping.may_stop`, after the first number of repeats at which that says so. This follows
  from the scores alone: repeats computed in advance and not needed change nothing. All operators get the same number
  of repeats; there is no racing edge by edge.

Every round leaves a report (:mod:`mamltheory.nas.search.round_report`), whatever decides. An infinite C_N means a
network that cannot be trained: a candidate with C = ∞ ranks as worst to prune, whatever the other repeats say. A repeat
whose supernet has C = ∞ leaves nothing to compare with, and counts only where all of them are so. An edge on which
scores cannot tell the operator that goes from one that stays is reported as undecided.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.scoring.score import Job, Score, failures
from mamltheory.nas.search.pruning import decide, deciding_draws, group
from mamltheory.nas.search.round_report import longer_history
from mamltheory.nas.search.rounds import is_finished, pending, repeat_jobs, repeats_of_round
from mamltheory.nas.search.settings import SearchSettings
from mamltheory.nas.search.state import SearchState

Scorer = Callable
"""(candidates, round, repeat) -> Score of one supernet; with an attribute ``batch``, which takes a list of supernets,
that is called instead. With ``estimator="gradient"`` it returns the scores of the supernet (None) and of it without
each of its operators; without common random numbers it takes the job, or the jobs, in place of round and repeat, as
:class:`mamltheory.nas.scoring.scorers.OwnDraws`."""


def evaluate(
    jobs: Sequence[Job], candidates: Candidates, scorer: Scorer, settings: SearchSettings
) -> dict[Job, Score]:
    """The scores that jobs of one repeat ask for, with the supernet of their round."""
    _, repeat, *_ = first = jobs[0]
    if settings.estimator == "gradient":
        found = scorer(candidates, first.round_index, repeat)
        return {job: found[job.removed] for job in jobs}
    networks = [candidates if job.removed is None else candidates.without(job.removed) for job in jobs]
    shared, batched = settings.common_random_numbers, hasattr(scorer, "batch")
    if batched:
        scores = scorer.batch(networks, *((first.round_index, repeat) if shared else (jobs,)))
    elif shared:
        scores = [scorer(network, first.round_index, repeat) for network in networks]
    else:
        scores = [scorer(network, job) for network, job in zip(networks, jobs, strict=True)]
    return dict(zip(jobs, scores, strict=True))


def record(state: SearchState, results: Mapping[Job, Score]) -> SearchState:
    """The state with more scores; raises CheckpointError for scores of another round."""
    for job in results:
        if job.round_index != state.round_index:
            raise CheckpointError(
                f"got a score of round {job.round_index} in round {state.round_index}: discard it"
            )
    return replace(state, scores={**state.scores, **results})


def step(
    state: SearchState, scorer: Scorer | None, settings: SearchSettings, limit: int | None = None
) -> SearchState:
    """One step of Algorithm 1: up to ``limit`` of the scores that the round lacks (all), then, once none is missing,
    the pruning. A gradient gives all scores of its repeat.
    """
    asked = pending(state, settings)[:limit]
    for repeat in sorted({job.repeat for job in asked}):
        jobs = [job for job in asked if job.repeat == repeat]
        if settings.estimator == "gradient":
            jobs = repeat_jobs(state, settings, repeat)
        state = record(state, evaluate(jobs, state.candidates, scorer, settings))
    return state if pending(state, settings) else prune(state, settings)


def run_search(
    scorer: Scorer | None, settings: SearchSettings, state: SearchState | None = None
) -> SearchState:
    """Algorithm 1 from a state (by default the full supernet) to its end, in this process.

    scorer: may be None when ``settings.criteria`` is empty, for then nothing is scored.
    """
    state = SearchState() if state is None else state
    while not is_finished(state, settings):
        state = step(state, scorer, settings)
    return state


def prune(state: SearchState, settings: SearchSettings) -> SearchState:
    """Lines 8 to 16 of Algorithm 1: ranks, their sum, and one operator less on every edge.

    Raises ConfigurationError while scores of the round are missing.
    """
    if missing := len(pending(state, settings)):
        raise ConfigurationError(
            f"{missing} scores of round {state.round_index} are missing: record them first"
        )
    operators = group(state, settings)
    if not operators:
        return state
    repeats, stopped = repeats_of_round(state, settings)
    trace, report = decide(state, settings, repeats)
    # Repeats that were computed in advance and not needed depend on the number of processes: they do not count.
    counted = [score for job, score in state.scores.items() if job.repeat < repeats]
    report = replace(report, stopped=stopped, failures=failures(counted))
    left = state.candidates.without(*(d.operator for d in trace if d.pruned))
    after = SearchState(left, state.round_index + 1, {}, state.trace + trace, (*state.reports, report))
    if settings.shrinkage and not left.is_single_path():
        places = {o: i for i, o in enumerate(operators)}
        draws = deciding_draws(state, settings, operators, repeats)
        kept = group(after, settings)
        history = longer_history(kept, [draws[places[o]] for o in kept], state.history)
        after = replace(after, history=history)
    return after
