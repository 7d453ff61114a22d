"""The measured processes: a fresh one for each method and round.

``python -m experiments.benchmarks.processes REQUEST`` measures one method and prints the answer as one JSON line.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mamltheory.runtime.device import choose_device, set_threads
from mamltheory.runtime.folders import BENCHMARK_LOG
from mamltheory.runtime.interrupt import check_interrupted

from ..program import PACKAGE, ROOT
from .catalogue import GROUPS
from .clock import (
    Answer,
    Arrays,
    Call,
    Job,
    Prepare,
    ProcessClock,
    answer_request,
    measure_method,
)
from .problems import Method
from .settings import Benchmark

PRODUCT = {"cpu": 1536, "cuda": 8192}
"""Side of the square matrices whose product gives the rate."""
IMAGES = 32
"""Images in channels last that a matrix is taken for: torch hands fewer than 16 to a slower convolution."""


class CudaClock(ProcessClock):
    """Seconds between events on the device, and the rise of the peak of its allocator."""

    def seconds(self, call: Call, number: int = 1) -> float:
        """Seconds on the device of one of ``number`` calls, from an idle device to an idle device."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / number

    def first(self, call: Call) -> tuple[object, float, float | None]:
        """The same as on the CPU, with the memory of the device."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, results = torch.cuda.memory_allocated(), []
        seconds = self.seconds(lambda: results.append(call()))
        return results[0], seconds, float(torch.cuda.max_memory_allocated() - before)


def arrays_of(result: Tensor | tuple[Tensor, ...]) -> Arrays:
    """The result of a method as arrays."""
    parts = result if isinstance(result, tuple) else (result,)
    return [part.detach().cpu().numpy() for part in parts]


def preparation(device: torch.device) -> Prepare:
    """The function that builds a job's problem on the device and prepares its method."""

    def prepare(job: Job) -> tuple[Call, Callable[[object], Arrays]]:
        group = GROUPS[job["group"]]
        method = group.method(job["method"])
        if method.make is None:
            raise ValueError(f"{method.name} runs in the Python of {method.interpreter} alone")
        problem = group.build(job["sizes"], getattr(torch, job["dtype"]), device, job["seed"])
        read = method.read or (lambda _, result: result)
        return method.make(problem), lambda result: arrays_of(read(problem, result))

    return prepare


def product_rate(device: torch.device, clock: ProcessClock, dtype: str) -> float:
    """FLOP per second of the product of two square matrices of a dtype, by the fastest of torch's public routes."""
    calls = _product_calls(device, dtype)
    return 2 * PRODUCT[device.type] ** 3 / min(clock.seconds(call) for call in calls)


@cache
def _product_calls(device: torch.device, dtype: str) -> tuple[Call, ...]:
    """The same product by ``@`` and, in float32 on the CPU, by the routes that reach oneDNN, without conversions."""
    side = PRODUCT[device.type]
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((side, side)))
    matrix = matrix.to(device, getattr(torch, dtype))
    calls: list[Call] = [lambda: matrix @ matrix]
    if device.type == "cpu" and dtype == "float32" and torch.backends.mkldnn.is_available():
        opaque = matrix.to_mkldnn()
        images = matrix.view(IMAGES, -1, 1, side).permute(0, 3, 1, 2)
        weight = matrix.view(side, side, 1, 1)
        calls += [lambda: F.linear(opaque, opaque), lambda: F.conv2d(images, weight)]
    for call in calls:
        call()  # loads what the library loads at its first product
    return tuple(calls)


def answer_in_this_process(request: Mapping[str, Any]) -> Answer:
    """Measure a method on the request's device; see :func:`experiments.benchmarks.clock.measure_method`."""
    device = choose_device(request["device"]).device
    clock = CudaClock() if device.type == "cuda" else ProcessClock()
    return measure_method(request, preparation(device), clock, partial(product_rate, device, clock))


Ask = Callable[[Method, Mapping[str, Any]], Answer]
"""Takes a method and a request of :func:`experiments.benchmarks.clock.measure_method`, and returns its answer."""

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
"""Settings of glibc's allocator. "tuned" keeps freed memory, which then is not mapped and cleared again."""


def ask_process(settings: Benchmark, allocator: str, method: Method, request: Mapping[str, Any]) -> Answer:
    """Measure a method in a fresh process, or for quick settings in this one; raises Interrupted after a stop.

    Args:
        settings: Settings with the device, the folder of the log, and the Python of neural-tangents.
        allocator: A key of ``ALLOCATORS``.
        method: The method to measure; it decides which Python runs.
        request: See :func:`experiments.benchmarks.clock.measure_method`.

    Returns:
        The answer; {"error": ...} when the method failed or the process ended without one. The log says more.
    """
    request = {**request, "device": settings.device}
    log = settings.runs / BENCHMARK_LOG
    if settings.quick and method.interpreter is None:
        answer = answer_in_this_process(request)
    else:
        python = sys.executable if method.interpreter is None else str(settings.neural_tangents_python)
        module = "processes" if method.interpreter is None else "tangents_worker"
        command = [python, "-m", f"{PACKAGE}.benchmarks.{module}", json.dumps(request)]
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


if __name__ == "__main__":
    set_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    answer_request(answer_in_this_process)
