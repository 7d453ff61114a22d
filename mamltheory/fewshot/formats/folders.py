"""Image folders: {train,val,test}/<class>/*.png or *.jpg."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import SPELLINGS, Format, Options
from mamltheory.fewshot.formats.pixels import SUFFIXES, decoded
from mamltheory.fewshot.images import ImageSplit


def find_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split, if it holds folders."""
    for name in SPELLINGS[split]:
        if (folder / name).is_dir() and any(entry.is_dir() for entry in (folder / name).iterdir()):
            return folder / name
    return None


def read_folder(folder: Path, split: str, options: Options) -> ImageSplit:
    """One folder per class. The decoded images fill memory unless the options allocate them in a file."""
    place = find_folder(folder, split)
    groups = {entry.name: class_images(entry) for entry in sorted(place.iterdir()) if entry.is_dir()}
    return labelled(groups, split, options)


def class_images(folder: Path) -> list[Path]:
    """The image files of a class in order; raises DataError when there are none."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(
            f"{folder} holds no images: expected one folder per class with {', '.join(SUFFIXES)} files"
        )
    return files


def labelled(groups: Mapping[str, Sequence[Path]], split: str, options: Options) -> ImageSplit:
    """A split with the classes in the order given, each with its files."""
    files = [file for group in groups.values() for file in group]
    labels = np.repeat(np.arange(len(groups)), [len(group) for group in groups.values()])
    images = decoded(((str(file), file) for file in files), len(files), split, options)
    return ImageSplit(images, labels.astype(np.int64), tuple(groups))


FOLDER_FORMAT = Format(
    "image folder",
    "{train,val,test}/<class>/*.png|jpg",
    find_folder,
    read_folder,
    lambda folder: folder.resolve().name,
)
