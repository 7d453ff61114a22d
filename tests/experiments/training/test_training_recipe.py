"""Every number of the training presets against the paper's sentence, or the reason for another one."""

import dataclasses
import math
from pathlib import Path

import pytest

from experiments.genotypes import network_size
from experiments.training.settings import EVALUATE, TRAIN, Evaluate, Train
from experiments.training.train import train_config
from mamltheory.fewshot.augment import default_padding
from mamltheory.fewshot.glyphs import GLYPH_SETS
from mamltheory.fewshot.training import TrainConfig
from mamltheory.nas.network import NetworkSettings
from tests.fewshot.small import noise_data

EXPERIMENTS = ("mini-5", "mini-8", "tiered-5", "tiered-8")

# Section 6.1 [6.1] and Appendix E [E] of the paper; values for mini-5, mini-8, tiered-5, tiered-8.
STATED = {
    "cells": ("[6.1] by stacking 5 or 8 searched cells together", 5, 8, 5, 8),
    "channels": ("[6.1] We set the initial number of channels to 48", 48, 48, 48, 48),
    "image_size": ("[6.1] RGB images of 84x84 pixels", 84, 84, 84, 84),
    "epochs": ("[6.1] 100 epochs and 60 epochs on miniImageNet and tieredImageNet", 100, 100, 60, 60),
    "learning_rate": (
        "[6.1] 0.02 initially ... For tieredImageNet, the learning rate is 0.01",
        *(0.02, 0.02, 0.01, 0.01),
    ),
    "milestones": (
        "[6.1] decayed by 10x at epoch 60 and 80 ... at epochs 30, 40, 50",
        *((60, 80), (60, 80), (30, 40, 50), (30, 40, 50)),
    ),
    "momentum": ("[6.1] a momentum of 0.9", 0.9, 0.9, 0.9, 0.9),
    "weight_decay": ("[6.1] a weight decay of 0.0005", 0.0005, 0.0005, 0.0005, 0.0005),
    "batch_size": (
        "[E] For all 5-cells experiments 64; 40 for miniImageNet and 56 for tieredImageNet",
        *(64, 40, 64, 56),
    ),
    "drop_path": ("[E] dropout rate of 0.2 and 0.1 ... gradually increase", 0.2, 0.2, 0.1, 0.1),
    "validate_every": ("[6.1] We always take the model checkpoints at the end of training", 0, 0, 0, 0),
}
# What the paper leaves open, with the released code's value [code] or the reason for ours.
OPEN = {
    "stem_stride": ("[code] the stem keeps the resolution", 1),
    "network": ("the row of the searched cells; --network resnet12 for the row of RFS", "cells"),
    "precision": ("V100 and PyTorch's default of the time", "fp32"),
    "split": ("the data come with their splits", None),
    "split_seed": ("the data come with their splits", 0),
    "mirrors": ("the data are photographs, which may be mirrored", None),
    "channels_last": ("changes roundings alone", True),
    "seed": ("at least 3 runs of different random seeds: --seed 0, 1, 2", 0),
    "save_minutes": ("changes no number", 10.0),
    "validation_tasks": ("unused without validation", 200),
    "device": ("a single GPU", "auto"),
}
PATHS = {"data", "genotype", "out"}
WITHOUT_NUMBERS = {"tensorboard"}


@pytest.mark.paper(
    "Sec. 6.1: optimisation",
    "Sec. 6.1: training by RFS",
    "Sec. 6.1: network",
    "Sec. 6.1: model selection",
    "App. E: batch size",
    "App. E: dropout",
)
def test_every_setting_of_a_preset_is_the_papers_or_has_a_reason():
    names = {field.name for field in dataclasses.fields(Train)}
    assert names == set(STATED) | set(OPEN) | PATHS | WITHOUT_NUMBERS, "a setting without a source"
    for i, experiment in enumerate(EXPERIMENTS):
        preset = TRAIN[experiment]
        assert {name: getattr(preset, name) for name in STATED} == {n: v[i + 1] for n, v in STATED.items()}
        assert {name: getattr(preset, name) for name in OPEN} == {n: v[1] for n, v in OPEN.items()}


@pytest.mark.paper("Sec. 6.1: optimisation")
def test_what_the_settings_leave_to_the_recipe_is_the_papers_too():
    config = train_config(TRAIN["mini-5"], noise_data())
    # [6.1] "decayed by 10x"; [E] "random cropping, color jittering, and random horizontal flip", RFS: 8 pixels, 0.4.
    assert (config.decay, config.jitter, config.flip, config.padding) == (0.1, 0.4, True, None)
    assert default_padding(84) == 8
    assert dataclasses.replace(config, seed=0) == TrainConfig()  # the defaults of the package
    size = network_size(TRAIN["mini-5"], 64)
    assert size == NetworkSettings()


def test_the_glyph_stand_in_has_the_recipe_of_mini_5_and_the_data_of_its_size():
    ours, papers = TRAIN["glyph-84"], TRAIN["mini-5"]
    assert {
        f.name for f in dataclasses.fields(Train) if getattr(ours, f.name) != getattr(papers, f.name)
    } == PATHS
    # [6.1] "100 classes (each with 600 images) that are split into 64 training classes, 16 validation and 20 test"
    sizes = GLYPH_SETS[ours.data]
    assert [sizes[f"{split}_classes"] for split in ("train", "val", "test")] == [64, 16, 20]
    assert (sizes["samples_per_class"], sizes["image_size"]) == (600, ours.image_size)
    assert sum(sizes[f"{split}_classes"] for split in ("train", "val", "test")) * 600 == 60_000


@pytest.mark.parametrize("shots", [1, 5])
def test_the_glyph_stand_in_is_evaluated_as_mini_5_is(shots):
    ours, papers = (EVALUATE[f"{name}-{shots}-shot"] for name in ("glyph-84", "mini-5"))
    different = {
        f.name for f in dataclasses.fields(Evaluate) if getattr(ours, f.name) != getattr(papers, f.name)
    }
    assert different == {"checkpoint", "out"}
    training = TRAIN["glyph-84"]
    assert (ours.checkpoint, ours.data) == (training.out, None), "the data are those of the training"


def test_the_smoke_preset_is_small_and_trains_what_its_search_found():
    smoke = TRAIN["glyph-smoke"]
    assert smoke.genotype == Path("runs/glyph-smoke/search/genotype.json")
    steps = smoke.epochs * math.floor(96 * 30 / smoke.batch_size)
    assert steps < 200
