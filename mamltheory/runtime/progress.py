"""Progress of a stage of work: a live bar on a terminal and in a notebook, a plain line per ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from typing import TextIO

from mamltheory.notebook import Advance, duration, in_notebook, notebook_bar

Stream = TextIO | TextIOBase
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def stage(
    description: str,
    total: int | None = None,
    stream: Stream | None = None,
    clock: Callable[[], float] = time.monotonic,
    brief: bool = False,
) -> Iterator[Advance]:
    """Show one stage of work: a bar on a terminal or in a notebook, elsewhere a line at both ends and per 10 s.

    Args:
        description: name of the stage.
        total: number of steps; None if it is not known, 0 to show nothing.
        stream: where to write; None for the notebook, or standard error where there is none.
        clock: returns the time in seconds.
        brief: the caller says how the stage ended: its bar goes away, and no line tells of its start and end.

    Yields:
        ``advance(steps=1, note="")``, to be called as steps are done.
    """
    if total == 0:  # a run that is finished already
        yield lambda *_, **__: None
        return
    if stream is None and in_notebook():
        with notebook_bar(description, total, 0.0, clock, brief) as advance:
            yield advance
        return
    output: Stream = sys.stderr if stream is None else stream
    show = _bar if output.isatty() else _lines
    with show(description, total, output, clock, brief) as advance:
        yield advance


@contextmanager
def _bar(
    description: str, total: int | None, stream: Stream, clock: Callable[[], float], brief: bool
) -> Iterator[Advance]:
    # Imported here: jobs that log to a file do not need it.
    from rich import progress
    from rich.console import Console
    from rich.table import Column

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=16),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        # What is left of the line: a long note is cut, and not the bar.
        progress.TextColumn(
            "{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    console = Console(file=stream)  # type: ignore[arg-type]  # in typeshed TextIOBase is no IO[str]
    with progress.Progress(*columns, console=console, get_time=clock, transient=brief, expand=True) as bars:
        task = bars.add_task(description, total=total, note="")
        yield lambda steps=1, note="": bars.update(task, advance=steps, note=note)


@contextmanager
def _lines(
    description: str, total: int | None, stream: Stream, clock: Callable[[], float], brief: bool
) -> Iterator[Advance]:
    start = last = clock()
    done, last_note = 0, ""

    def write(text: str) -> None:
        stream.write(f"{description}: {text}\n")
        stream.flush()

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last, last_note
        done, last_note = done + steps, note
        now = clock()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            write(_summary(done, total, now - start, note))

    if not brief:
        write("started" if total is None else f"0/{total}")
    try:
        yield advance
    except BaseException:
        write(f"stopped after {_count(done, total)}, {duration(clock() - start)}")
        raise
    if not brief:
        passed = duration(clock() - start)
        write(f"done, {_count(done, total)} in {passed}" + (f"  {last_note}" if last_note else ""))


def _count(done: int, total: int | None) -> str:
    return f"{done}" if total is None else f"{done}/{total}"


def _summary(done: int, total: int | None, elapsed: float, note: str) -> str:
    text = f"{_count(done, total)}, {duration(elapsed)} elapsed"
    if total is not None and done > 0:
        text += f", {duration(elapsed * (total - done) / done)} left"
    return f"{text}  {note}" if note else text
