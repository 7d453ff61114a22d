"""Processes that work together notice when one of them is stopped, or when its machine is gone.

Every process counts up in a separate thread, also while it computes. So a silent process does not compute a long step:
it does nothing at all. A process that ends is noticed by its connections, without this module.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

SECONDS_BETWEEN_BEATS = 2.0
SECONDS_OF_SILENCE = 25.0
"""After this time without a beat a process counts as stopped. torchrun needs up to 30 s more to end it."""
LEFT = 1 << 40
"""The count of a process that has finished; no process can beat that often."""
LOST_EXIT_CODE = 2


@dataclass(eq=False)
class Silence:
    """How long each of several counters has stood still, as seen by an observer that looks every few seconds.

    Time during which the observer itself was stopped does not count.

    Attributes:
        seconds: how long a counter may stand still.
        between: seconds between two looks.
        clock: returns the time in seconds.
        looked: time of the last look.
        seen: the counters at the last look.
        quiet: for how many seconds each counter has stood still.
    """

    seconds: float = SECONDS_OF_SILENCE
    between: float = SECONDS_BETWEEN_BEATS
    clock: Callable[[], float] = time.monotonic
    looked: float | None = None
    seen: dict[Any, int] = field(default_factory=dict)
    quiet: dict[Any, float] = field(default_factory=dict)

    def of(self, counters: Mapping[Any, int]) -> list[Any]:
        """The names of the counters that stood still for too long; a counter at zero has not begun yet."""
        now = self.clock()
        passed = 0.0 if self.looked is None else min(now - self.looked, 2 * self.between)
        self.looked = now
        for name, count in counters.items():
            still = count == self.seen.get(name, 0) and 0 < count < LEFT
            self.quiet[name] = self.quiet.get(name, 0.0) + passed if still else 0.0
            self.seen[name] = count
        return [name for name in counters if self.quiet[name] >= self.seconds]


def beat(once: Callable[[], object], between: float = SECONDS_BETWEEN_BEATS) -> Callable[[], None]:
    """Call ``once`` now and every few seconds in a separate thread, until it raises.

    Args:
        once: the function to call.
        between: seconds between two calls.

    Returns:
        A function that ends the thread.
    """
    ended = threading.Event()

    def repeat() -> None:
        with suppress(Exception):
            once()
            while not ended.wait(between):
                once()

    threading.Thread(target=repeat, daemon=True).start()
    return ended.set


@contextmanager
def heartbeats(rank: int, size: int, silence: float = SECONDS_OF_SILENCE) -> Iterator[None]:
    """Within the block this rank of a process group beats, and ends its own process when another rank is silent.

    Nothing else ends a wait for a silent rank, which may last an hour; saved states stay whole. The beats pass through
    the store at which the ranks met.

    Args:
        rank: number of this process.
        size: number of processes.
        silence: seconds without a beat after which a rank counts as stopped.

    Yields:
        Nothing.
    """
    between = min(SECONDS_BETWEEN_BEATS, silence / 8)
    group = f"mamltheory/beats/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    store, others = _connection(), [other for other in range(size) if other != rank]
    ranks, meeting = (Silence(silence, between) for _ in range(2))
    exchanges, there = 1, True

    def exchange() -> None:
        nonlocal exchanges, there
        try:
            store.add(f"{group}/{rank}", 1)
            counters = {other: store.add(f"{group}/{other}", 0) for other in others}
        except Exception:  # the process that holds the store has ended, which its connections show
            there = False
            raise
        exchanges += 1
        if lost := ranks.of(counters):
            _end(f"rank {lost[0]} has given no sign of life for {silence:g} s")

    def look_at_the_store() -> None:
        if there and meeting.of({"store": exchanges}):
            _end(
                f"the process at which the ranks meet, the first as a rule, has not answered for {silence:g} s"
            )

    stops = [beat(look_at_the_store, between), beat(exchange, between)]
    try:
        yield
    finally:
        with suppress(Exception):
            store.add(f"{group}/{rank}", LEFT)
        for stop in stops:
            stop()


def _connection() -> dist.Store:
    """A separate connection to the store of the process group, which waits for no other rank."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60)
    )


def _end(reason: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(
            f"error: {reason}: it is stopped, or its machine is gone; the same command continues from what was "
            "saved\n"
        )
        sys.stderr.flush()
    os._exit(LOST_EXIT_CODE)
