"""Named tables, and the recipes of their experiments: how a cell is searched, trained and evaluated.

Sources: the presets of search, train and evaluate, which carry the paper's numbers.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from experiments.presets.evaluate import EVALUATE
from experiments.presets.search import SEARCH
from experiments.presets.train import TRAIN
from experiments.settings.evaluate import Evaluate
from experiments.settings.search import Search
from experiments.settings.table import EXPERIMENTS, Experiment, Method, Table
from experiments.settings.train import Train

SHOTS = (1, 5)


@dataclass(frozen=True)
class Recipe:
    """Settings of the three stages; folders, seeds and the method are put in for every run.

    methods: what each search changes of the settings. inputs: of a random cell's nodes, as the search derives
    them. published: for what data and size the published cells are, by name.
    """

    search: Search
    methods: dict[str, dict[str, object]]
    train: Train
    evaluate: dict[int, Evaluate]
    inputs: Literal["all", "two"]
    published: str

    @property
    def data(self) -> str:
        """What the images are called in a table."""
        name = self.train.data
        return next((known for word, known in DATA_NAMES.items() if word in name), name)


DATA_NAMES = {"mini": "mini-ImageNet", "tiered": "tiered-ImageNet", "glyphs": "glyphs"}


# [6.3] the ablation: MetaNTK and regions; NTK and regions, on as many samples (footnote 11); regions alone.
_METHODS = {
    "metantk": {"method": "metantk-nas"},
    "metantk-stable": {"method": "metantk-nas", "protocol": "stable"},
    "te-nas": {"method": "te-nas"},
    "regions": {"method": "regions"},
}


def _paper(name: str) -> Recipe:
    evaluations = {shots: EVALUATE[f"{name}-{shots}-shot"] for shots in SHOTS}
    return Recipe(SEARCH[name], _METHODS, TRAIN[name], evaluations, "two", name)


# Small enough for one CPU: a minute or two for a search, a minute for a training and its evaluations. The searches
# take three tasks and three repeats and, as in the released code, smaller images than the training; by stable there is
# no signal at 16 pixels, so that it takes 32.
_SIZE = {"channels": 8, "cells": 3, "stem_stride": 2}
_GLYPHS = Recipe(
    search=Search(**_SIZE, image_size=16, protocol="paper", outputs="sum"),
    methods=_METHODS | {"metantk-stable": _METHODS["metantk-stable"] | {"image_size": 32}},
    train=Train(**_SIZE, image_size=32, epochs=12, learning_rate=0.1, milestones=(7, 10), drop_path=0.0),
    evaluate={shots: Evaluate(shots=shots, tasks=200, augment=5) for shots in SHOTS},
    inputs="all",
    published="mini-5",
)

RECIPES: dict[Experiment, Recipe] = {"glyphs": _GLYPHS} | {name: _paper(name) for name in EXPERIMENTS}

TABLE = {
    # Three runs as in the paper; six are the fewest with which a sign test can fall below 0.05.
    "glyphs": Table(
        name="glyphs", experiments=("glyphs",), methods=get_args(Method), missing="make", device="cpu"
    ),
    # [6.2] three runs of search, training and evaluation on both data sets; the cells of MetaNAS are retrained.
    "table-1": Table(name="table_1", methods=("metantk", "metanas"), missing="make"),
    # [6.3] the ablation on mini-ImageNet, and the random cells of the same size that it lacks.
    "table-2": Table(name="table_2", experiments=("mini-5", "mini-8"), missing="make"),
}
