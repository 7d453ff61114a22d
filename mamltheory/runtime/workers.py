"""One pure function over many items, in this process or in several; the results do not depend on which."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TypeVar

from mamltheory.errors import ConfigurationError

Item = TypeVar("Item")
Result = TypeVar("Result")


Mapper = Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[tuple[Item, Result]]]
"""(function, items) -> (item, function(item)) as the results come in."""


@contextmanager
def workers(jobs: int = 1) -> Iterator[Mapper]:
    """A mapper over ``jobs`` processes of one thread each, which stay alive within the block.

    jobs = 1 stays in this process; with more, functions and items must be picklable. When the caller stops
    early, what has not begun is dropped. Raises ConfigurationError for jobs below 1.
    """
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}: expected at least 1")
    if jobs == 1:
        yield lambda function, items: ((item, function(item)) for item in items)
        return
    # spawn: a forked child would inherit the locks of torch's thread pool, and may hang
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin_worker)

    def spread(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
        with _single_threaded_children():
            futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()

    try:
        yield spread
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _single_threaded_children:
    """Children read the thread counts from the environment when they load their libraries."""

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __enter__(self) -> None:
        self.before = {name: os.environ.get(name) for name in self.names}
        os.environ.update(dict.fromkeys(self.names, "1"))

    def __exit__(self, *_: object) -> None:
        for name, value in self.before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
