"""Few-shot accuracy by prototypes: the nearest mean of the support features, on many tasks at once.

The features of all images of a split are computed once, and every task is an index into them. So a thousand tasks cost
little more than one pass over the images, and the accuracy of a network can be followed while it trains.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float

from mamltheory.errors import ShapeError
from mamltheory.fewshot.episodes import Episode, sample_episode
from mamltheory.fewshot.evaluation import FeatureMap
from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.uploads import resident

TASKS_TOGETHER = 64
"""Tasks whose features are gathered at once: some 30 MB for 5-way tasks with 100 features."""


def split_features(
    network: torch.nn.Module,
    split: ImageSplit,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, "n d"]:
    """The features of all images of a split, scaled to unit norm.

    Args:
        network: a network with a method ``features``; it is left in its mode.
        split: the images.
        mean: channel means on the scale 0..1.
        std: channel standard deviations on the scale 0..1.
        device: where the features are computed.

    Returns:
        One row per image, in float64.
    """
    mode = network.training
    try:
        features = FeatureMap(network.to(device).eval(), mean, std, device)
        return features.plain(resident(split, device), np.arange(len(split)))
    finally:
        network.train(mode)


def prototype_accuracies(
    features: Float[np.ndarray, "n d"], episodes: Sequence[Episode]
) -> Float[np.ndarray, " tasks"]:
    """The share of the queries of each task that lie nearest to the mean support feature of their class.

    It is what :func:`mamltheory.fewshot.evaluation.evaluate_network` computes with the head "nearest-centroid" and
    support images as they are.

    Args:
        features: one row per image of the split.
        episodes: tasks of the same numbers of ways, shots and queries.

    Returns:
        One accuracy per task. ShapeError is raised if there is no task, or the tasks differ in their numbers.
    """
    hits = prototype_hits(features, episodes)
    return hits.reshape(len(hits), -1).mean(1)


def prototype_hits(
    features: Float[np.ndarray, "n d"], episodes: Sequence[Episode]
) -> Bool[np.ndarray, "tasks ways queries"]:
    """Whether each query of each task lies nearest to the mean support feature of its class.

    Args:
        features: one row per image of the split.
        episodes: tasks of the same numbers of ways, shots and queries.

    Returns:
        True for the queries that are classified correctly.

    Raises:
        ShapeError: there is no task, or the tasks differ in their numbers.
    """
    sizes = len({(each.support.shape, each.query.shape) for each in episodes})
    if sizes != 1:
        raise ShapeError(
            f"got {len(episodes)} tasks of {sizes} sizes: expected at least one task, and equal numbers of ways, "
            "shots and queries"
        )
    parts = []
    for first in range(0, len(episodes), TASKS_TOGETHER):
        group = episodes[first : first + TASKS_TOGETHER]
        support, query = (np.stack([getattr(each, name) for each in group]) for name in ("support", "query"))
        prototypes = features[support].mean(2)  # tasks × ways × d
        queries = features[query.reshape(len(group), -1)]  # tasks × (ways · queries) × d
        # −|q − c|² without the term |q|², which is the same for every class.
        closeness = 2 * queries @ prototypes.transpose(0, 2, 1) - (prototypes**2).sum(2)[:, None]
        truth = np.repeat(np.arange(query.shape[1]), query.shape[2])
        parts.append((closeness.argmax(2) == truth).reshape(query.shape))
    return np.concatenate(parts)


def followed_accuracies(
    network: torch.nn.Module,
    data: ImageData,
    splits: Iterable[str],
    shots: Iterable[int],
    ways: int,
    queries: int,
    tasks: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Mapping[str, Mapping[int, float]]:
    """Mean few-shot accuracies by prototypes, on tasks that are the same for every network.

    Args:
        network: a network with a method ``features``; it is left in its mode.
        data: the images.
        splits: "train", "val" and "test", or some of them.
        shots: support images per class.
        ways: classes per task.
        queries: query images per class.
        tasks: number of tasks of every split and number of shots.
        seed: seed of the tasks.
        device: where the features are computed.

    Returns:
        The accuracies by split and shots.
    """
    found: dict[str, dict[int, float]] = {}
    for name in splits:
        split: ImageSplit = getattr(data, name)
        features = split_features(network, split, data.mean, data.std, device)
        found[name] = {
            k: float(prototype_accuracies(features, _episodes(split, ways, k, queries, tasks, seed)).mean())
            for k in shots
        }
    return found


@lru_cache(maxsize=8)
def _episodes(
    split: ImageSplit, ways: int, shots: int, queries: int, tasks: int, seed: int
) -> tuple[Episode, ...]:
    return tuple(sample_episode(split, ways, shots, queries, seed, i) for i in range(tasks))
