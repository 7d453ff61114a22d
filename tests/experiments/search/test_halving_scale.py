"""Halving at a smaller scale than the network's: what is counted, what is trained in the end, and what it costs."""

import dataclasses
import json
import shlex

import pytest

from experiments import __main__ as shell
from experiments.search import halving, halving_report, search
from experiments.search.settings import SEARCH
from experiments.training.trained import read_training
from mamltheory.errors import ConfigurationError
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.sizes import Band, genotype_parameters, random_genotype_within
from mamltheory.rng import generator
from mamltheory.runtime.runlog import read_run
from tests.experiments.search.halving_cases import BAND, enough_images, halving_settings  # noqa: F401 - a fixture
from tests.experiments.stops import counted

pytestmark = pytest.mark.usefixtures("enough_images")
SIZE = NetworkSettings(4, 3, 6, 4)


@pytest.mark.slow
def test_a_search_at_a_small_scale_trains_what_it_found_at_full_scale(tmp_path, capsys):
    settings = halving_settings(
        tmp_path, search_channels=2, confirm=0, seed=3, then_train="glyph-smoke", data="glyphs"
    )
    assert search.search_and_draw(settings) == 0
    found = json.loads((tmp_path / "search.json").read_text())
    trained = read_training(settings.out / "train")
    assert trained.settings.channels == 4
    assert trained.settings.epochs == 3
    assert trained.genotype.to_json() == found["genotype"]
    assert genotype_parameters(trained.genotype, SIZE) == found["parameters"]
    assert found["parameters"] in Band(5000, 8000)
    for number in range(4):
        config = read_run(settings.out / "candidates" / f"{number:03d}")["config"]
        assert (config["channels"], config["cells"], config["image_size"]) == (2, 3, 16)
    assert 0.25 * 8 / 3 < found["cost"]["full trainings"] < 0.7 * 8 / 3
    assert f"evaluate it: python -m experiments evaluate --checkpoint {settings.out / 'train'}" in (
        capsys.readouterr().out
    )
    with pytest.raises(ConfigurationError, match="then_train"):
        search.search_cells(dataclasses.replace(settings, then_train=None))


def test_under_torchrun_the_full_training_is_a_command_for_all_processes(tmp_path, monkeypatch, capsys):
    settings = halving_settings(tmp_path / "a b", then_train="glyph-smoke", seed=5)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with counted(search, "train_network") as trained:
        search.train_found(settings, None)
    assert trained == []
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("train it: torchrun --nproc-per-node 4 -m experiments train --preset glyph-smoke ")
    words = shlex.split(line)
    resolved = shell.resolve("train", words[words.index("-m") + 3 :])
    assert resolved == halving.full_training(settings)


@pytest.mark.parametrize("name", ["mini-5-halving", "tiered-8-halving"])
def test_a_search_of_the_papers_data_costs_less_than_one_training(name):
    settings, classes = SEARCH[name], 64 if "mini" in name else 351
    size = NetworkSettings(settings.channels, settings.cells, classes, settings.stem_stride)
    band = Band(*map(int, settings.parameters.split(":")))
    genotype = random_genotype_within(band, generator(0, "preset"), size)
    cost = halving_report.full_trainings(settings, genotype, classes)
    assert 0.005 < cost < 0.1
    alike = {f"search_{each}": None for each in ("channels", "cells", "image_size", "stem_stride")}
    assert (
        halving_report.full_trainings(dataclasses.replace(settings, **alike), genotype, classes) > 20 * cost
    )
    full = halving.full_training(settings)
    usual = halving_report.TRAIN[settings.then_train]
    assert dataclasses.replace(full, genotype=usual.genotype, out=usual.out) == usual


def test_the_band_is_that_of_the_full_network(tmp_path):
    settings = halving_settings(tmp_path, search_channels=2)
    for genotype in halving.checked_candidates(settings):
        assert genotype_parameters(genotype, SIZE) in Band(*map(int, BAND.split(":")))
