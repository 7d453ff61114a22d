"""N-way k-shot episodes: which classes, which support and which query images; and tasks made of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mamltheory.accelerator import uploaded
from mamltheory.errors import ConfigurationError, DataError, ShapeError
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.uploads import normalise, take
from mamltheory.rng import numpy_generator
from mamltheory.tasks import Task, trusted_task

ClassIndex = Sequence[np.ndarray]
"""The image indices of every class, as :attr:`ImageSplit.members`."""


@dataclass(frozen=True, eq=False)
class Episode:
    """One few-shot task as indices; i is the label of classes[i] within the episode.

    Attributes:
        classes: the classes; ways.
        support: the images in row i are of classes[i]; ways × shots.
        query: the same; ways × queries.
    """

    classes: np.ndarray
    support: np.ndarray
    query: np.ndarray

    @property
    def support_labels(self) -> np.ndarray:
        """The labels 0..ways-1 of the support images, in the order of support.ravel()."""
        return np.repeat(np.arange(len(self.classes)), self.support.shape[1])

    @property
    def query_labels(self) -> np.ndarray:
        """The labels 0..ways-1 of the query images, in the order of query.ravel()."""
        return np.repeat(np.arange(len(self.classes)), self.query.shape[1])


def sample_episode(
    split: ImageSplit | ClassIndex, ways: int, shots: int, queries: int, seed: int, index: int
) -> Episode:
    """Return an episode in which no image is both support and query: a pure function of (seed, index).

    Args:
        split: the images, or the indices of every class.
        ways: number of classes; at most those of the split.
        shots: support images per class.
        queries: query images per class.
        seed: seed of the sequence of episodes.
        index: number of the episode.

    Raises:
        DataError: a class has fewer than shots + queries images.
    """
    members = _members(split)
    _check_counts(ways, shots, queries, len(members))
    short = min(range(len(members)), key=lambda i: len(members[i]))
    if len(members[short]) < shots + queries:
        raise DataError(
            f"class {_name(split, short)} has {len(members[short])} images, an episode needs {shots} + "
            f"{queries}: lower shots or queries, or leave the class out"
        )
    random = numpy_generator(seed, "episode", index)
    classes = random.choice(len(members), ways, replace=False)
    images = np.stack([random.choice(members[c], shots + queries, replace=False) for c in classes])
    return Episode(classes, images[:, :shots], images[:, shots:])


def sample_episodes(
    split: ImageSplit | ClassIndex,
    count: int,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    index: int = 0,
) -> tuple[Episode, ...]:
    """Return a batch of episodes in which no image occurs twice: a pure function of (seed, index).

    A repeated image would make the joint kernel of the batch singular. A longer batch begins with the shorter one.

    Args:
        split: the images, or the indices of every class.
        count: number of episodes.
        ways: number of classes.
        shots: support images per class.
        queries: query images per class.
        seed: seed of the sequence of batches.
        index: number of the batch.

    Raises:
        ConfigurationError: the split is too small.
    """
    members = _members(split)
    _check_counts(ways, shots, queries, len(members))
    random = numpy_generator(seed, "episode batch", index)
    unused = [random.permutation(m) for m in members]
    episodes = []
    for number in range(count):
        open_classes = [c for c, images in enumerate(unused) if len(images) >= shots + queries]
        if len(open_classes) < ways:
            raise ConfigurationError(
                f"after {number} of {count} episodes only {len(open_classes)} classes have {shots + queries} "
                f"unused images, {ways} are needed: lower the number of tasks, ways, shots or queries"
            )
        classes = random.choice(open_classes, ways, replace=False)
        images = np.stack([unused[c][: shots + queries] for c in classes])
        for c in classes:
            unused[c] = unused[c][shots + queries :]
        episodes.append(Episode(classes, images[:, :shots], images[:, shots:]))
    return tuple(episodes)


def one_hot(labels: np.ndarray, ways: int, centred: bool = False) -> Tensor:
    """One-hot rows in float64; if ``centred``, 1/ways is subtracted, so rows and balanced columns sum to 0."""
    return torch.eye(ways, dtype=torch.float64)[torch.from_numpy(labels)] - (1.0 / ways if centred else 0.0)


def episode_task(
    episode: Episode,
    query_x: Tensor,
    support_x: Tensor,
    centred: bool = False,
    dtype: torch.dtype | None = None,
) -> Task:
    """The task of Section 3 for an episode.

    Args:
        episode: the episode.
        query_x: images or features of ``episode.query.ravel()``.
        support_x: images or features of ``episode.support.ravel()``.
        centred: whether 1/ways is subtracted from the one-hot labels.
        dtype: dtype of the task; by default that of ``query_x``.

    Returns:
        The task, with labels on the device of ``query_x``.

    Raises:
        ShapeError: there is not one input for each index.
    """
    if len(query_x) != episode.query.size or len(support_x) != episode.support.size:
        raise ShapeError(
            f"got {len(query_x)} query and {len(support_x)} support inputs for an episode with "
            f"{episode.query.size} and {episode.support.size}: give one row for each index, in the order of "
            "ravel()"
        )
    dtype, ways = dtype or query_x.dtype, len(episode.classes)
    labels = (one_hot(labels, ways, centred) for labels in (episode.query_labels, episode.support_labels))
    query_y, support_y = (y.to(query_x.device, dtype) for y in labels)
    return Task(query_x.to(dtype), query_y, support_x.to(dtype), support_y)


def episode_tasks(
    split: ImageSplit,
    count: int,
    ways: int,
    shots: int,
    queries: int,
    seed: int,
    index: int = 0,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    centred: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Task, ...]:
    """Return the tasks of the episodes of :func:`sample_episodes`: normalised images n×3×H×W with one-hot labels.

    Args:
        split: the images.
        count: number of tasks.
        ways: number of classes.
        shots: support images per class.
        queries: query images per class.
        seed: seed of the sequence of batches.
        index: number of the batch.
        mean: channel means on the scale 0..1.
        std: channel standard deviations on the scale 0..1.
        centred: whether 1/ways is subtracted from the labels.
        dtype: dtype of the tasks.
        device: device of the tasks.
    """
    episodes = sample_episodes(split, count, ways, shots, queries, seed, index)
    return tasks_of_episodes(split, episodes, mean=mean, std=std, centred=centred, dtype=dtype, device=device)


def tasks_of_episodes(
    split: ImageSplit,
    episodes: Sequence[Episode],
    *,
    mean: Sequence[float],
    std: Sequence[float],
    centred: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Task, ...]:
    """Return the tasks of episodes of equal sizes, for which the host waits for no device.

    Args:
        split: the images.
        episodes: the episodes; at least one.
        mean: as for :func:`episode_tasks`.
        std: likewise.
        centred: likewise.
        dtype: likewise.
        device: likewise.
    """
    first = episodes[0]
    rows = [each.ravel() for episode in episodes for each in (episode.query, episode.support)]
    images = normalise(take(split.images, np.concatenate(rows), device), mean, std).to(dtype)
    # Each part has its own memory: on CPUs the last bits of products may depend on where a tensor begins.
    parts = [part.clone() for part in images.split([len(each) for each in rows])]
    numbers = np.concatenate([first.query_labels, first.support_labels])
    labels = uploaded(one_hot(numbers, len(first.classes), centred).to(dtype), images.device)
    query_y, support_y = labels.split([first.query.size, first.support.size])
    return tuple(
        trusted_task(query_x, query_y, support_x, support_y)
        for query_x, support_x in zip(parts[::2], parts[1::2], strict=True)
    )


def _members(split: ImageSplit | ClassIndex) -> ClassIndex:
    return split.members if isinstance(split, ImageSplit) else split


def _name(split: ImageSplit | ClassIndex, index: int) -> str:
    return repr(split.class_names[index]) if isinstance(split, ImageSplit) else str(index)


def _check_counts(ways: int, shots: int, queries: int, classes: int) -> None:
    if min(ways, shots, queries) < 1:
        raise ConfigurationError(f"ways {ways}, shots {shots} and queries {queries} must all be at least 1")
    if ways > classes:
        raise ConfigurationError(
            f"{ways} ways were asked for but the split has {classes} classes: lower ways"
        )
