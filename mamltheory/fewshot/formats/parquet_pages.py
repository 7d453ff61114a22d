"""What the pages of a parquet file announce, read off their headers before any of them is unpacked.

A page says how large it becomes, and a reader makes room for that. A dictionary is small in the file however often
its values are used. The totals at the end of the file are the word of whoever wrote it. Headers are structs of
Thrift's compact protocol.
"""

from collections.abc import Iterator
from io import BufferedReader, BytesIO
from typing import NamedTuple

MOST_PAGES, MOST_HEADER, MOST_LEVELS = 2**18, 2**16, 8
_DICTIONARY = 2
_TYPE, _UNPACKED, _PACKED = 1, 2, 3  # numbers of the header's first fields, all whole numbers
_FALSE, _TRUE, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = 2, 1, 3, (4, 5, 6), 7, 8, (9, 10), 12


class Page(NamedTuple):
    """The size of a page once it is unpacked, in bytes, and whether it is a dictionary."""

    size: int
    is_dictionary: bool


def pages(file: BufferedReader, start: int, length: int) -> Iterator[Page]:
    """The pages of a column that lies at these bytes; raises ValueError for what are no pages, and for too many."""
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
    """The fields of a struct that are whole numbers, by number; the others are passed over."""
    found, number = {}, 0
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
