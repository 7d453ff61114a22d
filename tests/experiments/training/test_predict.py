"""Prediction on a user's folder of images: the classes found, the files written, clear refusals."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as shell
from experiments.data import loading
from experiments.training import evaluate, predict
from experiments.training.settings import Predict
from experiments.training.trained import read_training
from mamltheory.errors import CheckpointError, ConfigurationError, DataError
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.heads import fit_predict, unit_norm
from mamltheory.fewshot.training_state import inputs_of, recorded_inputs
from mamltheory.fewshot.uploads import normalise, take
from mamltheory.runtime.checkpoint import load_state, save_state
from mamltheory.runtime.runlog import read_run
from tests.experiments.tiny import evaluate_settings, files
from tests.fewshot.small import noise_data
from tests.html_pages import Elements, fetched_by

pytestmark = pytest.mark.usefixtures("few_images")
SHOTS, QUERIES = 4, 4


@pytest.fixture
def folder(tmp_path, few_images):
    """Glyphs of three test classes, written as a user would keep them; queries are named by their class."""
    for number in range(3):
        rows = few_images.test.members[number]
        for place, chosen in (
            (f"support/class {number}", rows[:SHOTS]),
            ("query", rows[SHOTS : SHOTS + QUERIES]),
        ):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            for row in chosen:
                Image.fromarray(few_images.test.images[row]).save(tmp_path / place / f"{number}-{row}.png")
    return tmp_path


def settings_of(trained, folder, **others):
    usual = {
        "checkpoint": trained.out,
        "images": folder,
        "augment": 0,
        "device": "cpu",
        "out": folder / "run",
    }
    return Predict(**usual | others)


def table(settings):
    with (settings.out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("head", ["logistic", "svc", "svc-scaled", "nearest-centroid"])
def test_the_predictions_are_those_of_the_evaluations_head_on_the_same_images(
    trained, folder, few_images, head
):
    settings = settings_of(trained, folder, head=head)
    assert predict.write_predictions(settings) == 0
    network = read_training(trained.out).network.eval()
    rows = [few_images.test.members[number] for number in range(3)]

    def features(chosen):
        x = normalise(take(few_images.test.images, np.concatenate(chosen)), few_images.mean, few_images.std)
        return unit_norm(network.features(x).detach().numpy())

    support, query = features([r[:SHOTS] for r in rows]), features([r[SHOTS : SHOTS + QUERIES] for r in rows])
    expected, _ = fit_predict(head, 1.0, support, np.repeat(np.arange(3), SHOTS), query)
    names = [f"{number}-{row}.png" for number in range(3) for row in rows[number][SHOTS : SHOTS + QUERIES]]
    found = {line["file"]: line["class"] for line in table(settings)}
    assert found == {name: f"class {label}" for name, label in zip(names, expected, strict=True)}


def test_a_table_and_a_summary_are_left(trained, folder, capsys):
    (folder / "query" / "notes.txt").write_text("mine")
    settings = settings_of(trained, folder, augment=2)
    predict.write_predictions(settings)
    lines = table(settings)
    assert len(lines) == 3 * QUERIES
    assert list(lines[0]) == ["file", "class", "probability"]
    assert all(1 / 3 <= float(line["probability"]) <= 1 for line in lines)
    said = capsys.readouterr().out
    assert said.startswith(
        "12 images in 3 classes, from 4 labelled images per class (2 augmented copies of each)"
    )
    for number in range(3):
        count = sum(line["class"] == f"class {number}" for line in lines)
        assert f"  class {number}: {count}\n" in said
    least = min(lines, key=lambda line: float(line["probability"]))
    assert f"least certain, by probability: {least['file']}" in said
    assert "1 other files were left out" in said
    assert files(settings.out) == {"predictions.csv", "run.json"}
    assert read_run(settings.out)["results"]["summary"] == said.splitlines()[:-1]
    assert shell.main(["report", str(settings.out), "--out", str(folder / "page.html")]) == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    words = " ".join(Elements(page).words)
    assert "<h1>12 images in 3 classes</h1>" in page
    assert "From 4 labelled images per class (2 augmented copies of each)" in words
    assert f"{lines[0]['file']} {lines[0]['class']} {float(lines[0]['probability']):.3f}" in words
    assert "CPU time" in words
    assert "not recorded" not in words
    assert fetched_by(page) == []


def test_a_prediction_repeats_exactly_and_depends_on_the_seed_of_the_augmentation(trained, folder):
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        settings = settings_of(trained, folder, augment=3, seed=seed, out=folder / f"run {number}")
        predict.write_predictions(settings)
        texts.append((settings.out / "predictions.csv").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_images_of_another_size_and_in_grey_are_fitted_to_the_network(trained, folder):
    for file in (folder / "query").iterdir():
        Image.open(file).convert("L").resize((40, 33)).save(file.with_suffix(".jpg"))
        file.unlink()
    settings = settings_of(trained, folder)
    predict.write_predictions(settings)
    assert all(line["file"].endswith(".jpg") for line in table(settings))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "query").rename(folder / "queries"), "no folder .*query"),
        (
            lambda folder: [f.unlink() for f in (folder / "support/class 1").iterdir()],
            "class 1 holds no image",
        ),
        (lambda folder: [f.unlink() for f in (folder / "query").iterdir()], "query holds no image"),
        (lambda folder: (folder / "query" / "z.png").write_text("no picture"), "z.png"),
        (
            lambda folder: [(folder / "support" / f"class {i}").rename(folder / str(i)) for i in (1, 2)],
            "1 classes",
        ),
    ],
    ids=["no query folder", "an empty class", "no query", "no image", "one class"],
)
def test_a_folder_that_is_no_task_is_one_clear_error_and_occupies_nothing(trained, folder, spoil, message):
    spoil(folder)
    with pytest.raises(DataError, match=message):
        predict.write_predictions(settings_of(trained, folder))
    assert not (folder / "run").exists()


def test_a_folder_without_a_training_is_refused(trained, folder):
    with pytest.raises(ConfigurationError, match="no run folder: train first"):
        predict.write_predictions(settings_of(dataclasses.replace(trained, out=folder), folder))


def test_a_prediction_needs_the_run_folder_and_the_images_alone(trained, folder, monkeypatch):
    predict.write_predictions(settings_of(trained, folder, augment=2))
    shutil.move(trained.out, folder / "elsewhere")
    try:
        with monkeypatch.context() as patch:
            patch.setattr(loading, "cached_data", lambda *_: pytest.fail("the data set was asked for"))
            moved = dataclasses.replace(trained, out=folder / "elsewhere")
            predict.write_predictions(settings_of(moved, folder, augment=2, out=folder / "again"))
    finally:
        shutil.move(folder / "elsewhere", trained.out)
    texts = [(place / "predictions.csv").read_text() for place in (folder / "run", folder / "again")]
    assert texts[0] == texts[1]


@pytest.fixture
def earlier(trained, tmp_path):
    """The training as earlier versions left it: without a word on the images that the network expects."""
    copied = dataclasses.replace(trained, out=tmp_path / "earlier")
    shutil.copytree(trained.out, copied.out)
    checkpoint = load_state(copied.out / "state", print)
    save_state(copied.out / "state", checkpoint.tensors, without(checkpoint.state, "inputs"))
    return copied


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def test_a_training_of_an_earlier_version_takes_the_record_from_its_data(trained, earlier, folder):
    for number, training in enumerate((trained, earlier)):
        predict.write_predictions(settings_of(training, folder, out=folder / f"run {number}"))
    texts = [(folder / f"run {number}" / "predictions.csv").read_text() for number in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda *_: noise_data(16, 6, 8), "glyphs holds other images than it was trained on"),
        (lambda *_: load_data("no/such/folder"), "are not there: there is no folder no/such/folder"),
    ],
    ids=["other data", "no data"],
)
def test_a_training_of_an_earlier_version_without_its_data_is_one_clear_error(
    earlier, folder, monkeypatch, read, message
):
    monkeypatch.setattr(loading, "cached_data", read)
    with pytest.raises(DataError, match=f"earlier does not say what images .*{message}"):
        predict.write_predictions(settings_of(earlier, folder))
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"image_size": 0},
        {"classes": "six"},
        {"mean": [0.1, 0.2]},
        {"mean": [30.0, 40.0, 50.0]},
        {"std": [0.5, 0.5, 0.0]},
        {"mirrors": None},
    ],
)
def test_a_damaged_record_of_the_images_is_refused(earlier, few_images, wrong):
    usual = inputs_of(few_images).record()
    assert recorded_inputs(json.loads(json.dumps(usual))) == inputs_of(few_images)
    checkpoint = load_state(earlier.out / "state", print)
    record = usual | wrong if wrong else wrong
    save_state(earlier.out / "state", checkpoint.tensors, {**checkpoint.state, "inputs": record})
    with pytest.raises(CheckpointError, match="the saved training describes"):
        read_training(earlier.out)


def test_an_evaluation_records_every_task_and_the_weights_that_it_is_of(trained, tmp_path, few_images):
    results = evaluate.record_evaluation(evaluate_settings(trained, tmp_path / "evaluate"))
    assert read_run(tmp_path / "evaluate")["results"] == results
    network = read_training(trained.out).network
    again = evaluate.evaluate_on_tasks(network, few_images, evaluate_settings(trained, tmp_path))
    np.testing.assert_array_equal(evaluate.accuracies_of(results), again.accuracies)
    assert results["accuracy"] == pytest.approx(again.accuracies.mean())
    assert results["weights"] == evaluate.digest_of(network.state_dict())
    network.classifier.bias.data[0] += 1e-3
    assert results["weights"] != evaluate.digest_of(network.state_dict())
