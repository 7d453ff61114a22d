"""Parquet files as Hugging Face keeps images: columns `image` (bytes, path) and `label`; needs pyarrow."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import SPELLINGS, Format, Options, renumbered
from mamltheory.fewshot.formats.listing import refuse_links_outside
from mamltheory.fewshot.formats.parquet_pages import Page, pages
from mamltheory.fewshot.formats.pixels import decoded
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.other_files import refuse_other_files
from mamltheory.files import open_regular, reason, shown

BATCH = 256
MOST_EXPANSION = 50  # encoded images hardly shrink further
SMALL = 2**26  # bytes that may unpack from anything
MOST_BATCH = 2**27  # bytes of a batch whose images are all the largest one of a dictionary
LEAST_IMAGE = 16  # bytes that an image takes in the file at least
CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "LZ4", "LZ4_RAW")
READ = ("image", "label")


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
    """Raises DataError unless shards named …-00000-of-00004 are all there."""
    counts = [int(found[1]) for file in files if (found := re.search(r"-of-(\d{1,9})\.parquet$", file.name))]
    if counts and max(counts) > len(files):
        raise DataError(
            f"{files[0]} is one of {max(counts)} files, and {len(files)} are there: fetch the others, too"
        )


def find_parquet(folder: Path, split: str) -> Path | None:
    """The first file of a split."""
    return next(iter(shards(folder, split)), None)


def read_parquet(folder: Path, split: str, options: Options) -> ImageSplit:
    """All files of a split; class names from the files' own description of their label column.

    The encoded images pass through memory 256 at a time; the decoded ones stay there, unless the options
    allocate them in a file.
    """
    reader, labels, names, files = _pyarrow(), [], {}, shards(folder, split)
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
        titles, labels = np.unique(labels, return_inverse=True)
        names = dict(enumerate(titles.tolist()))
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


def _open(reader: ModuleType, file: Path) -> tuple[Path, object, int]:
    """The file, opened, and how many rows of it may be read at once."""
    with open_regular(file) as opened:
        refuse_other_files(file, opened.read(64))
    size = file.stat().st_size
    limits = {"thrift_string_size_limit": min(size, 2**26), "thrift_container_size_limit": min(size, 2**20)}
    try:
        parquet = reader.ParquetFile(file, **limits)
        columns, rows = parquet.schema_arrow.names, parquet.metadata.num_rows
    except Exception as error:  # the library has errors of its own for broken files
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


def _pages(parquet: object, file: Path) -> list[Page]:
    """Of the columns that are read."""
    found = []
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


def _images(opened: list[tuple[Path, object, int]], labels: list) -> Iterator[tuple[str, bytes]]:
    """The images by name; their labels are put into `labels` as they pass."""
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
    """Label → name from what the datasets library leaves in the schema; empty where it left nothing."""
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return dict(enumerate(map(str, names))) if isinstance(names, list) else {}


PARQUET_FORMAT = Format(
    "parquet files",
    "{train,val,test}*.parquet with the columns image and label",
    find_parquet,
    read_parquet,
    lambda folder: folder.resolve().name,
)
