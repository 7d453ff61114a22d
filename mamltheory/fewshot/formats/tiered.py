"""tieredImageNet: arrays in npz files or lists of PNG images in pickles, with labels in a separate file."""

from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.arrays import open_npz_member
from mamltheory.fewshot.formats.category_pickles import category_names
from mamltheory.fewshot.formats.common import (
    IMAGENET,
    Find,
    Format,
    Options,
    dictionary,
    files_named,
    found_file,
    image_array,
    renumbered,
)
from mamltheory.fewshot.formats.listing import refuse_outside
from mamltheory.fewshot.formats.pixels import decoded, fitted
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.safe_pickle import load_pickle
from mamltheory.files import shown

# The second name is that of a copy in a public archive.
find_npz = files_named("{}_images.npz", "tiered-imagenet-{}_images.npz")
find_png = files_named("{}_images_png.pkl", "tiered-imagenet-{}_images_png.pkl")
find_labels = files_named("{}_labels.pkl", "tiered-imagenet-{}_labels.pkl")


def read_npz(folder: Path, split: str, options: Options) -> ImageSplit:
    """Return the array 'images', a memory map if it is stored uncompressed as by numpy.savez (9.5 GB for training).

    The published files were written by OpenCV in BGR and are converted to RGB, as a view, unless the options say
    ``as_stored``.
    """
    file = found_file(find_npz, folder, split)
    images = image_array(open_npz_member(file, "images"), file, "images")
    images = fitted(images if options.as_stored else images[..., ::-1], split, options)
    return renumbered(images, *_labels(found_file(find_labels, folder, split), folder), split, file)


def read_png(
    folder: Path, split: str, options: Options, find: Find = find_png, find_labels: Find = find_labels
) -> ImageSplit:
    """Return a split from a list of encoded images, each a byte array; decoding gives RGB.

    Args:
        folder: the data set.
        split: the split.
        options: the size of the images, and where they are written; in memory they take 9.5 GB for training.
        find: finds the images of the split.
        find_labels: finds the labels of the split.

    Raises:
        DataError: the file holds something else, or the same images many times.
    """
    file = found_file(find, folder, split)
    encoded = load_pickle(file)
    objects = isinstance(encoded, np.ndarray) and encoded.dtype.hasobject and encoded.ndim == 1
    if not (objects or isinstance(encoded, list)) or len(encoded) == 0:
        raise DataError(f"{file} holds a {type(encoded).__name__}; expected a list of encoded images")
    count, size = len(encoded), file.stat().st_size
    if sum(len(each) if isinstance(each, bytes) else getattr(each, "size", 0) for each in encoded) > 2 * size:
        raise DataError(f"{file} holds the same images many times over: fetch it again")
    images = ((f"{file} image {i}", _bytes(each, file)) for i, each in enumerate(encoded))
    labels, classes = _labels(found_file(find_labels, folder, split), folder)
    return renumbered(decoded(images, count, split, options), labels, classes, split, file)


def _bytes(encoded: object, file: Path) -> bytes:
    if isinstance(encoded, np.ndarray) and encoded.dtype == np.uint8:
        return encoded.tobytes()
    if not isinstance(encoded, bytes):
        raise DataError(f"{file} holds a {type(encoded).__name__} among its images: expected byte arrays")
    return encoded


def _labels(file: Path, folder: Path) -> tuple[object, dict[int, str]]:
    refuse_outside(file, folder)
    content = dictionary(file)
    # The key is label_specific in Ren's original files and labels in the RFS and MetaOptNet copies.
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
