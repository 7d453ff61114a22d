"""One round of Algorithm 1 as a value: who competes, which scores the round needs, and what its repeats say.

Everything follows from the recorded scores, so that a search can be stopped and resumed anywhere, and scores that
were computed in advance and turn out not to be needed change nothing.
"""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float

from mamltheory.nas.algorithms.ranking import contests, difference, mean_difference, ranks
from mamltheory.nas.algorithms.settings import CRITERIA, Criterion, Difference, SearchSettings, Ties
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.algorithms.stopping import (
    Compared,
    RoundReliability,
    Stop,
    certainty,
    decisive_scores,
    may_stop,
    round_reliability,
    undecided_edges,
)
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.scoring.score import Job
from mamltheory.nas.sizes import operator_parameters
from mamltheory.nas.space import CELL_TYPES, Operator
from mamltheory.rng import numpy_generator

Draws = Float[np.ndarray, "o r"]


@dataclass(frozen=True, eq=False)
class Round:
    """A round of a search, from its state; :meth:`of` makes it.

    Attributes:
        state: the state of the search.
        settings: how the search decides.
        operators: the operators that compete in this round; none when the search is finished.
        contests: the same operators by contest: an edge, or in the second stage a node.
    """

    state: SearchState
    settings: SearchSettings
    operators: tuple[Operator, ...]
    contests: Mapping[str, Sequence[Operator]]

    @staticmethod
    def of(state: SearchState, settings: SearchSettings) -> "Round":
        """The round that a search is in."""
        operators = competitors(state.candidates, settings.inputs)
        return Round(state, settings, operators, contests(operators))

    @cached_property
    def contest_of(self) -> Mapping[Operator, str]:
        """The name of every operator's contest."""
        return {o: name for name, members in self.contests.items() for o in members}

    @property
    def is_finished(self) -> bool:
        """Whether the network is single-path (and has two inputs per node, where asked for)."""
        return not self.operators

    def jobs(self, repeat: int) -> tuple[Job, ...]:
        """All scores of one repeat: the supernet, and the supernet without each operator."""
        index = self.state.round_index
        if self.is_finished or not self.settings.criteria:
            return ()
        if self.settings.common_random_numbers:
            return tuple(Job(index, repeat, removed) for removed in (None, *self.operators))
        return tuple(Job(index, repeat, removed, o) for o in self.operators for removed in (None, o))

    @cached_property
    def complete(self) -> int:
        """Number of complete repeats, counted from the first."""
        complete, scores = 0, self.state.scores
        while complete < self.settings.repeats and all(job in scores for job in self.jobs(complete)):
            complete += 1
        return complete

    @cached_property
    def needed(self) -> tuple[int, Stop | None]:
        """(repeats that decide the round, why it stops there), or (repeats it needs at least, None)."""
        settings = self.settings
        if not settings.stopping:
            return settings.repeats, "fixed"
        least = min(settings.least_repeats, settings.repeats)
        for repeats in range(least, self.complete + 1):
            if repeats == settings.repeats:
                return repeats, "budget"
            draws = self.draws(repeats)
            if compared := self.compared(draws):
                random = numpy_generator(settings.seed, "stopping", self.state.round_index, draws.shape[1])
                found = certainty(compared, random, settings.shrinkage)
                if why := may_stop(found, draws.shape[1], settings.repeats, settings.least_repeats):
                    return repeats, why
        return max(least, self.complete + 1), None

    def pending(self, ahead: int = 0) -> tuple[Job, ...]:
        """The missing scores, with those of repeats ``ahead`` that the round may turn out not to need."""
        repeats, why = self.needed
        most = repeats if why is not None else min(repeats + ahead, self.settings.repeats)
        jobs = (job for repeat in range(most) for job in self.jobs(repeat))
        return tuple(job for job in jobs if job not in self.state.scores)

    def chunks(self, size: int | None = None, ahead: int = 0) -> tuple[tuple[Job, ...], ...]:
        """The missing scores in chunks of one repeat.

        A repeat is always divided at the same places, and a chunk that misses a score is computed as a whole: results
        do not depend on where a search was stopped, not even in their last bits.

        Args:
            size: most scores in a chunk, by default all of them.
            ahead: as for :meth:`pending`.

        Returns:
            The chunks, repeat by repeat.
        """
        missing = set(self.pending(ahead))
        found = []
        for repeat in sorted({job.repeat for job in missing}):
            jobs = self.jobs(repeat)
            step = size or len(jobs)
            found += [jobs[i : i + step] for i in range(0, len(jobs), step)]
        return tuple(chunk for chunk in found if not missing.isdisjoint(chunk))

    def differences(self, criterion: Criterion, repeats: int) -> list[list[float]]:
        """ΔC or ΔR of lines 4 and 6: for every operator one per repeat, or none for a criterion that is not in use."""
        if criterion not in self.settings.criteria:
            return [[] for _ in self.operators]
        kind: Difference = self.settings.difference if criterion == "condition" else "absolute"
        used = self._comparable_repeats(repeats)
        return [[self._difference(o, repeat, criterion, kind) for repeat in used] for o in self.operators]

    def _difference(self, operator: Operator, repeat: int, criterion: Criterion, kind: Difference) -> float:
        pair = None if self.settings.common_random_numbers else operator
        supernet, candidate = (
            getattr(self.state.scores[Job(self.state.round_index, repeat, removed, pair)], criterion)
            for removed in (None, operator)
        )
        return difference(supernet, candidate, kind)

    def _comparable_repeats(self, repeats: int) -> Sequence[int]:
        """The repeats in which a common supernet has a score; all if there is none."""
        if not self.settings.common_random_numbers:
            return range(repeats)
        whole = [self.state.scores[Job(self.state.round_index, repeat, None)] for repeat in range(repeats)]
        return [i for i, score in enumerate(whole) if math.isfinite(score.condition)] or range(repeats)

    def mean_differences(self, criterion: Criterion) -> list[float]:
        """ΔC or ΔR of every operator, averaged over the repeats that decide; 0 for a criterion that is not in use."""
        return [mean_difference(values) for values in self.differences(criterion, self.needed[0])]

    def draws(self, repeats: int) -> Draws:
        """What decides, larger = better to prune: ΔC, −ΔR, or minus the sum of the ranks within each repeat."""
        criteria, ties = self.settings.criteria, self.settings.ties
        delta_c, delta_r = (
            np.array(self.differences(criterion, repeats), dtype=float) for criterion in CRITERIA
        )
        values = delta_c if "condition" in criteria else -delta_r
        if len(criteria) == 2:
            # Equal operators share a rank here: which of them comes first in the list says nothing.
            shared: Ties = "min" if ties == "index" else ties
            sums = [
                np.add(ranks((-c).tolist(), shared), ranks(r.tolist(), shared))
                for c, r in zip(delta_c.T, delta_r.T, strict=True)
            ]
            values = -np.array(sums, dtype=float).T
        # A repeat that is equal for all operators says nothing.
        return values[:, (values != values[:1]).any(0)]

    @cached_property
    def decisive(self) -> Draws:
        """The draws of the repeats that decide the round."""
        return self.draws(self.needed[0])

    def compared(self, draws: Draws) -> Compared | None:
        """The operators whose draws are all finite; None for fewer than 2 repeats or no contest between them."""
        finite = np.isfinite(draws).all(1)
        kept = tuple(o for o, known in zip(self.operators, finite, strict=True) if known)
        edges = [self.contest_of[o] for o in kept]
        if draws.shape[1] < 2 or len(set(edges)) == len(edges):
            return None
        earlier = np.array([self.state.history.get(o, ()) for o in kept])
        return Compared(draws[finite], edges, kept, earlier if earlier.size else None)


