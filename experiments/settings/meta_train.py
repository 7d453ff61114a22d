"""The settings of the meta-training."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.settings.network import EMBEDDED_DATA, shares_of


@dataclass(frozen=True)
class MetaTrain:
    """Train Conv4 by second-order MAML or ANIL, the theory's own code, and try it on unseen classes."""

    data: str = EMBEDDED_DATA
    """"glyphs" or "glyphs-mini" (embedded, no download), or the folder of mini- or tieredImageNet."""
    class_split: str | None = None
    """For folders CLASS/* without splits: shares of the classes for training, validation and test, as in 60/20/20
    (--split of other commands)."""
    split_seed: int = 0
    """Seed that draws this split, whatever the seed of the run: the same in every command."""
    image_size: int = 28
    """Side of the square images in pixels, at least 16."""
    channels: int = 32
    """Channels of each of the four blocks."""
    algorithm: Literal["maml", "anil"] = "maml"
    """What the inner loop adapts: all parameters, or the last linear layer."""
    ways: int = 5
    """Classes per task."""
    shots: int = 1
    """Support samples per class."""
    queries: int = 5
    """Query samples per class in training; 15 in evaluation."""
    tasks: int = 4
    """Tasks in an outer step."""
    steps: int = 2000
    """Outer steps."""
    inner_steps: int = 1
    """Gradient steps on a task's support samples, τ."""
    inner_rate: float = 0.1
    """Learning rate λ of the inner steps, for the loss summed over the support samples. The more features Conv4
    has, channels · (image_size // 16)², the smaller it has to be."""
    learning_rate: float = 3e-3
    """Learning rate of Adam, which makes the outer steps."""
    report_every: int = 100
    """Outer steps between two lines of the learning curve, with accuracy on the validation classes."""
    validation_tasks: int = 50
    """Tasks of a validation."""
    test_tasks: int = 600
    """Tasks of the evaluation at the end, and once before the first step."""
    split: Literal["val", "test"] = "test"
    """Classes of that evaluation: "val" to choose settings by, "test" to report."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    save_minutes: float = 5.0
    """Save the state after so many minutes; at the end and at a stop it is saved anyway."""
    out: Path = Path("runs/meta-train")
    """Run folder; a run stopped there goes on by itself."""

    def __post_init__(self) -> None:
        require(bool(self.data), 'data is empty: expected "glyphs" or a folder')
        require_at_least(self, 16, ("image_size",))
        require_at_least(self, 2, ("channels", "ways", "validation_tasks", "test_tasks"))
        require_at_least(self, 1, ("shots", "queries", "tasks", "steps", "inner_steps", "report_every"))
        require_at_least(self, 0, ("seed", "split_seed", "save_minutes"))
        shares_of(self.class_split)
        for name in ("inner_rate", "learning_rate"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value}: expected a positive finite number")
