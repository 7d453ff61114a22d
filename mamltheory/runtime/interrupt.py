"""Ctrl-C and SIGTERM without losing work: the first lets the step finish, the second stops at once."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A requested stop at the end of a step. It is no error, so ``except Exception`` lets it through.

    Attributes:
        signal_number: the signal that was received.
        continue_with: the command that continues from the saved state, set by the code that saved it; None if
            nothing was saved.
    """

    def __init__(self, signal_number: int, continue_with: str | None = None):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.continue_with = continue_with

    def __reduce__(self) -> tuple:
        """Pickle both fields; the default of exceptions would pass the message as the signal."""
        return Interrupted, (self.signal_number, self.continue_with)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C and 143 after SIGTERM, as shells do."""
        return 128 + self.signal_number

    def saved(self, continue_with: str) -> "Interrupted":
        """The same stop, to be raised again once the state is on disk."""
        return Interrupted(self.signal_number, continue_with)


_received: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Note the first signal within the block (see :func:`check_interrupted`); the second ends the process.

    Only the main thread can handle signals; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, note_signal) for number in SIGNALS}
    try:
        yield
    finally:
        _received.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def note_signal(number: int, _frame: FrameType | None) -> None:
    """Remember the signal, and restore the system's own action for the next one."""
    _received.append(number)
    if multiprocessing.parent_process() is None:  # print is not safe in a handler
        os.write(2, b"\nstopping after this step; again to stop at once\n")
    # The system's action ends the process even inside a long call into C.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)


def check_interrupted() -> None:
    """Raise :class:`Interrupted` if a stop was asked for. Call it between steps, never within one."""
    if _received:
        raise Interrupted(_received[0])
