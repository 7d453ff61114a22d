"""The settings of the tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least

Experiment = Literal["glyphs", "mini-5", "mini-8", "tiered-5", "tiered-8"]
Method = Literal[
    "metantk",
    "metantk-stable",
    "te-nas",
    "regions",
    "metantk-published",
    "metanas",
    "random",
    "random-same-size",
    "random-te-nas-size",
    "random-regions-size",
]
SIZED: Mapping[Method, Method] = {
    "random-same-size": "metantk",
    "random-te-nas-size": "te-nas",
    "random-regions-size": "regions",
}
"""Random cells, and the search whose cell of the same run has as many parameters."""
EXPERIMENTS: tuple[Experiment, ...] = ("mini-5", "mini-8", "tiered-5", "tiered-8")
METHODS: tuple[Method, ...] = ("metantk", "te-nas", "regions", "random", "random-same-size")
"""The ablation of Table 2 and the random cells that it lacks."""


@dataclass(frozen=True)
class Table:
    """Tables 1 and 2: what the run folders hold, runs compared, beside the numbers that the paper prints."""

    name: str = "paper"
    """Last part of the files' names: table_NAME.md, .tex, .csv and .json."""
    experiments: tuple[Experiment, ...] = EXPERIMENTS
    """Data and sizes; all but glyphs are the paper's, by its recipes."""
    methods: tuple[Method, ...] = METHODS
    """Where the cells come from: searches (metantk-stable: by the protocol stable), the published cells of the paper
    (metantk-published, one a run) and of MetaNAS (metanas), random cells, random cells with as many parameters as
    the one that metantk, te-nas or regions found."""
    runs: int = 3
    """Independent runs (search, training, evaluation) of every method."""
    seed: int = 0
    """Seed of the first run; the others follow."""
    missing: Literal["show", "make"] = "show"
    """What to do about runs that are not there or not finished: show the gap, or make them now."""
    mini: str = "data/mini-imagenet"
    """Folder of miniImageNet."""
    tiered: str = "data/tiered-imagenet"
    """Folder of tieredImageNet."""
    jobs: int = 1
    """Worker processes for the missing runs; the result does not depend on it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    work: Path = Path("runs/table")
    """Folder of the runs: EXPERIMENT/METHOD/SEED/{search,train,evaluate-1-shot,evaluate-5-shot}."""
    out: Path = Path("runs/table")
    """Folder for the table."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, ("runs", "jobs"))
        require_at_least(self, 0, ("seed",))
        require(self.name.isidentifier(), f"name is '{self.name}': expected letters, digits and _")
        for setting in ("experiments", "methods"):
            values = getattr(self, setting)
            once = bool(values) and len(set(values)) == len(values)
            require(once, f"{setting} is {values}: name at least one, each once")
        for random, searched in SIZED.items():
            orphaned = random in self.methods and searched not in self.methods
            require(
                not orphaned,
                f"{random} has the parameters of a {searched} cell: add {searched} to the methods",
            )
