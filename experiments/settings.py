"""The settings that search, training and studies share, and those of the small commands."""

import math
from dataclasses import dataclass
from pathlib import Path

from .requirements import require, require_at_least

EMBEDDED_DATA = "glyphs"


def shares_of(split: str | None) -> tuple[int, ...] | None:
    """The three numbers of "60/20/20", or None; raises ConfigurationError for any other text."""
    if split is None:
        return None
    # Imported only here, as most runs have none: the package takes time to load.
    from mamltheory.fewshot.places import shares_of as parsed

    return parsed(split)


@dataclass(frozen=True)
class ExperimentSettings:
    """The images and the size of the network; search and training share these settings."""

    data: str = EMBEDDED_DATA
    """"glyphs", "glyphs-mini" or "pictures" (embedded, no download), or a folder: {train,val,test}/CLASS/ with images,
    CLASS/ alone with --split, or a public set; `data check FOLDER` says what it is."""
    split: str | None = None
    """For folders CLASS/* without splits: shares of the classes for training, validation and test, as in 60/20/20."""
    split_seed: int = 0
    """Seed for this split, the same in every command whatever the seed of the run."""
    mirrors: bool | None = None
    """Whether a mirrored image shows the same class, so that trainings may mirror images: give --no-mirrors for
    characters. Without it: what the data say; of image folders, yes."""
    image_size: int = 32
    """Side of the square images in pixels."""
    channels: int = 48
    """Channels C of the first cells; doubled at each reduction."""
    cells: int = 5
    """Number of stacked cells; reductions at one and two thirds."""
    stem_stride: int = 1
    """Stride of the stem convolution; 2 halves the image first and costs a quarter."""
    seed: int = 0
    """Seed of every random draw."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        require(bool(self.data), 'data is empty: expected "glyphs" or a folder')
        require_at_least(self, 8, ("image_size",))
        require_at_least(self, 1, ("channels",))
        require_at_least(self, 3, ("cells",))
        require_at_least(self, 0, ("seed", "split_seed"))
        shares_of(self.split)
        require(self.stem_stride in (1, 2, 4), f"stem_stride is {self.stem_stride}: expected 1, 2 or 4")


@dataclass(frozen=True)
class SmallNetworkSettings(ExperimentSettings):
    """The same with a network that is small enough for one CPU."""

    channels: int = 8
    """Channels C of the first cells; doubled at each reduction."""
    cells: int = 3
    """Number of stacked cells; reductions at one and two thirds."""
    stem_stride: int = 2
    """Stride of the stem convolution; 2 halves the image first and costs a quarter."""


def limits_of(parameters: str) -> tuple[int, int]:
    """The two numbers of "36000:42000"; raises ConfigurationError for any other text."""
    words = parameters.split(":")
    good = len(words) == 2 and all(word.isdecimal() and len(word) < 13 and int(word) > 0 for word in words)
    require(
        good and int(words[0]) <= int(words[-1]),
        f"parameters is '{parameters}': expected the fewest and the most, as in 36000:42000",
    )
    return int(words[0]), int(words[1])


@dataclass(frozen=True)
class ShortTraining(SmallNetworkSettings):
    """The same with a training that is short enough to be repeated for many networks."""

    epochs: int = 12
    """Passes over the base classes."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 0.1
    """Initial learning rate of SGD."""
    milestones: tuple[int, ...] = (7, 10)
    """Epochs after which the learning rate falls by a factor of ten."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, ("epochs", "batch_size"))
        positive = 0 < self.learning_rate < math.inf
        require(positive, f"learning_rate is {self.learning_rate}: expected a positive finite number")
        ordered = list(self.milestones) == sorted(set(self.milestones))
        require(ordered, f"milestones is {self.milestones}: give them in increasing order, each once")


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
class Doctor:
    """Versions, device with its reason, threads and data: the information for a report of a problem."""

    device: str = "auto"
    """Device to look for: auto, cpu, cuda or cuda:N."""
    data: Path | None = None
    """Folder of a data set to look into."""


@dataclass(frozen=True)
class PublishedCells:
    """A published cell of MetaNTK-NAS or MetaNAS as a genotype file, or the list of all cells."""

    name: str = ""
    """Name of the cell; the list names all. The flag is optional: cell NAME."""
    out: Path = Path("genotype.json")
    """The file to write, for ``train --genotype``."""

    def default_words(self) -> dict[str, str]:
        """What settings without a value stand for, as help shows it."""
        return {} if self.name else {"name": "the list"}


MINI, TIERED = "data/mini-imagenet", "data/tiered-imagenet"
GLYPHS_MINI = "glyphs-mini"
