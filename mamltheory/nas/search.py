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
  ``ties="index"`` is the printed form. Equal sums of ranks on an edge are decided by the larger ΔC, then the
  smaller ΔR, then by a draw from (seed, round, operator).
- Differences. The paper prints C − C'. Between repeats C_N varies by factors, so that the mean of absolute
  differences is governed by the repeat with the largest C_N: the default is log C − log C'. ``"relative"``
  divides by C(𝒩_k), as the released code does; ``"absolute"`` is the printed form.
- Second stage. The released code goes on to keep two inputs per node (``inputs="two"``): node by node, the
  edges of the node are taken out in turn and ranked in the same way.

- Estimator. ``"gradient"`` takes the first-order difference of every operator from one gradient a repeat
  (:mod:`mamltheory.nas.gradient`) instead of one score for each; C_N alone has one.
- Shrinkage. ΔC may be shrunk towards the mean of (cell type × operation), and a round whose ΔC cannot be told from
  noise is then decided by :func:`mamltheory.nas.judgement.decided_scores` instead. Every round with 2 repeats or more
  says how reliable its ΔC was, whatever decides.

An infinite C_N means a network that cannot be trained: a candidate with C = ∞ ranks as worst to prune,
whatever the other repeats say.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, NamedTuple

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.nas.genotype import CELL_TYPES, EDGES, NODES, Candidates, Edge, Operator
from mamltheory.nas.judgement import RoundReliability
from mamltheory.nas.pruning import Difference, Ties, competitors, difference, losers, mean_difference, ranks
from mamltheory.nas.round_report import decided_differences, reliability
from mamltheory.nas.scores import Score
from mamltheory.rng import derived_seed

Scorer = Callable[[Candidates, int, int], Score | Mapping[Operator | None, Score]]
"""Scores one supernet; with ``estimator="gradient"``, it (None) and it without each of its operators."""
Criterion = Literal["condition", "regions"]
Estimator = Literal["leave-one-out", "gradient"]


