"""Image files named by a list: the CSV files of Ravi and Larochelle, and the CSV and JSON files of easyfsl."""

import csv
from collections.abc import Sequence
from io import StringIO
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import (
    SPLITS,
    Format,
    Options,
    first_file,
    read_json,
    read_text,
    strings,
)
from mamltheory.fewshot.formats.folders import labelled
from mamltheory.fewshot.formats.listing import refuse_links_outside, refuse_outside
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.images import ImageSplit
from mamltheory.files import open_regular, reason, shown

MOST_COLUMNS, MOST_ROWS = 100, 2**22
COLUMNS = (("label", "filename"), ("class_name", "image_name"))
"""Class and file in the header of a CSV: Ravi and Larochelle's, and easyfsl's."""


def find_csv(folder: Path, split: str) -> Path | None:
    """The list of a split's images."""
    return first_file(folder, [f"{split}.csv"])


def find_json(folder: Path, split: str) -> Path | None:
    """The specification of a split's classes."""
    return first_file(folder, [f"{split}.json"])


def read_csv(folder: Path, split: str, options: Options) -> ImageSplit:
    """One row an image; the files lie in the folder itself or in images/, flat or in a folder per class.

    The decoded images fill memory unless the options allocate them in a file.
    """
    file = find_csv(folder, split)
    pairs = _rows(file)
    roots = [root for root in (folder / "images", folder) if root.is_dir()]
    root, nested = _place(roots, pairs[0], file)
    files = [root / name / image if nested else root / image for name, image in pairs]
    refuse_links_outside(files, folder)
    titles, labels = np.unique([name for name, _ in pairs], return_inverse=True)
    images = decoded(((str(each), each) for each in files), len(files), split, options)
    return ImageSplit(images, labels.astype(np.int64), tuple(titles.tolist()))


def _rows(file: Path) -> list[tuple[str, str]]:
    try:
        reader = csv.DictReader(StringIO(read_text(file), newline=""), strict=True)
        header = reader.fieldnames or []
        columns = next((pair for pair in COLUMNS if set(pair) <= set(header)), None)
        # The rows one by one: a short one costs a dictionary of all columns.
        known = columns is not None and len(header) <= MOST_COLUMNS
        pairs = [(row[columns[0]], row[columns[1]]) for row in islice(reader, MOST_ROWS + 1)] if known else []
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file ({reason(error)}): fetch it again") from None
    if not pairs or len(pairs) > MOST_ROWS:
        raise DataError(
            f"{file} has the columns {shown(list(header))} in {len(pairs)} rows: expected at most {MOST_ROWS} "
            f"images under filename,label or class_name,image_name"
        )
    for name, image in pairs:
        if not name or not image or not (_inside(image) and _inside(name)):
            raise DataError(
                f"{file} names the image {shown(image)} of class {shown(name)}: expected plain names"
            )
    return pairs


def _inside(name: str) -> bool:
    """Whether the name stays below the folder that it is joined to, on any system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and ":" not in parts[0] and "\0" not in name


def _place(roots: Sequence[Path], pair: tuple[str, str], file: Path) -> tuple[Path, bool]:
    """Where the first image is, and whether in a folder of its class: the others are in the same place."""
    name, image = pair
    for root in roots:
        for nested in (False, True):
            candidate = root / name / image if nested else root / image
            if len(str(candidate)) < 1000 and candidate.is_file():
                return root, nested
    raise DataError(
        f"{file} names {shown(image)}, which is neither in images/ nor beside the list: add the images"
    )


def read_specification(folder: Path, split: str, options: Options) -> ImageSplit:
    """Classes by name with the folder of each under 'class_roots', which may be relative to several places.

    The roots in public files begin with the path from wherever their author worked: tried are their ends
    below the data's folder, the longest first. Raises DataError for a root that is in no such place.
    """
    file = find_json(folder, split)
    content = read_json(file)
    names, roots = strings(content, "class_names", file), strings(content, "class_roots", file)
    if len(names) != len(roots):
        raise DataError(f"{file}: {len(names)} class_names but {len(roots)} class_roots")
    classes = {name: _root(folder, root, file) for name, root in zip(names, roots, strict=True)}
    if len(classes) != len(names):
        raise DataError(f"{file}: a class name occurs more than once: merge these classes or rename one")
    return labelled(classes, folder, split, options)


def _root(folder: Path, root: str, file: Path) -> Path:
    usable = "\0" not in root and len(root) < 1000
    parts = [part for part in PurePosixPath(root.replace("\\", "/")).parts if part != "/"] if usable else []
    if ".." in parts:
        raise DataError(f"{file} names the folder {shown(root)}, with ..: correct class_roots")
    for i in range(len(parts)):  # what is before the last parts of the root is its author's
        candidate = folder.joinpath(*parts[i:])
        if candidate.is_dir():
            refuse_outside(candidate, folder)
            return candidate
    elsewhere = usable and root.startswith("/") and Path(root).is_dir()
    why = "lies outside the data's folder: move it there or" if elsewhere else "is not there:"
    raise DataError(f"{file} names the folder {shown(root)}, which {why} correct class_roots")


def _is_ravi(folder: Path) -> bool:
    lists = [folder / f"{split}.csv" for split in SPLITS]
    return any(b"filename" in _head(file) for file in lists if file.is_file())


def _head(file: Path) -> bytes:
    with open_regular(file) as opened:
        return opened.readline(200)


def _published(folder: Path) -> str | None:
    return "miniImageNet" if _is_ravi(folder) or "mini" in folder.resolve().name.lower() else None


CSV_FORMAT = Format(
    "lists of images",
    "{train,val,test}.csv (filename,label or class_name,image_name) + images/",
    find_csv,
    read_csv,
    lambda folder: folder.resolve().name,
    published=_published,
)
JSON_FORMAT = Format(
    "easyfsl specifications",
    "{train,val,test}.json (class_names, class_roots)",
    find_json,
    read_specification,
    lambda folder: folder.resolve().name,
)
