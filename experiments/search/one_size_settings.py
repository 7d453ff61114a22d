"""The settings of searches among random cells of one size."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from ..requirements import require, require_at_least
from ..settings import ExperimentSettings, limits_of
from ..training.settings import TRAIN


@dataclass(frozen=True)
class OneSize(ExperimentSettings):
    """Searches among random cells of one size: by halving, which trains, and by the paper's scores, which do not."""

    parameters: str | None = None
    """Fewest and most parameters of the network, as in 36000:42000, or a genotype file, for cells of its form
    and its size ± 8 %. Without it halving takes the median size of random cells ± 8 %. With it metantk-nas scores
    random cells of that size and takes the best, in place of Algorithm 1. It counts at --channels and --cells,
    whatever the scale of the search."""
    samples: int = 16
    """Random cells that metantk-nas scores if --parameters is given."""
    rungs: tuple[int, ...] = (32, 8, 4)
    """Halving: cells that are trained in each rung; from rung to rung the best are kept."""
    rung_epochs: tuple[int, ...] = (2, 4, 12)
    """Halving: epochs of training after which each rung is ranked; the last number is the length of a training."""
    rank_by: tuple[Literal["accuracy", "loss"], ...] = ("accuracy", "accuracy", "loss")
    """Halving: what ranks each rung: few-shot accuracy on the validation classes, or training loss."""
    validation_tasks: int = 1000
    """Halving: 5-way 1-shot tasks of the validation classes (of as many ways as there are), the same for all cells."""
    search_channels: int | None = None
    """Halving: channels while searching."""
    search_cells: int | None = None
    """Halving: stacked cells while searching."""
    search_image_size: int | None = None
    """Halving: side of the images while searching, in pixels."""
    search_stem_stride: int | None = None
    """Halving: stride of the stem while searching."""
    search_batch_size: int = 64
    """Halving: images per step while searching."""
    search_learning_rate: float = 0.1
    """Halving: initial learning rate of SGD while searching; no drop path, and weight decay as in `train`."""
    search_milestones: tuple[int, ...] = (7, 10)
    """Halving: epochs after which that learning rate falls by a factor of ten; the usual ones as far as a training
    of --rung-epochs has them."""
    warm_start: str | None = None
    """Halving: a table of trained cells, "glyphs" or a file of `tabulate`. A regression on it chooses the cells
    of the first rung among random ones. The table must be of the data and the scale of the search."""
    proposals: int = 1000
    """Halving: random cells from which the warm start chooses."""
    confirm: int = 0
    """Halving: number of finalists that are trained a second time, and of random cells that are trained to the
    end. They say how much was gained and how much of it is the cell, and are no part of the search's cost."""
    least_gain: float = 1.0
    """Halving: percentage points. The search stops after the first rung if its networks hardly differ: if not
    even the best can be that far ahead of their mean."""
    anyway: bool = False
    """Halving: search also where the networks hardly differ."""
    then_train: str | None = None
    """Halving: preset of `train` whose recipe trains the found cell after the search, at --channels, --cells,
    --image-size and --stem-stride."""

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {len(self.rungs), len(self.rung_epochs), len(self.rank_by)}
        require(
            len(lengths) == 1 and bool(self.rungs),
            f"rungs {self.rungs}, rung_epochs {self.rung_epochs} and rank_by {self.rank_by} differ in length: give "
            f"each one value per rung{self._rungs_that_fit()}",
        )
        falling = all(a > b for a, b in itertools.pairwise(self.rungs))
        require(
            falling and self.rungs[-1] >= 1,
            f"rungs is {self.rungs}: expected fewer cells in every rung, for the best of the one before are kept",
        )
        growing = all(a < b for a, b in itertools.pairwise(self.rung_epochs))
        require(
            growing and self.rung_epochs[0] >= 1,
            f"rung_epochs is {self.rung_epochs}: expected more epochs in every rung",
        )
        inside = tuple(m for m in self.search_milestones if 0 < m < self.rung_epochs[-1])
        if self.search_milestones == OneSize.search_milestones:
            object.__setattr__(self, "search_milestones", inside)
        late = [m for m in self.search_milestones if m not in inside]
        words = " ".join(("--search-milestones", *map(str, inside)))
        require(
            not late,
            f"search_milestones {late} lie outside the {self.rung_epochs[-1]} epochs: give {words}, or other epochs "
            "with --rung-epochs",
        )
        ordered = list(self.search_milestones) == sorted(set(self.search_milestones))
        require(ordered, f"search_milestones is {self.search_milestones}: give increasing epochs, each once")
        rate = self.search_learning_rate
        require(0 < rate < math.inf, f"search_learning_rate is {rate}: expected a positive finite number")
        for name, least in (("search_channels", 1), ("search_cells", 3), ("search_image_size", 8)):
            require_at_least(self, least, [name] if getattr(self, name) is not None else [])
        stride = self.search_stem_stride
        require(stride in (None, 1, 2, 4), f"search_stem_stride is {stride}: expected 1, 2 or 4")
        known = ", ".join(TRAIN)
        require(
            self.then_train in (None, *TRAIN), f"then_train is '{self.then_train}': expected one of {known}"
        )
        require_at_least(self, 2, ("samples", "validation_tasks", "search_batch_size"))
        require_at_least(self, 1, ("proposals",))
        require_at_least(self, 0, ("confirm", "least_gain"))
        most = f"confirm is {self.confirm}: expected at most the {self.rungs[-1]} cells of the last rung"
        require(self.confirm <= self.rungs[-1], most)
        enough = (
            f"proposals is {self.proposals}: the first rung takes {self.rungs[0]} of them, give at least that"
        )
        require(self.warm_start is None or self.proposals >= self.rungs[0], enough)
        if self.parameters is not None and not self.parameters.endswith(".json"):
            limits_of(self.parameters)

    def _rungs_that_fit(self) -> str:
        """Flags that shorten the usual rungs to the number of those that were given; empty if that does not do."""
        names = ("rungs", "rung_epochs", "rank_by")
        given = [getattr(self, name) for name in names if getattr(self, name) != getattr(OneSize, name)]
        count = len(given[0]) if given else 0
        # The usual rungs begin with many cells, and end with a whole training, ranked by loss.
        parts = {"rungs": self.rungs[:count]}
        parts |= {name: getattr(self, name)[-count:] for name in ("rung_epochs", "rank_by")}
        if not count or {len(value) for value in parts.values()} != {count}:
            return ""
        flags = (f"--{name.replace('_', '-')} {' '.join(map(str, value))}" for name, value in parts.items())
        return f", as in {' '.join(flags)}"
