"""Scores averaged over several random heads: what a head adds to a score is noise, and the rest of the network is kept.

All heads of a repeat share weights, tasks and patches. C_N becomes the geometric mean over the heads, for between draws
it varies by factors, whatever its differences are compared by; linear regions do not see the head and are counted once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Candidates, Operator
from mamltheory.nas.gradient import GradientScorer
from mamltheory.nas.scorer import CellScorer
from mamltheory.nas.scores import Score


@dataclass(frozen=True)
class SeveralHeads:
    """(candidates, round, repeat) -> Score, as the scorer's but for C_N, the geometric mean over ``heads`` heads.

    Raises ConfigurationError for less than one head.
    """

    scorer: CellScorer
    heads: int

    def __post_init__(self) -> None:
        _checked(self.heads)

    def __call__(self, candidates: Candidates, round_index: int, repeat: int) -> Score:
        """Score of one supernet on the draws of (round, repeat)."""
        return self.batch([candidates], round_index, repeat)[0]

    def batch(self, candidates: Sequence[Candidates], round_index: int, repeat: int) -> list[Score]:
        """Scores of many supernets on the same draws."""
        scorers = _with_heads(self.scorer, self.heads)
        found = [scorer.batch(candidates, round_index, repeat) for scorer in scorers]
        return [geometric_mean(scores) for scores in zip(*found, strict=True)]


@dataclass(frozen=True)
class SeveralHeadsByGradient:
    """(candidates, round, repeat) -> scores of all operators, as the scorer's but for C_N; see above."""

    scorer: GradientScorer
    heads: int

    def __post_init__(self) -> None:
        _checked(self.heads)

    def __call__(
        self, candidates: Candidates, round_index: int, repeat: int
    ) -> Mapping[Operator | None, Score]:
        """All scores of one repeat."""
        scorers = (replace(self.scorer, scorer=each) for each in _with_heads(self.scorer.scorer, self.heads))
        found = [scorer(candidates, round_index, repeat) for scorer in scorers]
        return {operator: geometric_mean([scores[operator] for scores in found]) for operator in found[0]}


def _checked(heads: int) -> None:
    if heads < 1:
        raise ConfigurationError(f"heads is {heads}: a score needs at least 1 head")


def _with_heads(scorer: CellScorer, heads: int) -> list[CellScorer]:
    """The scorer with each of its heads, the first of which counts regions."""
    others = [replace(scorer, head=head, patches=None) for head in range(1, heads)]
    return [scorer, *others] if scorer.tasks is not None else [scorer]


def geometric_mean(scores: Sequence[Score]) -> Score:
    """C_N of all heads in one, +inf if it is for one of them; R_N is that of the first."""
    worst = next((score for score in scores if math.isinf(score.condition)), None)
    halvings = sum(score.halvings for score in scores)
    if worst is not None:
        return Score(math.inf, scores[0].regions, worst.failure, halvings)
    mean = math.fsum(math.log(score.condition) for score in scores) / len(scores)
    return Score(math.exp(mean), scores[0].regions, None, halvings)
