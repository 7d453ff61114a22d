"""Processes of torchrun that compute the same steps together, each on a part of the data; rank 0 writes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.distributed import world
from mamltheory.runtime.heartbeat import heartbeats
from mamltheory.runtime.interrupt import SIGNALS

MINUTES = 10.0
"""How long a process waits in a step for others that live; one that has died or is stopped is noticed sooner."""


@dataclass(frozen=True)
class Team:
    """The processes that work together; a single one is a team as well."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and shows."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """The device setting of this process: the GPU of its own where several share a machine."""
        several = self.size > 1 and torch.cuda.is_available()
        return f"cuda:{self.local_rank}" if several and name in ("auto", "cuda") else name

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in some process; all of them have to ask."""
        if self.size == 1:
            return flag
        everywhere = torch.tensor([int(flag)])
        dist.all_reduce(everywhere, dist.ReduceOp.MAX)
        return bool(everywhere)

    def check_same(self, value: object, what: str) -> None:
        """Raise ConfigurationError unless all processes have the same value; all of them have to ask."""
        if self.size == 1:
            return
        values = [None] * self.size
        dist.all_gather_object(values, value)
        if any(each != value for each in values):
            raise ConfigurationError(
                f"the processes disagree on {what} ({values}): give all machines the same run folder and data"
            )


@contextmanager
def team(minutes: float = MINUTES) -> Iterator[Team]:
    """The processes that torchrun started, joined; without torchrun a team of one.

    Within the block the first signal is noted (see ``interrupt``) and further ones are ignored: a terminal sends
    Ctrl-C to every process, and torchrun sends it once more. Raises ConfigurationError when another process ends;
    one that has been stopped ends the others (see ``heartbeat``).
    """
    here = world()
    if here.size == 1:
        yield Team()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _explained():
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
        try:
            _ignore_repeated_signals()
            with heartbeats(here.rank, here.size):
                yield Team(here.rank, here.size, here.local_rank)
        finally:
            dist.destroy_process_group()


LOST = ("connection", "gloo", "nccl", "timed out", "timeout", "broken pipe", "tcpstore")
"""What the messages of torch.distributed speak of when another process has gone; it has no class for them."""


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ConfigurationError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, dist.DistError) and not any(word in reason.lower() for word in LOST):
            raise
        raise ConfigurationError(
            f"another process of this job has ended or does not answer ({reason}): its own messages say why; the "
            "same command goes on from the last saved state"
        ) from error


def _ignore_repeated_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        usual = signal.getsignal(number)
        if callable(usual):
            signal.signal(number, _Once(usual))


@dataclass(frozen=True)
class _Once:
    usual: object

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.usual(number, frame)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
