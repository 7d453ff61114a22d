"""The best of random cells of one size by scores at initialisation.

Algorithm 1 prunes a supernet and cannot fix the size of what is left. At equal size its criteria rank whole cells: the
ranks of C_N (small is good) and R_N (large is good) are added, as in lines 8 to 10. A user's score takes the place of
C_N.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mamltheory.nas.algorithms.ranking import ranks
from mamltheory.nas.algorithms.settings import Ties
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.scoring.own_score import OwnScore
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.sizes import genotype_parameters

SAMPLED = "sampled cells"
"""The stream of random numbers that draws the cells."""


@dataclass(frozen=True)
class SampledCell:
    """A random cell of a search at one size, with its scores and its rank among the others.

    Attributes:
        genotype: the cells.
        parameters: of the network that is trained. The network that is scored may have some more or less: its
            norms are GroupNorm with weights and biases, and its classifier has an output for each class of a task.
        score: mean over the repeats of log C_N, or of what an own score returned.
        regions: mean over the repeats of R_N; None if it is no criterion, because no regions are counted then.
        rank: sum of its ranks by all criteria; the search takes the cell with the smallest.
    """

    genotype: Genotype
    parameters: int
    score: float
    regions: float | None
    rank: int


@dataclass(frozen=True)
class CellRanking:
    """Cells ranked by the means of their scores; position i of each part is that of cell i.

    Attributes:
        conditions: mean log C_N, or mean of a user's score with the sign such that small is good.
        regions: mean R_N; None if it is no criterion.
        places: the ranks by each criterion in use.
    """

    conditions: tuple[float, ...]
    regions: tuple[float, ...] | None
    places: tuple[tuple[int, ...], ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The sums of the ranks."""
        return tuple(sum(each) for each in zip(*self.places, strict=True))

    @property
    def best(self) -> int:
        """Number of the cell with the smallest sum of ranks, the first of several."""
        totals = self.totals
        return min(range(len(totals)), key=totals.__getitem__)


def rank_cells(rows: Sequence[Sequence[Score]], ties: Ties, regions: bool, own: bool) -> CellRanking:
    """Rank cells by the means of their scores.

    Args:
        rows: for each repeat the score of every cell.
        ties: the ranks of equal scores.
        regions: whether ranks of R_N are added.
        own: whether a user's score is in the place of C_N; it has no logarithm.

    Returns:
        The ranking.
    """
    cells = range(len(rows[0]))
    compared = [[each.condition if own else math.log(each.condition) for each in row] for row in rows]
    conditions = tuple(_mean([row[i] for row in compared]) for i in cells)
    counted = tuple(_mean([row[i].regions for row in rows]) for i in cells) if regions else None
    places = [ranks(conditions, ties)]
    if counted is not None:
        places.append(ranks([-value for value in counted], ties))
    return CellRanking(conditions, counted, tuple(map(tuple, places)))


def scored_cells(
    genotypes: Sequence[Genotype], ranking: CellRanking, size: NetworkSettings, own: OwnScore | None
) -> tuple[SampledCell, ...]:
    """The cells with their sizes and scores.

    Args:
        genotypes: the cells.
        ranking: their ranking.
        size: of the networks whose parameters are counted.
        own: the user's score in place of C_N; None for C_N.

    Returns:
        One entry for each cell, in the same order.
    """
    means = [own.ranked(each) if own else each for each in ranking.conditions]
    sizes = [genotype_parameters(genotype, size) for genotype in genotypes]
    regions = ranking.regions or (None,) * len(genotypes)
    parts = zip(genotypes, sizes, means, regions, ranking.totals, strict=True)
    return tuple(SampledCell(*each) for each in parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
