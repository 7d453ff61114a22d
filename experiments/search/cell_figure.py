"""Found cells as a figure in the style of Figure 2, with their size and score."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from experiments.data.source import data_of
from experiments.genotypes import network_size
from experiments.plotting import draw_genotype, figure, save
from experiments.runs import without_paths
from experiments.search.settings import Search
from mamltheory.nas.genotype import CELL_TYPES, Genotype
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.sizes import genotype_parameters

NAMES = {
    "metantk-nas": "MetaNTK-NAS",
    "te-nas": "TE-NAS",
    "regions": "linear regions alone",
    "random": "random cell",
}


def draw_cells(
    genotype: Genotype,
    settings: Search,
    name: str = "cells",
    directory: Path | None = None,
    scores: Sequence[Score] = (),
) -> None:
    """The two cells, titled by method, parameters of the network to be trained, and scores on fresh draws."""
    settings = settings.resolved()
    size = network_size(settings, len(data_of(settings).train.class_names))
    parameters, edges = genotype_parameters(genotype, size), genotype.edges()
    parts = [NAMES[settings.method], f"{parameters:,} parameters", *score_words(settings, scores)]
    data = {
        "genotype": genotype.to_json(),
        "parameters": parameters,
        "scores": [{"condition": score.condition, "regions": score.regions} for score in scores],
    }
    with figure("page", 5.4, rows=2) as (drawing, axes):
        drawing.suptitle(", ".join(parts))
        for panel, kind in zip(axes[:, 0], CELL_TYPES, strict=True):
            draw_genotype(panel, edges[kind], f"{kind} cell")
        paths = save(drawing, name, data, directory or settings.out, without_paths(settings), settings.seed)
    print(f"wrote {paths[0]} (and .pdf, .json)")


def score_words(settings: Search, scores: Sequence[Score]) -> list[str]:
    """Mean ± standard error over the draws of log C_N, or of R_N where that alone decides; nothing at random."""
    if not scores or not settings.criteria:
        return []
    if settings.criteria == ("regions",):
        name, values = "$R_{\\mathcal{N}}$", [score.regions for score in scores]
    else:
        name, values = "$\\log C_{\\mathcal{N}}$", [math.log(score.condition) for score in scores]
        name += " (harmonic)" if settings.metric == "harmonic" else ""
    if not all(map(math.isfinite, values)):
        return [f"{name} = ∞"]
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""
    return [f"{name} = {fmean(values):.4g}{error}"]
