"""Where image data can be, without the libraries that read them: a mistake in a path is answered before those load."""

from collections.abc import Sequence
from pathlib import Path

from mamltheory.errors import ConfigurationError, DataError

EMBEDDED = ("glyphs", "glyphs-mini", "pictures")
"""The names of the data sets that the package draws, or has from scikit-image."""


PHOTOGRAPHS = ("pictures",)
"""Those of them whose mirrored images show the same class."""


def check_embedded(name: str, split: bool, mirrors: bool | None) -> None:
    """Refuse settings that embedded data do not take: they are split, and known to be characters or photographs.

    Args:
        name: the name of an embedded data set.
        split: whether shares of the classes are given.
        mirrors: whether a mirrored image is said to show the same class; None if nothing is said.

    Raises:
        DataError: shares are given, or ``mirrors`` says something else than is known.
    """
    known = name in PHOTOGRAPHS
    if mirrors is not None and mirrors != known:
        same = "the same class" if known else "another class"
        raise DataError(f"mirrors is {mirrors}, and a mirrored image of {name} shows {same}: leave it out")
    if split:
        raise DataError(f"{name} is split already: leave the split out")


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


def shares_of(split: object) -> tuple[int, ...] | None:
    """The shares of the classes for training, validation and test.

    Args:
        split: "60/20/20", or the three numbers; None for none.

    Returns:
        The three numbers, or None.

    Raises:
        ConfigurationError: anything else.
    """
    if split is None:
        return None
    given = split.split("/") if isinstance(split, str) else split
    words = [str(each) for each in given] if isinstance(given, Sequence) else []
    if len(words) != 3 or not all(word.isdecimal() and len(word) < 9 and int(word) > 0 for word in words):
        raise ConfigurationError(
            f"the split is {str(split)[:80]!r}: expected three positive whole numbers, as in 60/20/20"
        )
    return tuple(map(int, words))
