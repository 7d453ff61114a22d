"""The measured processes of torch: ``python -m experiments.benchmarks.worker SOCKET DEVICE``.

The device is touched in the copies only: a process that has used CUDA cannot be copied.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.catalogue import GROUPS
from experiments.benchmarks.protocol import Arrays, Call, ProcessClock, Server, listen
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


def preparation(device: torch.device) -> Callable[[Mapping[str, object]], tuple[Call, Callable]]:
    """The function that builds a job's problem on the device and prepares its method."""

    def prepare(job: Mapping[str, object]) -> tuple[Call, Callable[[object], Arrays]]:
        group = GROUPS[job["group"]]
        method = group.method(job["method"])
        problem = group.build(job["sizes"], getattr(torch, job["dtype"]), device, job["seed"])
        read = method.read or (lambda _, result: result)
        return method.make(problem), lambda result: arrays_of(read(problem, result))

    return prepare


def product_rate(device: torch.device, clock: ProcessClock) -> Callable[[str], float]:
    """The function that multiplies two square matrices of a dtype, and gives FLOP per second."""
    side, operands = PRODUCT[device.type], {}

    def rate(dtype: str) -> float:
        if dtype not in operands:
            matrix = np.random.default_rng(0).standard_normal((side, side))
            operands[dtype] = torch.from_numpy(matrix).to(device, getattr(torch, dtype))
            operands[dtype] @ operands[dtype]
        matrix = operands[dtype]
        return 2 * side**3 / clock.seconds(lambda: matrix @ matrix)

    return rate


def serve(name: str, requests: Iterable[bytes], answers: BinaryIO) -> None:
    """Serve measurements on one device with one thread."""
    set_threads(1)
    device = choose_device(name).device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    clock = CudaClock() if device.type == "cuda" else ProcessClock()
    Server(preparation(device), product_rate(device, clock), clock).serve(requests, answers)


if __name__ == "__main__":
    listen(sys.argv[1], partial(serve, sys.argv[2]))
