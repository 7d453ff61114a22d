"""Pickles with all images of a split: mini-ImageNet and the CIFAR sets as RFS, MetaOptNet and others store them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET,
    SPLITS,
    Find,
    Format,
    Options,
    dictionary,
    files_named,
    found_file,
    image_array,
    integers,
    renumbered,
)
from mamltheory.fewshot.formats.pixels import fitted
from mamltheory.fewshot.images import ImageSplit
from mamltheory.files import shown

CATEGORY = "miniImageNet_category_split_{}.pickle"
# For training, the images on which RFS trains.
find_category = files_named(CATEGORY, train=("train_phase_train",))
find_cache = files_named("mini-imagenet-cache-{}.pkl", val=("val", "validation"))
find_cifar = files_named("{}.pickle", "CIFAR_FS_{}.pickle", "FC100_{}.pickle")


def read_category(folder: Path, split: str, options: Options, find: Find = find_category) -> ImageSplit:
    """Read images under 'data', labels under 'labels' (not from 0, with gaps), names under 'catname2label'.

    Args:
        folder: the data set.
        split: the split.
        options: the size of the images, and where they are written.
        find: finds the file of the split.

    Returns:
        The split; its images are a memory map where the file was written by Python 2 or with protocol 3 and up.
    """
    file = found_file(find, folder, split)
    content = dictionary(file, "data", "labels")
    images = fitted(image_array(content["data"], file, "data"), split, options)
    return renumbered(images, content["labels"], category_names(content, file), split, file)


def category_names(content: Mapping, file: Path) -> dict[int, str]:
    """Label → name from 'catname2label' or 'label2catname'; empty if there is neither."""
    flip = "catname2label" in content
    table = content.get("catname2label" if flip else "label2catname")
    items = table.items() if isinstance(table, dict) else ()
    pairs = [(value, key) if flip else (key, value) for key, value in items]
    if not all(isinstance(label, int | np.integer) and isinstance(name, str) for label, name in pairs):
        raise DataError(f"{file}: the table of class names must map names to whole numbers")
    return {int(label): name for label, name in pairs}


def read_cache(folder: Path, split: str, options: Options, find: Find = find_cache) -> ImageSplit:
    """Return images under 'image_data' and, under 'class_dict', the rows of every class by its name.

    Args:
        folder: the data set.
        split: the split.
        options: the size of the images, and where they are written.
        find: finds the file of the split.

    Raises:
        DataError: the rows of the classes do not partition the images.
    """
    file = found_file(find, folder, split)
    content = dictionary(file, "image_data", "class_dict")
    images, classes = image_array(content["image_data"], file, "image_data"), content["class_dict"]
    if not isinstance(classes, dict) or not classes:
        raise DataError(f"{file}: 'class_dict' must map every class to its rows")
    names = [_class_name(name, file) for name in classes]
    labels = np.full(len(images), -1, np.int64)
    for label, (name, rows) in enumerate(zip(names, classes.values(), strict=True)):
        rows = integers(rows, f"the rows of class {shown(name)} in {file}")
        if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(images) or (labels[rows] >= 0).any():
            raise DataError(
                f"{file}: class {shown(name)} has no rows, rows of another class, or rows beyond the "
                f"{len(images)} images"
            )
        labels[rows] = label
    if (labels < 0).any():
        raise DataError(f"{file}: {int((labels < 0).sum())} images belong to no class")
    return ImageSplit(fitted(images, split, options), labels, tuple(names))


def _class_name(name: object, file: Path) -> str:
    if isinstance(name, bytes):
        return name.decode("latin1")
    if not isinstance(name, str | int | np.integer):
        raise DataError(f"{file}: 'class_dict' has the key {shown(name)}: expected names of classes")
    return str(name)


def _cifar_name(folder: Path) -> str:
    named = any((folder / f"FC100_{split}.pickle").is_file() for split in SPLITS)
    return "FC100" if named or "fc100" in folder.resolve().name.lower() else "CIFAR-FS"


CATEGORY_FORMAT = Format(
    "mini-ImageNet pickles",
    CATEGORY.format("{train_phase_train,val,test}"),
    find_category,
    read_category,
    lambda _: "mini-ImageNet",
    lambda _: IMAGENET,
    lambda _: "miniImageNet",
)
CACHE_FORMAT = Format(
    "mini-ImageNet cache pickles",
    "mini-imagenet-cache-{train,val,test}.pkl",
    find_cache,
    read_cache,
    lambda _: "mini-ImageNet",
    lambda _: IMAGENET,
    lambda _: "miniImageNet",
)
CIFAR_FORMAT = Format(
    "CIFAR-FS or FC100 pickles",
    "{train,val,test}.pickle, also with CIFAR_FS_ or FC100_ before it",
    find_cifar,
    partial(read_category, find=find_cifar),
    _cifar_name,
    lambda _: (CIFAR_MEAN, CIFAR_STD),
    _cifar_name,
)
