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
from mamltheory.fewshot.given_images import images_of_side
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.network_file import HEADER, NETWORK_FILE
from mamltheory.fewshot.resnet import resnet12
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
        (np.zeros((2, 16, 16, 3)), None, r"float64 with the shape 2 .*astype\(numpy.uint8\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), None, "channels last"),
        ([], None, "empty list"),
        ([np.zeros((16, 16, 3), np.uint8), "file"], None, "a list of ndarray and str"),
        ("a word", None, "list of image files"),
        (np.zeros((2, 16, 16, 3), np.uint8), [0], "a whole number for each"),
        (np.zeros((2, 16, 16, 3), np.uint8), [0, "cat"], "text and other values"),
        (np.zeros((2, 16, 16, 3), np.uint8), np.array([0.5, 1.5]), "a whole number for each"),
    ],
)
def test_other_images_and_labels_are_refused(network, images, labels, message):
    good = np.zeros((2, 16, 16, 3), np.uint8)
    given = (images,) if labels is None else (good, images, labels)
    with pytest.raises(DataError, match=message):
        network.predict(*given)


def test_images_are_taken_in_every_unambiguous_form(network, data, tmp_path):
    images = data.train.images[:2]
    pictures = [Image.fromarray(image) for image in images]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    expected = network.predict(images).confidence
    forms = [
        pictures,
        [*images],
        torch.from_numpy(images),
        tmp_path,
        str(tmp_path),
        sorted(tmp_path.iterdir()),
    ]
    for form in forms:
        assert np.array_equal(network.predict(form).confidence, expected)
    for one in (images[0], pictures[0], tmp_path / "0.png"):
        assert np.allclose(network.predict(one).confidence, expected[:1])
    large = pictures[0].resize((40, 30)).convert("RGBA")
    assert network.normalised(large).shape == (1, 3, 16, 16)
    with pytest.raises(DataError, match="is 7: expected a list of image files"):
        images_of_side(16, "images", 7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        network.predict(tmp_path / "empty")


def test_labels_of_new_classes_may_be_names(network, data):
    images = data.train.images[:2]
    settings = {"copies": 0, "head": "nearest-centroid"}
    assert network.predict(images, images, ["wolf", "ant"], **settings).labels.tolist() == ["wolf", "ant"]
    assert network.predict(images, images, torch.tensor([5, 2]), **settings).labels.tolist() == [5, 2]
    with pytest.raises(DataError, match="labels are given without images"):
        network.predict(images, labels=[1, 2])


def test_an_input_that_is_not_normalised_is_refused(network):
    for wrong in (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 16, 16, 3)):
        for call in (network, network.features):
            with pytest.raises(DataError, match="normalise uint8 images"):
                call(wrong)


def test_a_network_has_a_short_text_and_a_drawing(network):
    assert repr(network).startswith("TrainedNetwork(4 classes, images of 16×16, ")
    assert "parameters, Genotype(normal: " in repr(network)
    assert len(repr(network)) < 400
    assert "<svg" in network._repr_html_()


def test_a_file_of_another_kind_is_kept(network, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(ConfigurationError, match="holds no network of this package"):
        network.save(file)
    assert file.read_text() == "mine"
    assert network.save(tmp_path / "a.safetensors") == network.save(tmp_path / "a.safetensors")
    with pytest.raises(ConfigurationError, match="cannot write"):
        network.save(tmp_path / "none" / "a.safetensors")


def test_a_genotype_is_trained_from_its_file_and_has_no_weights_to_load(network, data, tmp_path):
    file = GENOTYPE.save(tmp_path / "genotype.json")
    for path in (file, str(tmp_path)):
        again = train(data, path, CONFIG, size=SIZE)
        assert again.genotype == GENOTYPE
    with pytest.raises(CheckpointError, match="no weights: train a genotype first"):
        load(file)
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(CheckpointError, match="folder of a search, which holds cells without weights"):
        load(tmp_path)
    (tmp_path / "train").mkdir()
    network.save(tmp_path / "train")
    with pytest.raises(CheckpointError, match="which it trained"):
        load(tmp_path)


def test_tasks_are_made_of_images_in_memory(data):
    names = np.array(data.train.class_names)[data.train.labels]
    for labels in (data.train.labels, names, list(names)):
        for images in (data.train.images, torch.from_numpy(data.train.images)):
            task = tasks_from((images, labels), 2, ways=3, queries=2)[0]
            assert task.query_x.shape == (6, 3, 16, 16)
    same = tasks_from((data.train.images, data.train.labels), 2, ways=3)
    assert torch.equal(same[0].query_x, tasks_from(data, 2, ways=3)[0].query_x)
    with pytest.raises(DataError, match="float64 with the shape"):
        tasks_from((data.train.images / 255, data.train.labels))
    with pytest.raises(DataError, match="a whole number for each"):
        tasks_from((data.train.images, [1, 2]))
    with pytest.raises(DataError, match="a tuple of 3"):
        tasks_from((1, 2, 3))
    with pytest.raises(ConfigurationError, match="leave both out"):
        tasks_from((data.train.images, data.train.labels), split="test")


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
