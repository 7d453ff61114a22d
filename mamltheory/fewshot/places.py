"""Where image data can be, without the libraries that read them: a mistake in a path is answered before those load."""

from pathlib import Path

from mamltheory.errors import DataError

EMBEDDED = ("glyphs", "glyphs-mini", "pictures")
"""The names of the data sets that the package draws, or has from scikit-image."""


def check_place(source: str | Path) -> None:
    """Raise DataError unless this is the name of an embedded data set, or a folder."""
    if str(source) not in EMBEDDED:
        check_folder(Path(source))


def check_folder(path: Path) -> None:
    """Raise DataError unless a folder is there."""
    if not path.is_dir():
        what = (
            f"{path} is a file: give the folder"
            if path.exists()
            else f"there is no folder {path}: give the path"
        )
        raise DataError(f"{what} of a data set, or glyphs or pictures for an embedded one")
