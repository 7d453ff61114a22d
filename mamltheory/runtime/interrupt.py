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
    """A requested stop at the end of a step; no error, so ``except Exception`` lets it through.

    signal_number: what was received. continue_with: the command that goes on from what has been saved, set
    by whoever saved it; None says that nothing was saved.
    """

    def __init__(self, signal_number: int, continue_with: str | None = None):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.continue_with = continue_with

    def __reduce__(self) -> tuple:
        """Both fields travel between processes; an exception's own way would pass the message as the signal."""
        return Interrupted, (self.signal_number, self.continue_with)

    @property
    def exit_code(self) -> int:
        """The shell's convention: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.signal_number

    def saved(self, continue_with: str) -> "Interrupted":
        """The same stop, to be raised again once the state lies on disk."""
        return Interrupted(self.signal_number, continue_with)


_received: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block the first signal is only noted (see :func:`check_interrupted`), the second is final.

    Signals can be handled in the main thread alone; in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _note) for number in SIGNALS}
    try:
        yield
    finally:
        _received.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _note(number: int, _frame: FrameType | None) -> None:
    _received.append(number)
    if multiprocessing.parent_process() is None:  # print is not safe in a handler
        os.write(2, b"\nstopping after this step; again to stop at once\n")
    # The system's own action for the next one: it ends the process even inside a long call into C.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)


def check_interrupted() -> None:
    """Raise :class:`Interrupted` if a stop was asked for. Call it between steps, never within one."""
    if _received:
        raise Interrupted(_received[0])
