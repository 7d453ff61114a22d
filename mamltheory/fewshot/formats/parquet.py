"""Parquet files with images as Hugging Face stores them: columns `image` (bytes, path) and `label`; needs pyarrow.

The sizes that a file announces are read from the headers of its pages before a page is unpacked, because a reader
allocates what a page announces. The totals at the end of the file cannot be trusted, and a dictionary is small in the
file however often its values are used. The headers are structs of Thrift's compact protocol.
"""

import json
import re
from collections.abc import Iterator, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import SPELLINGS, Format, Options, renumbered
from mamltheory.fewshot.formats.listing import refuse_links_outside
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.safe_pickle import refuse_other_files
from mamltheory.files import open_regular, reason, shown

BATCH = 256
MOST_EXPANSION = 50  # encoded images hardly shrink further
SMALL = 2**26  # bytes that any file may unpack to
MOST_BATCH = 2**27  # bytes of a batch whose images are all the largest one of a dictionary
LEAST_IMAGE = 16  # bytes of an image in the file
MOST_PAGES, MOST_HEADER, MOST_LEVELS = 2**18, 2**16, 8
CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "LZ4", "LZ4_RAW")
READ = ("image", "label")
_DICTIONARY = 2
_TYPE, _UNPACKED, _PACKED = 1, 2, 3  # numbers of the first fields of a header, which are whole numbers
_FALSE, _TRUE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 2, 1, 3, (4, 5, 6), 7, 8, (9, 10), 12


class Page(NamedTuple):
    """The size of a page once it is unpacked, in bytes, and whether it is a dictionary."""

    size: int
    is_dictionary: bool


def shards(folder: Path, split: str) -> list[Path]:
    """The files of a split in order: train.parquet or train-00000-of-00004.parquet, also in data/."""
    for place in (folder, folder / "data"):
        for name in SPELLINGS[split]:
            found = sorted([*place.glob(f"{name}.parquet"), *place.glob(f"{name}-*.parquet")])
            if files := [file for file in found if not file.is_dir()]:
                _refuse_missing(files)
                return files
    return []


def _refuse_missing(files: Sequence[Path]) -> None:
    """Raise DataError unless all shards named …-00000-of-00004 exist."""
    counts = [int(found[1]) for file in files if (found := re.search(r"-of-(\d{1,9})\.parquet$", file.name))]
    if counts and max(counts) > len(files):
        raise DataError(
            f"{files[0]} is one of {max(counts)} files, and {len(files)} are there: fetch the others, too"
        )


def find_parquet(folder: Path, split: str) -> Path | None:
    """The first file of a split."""
    return next(iter(shards(folder, split)), None)


def read_parquet(folder: Path, split: str, options: Options) -> ImageSplit:
    """Return all files of a split; class names come from the files' description of their label column.

    Args:
        folder: the data set.
        split: the split.
        options: the size of the images, and where they are written.
    """
    reader, files = _pyarrow(), shards(folder, split)
    labels: list[Any] = []
    names: dict[int, str] = {}
    refuse_links_outside(files, folder)
    opened = [_open(reader, file) for file in files]
    try:
        count = sum(each.metadata.num_rows for _, each, _ in opened)
        images = decoded(_images(opened, labels), count, split, options)
        for _, each, _ in opened:
            names |= _class_names(each.schema_arrow.metadata or {})
    finally:
        for _, each, _ in opened:
            each.close()
    if all(isinstance(value, str) for value in labels):
        titles, numbers = np.unique(np.array(labels), return_inverse=True)
        return renumbered(images, numbers, dict(enumerate(titles.tolist())), split, opened[0][0])
    return renumbered(images, labels, names, split, opened[0][0])


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            "this data set is in parquet files, and pyarrow, which reads them, is not installed: "
            "pip install 'mamltheory[parquet]'"
        ) from None
    return pyarrow.parquet


