"""Few-shot accuracy and predictions of a trained network (Section 6, Appendix E).

A linear head is fitted for each task on frozen features of unit norm: of the query images as they are, and of augmented
copies of the support images.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import torch

from mamltheory.accelerator import float32_products
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.augment import Augmentation, apply_draws, draw_augmentation, join_draws
from mamltheory.fewshot.counts import fewer
from mamltheory.fewshot.episodes import Episode, sample_episode
from mamltheory.fewshot.heads import Head, fit_confidence, fit_predict, make_head, unit_norm
from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.uploads import normalise, resident, take
from mamltheory.intervals import Interval, mean_interval
from mamltheory.rng import generator

Images = np.ndarray | torch.Tensor


@dataclass(frozen=True)
class FeatureMap:
    """``network.features``, scaled to unit norm; the result does not depend on how the images are cut into batches.

    Attributes:
        network: a network with a method ``features``, in evaluation mode and on the device.
        mean, std: channel means and standard deviations on the scale 0..1.
        device: device of the network.
        batch_size: images in one pass; at least the support of one task passes together.
        advance: is called before every pass.
    """

    network: torch.nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device | str = "cpu"
    batch_size: int = 256
    advance: Callable[[], None] | None = None

    def __call__(self, x: torch.Tensor) -> np.ndarray:
        """Rows of length 1 in float64 for normalised images B×3×H×W."""
        if self.advance is not None:
            self.advance()
        with torch.no_grad(), float32_products():
            return unit_norm(self.network.features(x).cpu().numpy())  # type: ignore[operator]

    def plain(self, images: Images, rows: np.ndarray) -> np.ndarray:
        """Features of the images as they are, one row each."""
        batches = np.split(rows, range(self.batch_size, len(rows), self.batch_size))
        parts = [self(normalise(take(images, part, self.device), self.mean, self.std)) for part in batches]
        return np.concatenate(parts)

    def supports(
        self, images: Images, supports: Sequence[np.ndarray], settings: Augmentation, copies: int, seed: int
    ) -> Iterator[np.ndarray]:
        """The support features of each task, whose augmentation is a pure function of (seed, the task's number).

        Args:
            images: the images.
            supports: the rows of every task in ``images``, equally many.
            settings: the training transform.
            copies: augmented copies of every image; 0 takes the images once, as they are.
            seed: seed of the augmentation.

        Yields:
            The features of a task, copy by copy, each copy in the order of the rows.
        """
        size, count = images.shape[1], len(supports[0]) * max(copies, 1)
        together = _tasks_per_batch(count, self.batch_size)
        for first in range(0, len(supports), together):
            group = range(first, min(first + together, len(supports)))
            rows = np.concatenate([np.tile(supports[i], max(copies, 1)) for i in group])
            pixels = take(images, rows, self.device)
            if copies:
                streams = (generator(seed, "support augmentation", i) for i in group)
                draws = join_draws([draw_augmentation(settings, size, count, stream) for stream in streams])
                x = apply_draws(pixels, draws, self.mean, self.std)
            else:
                x = normalise(pixels, self.mean, self.std)
            yield from self(x).reshape(len(group), count, -1)


def _tasks_per_batch(count: int, batch_size: int) -> int:
    """How many tasks with ``count`` support images each pass through the network together."""
    return max(1, batch_size // count)


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the evaluation; the defaults are those of RFS, or of the paper where it names them.

    Attributes:
        ways: classes of a task.
        shots, queries: support and query images per class.
        tasks: number of tasks.
        copies: augmented versions of every support image on which the head is fitted (Appendix E: 5); all of them
            pass the training transform. 0 fits on the images as they are.
        head: the classifier (see :func:`mamltheory.fewshot.heads.make_head`).
        C: inverse of its ℓ2 penalty.
        padding, jitter, flip: as in :class:`Augmentation`.
        batch_size: images in one pass through the network.
    """

    ways: int = 5
    shots: int = 1
    queries: int = 15
    tasks: int = 1000
    copies: int = 5
    head: Head = "logistic"
    C: float = 1.0
    padding: int | None = None
    jitter: float = 0.4
    flip: bool = True
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.tasks < 2 or self.ways < 2:
            raise ConfigurationError(
                f"tasks {self.tasks} and ways {self.ways}: an interval needs at least 2 tasks, a choice 2 "
                "classes"
            )
        if min(self.shots, self.queries, self.batch_size) < 1 or self.copies < 0:
            raise ConfigurationError(
                f"shots {self.shots}, queries {self.queries} and batch_size {self.batch_size} must be at "
                f"least 1, copies {self.copies} at least 0"
            )
        make_head(self.head, self.C)
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """The transform of the support images."""
        return Augmentation(self.padding, self.jitter, self.flip)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of one network on a sequence of tasks.

    Attributes:
        config: the settings.
        seed: seed of the tasks.
        correct: for every task, how many of its ways · queries images were recognised.
        unconverged: number of tasks whose head stopped early.
        tasks_digest: identifies the images of all tasks.
        cpu_seconds: CPU time of the features and the heads, in all processes.
    """

    config: EvaluationConfig
    seed: int
    correct: np.ndarray
    unconverged: int
    tasks_digest: str
    cpu_seconds: float = math.nan

    @property
    def accuracies(self) -> np.ndarray:
        """Share of the query images of each task that were recognised."""
        return self.correct / (self.config.ways * self.config.queries)

    @property
    def interval(self) -> Interval:
        """Mean accuracy over the tasks and its 95 % t interval."""
        return mean_interval(self.accuracies)

    def describe(self) -> str:
        """The result and its settings in one line."""
        c, accuracy = self.config, self.interval
        head = c.head if c.head == "nearest-centroid" else f"{c.head} (C={c.C:g})"
        support = (
            f"{c.copies} augmented copies of each support image" if c.copies else "support images as they are"
        )
        text = (
            f"{100 * accuracy.mean:.2f} ± {100 * accuracy.half_width:.2f} % (95 % interval over {c.tasks} "
            f"tasks): {c.ways}-way {c.shots}-shot, {c.queries} queries per class, {head}, {support}, seed "
            f"{self.seed}"
        )
        return text + (f"; {self.unconverged} heads did not converge" if self.unconverged else "")


def paired_difference(first: Evaluation, second: Evaluation) -> Interval:
    """Return the mean of (first − second) accuracy with its 95 % interval, over the same tasks.

    The difficulty of the tasks cancels, so this interval is much narrower than the two separate ones.

    Args:
        first: one evaluation.
        second: the other one, which is subtracted.

    Raises:
        ConfigurationError: the two were not evaluated on the same tasks.
    """
    if first.tasks_digest != second.tasks_digest:
        raise ConfigurationError(
            "the two evaluations used different tasks: evaluate both with the same data, seed, ways, shots, "
            "queries and number of tasks"
        )
    return mean_interval(first.accuracies - second.accuracies)


def evaluate_network(
    network: torch.nn.Module,
    split: ImageSplit,
    mean: Sequence[float],
    std: Sequence[float],
    config: EvaluationConfig,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    jobs: int = 1,
    advance: Callable[[], None] | None = None,
) -> Evaluation:
    """Return the accuracies on tasks of a split, each a pure function of (seed, its number).

    Query images are not augmented, so each passes through the network once, however many tasks use it.

    Args:
        network: a network with a method ``features``; it is moved to the device and left in its mode.
        split: the images.
        mean: channel means on the scale 0..1.
        std: channel standard deviations on the scale 0..1.
        config: the settings.
        seed: seed of the tasks and of the augmentation.
        device: where the features are computed.
        jobs: processes that fit the heads; the result does not depend on it.
        advance: is called before every batch of images, also from threads of joblib.

    Raises:
        ConfigurationError: jobs is below 1.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}: give the number of processes, at least 1")
    episodes = _episodes(split, config, seed)
    begun, images, mode = time.process_time(), resident(split, device), network.training
    features = FeatureMap(network.to(device).eval(), mean, std, device, config.batch_size, advance)
    try:
        used = _queries(episodes)
        queries = features.plain(images, used)
        rows = [episode.support.ravel() for episode in episodes]
        supports = features.supports(images, rows, config.augmentation(), config.copies, seed)
        # Support features are computed while the heads are fitted: all of them together may fill gigabytes.
        results = joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(_correct)(
                config.head,
                config.C,
                support,
                np.tile(episode.support_labels, max(config.copies, 1)),
                queries[np.searchsorted(used, episode.query.ravel())],
                episode.query_labels,
            )
            for episode, support in zip(episodes, supports, strict=True)
        )
    finally:
        network.train(mode)
    correct = np.array([count for count, *_ in results])
    unconverged = sum(not converged for _, converged, *_ in results)
    elsewhere = sum(seconds for *_, seconds, process in results if process != os.getpid())
    seconds = time.process_time() - begun + elsewhere
    return Evaluation(config, seed, correct, unconverged, _digest(split, episodes), seconds)


