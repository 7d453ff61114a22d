"""Run folders: opening and closing them, progress, and stops between the steps of long runs."""

import dataclasses
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mamltheory.errors import printable
from mamltheory.notebook import Advance
from mamltheory.products import product_route
from mamltheory.runtime.device import environment
from mamltheory.runtime.distributed import world
from mamltheory.runtime.interrupt import Interrupted, check_interrupted
from mamltheory.runtime.progress import stage
from mamltheory.runtime.runlog import RunLog, open_run, recorded
from mamltheory.runtime.scalars import FOLDER as SCALARS
from mamltheory.runtime.scalars import summary_writer
from mamltheory.strict_json import INFINITE

from .program import program_in

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FREE = ("out", "jobs", "device", "tensorboard", "verbose")
"""Settings that do not change the numbers: a run may continue with other values of them."""


class RunSettings(Protocol):
    """The settings that every command with a run folder has."""

    @property
    def out(self) -> Path:
        """The run folder."""

    @property
    def seed(self) -> int:
        """Seed of every random draw."""


def warn(text: str) -> None:
    """Write a warning on standard error, from one process of a command."""
    if alone_or_leading():
        sys.stderr.write(f"warning: {printable(text)}\n")


@contextmanager
def opened_run(
    command: str,
    settings: RunSettings,
    device: torch.device | str = "cpu",
    *,
    folder: Path | None = None,
    config: Mapping[str, Any] | None = None,
    free: Collection[str] = FREE,
    before: Mapping[str, Any] | None = None,
    known: Collection[str] = (),
    processes: int = 1,
    again: str | None = None,
) -> Iterator[RunLog]:
    """The record of a run in its folder, to be closed with the results within the block.

    A block that is stopped or fails is recorded as interrupted or failed. Raises ConfigurationError if the folder
    holds another run or other files, or if another process writes there.

    Args:
        command: The command that is recorded.
        settings: The resolved settings of the command.
        device: Where the run computes; recorded.
        folder: The run folder; None for ``settings.out``.
        config: What is recorded of the settings; None for all of them.
        free: Settings and entries of the environment with which a run may continue when they differ.
        before: Values of settings that the record or this version lacks; None for the defaults.
        known: Names of files that a new run folder may already hold.
        processes: Processes of the run; recorded when there are several.
        again: The command that continues a stopped run; None if nothing is saved before the end.

    Yields:
        The open record.
    """
    where = environment(device, product_route()) | ({"processes": processes} if processes > 1 else {})
    place, kept = folder or settings.out, settings if config is None else config
    writer = summary_writer() if getattr(settings, "tensorboard", False) else None
    log = open_run(place, command, kept, settings.seed, where, free, before, known, again is not None)
    with recorded(log, again):
        if writer is not None:
            log = dataclasses.replace(log, scalars=writer(str(place / SCALARS)))
        yield log


def say_if_finished(log: RunLog, done: str) -> None:
    """Print that a run had come to its end before, if it had, and that nothing is searched or trained again."""
    if log.was_finished:
        print(f"already finished in {log.directory}: nothing is {done} again")


@contextmanager
def continued_by(command: str) -> Iterator[None]:
    """A block with saved work: a stop within it names the command that continues."""
    try:
        yield
    except Interrupted as stop:
        raise stop.saved(command) from None


def continue_with(command: str, settings: RunSettings, processes: int = 1) -> str:
    """The command line that continues a run in its folder, in so many processes."""
    return f"{program_in(processes)} {command} --config {quoted(settings.out)}"


def quoted(path: Path) -> str:
    """The path as a word of a command line."""
    return shlex.quote(str(path))


def numbers_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line with infinite numbers in place of the words that stand for them in JSON."""
    return {key: float(value) if value in INFINITE else value for key, value in line.items()}


def without_paths(settings: "DataclassInstance") -> dict[str, Any]:
    """The settings that decide a figure's numbers, for its JSON."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if key not in FREE}


PATIENCE = 3.0
"""Seconds after which reading or drawing images is shown."""


class CheckpointTimer:
    """Decides after every step of a training whether to pause it and save the state.

    A pause is due when a process received a stop, and ``minutes`` after the last checkpoint.

    Attributes:
        minutes: Time between checkpoints.
        anywhere: Returns whether a flag is set in any process; every process must call it.
        advance: Shows the progress of a step.
        batch_size: Images per step, for the rate that is shown.
        note: Text that is shown with the rate.
        stop: The stop that this process received.
    """

    def __init__(
        self, minutes: float, anywhere: Callable[[bool], bool], advance: Advance, batch_size: int
    ) -> None:
        self.minutes, self.anywhere, self.advance, self.batch_size = minutes, anywhere, advance, batch_size
        self.note = ""
        self.stop: Interrupted | None = None
        self.begun = self.saved_at = time.monotonic()
        self.done = 0

    def __call__(self, *_: int) -> bool:
        """Whether to pause after this step; every process must call it."""
        now = time.monotonic()
        self.done += 1
        rate = self.done * self.batch_size / max(now - self.begun, 1e-9)
        self.advance(note=f"{self.note}, {rate:.0f} images/s")
        return self.anywhere(self._asked_to_stop() or now - self.saved_at > 60 * self.minutes)

    def saved(self) -> None:
        """Note that the state is on disk; raises Interrupted if any process received a stop."""
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
    """The progress display of the leading process; other processes show nothing."""
    if not leads:
        yield lambda *_, **__: None
        return
    with stage(description, total) as advance:
        yield advance


def alone_or_leading() -> bool:
    """Whether this is the process of a command that writes to the user."""
    return multiprocessing.parent_process() is None and world().leads


@contextmanager
def image_stage(
    description: str, total: int | None = None, patience: float = PATIENCE, note: str = ""
) -> Iterator[Callable[[int], None]]:
    """A stage of work on many images, shown once it has taken ``patience`` seconds; it can be stopped.

    Args:
        description: What the progress display says.
        total: Number of images, if known.
        patience: Seconds before the stage is shown.
        note: Text that is shown with it.

    Yields:
        A function that takes the number of images that were processed.
    """
    leads = alone_or_leading()
    with ExitStack() as stack:
        begun, done, show = time.monotonic(), 0, None

        def advance(images: int) -> None:
            nonlocal done, show
            if show is None and leads and time.monotonic() - begun >= patience:
                show = stack.enter_context(stage(description, total))
                show(done, note)
            if show is not None and images:
                show(images, note)
            done += images
            check_interrupted()

        advance(0)
        yield advance
