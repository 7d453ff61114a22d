"""Pickles under other names than the public ones, which are recognised by their content."""

import re
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.category_pickles import (
    CACHE_FORMAT,
    CATEGORY_FORMAT,
    read_cache,
    read_category,
)
from mamltheory.fewshot.formats.common import SPELLINGS, folder_name, text_key
from mamltheory.fewshot.formats.listing import hidden
from mamltheory.fewshot.formats.tiered import PNG_FORMAT, read_png
from mamltheory.fewshot.safe_pickle import load_pickle

SUFFIXES = (".pkl", ".pickle", ".pck", ".pk", ".p")
MOST_FILES = 24  # pickles that are opened in one folder
WORDS = {word: split for split, words in SPELLINGS.items() for word in words} | {
    "training": "train",
    "testing": "test",
}


def split_named(name: str) -> str | None:
    """The split that the name of a file contains; None if it contains none or several."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    found = {WORDS[word] for word in re.findall(r"[a-z]+", apart.lower()) if word in WORDS}
    return found.pop() if len(found) == 1 else None


def find_by_content(folder: Path, split: str, kind: str) -> Path | None:
    """The only pickle of this kind ("cache", "category", "images" or "labels") whose name contains the split."""
    named = (file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES)
    pickles = [file for file in named if not hidden(file.name) and file.is_file()]
    found = [f for f in pickles[:MOST_FILES] if split_named(f.stem) == split and _kind_of(f) == kind]
    return found[0] if len(found) == 1 else None


def _kind_of(file: Path) -> str | None:
    status = file.stat()
    return _kind(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4 * MOST_FILES)
def _kind(file: Path, size: int, changed: int) -> str | None:  # noqa: ARG001
    # Opened once for all kinds and calls; size and time are arguments so that a changed file is read again.
    try:
        content = load_pickle(file)
    except DataError:
        return None
    if isinstance(content, dict):
        keys = {text_key(key) for key in content}
        if keys >= {"image_data", "class_dict"}:
            return "cache"
        if keys >= {"data", "labels"}:
            return "category"
        return "labels" if keys & {"labels", "label_specific"} else None
    row = isinstance(content, list) or (isinstance(content, np.ndarray) and content.ndim == 1)
    return "images" if row and len(content) and isinstance(content[0], bytes | np.ndarray) else None


def _find_images(folder: Path, split: str) -> Path | None:
    """Encoded images that come with labels."""
    return _images(folder, split) if _labels(folder, split) is not None else None


_cache, _category, _images, _labels = (
    partial(find_by_content, kind=kind) for kind in ("cache", "category", "images", "labels")
)
CONTENT_FORMATS = (
    replace(
        CACHE_FORMAT,
        name=f"{CACHE_FORMAT.name} under other names",
        layout="pickles of image_data and class_dict with train, val and test in their names",
        find=_cache,
        read=partial(read_cache, find=_cache),
    ),
    # The data set is not known, so its statistics are computed from the images.
    replace(
        CATEGORY_FORMAT,
        name="pickles of data and labels under other names",
        layout="pickles of data and labels with train, val and test in their names",
        find=_category,
        read=partial(read_category, find=_category),
        title=folder_name,
        statistics=lambda _: None,
        published=lambda _: None,
    ),
    replace(
        PNG_FORMAT,
        name=f"{PNG_FORMAT.name} under other names",
        layout="pickles of encoded images and of labels with train, val and test in their names",
        find=_find_images,
        read=partial(read_png, find=_images, find_labels=_labels),
    ),
)
