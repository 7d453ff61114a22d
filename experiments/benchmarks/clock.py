"""The work of a measured process: it prepares a call, runs it once for its peak memory, and then for its time.

It needs the standard library and numpy alone, so that another Python environment can use it.
"""

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

LEAST_SECONDS = 0.1
"""CPU seconds that the timed calls of a round take together, at least."""
MOST_CALLS = 50
"""Calls of a round, at most."""

Call = Callable[[], object]
Arrays = list[np.ndarray]
Job = Mapping[str, Any]
Prepare = Callable[[Job], tuple[Call, Callable[[object], Arrays]]]
Answer = dict[str, Any]


class ProcessClock:
    """CPU seconds of this process (all threads), and the rise of its peak memory."""

    def seconds(self, call: Call, number: int = 1) -> float:
        """CPU seconds of one of ``number`` calls."""
        start = time.process_time()
        for _ in range(number):
            call()
        return (time.process_time() - start) / number

    def first(self, call: Call) -> tuple[object, float, float | None]:
        """The result of a call, its CPU seconds, and the rise of the peak memory in bytes (None: unknown)."""
        before = self._resident()
        start = time.process_time()
        result = call()
        return result, time.process_time() - start, self._peak_above(before)

    def _resident(self) -> int | None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak VmHWM
            return _status("VmRSS")
        except (OSError, KeyError):
            return None  # only Linux tells

    def _peak_above(self, before: int | None) -> float | None:
        return None if before is None else float(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[name].split()[0])


def measure_method(
    request: Mapping[str, Any],
    prepare: Prepare,
    clock: ProcessClock,
    rate: Callable[[str], float] | None = None,
) -> Answer:
    """Measure one method on one problem.

    Args:
        request: "job" names the problem and the method. If "save" is a file, the result is written there and nothing
            is measured. Otherwise "warm_up" is the job at tiny sizes, which runs first, and "quick" limits the timed
            calls to one.
        prepare: Takes a job and returns the call to measure, and the function that converts its result to arrays.
        clock: Measures times and peak memory.
        rate: Takes a dtype and returns the FLOP per second of a matrix product; None if it is not measured.

    Returns:
        "first_seconds" and "peak_bytes" of the first call at full size, "seconds" of one later call, the number of
        "calls", and the "rate" of matrix products. {"error": ..., "traceback": ...} if the method failed.
    """
    try:
        return _measured(request, prepare, clock, rate)
    except Exception as error:  # a peer that fails is a result too
        message = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return {"error": message, "traceback": traceback.format_exc()}


def _measured(
    request: Mapping[str, Any], prepare: Prepare, clock: ProcessClock, rate: Callable[[str], float] | None
) -> Answer:
    if request["save"]:
        call, arrays = prepare(request["job"])
        np.savez(request["save"], *arrays(call()))
        return {}
    prepare(request["warm_up"])[0]()  # the first call of a library loads further parts
    call, _ = prepare(request["job"])
    seconds, peak = clock.first(call)[1:]
    answer: Answer = {"first_seconds": seconds, "peak_bytes": peak}
    if rate is not None:
        answer["rate"] = rate(request["job"]["dtype"])
    wanted = 1 if request["quick"] else round(LEAST_SECONDS / max(seconds, 1e-5))
    answer["calls"] = max(1, min(MOST_CALLS, wanted))
    answer["seconds"] = clock.seconds(call, answer["calls"])
    return answer


def answer_request(answered: Callable[[Mapping[str, Any]], Answer]) -> None:
    """Read the request in the program's last argument and print the answer as one JSON line."""
    with contextlib.redirect_stdout(sys.stderr):  # libraries may print
        answer = answered(json.loads(sys.argv[-1]))
    print(json.dumps(answer))
