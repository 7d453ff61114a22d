"""The settings of the benchmarks."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..requirements import require, require_at_least


@dataclass(frozen=True)
class Benchmark:
    """Time, memory and exactness of the fast routines against the alternatives."""

    cases: tuple[str, ...] = ()
    """Beginnings of the names of the cases to measure; all without it."""
    rounds: int = 5
    """Rounds over all methods; medians are reported."""
    seconds: float = 8.0
    """CPU seconds after which a method skips the remaining rounds."""
    quick: bool = False
    """Tiny problems in one process: a test that everything runs, without meaningful numbers."""
    allocator: Literal["default", "tuned", "both"] = "default"
    """Settings of the C library's allocator; "both" repeats the cases in which it matters."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to compute; time is CPU time or the time between events on the device."""
    neural_tangents_python: Path | None = None
    """Python in whose environment neural-tangents is installed."""
    again: bool = False
    """Measure finished cases again."""
    seed: int = 0
    """Seed of every random draw."""
    name: str = "benchmark"
    """Name of the table, the figure and its numbers; the device's name is appended."""
    out: Path = Path("runs/benchmark")
    """Folder for the table, the figure and its numbers."""
    runs: Path = Path("runs/benchmark")
    """Folder for the measurements of every case; a stopped run continues from there."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("rounds",))
        require_at_least(self, 0, ("seed",))
        require(0 < self.seconds < math.inf, f"seconds is {self.seconds}: expected a positive finite number")
        python = self.neural_tangents_python
        require(
            python is None or python.is_file(),
            f"neural-tangents-python is {python}: expected the program of a Python, such as env/bin/python",
        )
