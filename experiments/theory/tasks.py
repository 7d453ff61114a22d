"""Few-shot regression tasks on the unit sphere: synthetic, or real images projected to d dimensions."""

import torch
from torch import Tensor

from mamltheory import Task, generator
from mamltheory.fewshot.episodes import sample_episodes
from mamltheory.fewshot.glyphs import glyph_data

from .settings import Theory

SAMPLES = 2
"""Query samples n and support samples m of a task; for images one per class, of two classes."""


def theory_tasks(settings: Theory) -> tuple[tuple[Task, ...], tuple[Task, ...]]:
    """(training tasks, held-out tasks), ``task_count`` of each, on the unit sphere, as Assumption 1 asks."""
    make = {"sphere": sphere_tasks, "glyphs": glyph_tasks}[settings.tasks]
    tasks = make(2 * settings.task_count, settings.dimension, settings.seed)
    return tasks[: settings.task_count], tasks[settings.task_count :]


def sphere_tasks(count: int, dimension: int, seed: int) -> tuple[Task, ...]:
    """Tasks of independent points on the sphere with standard normal labels (k = 1)."""
    random = generator(seed, "sphere tasks")

    def normal(columns: int) -> Tensor:
        return torch.randn(count, SAMPLES, columns, generator=random, dtype=torch.float64)

    query_x, support_x = unit(normal(dimension)), unit(normal(dimension))
    return tuple(map(Task, query_x, normal(1), support_x, normal(1)))


def glyph_tasks(count: int, dimension: int, seed: int) -> tuple[Task, ...]:
    """2-way 1-shot tasks of glyph images, grey values projected by a random matrix; labels are ±1 (k = 1)."""
    data = glyph_data(
        image_size=32, train_classes=4 * count, val_classes=2, test_classes=2, samples_per_class=4, seed=seed
    )
    grey = torch.from_numpy(data.train.images).double().mean(dim=3).flatten(1)
    random = generator(seed, "projection")
    projection = torch.randn(grey.shape[1], dimension, generator=random, dtype=torch.float64)
    inputs = unit((grey - grey.mean(0)) @ projection)
    labels = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    episodes = sample_episodes(data.train, count, 2, 1, 1, seed)
    return tuple(Task(inputs[e.query[:, 0]], labels, inputs[e.support[:, 0]], labels) for e in episodes)


def unit(x: Tensor) -> Tensor:
    """Every row divided by its norm."""
    return x / x.norm(dim=-1, keepdim=True)
