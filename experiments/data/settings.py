"""The settings of the look into a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..requirements import require, require_at_least
from ..settings import EMBEDDED_DATA, shares_of


@dataclass(frozen=True)
class Data:
    """Check a data set: layout, sizes against the published ones, channels, shared images, contact sheet."""

    path: str = EMBEDDED_DATA
    """One of the embedded sets ("glyphs", "glyphs-mini", "pictures"), or the folder of a data set in any known
    layout. The flag is optional: data check PATH."""
    image_size: int | None = None
    """Side of the square images in pixels; without it, the stored size, or 32 for images of several sizes."""
    split: str | None = None
    """For folders CLASS/* without splits: shares of the classes for training, validation and test, as in 60/20/20."""
    split_seed: int = 0
    """Seed that draws this split."""
    mirrors: bool | None = None
    """Whether a mirrored image shows the same class: give --no-mirrors for characters. Without it: what the data say;
    of image folders, yes. --prepare writes it."""
    as_stored: bool = False
    """Keep the order of the channels of tieredImageNet arrays: for a copy that is RGB already."""
    prepare: Path | None = None
    """Write the decoded and resized images to this folder, from which they are memory-mapped."""
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

    def default_words(self) -> dict[str, str]:
        """What settings without a value stand for, as help shows it."""
        return {} if self.image_size else {"image_size": "the stored size"}


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
