"""The processes that torchrun starts, in two forms of work.

``joined`` and ``spread_over``: rank 0 holds the state, writes the files and decides, and the other ranks compute the
items that it sends. Results come in the order of the items, so they do not depend on the number of processes.
Messages are a few kilobytes of host memory. gloo carries them on every device and notices at once when a process ends.

``data_parallel``: every rank computes the same steps, each on its part of a batch, and rank 0 writes.
"""

import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import islice
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.device import choose_device, take_gpu
from mamltheory.runtime.heartbeat import SECONDS_OF_SILENCE, heartbeats
from mamltheory.runtime.interrupt import SIGNALS, Interrupted, check_interrupted
from mamltheory.runtime.workers import Mapper, one_thread, workers

Item = TypeVar("Item")
Result = TypeVar("Result")

MINUTES_PER_ITEM, MINUTES_PER_STEP = 60.0, 10.0
"""How long a process waits for one that is alive: longer than any item or step takes. A dead one is noticed sooner."""
SIGNS_OF_LOSS = ("connection", "gloo", "nccl", "timed out", "timeout", "broken pipe", "tcpstore")
"""Words in the messages of torch.distributed when another process has gone; it has no exception class for that."""


class RankLost(ConfigurationError):
    """A process of torchrun has ended or does not answer. Its own output says why."""


@dataclass(frozen=True)
class World:
    """The processes that work together, seen from one of them; a single process is a world of one.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, which is the number of its GPU.

    Raises:
        ConfigurationError: a rank is outside the world.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.size):
            raise ConfigurationError(
                f"rank {self.rank}, local {self.local_rank}, of {self.size}: expected 0 <= rank < size"
            )

    @property
    def leads(self) -> bool:
        """Whether this process decides, writes files and reports progress."""
        return self.rank == 0

    def device_name(self, name: str) -> str:
        """The device setting of this process: its own GPU where several processes share a machine."""
        several = self.size > 1 and torch.cuda.is_available()
        return f"cuda:{self.local_rank}" if several and name in ("auto", "cuda") else name

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true in some rank (an all-reduce); every rank must call it."""
        if self.size == 1:
            return flag
        everywhere = torch.tensor([int(flag)])
        dist.all_reduce(everywhere, dist.ReduceOp.MAX)
        return bool(everywhere)

    def check_same(self, value: object, what: str) -> None:
        """Compare a value over the ranks; every rank must call it.

        Args:
            value: what this rank has; it is pickled.
            what: its name in the message.

        Raises:
            ConfigurationError: two ranks have different values.
        """
        if self.size == 1:
            return
        values = [None] * self.size
        dist.all_gather_object(values, value)
        if any(each != value for each in values):
            raise ConfigurationError(
                f"the processes disagree on {what} ({values}): give all machines the same run folder and data"
            )


def world(environ: Mapping[str, str] | None = None) -> World:
    """The world that torchrun describes in RANK, WORLD_SIZE and LOCAL_RANK.

    Args:
        environ: the environment variables; those of this process if None.

    Returns:
        The world; a world of one where none of the variables is set.

    Raises:
        ConfigurationError: some of the variables are missing, or are not whole numbers.
    """
    environ = os.environ if environ is None else environ
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    present = [name for name in names if name in environ]
    if not present:
        return World()
    if len(present) < len(names):
        missing = ", ".join(name for name in names if name not in present)
        raise ConfigurationError(
            f"{', '.join(present)} set without {missing}: start with torchrun, or unset them"
        )
    try:
        rank, size, local_rank = (int(environ[name]) for name in names)
    except ValueError as error:
        raise ConfigurationError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error
    return World(rank, size, local_rank)


# --- rank 0 sends items, the other ranks compute them ---


@contextmanager
def joined(minutes: float = MINUTES_PER_ITEM, silence: float = SECONDS_OF_SILENCE) -> Iterator[bool]:
    """Join the ranks of torchrun; the ranks above 0 serve rank 0 until it leaves the block.

    Within the block :func:`spread_over` gives rank 0 a mapper over all ranks. Each rank has one GPU, which
    :func:`shared_name` names.

    Args:
        minutes: how long a rank waits for an answer of another that is alive.
        silence: seconds after which a stopped process ends the others (see ``heartbeat``).

    Yields:
        Whether this process is to run the command: rank 0, or any process without torchrun.

    Raises:
        RankLost: a process ends or does not answer.
    """
    here = world()
    if here.size == 1:
        yield True
        return
    take_gpu(here.local_rank)
    with _explained("a process did not start"):
        dist.init_process_group("gloo", timeout=timedelta(minutes=minutes))
    lost = False
    try:
        with heartbeats(here.rank, here.size, silence):
            try:
                if here.leads:
                    yield True
                else:
                    with one_thread():
                        _serve()
                    yield False
            except RankLost:
                lost = (
                    True  # the other ranks notice when this process ends; a message to a hung one could block
                )
                raise
            finally:
                if here.leads and not lost:
                    for rank in range(1, here.size):
                        _send(None, rank)
    finally:
        dist.destroy_process_group()


