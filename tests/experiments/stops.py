"""Ctrl-C at a chosen moment, and counting what a command does."""

import signal
from contextlib import contextmanager

import pytest

from mamltheory.runtime.interrupt import Interrupted, interruptible


@contextmanager
def counted(module, name):
    """The arguments of every call of a function within the block."""
    calls, function = [], getattr(module, name)

    def counting(*arguments, **keywords):
        calls.append(arguments)
        return function(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, counting)
        yield calls


class Stop:
    """What the block of :func:`ctrl_c_during` was stopped by, once it has ended."""

    value: Interrupted | None = None


@contextmanager
def ctrl_c_during(module, name, call):
    """Within the block Ctrl-C arrives in the given call (from 1) of a function; the block must stop by it."""
    calls, function = [], getattr(module, name)

    def signalling(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **keywords)

    seen = Stop()
    with pytest.MonkeyPatch.context() as patch, interruptible():
        patch.setattr(module, name, signalling)
        try:
            yield seen
        except Interrupted as stop:
            seen.value = stop
    assert len(calls) >= call
    assert seen.value is not None, "Ctrl-C came, and nothing stopped"
