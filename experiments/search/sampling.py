"""``search --method metantk-nas --parameters``: the best of random cells of one size by the scores of all of them."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from mamltheory.nas.algorithms.sampled import SAMPLED, CellRanking, rank_cells, scored_cells
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.spelling import cells_in_words
from mamltheory.runtime.device import deterministic
from mamltheory.runtime.distributed import spread_over
from mamltheory.runtime.progress import stage

from ..runs import without_paths
from .one_size import full_size, random_cells
from .settings import Search


def sampled_cells(settings: Search) -> tuple[Genotype, ...]:
    """The random cells of the band."""
    return random_cells(settings, settings.samples, SAMPLED)


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
    own, rank = scorer.own, partial(_ranked, settings, scorer)
    ranking = rank(rows)
    best, scored = ranking.best, scored_cells(cells, ranking, full_size(settings), own)
    name = "score" if own else "log condition"
    record = {
        "method": "own score in a band" if own else "metantk-nas in a band",
        "genotype": cells[best].to_json(),
        "words": cells_in_words(cells[best].edges()),
        "cell": best,
        "parameters": scored[best].parameters,
        "cells": [
            {
                "genotype": each.genotype.to_json(),
                "parameters": each.parameters,
                name: each.score,
                "regions": each.regions,
                "rank": each.rank,
            }
            for each in scored
        ],
        "places": {
            name: place[best]
            for name, place in zip(
                (f"by {own.name}" if own else "by condition number", "by linear regions"),
                ranking.places,
                strict=False,
            )
        },
        "repeats": len(rows),
        "agreeing": sum(rank([row]).best == best for row in rows),
        "config": without_paths(settings),
    }
    return cells[best], record, sum(seconds for _, seconds in scores.values())


def _ranked(settings: Search, scorer: CellScorer, rows: Sequence[Sequence[Score]]) -> CellRanking:
    """The ranking of the cells by these repeats alone."""
    return rank_cells(
        rows, settings.value("ties"), "regions" in settings.criteria, own=scorer.own is not None
    )


def score_sampled(scorer: CellScorer, cells: Sequence[Genotype], repeat: int) -> tuple[list[Score], float]:
    """The scores of all cells in one repeat, and their CPU seconds; it runs in any process."""
    begun = time.process_time()
    with deterministic(scorer.device):
        found = scorer.scores([cell.candidates() for cell in cells], 0, repeat)
    return found, time.process_time() - begun
