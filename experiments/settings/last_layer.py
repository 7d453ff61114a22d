"""What evaluation and prediction share: a trained network, and a classifier fitted on its features."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least

Head = Literal["logistic", "svc", "svc-scaled", "nearest-centroid"]


@dataclass(frozen=True)
class LastLayer:
    """A classifier of few-shot tasks: the frozen network of a training, under a new last layer for every task."""

    checkpoint: Path = Path("runs/train")
    """Run folder of the training."""
    head: Head = "logistic"
    """Last-layer classifier: logistic regression, linear SVC, SVC after scaling (the code of RFS), or centroids."""
    C: float = 1.0
    """1 / ℓ2 penalty of the last-layer classifier; centroids have none."""
    augment: int = 5
    """Augmented copies of each support image; 0 takes the images as they are."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, ("augment", "seed"))
        require(0 < self.C < math.inf, f"C is {self.C}: expected a positive finite number")
