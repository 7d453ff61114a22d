"""Few-shot image data on disk: a module for each family of layouts, and how the layout of a folder is recognised."""

from collections.abc import Sequence
from pathlib import Path

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.by_content import CONTENT_FORMATS
from mamltheory.fewshot.formats.category_pickles import CACHE_FORMAT, CATEGORY_FORMAT, CIFAR_FORMAT
from mamltheory.fewshot.formats.common import Format, Options
from mamltheory.fewshot.formats.folders import FLAT_FORMAT, FOLDER_FORMAT, holds_images
from mamltheory.fewshot.formats.image_lists import CSV_FORMAT, JSON_FORMAT
from mamltheory.fewshot.formats.listing import hidden, refuse_outside
from mamltheory.fewshot.formats.parquet import PARQUET_FORMAT
from mamltheory.fewshot.formats.prepared import PREPARED_FORMAT
from mamltheory.fewshot.formats.tiered import NPZ_FORMAT, PNG_FORMAT
from mamltheory.fewshot.places import check_folder

__all__ = ["FORMATS", "OTHER_FORMATS", "Options", "recognise"]

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
