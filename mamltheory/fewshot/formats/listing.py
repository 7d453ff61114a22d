"""Which files of a folder are images, which are skipped, and links that lead out of the data."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.decoding import SUFFIXES

SYSTEM = frozenset(
    (
        *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin"),
        *("__macosx", "system volume information", "lost+found", "__pycache__", "thumbs.db", "ehthumbs.db"),
        *("desktop.ini", "icon\r", "network trash folder", "temporary items", "recycler"),
    )
)
"""Files and folders of systems, synchronisers and editors, in lower case; names with a dot are hidden, too."""
SHOWN = 8  # reasons that a message names


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        files: the image files at and below it, in order.
        left_out: reason -> number of skipped entries.
    """

    files: tuple[Path, ...]
    left_out: Mapping[str, int]


def hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or belongs to the system."""
    return name.startswith(".") or name.casefold() in SYSTEM


def image_files(folder: Path, root: Path) -> Listing:
    """List the images at any depth below a folder, by their suffix; raises DataError for a link out of ``root``.

    A pipe or a device with the name of an image is skipped.

    Args:
        folder: the folder.
        root: folder of the data.

    Returns:
        The image files, and what is skipped.
    """
    refuse_outside(folder, root)
    files: list[Path] = []
    left: Counter[str] = Counter()
    waiting, seen = [folder], set()
    while waiting:
        place = waiting.pop()
        if (real := os.path.realpath(place)) in seen:
            left["a folder linked twice"] += 1
            continue
        seen.add(real)
        with os.scandir(place) as entries:
            for entry in entries:
                path = place / entry.name
                reason = _reason(entry)
                if reason is not None:
                    left[reason] += 1
                    continue
                if entry.is_symlink():
                    refuse_outside(path, root)
                (waiting if entry.is_dir() else files).append(path)
    return Listing(tuple(sorted(files)), left)


def _reason(entry: os.DirEntry) -> str | None:
    """Why an entry is skipped; None for images and for folders."""
    if hidden(entry.name):
        named = entry.is_dir() or entry.name.casefold() in SYSTEM or entry.name == ".DS_Store"
        return f"hidden or system: {entry.name}" if named else "hidden files"
    if entry.is_dir():
        return None
    if not entry.is_file():
        return "no regular files"
    suffix = os.path.splitext(entry.name)[1].lower()
    return None if suffix in SUFFIXES else suffix or "without suffix"


def class_folders(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The folders of classes in a folder, in order, and reason -> number of the other entries."""
    classes: list[Path] = []
    skipped: Counter[str] = Counter()
    for entry in sorted(folder.iterdir()):
        if hidden(entry.name):
            skipped[f"hidden or system: {entry.name}" if entry.is_dir() else "hidden files"] += 1
        elif entry.is_dir():
            classes.append(entry)
        else:
            skipped["next to the class folders"] += 1
    return classes, skipped


def in_words(left_out: Mapping[str, int]) -> str:
    """The counts of skipped entries as text, the most frequent first; empty if there are none."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    words = [f"{count} {reason}" for reason, count in ordered[:SHOWN]]
    more = sum(count for _, count in ordered[SHOWN:])
    return ", ".join([*words, *([f"{more} others"] if more else [])])


def total(parts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The sum of several counts."""
    result: Counter[str] = Counter()
    for part in parts:
        result.update(part)
    return result


def refuse_outside(path: Path, root: Path) -> None:
    """Raise DataError for a path that leads out of the folder of the data when its links are followed."""
    real, base = os.path.realpath(path), os.path.realpath(root)
    if os.path.commonpath((real, base)) != base:
        raise DataError(
            f"{path} leads out of {root}, to {real}: put the files themselves there, or give the folder that "
            "holds them"
        )


def refuse_links_outside(files: Iterable[Path], root: Path) -> None:
    """:func:`refuse_outside` for many files, most of them in few folders."""
    files = list(files)
    for path in [*{file.parent: None for file in files}, *(file for file in files if file.is_symlink())]:
        refuse_outside(path, root)
