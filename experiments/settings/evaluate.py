"""The settings of the few-shot evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require_at_least
from experiments.settings.last_layer import LastLayer
from experiments.settings.network import EMBEDDED_DATA


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
