"""One pure function over many items, in this process or in several; the results do not depend on which."""

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from ctypes import Array
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from types import FrameType
from typing import Any, TypeVar

import torch

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.heartbeat import SECONDS_BETWEEN_BEATS, SECONDS_OF_SILENCE, Silence, beat
from mamltheory.runtime.interrupt import SIGNALS, Interrupted, check_interrupted, interruptible, note_signal

Item = TypeVar("Item")
Result = TypeVar("Result")


Mapper = Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[tuple[Item, Result]]]
"""(function, items) -> (item, function(item)) as the results come in."""

ON_ONE_THREAD = ("threads",)
"""Entries of the environment that do not change results of workers, which compute on one thread each."""
SECONDS_BETWEEN_LOOKS = 0.2
"""How soon a stop is noticed while every process is busy."""


@contextmanager
def workers(jobs: int = 1, silence: float = SECONDS_OF_SILENCE) -> Iterator[Mapper]:
    """A mapper over processes of one thread each, which stay alive within the block.

    One job stays in this process, also on one thread: the number of threads decides the last bits. With more jobs,
    functions and items must be picklable. When a stop is asked for (see ``interrupt``) no item is started. Running
    items are finished and yielded, unless the function itself looks for stops; then Interrupted is raised. No worker
    outlives this process.

    Args:
        jobs: number of processes.
        silence: seconds without a beat after which a worker counts as stopped (see ``heartbeat``).

    Yields:
        The mapper.

    Raises:
        ConfigurationError: jobs is below 1, or a worker has died or is stopped.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}: expected at least 1")
    if jobs == 1:
        with one_thread():
            yield _one_by_one
        return
    # spawn: a forked child would inherit the locks of torch's thread pool, and may hang
    context = multiprocessing.get_context("spawn")
    beats, begun = context.RawArray("q", jobs), context.Value("i")
    between = min(SECONDS_BETWEEN_BEATS, silence / 8)
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin_worker, initargs=(beats, begun, between))
    heart = _Heart(beats, silence, between)
    try:
        yield lambda function, items: _spread(pool, heart, function, items)
    except BaseException:
        _pass_stop_on()
        raise
    finally:
        _shut_down(pool, heart)


def _one_by_one(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    for item in items:
        check_interrupted()
        yield item, function(item)


@dataclass(frozen=True)
class _Heart:
    """The counters of the workers, how long one may stand still, and the seconds between two beats."""

    beats: Array
    silence: float
    between: float

    def watched(self) -> Callable[[], bool]:
        """A function, to be called regularly, that says whether some worker was silent for too long."""
        silence = Silence(self.silence, self.between)
        return lambda: bool(silence.of(dict(enumerate(self.beats))))


def _spread(
    pool: ProcessPoolExecutor, heart: _Heart, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    rest, stop = iter(items), None
    running: dict[Future, Item] = {}
    jobs, someone_is_silent = len(heart.beats), heart.watched()
    while True:
        stop = stop or _stop_asked_for()
        try:
            # No more items than processes: an item in the pool's queue cannot be taken back.
            while stop is None and len(running) < jobs:
                item = next(rest)
                running[_submit(pool, function, item)] = item
        except StopIteration:
            pass
        if not running:
            break
        done = wait(running, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done
        if someone_is_silent():
            _kill_all()
            raise ConfigurationError(
                f"a worker process has given no sign of life for {heart.silence:g} s: it is stopped; the same command "
                "continues from what was saved"
            )
        for future in done:
            item, (stopped, result) = running.pop(future), _result(future)
            if stopped:
                stop = stop or Interrupted(result)
            else:
                yield item, result
    if stop is not None:
        raise stop


def _stop_asked_for() -> Interrupted | None:
    try:
        check_interrupted()
    except Interrupted as stop:
        _pass_stop_on()
        return stop
    return None


def _pass_stop_on() -> None:
    """Send the stop to the workers: a function that looks for stops, such as a training, ends after its step."""
    for child in multiprocessing.active_children():
        child.terminate()


def _shut_down(pool: ProcessPoolExecutor, heart: _Heart) -> None:
    """Wait for the workers to end; kill all of them when one is stopped, which cannot end."""
    ending = threading.Thread(target=pool.shutdown, kwargs={"wait": True, "cancel_futures": True})
    someone_is_silent = heart.watched()
    ending.start()
    while ending.is_alive():
        ending.join(SECONDS_BETWEEN_LOOKS)
        if someone_is_silent():
            _kill_all()


def _kill_all() -> None:
    for child in multiprocessing.active_children():
        child.kill()  # a stopped process reacts to no other signal


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item) -> Future:
    with _environment_of_children(), _signals_blocked():
        return pool.submit(_call, function, item)


def _result(future: Future) -> tuple[bool, Any]:
    try:
        return future.result()
    except BrokenProcessPool:
        raise ConfigurationError(
            "a worker process died (killed, or out of memory): use fewer processes with --jobs; the same command "
            "continues from what was saved"
        ) from None


@contextmanager
def _environment_of_children() -> Iterator[None]:
    """Set the environment from which processes read, when they start, thread counts and their output's encoding."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if getattr(sys.stdout, "encoding", None) and getattr(sys.stdout, "errors", None):
        wanted["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:{sys.stdout.errors}"
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes on one thread; the number of threads decides the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started within the block get no signal before they can handle one (where masks exist)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _call(function: Callable[[Item], Result], item: Item) -> tuple[bool, Any]:
    """(False, the result), or (True, the number of the signal) when the function was stopped."""
    try:
        return False, function(item)
    except Interrupted as stop:
        return True, stop.signal_number


_stops = ExitStack()


def _begin_worker(beats: Array, begun: Synchronized, between: float) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with begun.get_lock():
        own = begun.value
        begun.value += 1

    def count() -> None:
        beats[own] += 1

    beat(count, between)
    _stops.enter_context(interruptible())

    def note_once(number: int, frame: FrameType | None) -> None:
        note_signal(number, frame)
        # The whole process group gets every signal, and the parent passes it on: once is enough.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)

    signal.signal(signal.SIGTERM, note_once)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if sys.stderr.isatty():
        sys.stderr = _AboveABar(sys.stderr.fileno())


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


class _AboveABar(io.TextIOBase):
    """A terminal on which the parent draws its bar; it takes whole lines, and no second bar."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def isatty(self) -> bool:
        """No: bars of several processes would overwrite each other."""
        return False

    def write(self, text: str) -> int:
        """Write the text over the bar, which the parent draws again below it."""
        os.write(self.descriptor, f"\r\x1b[2K{text}".encode())
        return len(text)
