"""A measured process and the one that drives it: JSON lines over a socket; the measurements themselves.

Needs the standard library and numpy alone, so that a peer in an environment of its own can speak it. Every
request is an object with a "do"; every answer is one with the result or an "error".
"""

import json
import selectors
import socketserver
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

Call = Callable[[], object]
Arrays = list[np.ndarray]


class ProcessClock:
    """CPU seconds of this process (all of its threads), and its peak memory above what it held before."""

    def seconds(self, call: Call, number: int = 1) -> float:
        """CPU seconds of one of ``number`` calls."""
        start = time.process_time()
        for _ in range(number):
            call()
        return (time.process_time() - start) / number

    def first(self, call: Call) -> tuple[object, float, float | None]:
        """What a call returns, its CPU seconds, and the bytes by which it raised the peak (None: unknown)."""
        before = self._resident()
        start = time.process_time()
        result = call()
        return result, time.process_time() - start, self._peak_above(before)

    def _resident(self) -> int | None:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak VmHWM back to the present
            return _status("VmRSS")
        except (OSError, KeyError):
            return None  # only Linux tells

    def _peak_above(self, before: int | None) -> float | None:
        return None if before is None else float(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(dict(line.split(":", 1) for line in lines)[name].split()[0])


class Server:
    """Answers the requests "prepare", "first", "seconds" and "rate" about the prepared calls by name.

    prepare: (job) -> (call, arrays): the call to measure, and what turns its result into arrays.
    rate: FLOP per second of a matrix product here, in a dtype.
    """

    def __init__(
        self,
        prepare: Callable[[Mapping[str, object]], tuple[Call, Callable[[object], Arrays]]],
        rate: Callable[[str], float],
        clock: ProcessClock,
    ):
        self.prepare, self.rate, self.clock = prepare, rate, clock
        self.jobs: dict[str, tuple[Call, Callable[[object], Arrays]]] = {}

    def answer(self, request: Mapping[str, object]) -> dict[str, object]:
        """The answer to one request."""
        name = request.get("name")
        if request["do"] == "prepare":
            self.jobs.pop(name, None)
            self.jobs[name] = self.prepare(request["job"])
            return {}
        if request["do"] == "rate":
            return {"rate": self.rate(request["dtype"])}
        call, arrays = self.jobs[name]
        if request["do"] == "seconds":
            return {"seconds": self.clock.seconds(call, request["number"])}
        result, seconds, peak = self.clock.first(call)
        if request.get("save"):
            np.savez(request["save"], *arrays(result))
        return {"seconds": seconds, "peak": peak}

    def serve(self, requests: Iterable[bytes], answers: BinaryIO) -> None:
        """Answer request after request, until the other side hangs up."""
        for line in requests:
            try:
                answer = self.answer(json.loads(line))
            except Exception as error:  # a peer that fails is a result too
                traceback.print_exc()
                answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


class Listener(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Every connection is served by a process of its own, a copy of this one with its libraries loaded."""

    max_children = 64


def listen(address: str, serve: Callable[[Iterable[bytes], BinaryIO], None]) -> None:
    """Accept connections at a socket's path; ends when standard input does."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            serve(self.rfile, self.wfile)

    with Listener(address, Handler) as listener:
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        # the name appears with bind, before connections are taken: this line says that they are
        print("listening", flush=True)
        while all(key.fileobj is listener for key, _ in selector.select()):
            listener.handle_request()
