"""The measured processes: one for each method, each a copy of one that has loaded its libraries.

Or one process for all methods, where only the flow matters.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mamltheory.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_PLATFORMS": "cpu",
}
ALLOCATORS = {
    "default": {},
    "tuned": {
        "MALLOC_MMAP_THRESHOLD_": "33554432",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "MALLOC_TOP_PAD_": "268435456",
    },
}
"""Settings of glibc's allocator. "tuned" keeps freed memory, so that it need not be mapped and cleared again."""


class Worker:
    """One measured process, a connection to it: it answers one request at a time."""

    def __init__(self, address: str):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(address)
        self.stream = self.socket.makefile("rwb")

    def ask(self, **request: object) -> dict[str, object]:
        """The answer to one request; {"error": …} when it failed or the process is gone."""
        try:
            self.stream.write(json.dumps(request).encode() + b"\n")
            self.stream.flush()
            line = self.stream.readline()
        except OSError:
            line = b""
        return json.loads(line) if line else {"error": "the process is gone, for want of memory perhaps"}

    def close(self) -> None:
        """Hang up, which ends the process."""
        with contextlib.suppress(OSError):
            self.stream.close()
        self.socket.close()


class Source:
    """A process with its libraries loaded, of which every measured process is a copy.

    command: the program, whose first argument is the path of a socket; log: where its errors go.
    """

    def __init__(self, command: Sequence[str], arguments: Sequence[str], allocator: str, log: Path):
        self.folder = tempfile.TemporaryDirectory()
        self.address = str(Path(self.folder.name) / "socket")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        paths = os.pathsep.join(filter(None, (str(ROOT), clean.get("PYTHONPATH"))))
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*command, self.address, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=clean | ONE_THREAD | ALLOCATORS[allocator] | {"PYTHONPATH": paths},
                start_new_session=True,  # Ctrl-C is the driver's; this one ends with its input
            )
        self.ready = bool(self.process.stdout.readline())

    def worker(self) -> Worker:
        """A new process; raises ConfigurationError when the program could not even load."""
        if not self.ready:
            raise ConfigurationError("a measured process could not start: see workers.log beside the results")
        return Worker(self.address)

    def close(self) -> None:
        """End the process; its copies end when they are hung up on."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.folder.cleanup()


class Workers:
    """Measured processes by name, started when first asked for; all end with the block.

    shared: one process for all that run in this Python.  interpreters: other Pythons by the peer's name.
    """

    def __init__(
        self,
        device: str,
        folder: Path,
        interpreters: Mapping[str, Path | None],
        shared: bool = False,
    ):
        self.device, self.folder = device, folder
        self.interpreters, self.shared = interpreters, shared
        self.allocator = "default"
        self.sources: dict[tuple[str | None, str], Source] = {}
        self.started: dict[str, Worker] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        for source in self.sources.values():
            source.close()

    def use(self, allocator: str) -> None:
        """Take processes with this allocator from now on."""
        if allocator != self.allocator:
            self.close()
        self.allocator = allocator

    def close(self, *names: str) -> None:
        """End the processes of these names, all for none; a shared one goes on until all end."""
        for name in names or tuple(self.started):
            if name in self.started:
                self.started.pop(name).close()

    def get(self, name: str, interpreter: str | None = None) -> Worker:
        """The process of that name."""
        name = "shared" if self.shared and interpreter is None else name
        if name not in self.started:
            self.started[name] = self._source(interpreter).worker()
        return self.started[name]

    def _source(self, interpreter: str | None) -> Source:
        key = (interpreter, self.allocator)
        if key not in self.sources:
            program, module, arguments = sys.executable, "worker", [self.device]
            if interpreter is not None:
                program, module, arguments = str(self.interpreters[interpreter]), "tangents_worker", []
            command = [program, "-m", f"experiments.benchmarks.{module}"]
            self.sources[key] = Source(command, arguments, self.allocator, self.folder / "workers.log")
        return self.sources[key]
