"""Searches from Python, and what a notebook shows of a cell."""

import inspect
import re
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.episodes import episode_tasks
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.trained import TrainedNetwork
from mamltheory.fewshot.uploads import normalise
from mamltheory.linalg import Converged
from mamltheory.nas import (
    NetworkSettings,
    OwnScore,
    Rung,
    Space,
    random_genotype,
    search,
    search_scorer,
    searches,
    short_trainings,
)
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.halving import Measured
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.network import derived_network
from mamltheory.nas.scoring.linear_regions import random_patches
from mamltheory.nas.scoring.operator_gradient import GradientScorer
from mamltheory.nas.scoring.score import Score, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.nas.search_scorer import scorer_by
from mamltheory.nas.short_trainings import different_genotypes
from mamltheory.nas.sizes import Band, genotype_parameters
from mamltheory.nas.spelling import operation_words
from mamltheory.rng import derived_seed, generator
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


def test_of_sampled_cells_the_first_by_their_score_is_found(data):
    def weights(network, few):  # noqa: ARG001
        return sum(each.numel() for each in network.parameters())

    found = search(data, score=weights, size=SIZE, parameters=BAND, samples=4, tasks=1, repeats=1)
    sizes = [genotype_parameters(each.genotype, SIZE) for each in found.sampled]
    assert len(set(sizes)) > 1
    assert sizes == sorted(sizes)
    trained = replace(SIZE, classes=len(data.train.class_names))
    assert [each.parameters for each in found.sampled] == [
        genotype_parameters(each.genotype, trained) for each in found.sampled
    ]
    assert {each.regions for each in found.sampled} == {None}  # they are no criterion, and not counted
    assert genotype_parameters(found.genotype, SIZE) == min(sizes)


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


class Recorded(CellScorer):
    """A scorer that knows no difference between operators, and keeps what it is asked for."""

    asked = ()

    def __call__(self, _, jobs):
        return {job: Score(4.0, 2.0) for job in jobs}

    def scores(self, networks, *index):
        Recorded.asked += ((self, networks, *index),)
        return [Score(4.0 + index[1], 2.0)]


PAIR = Space({name: Space().operations[name] for name in ("skip_connect", "conv_3x3")}, nodes=1)


@pytest.mark.parametrize(
    ("method", "kernel", "outputs"),
    [("metantk-nas", "maml", "full"), ("te-nas", "ntk", "sum"), ("regions", "maml", "full")],
)
def test_a_method_gives_its_settings_and_its_draws_to_the_scorer(data, monkeypatch, method, kernel, outputs):
    lines = []
    monkeypatch.setattr(Recorded, "asked", ())
    monkeypatch.setattr(search_scorer, "CellScorer", Recorded)
    counts = {"ways": 2, "shots": 3, "queries": 4, "tasks": 2, "repeats": 2}
    found = search(data, method, size=SIZE, space=PAIR, seed=5, progress=lines.append, **counts)
    scorer = Recorded.asked[0][0]
    assert Recorded.asked == tuple((scorer, [found.genotype.candidates()], 1, draw) for draw in range(4))
    assert found.scores == tuple(Score(4.0 + draw, 2.0) for draw in range(4))
    assert scorer.settings == ScoreSettings(kernel, outputs, dynamics=Converged(ridge=1e-3))
    assert scorer.network == NetworkSettings(2, 3, classes=2, stem_stride=4)
    assert (scorer.seed, scorer.device, scorer.memory, scorer.own) == (5, "cpu", None, None)
    assert lines == ["round 1: 4 operators left, 4 stay"]
    if method == "regions":
        assert scorer.tasks is None
    else:
        seed = int(torch.randint(2**62, (1,), generator=generator(1, "tasks")))
        expected = episode_tasks(data.train, 2, 2, 3, 4, seed, mean=data.mean, std=data.std)
        for task, other in zip(scorer.tasks(generator(1, "tasks")), expected, strict=True):
            assert torch.equal(task.query_x, other.query_x)
            assert torch.equal(task.support_x, other.support_x)
    stream = generator(2, "patches")
    rows = torch.randint(len(data.train), (300,), generator=stream).numpy()
    images = normalise(torch.from_numpy(data.train.images[rows]), data.mean, data.std)
    assert torch.equal(scorer.patches(generator(2, "patches")), random_patches(images, 3000, stream))


