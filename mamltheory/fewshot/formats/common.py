"""Shared by the readers of all layouts: options, splits from raw labels, and files that must exist."""

import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np

from mamltheory.errors import DataError, printable
from mamltheory.fewshot.formats.listing import refuse_outside
from mamltheory.fewshot.images import ChannelValues, ImageSplit
from mamltheory.fewshot.safe_pickle import load_pickle, refuse_other_files
from mamltheory.files import read_regular, shown
from mamltheory.strict_json import unsealed

INSIDE = (f"{Path(__file__).parents[2]}{os.sep}", f"{Path(jaxtyping.__file__).parent}{os.sep}", "<@")
"""How the files of the package begin, and those of the type checks that tests put between its calls."""
SPLITS = ("train", "val", "test")
SPELLINGS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
"""The names of the splits in files and folders."""
Statistics = tuple[ChannelValues, ChannelValues]
Find = Callable[[Path, str], Path | None]
"""(folder, split) -> the main file or folder of a split; None if it does not exist."""
# The training images of mini-ImageNet, on the scale 0..255; RFS uses these values for tieredImageNet, too.
IMAGENET_MEAN = (120.39586422 / 255, 115.59361427 / 255, 104.54012653 / 255)
IMAGENET_STD = (70.68188272 / 255, 68.27635443 / 255, 72.54505529 / 255)
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
MOST_TEXT = 256 * 2**20  # bytes of a CSV or JSON file: a million images need 60 MB


def in_memory(split: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array for the images of a split in memory; raises DataError when the machine has too little memory."""
    size, limit = math.prod(shape), _physical_memory()
    if size > limit:
        raise DataError(
            f"the {split} images take {size / 1e9:.1f} GB at {shape[2]}×{shape[1]} pixels and this machine has "
            f"{limit / 1e9:.1f} GB of memory: give a smaller image_size, or write them to a file once with "
            "the command `data PATH --prepare FOLDER` and use that folder"
        )
    return np.empty(shape, np.uint8)


def _physical_memory() -> int | float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # a system that does not say
        return math.inf


def no_progress(images: int) -> None:
    """Ignore the number of images that were read."""


def python_warning(text: str) -> None:
    """Turn a notice about skipped files into a Python warning at the line of the user that led to it."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(text), stacklevel=level)


@dataclass(frozen=True)
class Options:
    """How a data set is read.

    Attributes:
        image_size: side of the square images; None keeps the stored size.
        as_stored: whether the channels of the tieredImageNet arrays keep their order, for a copy that is RGB already.
        allocate: (split, shape) -> the uint8 array for decoded or resized images. They are written one by one, so no
            other array of the size of the data is made.
        advance: is called with n when n more images are read.
        shares: shares of the classes for training, validation and test, where the data have no splits.
        share_seed: draws these classes.
        notice: is called with a text about skipped files.
        mirrors: whether a mirrored image shows the same class; None for what the layout says.
    """

    image_size: int | None = None
    as_stored: bool = False
    allocate: Callable[[str, tuple[int, ...]], np.ndarray] = in_memory
    advance: Callable[[int], None] = no_progress
    shares: tuple[int, ...] | None = None
    share_seed: int = 0
    notice: Callable[[str], None] = python_warning
    mirrors: bool | None = None


def folder_name(folder: Path) -> str:
    """The name of the folder, which is the name of a data set without another one."""
    return folder.resolve().name


@dataclass(frozen=True)
class Format:
    """One layout on disk.

    Attributes:
        name: its name, for messages.
        layout: its files, for messages.
        find: finds the main file or folder of a split.
        read: (folder, split, options) -> the split; use it through :meth:`load`.
        title: folder -> name of the data set.
        statistics: folder -> channel means and standard deviations; None to compute them from the training images.
        published: folder -> name in :data:`mamltheory.fewshot.inspection.PUBLISHED` whose sizes the data should have.
        mirrors: folder -> whether a mirrored image shows the same class.
        look: (folder, options) -> nothing; raises the errors of ``read`` for the names of folders and files alone; use
            it through :meth:`check`.
    """

    name: str
    layout: str
    find: Find
    read: Callable[[Path, str, Options], ImageSplit]
    title: Callable[[Path], str] = folder_name
    statistics: Callable[[Path], Statistics | None] = lambda _: None
    published: Callable[[Path], str | None] = lambda _: None
    mirrors: Callable[[Path], bool] = lambda _: True
    look: Callable[[Path, Options], None] = lambda *_: None

    def check(self, folder: Path, options: Options) -> None:
        """Raise the DataError that :meth:`load` would raise for the names of folders and files alone."""
        try:
            self.look(folder, options)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from None

    def load(self, folder: Path, split: str, options: Options) -> ImageSplit:
        """The split; DataError if it is damaged, leads out of the folder, or the system refuses to read it."""
        try:
            refuse_outside(self.find(folder, split) or folder, folder)
            return self.read(folder, split, options)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"{error.filename or folder} cannot be read: {error.strerror}") from None

    def present(self, folder: Path) -> tuple[str, ...]:
        """The splits that exist."""
        return tuple(split for split in SPLITS if self.find(folder, split) is not None)


