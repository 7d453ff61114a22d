"""Processes that work together notice when one of them has been stopped, or its machine is gone.

Every process beats in a thread of its own, also while it computes: one that is silent does not compute a long step, it
does nothing at all. A process that ends is noticed without this, by its connections.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch.distributed as dist

SECONDS_BETWEEN_BEATS = 2.0
SECONDS_OF_SILENCE = 25.0
"""After so long without a beat a process counts as stopped. torchrun needs up to 30 more to end one that is."""
LEFT = 1 << 40
"""More beats than there can be: of a process that is done, and owes no more."""
LOST_EXIT_CODE = 2


@dataclass
class Silence:
    """For how long each of several counters has not moved, as seen by one who looks every few seconds.

    A looker who was stopped himself does not count that time against the others.
    """

    seconds: float = SECONDS_OF_SILENCE
    between: float = SECONDS_BETWEEN_BEATS
    clock: Callable[[], float] = time.monotonic
    looked: float | None = None
    seen: dict[object, int] = field(default_factory=dict)
    quiet: dict[object, float] = field(default_factory=dict)

    def of(self, counters: Mapping[object, int]) -> list[object]:
        """Those among the counters that have been silent for too long; one at zero has not begun yet."""
        now = self.clock()
        passed = 0.0 if self.looked is None else min(now - self.looked, 2 * self.between)
        self.looked = now
        for name, count in counters.items():
            still = count == self.seen.get(name, 0) and 0 < count < LEFT
            self.quiet[name] = self.quiet.get(name, 0.0) + passed if still else 0.0
            self.seen[name] = count
        return [name for name in counters if self.quiet[name] >= self.seconds]


def beat(once: Callable[[], object], between: float = SECONDS_BETWEEN_BEATS) -> Callable[[], None]:
    """Call ``once`` now and every few seconds in a thread of its own, until it raises or what is returned is called."""
    ended = threading.Event()

    def go_on() -> None:
        with suppress(Exception):
            once()
            while not ended.wait(between):
                once()

    threading.Thread(target=go_on, daemon=True).start()
    return ended.set


@contextmanager
def heartbeats(rank: int, size: int, silence: float = SECONDS_OF_SILENCE) -> Iterator[None]:
    """Within the block this rank of a process group beats, and ends its process when another one is silent.

    That is the only way out of a wait for it, which may last an hour; what has been saved is whole. The beats go
    through the store that the ranks met at.
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
        except Exception:  # the store has gone with its process, which the connections to that tell
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
    """A connection of its own to the store of the process group, which waits for nobody."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60)
    )


def _end(reason: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(
            f"error: {reason}: it is stopped, or its machine is gone; the same command goes on from what has been "
            "saved\n"
        )
        sys.stderr.flush()
    os._exit(LOST_EXIT_CODE)
