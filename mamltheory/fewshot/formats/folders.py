"""Image folders: {train,val,test}/CLASS/ with images at any depth, or CLASS/ alone, split by class on request."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import SPELLINGS, SPLITS, Format, Options
from mamltheory.fewshot.formats.decoding import SUFFIXES
from mamltheory.fewshot.formats.listing import Listing, class_folders, hidden, image_files, in_words, total
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.images import ImageSplit

OTHER_SPLITS = frozenset(("training", "testing", "eval", "evaluation", "dev", "trainval", "unseen"))
"""Further names of split folders, in addition to :data:`SPELLINGS`."""


def _split_folders(folder: Path, split: str) -> list[Path]:
    """The folders of a split that hold folders, in the order of :data:`SPELLINGS`; upper case counts as lower case."""
    entries = [entry for entry in sorted(folder.iterdir()) if entry.is_dir()]
    order = [entry for name in SPELLINGS[split] for entry in entries if entry.name.casefold() == name]
    return [entry for entry in order if class_folders(entry)[0]]


def find_folder(folder: Path, split: str) -> Path | None:
    """The folder of a split, if it contains folders."""
    return next(iter(_split_folders(folder, split)), None)


def read_folder(folder: Path, split: str, options: Options) -> ImageSplit:
    """Read one folder per class; the decoded images fill memory unless the options allocate them in a file."""
    place, *others = _split_folders(folder, split)
    for other in others:
        options.notice(f"{split}: left out the folder {other.name}, as {place.name} is read")
    classes, skipped = class_folders(place)
    return read_classes({entry.name: entry for entry in classes}, folder, split, options, skipped)


def read_classes(
    classes: Mapping[str, Path],
    root: Path,
    split: str,
    options: Options,
    skipped: Mapping[str, int] | None = None,
) -> ImageSplit:
    """Return the images of classes in the order given.

    Args:
        classes: name -> folder, whose images lie at any depth.
        root: folder of the data; links must not lead out of it.
        split: the split.
        options: the size of the images, where they are written, and who is told about skipped files.
        skipped: reason -> number of files that were skipped before.

    Returns:
        The images. DataError is raised if a class has none.
    """
    listings = {name: image_files(folder, root) for name, folder in classes.items()}
    left_out = total([skipped or {}, *(listing.left_out for listing in listings.values())])
    if left_out:
        options.notice(f"{split}: left out {in_words(left_out)}")
    _refuse_empty(classes, listings)
    files = [file for listing in listings.values() for file in listing.files]
    labels = np.repeat(np.arange(len(listings)), [len(listing.files) for listing in listings.values()])
    images = decoded(((str(file), file) for file in files), len(files), split, options)
    return ImageSplit(images, labels.astype(np.int64), tuple(listings))


def _refuse_empty(classes: Mapping[str, Path], listings: Mapping[str, Listing]) -> None:
    empty = [name for name, listing in listings.items() if not listing.files]
    if empty:
        left = total([listings[name].left_out for name in empty])
        but = f", and {in_words(left)}" if left else ""
        others = f", nor do {', '.join(empty[1:])}" if empty[1:] else ""
        raise DataError(
            f"{classes[empty[0]]} holds no images{others}{but}: expected one folder per class with {usual_suffixes()} "
            "files"
        )


def look_into_classes(folder: Path, options: Options) -> None:  # noqa: ARG001
    """Raise DataError for classes without images, of all splits; the files after a first image are not listed."""
    problems = []
    for split in SPLITS:
        try:
            _refuse_without_images(class_folders(_split_folders(folder, split)[0])[0], folder)
        except DataError as error:
            problems.append(f"{error}")
    if problems:
        raise DataError("; ".join(problems))


def _refuse_without_images(folders: Sequence[Path], root: Path) -> None:
    """Raise DataError for folders without images at any depth."""
    classes = {each.name: each for each in folders if not _has_image(each)}
    _refuse_empty(classes, {name: image_files(each, root) for name, each in classes.items()})


def _has_image(folder: Path) -> bool:
    return any(_is_image(name) for _, _, files in os.walk(folder) for name in files)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not hidden(name)


def usual_suffixes() -> str:
    """The usual suffixes of images, for messages."""
    usual = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".avif", ".ppm")
    return ", ".join(suffix for suffix in usual if suffix in SUFFIXES)


def find_flat(folder: Path, split: str) -> Path | None:  # noqa: ARG001
    """The folder itself, if two folders in it contain images and none has the name of a split."""
    classes, _ = class_folders(folder)
    names = {entry.name.casefold() for entry in classes}
    if names & (OTHER_SPLITS | {name for known in SPELLINGS.values() for name in known}):
        return None
    return folder if sum(map(holds_images, classes)) >= 2 else None


def holds_images(folder: Path) -> bool:
    """Whether there are images in the folder itself."""
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)


def read_flat(folder: Path, split: str, options: Options) -> ImageSplit:
    """Read the classes that :func:`drawn_classes` gives to a split; DataError if the options name no shares."""
    classes, skipped = class_folders(folder)
    shares = _shares(folder, len(classes), options)
    names = drawn_classes([entry.name for entry in classes], shares, options.share_seed)[split]
    told = skipped if split == SPLITS[0] else None  # reported once
    return read_classes({name: folder / name for name in names}, folder, split, options, told)


def look_into_flat(folder: Path, options: Options) -> None:
    """Raise DataError unless shares are given for three classes or more, each with an image."""
    classes, _ = class_folders(folder)
    _check_shares(len(classes), _shares(folder, len(classes), options))
    _refuse_without_images(classes, folder)


def _shares(folder: Path, classes: int, options: Options) -> tuple[int, ...]:
    if options.shares is None:
        raise DataError(
            f"{folder} looks like classes without splits ({classes} folders): give --split 60/20/20, the shares "
            "of the classes for training, validation and test (for meta-train --class-split; in Python "
            "split=(60, 20, 20)), or sort the folders into train/, val/ and test/"
        )
    return options.shares


def drawn_classes(names: Sequence[str], shares: Sequence[int], seed: int) -> dict[str, list[str]]:
    """Return disjoint random classes for train, val and test, at least one each: a function of the arguments alone.

    Args:
        names: names of the classes, at least three.
        shares: three positive numbers, whose ratios count.
        seed: seed of the draw.

    Returns:
        The names by split. DataError is raised for other shares, or fewer than three classes.
    """
    from mamltheory.rng import numpy_generator  # only here, because that loads torch

    _check_shares(len(names), shares)
    ordered = sorted(names)
    ends = [round(sum(shares[:i]) / sum(shares) * len(names)) for i in range(1, len(SPLITS))]
    first = min(max(ends[0], 1), len(names) - 2)
    second = min(max(ends[1], first + 1), len(names) - 1)
    drawn = numpy_generator(seed, "split by class").permutation(len(ordered))
    parts = np.split(drawn, [first, second])
    return {split: [ordered[i] for i in sorted(part)] for split, part in zip(SPLITS, parts, strict=True)}


def _check_shares(classes: int, shares: Sequence[int]) -> None:
    if len(shares) != len(SPLITS) or not all(share > 0 for share in shares):
        raise DataError(
            f"the split is {'/'.join(map(str, shares))}: expected three positive shares as in 60/20/20"
        )
    if classes < len(SPLITS):
        raise DataError(f"{classes} classes cannot be split into three parts: at least one each is needed")


FOLDER_FORMAT = Format(
    "image folder",
    "{train,val,test}/CLASS/*.png, jpg or another image",
    find_folder,
    read_folder,
    look=look_into_classes,
)
FLAT_FORMAT = Format(
    "image folder without splits",
    "CLASS/*.png, jpg or another image, with --split 60/20/20",
    find_flat,
    read_flat,
    look=look_into_flat,
)