@dataclass(frozen=True)
class SearchSettings:
    """How the search decides; see the module's text. ``criteria=()`` prunes at random and scores nothing.

    repeats: independent draws of weights, head, tasks and patches whose differences are averaged.
    Raises ConfigurationError.
    """

    seed: int = 0
    repeats: int = 3
    criteria: tuple[Criterion, ...] = ("condition", "regions")
    ties: Ties = "min"
    difference: Difference = "log"
    inputs: Literal["all", "two"] = "all"
    estimator: Estimator = "leave-one-out"
    shrinkage: bool = False

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise ConfigurationError(f"repeats is {self.repeats}: a score needs at least 1 draw")
        if not set(self.criteria) <= {"condition", "regions"} or len(set(self.criteria)) < len(self.criteria):
            raise ConfigurationError(
                f"criteria is {self.criteria}: name 'condition' and 'regions' at most once"
            )
        known = {
            "ties": ("min", "index"),
            "difference": ("log", "relative", "absolute"),
            "inputs": ("all", "two"),
            "estimator": ("leave-one-out", "gradient"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: expected one of {values}")
        if self.estimator == "gradient" and "regions" in self.criteria:
            raise ConfigurationError("the gradient scores C_N alone: give criteria=('condition',) with it")


class Job(NamedTuple):
    """One score to be computed: the supernet of the round (removed is None) or a candidate, in one repeat."""

    round_index: int
    repeat: int
    removed: Operator | None


@dataclass(frozen=True)
class Decision:
    """What one operator scored in its round, and whether it was pruned.

    delta_condition, delta_regions: differences averaged over the repeats (0 for a criterion not in use).
    rank: s(o_j), the sum of its ranks. tied: another operator of the edge had the same sum.
    """

    round_index: int
    operator: Operator
    delta_condition: float
    delta_regions: float
    rank: int
    pruned: bool
    tied: bool


@dataclass(frozen=True)
class SearchState:
    """Everything a search knows: the supernet 𝒩_k, the scores of the round so far, all past decisions."""

    candidates: Candidates = field(default_factory=Candidates)
    round_index: int = 0
    scores: Mapping[Job, Score] = field(default_factory=dict)
    trace: tuple[Decision, ...] = ()
    reliability: tuple[RoundReliability | None, ...] = ()
    """Of every finished round; None where it had no two repeats to compare."""


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


def is_finished(state: SearchState, settings: SearchSettings) -> bool:
    """Whether the network is single-path (and has two inputs per node, where asked for)."""
    return not group(state, settings)


def pending(state: SearchState, settings: SearchSettings) -> tuple[Job, ...]:
    """The scores that the round still lacks; they may be computed in any order, anywhere."""
    operators = group(state, settings)
    if not operators or not settings.criteria:
        return ()
    jobs = (
        Job(state.round_index, repeat, removed)
        for repeat in range(settings.repeats)
        for removed in (None, *operators)
    )
    return tuple(job for job in jobs if job not in state.scores)


def evaluate(job: Job, candidates: Candidates, scorer: Scorer) -> Score:
    """The score that a job asks for, with the supernet of its round; a function that processes can be
    sent.
    """
    network = candidates if job.removed is None else candidates.without(job.removed)
    return scorer(network, job.round_index, job.repeat)


def evaluate_repeat(
    state: SearchState, repeat: int, scorer: Scorer, settings: SearchSettings
) -> dict[Job, Score]:
    """All scores of one repeat of the round, from the gradient."""
    found = scorer(state.candidates, state.round_index, repeat)
    return {Job(state.round_index, repeat, o): found[o] for o in (None, *group(state, settings))}


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
    """One step of Algorithm 1: up to ``limit`` scores of the round (all), then the pruning once none is
    missing.
    """
    jobs = islice(pending(state, settings), limit)
    if settings.estimator == "gradient":
        for repeat in sorted({job.repeat for job in jobs}):
            state = record(state, evaluate_repeat(state, repeat, scorer, settings))
    else:
        state = record(state, {job: evaluate(job, state.candidates, scorer) for job in jobs})
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
    delta_c = [_delta(state, settings, "condition", o) for o in operators]
    delta_r = [_delta(state, settings, "regions", o) for o in operators]
    draws = [_draws(state, settings, "condition", o) for o in operators]
    report = reliability(operators, draws, settings.seed, state.round_index)
    by_c = decided_differences(operators, draws, report) if settings.shrinkage and report else delta_c
    ranks_c, ranks_r = ranks([-d for d in by_c], settings.ties), ranks(delta_r, settings.ties)
    total = {
        o: ("condition" in settings.criteria) * c + ("regions" in settings.criteria) * r
        for o, c, r in zip(operators, ranks_c, ranks_r, strict=True)
    }
    order = {
        o: (total[o], *((-c, r) if settings.ties == "min" else ()), *_last_resort(o, i, state, settings))
        for i, (o, c, r) in enumerate(zip(operators, by_c, delta_r, strict=True))
    }
    pruned: set[Operator] = set()
    tied: set[Operator] = set()
    for members in competitors(operators):
        pruned |= losers(members, order)
        sums = Counter(total[o] for o in members)
        tied |= {o for o in members if sums[total[o]] > 1}
    trace = tuple(
        Decision(state.round_index, o, c, r, total[o], o in pruned, o in tied)
        for o, c, r in zip(operators, delta_c, delta_r, strict=True)
    )
    left = state.candidates.without(*(o for o in operators if o in pruned))
    return SearchState(left, state.round_index + 1, {}, state.trace + trace, (*state.reliability, report))


def _delta(state: SearchState, settings: SearchSettings, criterion: Criterion, operator: Operator) -> float:
    """ΔC or ΔR of line 4 or 6, averaged over the repeats; a single −∞ decides."""
    values = _draws(state, settings, criterion, operator)
    return mean_difference(values) if values else 0.0


def _draws(
    state: SearchState, settings: SearchSettings, criterion: Criterion, operator: Operator
) -> list[float]:
    """ΔC or ΔR of every repeat; none for a criterion that is not in use."""
    if criterion not in settings.criteria:
        return []
    kind = settings.difference if criterion == "condition" else "absolute"
    values = []
    for repeat in range(settings.repeats):
        whole, part = (state.scores[Job(state.round_index, repeat, o)] for o in (None, operator))
        values.append(difference(getattr(whole, criterion), getattr(part, criterion), kind))
    return values


def _last_resort(
    operator: Operator, index: int, state: SearchState, settings: SearchSettings
) -> tuple[int, ...]:
    """What decides between operators that nothing else tells apart."""
    if settings.ties == "index":
        return (index,)
    name = f"tie {operator.cell} {operator.edge.node} {operator.edge.source} {operator.operation}"
    return (derived_seed(settings.seed, name, state.round_index),)


def state_to_json(state: SearchState) -> dict:
    """The state in numbers, strings and lists; infinite numbers as strings, for they are not JSON."""
    return {
        "round": state.round_index,
        "candidates": state.candidates.to_json(),
        "scores": [
            [job.repeat, job.removed, _number(score.condition), _number(score.regions)]
            for job, score in state.scores.items()
        ],
        "trace": [
            [
                d.round_index,
                d.operator,
                _number(d.delta_condition),
                _number(d.delta_regions),
                d.rank,
                d.pruned,
                d.tied,
            ]
            for d in state.trace
        ],
        "reliability": [report and report.to_json() for report in state.reliability],
    }


def state_from_json(data: Mapping) -> SearchState:
    """The state of :func:`state_to_json`; raises CheckpointError for anything else."""
    try:
        scores = {
            Job(data["round"], repeat, None if removed is None else _operator(removed)): Score(
                float(c), float(r)
            )
            for repeat, removed, c, r in data["scores"]
        }
        trace = tuple(
            Decision(k, _operator(o), float(c), float(r), rank, pruned, tied)
            for k, o, c, r, rank, pruned, tied in data["trace"]
        )
        reports = tuple(r and RoundReliability.from_json(r) for r in data.get("reliability", ()))
        candidates = Candidates.from_json(data["candidates"])
        return SearchState(candidates, data["round"], scores, trace, reports)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"not a saved search: {error!r}; start the search anew") from error


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _operator(data: Sequence) -> Operator:
    cell, edge, operation = data
    if cell not in CELL_TYPES or Edge(*edge) not in EDGES:
        raise ValueError(f"no such operator: {data}")
    return Operator(cell, Edge(*edge), operation)
