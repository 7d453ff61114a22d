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
    files_named,
    found_file,
    read_json,
    read_text,
    strings,
)
from mamltheory.fewshot.formats.folders import read_classes
from mamltheory.fewshot.formats.listing import refuse_links_outside, refuse_outside
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.images import ImageSplit
from mamltheory.files import open_regular, reason, shown

MOST_COLUMNS, MOST_ROWS = 100, 2**22
COLUMNS = (("label", "filename"), ("class_name", "image_name"))
"""Class and file in the header of a CSV: Ravi and Larochelle's, and easyfsl's."""
find_csv, find_json = files_named("{}.csv"), files_named("{}.json")


def read_csv(folder: Path, split: str, options: Options) -> ImageSplit:
    """Read one image per row; the files lie in the folder or in images/, flat or in a folder per class."""
    file = found_file(find_csv, folder, split)
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
        # Row by row, with a bound on the columns: even a short row makes a dictionary of all columns.
        pairs = []
        if columns is not None and len(header) <= MOST_COLUMNS:
            pairs = [(row[columns[0]], row[columns[1]]) for row in islice(reader, MOST_ROWS + 1)]
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
    """Whether the name stays below the folder to which it is joined, on any system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and ":" not in parts[0] and "\0" not in name


def _place(roots: Sequence[Path], pair: tuple[str, str], file: Path) -> tuple[Path, bool]:
    """The root of the first image, and whether it lies in a folder of its class, as all others then do."""
    name, image = pair
    for root in roots:
        for nested in (False, True):
            candidate = root / name / image if nested else root / image
            if len(str(candidate)) < 1000 and candidate.is_file():
                return root, nested
    raise DataError(
        f"{file} names {shown(image)}, which is neither in images/ nor next to the list: add the images"
    )


def read_specification(folder: Path, split: str, options: Options) -> ImageSplit:
    """Return classes by name, with the folder of each under 'class_roots'.

    The roots in public files begin with a path of their author. Their ends are tried below the folder of the data, the
    longest first.

    Args:
        folder: the data set.
        split: the split.
        options: the size of the images, and where they are written.

    Raises:
        DataError: a class name occurs twice, or the lists differ in length.
    """
    file = found_file(find_json, folder, split)
    content = read_json(file)
    names, roots = strings(content, "class_names", file), strings(content, "class_roots", file)
    if len(names) != len(roots):
        raise DataError(f"{file}: {len(names)} class_names but {len(roots)} class_roots")
    classes = {name: _root(folder, root, file) for name, root in zip(names, roots, strict=True)}
    if len(classes) != len(names):
        raise DataError(f"{file}: a class name occurs more than once: merge these classes or rename one")
    return read_classes(classes, folder, split, options)


def _root(folder: Path, root: str, file: Path) -> Path:
    usable = "\0" not in root and len(root) < 1000
    parts = [part for part in PurePosixPath(root.replace("\\", "/")).parts if part != "/"] if usable else []
    if ".." in parts:
        raise DataError(f"{file} names the folder {shown(root)}, with ..: correct class_roots")
    for i in range(len(parts)):  # the first parts belong to the author's machine
        candidate = folder.joinpath(*parts[i:])
        if candidate.is_dir():
            refuse_outside(candidate, folder)
            return candidate
    elsewhere = usable and root.startswith("/") and Path(root).is_dir()
    why = "lies outside the folder of the data: move it there or" if elsewhere else "is not there:"
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
    published=_published,
)
JSON_FORMAT = Format(
    "easyfsl specifications",
    "{train,val,test}.json (class_names, class_roots)",
    find_json,
    read_specification,
)
