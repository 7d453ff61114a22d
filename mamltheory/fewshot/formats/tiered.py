"""tieredImageNet: arrays in npz files or lists of PNG images in pickles, with labels in a file of their own."""

from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.arrays import open_npz_member
from mamltheory.fewshot.formats.category_pickles import category_names
from mamltheory.fewshot.formats.common import (
    IMAGENET,
    Format,
    Options,
    dictionary,
    first_file,
    image_array,
    renumbered,
)
from mamltheory.fewshot.formats.listing import refuse_outside
from mamltheory.fewshot.formats.pixels import decoded, fitted
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.safe_pickle import load_pickle
from mamltheory.files import shown

PREFIXES = ("", "tiered-imagenet-")  # the second is that of a copy in a public archive


def _find(folder: Path, split: str, kind: str) -> Path | None:
    return first_file(folder, [f"{prefix}{split}_{kind}" for prefix in PREFIXES])


def find_npz(folder: Path, split: str) -> Path | None:
    """The arrays of a split."""
    return _find(folder, split, "images.npz")


def find_png(folder: Path, split: str) -> Path | None:
    """The compressed images of a split."""
    return _find(folder, split, "images_png.pkl")


def read_npz(folder: Path, split: str, options: Options) -> ImageSplit:
    """The array 'images', a memory map when it is stored uncompressed, as numpy.savez does (9.5 GB for
    training).

    The published files were written by OpenCV, blue first: they are turned to red first, as a view, unless
    the options say `as_stored`.
    """
    file = find_npz(folder, split)
    images = image_array(open_npz_member(file, "images"), file, "images")
    images = fitted(images if options.as_stored else images[..., ::-1], split, options)
    return renumbered(images, *_labels(find_labels(folder, split), folder), split, file)


def find_labels(folder: Path, split: str) -> Path:
    """The labels of a split, whether they are there or not."""
    return _find(folder, split, "labels.pkl") or folder / f"{split}_labels.pkl"


def read_png(
    folder: Path, split: str, options: Options, find: object = find_png, find_labels: object = find_labels
) -> ImageSplit:
    """A list of encoded images, each a byte array; decoding gives red first, whoever encoded them.

    The decoded images fill memory (9.5 GB for training) unless the options allocate them in a file.
    """
    file = find(folder, split)
    encoded = load_pickle(file)
    objects = isinstance(encoded, np.ndarray) and encoded.dtype.hasobject and encoded.ndim == 1
    if not (objects or isinstance(encoded, list)) or len(encoded) == 0:
        raise DataError(f"{file} holds a {type(encoded).__name__}; expected a list of encoded images")
    count, size = len(encoded), file.stat().st_size
    if (
        sum(each.size if isinstance(each, np.ndarray) else len(each) for each in encoded if _is_sized(each))
        > 2 * size
    ):
        raise DataError(f"{file} holds the same images many times over: fetch it again")
    images = ((f"{file} image {i}", _bytes(each, file)) for i, each in enumerate(encoded))
    labels, classes = _labels(find_labels(folder, split), folder)
    return renumbered(decoded(images, count, split, options), labels, classes, split, file)


def _is_sized(encoded: object) -> bool:
    return isinstance(encoded, bytes | np.ndarray)


def _bytes(encoded: object, file: Path) -> bytes:
    if isinstance(encoded, np.ndarray) and encoded.dtype == np.uint8:
        return encoded.tobytes()
    if not isinstance(encoded, bytes):
        raise DataError(f"{file} holds a {type(encoded).__name__} among its images: expected byte arrays")
    return encoded


def _labels(file: Path, folder: Path) -> tuple[object, dict[int, str]]:
    refuse_outside(file, folder)
    content = dictionary(file)
    # Ren's original files call the labels label_specific, the RFS and MetaOptNet copies labels.
    key = next((key for key in ("labels", "label_specific") if key in content), None)
    if key is None:
        raise DataError(
            f"{file} holds the keys {shown(list(content))}: expected 'labels' or 'label_specific'"
        )
    words = content.get("label_specific_str")
    if isinstance(words, list) and all(isinstance(word, str) for word in words):
        return content[key], dict(enumerate(words))
    return content[key], category_names(content, file)


NPZ_FORMAT = Format(
    "tieredImageNet arrays",
    "{train,val,test}_images.npz + _labels.pkl",
    find_npz,
    read_npz,
    lambda _: "tieredImageNet",
    lambda _: IMAGENET,
    lambda _: "tieredImageNet",
)
PNG_FORMAT = Format(
    "tieredImageNet PNG pickles",
    "{train,val,test}_images_png.pkl + _labels.pkl",
    find_png,
    read_png,
    lambda _: "tieredImageNet",
    lambda _: IMAGENET,
    lambda _: "tieredImageNet",
)
