"""Few-shot tasks of images, for the kernels and the loops of the theory."""

from typing import Literal

import torch

from mamltheory.arguments import check_choice, check_seed, check_whole
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.counts import TaskCounts, check_counts
from mamltheory.fewshot.datasets import Data, data_from
from mamltheory.fewshot.episodes import episode_tasks
from mamltheory.fewshot.given_images import split_in_memory
from mamltheory.fewshot.images import channel_statistics
from mamltheory.tasks import Task


def tasks_from(
    data: Data | tuple[object, ...],
    count: int = 8,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 1,
    seed: int = 0,
    split: Literal["train", "val", "test"] = "train",
    image_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Task]:
    """Tasks of images, with one-hot labels; no image is in two of them.

    Args:
        data: what :func:`mamltheory.fewshot.load_data` returns, or what it reads: the name of an embedded data set or
            a folder. A folder of classes without splits is split there: ``load_data(folder, split=(60, 20, 20))``.
            Or images in memory and their labels: uint8 n×h×w×3, array or tensor, and n numbers or names; all of their
            classes are then those of the tasks.
        count: number of tasks.
        ways: classes of a task.
        shots: support images per class.
        queries: query images per class.
        seed: seed of the draw.
        split: the classes of the tasks.
        image_size: side of images that are read, in pixels; None for the stored size.
        dtype: of images and labels.

    Returns:
        The tasks: images n×3×h×w, less the mean of the training images (of images in
        memory: of all), over their deviation.

    Raises:
        ConfigurationError: numbers for which there are too few images or classes, an unknown split, or another dtype.
        DataError: data that cannot be read.

    Example:
        >>> from mamltheory.fewshot import tasks_from
        >>> from mamltheory.fewshot.glyphs import glyph_data
        >>> tasks_from(glyph_data(16, 4, 2, 2, samples_per_class=6), 2, ways=3, queries=2)[0]
        Task(query 6 × 3×16×16, support 3 × 3×16×16, outputs 3, float32)
    """
    check_choice(("train", "val", "test"), split=split)
    check_whole(count=count, ways=ways, shots=shots, queries=queries)
    check_seed(seed)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigurationError(f"dtype is {dtype!r:.80}: expected torch.float32 or torch.float64")
    counts = (count, ways, shots, queries, seed)
    if isinstance(data, tuple):
        _check_defaults(split, image_size)
        chosen = split_in_memory(data)
        mean, std = channel_statistics(chosen)
        return list(episode_tasks(chosen, *counts, mean=mean, std=std, dtype=dtype))
    data = data_from(data, image_size)
    try:
        return list(episode_tasks(getattr(data, split), *counts, mean=data.mean, std=data.std, dtype=dtype))
    except (ConfigurationError, DataError):
        given = {"count": count, "ways": ways, "shots": shots, "queries": queries}
        check_counts(data, given, [TaskCounts(split, tasks="count")])
        raise


def _check_defaults(split: str, image_size: int | None) -> None:
    """Raise ConfigurationError for arguments that images in memory have no use for."""
    if split != "train" or image_size is not None:
        raise ConfigurationError(
            f"split is {split!r} and image_size is {image_size} for images in memory: leave both out, and give the "
            "images of the split at their size"
        )
