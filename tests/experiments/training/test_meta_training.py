"""The command meta-train on few tiny images: curves, an interval, and the same bits whatever stops it."""

import dataclasses
import json
import re

import pytest
import torch

from experiments.training import meta_train
from experiments.training.settings import META_TRAIN, MetaTrain
from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.meta_train import meta_train_step, start_meta_training
from mamltheory.runtime.checkpoint import load_state, save_state
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.stops import ctrl_c_during
from tests.experiments.tiny import files, meta_train_settings
from tests.fewshot.small import noise_data


@pytest.fixture(scope="module", autouse=True)
def _few_glyphs():
    data = glyph_data(16, 6, 6, 6, samples_per_class=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meta_train, "cached_data", lambda *_: data)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    settings = meta_train_settings(tmp_path_factory.mktemp("meta") / "run")
    assert meta_train.meta_train(settings) == 0
    return settings


def test_a_meta_training_leaves_its_curves_and_its_result(whole):
    curves = {f"meta_curves.{end}" for end in ("png", "pdf", "json")}
    assert {f for f in files(whole.out) if not f.startswith("state/")} == curves | {
        "run.json",
        "metrics.jsonl",
    }
    data = json.loads((whole.out / "meta_curves.json").read_text())["data"]
    assert data["step"] == [2, 4, 5]
    assert data["chance"] == pytest.approx(1 / 3)
    results = read_run(whole.out)["results"]
    assert 0 <= results["accuracy"] <= 1
    assert results["cpu_seconds"] == load_state(whole.out / "state", print).state["cpu_seconds"] > 0


@pytest.mark.parametrize("call", [1, 4])
def test_a_meta_training_stopped_after_any_step_goes_on_bit_for_bit(whole, tmp_path, call, capsys):
    settings = meta_train_settings(tmp_path / "run")
    with ctrl_c_during(meta_train, "meta_train_step", call) as stopped:
        meta_train.meta_train(settings)
    assert stopped.value.continue_with == f"python -m experiments meta-train --config {settings.out}"
    numbers = load_state(settings.out / "state", print).state
    assert numbers["step"] == call
    capsys.readouterr()
    assert meta_train.meta_train(settings) == 0
    assert re.match(r"\d+\.\d\d ± \d+\.\d\d % \(95 % interval over 3 tasks", capsys.readouterr().out)
    ours, theirs = (load_state(each.out / "state", print).tensors for each in (settings, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_metrics(settings.out) == read_metrics(whole.out)
    results, expected = (read_run(each.out)["results"] for each in (settings, whole))
    assert results.pop("cpu_seconds") > numbers["cpu_seconds"] > 0
    assert results == {name: value for name, value in expected.items() if name != "cpu_seconds"}


def test_a_finished_meta_training_keeps_its_cpu_seconds_and_one_that_lacks_them_gets_none(whole, tmp_path):
    seconds = read_run(whole.out)["results"]["cpu_seconds"]
    assert meta_train.meta_train(whole) == 0
    assert read_run(whole.out)["results"]["cpu_seconds"] == seconds
    settings = meta_train_settings(tmp_path / "run")
    with ctrl_c_during(meta_train, "meta_train_step", 2):
        meta_train.meta_train(settings)
    found = load_state(settings.out / "state", print)
    numbers = {name: value for name, value in found.state.items() if name != "cpu_seconds"}
    save_state(settings.out / "state", found.tensors, numbers)
    assert meta_train.meta_train(settings) == 0
    assert "cpu_seconds" not in read_run(settings.out)["results"]


def test_settings_can_be_chosen_on_validation_classes_without_a_look_at_the_test_classes(
    whole, tmp_path, monkeypatch, capsys
):
    data = meta_train.cached_data()
    seen = []
    tried = meta_train.adapted_accuracies
    monkeypatch.setattr(
        meta_train,
        "adapted_accuracies",
        lambda state, split, *rest: seen.append(split) or tried(state, split, *rest),
    )
    settings = meta_train_settings(tmp_path / "run", split="val")
    assert meta_train.meta_train(settings) == 0
    assert all(split is data.val for split in seen)
    assert "3 tasks of unseen validation classes" in capsys.readouterr().out
    assert read_run(settings.out)["results"] != read_run(whole.out)["results"]
    ours, theirs = (load_state(each.out / "state", print).tensors for each in (settings, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_wrong_settings_are_refused():
    for wrong in ({"image_size": 8}, {"ways": 1}, {"inner_rate": 0.0}, {"learning_rate": float("nan")}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            MetaTrain(**wrong)


@pytest.mark.parametrize("name", META_TRAIN)
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_the_inner_loop_of_a_preset_does_not_explode_on_its_first_task(name, algorithm):
    settings = dataclasses.replace(META_TRAIN[name], algorithm=algorithm, tasks=1, queries=1)
    network = conv4(5, settings.image_size, 0, settings.channels)
    data = noise_data(settings.image_size, per_class=2)
    _, metrics = meta_train_step(start_meta_training(network, data, meta_train.meta_train_config(settings)))
    assert metrics.loss < 4  # zero outputs have 0.4, half of 0.8² + 4 · 0.2²


@pytest.mark.slow
def test_the_smoke_preset_learns_to_adapt_to_unseen_classes(tmp_path, monkeypatch):
    """The preset as it is, two minutes of a CPU: far above chance, and above what it could before training."""
    monkeypatch.setattr(meta_train, "cached_data", lambda _, size: glyph_data(size))
    settings = META_TRAIN["glyph-smoke"]
    settings = type(settings)(**{**vars(settings), "out": tmp_path, "device": "cpu"})
    assert meta_train.meta_train(settings) == 0
    results = read_run(tmp_path)["results"]
    assert results["accuracy"] - results["half_width"] > 0.35
    assert results["before"][0] + results["before"][1] < results["accuracy"] - results["half_width"]
