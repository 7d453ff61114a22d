"""Few-shot image data on disk: a module for each family of layouts, and how the layout of a folder is recognised."""

from collections.abc import Sequence
from pathlib import Path

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.by_content import CONTENT_FORMATS
from mamltheory.fewshot.formats.category_pickles import CACHE_FORMAT, CATEGORY_FORMAT, CIFAR_FORMAT
from mamltheory.fewshot.formats.common import SPLITS, Format, Options
from mamltheory.fewshot.formats.folders import FLAT_FORMAT, FOLDER_FORMAT, holds_images
from mamltheory.fewshot.formats.image_lists import CSV_FORMAT, JSON_FORMAT
from mamltheory.fewshot.formats.listing import hidden, refuse_outside
from mamltheory.fewshot.formats.parquet import PARQUET_FORMAT
from mamltheory.fewshot.formats.prepared import PREPARED_FORMAT
from mamltheory.fewshot.formats.tiered import NPZ_FORMAT, PNG_FORMAT
from mamltheory.fewshot.places import check_folder

__all__ = [
    "FORMATS",
    "OTHER_FORMATS",
    "Options",
    "check_layout",
    "mirrors_of",
    "recognise",
    "refuse_missing_splits",
    "refuse_needless_split",
]

FORMATS = (
    PREPARED_FORMAT,
    CATEGORY_FORMAT,
    CACHE_FORMAT,
    NPZ_FORMAT,
    PNG_FORMAT,
    CIFAR_FORMAT,
    CSV_FORMAT,
    JSON_FORMAT,
    PARQUET_FORMAT,
    FOLDER_FORMAT,
)
"""Layouts that the names of their files identify."""
OTHER_FORMATS = (*CONTENT_FORMATS, FLAT_FORMAT)
"""Layouts that are tried where none of the others fits."""


def recognise(path: Path) -> tuple[Format, Path]:
    """Find the layout of a data set.

    Args:
        path: the folder of the data set, or one with a single such folder in it. Hidden folders and those of the
            system are skipped.

    Returns:
        The layout with most splits (of several, the one that loads fastest), and the folder.

    Raises:
        DataError: the folder does not exist, has no known layout, or holds several data sets.
    """
    check_folder(path)
    try:
        entries = sorted(path.iterdir())
        folders = [entry for entry in entries if entry.is_dir() and not hidden(entry.name)]
        found = []
        for formats in (FORMATS, OTHER_FORMATS):
            best = _best(path, formats)
            if best is not None:
                return best, path
            inner = [(_best(entry, formats), entry) for entry in folders]
            found = [(layout, entry) for layout, entry in inner if layout is not None]
            if len(found) == 1:
                refuse_outside(found[0][1], path)
                return found[0]
            if found:
                break
        hint = None if found else _nearly(path, folders)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    if found:
        raise DataError(
            f"{path} holds several data sets ({', '.join(entry.name for _, entry in found[:8])}): name one"
        )
    if hint is not None:
        raise DataError(f"{path} {hint}")
    known = "; ".join(f"{layout.name}: {layout.layout}" for layout in (*FORMATS, *OTHER_FORMATS))
    shown = ", ".join(entry.name for entry in entries[:8]) or "nothing"
    raise DataError(f"{path} has no known layout (it holds {shown}). Known are {known}")


def _nearly(path: Path, folders: Sequence[Path]) -> str | None:
    """What is wrong with a folder that looks like images in folders of classes; None for any other."""
    if holds_images(path):
        return "holds images: sort them into a folder for each class"
    direct = [folder.name for folder in folders if holds_images(folder)]
    if len(direct) == 1:
        return f"holds the images of one folder, {direct[0]}: give a folder for each class, at least three of them"
    if direct:
        return f"looks like splits without classes: sort the images in {', '.join(direct[:8])} into folders of classes"
    if any(entry.is_dir() and holds_images(entry) for folder in folders for entry in folder.iterdir()):
        return "looks like classes without splits whose images lie deeper: put them into the folder of their class"
    return None


def _best(folder: Path, formats: Sequence[Format]) -> Format | None:
    present = [len(layout.present(folder)) for layout in formats]
    most = max(present)
    return formats[present.index(most)] if most else None


def check_layout(path: Path, options: Options, whole: bool) -> None:
    """Raise the DataError that reading a data set would raise for the names of its folders and files alone.

    Args:
        path: the folder of the data set.
        options: how it is to be read.
        whole: whether all splits must be there with images, as for every use but a report on what is there.
    """
    layout, folder = recognise(path)
    refuse_needless_split(layout, folder, options)
    if whole:
        refuse_missing_splits(layout, folder)
    mirrors_of(layout, folder, options.mirrors)
    if whole or layout is FLAT_FORMAT:
        layout.check(folder, options)


def refuse_needless_split(layout: Format, folder: Path, options: Options) -> None:
    """Raise DataError when the options ask to split data that are split already."""
    if options.shares is not None and layout is not FLAT_FORMAT:
        shares = "/".join(map(str, options.shares))
        raise DataError(f"{folder} holds {layout.name} and is split already: leave out --split {shares}")


def refuse_missing_splits(layout: Format, folder: Path) -> None:
    """Raise DataError unless the folder has all three splits."""
    missing = [split for split in SPLITS if split not in layout.present(folder)]
    if missing:
        raise DataError(
            f"{folder} holds {layout.name}, of which {', '.join(missing)} is missing: expected {layout.layout}"
        )


def mirrors_of(layout: Format, folder: Path, given: bool | None) -> bool:
    """Whether a mirrored image of a folder shows the same class.

    Args:
        layout: its layout.
        folder: the folder.
        given: what the user says; None for what the layout says.

    Returns:
        What the user says, or else the layout.

    Raises:
        DataError: the user says yes, and the data were prepared with no.
    """
    known = layout.mirrors(folder)
    if given and not known:
        raise DataError(
            f"mirrors is True, and {folder} was prepared as images of characters: leave it out, or prepare the data "
            "again"
        )
    return known if given is None else given
