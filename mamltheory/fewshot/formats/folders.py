"""Image folders: {train,val,test}/CLASS/ with images at any depth, or CLASS/ alone, split by class on request."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import SPELLINGS, SPLITS, Format, Options
from mamltheory.fewshot.formats.decoding import SUFFIXES
from mamltheory.fewshot.formats.listing import class_folders, hidden, image_files, told, total
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.images import ImageSplit
from mamltheory.rng import numpy_generator

OTHER_SPLITS = frozenset(("training", "testing", "eval", "evaluation", "dev", "trainval", "unseen"))
"""Names of folders that hold classes, besides those of :data:`SPELLINGS`."""


def _split_folders(folder: Path, split: str) -> list[Path]:
    """The folders of a split, if they hold folders: the spelling of :data:`SPELLINGS` first, in any case."""
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    order = [entry for name in SPELLINGS[split] for entry in entries if entry.name.casefold() == name]
    return [entry for entry in order if class_folders(entry)[0]]


def find_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split, if it holds folders."""
    return next(iter(_split_folders(folder, split)), None)


def read_folder(folder: Path, split: str, options: Options) -> ImageSplit:
    """One folder per class. The decoded images fill memory unless the options allocate them in a file."""
    place, *others = _split_folders(folder, split)
    for other in others:
        options.notice(f"{split}: left out the folder {other.name}, as {place.name} is read")
    classes, beside = class_folders(place)
    return labelled({entry.name: entry for entry in classes}, folder, split, options, beside)


def labelled(
    classes: Mapping[str, Path],
    root: Path,
    split: str,
    options: Options,
    beside: Mapping[str, int] | None = None,
) -> ImageSplit:
    """A split with the classes in the order given, each with the images at and below its folder.

    What is left out, with what lies `beside` the folders, is told. Raises DataError for a class without images
    and for what leads out of `root`.
    """
    listings = {name: image_files(folder, root) for name, folder in classes.items()}
    left_out = total([beside or Counter(), *(listing.left_out for listing in listings.values())])
    if left_out:
        options.notice(f"{split}: left out {told(left_out)}")
    for name, listing in listings.items():
        if not listing.files:
            but = f", and {told(listing.left_out)}" if listing.left_out else ""
            raise DataError(
                f"{classes[name]} holds no images{but}: expected one folder per class with {kinds()} files"
            )
    files = [file for listing in listings.values() for file in listing.files]
    labels = np.repeat(np.arange(len(listings)), [len(listing.files) for listing in listings.values()])
    images = decoded(((str(file), file) for file in files), len(files), split, options)
    return ImageSplit(images, labels.astype(np.int64), tuple(listings))


def kinds() -> str:
    """The usual suffixes of the images that are read, for messages."""
    usual = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".avif", ".ppm")
    return ", ".join(suffix for suffix in usual if suffix in SUFFIXES)


def find_flat(folder: Path, split: str) -> Path | None:  # noqa: ARG001
    """The folder itself, if two folders in it hold images and none has the name of a split."""
    classes, _ = class_folders(folder)
    names = {entry.name.casefold() for entry in classes}
    if names & (OTHER_SPLITS | {name for known in SPELLINGS.values() for name in known}):
        return None
    return folder if sum(map(_holds_images, classes)) >= 2 else None


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(
            os.path.splitext(entry.name)[1].lower() in SUFFIXES and not hidden(entry.name) and entry.is_file()
            for entry in entries
        )


def read_flat(folder: Path, split: str, options: Options) -> ImageSplit:
    """The classes that :func:`drawn_classes` gives to a split; DataError when the options name no shares."""
    classes, beside = class_folders(folder)
    if options.shares is None:
        raise DataError(
            f"{folder} holds {len(classes)} folders of classes and no splits: give --split 60/20/20, the shares "
            "of the classes for training, validation and test (for meta-train --class-split; in Python "
            "split=(60, 20, 20)), or sort the folders into train/, val/ and test/"
        )
    names = drawn_classes([entry.name for entry in classes], options.shares, options.share_seed)[split]
    beside = beside if split == SPLITS[0] else None  # said once
    return labelled({name: folder / name for name in names}, folder, split, options, beside)


def drawn_classes(names: Sequence[str], shares: Sequence[int], seed: int) -> dict[str, list[str]]:
    """Disjoint random classes for train, val and test; a function of the names, the shares and the seed alone.

    shares: three positive numbers, of which the ratios count. Every split gets a class. Raises DataError for
    other shares and for fewer than three classes.
    """
    if len(shares) != len(SPLITS) or not all(share > 0 for share in shares):
        raise DataError(
            f"the split is {'/'.join(map(str, shares))}: expected three positive shares as in 60/20/20"
        )
    if len(names) < len(SPLITS):
        raise DataError(f"{len(names)} classes cannot be split into three parts: at least one each is needed")
    ordered = sorted(names)
    ends = [round(sum(shares[:i]) / sum(shares) * len(names)) for i in range(1, len(SPLITS))]
    first = min(max(ends[0], 1), len(names) - 2)
    second = min(max(ends[1], first + 1), len(names) - 1)
    drawn = numpy_generator(seed, "split by class").permutation(len(ordered))
    parts = np.split(drawn, [first, second])
    return {split: [ordered[i] for i in sorted(part)] for split, part in zip(SPLITS, parts, strict=True)}


FOLDER_FORMAT = Format(
    "image folder",
    "{train,val,test}/CLASS/*.png, jpg or another image",
    find_folder,
    read_folder,
    lambda folder: folder.resolve().name,
)
FLAT_FORMAT = Format(
    "image folder without splits",
    "CLASS/*.png, jpg or another image, with --split 60/20/20",
    find_flat,
    read_flat,
    lambda folder: folder.resolve().name,
)