def test_an_own_score_is_reported_with_its_sign(data, monkeypatch):
    monkeypatch.setattr(search_scorer, "CellScorer", Recorded)
    score = OwnScore(lambda *_: 0.0, largest_is_best=True)
    found = search(data, score=score, size=SIZE, space=PAIR, ways=2, tasks=1, repeats=1)
    assert found.scores == (-4.0, -5.0, -6.0, -7.0)
    assert Recorded.asked[-1][0].patches is None


def test_a_search_has_tasks_of_five_ways_with_one_image_each_by_default():
    chosen = inspect.signature(search).parameters
    assert [chosen[name].default for name in ("ways", "shots", "queries", "seed")] == [5, 1, 1, 0]


def test_rules_name_the_scorer():
    scorer, chosen = CellScorer(SIZE, 0, tasks=lambda _: ()), {"criteria": ("condition",)}
    assert scorer_by(SearchSettings(**chosen), scorer) is scorer
    independent = SearchSettings(**chosen, common_random_numbers=False)
    assert scorer_by(independent, scorer) == IndependentDraws(scorer)
    assert scorer_by(SearchSettings(**chosen, estimator="gradient"), scorer) == GradientScorer(scorer)


def test_a_bar_has_the_rounds_of_a_search_with_two_inputs_or_the_rungs(data, monkeypatch):
    bars = []

    @contextmanager
    def bar(*given, **named):
        bars.append((given, named))
        yield lambda note: bars.append(note)

    monkeypatch.setattr(searches, "shown_progress", bar)
    found = search(data, "random", protocol="released", size=SIZE, seed=2)
    assert all(len(node) == 2 for node in (*found.genotype.normal.nodes, *found.genotype.reduce.nodes))
    assert found.scores == ()
    assert bars[0] == (("search", 10), {"patience": 0.0, "quiet": False})
    assert bars[1] == "round 1: 18 operators left, 108 stay"
    assert bars[10] == "round 10: 2 operators left, 12 stay"
    own = derived_network(found.genotype, found.network.settings, derived_seed(2, "training weights"))
    assert all(map(torch.equal, own.state_dict().values(), found.network.state_dict().values()))
    kept, best = ((Rung(2, 1), (1, 0)),), derived_network(random_genotype(generator(0, "best")), SIZE, 0)
    measured = (Measured(0.5, 0.25),)
    monkeypatch.setattr(short_trainings, "halve_in_memory", lambda *_: (kept, best, measured))
    stream = generator(2, "halving candidates")
    cells = different_genotypes(Band(*BAND), 2, stream, NetworkSettings(2, 3, 5, 4))
    found = search(data, "halving", size=SIZE, parameters=BAND, rungs=[Rung(2, 1)], seed=2)
    assert (found.genotype, found.scores, found.standings) == (cells[1], measured, kept)
    assert bars[-1] == (("search", 1), {"patience": 0.0, "quiet": False})


def test_settings_that_a_method_does_not_have_are_refused(data):
    for settings, message in (
        ({"method": "te-nass"}, "expected one of metantk-nas"),
        ({"protocol": "mine"}, "expected one of paper"),
        ({"method": "halving", "parameters": 5}, "parameters is 5: expected two numbers"),
        ({"method": "te-nas", "parameters": (1, 2)}, "leave it out, or choose halving or metantk-nas"),
        *(
            ({name: None}, f"{name} is None: expected a whole number")
            for name in ("ways", "shots", "queries")
        ),
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
