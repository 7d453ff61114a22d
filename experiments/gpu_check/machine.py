"""What the stages share: the device, its clock and its memory, and the lines that they report."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Line(NamedTuple):
    """A line of the report.

    Attributes:
        what: What was looked at.
        value: What was found; None for what a rehearsal cannot measure.
        unit: Of the value.
        good: Whether that is as it should be; None for a figure that is neither right nor wrong.
    """

    what: str
    value: float | str | None
    unit: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Machine:
    """The device of a stage, and the time that the stage may take.

    Attributes:
        device: The CUDA device.
        fake: The counts of the device of a rehearsal (``tests/fake_cuda``); None for a real one.
        seconds: What the stage may take.
        begun: When it began.
    """

    device: torch.device
    fake: Any = None
    seconds: float = 60.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that are left to the stage; a rehearsal, whose sizes are tiny, takes what it needs."""
        return math.inf if self.fake else self.seconds - (time.monotonic() - self.begun)

    @property
    def name(self) -> str:
        """The device as settings of the package name it."""
        return str(self.device)

    def figure(self, what: str, value: float, unit: str) -> Line:
        """A line of time or memory; without a value in a rehearsal, where it says nothing of a GPU."""
        return Line(what, None if self.fake else value, unit)

    def free(self) -> int:
        """Bytes that are free on the device."""
        return torch.cuda.mem_get_info(self.device)[0]

    def seconds_of(self, call: Callable[[], object]) -> float:
        """Seconds of a call, from an idle device to an idle device."""
        torch.cuda.synchronize(self.device)
        begun = time.perf_counter()
        call()
        torch.cuda.synchronize(self.device)
        return time.perf_counter() - begun

    def typical_seconds(self, call: Callable[[], object], times: int = 3) -> float:
        """The median of several calls after a first one, which loads libraries and fills caches."""
        times = 1 if self.fake else times
        call()
        return statistics.median(self.seconds_of(call) for _ in range(times))

    def peak(self, call: Callable[[], object]) -> int:
        """Bytes that a call needs on the device; in a rehearsal those of the largest tensor that it makes."""
        if self.fake:
            with _Sizes() as sizes:
                call()
            return sizes.largest
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        call()
        return torch.cuda.max_memory_allocated(self.device) - before

    @contextmanager
    def only(self, memory: int) -> Iterator[None]:
        """A block in which only so many bytes are free; a rehearsal refuses the first larger tensor instead."""
        if self.fake:
            with _Sizes(memory):
                yield
            return
        torch.cuda.empty_cache()
        ballast = torch.empty(max(0, self.free() - memory), dtype=torch.uint8, device=self.device)
        try:
            yield
        finally:
            del ballast
            torch.cuda.empty_cache()


class _Sizes(TorchDispatchMode):
    """Notes the largest tensor that is made, and refuses the first of more than ``most`` bytes."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self.most, self.largest = most, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        # The names of the fake device are not translated here, below autograd.
        size = max((x.nbytes for x in tensors_in(result) if x.device.type != "cpu"), default=0)
        self.largest = max(self.largest, size)
        if self.most is not None and size > self.most:
            self.most = None
            raise torch.OutOfMemoryError("CUDA out of memory (rehearsed).")
        return result


def attempt(what: str, look: Callable[[], Line]) -> Line:
    """The line of a look that may fail, which then is a fault and does not end the stage."""
    try:
        return look()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return Line(what, f"{type(error).__name__}: {first}"[:300], good=False)


def tensors_in(results: Any) -> list[Tensor]:
    """The tensors in nested results."""
    return [each for each in tree_leaves(results) if isinstance(each, Tensor)]


def largest_difference(found: Any, expected: Any) -> float:
    """The largest difference of the numbers in nested results, in units of the largest expected one."""

    def numbers(results: Any) -> Tensor:
        leaves = [each for each in tree_leaves(results) if isinstance(each, Tensor | float | int)]
        return torch.cat([_double(each) for each in leaves])

    ours, theirs = numbers(found), numbers(expected)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _double(number: Tensor | float) -> Tensor:
    # Without a dtype a number would become one of float32.
    return torch.as_tensor(number, dtype=torch.float64).detach().cpu().flatten()
