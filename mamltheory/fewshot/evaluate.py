"""Few-shot accuracy of a trained network (Section 6, Appendix E): a linear head for each task, on frozen
features.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import joblib
import numpy as np
import torch
from scipy import stats

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.fewshot.augment import Augmentation, apply_draws, draw, join
from mamltheory.fewshot.episodes import Episode, sample_episode
from mamltheory.fewshot.heads import Head, fit_predict, make_head, unit_norm
from mamltheory.fewshot.images import ImageSplit, normalise, resident, take
from mamltheory.rng import generator


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


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its two-sided 95 % interval."""

    mean: float
    half_width: float


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Accuracies of one network on a sequence of tasks, with everything that decides them.

    `tasks_digest` identifies the images of all tasks; `unconverged` counts the tasks whose head stopped
    early.
    """

    config: EvaluationConfig
    seed: int
    accuracies: np.ndarray
    unconverged: int
    tasks_digest: str

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


def mean_interval(values: np.ndarray) -> Interval:
    """Mean and half-width t(0.975; n-1)·s/√n of independent values; at least two are needed."""
    if values.ndim != 1 or len(values) < 2:
        raise ShapeError(
            f"got values of shape {values.shape}: an interval needs at least two numbers in a row"
        )
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


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
    episodes = [
        sample_episode(split, config.ways, config.shots, config.queries, seed, i) for i in range(config.tasks)
    ]
    images, mode = resident(split, device), network.training
    network = network.to(device).eval()
    try:
        used, query_features = _query_features(
            network, images, episodes, mean, std, config.batch_size, device
        )
        supports = _support_features(network, images, episodes, mean, std, config, seed, device)
        # Support features are made while the heads are fitted: all of them together may fill gigabytes.
        results = joblib.Parallel(n_jobs=jobs)(
            joblib.delayed(_accuracy)(
                config.head,
                config.C,
                support,
                np.tile(episode.support_labels, max(config.copies, 1)),
                query_features[np.searchsorted(used, episode.query.ravel())],
                episode.query_labels,
            )
            for episode, support in zip(episodes, supports, strict=True)
        )
    finally:
        network.train(mode)
    accuracies = np.array([accuracy for accuracy, _ in results])
    unconverged = sum(not converged for _, converged in results)
    return Evaluation(config, seed, accuracies, unconverged, _digest(split, episodes))


def _features(network: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return unit_norm(network.features(x).cpu().numpy())


def _query_features(
    network: torch.nn.Module,
    images: np.ndarray | torch.Tensor,
    episodes: Sequence[Episode],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device | str,
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of all images that are a query of some task, ascending, and their features."""
    used = np.unique(np.concatenate([episode.query.ravel() for episode in episodes]))
    batches = np.split(used, range(batch_size, len(used), batch_size))
    return used, np.concatenate(
        [_features(network, normalise(take(images, rows, device), mean, std)) for rows in batches]
    )


def _support_features(
    network: torch.nn.Module,
    images: np.ndarray | torch.Tensor,
    episodes: Sequence[Episode],
    mean: Sequence[float],
    std: Sequence[float],
    config: EvaluationConfig,
    seed: int,
    device: torch.device | str,
) -> Iterator[np.ndarray]:
    """For each task the features of its support images: copy by copy, in the order of support.ravel()."""
    settings, size = config.augmentation(), images.shape[1]
    count = config.ways * config.shots * max(config.copies, 1)
    together = max(1, config.batch_size // count)
    for first in range(0, len(episodes), together):
        group = range(first, min(first + together, len(episodes)))
        rows = np.concatenate([np.tile(episodes[i].support.ravel(), max(config.copies, 1)) for i in group])
        pixels = take(images, rows, device)
        if config.copies:
            streams = (generator(seed, "support augmentation", i) for i in group)
            x = apply_draws(
                pixels, join([draw(settings, size, count, stream) for stream in streams]), mean, std
            )
        else:
            x = normalise(pixels, mean, std)
        yield from _features(network, x).reshape(len(group), count, -1)


def _accuracy(
    head: Head, C: float, support: np.ndarray, labels: np.ndarray, query: np.ndarray, truth: np.ndarray
) -> tuple[float, bool]:
    predictions, converged = fit_predict(head, C, support, labels, query)
    return float((predictions == truth).mean()), converged


def _digest(split: ImageSplit, episodes: Sequence[Episode]) -> str:
    digest = hashlib.blake2b("\n".join(split.class_names).encode(), digest_size=16)
    for episode in episodes:
        for part in (episode.classes, episode.support, episode.query):
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes())
    return digest.hexdigest()
