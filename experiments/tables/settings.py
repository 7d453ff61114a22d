"""The settings of the tables."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..requirements import require, require_at_least
from ..search.settings import SEARCH, Search
from ..settings import EMBEDDED_DATA
from ..training.settings import EVALUATE, TRAIN, Evaluate, Train

Experiment = Literal["glyphs", "pictures", "mini-5", "mini-8", "tiered-5", "tiered-8"]
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
    "halving",
    "halving-retrained",
    "halving-warm",
    "metantk-band",
    "random-band",
]
SIZED: Mapping[Method, Method] = {
    "random-same-size": "metantk",
    "random-te-nas-size": "te-nas",
    "random-regions-size": "regions",
}
"""Random cells, and the search whose cell under the same seed has as many parameters."""
ONE_SIZE: tuple[Method, ...] = ("halving", "halving-retrained", "halving-warm", "metantk-band", "random-band")
"""Methods whose cells all have two inputs per node and a number of parameters in the band of the experiment."""
CONTROLLED: tuple[tuple[Method, Method], ...] = (
    ("halving", "random-band"),
    ("halving-retrained", "random-band"),
    ("halving-warm", "random-band"),
    ("metantk-band", "random-band"),
    ("halving-warm", "halving"),
)
"""Comparisons of these methods: (first, the method that is subtracted from it)."""
CELLS: Mapping[Method, int] = {"random-band": 3}
"""Cells in one run of a method, where there are several; their mean is one sample."""
EMBEDDED: tuple[Experiment, ...] = ("glyphs", "pictures")
"""Experiments on embedded data, which are not in the paper."""
EXPERIMENTS: tuple[Experiment, ...] = ("mini-5", "mini-8", "tiered-5", "tiered-8")
METHODS: tuple[Method, ...] = ("metantk", "te-nas", "regions", "random", "random-same-size")
"""The ablation of Table 2 and the random cells that it lacks."""


@dataclass(frozen=True)
class Table:
    """Tables 1 and 2 from the run folders, with comparisons over runs, next to the numbers of the paper."""

    name: str = "paper"
    """Last part of the files' names: table_NAME.md, .tex, .csv and .json."""
    experiments: tuple[Experiment, ...] = EXPERIMENTS
    """Data and sizes; all but glyphs and pictures are the paper's, by its recipes."""
    methods: tuple[Method, ...] = METHODS
    """Origin of the cells: searches (metantk-stable: with the protocol stable), the published cells of the paper
    (metantk-published, one per run) and of MetaNAS (metanas), random cells, and random cells with as many parameters
    as the cell that metantk, te-nas or regions found. Among cells of one size: the network that halving found and
    trained, its cell trained from other weights (halving-retrained), halving with a warm start (halving-warm), the best
    of sampled cells by the paper's scores (metantk-band), and random cells (random-band, the mean of three a run)."""
    runs: int = 3
    """Independent runs (search, training, evaluation) of every method."""
    seed: int = 0
    """Seed of the first run; the others follow."""
    missing: Literal["show", "make"] = "show"
    """Missing and unfinished runs: show the gap, or make them now."""
    mini: str = "data/mini-imagenet"
    """Folder of miniImageNet."""
    tiered: str = "data/tiered-imagenet"
    """Folder of tieredImageNet."""
    jobs: int = 1
    """Worker processes for the missing runs; the result does not depend on it."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    work: Path = Path("runs/table")
    """Folder of the runs: EXPERIMENT/METHOD/SEED/{search,train,evaluate-1-shot,evaluate-5-shot}, with a folder for each
    cell where a run has several."""
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
        for random, searched in {**SIZED, "halving-retrained": "halving"}.items():
            orphaned = random in self.methods and searched not in self.methods
            require(
                not orphaned,
                f"{random} needs the cell that {searched} finds: add {searched} to the methods",
            )
        for experiment in self.experiments:
            unknown = [m for m in self.methods if m in ONE_SIZE and not RECIPES[experiment].offers(m)]
            require(
                not unknown, f"{experiment} has no recipe for {unknown}: choose other methods or experiments"
            )


SHOTS = (1, 5)


@dataclass(frozen=True)
class Recipe:
    """Settings of the three stages, without folders, seeds and the method of a run.

    Attributes:
        search: Settings of the search.
        methods: Changes of these settings by method.
        train: Settings of the training.
        evaluate: Settings of the evaluation by number of shots.
        inputs: Inputs of a random cell's nodes, as the search derives them.
        published: Data and size of the published cells, by name.
        band: Fewest and most parameters of the methods that compare cells of one size; None if there are none.
    """

    search: Search
    methods: dict[str, dict[str, Any]]
    train: Train
    evaluate: dict[int, Evaluate]
    inputs: Literal["all", "two"]
    published: str
    band: str | None = None

    @property
    def data(self) -> str:
        """Name of the data in a table."""
        name = self.train.data
        return next((known for word, known in DATA_NAMES.items() if word in name), name)

    def offers(self, method: Method) -> bool:
        """Whether the recipe has what a method that compares cells of one size needs."""
        return self.band is not None and (
            method in self.methods or method in ("halving-retrained", "random-band")
        )


DATA_NAMES = {"mini": "mini-ImageNet", "tiered": "tiered-ImageNet", "glyphs": "glyphs"}


# [6.3] the ablation: MetaNTK and regions; NTK and regions, on as many samples (footnote 11); regions alone.
_METHODS: dict[str, dict[str, Any]] = {
    "metantk": {"method": "metantk-nas"},
    "metantk-stable": {"method": "metantk-nas", "protocol": "stable"},
    "te-nas": {"method": "te-nas"},
    "regions": {"method": "regions"},
}


def _paper(name: str) -> Recipe:
    data = TRAIN[name].data
    evaluations = {shots: replace(EVALUATE[f"{name}-{shots}-shot"], data=data) for shots in SHOTS}
    return Recipe(SEARCH[name], _METHODS, TRAIN[name], evaluations, "two", name)


# Small enough for one CPU: a minute or two for a search, a minute for a training and its evaluations. The searches
# use three tasks and three repeats and, as in the released code, smaller images than the training. The protocol stable
# uses 32 pixels, because it finds no signal at 16.
_SIZE: dict[str, Any] = {"channels": 8, "cells": 3, "stem_stride": 2}
_BAND = "36000:42000"
# Halving trains by the recipe of the table, so that the network which it kept was trained as the others were. The
# scores of the paper rank as many cells as take half a minute.
_OF_ONE_SIZE: dict[str, dict[str, Any]] = {
    "halving": {"method": "halving", "parameters": _BAND, "image_size": 32, "anyway": True},
    "metantk-band": {
        "method": "metantk-nas",
        "parameters": _BAND,
        "image_size": 32,
        "samples": 128,
        "two_inputs": True,
    },
}
_GLYPHS = Recipe(
    search=Search(**_SIZE, image_size=16, protocol="paper", outputs="sum"),
    methods=_METHODS
    | {"metantk-stable": _METHODS["metantk-stable"] | {"image_size": 32}}
    | _OF_ONE_SIZE
    | {"halving-warm": _OF_ONE_SIZE["halving"] | {"warm_start": "glyphs"}},
    train=Train(**_SIZE, image_size=32, epochs=12, learning_rate=0.1, milestones=(7, 10), drop_path=0.0),
    evaluate={shots: Evaluate(data=EMBEDDED_DATA, shots=shots, tasks=200, augment=5) for shots in SHOTS},
    inputs="all",
    published="mini-5",
    band=_BAND,
)
_PICTURES = replace(
    _GLYPHS,
    search=replace(_GLYPHS.search, data="pictures"),
    methods=_METHODS | _OF_ONE_SIZE,
    train=replace(_GLYPHS.train, data="pictures"),
    evaluate={shots: replace(each, data="pictures") for shots, each in _GLYPHS.evaluate.items()},
)

RECIPES: dict[Experiment, Recipe] = {
    "glyphs": _GLYPHS,
    "pictures": _PICTURES,
    **{name: _paper(name) for name in EXPERIMENTS},
}

TABLE = {
    # Three runs as in the paper; six are the fewest with which a sign test can fall below 0.05.
    "glyphs": Table(
        name="glyphs",
        experiments=("glyphs",),
        methods=tuple(method for method in get_args(Method) if method not in ONE_SIZE),
        missing="make",
        device="cpu",
    ),
    "glyphs-halving": Table(
        name="glyphs_halving", experiments=("glyphs",), methods=ONE_SIZE, runs=6, missing="make", device="cpu"
    ),
    "pictures": Table(
        name="pictures",
        experiments=("pictures",),
        methods=tuple(method for method in ONE_SIZE if method != "halving-warm"),
        runs=6,
        missing="make",
        device="cpu",
    ),
    # [6.2] three runs of search, training and evaluation on both data sets; the cells of MetaNAS are retrained.
    "table-1": Table(name="table_1", methods=("metantk", "metanas"), missing="make"),
    # [6.3] the ablation on mini-ImageNet, and the random cells of the same size that it lacks.
    "table-2": Table(name="table_2", experiments=("mini-5", "mini-8"), missing="make"),
}
