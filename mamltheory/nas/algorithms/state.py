"""What a search knows, as a value and as JSON: the live operators, the scores of the round, all past decisions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, TypedDict

from mamltheory.errors import CheckpointError
from mamltheory.files import reason
from mamltheory.nas.algorithms.stopping import RoundReliability, Stop
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.scoring.score import Failure, Job, Score
from mamltheory.nas.space import CELL_TYPES, PAPER, Edge, Operator, Space
from mamltheory.nas.spelling import contest_respelt
from mamltheory.strict_json import misfit

Number = Annotated[int, 0]


@dataclass(frozen=True)
class Decision:
    """What one operator scored in its round, and whether it was pruned: a row of the trace.

    Attributes:
        round_index: the round.
        operator: the operator.
        delta_condition: ΔC averaged over the repeats; 0 for a criterion that is not in use.
        delta_regions: ΔR, likewise.
        rank: s(o_j), the sum of its ranks.
        pruned: whether it was pruned.
        tied: whether another operator of the edge had the same sum of ranks.
        undecided: it was pruned, and the repeats do not separate it from the others of its edge.
    """

    round_index: int
    operator: Operator
    delta_condition: float
    delta_regions: float
    rank: int
    pruned: bool
    tied: bool
    undecided: bool = False


@dataclass(frozen=True)
class RoundReport:
    """What a finished round leaves.

    Attributes:
        repeats: number of repeats that decided it; 0 where nothing is scored.
        stopped: why no further repeat was taken.
        undecided: names of the undecided edges (in the second stage nodes), and of those where an operator stayed whose
            scores equal those of a pruned one.
        failures: number of infinite scores, by reason.
        reliability: None where no two repeats could be compared.
    """

    repeats: int
    stopped: Stop
    undecided: tuple[str, ...] = ()
    failures: Mapping[str, int] = field(default_factory=dict)
    reliability: RoundReliability | None = None

    def to_json(self) -> dict:
        """Numbers, strings and lists."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping) -> "RoundReport":
        """The inverse of :meth:`to_json`; raises KeyError or TypeError for anything else."""
        found = data["reliability"]
        return RoundReport(
            data["repeats"],
            data["stopped"],
            tuple(map(contest_respelt, data["undecided"])),
            dict(data["failures"]),
            None if found is None else RoundReliability.from_json(found),
        )


@dataclass(frozen=True)
class SearchState:
    """Everything a search knows.

    Attributes:
        candidates: the supernet 𝒩_k.
        round_index: k.
        scores: the scores of the round so far.
        trace: all past decisions.
        reports: the reports of all finished rounds.
        history: for every operator that competes, one number per repeat of earlier rounds; kept for shrinkage alone.
    """

    candidates: Candidates = field(default_factory=Candidates)
    round_index: int = 0
    scores: Mapping[Job, Score] = field(default_factory=dict)
    trace: tuple[Decision, ...] = ()
    reports: tuple[RoundReport, ...] = ()
    history: Mapping[Operator, tuple[float, ...]] = field(default_factory=dict)


class _Saved(TypedDict):
    """What :func:`state_to_json` gives."""

    round: Number
    candidates: dict[str, list[list[str]]]
    scores: list[tuple[Number, Operator | None, Operator | None, float, float, Failure | None]]
    trace: list[tuple[Number, Operator, float, float, int, bool, bool, bool]]
    reports: list[RoundReport]
    history: list[tuple[Operator, list[float]]]


def state_to_json(state: SearchState) -> dict:
    """The state in numbers, strings and lists; infinite numbers as strings, for they are not JSON."""
    return {
        "round": state.round_index,
        "candidates": state.candidates.to_json(),
        "scores": [
            [job.repeat, job.removed, job.pair, _number(s.condition), _number(s.regions), s.failure]
            for job, s in state.scores.items()
        ],
        "trace": [decision_to_json(decision) for decision in state.trace],
        "reports": [report.to_json() for report in state.reports],
        "history": [[operator, list(values)] for operator, values in state.history.items()],
    }


def decision_to_json(d: Decision) -> list:
    """Round, operator, ΔC, ΔR, sum of ranks, pruned, tied, undecided."""
    numbers = [_number(d.delta_condition), _number(d.delta_regions)]
    return [d.round_index, d.operator, *numbers, d.rank, d.pruned, d.tied, d.undecided]


def state_from_json(data: Mapping, space: Space = PAPER) -> SearchState:
    """The state of :func:`state_to_json` in this space; raises CheckpointError for anything else."""
    if wrong := misfit(data, _Saved, "the saved search"):
        raise CheckpointError(f"not a saved search ({wrong}): start the search again with another --out")
    try:
        live = partial(_live_operator, space)
        scores = {
            Job(data["round"], repeat, *(o and live(o) for o in both)): Score(float(c), float(r), why)
            for repeat, *both, c, r, why in data["scores"]
        }
        trace = tuple(
            Decision(k, live(o), float(c), float(r), rank, pruned, tied, undecided)
            for k, o, c, r, rank, pruned, tied, undecided in data["trace"]
        )
        reports = tuple(RoundReport.from_json(report) for report in data["reports"])
        history = {live(o): tuple(map(float, values)) for o, values in data["history"]}
        candidates = Candidates.from_json(data["candidates"], space)
        return SearchState(candidates, data["round"], scores, trace, reports, history)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"not a saved search ({reason(error)}): start the search again with another --out"
        ) from error


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)


def _live_operator(space: Space, data: Sequence) -> Operator:
    cell, edge, operation = data
    if cell not in CELL_TYPES or Edge(*edge) not in space.edges or operation not in space.choices(cell):
        raise ValueError(f"no such operator: {data}")
    return Operator(cell, Edge(*edge), operation)
