"""Arrays in npy and npz files: mapped in place, after a check of the size that they declare."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mamltheory.errors import DataError
from mamltheory.fewshot.formats.common import existing
from mamltheory.fewshot.safe_pickle import refuse_other_files
from mamltheory.files import open_regular, reason, shown

MOST_EXPANSION = (
    100  # images shrink to a half or a third; a file that unpacks a hundredfold to gigabytes is a trap
)
SMALL = 2**28  # bytes that any file may unpack to
MOST_LIST = 2**20  # bytes of the list of members of an archive: a hundred per array


def open_npy(file: Path) -> np.ndarray:
    """An npy file as a read-only memory map; never unpickled. Raises DataError when it is damaged."""
    _check_head(file)
    try:
        return np.lib.format.open_memmap(file, "r")
    except Exception as error:  # a broken header reaches numpy's parser in many ways
        raise DataError(_damage(file, "a numpy array", error)) from None


def open_npz_member(file: Path, name: str) -> np.ndarray:
    """Return an array of an npz file: mapped in place when it is stored uncompressed, else loaded; never unpickled.

    Args:
        file: the file.
        name: name of the array.

    Raises:
        DataError: the file is damaged, lacks the array, or declares more than it holds.
    """
    _check_head(file)
    try:
        return _member(file, name)
    except KeyError:
        raise DataError(f"{file} has no array {name!r}: it is another file than its name says") from None
    except Exception as error:
        raise DataError(_damage(file, f"an npz file with an array {name!r}", error)) from None


def _member(file: Path, name: str) -> np.ndarray:
    _check_list_of_members(file)
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("it is compressed in a way that numpy does not use")
        if info.compress_type == zipfile.ZIP_STORED:
            return _map_member(file, info)
        if info.file_size > max(SMALL, MOST_EXPANSION * info.compress_size):
            raise ValueError(f"{info.compress_size} bytes announce {info.file_size}")
        with archive.open(info) as member:
            _read_header(member, info.file_size)
        with archive.open(info) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _check_list_of_members(file: Path) -> None:
    with open_regular(file) as opened:
        end = zipfile._EndRecData(opened)  # type: ignore[attr-defined]
    if not end or end[zipfile._ECD_SIZE] > MOST_LIST:  # type: ignore[attr-defined]
        raise ValueError("it has no list of its arrays, or one that is far too long")


def _check_head(file: Path) -> None:
    with open_regular(existing(file)) as opened:
        refuse_other_files(file, opened.read(64))


def _damage(file: Path, what: str, error: Exception) -> str:
    return f"{file} is not {what} ({reason(error)}): fetch it again and compare its size"


def _read_header(stream: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of the array in a stream of ``size`` bytes with its header."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError("it holds Python objects, or nothing")
    count = 1
    for length in shape:
        count *= length  # Python integers do not overflow
    if min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shown(shape)} is announced and {size} bytes are there")
    return shape, fortran, dtype


def _map_member(file: Path, info: zipfile.ZipInfo) -> np.ndarray:
    with file.open("rb") as raw:
        raw.seek(info.header_offset + 26)  # the local header ends with the lengths of its two variable fields
        lengths = np.frombuffer(raw.read(4), "<u2")
        start = info.header_offset + 30 + int(lengths.sum())
        raw.seek(start)
        shape, fortran, dtype = _read_header(raw, info.file_size)
        if raw.tell() - start + np.prod(shape, dtype=object) * dtype.itemsize > info.file_size:
            raise ValueError("the array reaches beyond its place in the archive")
        return np.memmap(file, dtype, "r", raw.tell(), shape, "F" if fortran else "C")
