"""``stability``: the number of repeats at which the operator scores of two searches agree, and its cost."""

import math
import time
from functools import partial
from typing import Any, Literal

import torch

from mamltheory.linalg import conditioning
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import supernet
from mamltheory.nas.scoring.condition_number import score_kernels
from mamltheory.nas.scoring.operator_gradient import GradientScorer
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.search_scorer import Images, draw_patches, draw_tasks
from mamltheory.rng import derived_seed, generator
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.interrupt import check_interrupted

from ..data.counts import refuse_shortage, stability_shortage
from ..data.loading import cached_data, data_of, source_in
from ..genotypes import network_size
from .measurements import Record, measure_missing
from .settings import WAYS, Stability
from .stability_report import report_stability

COUNTS = ("gradient_tasks", "gradient_repeats", "exact_tasks", "exact_repeats", "region_repeats")
Measure = Literal["condition", "harmonic"]
MEASURES: tuple[Measure, ...] = ("condition", "harmonic")
Item = tuple[str, int, int]
"""Estimator, joint tasks, and number of the repeat."""


def study_stability(settings: Stability) -> int:
    """Measure the missing repeats, draw the figure and write the table; returns 0."""
    device = str(choose_device(settings.device).device)
    refuse_shortage(stability_shortage(settings, data_of(settings)))
    records = measure_missing(
        settings, "stability", repeats_of(settings), partial(measure_repeat, settings, device), COUNTS, device
    )
    report_stability(settings, records)
    return 0


def repeats_of(settings: Stability) -> dict[str, Item]:
    """All repeats by name; the first repeats of all estimators come before the second ones."""
    counts = {("gradient", tasks): settings.gradient_repeats for tasks in settings.gradient_tasks}
    counts |= {
        ("exact", settings.exact_tasks): settings.exact_repeats,
        ("regions", 0): settings.region_repeats,
    }
    items = [(*kind, repeat) for kind, repeats in counts.items() for repeat in range(repeats)]
    items.sort(key=lambda item: item[2])
    return {f"{kind}-T{tasks}-{repeat:03d}": (kind, tasks, repeat) for kind, tasks, repeat in items}


def repeat_scorer(settings: Stability, device: str, tasks: int, score: Measure = "condition") -> CellScorer:
    """The scorer of the search for one measure of the kernel, or for the regions; all have the same draws.

    Args:
        settings: Settings of the study.
        device: Where to compute.
        tasks: Joint tasks T per kernel; 0 for the regions.
        score: The measure of the kernel.

    Returns:
        The scorer.
    """
    images = partial(cached_data, *source_in(settings))
    return CellScorer(
        network_size(settings, WAYS),
        settings.seed,
        tasks=partial(draw_tasks, images, (tasks, WAYS, 1, 1)) if tasks else None,
        patches=None if tasks else partial(patches_of, images, settings.patches),
        settings=ScoreSettings(settings.kernel, settings.outputs, measure=score),
        device=device,
    )


def patches_of(images: Images, count: int, random: torch.Generator) -> torch.Tensor:
    """The first patches in one repeat of the search."""
    return draw_patches(images, random)[:count]


def measure_repeat(settings: Stability, device: str, item: Item) -> Record:
    """The score differences of all operators of the supernet in one repeat, and their CPU seconds."""
    estimator, tasks, repeat = item
    data_of(settings)
    record: Record = {"estimator": estimator, "tasks": tasks, "repeat": repeat}
    if estimator == "gradient":
        found, seconds = {}, {}
        for name in MEASURES:
            scorer = repeat_scorer(settings, device, tasks, name)
            found[name], seconds[name] = timed(partial(gradient_differences, scorer, settings.chunk, repeat))
        # This builds the network as the gradient does, and scores it once.
        record["evaluation_seconds"] = timed(partial(scorer.scores, [Candidates()], 0, repeat))[1]
    else:
        scorer = repeat_scorer(settings, device, tasks)
        function = region_differences if estimator == "regions" else exact_differences
        found, whole = timed(partial(function, scorer, repeat))
        seconds = dict.fromkeys(found, whole)
    return record | {"differences": found, "cpu_seconds": seconds}


def gradient_differences(scorer: CellScorer, chunk: int, repeat: int) -> list[float]:
    """Log C of the supernet less log C without each operator, to first order."""
    found = GradientScorer(scorer, chunk=chunk or None).scores(Candidates(), 0, repeat)
    logs = [math.log(score.condition) for score in found.values()]
    return [logs[0] - value for value in logs[1:]]


def exact_differences(scorer: CellScorer, repeat: int) -> dict[str, list[float]]:
    """Log C of the supernet less log C without each operator, for both measures of one kernel in the first round."""
    assert scorer.tasks is not None, "the scorer is of a kernel"
    seed = derived_seed(scorer.seed, "score-weights", 0, repeat)
    tasks = scorer.tasks(generator(scorer.seed, "score-tasks", 0, repeat))
    network = supernet(Candidates(), scorer.network, seed).to(scorer.device)
    logs = []
    for kernel in score_kernels(network, without_each(), tasks, scorer.settings):
        dtype = network.classifier.weight.dtype
        logs.append({name: math.log(conditioning(kernel, name, dtype)) for name in MEASURES})
        check_interrupted()
    return {name: [logs[0][name] - each[name] for each in logs[1:]] for name in MEASURES}


def region_differences(scorer: CellScorer, repeat: int) -> dict[str, list[float]]:
    """Log R without each operator less log R of the supernet."""
    logs = [math.log(score.regions) for score in scorer.scores(without_each(), 0, repeat)]
    return {"regions": [value - logs[0] for value in logs[1:]]}


def without_each() -> list[Candidates]:
    """The supernet, and the supernet without each of its operators."""
    whole = Candidates()
    return [whole, *(whole.without(operator) for operator in whole.operators())]


def timed(function: partial) -> tuple[Any, float]:
    """The result of a call, and its CPU seconds in this process."""
    begun = time.process_time()
    return function(), time.process_time() - begun
