"""The measured process of torch: ``python -m experiments.benchmarks.worker REQUEST`` prints one JSON line."""

from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.catalogue import GROUPS
from experiments.benchmarks.clock import (
    Answer,
    Arrays,
    Call,
    Job,
    Prepare,
    ProcessClock,
    answer_request,
    measured,
)
from mamltheory.runtime.device import choose_device, set_threads

PRODUCT = {"cpu": 1536, "cuda": 8192}
"""Side of the square matrices whose product gives the rate."""


class CudaClock(ProcessClock):
    """Seconds between events on the device, and what its allocator held at most above what it held before."""

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
        """As on the CPU, with the device's memory in the place of the process's."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, results = torch.cuda.memory_allocated(), []
        seconds = self.seconds(lambda: results.append(call()))
        return results[0], seconds, float(torch.cuda.max_memory_allocated() - before)


def arrays_of(result: Tensor | tuple[Tensor, ...]) -> Arrays:
    """A method's result as arrays, which can be compared with another method's."""
    parts = result if isinstance(result, tuple) else (result,)
    return [part.detach().cpu().numpy() for part in parts]


def preparation(device: torch.device) -> Prepare:
    """The function that builds a job's problem on the device and prepares its method."""

    def prepare(job: Job) -> tuple[Call, Callable[[object], Arrays]]:
        group = GROUPS[job["group"]]
        method = group.method(job["method"])
        problem = group.build(job["sizes"], getattr(torch, job["dtype"]), device, job["seed"])
        read = method.read or (lambda _, result: result)
        return method.make(problem), lambda result: arrays_of(read(problem, result))

    return prepare


def product_rate(device: torch.device, clock: ProcessClock, dtype: str) -> float:
    """FLOP per second of the product of two square matrices of a dtype."""
    matrix = _square_matrix(device, dtype)
    return 2 * len(matrix) ** 3 / clock.seconds(lambda: matrix @ matrix)


@cache
def _square_matrix(device: torch.device, dtype: str) -> Tensor:
    side = PRODUCT[device.type]
    matrix = torch.from_numpy(np.random.default_rng(0).standard_normal((side, side)))
    matrix = matrix.to(device, getattr(torch, dtype))
    matrix @ matrix  # loads what the library loads at its first product
    return matrix


def answered(request: Mapping[str, object]) -> Answer:
    """Measure a method on the request's device; see :func:`experiments.benchmarks.clock.measured`."""
    device = choose_device(request["device"]).device
    clock = CudaClock() if device.type == "cuda" else ProcessClock()
    return measured(request, preparation(device), clock, partial(product_rate, device, clock))


if __name__ == "__main__":
    set_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    answer_request(answered)
