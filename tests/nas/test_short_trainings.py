"""Tasks, recipe and candidates of the halving of short trainings, number by number."""

import dataclasses
import math
from collections import namedtuple

import numpy as np
import pytest
import torch

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.counts import TaskCounts
from mamltheory.fewshot.episodes import sample_episode
from mamltheory.fewshot.prototypes import prototype_accuracies, split_features
from mamltheory.fewshot.training import TrainConfig, TrainState
from mamltheory.nas import NetworkSettings, Rung, random_genotype, short_trainings
from mamltheory.nas.algorithms.halving import Measured
from mamltheory.nas.sizes import Band
from mamltheory.rng import derived_seed, generator
from tests.fewshot.small import SmallNet, noise_data

DATA = noise_data(size=8, classes=4, per_class=10)
LARGE = noise_data(size=4, classes=6, per_class=20)


def test_tasks_have_5_ways_and_15_queries_or_as_many_as_there_are():
    assert short_trainings.task_counts(DATA, "val") == TaskCounts("val", 4, 1, 9)
    assert short_trainings.questions(DATA, "val") == 36
    assert short_trainings.task_counts(LARGE, "test") == TaskCounts("test", 5, 1, 15)
    assert short_trainings.questions(LARGE, "test") == 75


def test_candidates_are_measured_on_the_same_thousand_episodes():
    found = short_trainings.ranking_tasks(DATA, "val", 3)
    assert len(found) == 1000
    seed = derived_seed(3, "halving tasks val")
    for index in (0, 999):
        expected = sample_episode(DATA.val, 4, 1, 9, seed, index)
        for name in ("classes", "support", "query"):
            np.testing.assert_array_equal(getattr(found[index], name), getattr(expected, name))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_accuracies_are_those_of_the_nearest_prototype_in_the_usual_layout(layout, monkeypatch):
    network = SmallNet().to(memory_format=layout)
    tasks = short_trainings.ranking_tasks(DATA, "test", 0, 5)
    features = split_features(SmallNet(), DATA.test, DATA.mean, DATA.std, "cpu")
    found = short_trainings.ranking_accuracies(network, DATA, "test", tasks, "cpu")
    np.testing.assert_array_equal(found, prototype_accuracies(features, tasks))
    used = []
    monkeypatch.setattr(short_trainings, "split_features", lambda *given: used.append(given[0]) or features)
    short_trainings.ranking_accuracies(network, DATA, "test", tasks, "cpu")
    assert used[0].body[0].weight.is_contiguous()
    assert (used[0] is network) == (layout is torch.contiguous_format)
    assert network.body[0].weight.is_contiguous(memory_format=layout), "the network stays as it is"


def test_the_recipe_is_the_usual_training_with_another_rate():
    usual = TrainConfig(
        learning_rate=0.1, epochs=8, milestones=(7,), drop_path=0.0, flip=DATA.mirrors, seed=4
    )
    assert short_trainings.recipe(LARGE, 8, 4) == usual
    few = dataclasses.replace(usual, batch_size=40, epochs=11, milestones=(7, 10))
    assert short_trainings.recipe(DATA, 11, 4) == few
    assert short_trainings.recipe(DATA, 10, 4).milestones == (7,)
    assert not short_trainings.recipe(dataclasses.replace(DATA, mirrors=False), 8, 4).flip


def test_twenty_cells_are_drawn_for_each_that_is_wanted(monkeypatch):
    cells = [random_genotype(generator(0, "cells", i)) for i in range(2)]
    drawn, checks, size = [], [], NetworkSettings(2, 3, 5)

    def draw(*given, **named):
        drawn.append((given, named))
        return cells[len(drawn) // 3 % 2]

    monkeypatch.setattr(short_trainings, "random_genotype_within", draw)
    random, band = generator(0, "x"), Band(3, 4)
    found = short_trainings.different_genotypes(
        band, 2, random, size, check=lambda: checks.append(len(drawn))
    )
    assert found == tuple(cells)
    assert checks == [1, 2, 3]
    assert drawn[0] == ((band, random, size, "two"), {"space": short_trainings.PAPER})
    drawn.clear()
    with pytest.raises(
        ConfigurationError, match=r"only 2 different cells with 3:4 parameters .* 3 are needed"
    ):
        short_trainings.different_genotypes(band, 3, random, size)
    assert len(drawn) == 60


Metrics = namedtuple("Metrics", "loss")


class Trained(TrainState):
    """A training whose accuracy after an epoch is planted; one without an accuracy diverges."""

    def __init__(self, number):
        parts = {
            "number": number,
            "data": DATA,
            "device": "cpu",
            "epoch": 0,
            "network": torch.nn.Linear(1, 1),
        }
        vars(self).update(parts)


PLANTED = {(0, 1): 0.25, (1, 1): 0.5, (2, 1): None, (3, 1): 0.375, (1, 3): 0.125, (3, 3): 0.75}


def test_rungs_keep_the_best_and_say_how_good_they_are(monkeypatch):
    lines, trained, states, lengths = [], [], [], set()
    cells = [random_genotype(generator(0, "cells", i)) for i in range(4)]
    rungs, size = (Rung(4, 1), Rung(2, 3)), NetworkSettings(2, 3, 4)

    def start(network, data, config, device):
        cell, *rest = network
        assert rest == [size, 5]
        assert (data, config, device) == (DATA, short_trainings.recipe(DATA, config.epochs, 5), "cpu")
        lengths.add(config.epochs)
        states.append(Trained(cells.index(cell)))
        return states[-1]

    def train(state, epoch):
        if PLANTED[state.number, epoch] is None:
            raise ValueRangeError("the loss is not finite")
        trained.append((state.number, epoch))
        vars(state)["epoch"] = epoch
        yield state, Metrics(state.number + epoch / 10)

    def accuracies(network, data, name, tasks, device):
        assert (data, name, len(tasks), device) == (DATA, "val", 1000, "cpu")
        state = next(each for each in states if each.network is network)
        return np.array([PLANTED[state.number, state.epoch], 0.25])

    monkeypatch.setattr(short_trainings, "untrained_network", lambda *given: given)
    monkeypatch.setattr(short_trainings, "start_training", start)
    monkeypatch.setattr(short_trainings, "trained_to", train)
    monkeypatch.setattr(short_trainings, "ranking_accuracies", accuracies)
    standings, network, measured = short_trainings.halve_in_memory(
        DATA, cells, rungs, size, 5, "cpu", lines.append
    )
    assert standings == ((rungs[0], (1, 3, 0, 2)), (rungs[1], (3, 1)))
    assert measured == (Measured(3.1, 0.3125), Measured(3.3, 0.5))
    assert network is states[3].network
    assert trained == [(0, 1), (1, 1), (3, 1), (1, 3), (3, 3)]
    assert lines == [
        "epoch 1: 4 cells, the best with 37.5 % on validation tasks",
        "epoch 3: 2 cells, the best with 50.0 % on validation tasks",
    ]
    assert lengths == {3}
    (only,), *_ = short_trainings.halve_in_memory(DATA, cells, rungs[:1], size, 5, "cpu", lines.append)
    assert only == (rungs[0], (1, 3, 0, 2))


def test_a_training_without_another_epoch_has_no_loss(monkeypatch):
    monkeypatch.setattr(short_trainings, "trained_to", lambda state, _: [(state, None)])
    monkeypatch.setattr(short_trainings, "ranking_accuracies", lambda *_: np.array([0.5, 0.75]))
    _, measured = short_trainings._trained(Trained(0), 3, ())
    assert math.isnan(measured.loss)
    assert (measured.accuracy, measured.diverged) == (0.625, False)
