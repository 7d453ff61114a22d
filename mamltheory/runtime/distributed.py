"""The processes of torchrun: rank 0 leads, the others compute what it sends them; the results are those of one.

Only rank 0 has a state, writes files and decides; what the others return is put in the order of the items. So the
result cannot depend on the number of processes, and no two of them can disagree. Messages are a few kilobytes of
host memory, which gloo carries whatever the devices are; it also notices at once when a process has ended.
"""

import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.heartbeat import SECONDS_OF_SILENCE, heartbeats
from mamltheory.runtime.interrupt import Interrupted, check_interrupted
from mamltheory.runtime.workers import Mapper, one_thread, workers

Item = TypeVar("Item")
Result = TypeVar("Result")

MINUTES = 60.0
"""How long a process waits for another that lives: longer than any item takes. A stopped one is noticed sooner."""


class RankLost(ConfigurationError):
    """A process of torchrun has ended or does not answer; what it said itself tells why."""


@dataclass(frozen=True)
class World:
    """The rank of a process among ``size``, and its rank on its machine (the number of its GPU).

    Raises ConfigurationError for ranks outside the world.
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
        """Whether this process is the one that decides and writes files."""
        return self.rank == 0


def world(environ: Mapping[str, str] | None = None) -> World:
    """The world that torchrun describes in RANK, WORLD_SIZE and LOCAL_RANK; a world of one without it.

    Raises ConfigurationError when only a part of it is there, or not in whole numbers.
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
        return World(*(int(environ[name]) for name in names))
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error


@contextmanager
def joined(minutes: float = MINUTES, silence: float = SECONDS_OF_SILENCE) -> Iterator[bool]:
    """Whether this process is to run the command. Under torchrun rank 0 is; the others have served it by then.

    Within the block :func:`spread_over` gives rank 0 the mapper over all ranks. Each rank sees one GPU, its own.
    Raises RankLost when a process ends or does not answer within ``minutes``. A process that has been stopped, for
    ``silence`` seconds, ends the others (see ``heartbeat``).
    """
    here = world()
    if here.size == 1:
        yield True
        return
    _see_one_gpu(here.local_rank)
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
                    True  # the others hear of it when this process ends: a word to one that hangs could block
                )
                raise
            finally:
                if here.leads and not lost:
                    _dismiss(here.size)
    finally:
        dist.destroy_process_group()


@contextmanager
def spread_over(jobs: int) -> Iterator[Mapper]:
    """A mapper over the ranks of :func:`joined`, each on one thread, or without torchrun over ``jobs`` processes.

    The ranks work in step, an item each; results come in the order of the items. A stop that any of them is asked
    for ends all of them after their items. Raises ConfigurationError for several jobs in each of several ranks.
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
    """How many processes :func:`spread_over` gives items to at a time."""
    return dist.get_world_size() if dist.is_initialized() else jobs


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


class _Outcome(NamedTuple):
    """What became of an item: its result, an error, or a stop (which may come with a result)."""

    finished: bool = False
    result: object = None
    error: Exception | None = None
    stop: int | None = None


def _outcome(function: Callable[[Item], Result], item: Item) -> _Outcome:
    try:
        outcome = _Outcome(finished=True, result=function(item))
    except Interrupted as stop:
        return _Outcome(stop=stop.signal_number)
    except Exception as error:
        return _Outcome(error=_portable(error))
    try:
        check_interrupted()
    except Interrupted as stop:
        return outcome._replace(stop=stop.signal_number)
    return outcome


def _portable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever a class of its own makes of it
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _serve() -> None:
    """Compute what rank 0 sends, until it sends nothing more."""
    while (task := _receive(0)) is not None:
        _send(_outcome(*task), 0)


def _dismiss(size: int) -> None:
    for rank in range(1, size):
        _send(None, rank)


def _send(value: object, rank: int) -> None:
    with _explained(f"rank {rank} is gone"):
        dist.send_object_list([value], rank)


def _receive(rank: int) -> object:
    found = [None]
    with _explained(f"rank {rank} has ended, or does not answer"):
        dist.recv_object_list(found, rank)
    return found[0]


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all of torch.distributed's derive from it
        # gloo: "[file:line] what happened. General remarks": the middle is what helps
        reason = re.sub(r"^\[.*?\] |\. This is typically.*", "", f"{error}".partition("\n")[0])
        raise RankLost(
            f"{what} ({reason}): its own messages say why; the same command goes on from what has been saved, "
            "with any number of processes"
        ) from error


def _see_one_gpu(local_rank: int) -> None:
    """Before the first use of CUDA: the rank's GPU becomes the only one, cuda:0, in its eyes."""
    if torch.version.cuda is None:
        return
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    if names:
        os.environ["CUDA_VISIBLE_DEVICES"] = names[local_rank % len(names)]
