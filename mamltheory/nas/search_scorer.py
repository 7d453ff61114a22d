"""The scorer and the rules of a search, from its settings; the command ``search`` calls the same functions."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mamltheory.fewshot.episodes import episode_tasks
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.uploads import normalise, take
from mamltheory.linalg import Converged, Dynamics, GradientFlow
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.protocols import Criteria
from mamltheory.nas.scoring.linear_regions import random_patches
from mamltheory.nas.scoring.operator_gradient import GradientScorer
from mamltheory.nas.scoring.own_score import OwnScore
from mamltheory.nas.scoring.score import Score, Scorer, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.tasks import Task

PATCHES, PATCH_IMAGES = 3000, 300
"""Inputs of the region count (released code), and the images that they are cut from."""
FINAL_DRAWS = 4
"""New draws for the scores of the found network."""
RULES = (
    *("repeats", "ties", "difference", "estimator", "shrinkage", "stopping", "least_repeats"),
    "common_random_numbers",
)
"""The settings of a protocol that say how Algorithm 1 decides."""
Images = Callable[[], ImageData]
"""The images of a search; a function, so that every process may read them once."""


def search_scorer(
    images: Images,
    chosen: Criteria,
    values: Mapping[str, Any],
    size: NetworkSettings,
    device: str,
    own: OwnScore | None = None,
    memory: int | None = None,
) -> CellScorer:
    """The scorer of supernet and candidates by some criteria.

    Args:
        images: the images that tasks and patches are drawn from.
        chosen: the criteria.
        values: a protocol's settings (:mod:`mamltheory.nas.protocols`), and "kernel", "inner_time" (λτ), "ridge",
            "ways", "shots", "queries" and "seed".
        size: channels, cells and stem of the networks.
        device: where the networks are run.
        own: a user's score in place of the condition number.
        memory: bytes that a batch may hold; None for what fits.

    Returns:
        The scorer. It can be sent to other processes if ``images`` can.
    """
    counts = (values["tasks"], values["ways"], values["shots"], values["queries"])
    return CellScorer(
        network=dataclasses.replace(size, classes=values["ways"], initialisation=values["initialisation"]),
        seed=values["seed"],
        tasks=partial(draw_tasks, images, counts) if "condition" in chosen else None,
        patches=partial(draw_patches, images) if "regions" in chosen else None,
        settings=ScoreSettings(
            values["kernel"],
            values["outputs"],
            measure=values["metric"],
            dynamics=_dynamics(values["inner_time"], values["ridge"]),
        ),
        device=device,
        memory=memory,
        own=own,
    )


def _dynamics(inner_time: float, ridge: float) -> Dynamics:
    """λτ = ∞ with the ridge in the support inverse, or gradient flow for a finite λτ without ridge."""
    return Converged(ridge) if math.isinf(inner_time) else GradientFlow(inner_time)


def search_rules(chosen: Criteria, values: Mapping[str, Any]) -> SearchSettings:
    """How Algorithm 1 decides by some criteria; ``values`` as for :func:`search_scorer`."""
    return SearchSettings(
        seed=values["seed"],
        criteria=chosen,
        inputs="two" if values["two_inputs"] else "all",
        **{name: values[name] for name in RULES},
    )


def scorer_by(rules: SearchSettings, scorer: CellScorer) -> Scorer:
    """The scorer that these rules name, with the size, settings and samplers of ``scorer``."""
    if rules.estimator == "gradient":
        return GradientScorer(scorer)
    return scorer if rules.common_random_numbers else IndependentDraws(scorer)


def final_scores(scorer: CellScorer, found: Candidates, round_index: int) -> tuple[Score, ...]:
    """The scores of the found network on draws of a round that has scored nothing."""
    return tuple(scorer.scores([found], round_index, draw)[0] for draw in range(FINAL_DRAWS))


def draw_tasks(
    images: Images, counts: tuple[int, int, int, int], random: torch.Generator
) -> tuple[Task, ...]:
    """The tasks of one repeat from the training classes, without repeated images.

    Args:
        images: the images.
        counts: tasks, ways, shots and queries.
        random: draws the images.

    Returns:
        The tasks.
    """
    data, seed = images(), int(torch.randint(2**62, (1,), generator=random))
    return episode_tasks(data.train, *counts, seed, mean=data.mean, std=data.std)


def draw_patches(images: Images, random: torch.Generator) -> Tensor:
    """The inputs of the region count in one repeat."""
    data = images()
    rows = torch.randint(len(data.train), (PATCH_IMAGES,), generator=random).numpy()
    return random_patches(normalise(take(data.train.images, rows), data.mean, data.std), PATCHES, random)
