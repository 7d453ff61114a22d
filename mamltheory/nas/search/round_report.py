"""What a finished round says of itself: why it stopped, how reliable it was, what it left undecided, what failed.

What is judged is what decides: ΔC of every repeat, −ΔR where regions alone are in use, and with both criteria the
sum of the ranks that the repeat alone would give.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

import numpy as np

from mamltheory.nas.genotype import Operator
from mamltheory.nas.operations import build_operation
from mamltheory.nas.search.ranking import competitions
from mamltheory.nas.search.stopping import (
    SEPARATED,
    Certainty,
    RoundReliability,
    Stop,
    certainty,
    decided_scores,
    judge,
)
from mamltheory.rng import numpy_generator

CHANNELS = 16
"""Width at which the sizes of operations are compared; their order is the same at any other."""

Draws = Sequence[Sequence[float]]
"""Of every operator, one number a repeat, larger = better to take out."""
History = Mapping[Operator, Sequence[float]]
"""Of every live operator, one number for each repeat of earlier rounds."""
NOTHING: History = MappingProxyType({})


@dataclass(frozen=True)
class RoundReport:
    """Of a finished round.

    repeats: on which it was decided, 0 where nothing is scored.  stopped: why no further one was taken.
    undecided: edges (in the second stage nodes) on which bootstrap draws of the repeats would take out another operator
        with a probability above 1 − SEPARATED: with shrinkage they go by the means of (cell type × operation) and not
        by their own scores; all of them where size decides; and those where an equal score stayed.
    failures: number of scores that are +∞, by reason.
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
        """What :meth:`to_json` returned; raises KeyError or TypeError for anything else."""
        found = data["reliability"]
        return RoundReport(
            data["repeats"],
            data["stopped"],
            tuple(data["undecided"]),
            dict(data["failures"]),
            None if found is None else RoundReliability.from_json(found),
        )


def reliability(
    operators: Sequence[Operator],
    draws: Draws,
    seed: int,
    round_index: int,
    shrinkage: bool = True,
    pruned: frozenset[Operator] = frozenset(),
    history: History = NOTHING,
) -> RoundReliability | None:
    """How reliable the scores of a round are; None for fewer than 2 repeats or nothing to compare.

    Operators with a draw that is not finite stay out: they rank last or first whatever the others do.
    pruned: who goes, where something else than these draws decides.  history: the draws of earlier rounds.
    """
    kept, edges = _comparable(operators, draws)
    if not edges:
        return None
    cells, operations = zip(*((operators[i].cell, operators[i].operation) for i in kept), strict=True)
    picks = {row for row, i in enumerate(kept) if operators[i] in pruned}
    random = numpy_generator(seed, "reliability", round_index)
    earlier = _earlier(operators, kept, history)
    return judge(_matrix(draws, kept), edges, cells, operations, random, shrinkage, picks, earlier)


def certainty_so_far(
    operators: Sequence[Operator],
    draws: Draws,
    seed: int,
    round_index: int,
    shrinkage: bool,
    history: History = NOTHING,
) -> Certainty | None:
    """How surely the repeats so far say who goes; None for nothing to compare. Depends on these arguments alone."""
    kept, edges = _comparable(operators, draws)
    if not edges:
        return None
    types = [(operators[i].cell, operators[i].operation) for i in kept] if shrinkage else None
    random = numpy_generator(seed, "stopping", round_index, len(draws[0]))
    earlier = _earlier(operators, kept, history) if shrinkage else None
    return certainty(_matrix(draws, kept), edges, random, types, earlier=earlier)


def undecided(operators: Sequence[Operator], draws: Draws, found: RoundReliability | None) -> tuple[str, ...]:
    """Names of the competitions whose loser is not separated from the others."""
    if found is None:
        return ()
    _, edges = _comparable(operators, draws)
    sure = zip(dict.fromkeys(edges), found.certainty.by_edge, strict=True)
    return tuple(
        edge
        for edge, probability in sure
        if edges.count(edge) > 1 and (found.basis == "parameters" or probability < SEPARATED)
    )


def decided_differences(
    operators: Sequence[Operator], draws: Draws, report: RoundReliability, history: History = NOTHING
) -> list[float]:
    """ΔC of every operator as the report decides it, to be compared on its edge; ±∞ where a repeat is, −∞ first."""
    kept, edges = _comparable(operators, draws)
    types = [(operators[i].cell, operators[i].operation) for i in kept]
    sizes = [parameter_size(operators[i]) for i in kept]
    earlier = _earlier(operators, kept, history)
    unclear = undecided(operators, draws, report)
    scores = decided_scores(_matrix(draws, kept), edges, types, sizes, report.basis, earlier, unclear)
    decided = dict(zip(kept, scores.tolist(), strict=True))
    worst = [-math.inf if -math.inf in values else math.inf for values in draws]
    return [decided.get(i, worst[i]) for i in range(len(operators))]


def parameter_size(operator: Operator) -> int:
    """Numbers of an operation's weights at ``CHANNELS`` channels."""
    stride = 2 if operator.cell == "reduce" and operator.edge.source < 2 else 1
    module = build_operation(operator.operation, CHANNELS, stride, "group")
    return sum(parameter.numel() for parameter in module.parameters())


def _comparable(operators: Sequence[Operator], draws: Draws) -> tuple[list[int], list[str]]:
    """The operators whose draws are finite, and the competition of each; no competitions where none is a contest."""
    place = {o: name for name, members in competitions(operators).items() for o in members}
    kept = [i for i, values in enumerate(draws) if values and all(map(math.isfinite, values))]
    edges = [place[operators[i]] for i in kept]
    contest = bool(kept) and len(draws[0]) > 1 and len(set(edges)) < len(edges)
    return kept, edges if contest else []


def longer_history(operators: Sequence[Operator], draws: Draws, history: History) -> dict[Operator, tuple]:
    """The history of these operators with the repeats of a round added, without those that are infinite for one."""
    finite = [i for i, column in enumerate(zip(*draws, strict=True)) if all(map(math.isfinite, column))]
    return {
        o: (*history.get(o, ()), *(values[i] for i in finite))
        for o, values in zip(operators, draws, strict=True)
    }


def _earlier(operators: Sequence[Operator], kept: Sequence[int], history: History) -> np.ndarray | None:
    """The history of the operators that are compared; None where there is none."""
    rows = [history.get(operators[i], ()) for i in kept]
    return np.array(rows, dtype=float) if rows and rows[0] else None


def _matrix(draws: Draws, kept: Sequence[int]) -> np.ndarray:
    return np.array([draws[i] for i in kept], dtype=float)