def files_named(*patterns: str, **words: Sequence[str]) -> Find:
    """A search for the first file with the name of a pattern, in which {} is the split or one of ``words[split]``."""

    def find(folder: Path, split: str) -> Path | None:
        paths = (folder / each.format(word) for each in patterns for word in words.get(split, (split,)))
        return next((path for path in paths if path.is_file()), None)

    return find


def found_file(find: Find, folder: Path, split: str) -> Path:
    """The file of a split; raises DataError if there is none."""
    file = find(folder, split)
    if file is None:
        raise DataError(f"{folder} has no file for {split}: every split needs its own")
    return file


def renumbered(
    images: np.ndarray, labels: object, names: Mapping[int, str], split: str, source: Path
) -> ImageSplit:
    """Return a split with labels 0..n-1.

    Args:
        images: the images.
        labels: whole numbers, with gaps.
        names: label -> class name. If a name is missing, every class is named after split and label, so that the names
            of different splits differ.
        split: the split.
        source: the file, for messages.

    Raises:
        DataError: the labels do not fit the images.
    """
    raw = integers(labels, f"the labels in {source}")
    if len(raw) != len(images):
        raise DataError(
            f"{source}: {len(images)} images but {len(raw)} labels: the files do not fit together"
        )
    values, compact = np.unique(raw, return_inverse=True)
    known = all(int(v) in names for v in values)
    titles = tuple(names[int(v)] if known else f"{split}/{int(v)}" for v in values)
    return ImageSplit(images, compact.astype(np.int64), titles)


def integers(values: object, what: str) -> np.ndarray:
    """A list or array of whole numbers as a vector; raises DataError for anything else."""
    # A list may contain itself many times: as an array it would fill the memory.
    plain = isinstance(values, np.ndarray) or (
        isinstance(values, list | tuple) and all(isinstance(v, int | np.integer) for v in values)
    )
    if not plain:
        raise DataError(f"{what} are {shown(values)}: expected a list or array of whole numbers")
    try:
        array = np.asarray(values)
    except OverflowError:
        array = np.empty(0, object)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise DataError(f"{what} have shape {array.shape} and type {array.dtype}: expected whole numbers")
    return array


def dictionary(file: Path, *keys: str) -> dict:
    """The dictionary in a pickle of Python 2 or 3; raises DataError unless it has these keys."""
    content = load_pickle(existing(file))
    if isinstance(content, dict):
        content = {text_key(key): value for key, value in content.items()}
    if not isinstance(content, dict) or any(key not in content for key in keys):
        found = f"the keys {shown(list(content))}" if isinstance(content, dict) else shown(content)
        raise DataError(f"{file} holds {found}; expected a dictionary with {', '.join(keys) or 'entries'}")
    return content


def text_key(key: object) -> object:
    """A key of a pickle's dictionary as text, whether Python 2 or 3 wrote it."""
    return key.decode("latin1") if isinstance(key, bytes) else key


def image_array(images: object, file: Path, key: str) -> np.ndarray:
    """The images of a file; raises DataError unless they are a uint8 array N×H×W×3."""
    if not isinstance(images, np.ndarray):
        raise DataError(f"{file}: {key!r} is a {type(images).__name__}; expected a uint8 array N×H×W×3")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise DataError(f"{file}: {key!r} is a {images.dtype} {images.shape}; expected a uint8 array N×H×W×3")
    return images


def existing(file: Path) -> Path:
    """The path, if it is a file that can be opened; raises DataError otherwise."""
    if not file.is_file():
        what = "is no regular file" if file.exists() else "is missing"
        raise DataError(f"{file} {what}: every split needs its own")
    return file


def read_text(file: Path) -> str:
    """The text of a CSV or JSON file; raises DataError for other files."""
    if existing(file).stat().st_size > MOST_TEXT:
        raise DataError(f"{file} has more than {MOST_TEXT // 2**20} MiB: this is no list of images")
    raw = read_regular(file, MOST_TEXT)
    refuse_other_files(file, raw[:64])
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text ({error.reason} at byte {error.start}): fetch it again") from None


def read_json(file: Path) -> dict:
    """The object in a JSON file; raises DataError for anything else."""
    try:
        return unsealed(read_text(file).encode())[0]
    except ValueError as error:
        raise DataError(f"{file} {error}: fetch or prepare it again") from None


def strings(content: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...]:
    """The list of strings under a key; raises DataError when there is none."""
    value = content.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise DataError(f"{file}: {key!r} must be a list of strings")
    return tuple(value)
