"""What search, training and evaluation share: data, network sizes, genotypes on disk, run folders."""

import dataclasses
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from experiments.config import settings_before
from experiments.settings import Network
from mamltheory.errors import printable
from mamltheory.runtime.device import environment
from mamltheory.runtime.distributed import world
from mamltheory.runtime.interrupt import Interrupted, check_interrupted
from mamltheory.runtime.progress import Advance, stage
from mamltheory.runtime.runlog import RunLog, open_run
from mamltheory.runtime.workers import ON_ONE_THREAD
from mamltheory.strict_json import INFINITE

FREE = ("out", "jobs", "device")
"""Settings that do not change the numbers: a run goes on with other ones."""


def warn(text: str) -> None:
    """Say on standard error, in one process of a command, what a result should be read with."""
    if alone_or_leading():
        sys.stderr.write(f"warning: {printable(text)}\n")


def begin(settings: Network, command: str, device: str) -> RunLog:
    """Open the run folder of a search; raises ConfigurationError when it holds a run with other settings."""
    before, free = settings_before(settings), (*FREE, *ON_ONE_THREAD)
    where = environment(device)
    return open_run(settings.out, command, settings, settings.seed, where, free, before)


def quoted(path: Path) -> str:
    """The path as a word of a command line."""
    return shlex.quote(str(path))


def numbers_of(line: Mapping[str, object]) -> dict[str, object]:
    """The same with infinite numbers for the words that JSON has for them."""
    return {key: float(value) if value in INFINITE else value for key, value in line.items()}


def without_paths(settings: object) -> dict[str, object]:
    """The settings that decide a figure's numbers, for its JSON."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in FREE}


PATIENCE = 3.0
"""Seconds after which reading or drawing images is shown."""


class Pauses:
    """Called after every step: shows it, and says whether to leave the steps there and save.

    That is at a stop that some process was asked for, and ``minutes`` after the last saving. ``anywhere`` tells
    whether a flag is up in some process; ``batch_size`` is for the rate that is shown beside ``note``.
    """

    def __init__(
        self, minutes: float, anywhere: Callable[[bool], bool], advance: Advance, batch_size: int
    ) -> None:
        self.minutes, self.anywhere, self.advance, self.batch_size = minutes, anywhere, advance, batch_size
        self.note, self.stop = "", None
        self.begun = self.saved_at = time.monotonic()
        self.done = 0

    def __call__(self, *_: int) -> bool:
        """Whether to pause after this step; every process has to ask."""
        now = time.monotonic()
        self.done += 1
        rate = self.done * self.batch_size / max(now - self.begun, 1e-9)
        self.advance(note=f"{self.note}, {rate:.0f} images/s")
        return self.anywhere(self._asked_to_stop() or now - self.saved_at > 60 * self.minutes)

    def saved(self) -> None:
        """To be called when the state is on disk; raises Interrupted if a stop was asked for anywhere."""
        self.saved_at = time.monotonic()
        stopped = self._asked_to_stop()
        if self.anywhere(stopped):
            raise self.stop or Interrupted(signal.SIGTERM)

    def _asked_to_stop(self) -> bool:
        try:
            check_interrupted()
        except Interrupted as stop:
            self.stop = stop
        return self.stop is not None


@contextmanager
def leading_stage(description: str, total: int, leads: bool) -> Iterator[Advance]:
    """The progress of the process that leads; the others show nothing."""
    if not leads:
        yield lambda *_, **__: None
        return
    with stage(description, total) as advance:
        yield advance


def alone_or_leading() -> bool:
    """Whether this process is the one of a command that speaks to the user."""
    return multiprocessing.parent_process() is None and world().leads


@contextmanager
def watched(
    description: str, total: int | None = None, patience: float = PATIENCE
) -> Iterator[Callable[[int], None]]:
    """A stage of work on many images, which can be stopped between two lots of them.

    It is shown once it has taken ``patience`` seconds, and only by the process that leads.
    """
    leads = alone_or_leading()
    with ExitStack() as stack:
        begun, done, show = time.monotonic(), 0, None

        def advance(images: int) -> None:
            nonlocal done, show
            if show is None and leads and time.monotonic() - begun >= patience:
                show = stack.enter_context(stage(description, total))
                show(done)
            if show is not None and images:
                show(images)
            done += images
            check_interrupted()

        advance(0)
        yield advance
