"""Tiny settings of search, training and evaluation, and what their tests share."""

from contextlib import contextmanager

import pytest

from experiments.data import loading
from experiments.search import search
from experiments.search.settings import Search
from experiments.training.settings import Evaluate, MetaTrain, Train
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas.algorithms.state import SearchState
from mamltheory.nas.genotype import Candidates, random_genotype
from mamltheory.nas.operations import OPERATIONS
from mamltheory.rng import generator
from mamltheory.runtime.checkpoint import load_state

SIZE = {"channels": 4, "cells": 3, "stem_stride": 4, "image_size": 16, "device": "cpu"}
GENOTYPE = random_genotype(generator(0, "test cell"), inputs="all")


@contextmanager
def few_glyphs(samples):
    """Glyphs of six classes a split with so many images each, in the place of the usual ones of 16 pixels."""
    data, usual = glyph_data(16, 6, 6, 6, samples_per_class=samples), loading.cached_data

    def few(*source):
        return data if source == ("glyphs", 16) else usual(*source)

    with pytest.MonkeyPatch.context() as patch:
        for module in (loading, search):
            patch.setattr(module, "cached_data", few)
        yield data


def files(folder):
    """Names of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def search_settings(folder, **others):
    return Search(**SIZE | {"ways": 2, "tasks": 1, "repeats": 1, "out": folder} | others)


def nearly_done():
    """A supernet with two operations on two edges of the normal cell and three on one of the other."""
    live = {kind: [(OPERATIONS[2],) for _ in getattr(Candidates(), kind)] for kind in ("normal", "reduce")}
    live["normal"][0], live["normal"][4], live["reduce"][8] = (
        OPERATIONS[1:3],
        OPERATIONS[2:4],
        OPERATIONS[:3],
    )
    return SearchState(Candidates(**{kind: tuple(names) for kind, names in live.items()}))


def recorded_search(settings, status="finished"):
    """A run folder with the record of a search that has ended; returns the record."""
    with search.opened_search(settings, "cpu") as log:
        return log.close(status).record


def begun(folder, **others):
    """A search that has come to :func:`nearly_done` in its folder."""
    settings = search_settings(folder, **others)
    recorded_search(settings.resolved(), "interrupted")
    search.write_state(settings, search.SavedSearch(nearly_done()))
    return settings


def train_settings(folder, **others):
    usual = {"epochs": 3, "batch_size": 16, "milestones": (2,), "drop_path": 0.2, "learning_rate": 0.05}
    return Train(**SIZE | usual | {"out": folder} | others)


def weights(settings):
    return load_state(settings.out / "state", print).tensors


def evaluate_settings(trained, folder, **others):
    usual = {"ways": 3, "shots": 1, "queries": 2, "tasks": 4, "augment": 1, "device": "cpu"}
    return Evaluate(**usual | {"checkpoint": trained.out, "out": folder} | others)


def meta_train_settings(folder, **others):
    sizes = {
        "image_size": 16,
        "channels": 4,
        "ways": 3,
        "queries": 2,
        "tasks": 2,
        "steps": 5,
        "report_every": 2,
    }
    more = {"validation_tasks": 2, "test_tasks": 3, "algorithm": "anil", "device": "cpu", "out": folder}
    return MetaTrain(**sizes | more | others)
