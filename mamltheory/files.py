"""Files that others may have written: only regular files are opened, reads are bounded, quotations are short."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MOST_SHOWN = 200
_PARTS, _TEXT, _BITS = 4, 60, 128


def open_regular(path: Path) -> BufferedReader:
    """The open file; an OSError if it is not a regular one: a pipe may never begin, and a device never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file, but a folder, pipe or device", str(path))
    return path.open("rb")


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The bytes of a regular file of at most ``most`` bytes; an OSError for any other."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes, and at most {most} are expected", str(path))
        return file.read(size)


def reason(error: Exception) -> str:
    """The message of an error, as one line of bounded length without control characters."""
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return _cut(" ".join("".join(c if c.isprintable() else " " for c in text[: 4 * MOST_SHOWN]).split()))


def shown(value: object) -> str:
    """Any value as one short line for a message, in a time that does not grow with the value."""
    return _cut(_shown(value, depth=2))


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _shown(value: object, depth: int) -> str:
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return repr(value) if bits <= _BITS else f"a whole number of {bits} bits"
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= _TEXT else f"{value[:_TEXT]!r}…"
    if (type(value) is list or type(value) is tuple) and depth:
        inner = [_shown(each, depth - 1) for each in value[:_PARTS]] + ["…"] * (len(value) > _PARTS)
        return f"[{', '.join(inner)}]" if type(value) is list else f"({', '.join(inner)})"
    if type(value) is dict and depth:
        first = [key for key, _ in zip(value, range(_PARTS), strict=False)]
        inner = [f"{_shown(key, 0)}: {_shown(value[key], depth - 1)}" for key in first]
        return "{" + ", ".join(inner + ["…"] * (len(value) > _PARTS)) + "}"
    return f"a {type(value).__name__}"
