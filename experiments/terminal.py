"""The environment of a process: encodings of its streams, closed pipes, and the backend of matplotlib."""

import os
import re
import select
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
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


def screen_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is a file, a pipe or a notebook."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def for_terminal(text: str, width: int | None = None) -> str:
    """Markdown for a screen: tables that fit are aligned, wider ones are told row by row, and sentences are wrapped.

    Args:
        text: The Markdown, a line for every row, paragraph or item.
        width: Columns of the screen; None for those of the terminal, and for the text as it is where there is none.

    Returns:
        The text to print.
    """
    width = screen_width() if width is None else width
    if width is None:
        return text
    lines: list[str] = []
    for is_table, group in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if is_table:
            lines += _table_lines([_cells_of(line) for line in group], width)
        else:
            for line in group:
                lines += textwrap.wrap(line, width, subsequent_indent="  " * line.startswith("- ")) or [""]
    return "\n".join(lines) + "\n" * text.endswith("\n")


def _cells_of(line: str) -> list[str]:
    cells = re.split(r"(?<!\\)\|", line.strip()[1:-1])
    return [re.sub(r"\\(.)", r"\1", cell).replace("**", "").strip() for cell in cells]


def _table_lines(rows: list[list[str]], width: int) -> list[str]:
    head, *rows = [row for row in rows if not all(cell.strip(":-") == "" and cell for cell in row)]
    widths = [max(len(row[i]) for row in (head, *rows) if i < len(row)) for i in range(len(head))]
    if sum(widths) + 2 * (len(widths) - 1) <= width:
        rule = ["─" * each for each in widths]
        aligned = (
            [f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)] for row in (head, rule, *rows)
        )
        return ["  ".join(cells).rstrip() for cells in aligned]
    lines = []
    for name, *cells in rows:
        told = "; ".join(f"{title} {cell}" for title, cell in zip(head[1:], cells, strict=False) if cell)
        lines += [name, *textwrap.wrap(told, width, initial_indent="    ", subsequent_indent="    ")]
    return lines