@contextmanager
def spread_over(jobs: int) -> Iterator[Mapper]:
    """A mapper over the ranks of :func:`joined`, or over local processes without torchrun.

    Every rank computes on one thread. The ranks work in lockstep, one item each. A stop that one of them is asked
    for ends all of them after their items.

    Args:
        jobs: number of processes without torchrun; under torchrun it must be 1.

    Yields:
        The mapper; its results come in the order of the items.

    Raises:
        ConfigurationError: several jobs are asked for in each of several ranks.
    """
    if not dist.is_initialized():
        with workers(jobs) as mapper:
            yield mapper
        return
    if jobs != 1:
        raise ConfigurationError(
            f"jobs is {jobs} under torchrun, whose processes share the work: leave out --jobs, or torchrun"
        )
    with one_thread():
        yield _map_over_ranks


def processes(jobs: int) -> int:
    """How many items :func:`spread_over` computes simultaneously."""
    return dist.get_world_size() if dist.is_initialized() else jobs


def shared_name(device: torch.device) -> str:
    """The name of a device for all ranks of :func:`joined`: "cuda" is the own GPU of each of them."""
    return device.type if dist.is_initialized() else str(device)


class _Outcome(NamedTuple):
    """The result of an item, an error, or a stop (which may come with a result)."""

    finished: bool = False
    result: Any = None
    error: Exception | None = None
    stop: int | None = None


def _map_over_ranks(
    function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Result]]:
    rest, size = iter(items), dist.get_world_size()
    while block := list(islice(rest, size)):
        check_interrupted()
        for rank, item in enumerate(block[1:], 1):
            _send((function, item), rank)
        outcomes = [_outcome(function, block[0])]
        outcomes += [_receive(rank) for rank in range(1, len(block))]
        for rank, (item, outcome) in enumerate(zip(block, outcomes, strict=True)):
            if outcome.error is not None:
                outcome.error.add_note(f"on rank {rank} of {size}")
                raise outcome.error
            if outcome.finished:
                yield item, outcome.result
        for outcome in outcomes:
            if outcome.stop is not None:
                raise Interrupted(outcome.stop)


def _outcome(function: Callable[[Item], Result], item: Item) -> _Outcome:
    try:
        outcome = _Outcome(finished=True, result=function(item))
    except Interrupted as stop:
        return _Outcome(stop=stop.signal_number)
    except Exception as error:
        return _Outcome(error=_picklable(error))
    try:
        check_interrupted()
    except Interrupted as stop:
        return outcome._replace(stop=stop.signal_number)
    return outcome


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an exception class may define its pickling in any way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _serve() -> None:
    """Compute the items of rank 0 until it sends None."""
    while (task := _receive(0)) is not None:
        _send(_outcome(*task), 0)


def _send(value: object, rank: int) -> None:
    with _explained(f"rank {rank} is gone"):
        dist.send_object_list([value], rank)


def _receive(rank: int) -> Any:
    found = [None]
    with _explained(f"rank {rank} has ended, or does not answer"):
        dist.recv_object_list(found, rank)
    return found[0]


@contextmanager
def _explained(what: str, signs: Sequence[str] = ()) -> Iterator[None]:
    """Raise RankLost instead of a RuntimeError; with ``signs``, only if its message contains one of them."""
    try:
        yield
    except RuntimeError as error:  # every exception of torch.distributed derives from it
        # gloo: "[file:line] what happened. General remarks": the middle is what helps
        reason = re.sub(r"^\[.*?\] |\. This is typically.*", "", f"{error}".strip().partition("\n")[0])
        about_ranks = isinstance(error, dist.DistError) or any(sign in reason.lower() for sign in signs)
        if signs and not about_ranks:
            raise
        where = "the last saved state" if signs else "what was saved, with any number of processes"
        raise RankLost(
            f"{what} ({reason or type(error).__name__}): its own messages say why; the same command continues from "
            f"{where}"
        ) from error


# --- every rank computes the same steps on its part of a batch ---


@contextmanager
def data_parallel(device: str = "auto") -> Iterator[World]:
    """Join the ranks of torchrun for steps that they compute together.

    Within the block the first signal is noted (see ``interrupt``) and further ones are ignored: a terminal sends
    Ctrl-C to every process, and torchrun sends it once more. A stopped process ends the others (see ``heartbeat``);
    when one ends, the others raise RankLost.

    Args:
        device: the device setting, see :meth:`World.device_name`.

    Yields:
        The world; a world of one without torchrun. ConfigurationError is raised in a rank that has no GPU to itself.
    """
    here = world()
    if here.size == 1:
        yield here
        return
    own, backend = choose_device(here.device_name(device)).device, "gloo"
    if own.type == "cuda":
        take_gpu(here.local_rank)
        backend = "cpu:gloo,cuda:nccl"
    device_id = own if own.type == "cuda" else None
    # The block holds the caller's own code, so only errors that speak of a lost process are translated.
    with _explained("another process of this job has ended or does not answer", SIGNS_OF_LOSS):
        dist.init_process_group(backend, timeout=timedelta(minutes=MINUTES_PER_STEP), device_id=device_id)
        try:
            _ignore_repeated_signals()
            with heartbeats(here.rank, here.size):
                yield here
        finally:
            dist.destroy_process_group()


def _ignore_repeated_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        usual = signal.getsignal(number)
        if callable(usual):
            signal.signal(number, partial(_once, usual))


def _once(usual: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    usual(number, frame)
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
