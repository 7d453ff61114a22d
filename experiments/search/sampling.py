"""``search --method metantk-nas --parameters``: the best of random cells of one size by the paper's scores.

Algorithm 1 prunes a supernet and cannot fix the size of what is left. At equal size its criteria rank whole cells: the
ranks of C_N (small is good) and R_N (large is good) are added, as in lines 8 to 10.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from experiments.data.loading import data_of
from experiments.genotypes import network_size
from experiments.search.halving import band_of
from experiments.search.settings import Search
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.search.ranking import ranks
from mamltheory.nas.sizes import genotype_parameters, random_genotype_within
from mamltheory.rng import generator
from mamltheory.runtime.distributed import spread_over
from mamltheory.runtime.progress import stage


def sampled_cells(settings: Search) -> tuple[Genotype, ...]:
    """The random cells of the band."""
    size = network_size(settings, len(data_of(settings).train.class_names))
    inputs = "two" if settings.value("two_inputs") else "all"
    random = generator(settings.seed, "sampled cells")
    band = band_of(settings)
    return tuple(random_genotype_within(band, random, size, inputs) for _ in range(settings.samples))


def best_of_sampled(settings: Search, scorer: CellScorer) -> tuple[Genotype, dict[str, Any], float]:
    """Score the random cells of the band, and take the best.

    Args:
        settings: Settings of the search.
        scorer: Scores networks on the draws of a repeat.

    Returns:
        The cell, what ``search.json`` says, and CPU seconds of the scores.
    """
    cells = sampled_cells(settings)
    repeats = range(settings.value("repeats"))
    scores: list[list[Score]] = []
    seconds = 0.0
    with spread_over(settings.jobs) as spread, stage(f"score {len(cells)} cells", len(repeats)) as advance:
        for _, (found, spent) in spread(partial(score_sampled, scorer, cells), repeats):
            scores.append(found)
            seconds += spent
            advance()
    conditions = [_mean([math.log(row[i].condition) for row in scores]) for i in range(len(cells))]
    regions = [_mean([row[i].regions for row in scores]) for i in range(len(cells))]
    places = [ranks(conditions, settings.value("ties"))]
    if "regions" in settings.criteria:
        places.append(ranks([-value for value in regions], settings.value("ties")))
    totals = [sum(each) for each in zip(*places, strict=True)]
    best = min(range(len(cells)), key=totals.__getitem__)
    size = network_size(settings, len(data_of(settings).train.class_names))
    rows = [
        {
            "genotype": cell.to_json(),
            "parameters": genotype_parameters(cell, size),
            "log condition": conditions[i],
            "regions": regions[i],
            "rank": totals[i],
        }
        for i, cell in enumerate(cells)
    ]
    record = {
        "method": "metantk-nas in a band",
        "genotype": cells[best].to_json(),
        "cell": best,
        "cells": rows,
    }
    return cells[best], record, seconds


def score_sampled(scorer: CellScorer, cells: Sequence[Genotype], repeat: int) -> tuple[list[Score], float]:
    """The scores of all cells in one repeat, and their CPU seconds; it runs in any process."""
    torch.backends.cudnn.allow_tf32 = False  # ten bits of mantissa would drown the least eigenvalues
    begun = time.process_time()
    found = scorer.scores([cell.candidates() for cell in cells], 0, repeat)
    return found, time.process_time() - begun


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