def competitors(candidates: Candidates, inputs: Literal["all", "two"]) -> tuple[Operator, ...]:
    """The operators that are compared in a round; none in a finished search."""
    live = candidates.operators()
    choices = tuple(o for o in live if len(candidates.on(o.cell, o.edge)) > 1)
    if choices or inputs == "all":
        return choices
    for cell in CELL_TYPES:  # second stage: the first node that has more than two inputs
        for node in range(candidates.space.nodes):
            members = tuple(o for o in live if o.cell == cell and o.edge.node == node)
            if len(members) > 2:
                return members
    return ()


def rounds_ahead(candidates: Candidates, inputs: Literal["all", "two"]) -> list[tuple[int, int]]:
    """The rounds from here to the end: the live operators of each, and how many of them compete."""
    live = candidates.operators()
    edges = Counter((o.cell, o.edge) for o in live)
    counts, ahead = list(edges.values()), []
    while max(counts) > 1:
        ahead.append((sum(counts), sum(count for count in counts if count > 1)))
        counts = [max(count - 1, 1) for count in counts]
    left = len(counts)
    for count in Counter((cell, edge.node) for cell, edge in edges).values():
        if inputs == "two" and count > 2:
            ahead.append((left, count))
            left -= count - 2
    return ahead


def reliability(now: Round, pruned: Collection[Operator] = ()) -> RoundReliability | None:
    """What a round without missing scores knows about its scores; see :func:`round_reliability` for ``pruned``."""
    compared = now.compared(now.decisive)
    if compared is None:
        return None
    random = numpy_generator(now.settings.seed, "reliability", now.state.round_index)
    return round_reliability(compared, random, now.settings.shrinkage, pruned)


def shrunken_differences(now: Round, found: RoundReliability) -> list[float]:
    """What shrinkage ranks in place of ΔC; infinite for operators with an infinite draw."""
    draws = now.decisive
    values = np.where((draws == -math.inf).any(1), -math.inf, math.inf)
    if compared := now.compared(draws):
        space = now.state.candidates.space
        sizes = [operator_parameters(o, space) for o in compared.operators]
        scores = decisive_scores(compared, sizes, found.basis, undecided_edges(compared, found))
        values[np.isfinite(draws).all(1)] = scores
    return values.tolist()


def undecided_contests(
    now: Round,
    found: RoundReliability | None,
    pruned: Collection[Operator],
    values: Mapping[Operator, Hashable],
) -> tuple[str, ...]:
    """The contests whose repeats do not separate the operators, or in which one that is equal to a pruned one stays.

    Args:
        now: a round without missing scores.
        found: its reliability.
        pruned: the operators that are pruned.
        values: what was ranked, by operator.

    Returns:
        The names of the contests.
    """
    compared = now.compared(now.decisive)
    unclear = undecided_edges(compared, found) if compared and found else ()
    drawn = (
        name
        for name, members in now.contests.items()
        if {values[o] for o in members if o in pruned} & {values[o] for o in members if o not in pruned}
    )
    return tuple(dict.fromkeys((*unclear, *drawn))) if now.settings.criteria else ()


def longer_history(now: Round, operators: Sequence[Operator]) -> dict[Operator, tuple[float, ...]]:
    """The history of the operators of the next round, with the repeats of this one that are finite for all of them."""
    place = {o: i for i, o in enumerate(now.operators)}
    draws = now.decisive[[place[o] for o in operators]]
    draws = draws[:, np.isfinite(draws).all(0)]
    before = now.state.history
    return {o: (*before.get(o, ()), *row) for o, row in zip(operators, draws.tolist(), strict=True)}
