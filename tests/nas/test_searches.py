"""Searches from Python, and what a notebook shows of a cell."""

import re

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.trained import TrainedNetwork
from mamltheory.nas import NetworkSettings, Rung, Space, random_genotype, search, short_trainings
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.short_trainings import different_genotypes
from mamltheory.nas.sizes import Band, genotype_parameters
from mamltheory.nas.spelling import operation_words
from mamltheory.rng import generator
from tests.strategies import as_users_run_it

SIZE = NetworkSettings(channels=2, cells=3, stem_stride=4)
BAND = (2500, 3200)


@pytest.fixture(scope="module")
def data():
    return glyph_data(16, 5, 5, 5, samples_per_class=16)


def test_what_a_search_found_is_scored_on_new_draws(data):
    paper = Space().operations
    space = Space({name: paper[name] for name in ("skip_connect", "conv_3x3")}, nodes=1)
    found = search(data, "regions", size=SIZE, space=space, repeats=1)
    assert len(found.scores) == 4
    assert len({score.regions for score in found.scores}) > 1


def test_a_random_search_is_that_of_algorithm_1_without_criteria(data):
    lines = []
    found = search(data, "random", size=SIZE, seed=3, progress=lines.append)
    settings = SearchSettings(seed=3, criteria=(), difference="absolute")
    assert found.genotype == run_search(None, settings).candidates.genotype()
    assert len(lines) == 6
    assert lines[-1] == "round 6: 18 operators left, 18 stay"
    assert found.network.candidates.genotype() == found.genotype
    assert found.network.settings.classes == 5
    assert repr(found).startswith(f"Found('random', {found.genotype!r}, ")
    assert repr(found).endswith(f" parameters, {len(found.trace)} decisions)")
    assert len(repr(found)) < 400


def test_halving_gives_the_trained_network_that_it_ranked_first(data):
    rungs = (Rung(3, 1), Rung(2, 2, "loss"))
    found = search(data, "halving", size=SIZE, parameters=BAND, rungs=rungs, seed=1)
    again = search(data, "halving", size=SIZE, parameters=BAND, rungs=rungs, seed=1)
    (_, first), (_, last) = found.standings
    assert set(last) == set(first[:2])
    assert isinstance(found.network, TrainedNetwork)
    assert found.network.genotype == found.genotype == again.genotype
    assert found.scores == again.scores
    assert len(found.scores) == 2
    assert np.isfinite(found.scores[-1].loss)
    assert genotype_parameters(found.genotype, NetworkSettings(2, 3, 5, 4)) in Band(*BAND)


def test_settings_that_a_method_does_not_have_are_refused(data):
    for settings, message in (
        ({"method": "te-nass"}, "expected one of metantk-nas"),
        ({"protocol": "mine"}, "expected one of paper"),
        ({"method": "halving"}, "parameters is None: expected two numbers"),
        ({"method": "te-nas", "parameters": (1, 2)}, "leave it out, or choose halving or metantk-nas"),
        ({"parameters": (1, 2), "samples": 1}, "samples is 1: expected a whole number from 2"),
    ):
        with as_users_run_it(), pytest.raises(ConfigurationError, match=message):
            search(data, **settings)


def test_too_few_different_cells_of_a_band_are_refused(monkeypatch):
    same = random_genotype(generator(0, "cell"))
    monkeypatch.setattr(short_trainings, "random_genotype_within", lambda *_, **__: same)
    assert different_genotypes(Band(1, 2), 1, generator(0, "cells"), SIZE) == (same,)
    with pytest.raises(ConfigurationError, match="only 1 different cells"):
        different_genotypes(Band(1, 2), 2, generator(0, "cells"), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["metantk-nas", "te-nas", "regions"])
def test_other_methods_score_what_they_find(data, method):
    found = search(data, method, size=SIZE, ways=2, tasks=1, repeats=1)
    assert len(found.scores) == 4
    assert len(found.trace) == 486


def test_a_notebook_shows_both_cells_with_every_operation(data):
    genotype = search(data, "random", size=SIZE).genotype
    html = genotype._repr_html_()
    assert html.count("<svg") == 2
    for edges in genotype.edges().values():
        for _, _, operation in edges:
            assert f">{operation_words(operation)}</text>" in html
    places = re.findall(r'<text x="(\d+)" y="(\d+)" stroke', html.split("</svg>")[0])
    assert len(set(places)) == len(places) == 9
    assert len(repr(genotype)) < 300


def test_halving_of_trainings_that_all_diverge_says_so(data, monkeypatch):
    def diverges(*_):
        raise ValueRangeError("the loss is not finite")

    monkeypatch.setattr(short_trainings, "trained_to", diverges)
    with pytest.raises(ConfigurationError, match="diverged"):
        search(data, "halving", size=SIZE, parameters=BAND, rungs=[Rung(2, 1)], seed=1)
