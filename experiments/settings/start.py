"""The settings of the demonstration, the contact sheet and the report on the machine."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least


@dataclass(frozen=True)
class Demo:
    """Everything on the embedded data: theory figures, then search, train and evaluate."""

    seed: int = 0
    """Seed of every random draw."""
    out: Path = Path("runs/demo")
    """Folder for figures, numbers and the table."""
    budget: float = 10.0
    """Minutes that the demonstration may take on two cores; it scales the work to them."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, ("seed",))
        require(0 < self.budget < math.inf, f"budget is {self.budget}: expected a positive number of minutes")


@dataclass(frozen=True)
class Glyphs:
    """Contact sheet of the embedded few-shot images, one row per class."""

    split: Literal["train", "val", "test"] = "train"
    """Which scripts to show."""
    classes: int = 10
    """Rows: randomly drawn classes."""
    samples: int = 10
    """Columns: samples of each class."""
    image_size: int = 32
    """Side of the square images in pixels."""
    seed: int = 0
    """Seed of every random draw."""
    out: Path = Path("runs/glyphs")
    """Folder for the sheet."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("classes", "samples"))
        require_at_least(self, 8, ("image_size",))
        require_at_least(self, 0, ("seed",))


@dataclass(frozen=True)
class Doctor:
    """Versions, device with its reason, threads and data found: what to send with a question."""

    device: str = "auto"
    """Device to look for: auto, cpu, cuda or cuda:N."""
    data: Path | None = None
    """Folder of a data set to look into."""
