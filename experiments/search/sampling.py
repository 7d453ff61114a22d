"""``search --method metantk-nas --parameters``: the best of random cells of one size by the paper's scores.

Algorithm 1 prunes a supernet and cannot fix the size of what is left. At equal size its criteria rank whole cells: the
ranks of C_N (small is good) and R_N (large is good) are added, as in lines 8 to 10.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from mamltheory.nas.algorithms.ranking import ranks
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.sizes import genotype_parameters
from mamltheory.runtime.device import deterministic
from mamltheory.runtime.distributed import spread_over
from mamltheory.runtime.progress import stage

from ..runs import without_paths
from .one_size import full_size, random_cells
from .settings import Search


def sampled_cells(settings: Search) -> tuple[Genotype, ...]:
    """The random cells of the band."""
    return random_cells(settings, settings.samples, "sampled cells")


def best_of_sampled(
    settings: Search, cells: Sequence[Genotype], scorer: CellScorer
) -> tuple[Genotype, dict[str, Any], float]:
    """Score random cells of the band, and take the best.

    Args:
        settings: Settings of the search.
        cells: The cells.
        scorer: Scores networks on the draws of a repeat.

    Returns:
        The cell, what ``search.json`` says, and CPU seconds of the scores.
    """
    scores: dict[int, tuple[list[Score], float]] = {}
    repeats = range(settings.value("repeats"))
    with spread_over(settings.jobs) as spread, stage(f"score {len(cells)} cells", len(repeats)) as advance:
        for repeat, found in spread(partial(score_sampled, scorer, cells), repeats):
            scores[repeat] = found
            advance()
    # In the order of the repeats, whichever process was first: a sum in another order has other last bits.
    rows = [scores[repeat][0] for repeat in repeats]
    own = scorer.own
    compared = [
        [row[i].condition if own else math.log(row[i].condition) for row in rows] for i in range(len(cells))
    ]
    conditions = list(map(_mean, compared))
    regions = [_mean([row[i].regions for row in rows]) for i in range(len(cells))]
    places = _places(conditions, regions, settings)
    totals = [sum(each) for each in zip(*places, strict=True)]
    best = min(range(len(cells)), key=totals.__getitem__)
    size = full_size(settings)
    record = {
        "method": "own score in a band" if own else "metantk-nas in a band",
        "genotype": cells[best].to_json(),
        "cell": best,
        "parameters": genotype_parameters(cells[best], size),
        "cells": [
            {
                "genotype": cell.to_json(),
                "parameters": genotype_parameters(cell, size),
                **({"score": own.ranked(conditions[i])} if own else {"log condition": conditions[i]}),
                "regions": regions[i],
                "rank": totals[i],
            }
            for i, cell in enumerate(cells)
        ],
        "places": {
            name: place[best]
            for name, place in zip(
                (f"by {own.name}" if own else "by condition number", "by linear regions"),
                places,
                strict=False,
            )
        },
        "repeats": len(rows),
        "agreeing": sum(_best_of_repeat(row, settings, own is not None) == best for row in rows),
        "config": without_paths(settings),
    }
    return cells[best], record, sum(seconds for _, seconds in scores.values())


def score_sampled(scorer: CellScorer, cells: Sequence[Genotype], repeat: int) -> tuple[list[Score], float]:
    """The scores of all cells in one repeat, and their CPU seconds; it runs in any process."""
    begun = time.process_time()
    with deterministic(scorer.device):
        found = scorer.scores([cell.candidates() for cell in cells], 0, repeat)
    return found, time.process_time() - begun


def _places(conditions: Sequence[float], regions: Sequence[float], settings: Search) -> list[list[int]]:
    """The ranks of the cells by every criterion in use."""
    places = [ranks(conditions, settings.value("ties"))]
    if "regions" in settings.criteria:
        places.append(ranks([-value for value in regions], settings.value("ties")))
    return places


def _best_of_repeat(row: Sequence[Score], settings: Search, own: bool) -> int:
    """The cell that a repeat alone would take; ``own`` scores have no logarithm."""
    conditions = [score.condition if own else math.log(score.condition) for score in row]
    places = _places(conditions, [score.regions for score in row], settings)
    totals = [sum(each) for each in zip(*places, strict=True)]
    return min(range(len(row)), key=totals.__getitem__)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
