"""The environment of a process: encodings of its streams, closed pipes, and the backend of matplotlib."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

BROKEN_PIPE = 141
"""The shell's convention for a program whose reader has left, as by ``| head``."""


def accept_everything() -> None:
    """Let standard output and error take any text: characters outside their encoding are written as escapes.

    A closed stream is replaced by the null device.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):  # a notebook's takes everything as it is
            stream.reconfigure(errors="backslashreplace")


def reader_has_left() -> bool:
    """Whether standard output or error is a pipe without a reader."""
    return any(_is_broken(stream) for stream in (sys.stdout, sys.stderr))


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.flush()  # what could not be written is still waiting
        if not hasattr(select, "poll"):
            return False
        asked = select.poll()
        asked.register(stream.fileno(), select.POLLERR)
        return any(event & select.POLLERR for _, event in asked.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # a stream without a descriptor, as a notebook's
        return False


def end_output() -> None:
    """Drop output that cannot be written, so that Python ends without a message about it; call it last."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


@contextmanager
def figures_in_files() -> Iterator[None]:
    """Within the block, and in its child processes, matplotlib uses a backend without a display.

    A backend that is not installed, such as a notebook's, would stop matplotlib from loading.
    """
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MPLBACKEND"]
        else:
            os.environ["MPLBACKEND"] = before


def one_line(text: str) -> str:
    """The text with line breaks and other control characters as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
