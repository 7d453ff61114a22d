"""Train, evaluate, predict, save and load from Python."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mamltheory.errors import CheckpointError, ConfigurationError, DataError, UnsupportedModelError
from mamltheory.fewshot import TrainConfig, TrainedNetwork, evaluate, load, tasks_from, train
from mamltheory.fewshot.evaluation import EvaluationConfig, evaluate_network
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.network_file import HEADER
from mamltheory.fewshot.resnet import resnet12
from mamltheory.fewshot.trained import NETWORK_FILE
from mamltheory.nas import NetworkSettings, random_genotype
from mamltheory.rng import generator

GENOTYPE = random_genotype(generator(0, "test cell"))
SIZE = NetworkSettings(channels=2, cells=3, stem_stride=4)
CONFIG = TrainConfig(epochs=2, batch_size=8, milestones=(1,), flip=False)


@pytest.fixture(scope="module")
def data():
    return glyph_data(16, 4, 3, 3, samples_per_class=6)


@pytest.fixture(scope="module")
def network(data):
    return train(data, GENOTYPE, CONFIG, size=SIZE)


def test_training_says_every_epoch_and_gives_a_network_in_evaluation_mode(data):
    seen = []
    network = train(data, GENOTYPE, CONFIG, size=SIZE, progress=seen.append)
    assert [each.epoch for each in seen] == [1, 2]
    assert not any(module.training for module in network.modules())
    assert network.genotype == GENOTYPE
    assert network.classes == data.train.class_names
    one, many = network.normalised(data.test.images[:1]), network.normalised(data.test.images)
    assert torch.allclose(network(one), network(many)[:1], atol=1e-5)


def test_a_module_of_a_user_is_trained_as_a_copy(data):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.Flatten()), nn.Linear(64, 4)

        def features(self, x):
            return self.body(x)

        def forward(self, x):
            return self.head(self.features(x))

    own = Own()
    before = own.head.weight.clone()
    network = train(data, own, CONFIG)
    assert torch.equal(own.head.weight, before)
    assert not torch.equal(network.network.head.weight, before)
    assert network.genotype is None
    assert evaluate(network, data, ways=3, queries=2, tasks=3, copies=0).interval.mean > 0
    with pytest.raises(UnsupportedModelError, match="state_dict"):
        network.save("nowhere")
    with pytest.raises(ConfigurationError, match="method features"):
        train(data, nn.Linear(2, 2), CONFIG)


def test_a_saved_network_comes_back_to_the_last_bit(network, data, tmp_path):
    assert network.save(tmp_path) == tmp_path / NETWORK_FILE
    for path in (tmp_path, str(tmp_path), tmp_path / NETWORK_FILE):
        again = load(path)
        assert not again.training
        assert (again.genotype, again.classes, again.inputs) == (
            network.genotype,
            network.classes,
            network.inputs,
        )
    x = network.normalised(data.test.images)
    assert torch.equal(again(x), network(x))
    assert [path.name for path in tmp_path.iterdir()] == [NETWORK_FILE]


def test_resnet_comes_back_as_well(tmp_path, network):
    inputs = network.inputs
    saved = TrainedNetwork(resnet12(len(network.classes), 3), inputs, network.classes)
    again = load(saved.save(tmp_path / "own.safetensors"))
    assert again.genotype is None
    assert all(map(torch.equal, again.parameters(), saved.parameters()))


def test_files_that_hold_no_network_are_refused(network, tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no .*its command is given again"):
        load(tmp_path)
    (tmp_path / NETWORK_FILE).write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no network of this package"):
        load(tmp_path / "other.safetensors")
    header = {
        "format": 1,
        "genotype": GENOTYPE.to_json(),
        "size": {"channels": 2, "cells": 1},
        "inputs": network.inputs.record(),
        "classes": ["a"],
    }
    for change in ({}, {"size": {"depth": 3}}, {"genotype": {"normal": []}}, {"size": {"cells": 3}}):
        text = {HEADER: json.dumps(header | change)}
        save_file({"a": torch.zeros(1)}, tmp_path / "wrong.safetensors", text)
        with pytest.raises(CheckpointError, match="no network of this package"):
            load(tmp_path / "wrong.safetensors")


def test_classes_are_predicted_from_arrays_and_files(network, data, tmp_path):
    images = data.train.images[:3]
    found = network.predict(images)
    logits = network(network.normalised(images))
    assert np.array_equal(found.labels, logits.argmax(1).numpy())
    assert np.allclose(found.confidence, logits.softmax(1).max(1).values.detach().numpy())
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    assert np.array_equal(network.predict(files).labels, found.labels)
    support = np.concatenate([images[:2]] * 2)
    few = network.predict(images[:2], support, [7, 3, 7, 3], copies=0, head="nearest-centroid")
    assert few.labels.tolist() == [7, 3]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), None, "n × 16 × 16 × 3"),
        (np.zeros((2, 16, 16, 3)), None, "uint8"),
        ("a word", None, "list of image files"),
        (np.zeros((2, 16, 16, 3), np.uint8), [0], "a whole number for each"),
    ],
)
def test_other_images_and_labels_are_refused(network, images, labels, message):
    good = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(DataError, match=message):
        network.predict(good if labels else images, images if labels else None, labels)


def test_an_evaluation_is_that_of_the_evaluation_of_networks(network, data):
    settings = {"ways": 3, "queries": 2, "tasks": 4}
    found = evaluate(network, data, **settings, copies=1, seed=3)
    config = EvaluationConfig(**settings, copies=1, flip=False)
    same = evaluate_network(network.network, data.test, data.mean, data.std, config, 3)
    assert np.array_equal(found.correct, same.correct)
    with pytest.raises(DataError, match="image_size=16"):
        evaluate(network, glyph_data(20, 3, 2, 2, samples_per_class=4))
    with pytest.raises(ConfigurationError, match="expected one of test"):
        evaluate(network, data, split="all")


def test_tasks_share_no_image_and_follow_the_seed(data, tmp_path):
    tasks = tasks_from(data, 3, ways=2, queries=1, seed=1)
    images = torch.cat([part for task in tasks for part in (task.query_x, task.support_x)])
    assert len(torch.unique(images.flatten(1), dim=0)) == len(images) == 12
    assert torch.equal(tasks[0].query_x, tasks_from(data, 3, ways=2, seed=1)[0].query_x)
    assert not torch.equal(tasks[0].query_x, tasks_from(data, 3, ways=2, seed=2)[0].query_x)
    with pytest.raises(DataError):
        tasks_from(str(tmp_path / "none"))
