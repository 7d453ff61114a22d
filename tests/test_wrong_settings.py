"""The functions of fewshot and nas with every argument replaced by something else, as for the theory."""

import warnings
from pathlib import Path

import pytest
import torch

from mamltheory import fewshot, nas
from mamltheory.errors import MamlTheoryError
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.rng import generator
from tests.strategies import as_users_run_it
from tests.wrong_values import WRONG

SIZE = nas.NetworkSettings(channels=2, cells=3, stem_stride=4)
GENOTYPE = nas.random_genotype(generator(0, "test cell"))
CONFIG = fewshot.TrainConfig(epochs=1, batch_size=8, milestones=(), flip=False)
DATA = glyph_data(16, 3, 2, 2, samples_per_class=4)
SPACE = nas.Space(nodes=1)
INPUTS = fewshot.Inputs(16, 3, DATA.mean, DATA.std, mirrors=False)
NETWORK = fewshot.TrainedNetwork(GENOTYPE.to_module(2, 3, 3, 4), INPUTS, DATA.train.class_names)
COUNTS = {"ways": 2, "shots": 1, "queries": 1, "seed": 0}
IMAGES = DATA.test.images[:4]

RIGHT = {
    "tasks_from": (
        fewshot.tasks_from,
        {"data": DATA, "count": 2, **COUNTS, "split": "train", "image_size": None, "dtype": torch.float32},
    ),
    "train": (
        fewshot.train,
        {"data": DATA, "network": GENOTYPE, "config": CONFIG, "size": SIZE, "image_size": None, "seed": 0}
        | {"device": "cpu"},
    ),
    "evaluate": (
        fewshot.evaluate,
        {"network": NETWORK, "data": DATA, **COUNTS, "tasks": 2, "split": "test", "copies": 0, "C": 1.0}
        | {"head": "nearest-centroid", "jobs": 1},
    ),
    "predict": (
        NETWORK.predict,
        {"images": IMAGES, "support": IMAGES, "labels": [0, 1, 0, 1], "head": "nearest-centroid", "C": 1.0}
        | {"copies": 0, "seed": 0},
    ),
    "search": (
        nas.search,
        {"data": DATA, "method": "random", "protocol": "paper", "size": SIZE, "image_size": None, **COUNTS}
        | {
            "tasks": None,
            "repeats": None,
            "parameters": None,
            "samples": 4,
            "rungs": (),
            "space": SPACE,
            "score": None,
            "device": "cpu",
        },
    ),
    "random_genotype": (
        nas.random_genotype,
        {"generator": generator(0, "cells"), "inputs": "two", "space": SPACE},
    ),
    "Space": (
        nas.Space,
        {"operations": SPACE.operations, "nodes": 1, "normal": (), "reduce": (), "name": ""},
    ),
    "OwnScore": (nas.OwnScore, {"function": max, "largest_is_best": False}),
    "normalisation": (nas.normalisation, {"kind": "group", "channels": 4}),
    "to_module": (
        GENOTYPE.to_module,
        {"channels": 2, "cells": 3, "classes": 2, "stem_stride": 4, "seed": 0},
    ),
}
ONLY_WRONG = {
    "load": (fewshot.load, "path"),
    "load_data": (fewshot.load_data, "source"),
    "save": (NETWORK.save, "path"),
}


def raw_error(function, arguments):
    """The error that a user would not understand; None if it works, or an error of ours says why."""
    try:
        function(**arguments)
    except MamlTheoryError:
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return None


@pytest.mark.parametrize("name", RIGHT)
def test_a_wrong_setting_is_an_error_of_ours(name):
    function, right = RIGHT[name]
    with as_users_run_it(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function(**right)
        tried = {(k, what): right | {k: value} for k in right for what, value in WRONG.items()}
        raw = {case: raw_error(function, arguments) for case, arguments in tried.items()}
        assert {case: error for case, error in raw.items() if error} == {}


@pytest.mark.parametrize("name", ONLY_WRONG)
def test_a_wrong_place_is_an_error_of_ours(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, argument = ONLY_WRONG[name]
    with as_users_run_it():
        raw = {what: raw_error(function, {argument: value}) for what, value in WRONG.items()}
    assert {what: error for what, error in raw.items() if error} == {}
    assert set(Path().iterdir()) <= {Path("abc")}