def _open(reader: ModuleType, file: Path) -> tuple[Path, Any, int]:
    """The path, the opened file, and how many of its rows may be in one batch."""
    with open_regular(file) as opened:
        refuse_other_files(file, opened.read(64))
    size = file.stat().st_size
    limits = {"thrift_string_size_limit": min(size, 2**26), "thrift_container_size_limit": min(size, 2**20)}
    try:
        parquet = reader.ParquetFile(file, **limits)
        columns, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
    except Exception as error:  # pyarrow has its own errors for broken files
        raise _damaged(file, error) from None
    if not set(READ) <= set(columns):
        raise DataError(f"{file} has the columns {shown(columns)}: expected image and label")
    try:
        found = _pages(parquet, file)
    except Exception as error:
        raise _damaged(file, error) from None
    if sum(page.size for page in found) > max(SMALL, MOST_EXPANSION * size) or rows * LEAST_IMAGE > size:
        raise DataError(f"{file} announces far more than its {size} bytes can hold")
    largest = max((page.size for page in found if page.is_dictionary), default=0)
    return file, parquet, min(BATCH, max(1, MOST_BATCH // max(1, largest)))


def _pages(parquet: Any, file: Path) -> list[Page]:
    """The pages of the columns that are read."""
    found: list[Page] = []
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    with open_regular(file) as opened:
        for column in (group.column(i) for group in groups for i in range(group.num_columns)):
            if column.path_in_schema.split(".")[0] not in READ:
                continue
            if column.compression not in CODECS:
                raise ValueError(f"compressed by {column.compression}: expected one of {', '.join(CODECS)}")
            starts = (column.dictionary_page_offset, column.data_page_offset)
            start = min(offset for offset in starts if offset)
            found += pages(opened, start, column.total_compressed_size)
    return found


def _images(opened: list[tuple[Path, Any, int]], labels: list[Any]) -> Iterator[tuple[str, bytes]]:
    """The images by name; appends their labels to ``labels``."""
    for file, parquet, rows in opened:
        try:
            for batch in parquet.iter_batches(rows, columns=list(READ)):
                columns = batch.to_pydict()
                labels += columns["label"]
                for row, image in enumerate(columns["image"], len(labels) - len(columns["label"])):
                    yield f"{file} image {row}", _bytes(image, file)
        except DataError:
            raise
        except Exception as error:
            raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} cannot be read as parquet ({reason(error)}): fetch it again")


def _bytes(image: object, file: Path) -> bytes:
    raw = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(raw, bytes) or not raw:
        raise DataError(f"{file} holds an image without bytes: expected encoded images in the file itself")
    return raw


def _class_names(metadata: dict[bytes, bytes]) -> dict[int, str]:
    """Label → name from the metadata of the datasets library in the schema; empty without them."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return dict(enumerate(map(str, names))) if isinstance(names, list) else {}


# --- headers of pages ---


def pages(file: BufferedReader, start: int, length: int) -> Iterator[Page]:
    """The pages of a column that lies at these bytes; raises ValueError for broken pages and for too many."""
    end = start + length
    for _ in range(MOST_PAGES):
        if start >= end:
            return
        file.seek(start)
        header = BytesIO(file.read(MOST_HEADER))
        fields = _struct(header, MOST_LEVELS)
        try:
            kind, unpacked, packed = (fields[name] for name in (_TYPE, _UNPACKED, _PACKED))
        except KeyError:
            raise ValueError("a page has no header") from None
        if min(unpacked, packed) < 0 or start + packed > end:
            raise ValueError("a page reaches beyond its column")
        yield Page(unpacked, kind == _DICTIONARY)
        start += header.tell() + packed
    raise ValueError(f"a column has more than {MOST_PAGES} pages")


def _struct(data: BytesIO, levels: int) -> dict[int, int]:
    """Number -> value of the fields of a struct that are whole numbers; the others are skipped."""
    found: dict[int, int] = {}
    number = 0
    while head := _byte(data):
        step, kind = head >> 4, head & 15
        number = number + step if step else _whole(data)
        if kind in _INTEGERS:
            found[number] = _whole(data)
        elif kind not in (_TRUE, _FALSE):  # a field that is true or false has no more bytes
            _skip(data, kind, levels - 1)
    return found


def _skip(data: BytesIO, kind: int, levels: int) -> None:
    if levels < 0:
        raise ValueError("a page's header is nested too deep")
    if kind in _INTEGERS:
        _whole(data)
    elif kind in (_TRUE, _FALSE, _BYTE):
        _byte(data)
    elif kind == _DOUBLE:
        data.seek(8, 1)
    elif kind == _BINARY:
        data.seek(min(_varint(data), MOST_HEADER), 1)
    elif kind in _LISTS:
        head = _byte(data)
        count = head >> 4 if head >> 4 < 15 else _varint(data)
        for _ in range(count):
            _skip(data, head & 15, levels - 1)
    elif kind == _STRUCT:
        _struct(data, levels)
    else:
        raise ValueError("a page's header is of no known form")


def _byte(data: BytesIO) -> int:
    read = data.read(1)
    if not read:
        raise ValueError("a page's header is cut off")
    return read[0]


def _varint(data: BytesIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(data)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("a page's header has a number without end")


def _whole(data: BytesIO) -> int:
    value = _varint(data)
    return value >> 1 if value % 2 == 0 else -(value >> 1) - 1


PARQUET_FORMAT = Format(
    "parquet files", "{train,val,test}*.parquet with the columns image and label", find_parquet, read_parquet
)
