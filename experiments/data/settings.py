"""The settings of the look into a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.settings import EMBEDDED_DATA, shares_of


@dataclass(frozen=True)
class Data:
    """Look into a data set: layout, sizes against the published ones, channels, shared images, a sheet."""

    path: str = EMBEDDED_DATA
    """One of the embedded sets ("glyphs", "glyphs-mini"), or the folder of a data set in any known layout. The
    flag may be left out: data check PATH."""
    image_size: int | None = None
    """Bring the images to squares of so many pixels; as they are stored unless given."""
    split: str | None = None
    """For folders CLASS/* without splits: shares of the classes for training, validation and test, as in 60/20/20."""
    split_seed: int = 0
    """Seed that draws this split."""
    as_stored: bool = False
    """Leave the channels of tieredImageNet arrays in their order: for a copy that is red first already."""
    prepare: Path | None = None
    """Write the images, decoded and resized, to this folder, from where they are mapped at once."""
    classes: int = 6
    """Rows of the contact sheet for each split."""
    samples: int = 5
    """Columns of the contact sheet for each split."""
    out: Path = Path("runs/data")
    """Folder for the contact sheet."""

    def __post_init__(self) -> None:
        require(bool(self.path), 'path is empty: expected "glyphs" or a folder')
        require_at_least(self, 1, ("classes", "samples"))
        require_at_least(self, 0, ("split_seed",))
        shares_of(self.split)
        if self.image_size is not None:
            require_at_least(self, 8, ("image_size",))


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
