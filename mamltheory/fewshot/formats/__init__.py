"""Few-shot image data on disk: a module for each family of layouts, and which of them a folder has."""

from pathlib import Path

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.category_pickles import CACHE_FORMAT, CATEGORY_FORMAT, CIFAR_FORMAT
from mamltheory.fewshot.formats.common import Format, Options
from mamltheory.fewshot.formats.folders import FOLDER_FORMAT
from mamltheory.fewshot.formats.image_lists import CSV_FORMAT, JSON_FORMAT
from mamltheory.fewshot.formats.parquet import PARQUET_FORMAT
from mamltheory.fewshot.formats.prepared import PREPARED_FORMAT
from mamltheory.fewshot.formats.tiered import NPZ_FORMAT, PNG_FORMAT

__all__ = ["FORMATS", "Format", "Options", "recognise"]

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


def recognise(path: Path) -> tuple[Format, Path]:
    """The layout of a data set and the folder that has it: `path` itself, or the only one in it that has one.

    Of several layouts the one with most splits counts, then the one that loads fastest. Raises DataError
    when there is no such folder, none of the layouts, or several folders to choose from.
    """
    if not path.is_dir():
        what = (
            f"{path} is a file: give the folder"
            if path.exists()
            else f"there is no folder {path}: give the path"
        )
        raise DataError(f"{what} of a data set, or glyphs for the embedded one")
    try:
        best = _best(path)
        if best is not None:
            return best, path
        inner = [(_best(entry), entry) for entry in sorted(path.iterdir()) if entry.is_dir()]
        found = [(layout, entry) for layout, entry in inner if layout is not None]
        if len(found) == 1:
            return found[0]
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be looked into: {error.strerror}") from None
    if found:
        raise DataError(
            f"{path} holds several data sets ({', '.join(entry.name for _, entry in found[:8])}): name one"
        )
    known = "; ".join(f"{layout.name}: {layout.layout}" for layout in FORMATS)
    shown = ", ".join(names[:8]) or "nothing"
    raise DataError(f"{path} has no known layout (it holds {shown}). Known are {known}")


def _best(folder: Path) -> Format | None:
    present = [len(layout.present(folder)) for layout in FORMATS]
    most = max(present)
    return FORMATS[present.index(most)] if most else None
