"""The measured processes: a fresh one for each method and round, which prints what it measured as one JSON line."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.benchmarks import worker
from experiments.benchmarks.cases import Method
from experiments.benchmarks.clock import Answer
from experiments.benchmarks.settings import Benchmark
from mamltheory.runtime.folders import BENCHMARK_LOG
from mamltheory.runtime.interrupt import check_interrupted

Ask = Callable[[Method, Mapping[str, object]], Answer]
"""Takes a method and a request of :func:`experiments.benchmarks.clock.measured`, and returns its answer."""

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


def ask_process(settings: Benchmark, allocator: str, method: Method, request: Mapping[str, object]) -> Answer:
    """Measure a method in a fresh process; where the settings are quick, in this one.

    Args:
        settings: names the device, the folder of the log, and the Python of neural-tangents.
        allocator: a key of ``ALLOCATORS``.
        method: decides which Python runs.
        request: see :func:`experiments.benchmarks.clock.measured`.

    Returns:
        The answer; {"error": ...} when the method failed or the process ended without one. The log says more.

    Raises:
        Interrupted: A stop was asked for meanwhile.
    """
    request = {**request, "device": settings.device}
    log = settings.runs / BENCHMARK_LOG
    if settings.quick and method.interpreter is None:
        answer = worker.answered(request)
    else:
        python = sys.executable if method.interpreter is None else str(settings.neural_tangents_python)
        module = "worker" if method.interpreter is None else "tangents_worker"
        command = [python, "-m", f"experiments.benchmarks.{module}", json.dumps(request)]
        with log.open("ab") as errors:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(allocator),
                check=False,
            )
        answer = _read(done)
    check_interrupted()
    if "error" in answer:
        with log.open("a", encoding="utf-8") as errors:
            errors.write(f"{method.name}: {answer.pop('traceback', answer['error'])}\n")
    return answer


def _environment(allocator: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    paths = os.pathsep.join(filter(None, (str(ROOT), clean.get("PYTHONPATH"))))
    return clean | ONE_THREAD | ALLOCATORS[allocator] | {"PYTHONPATH": paths}


def _read(done: subprocess.CompletedProcess) -> Answer:
    if done.returncode or not done.stdout:
        return {"error": f"the process ended with status {done.returncode}; it may have run out of memory"}
    return json.loads(done.stdout)
