"""Checks of a data set: published sizes, order of the channels, images that two splits share."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mamltheory.fewshot.images import ImageSplit

PUBLISHED = {
    "miniImageNet": {"train": (64, 38_400), "val": (16, 9_600), "test": (20, 12_000)},
    "tieredImageNet": {"train": (351, 448_695), "val": (97, 124_261), "test": (160, 206_209)},
    "CIFAR-FS": {"train": (64, 38_400), "val": (16, 9_600), "test": (20, 12_000)},
    "FC100": {"train": (60, 36_000), "val": (20, 12_000), "test": (20, 12_000)},
}
"""Classes and images of every split of the public few-shot sets."""
PER_CLASS = 20  # images from which the order of the channels is estimated
STANDARD_ERRORS = 3.0
SAME_CLASS = 0.1  # from this share of identical images on two classes count as one


@dataclass(frozen=True)
class ChannelOrder:
    """Evidence on whether the first channel is red: photographs are warmer than grey on average.

    Attributes:
        means: of the three channels, 0..255.
        difference: first minus third channel, mean over classes; for ImageNet 120.4 − 104.5 = +15.9 if red is first.
        error: standard error of the difference.
    """

    means: tuple[float, float, float]
    difference: float
    error: float

    @property
    def verdict(self) -> str:
        """One of "red first", "blue first" and, within three standard errors, "undecided"."""
        if not abs(self.difference) > STANDARD_ERRORS * self.error:
            return "undecided"
        return "red first" if self.difference > 0 else "blue first"


def channel_order(split: ImageSplit) -> ChannelOrder:
    """Estimate the order of the channels from the first 20 images of every class; classes count as independent."""
    means = np.array([split.images[rows[:PER_CLASS]].mean((0, 1, 2)) for rows in split.members])
    differences = means[:, 0] - means[:, 2]
    spread = float(differences.std(ddof=1)) if len(means) > 1 else math.inf
    return ChannelOrder(
        tuple(means.mean(0).tolist()), float(differences.mean()), spread / math.sqrt(len(means))
    )


def image_hashes(split: ImageSplit, advance: Callable[[int], None] = lambda _: None) -> np.ndarray:
    """Return a hash of 64 bits for every image, which is equal for identical images; reads all images once.

    Among 10⁶ images two different ones agree by chance with probability 3·10⁻⁸. ``advance(n)`` is called when n more
    images are read.
    """
    hashes = np.empty(len(split), np.uint64)
    for row in range(len(split)):
        raw = split.images[row].tobytes()
        hashes[row] = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
        if row % 512 == 511 or row == len(split) - 1:
            advance(row % 512 + 1)
    return hashes


@dataclass(frozen=True)
class Overlap:
    """Two classes of different splits that have images in common.

    Attributes:
        first, second: (split, class).
        images: number of common images.
        share: the same as a share of the smaller class.
    """

    first: tuple[str, str]
    second: tuple[str, str]
    images: int
    share: float

    @property
    def same_class(self) -> bool:
        """Whether so many images are identical that the two are one class under two labels."""
        return self.share >= SAME_CLASS


def overlaps(splits: Mapping[str, ImageSplit], hashes: Mapping[str, np.ndarray]) -> list[Overlap]:
    """The pairs of classes from different splits with identical images, the largest share first."""
    found = []
    for first, second in combinations(splits, 2):
        common = np.intersect1d(hashes[first], hashes[second])
        if len(common) == 0:
            continue
        pairs: Counter[tuple[int, int]] = Counter()
        sides = [_classes_by_hash(splits[name], hashes[name], common) for name in (first, second)]
        for code in common.tolist():
            pairs.update((a, b) for a in sides[0][code] for b in sides[1][code])
        for (a, b), count in pairs.items():
            smaller = min(len(splits[first].members[a]), len(splits[second].members[b]))
            names = (first, splits[first].class_names[a]), (second, splits[second].class_names[b])
            found.append(Overlap(*names, count, count / smaller))
    return sorted(found, key=lambda overlap: (-overlap.share, overlap.first, overlap.second))


@dataclass(frozen=True)
class Copies:
    """How many images of a split are copies of an earlier image.

    Attributes:
        images: number of images.
        within: copies whose class has the image already.
        across: first copies in further classes.
        worst: the class with most copies; None if there are none.
    """

    images: int
    within: int
    across: int
    worst: str | None


def copies(split: ImageSplit, hashes: np.ndarray) -> Copies:
    """Count identical images in a split: a task may hold one in its support and again among its queries."""
    _, codes, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    pairs = np.unique(np.stack([codes, split.labels]), axis=1).shape[1]
    repeated = np.bincount(split.labels, counts[codes] > 1, len(split.class_names))
    worst = split.class_names[int(repeated.argmax())] if repeated.any() else None
    return Copies(len(split), len(split) - pairs, pairs - len(counts), worst)


def sampled(split: ImageSplit, most_bytes: int) -> ImageSplit:
    """The split or, if it has more bytes, a copy of evenly spaced whole classes with a quarter of ``most_bytes``."""
    if split.images.nbytes <= most_bytes:
        return split
    count = max(1, int(len(split.class_names) * most_bytes / 4 / split.images.nbytes))
    chosen = np.unique(np.linspace(0, len(split.class_names) - 1, count).astype(np.int64))
    rows = [split.members[c] for c in chosen]
    labels = np.repeat(np.arange(len(chosen)), [len(each) for each in rows])
    images = split.images[np.concatenate(rows)]
    return ImageSplit(images, labels.astype(np.int64), tuple(split.class_names[c] for c in chosen))


def _classes_by_hash(split: ImageSplit, hashes: np.ndarray, wanted: np.ndarray) -> dict[int, set[int]]:
    rows = np.flatnonzero(np.isin(hashes, wanted))
    classes: dict[int, set[int]] = {}
    for row in rows.tolist():
        classes.setdefault(int(hashes[row]), set()).add(int(split.labels[row]))
    return classes