def validation_accuracy(
    network: torch.nn.Module,
    data: ImageData,
    tasks: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Interval:
    """The accuracy that follows a training: nearest centroids on tasks of the validation classes, with its interval.

    Args:
        network: a network with a method ``features``; it is left in its mode.
        data: the images; tasks have 5 ways, 1 shot and 15 queries, or as many as there are.
        tasks: number of tasks.
        seed: seed of the tasks.
        device: where the features are computed.

    Returns:
        Mean and 95 % t interval over the tasks.
    """
    ways, queries = fewer(data.val, 5, 1, 15)
    config = EvaluationConfig(ways, 1, queries, tasks, copies=0, head="nearest-centroid")
    return evaluate_network(network, data.val, data.mean, data.std, config, seed, device=device).interval


def batches(split: ImageSplit, config: EvaluationConfig, seed: int) -> int:
    """How many batches of images :func:`evaluate_network` passes through the network, for a progress bar."""
    supports = config.ways * config.shots * max(config.copies, 1)
    together = _tasks_per_batch(supports, config.batch_size)
    queries = len(_queries(_episodes(split, config, seed)))
    return math.ceil(queries / config.batch_size) + math.ceil(config.tasks / together)


def _episodes(split: ImageSplit, config: EvaluationConfig, seed: int) -> list[Episode]:
    counts = (config.ways, config.shots, config.queries)
    return [sample_episode(split, *counts, seed, i) for i in range(config.tasks)]


def _queries(episodes: Sequence[Episode]) -> np.ndarray:
    """The images that are a query of some task, each once."""
    return np.unique(np.concatenate([episode.query.ravel() for episode in episodes]))


def _correct(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray, truth: np.ndarray
) -> tuple[int, bool, float, int]:
    """How many predictions are right, whether the fit converged, its CPU seconds, and the process that made it."""
    begun = time.process_time()
    predictions, converged = fit_predict(head, C, support, labels, query)
    return int((predictions == truth).sum()), converged, time.process_time() - begun, os.getpid()


def _digest(split: ImageSplit, episodes: Sequence[Episode]) -> str:
    digest = hashlib.blake2b("\n".join(split.class_names).encode(), digest_size=16)
    for episode in episodes:
        for part in (episode.classes, episode.support, episode.query):
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes of query images.

    Attributes:
        labels: the class of each image.
        confidence: how sure the head is (see :func:`fit_confidence`).
        converged: whether the fit of the head converged.
    """

    labels: np.ndarray
    confidence: np.ndarray
    converged: bool


def predict(
    network: torch.nn.Module,
    support: np.ndarray,
    labels: np.ndarray,
    query: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    head: Head = "logistic",
    C: float = 1.0,
    copies: int = 5,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Predictions:
    """Return the classes of query images by a head that is fitted on support images.

    Args:
        network: a network with a method ``features``; it is moved to the device and left in its mode.
        support: uint8 n×H×W×3.
        labels: n whole numbers, at least two different ones.
        query: uint8 m×H×W×3.
        mean: channel means on the scale 0..1.
        std: channel standard deviations on the scale 0..1.
        head: the classifier.
        C: inverse of its ℓ2 penalty.
        copies: augmented versions of every support image; 0 takes the images as they are.
        augmentation: the transform of the support images; by default that of RFS.
        seed: seed of the augmentation.
        device: where the features are computed.

    Raises:
        DataError: the images differ in size, or there is only one class.
    """
    if support.shape[1:] != query.shape[1:] or len(np.unique(labels)) < 2:
        raise DataError(
            f"got support images of shape {support.shape[1:]} in {len(np.unique(labels))} classes and query "
            f"images of shape {query.shape[1:]}: give images of one size and at least two classes"
        )
    mode = network.training
    features = FeatureMap(network.to(device).eval(), mean, std, device)
    try:
        rows = [np.arange(len(support))]
        (augmented,) = features.supports(support, rows, augmentation or Augmentation(), copies, seed)
        queries = features.plain(query, np.arange(len(query)))
    finally:
        network.train(mode)
    return Predictions(*fit_confidence(head, C, augmented, np.tile(labels, max(copies, 1)), queries))
