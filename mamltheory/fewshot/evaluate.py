"""Few-shot accuracy of a trained network (Section 6, Appendix E): a linear head for each task, on frozen
features.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import torch

from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.augment import Augmentation
from mamltheory.fewshot.episodes import Episode, sample_episode
from mamltheory.fewshot.features import FeatureMap, tasks_at_once
from mamltheory.fewshot.heads import Head, fit_predict, make_head
from mamltheory.fewshot.images import ImageSplit, resident
from mamltheory.fewshot.statistics import Interval, mean_interval


@dataclass(frozen=True)
class EvaluationConfig:
    """Settings of the evaluation; the defaults are RFS's and the paper's where it names them.

    `copies`: augmented versions of every support image, all of them through the training transform, of which
    the head is fitted on (Appendix E: 5); 0 fits on the images as they are. `head` and `C`: see
    :func:`mamltheory.fewshot.heads.make_head`. `padding`, `jitter` and `flip` are those of
    :class:`Augmentation`. `batch_size` images go through the network at once.
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
        """The settings of the transform of the support images."""
        return Augmentation(self.padding, self.jitter, self.flip)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of one network on a sequence of tasks, with everything that decides them.

    `correct`: of every task, how many of its ways · queries images were recognised. `tasks_digest`
    identifies the images of all tasks; `unconverged` counts the tasks whose head stopped early.
    """

    config: EvaluationConfig
    seed: int
    correct: np.ndarray
    unconverged: int
    tasks_digest: str

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
    """Mean of (first − second) accuracy with its 95 % interval, over the same tasks.

    The tasks' own difficulty cancels, so this is much narrower than the two intervals. Raises
    ConfigurationError when the two were not evaluated on the same tasks.
    """
    if first.tasks_digest != second.tasks_digest:
        raise ConfigurationError(
            "the two evaluations used different tasks: evaluate both with the same data, seed, ways, shots, "
            "queries and number of tasks"
        )
    return mean_interval(first.accuracies - second.accuracies)


def evaluate(
    network: torch.nn.Module,
    split: ImageSplit,
    mean: Sequence[float],
    std: Sequence[float],
    config: EvaluationConfig,
    seed: int,
    *,
    device: torch.device | str = "cpu",
    jobs: int = 1,
) -> Evaluation:
    """Accuracies on `config.tasks` tasks of a split, each a pure function of (seed, its number).

    Features are `network.features` in evaluation mode, scaled to unit norm. Query images are not augmented,
    so each passes through the network once, however many tasks use it. `jobs` processes fit the heads; the
    result does not depend on it. The network is moved to the device and left in its mode.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}: give the number of processes, at least 1")
    episodes = _episodes(split, config, seed)
    images, mode = resident(split, device), network.training
    features = FeatureMap(network.to(device).eval(), mean, std, device, config.batch_size)
    try:
        used = _queries(episodes)
        queries = features.plain(images, used)
        supports = features.supports(
            images,
            [episode.support.ravel() for episode in episodes],
            config.augmentation(),
            config.copies,
            seed,
        )
        # Support features are made while the heads are fitted: all of them together may fill gigabytes.
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
    correct = np.array([count for count, _ in results])
    unconverged = sum(not converged for _, converged in results)
    return Evaluation(config, seed, correct, unconverged, _digest(split, episodes))


def batches(split: ImageSplit, config: EvaluationConfig, seed: int) -> int:
    """How many batches of images :func:`evaluate` passes through the network: to tell how far it is."""
    supports = config.ways * config.shots * max(config.copies, 1)
    together = tasks_at_once(supports, config.batch_size)
    queries = len(_queries(_episodes(split, config, seed)))
    return math.ceil(queries / config.batch_size) + math.ceil(config.tasks / together)


def _episodes(split: ImageSplit, config: EvaluationConfig, seed: int) -> list[Episode]:
    counts = (config.ways, config.shots, config.queries)
    return [sample_episode(split, *counts, seed, i) for i in range(config.tasks)]


def _queries(episodes: Sequence[Episode]) -> np.ndarray:
    """The images that are some task's query, each once."""
    return np.unique(np.concatenate([episode.query.ravel() for episode in episodes]))


def _correct(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray, truth: np.ndarray
) -> tuple[int, bool]:
    predictions, converged = fit_predict(head, C, support, labels, query)
    return int((predictions == truth).sum()), converged


def _digest(split: ImageSplit, episodes: Sequence[Episode]) -> str:
    digest = hashlib.blake2b("\n".join(split.class_names).encode(), digest_size=16)
    for episode in episodes:
        for part in (episode.classes, episode.support, episode.query):
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()
