"""The settings of the few-shot evaluation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.settings import EMBEDDED_DATA, GLYPHS_MINI, MINI, TIERED

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


@dataclass(frozen=True)
class Evaluate(LastLayer):
    """Accuracy of a trained network on few-shot test tasks, with its confidence interval (Table 1)."""

    data: str = EMBEDDED_DATA
    """The data set with the training's images, wherever it lies now: "glyphs", "glyphs-mini", or a folder; its
    validation and test classes are not compared."""
    split: Literal["val", "test"] = "test"
    """Classes to draw the tasks from."""
    ways: int = 5
    """Classes per task."""
    shots: int = 5
    """Support images per class."""
    queries: int = 15
    """Query images per class."""
    tasks: int = 1000
    """Number of test tasks."""
    jobs: int = 1
    """Worker processes; the result does not depend on it."""
    out: Path = Path("runs/evaluate")
    """Run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2, ("ways", "tasks"))
        require_at_least(self, 1, ("shots", "queries", "jobs"))


@dataclass(frozen=True)
class Predict(LastLayer):
    """Classes of your own images from a few labelled ones, by a trained network (one few-shot task)."""

    images: Path = Path("images")
    """Folder with support/CLASS/*.png (or another image), a folder for every class, and query/*.png without labels."""
    out: Path = Path("runs/predict")
    """Run folder: predictions.csv and the record."""


def _evaluate(name: str, data: str, shots: int, head: str, C: float) -> Evaluate:
    # [E] 5 augmented copies of the support; [6.2] 1000 tasks; [code] 15 queries per class.
    folder = Path(f"runs/{name}")
    files = {"checkpoint": folder / "train", "out": folder / f"evaluate-{shots}-shot"}
    return Evaluate(data=data, shots=shots, head=head, C=C, augment=5, tasks=1000, queries=15, **files)


# [E] head and C of each of the eight numbers in Table 1.
EVALUATE = {
    "glyph-smoke": Evaluate(
        checkpoint=Path("runs/glyph-smoke/train"), tasks=50, augment=1, out=Path("runs/glyph-smoke/evaluate")
    ),
    "glyph-84-1-shot": _evaluate("glyph-84", GLYPHS_MINI, 1, "svc", 0.2),
    "glyph-84-5-shot": _evaluate("glyph-84", GLYPHS_MINI, 5, "logistic", 0.6),
    "mini-5-1-shot": _evaluate("mini-5", MINI, 1, "svc", 0.2),
    "mini-5-5-shot": _evaluate("mini-5", MINI, 5, "logistic", 0.6),
    "mini-8-1-shot": _evaluate("mini-8", MINI, 1, "svc", 0.35),
    "mini-8-5-shot": _evaluate("mini-8", MINI, 5, "logistic", 0.4),
    "tiered-5-1-shot": _evaluate("tiered-5", TIERED, 1, "svc", 0.75),
    "tiered-5-5-shot": _evaluate("tiered-5", TIERED, 5, "logistic", 0.8),
    "tiered-8-1-shot": _evaluate("tiered-8", TIERED, 1, "logistic", 0.95),
    "tiered-8-5-shot": _evaluate("tiered-8", TIERED, 5, "logistic", 0.5),
}
