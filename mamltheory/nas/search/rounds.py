"""Which scores a round needs: its jobs, how many repeats of them, and in what portions they are computed.

All of it follows from the scores that are recorded, so that a search can be stopped and taken up anywhere.
"""

from mamltheory.nas.scoring.score import Job
from mamltheory.nas.search.pruning import deciding_draws, group
from mamltheory.nas.search.round_report import certainty_so_far
from mamltheory.nas.search.settings import SearchSettings
from mamltheory.nas.search.state import SearchState
from mamltheory.nas.search.stopping import Certainty, Stop, may_stop


def is_finished(state: SearchState, settings: SearchSettings) -> bool:
    """Whether the network is single-path (and has two inputs per node, where asked for)."""
    return not group(state, settings)


def repeat_jobs(state: SearchState, settings: SearchSettings, repeat: int) -> tuple[Job, ...]:
    """All scores of one repeat of the round."""
    operators = group(state, settings)
    if not operators or not settings.criteria:
        return ()
    if settings.common_random_numbers:
        return tuple(Job(state.round_index, repeat, removed) for removed in (None, *operators))
    pairs = ((None, o, o) for o in operators)
    return tuple(Job(state.round_index, repeat, removed, o) for *pair, o in pairs for removed in pair)


def complete_repeats(state: SearchState, settings: SearchSettings) -> int:
    """How many repeats of the round are complete, from the first on."""
    complete = 0
    while complete < settings.repeats and all(
        job in state.scores for job in repeat_jobs(state, settings, complete)
    ):
        complete += 1
    return complete


def repeats_of_round(state: SearchState, settings: SearchSettings) -> tuple[int, Stop | None]:
    """(repeats that the round is decided on, why it stops there), or (repeats it needs at least, None)."""
    if not settings.stopping:
        return settings.repeats, "fixed"
    operators, complete = group(state, settings), complete_repeats(state, settings)
    least = min(settings.least_repeats, settings.repeats)
    for repeats in range(least, complete + 1):
        if repeats == settings.repeats:
            return repeats, "budget"
        draws, index = deciding_draws(state, settings, operators, repeats), (settings.seed, state.round_index)
        sure = certainty_so_far(operators, draws, *index, settings.shrinkage, state.history)
        if sure is not None and (why := _may_stop(sure, draws, settings)) is not None:
            return repeats, why
    return max(least, complete + 1), None


def _may_stop(sure: Certainty, draws: list[list[float]], settings: SearchSettings) -> Stop | None:
    return may_stop(sure, len(draws[0]), settings.repeats, settings.least_repeats)


def pending(state: SearchState, settings: SearchSettings, ahead: int = 0) -> tuple[Job, ...]:
    """The scores that the round still lacks; they may be computed in any order, anywhere.

    ahead: repeats to be computed in advance, of those that the round may turn out not to need.
    """
    repeats, why = repeats_of_round(state, settings)
    most = repeats if why is not None else min(repeats + ahead, settings.repeats)
    jobs = (job for repeat in range(most) for job in repeat_jobs(state, settings, repeat))
    return tuple(job for job in jobs if job not in state.scores)


def chunks(
    state: SearchState, settings: SearchSettings, size: int, ahead: int = 0
) -> tuple[tuple[Job, ...], ...]:
    """The pending scores in chunks of one repeat and at most ``size`` scores, or of a whole repeat for the gradient.

    A repeat is always divided at the same places, and a chunk of which something is missing is computed as a whole:
    results do not depend on where a search was stopped, not even in their last bits.
    """
    lacking = set(pending(state, settings, ahead))
    found = []
    for repeat in sorted({job.repeat for job in lacking}):
        jobs = repeat_jobs(state, settings, repeat)
        step = len(jobs) if settings.estimator == "gradient" else size
        found += [jobs[i : i + step] for i in range(0, len(jobs), step)]
    return tuple(chunk for chunk in found if not lacking.isdisjoint(chunk))
