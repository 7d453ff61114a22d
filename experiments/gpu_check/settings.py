"""The settings and the stages of ``gpu-check``."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..requirements import require

FAKE = "fake"
"""The device that rehearses the command on a machine without a GPU."""


@dataclass(frozen=True)
class CheckStage:
    """A part of the check that runs in its own process.

    Attributes:
        title: What it looks at, for the report.
        function: "module:name" of its function.
        share: Seconds of ten minutes. A stage that takes less leaves the rest to those after it.
    """

    title: str
    function: str
    share: float


def _stage(title: str, function: str, share: float) -> CheckStage:
    return CheckStage(title, f"{__package__}.{function}", share)


STAGES = {
    "device": _stage("The device and its libraries", "behaviour:describe_device", 15),
    "theory": _stage("Kernels, meta-gradients and training, against the CPU", "agreement:check_theory", 45),
    "scores": _stage("Scores of cells, against the CPU", "agreement:check_scores", 45),
    "fewshot": _stage("RFS training, evaluation and meta-training, against the CPU", "agreement:check_fewshot", 45),
    "bits": _stage("Bits of two equal runs and of a stopped one", "behaviour:check_bits", 60),
    "waits": _stage("Waits of the host for the device", "host:check_waits", 30),
    "memory": _stage("Batches that do not fit the memory", "host:check_memory", 40),
    "batches": _stage("Scores by batch size", "speed:time_batches", 60),
    "convolutions": _stage("Per-sample gradients of dense convolutions, both ways", "speed:time_convolutions", 30),
    "precisions": _stage("Training of the mini-5 network by precision", "speed:time_precisions", 60),
    "kernels": _stage("Kernels that take most of the time", "speed:profile_kernels", 40),
    "search": _stage("A whole search of the paper's setting", "speed:time_search", 130),
}  # fmt: skip
"""In the order in which they run; the search is last, so that it gets the time that is left."""


@dataclass(frozen=True)
class GpuCheck:
    """What the GPU of a machine computes, and how fast: agreement with the CPU, bits, memory, waits, speed."""

    minutes: float = 10.0
    """Time that the whole check may take; a stage that takes longer than its part of it is ended and named."""
    stages: tuple[str, ...] = ()
    """Stages to run; all without it."""
    device: str = "cuda"
    """cuda, cuda:N, or fake: a rehearsal on the CPU with tiny sizes, in a checkout of the repository."""
    wheels: bool = False
    """Print the wheels to carry to a machine without a network, as a file for pip, and check nothing."""
    out: Path = Path("runs/gpu-check")
    """Folder for gpu_NAME.json and gpu_NAME.md, written line by line; NAME is that of the device."""

    def __post_init__(self) -> None:
        require(0 < self.minutes < math.inf, f"minutes is {self.minutes}: expected a positive finite number")
        for name in self.stages:
            require(name in STAGES, f"no stage is called '{name}': expected some of {', '.join(STAGES)}")
        known = self.device == FAKE or self.device.partition(":")[0] == "cuda"
        require(known, f"device is '{self.device}': expected cuda, cuda:N or {FAKE}")
