"""The layout of this package: decoded images in plain arrays, which are mapped in place."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mamltheory.errors import DataError, ValueRangeError
from mamltheory.fewshot.formats.arrays import open_npy
from mamltheory.fewshot.formats.common import (
    SPLITS,
    Format,
    Options,
    Statistics,
    existing,
    image_array,
    read_json,
    strings,
)
from mamltheory.fewshot.formats.listing import refuse_outside
from mamltheory.fewshot.formats.pixels import CHUNK, fitted
from mamltheory.fewshot.images import ImageData, ImageSplit, check_statistics
from mamltheory.strict_json import sealed

RECORD = "few-shot-data.json"  # written last: without it the folder is not finished
DIGESTS = "labels_sha256"  # in the record, by split
UNFINISHED = f"{RECORD}.part"
IMAGES, LABELS = "{}_images.npy", "{}_labels.npy"


def find_prepared(folder: Path, split: str) -> Path | None:
    """The images of a split, once the whole folder has been written."""
    file = folder / IMAGES.format(split)
    return file if file.is_file() and (folder / RECORD).is_file() else None


def read_prepared(folder: Path, split: str, options: Options) -> ImageSplit:
    """Map the images; nothing is read before it is used."""
    file, labels = folder / IMAGES.format(split), folder / LABELS.format(split)
    refuse_outside(labels, folder)
    names = strings(_entry(folder, "class_names", dict), split, folder / RECORD)
    images = fitted(image_array(open_npy(existing(file)), file, "images"), split, options)
    numbers, recorded = np.array(open_npy(existing(labels))), read_json(folder / RECORD).get(DIGESTS)
    # Earlier versions wrote no digests.
    if isinstance(recorded, dict) and recorded.get(split) != _digest(numbers):
        raise DataError(f"{labels} is not as it was written: prepare the data again")
    return ImageSplit(images, numbers, names)


def room_in(folder: Path, split: str, shape: tuple[int, ...]) -> np.memmap:
    """Return a memory map for the images of a split in a file of this layout, for ``Options.allocate``.

    OSError is raised when the disk has too little space: a later write to the map would end the process.

    Args:
        folder: the folder of the data.
        split: the split.
        shape: N×H×W×3.
    """
    place = folder / IMAGES.format(split)
    images = np.lib.format.open_memmap(place, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with open(place, "r+b") as file, _where_supported():
            os.posix_fallocate(file.fileno(), 0, images.offset + images.nbytes)
    return images


@contextmanager
def _where_supported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def write_prepared(data: ImageData, folder: Path, options: Options) -> None:
    """Write data in this layout, 512 images in one copy, so that memory maps of any size can be copied.

    Args:
        data: the data set.
        folder: where to write it. Images that lie there already, in an array of :func:`room_in`, are kept.
        options: its ``advance`` is called.
    """
    for split in SPLITS:
        part = getattr(data, split)
        place = folder / IMAGES.format(split)
        if not isinstance(part.images, np.memmap) or not _same(part.images, place):
            target = room_in(folder, split, part.images.shape)
            for start in range(0, len(target), CHUNK):
                target[start : start + CHUNK] = part.images[start : start + CHUNK]
                options.advance(len(target[start : start + CHUNK]))
            target.flush()
        else:
            part.images.flush()
        np.save(folder / LABELS.format(split), part.labels)
    record = {
        "name": data.name,
        "mean": data.mean,
        "std": data.std,
        "mirrors": data.mirrors,
        "class_names": {split: getattr(data, split).class_names for split in SPLITS},
        DIGESTS: {split: _digest(getattr(data, split).labels) for split in SPLITS},
    }
    (folder / UNFINISHED).write_bytes(sealed(json.dumps(record, ensure_ascii=False, indent=1)))
    os.replace(folder / UNFINISHED, folder / RECORD)


def _digest(labels: np.ndarray) -> str:
    return hashlib.sha256(np.asarray(labels, "<i8").tobytes()).hexdigest()


def _same(images: np.memmap, place: Path) -> bool:
    return images.filename is not None and place.exists() and os.path.samefile(images.filename, place)


def _entry(folder: Path, key: str, kind: type) -> Any:
    value = read_json(folder / RECORD).get(key)
    if not isinstance(value, kind):
        raise DataError(f"{folder / RECORD} has no usable {key!r}: prepare the data again")
    return value


def _statistics(folder: Path) -> Statistics:
    mean, std = (_entry(folder, key, list) for key in ("mean", "std"))
    try:
        check_statistics(mean, std)
    except (ValueRangeError, TypeError):
        raise DataError(f"{folder / RECORD} has no usable mean and std: prepare the data again") from None
    (red, green, blue), (red_std, green_std, blue_std) = map(float, mean), map(float, std)
    return (red, green, blue), (red_std, green_std, blue_std)


PREPARED_FORMAT = Format(
    "prepared arrays",
    "{train,val,test}_images.npy + _labels.npy + " + RECORD,
    find_prepared,
    read_prepared,
    partial(_entry, key="name", kind=str),
    _statistics,
    mirrors=partial(_entry, key="mirrors", kind=bool),
)
