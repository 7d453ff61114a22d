"""Progress of functions: a live bar in Jupyter, which needs no widgets, and lines on a terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape

Advance = Callable[..., None]
PATIENCE, SECONDS_BETWEEN_UPDATES = 1.0, 0.2
SECONDS_BETWEEN_LINES = 2.0
"""On a terminal; work that takes less than that shows nothing."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:  # a kernel has it loaded, and a script need not load it
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


@contextmanager
def notebook_bar(
    description: str,
    total: int | None = None,
    patience: float | None = None,
    clock: Callable[[], float] | None = None,
    brief: bool = False,
) -> Iterator[Advance]:
    """Show one stage of work in a notebook, once it has taken some time.

    Args:
        description: name of the stage.
        total: number of steps; None if it is not known.
        patience: seconds before the bar appears, by default PATIENCE; 0 shows it at once.
        clock: returns the time in seconds, by default ``time.monotonic``.
        brief: whether the bar goes away at the end.

    Yields:
        ``advance(steps=1, note="")``, to be called as steps are done; outside a notebook it does nothing.
    """
    if total == 0 or not in_notebook():
        yield lambda *_, **__: None
        return
    from IPython.display import display

    patience, clock = PATIENCE if patience is None else patience, clock or time.monotonic
    start = clock()
    done, last, last_note, handle = 0, -float("inf"), "", None

    def show(state: str) -> None:
        nonlocal handle
        content = _content(description, done, total, clock() - start, last_note, state)
        if brief and state == "done":
            content = dict.fromkeys(content, "")
        if handle is None:
            handle = display(content, raw=True, display_id=True)
        else:
            handle.update(content, raw=True)

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last, last_note
        done, last_note = done + steps, note
        now = clock()
        if now - start >= patience and now - last >= SECONDS_BETWEEN_UPDATES:
            last = now
            show("")

    if patience <= 0:
        show("")
    try:
        yield advance
    except BaseException:
        if handle is not None:
            show("stopped")
        raise
    if handle is not None:
        show("done")


@contextmanager
def shown_progress(
    description: str, total: int | None = None, patience: float | None = None, quiet: bool = False
) -> Iterator[Advance]:
    """Show one stage of work: a bar in a notebook, lines where standard error is a terminal, nothing elsewhere.

    Args:
        description: name of the stage.
        total: number of steps; None if it is not known, 0 to show nothing.
        patience: seconds before the bar of a notebook appears, as for :func:`notebook_bar`.
        quiet: whether a terminal shows nothing, because the caller tells of the progress in another way.

    Yields:
        ``advance(steps=1, note="")``, to be called as steps are done.
    """
    if quiet or total == 0 or in_notebook() or not sys.stderr.isatty():
        with notebook_bar(description, total, patience) as advance:
            yield advance
        return
    start = last = time.monotonic()
    done = 0

    def line(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done, now = done + steps, time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or (done == total and last > start):
            last = now
            text = _content(description, done, total, now - start, note, "")["text/plain"]
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    yield line


def _content(
    description: str, done: int, total: int | None, passed: float, note: str, state: str
) -> dict[str, str]:
    """The bar as HTML and as text, for a front end to choose from."""
    count = f"{done}" if total is None else f"{done}/{total}"
    words = [*([state] if state else []), count, duration(passed)]
    if total is not None and 0 < done < total and not state:
        words.append(f"{duration(passed * (total - done) / done)} left")
    text = ", ".join(words) + f"  {note}" * bool(note)
    place = "" if total is None and not state else f' value="{done if total else 1}" max="{total or 1}"'
    bar = f'<progress style="width:16em;vertical-align:middle"{place}></progress>'
    return {
        "text/plain": f"{description}: {text}",
        "text/html": f"<div>{escape(description)} {bar} {escape(text)}</div>",
    }


def duration(seconds: int | float) -> str:
    """A time span as text: ``0:07``, ``12:30`` or ``2:05:00``."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
