"""Labelled images in memory: the result of every reader and the input of everything else in this package.

Nothing here imports torch, so that a mistake in a folder is answered before that is loaded.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from mamltheory.errors import DataError, ValueRangeError

STATISTICS_SAMPLE = 20_000  # images: they give the mean to 1e-3 without reading all of a 9.5 GB memory map
ChannelValues = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images of a set of classes.

    Attributes:
        images: uint8 N×H×W×3, RGB; an array or a memory map.
        labels: int64 N, from 0 to len(class_names) - 1; every class has at least one image.
        class_names: names of the classes; bytes of folder names that are not UTF-8 are escaped.

    Raises:
        DataError: the arrays do not fit this description.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        names = tuple(name.encode("utf-8", "backslashreplace").decode() for name in self.class_names)
        object.__setattr__(self, "class_names", names)
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), self.class_names)

    def __repr__(self) -> str:
        count, height, width, _ = self.images.shape
        return f"ImageSplit({count} images of {width}×{height} in {len(self.class_names)} classes)"

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def members(self) -> tuple[np.ndarray, ...]:
        """The image indices of every class, ascending."""
        order = np.argsort(self.labels, kind="stable")
        ends = np.cumsum(np.bincount(self.labels, minlength=len(self.class_names)))
        return tuple(np.split(order, ends[:-1]))


@dataclass(frozen=True, eq=False)
class ImageData:
    """A few-shot data set, whose three sets of classes are disjoint.

    Attributes:
        name: name of the data set.
        train, val, test: the three sets of classes.
        mean, std: channel means and standard deviations of the training images on the scale 0..1.
        mirrors: whether a mirrored image still shows the same class: true of photographs, not of characters.

    Raises:
        DataError: two splits share a class, or differ in the size of their images.
    """

    name: str
    train: ImageSplit
    val: ImageSplit
    test: ImageSplit
    mean: ChannelValues
    std: ChannelValues
    mirrors: bool = True

    def __post_init__(self) -> None:
        _refuse_shared_classes(self._splits(), self.name)
        sizes = {split.images.shape[1:] for split in self._splits().values()}
        if len(sizes) != 1:
            raise DataError(f"{self.name}: the splits have images of shapes {sorted(sizes)}; give image_size")
        check_statistics(self.mean, self.std)

    def __repr__(self) -> str:
        splits = (f"{name} {len(s)} in {len(s.class_names)} classes" for name, s in self._splits().items())
        height, width = self.train.images.shape[1:3]
        return f"ImageData({self.name!r}, images of {width}×{height}: {', '.join(splits)})"

    def _splits(self) -> dict[str, ImageSplit]:
        return {"train": self.train, "val": self.val, "test": self.test}


def check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueRangeError unless the channel statistics are three numbers each on the scale 0..1."""
    if (
        len(mean) != 3
        or len(std) != 3
        or not all(0 <= m <= 1 for m in mean)
        or not all(0 < s <= 1 for s in std)
    ):
        raise ValueRangeError(
            f"mean {tuple(mean)} and std {tuple(std)} must be three numbers each in [0, 1], std positive: "
            "divide statistics of 0..255 images by 255"
        )


def channel_statistics(split: ImageSplit) -> tuple[ChannelValues, ChannelValues]:
    """Mean and standard deviation per channel on the scale 0..1, over at most 20,000 evenly spaced images."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(len(split), STATISTICS_SAMPLE)).astype(np.int64))
    total, squares, count = np.zeros(3), np.zeros(3), 0
    for rows in np.array_split(chosen, max(1, len(chosen) // 256)):
        pixels = split.images[rows].reshape(-1, 3) / 255.0
        total, squares, count = total + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = total / count
    # A constant channel would be divided by zero: one grey level is the least spread that uint8 can show.
    std = np.sqrt(np.maximum(squares / count - mean**2, 255.0**-2))
    return tuple(mean.tolist()), tuple(std.tolist())


def fingerprint(split: ImageSplit) -> str:
    """A digest of the class names, the labels and 16 evenly spaced images, which tells data sets apart."""
    digest = hashlib.blake2b("\n".join(split.class_names).encode(), digest_size=16)
    digest.update(split.labels.astype("<i8").tobytes())
    for row in np.linspace(0, len(split) - 1, 16).astype(np.int64):
        digest.update(np.ascontiguousarray(split.images[row]).tobytes())
    return digest.hexdigest()


def _refuse_shared_classes(splits: Mapping[str, ImageSplit], name: str) -> None:
    for first, second in combinations(splits, 2):
        ours, theirs = (
            {_same(each): each for each in splits[split].class_names} for split in (first, second)
        )
        shared = sorted(ours.keys() & theirs.keys(), key=ours.__getitem__)
        if shared:
            pair = dict.fromkeys((ours[shared[0]], theirs[shared[0]]))
            raise DataError(
                f"{name}: {first} and {second} share {len(shared)} classes (such as "
                f"{' and '.join(map(ascii if len(pair) > 1 else repr, pair))}). Few-shot "
                "classes must be new at test time; this is an ordinary classification split, use a data set "
                "split by class"
            )


def _same(name: str) -> str:
    """A key that is equal for names that differ only by Unicode form, case or blanks at their ends."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()).strip()


def _check_images(images: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise DataError(
            f"images have dtype {images.dtype} and shape {images.shape}; expected non-empty uint8 N×H×W×3 "
            "(RGB): convert with (255 * x).round().astype(numpy.uint8), channels last"
        )


def _check_labels(labels: np.ndarray, count: int, names: Sequence[str]) -> None:
    if labels.dtype != np.int64 or labels.shape != (count,):
        raise DataError(
            f"labels have dtype {labels.dtype} and shape {labels.shape}; expected int64 of shape ({count},)"
        )
    if not np.array_equal(np.unique(labels), np.arange(len(names))):
        raise DataError(
            f"labels must take every value from 0 to {len(names) - 1} (one per class name), got values from "
            f"{labels.min()} to {labels.max()} with {len(np.unique(labels))} different ones: renumber them"
        )
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"class name {twice[0]!r} occurs more than once: merge these classes or rename one")
