"""The settings of the prediction on a user's own images."""

import math
from dataclasses import dataclass
from pathlib import Path

from experiments.requirements import require, require_at_least
from experiments.settings.evaluate import Head


@dataclass(frozen=True)
class Predict:
    """Classes of your own images from a few labelled ones, by a trained network (one few-shot task)."""

    checkpoint: Path = Path("runs/train")
    """Run folder of the training."""
    images: Path = Path("images")
    """Folder with support/CLASS/*.png (or .jpg), a folder for every class, and query/*.png without labels."""
    head: Head = "logistic"
    """Last-layer classifier: logistic regression, linear SVC, SVC after scaling (the code of RFS), or centroids."""
    C: float = 1.0
    """1 / ℓ2 penalty of the last-layer classifier; centroids have none."""
    augment: int = 5
    """Augmented copies of each support image; 0 takes the images as they are."""
    seed: int = 0
    """Seed of the augmentation."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    out: Path = Path("runs/predict")
    """Run folder: predictions.csv and the record."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, ("augment", "seed"))
        require(0 < self.C < math.inf, f"C is {self.C}: expected a positive finite number")
