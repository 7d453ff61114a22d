"""The settings of the few-shot evaluation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.settings.network import EMBEDDED_DATA

Head = Literal["logistic", "svc", "svc-scaled", "nearest-centroid"]


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of a trained network on few-shot test tasks, with its confidence interval (Table 1)."""

    checkpoint: Path = Path("runs/train")
    """Run folder of the training."""
    data: str = EMBEDDED_DATA
    """"glyphs" (embedded, no download), or the folder of mini- or tieredImageNet."""
    split: Literal["val", "test"] = "test"
    """Classes to draw the tasks from."""
    ways: int = 5
    """Classes per task."""
    shots: int = 5
    """Support samples per class."""
    queries: int = 15
    """Query samples per class."""
    tasks: int = 1000
    """Number of test tasks."""
    head: Head = "logistic"
    """Last-layer classifier: logistic regression, linear SVC, SVC after scaling (the code of RFS), or centroids."""
    C: float = 1.0
    """1 / ℓ2 penalty of the last-layer classifier; centroids have none."""
    augment: int = 5
    """Augmented copies of each support sample; 0 takes the samples as they are."""
    seed: int = 0
    """Seed of tasks and augmentation."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    out: Path = Path("runs/evaluate")
    """Run folder."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, ("ways", "tasks"))
        require_at_least(self, 1, ("shots", "queries", "jobs"))
        require_at_least(self, 0, ("augment", "seed"))
        require(0 < self.C < math.inf, f"C is {self.C}: expected a positive finite number")
