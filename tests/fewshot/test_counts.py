"""Counts for which data are too small are named together, with values that fit."""

import itertools

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot import TrainConfig, evaluate, tasks_from, train
from mamltheory.fewshot.counts import TaskCounts, certain_tasks, check_counts, fewer, shortage_of
from mamltheory.fewshot.episodes import sample_episode, sample_episodes
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.trained import TrainedNetwork
from mamltheory.fewshot.training_state import Inputs
from mamltheory.nas import NetworkSettings, published_genotypes, search
from tests.strategies import as_users_run_it

CELL, SIZE = published_genotypes()[0].genotype, NetworkSettings(channels=2, cells=3, stem_stride=4)


def split_of(name, sizes):
    """Small random images, so many in each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    return ImageSplit(images, labels.astype(np.int64), tuple(f"{name}{i}" for i in range(len(sizes))))


def data_of(train=(12,) * 4, val=(12,) * 2, test=(12,) * 2):
    splits = (split_of(name, sizes) for name, sizes in (("a", train), ("b", val), ("c", test)))
    return ImageData("own", *splits, mean=(0.5,) * 3, std=(0.2,) * 3)


OWN = data_of()


@pytest.mark.parametrize("sizes", [(12,) * 4, (2, 9, 4, 7, 5), (1, 1, 3, 8), (30, 2, 2, 2, 2, 2), (5,) * 9])
@pytest.mark.parametrize(("shots", "queries"), [(1, 1), (2, 1), (1, 3)])
def test_so_many_tasks_can_be_drawn_whatever_classes_they_are_of(sizes, shots, queries):
    split = split_of("a", sizes)
    for ways in range(1, sum(size >= shots + queries for size in sizes) + 1):
        most = certain_tasks(split.members, ways, shots + queries)
        uses = sorted(size // (shots + queries) for size in sizes)
        assert fewest_before_an_end(uses, ways) == most
        for seed in range(20):
            assert len(sample_episodes(split, most, ways, shots, queries, seed)) == most


def fewest_before_an_end(uses, ways):
    """The fewest tasks after which too few classes are left: at most, by classes that are used up early."""
    closed = uses[: len(uses) - ways + 1]  # fewer than `ways` classes are left
    return next(t for t in itertools.count() if all(use <= t for use in closed) and sum(closed) <= t * ways)


@pytest.mark.parametrize(
    ("given", "tasks", "batch", "reasons", "fitting"),
    [
        ({"ways": 5, "shots": 5, "queries": 15}, [TaskCounts("test")], None, 2, {"ways": 2, "queries": 7}),
        ({"ways": 2, "shots": 11, "queries": 1}, [TaskCounts("test")], None, 0, None),
        ({"ways": 2, "shots": 15, "queries": 2}, [TaskCounts("val")], None, 1, {"shots": 10}),
        ({"ways": 2, "shots": 15, "queries": 15}, [TaskCounts("val")], None, 1, {"shots": 6, "queries": 6}),
        (
            {"ways": 5, "shots": 1, "queries": 1, "tasks": 8},
            [TaskCounts("train", tasks="tasks")],
            None,
            2,
            {"ways": 4, "tasks": 6},
        ),
        (
            {"ways": 5, "shots": 1, "queries": 5, "tasks": 4},
            [TaskCounts("train", tasks="tasks"), TaskCounts("val", queries=1), TaskCounts("test", queries=1)],
            None,
            4,
            {"ways": 2, "tasks": 3},
        ),
        ({"size": 64}, [], "size", 1, {"size": 48}),
        ({"size": 64}, [TaskCounts("val", 5, 1, 15)], "size", 3, {}),
    ],
)
def test_every_count_that_does_not_fit_is_named_and_the_values_fit_together(
    given, tasks, batch, reasons, fitting
):
    found = shortage_of(OWN, given, tasks, batch)
    if not reasons:
        assert found is None
        return
    assert (len(found.reasons), found.fitting) == (reasons, fitting)
    assert (shortage_of(OWN, {**given, **fitting}, tasks, batch) is None) == bool(fitting)


def test_tasks_and_batches_of_the_values_that_fit_can_be_drawn():
    random = np.random.default_rng(1)
    for _ in range(60):
        data = data_of(*(random.integers(1, 14, random.integers(2, 7)) for _ in range(3)))
        names = ("ways", "shots", "queries", "tasks")
        given = dict(zip(names, (int(n) for n in random.integers(2, 12, 4)), strict=True))
        found = shortage_of(data, given, [TaskCounts("train", tasks="tasks"), TaskCounts("test")])
        if found is not None and not found.fitting:
            members = (*data.train.members, *data.test.members)
            assert min(map(len, members)) < 2
            continue
        fits = {**given, **(found.fitting if found else {})}
        ways, shots, queries, tasks = fits.values()
        assert len(sample_episodes(data.train, tasks, ways, shots, queries, 0)) == tasks
        sample_episode(data.test, ways, shots, queries, 0, 0)


def test_an_image_that_lacks_is_named_with_its_class():
    data = data_of(test=(3, 1, 5))
    with pytest.raises(
        ConfigurationError, match=r"shots \+ queries is 1 \+ 1, and the test class 'c1' has 1 image; give"
    ):
        check_counts(data, {"ways": 2, "shots": 1, "queries": 1}, [TaskCounts("test")])
    assert fewer(data.test, 5, 1, 15) == (3, 1)
    assert fewer(data_of(test=(3,)).test, 5, 1, 15) == (2, 2)


def test_python_names_all_counts_of_a_call_at_once():
    with as_users_run_it(), pytest.raises(ConfigurationError, match=r"fit: ways=4, tasks=6$") as caught:
        search(OWN, size=SIZE, tasks=8)
    assert "ways is 5, and there are 4 training classes; tasks is 8" in str(caught.value)
    with (
        as_users_run_it(),
        pytest.raises(ConfigurationError, match="there is 1 validation class; give data with"),
    ):
        search(data_of(val=(12,)), "halving", size=SIZE, parameters=(2500, 3200))
    with as_users_run_it(), pytest.raises(ConfigurationError, match=r"fit: batch_size=48$"):
        train(OWN, CELL, TrainConfig(), size=SIZE)
    with as_users_run_it(), pytest.raises(ConfigurationError, match=r"fit: count=6, ways=4$"):
        tasks_from(OWN, 8)
    assert len(tasks_from(OWN, 6, ways=4)) == 6


def test_an_evaluation_names_counts_and_image_size_at_once():
    data = glyph_data(16, 3, 2, 2, samples_per_class=4)
    module = CELL.to_module(channels=2, cells=3, classes=3, stem_stride=4)
    network = TrainedNetwork(
        module, Inputs(16, 3, data.mean, data.std, mirrors=False), data.train.class_names
    )
    with as_users_run_it(), pytest.raises(ConfigurationError, match=r"fit: ways=2, queries=3$"):
        evaluate(network, data)
    with (
        as_users_run_it(),
        pytest.raises(DataError, match=r"image_size=16; and own .* fit: ways=2, queries=11$"),
    ):
        evaluate(network, OWN)
