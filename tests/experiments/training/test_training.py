"""Training and evaluation of tiny networks: bit for bit the same whatever stops them, clear refusals."""

import dataclasses
import json
import re
import shutil
from functools import partial

import pytest
import torch
from PIL import Image

from experiments.data import loading
from experiments.tables import pipeline
from experiments.training import evaluate, train
from experiments.training.trained import read_training
from mamltheory.errors import CheckpointError, ConfigurationError, DataError, GenotypeError
from mamltheory.fewshot import load
from mamltheory.fewshot import trained as package
from mamltheory.fewshot import training as steps
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.formats import Options
from mamltheory.fewshot.formats.prepared import write_prepared
from mamltheory.fewshot.resnet import resnet12
from mamltheory.fewshot.training_state import inputs_of
from mamltheory.nas.genotype import random_genotype
from mamltheory.rng import generator
from mamltheory.runtime.checkpoint import load_state
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import GENOTYPE, evaluate_settings, files, train_settings, weights
from tests.fewshot.small import noise_data

pytestmark = pytest.mark.usefixtures("few_images")


def test_a_training_leaves_its_state_curves_and_record(trained):
    names = {name for name in files(trained.out) if not name.startswith("state/")}
    curves = {f"learning_curves.{end}" for end in ("png", "pdf", "json")}
    assert names == curves | {"run.json", "metrics.jsonl", "network.safetensors"}
    data = json.loads((trained.out / "learning_curves.json").read_text())["data"]
    assert data["epoch"] == [1, 2, 3]
    assert data["learning_rate"] == pytest.approx([0.05, 0.05, 0.005])
    results = read_run(trained.out)["results"]
    assert results["epochs"] == 3
    assert results["cpu_seconds"] == load_state(trained.out / "state", print).state["cpu_seconds"] > 0


def test_a_finished_training_says_so_ends_with_its_result_and_is_read_from_python(trained, capsys):
    assert train.train_and_draw(trained) == 0
    said = capsys.readouterr()
    assert f"already finished in {trained.out}: nothing is trained again\n" in said.out
    assert re.search(
        r"trained 3 epochs: loss \d+\.\d+ nats, .*\nevaluate it: python -m experiments evaluate .*\n$",
        said.out,
    )
    assert "0/0" not in said.err
    network = load(trained.out)
    assert network.genotype == GENOTYPE
    saved = {name.removeprefix("network/"): value for name, value in weights(trained).items()}
    assert all(torch.equal(value, saved[name]) for name, value in network.network.state_dict().items())


def assert_same_end(settings, others):
    ours, theirs = weights(settings), weights(others)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_metrics(settings.out) == read_metrics(others.out)


@pytest.mark.parametrize("call", [1, 2])
def test_a_training_interrupted_in_an_epoch_stops_after_its_step_and_goes_on_bit_for_bit(
    trained, tmp_path, call
):
    settings = dataclasses.replace(trained, out=tmp_path / "train")
    with ctrl_c_during(steps, "train_epoch", call) as stopped:
        train.train_network(settings, GENOTYPE)
    assert stopped.value.continue_with == f"python -m experiments train --config {settings.out}"
    numbers = load_state(settings.out / "state", print).state
    assert (numbers["epoch"], numbers["step"]) == (call - 1, 1)
    spent = numbers["cpu_seconds"]
    with counted(steps, "train_epoch") as epochs:
        train.train_and_draw(settings)
    assert len(epochs) == 4 - call
    assert read_run(settings.out)["results"]["cpu_seconds"] > spent
    assert_same_end(settings, trained)


@pytest.mark.parametrize("saved", [1, 4, 6])
def test_a_crash_after_any_saved_step_loses_that_step_at_most(trained, tmp_path, saved):
    """The state is saved after every step; the run dies when it is about to save once more."""
    settings = dataclasses.replace(trained, out=tmp_path / "train", save_minutes=0.0)
    calls = []

    def dies(*arguments):
        if len(calls) == saved:
            raise OSError("no space")
        calls.append(train_save(*arguments))

    train_save = train.save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_state", dies)
        with pytest.raises(OSError, match="no space"):
            train.train_network(settings, GENOTYPE)
    numbers = load_state(settings.out / "state", print).state
    assert numbers["epoch"] * 3 + numbers["step"] == saved
    train.train_network(dataclasses.replace(settings, save_minutes=10.0), GENOTYPE)
    ours, theirs = weights(settings), weights(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    curve = {row["epoch"]: row for row in read_metrics(settings.out)}
    assert list(curve.values()) == read_metrics(trained.out)


def test_validation_classes_are_tried_when_they_are_due_and_change_no_weight(trained, tmp_path):
    settings = dataclasses.replace(trained, out=tmp_path / "train", validate_every=2, validation_tasks=5)
    assert train.train_and_draw(settings) == 0
    rows = read_metrics(settings.out)
    assert ["val_accuracy" in row for row in rows] == [False, True, False]
    assert 0 < rows[1]["val_accuracy"] <= 1
    assert json.loads((settings.out / "learning_curves.json").read_text())["data"]["val_epoch"] == [2]
    ours, theirs = weights(settings), weights(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_resnet12_is_trained_and_evaluated_by_the_same_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(package, "resnet12", partial(resnet12, widths=(4, 6, 8, 10)))
    settings = train_settings(
        tmp_path / "train", network="resnet12", genotype=tmp_path / "absent.json", epochs=3
    )
    assert train.train_and_draw(settings) == 0
    training = read_training(settings.out)
    assert (training.settings, training.genotype) == (settings, None)
    assert training.network.blocks[3].path[0].out_channels == 10
    capsys.readouterr()
    assert evaluate.print_evaluation(evaluate_settings(settings, tmp_path / "evaluate")) == 0
    assert "3-way 1-shot" in capsys.readouterr().out


def test_a_crash_between_log_and_state_repeats_a_line_but_no_point_of_the_curve(trained, tmp_path):
    settings = dataclasses.replace(trained, out=tmp_path / "train")

    def crash(*_):
        raise OSError("no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_state", crash)
        with pytest.raises(OSError, match="no space"):
            train.train_and_draw(settings)
    assert read_run(settings.out)["status"] == "failed"
    train.train_and_draw(settings)
    assert len(read_metrics(settings.out)) == 4
    curves = [
        json.loads((each.out / "learning_curves.json").read_text())["data"] for each in (settings, trained)
    ]
    assert curves[0] == curves[1]


def test_a_finished_training_is_not_trained_again(trained):
    before = (trained.out / "run.json").read_bytes()
    with counted(steps, "train_epoch") as epochs:
        train.train_and_draw(trained)
    assert epochs == []
    assert (trained.out / "run.json").read_bytes() == before


@pytest.mark.parametrize("compiled", [False, True])
def test_a_training_of_a_version_that_could_compile_goes_on_and_is_evaluated(trained, tmp_path, compiled):
    """That setting compiled nothing and changed no number."""
    settings = dataclasses.replace(trained, out=tmp_path / "run")
    shutil.copytree(trained.out, settings.out)
    record = read_run(settings.out)
    record["config"] |= {"compile": compiled, "out": str(settings.out)}
    (settings.out / "run.json").write_text(json.dumps(record))
    assert read_training(settings.out).settings == settings
    assert pipeline.finished_run(settings, "train") is not None
    with counted(steps, "train_epoch") as epochs:
        train.train_and_draw(settings)
    assert epochs == []
    assert read_run(settings.out) == record


def test_another_genotype_under_the_same_name_is_refused(trained):
    other = random_genotype(generator(1, "test cell"), inputs="all")
    with pytest.raises(CheckpointError, match="trains another genotype: choose another --out"):
        train.train_network(trained, other)
    train.train_network(trained, GENOTYPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "search first, or name another file"),
        ("{", "is not JSON"),
        ("[1, 2]", "expected an object with the keys"),
        ('{"reduce": []}', "genotype.json holds no genotype: a genotype needs the key 'normal'"),
        ('{"normal": [], "reduce": []}', "a cell has 3 nodes"),
        ('{"normal": [[["conv_9x9", 0]]], "reduce": []}', "3 nodes|conv_9x9"),
    ],
)
def test_a_file_that_is_no_genotype_is_a_genotype_error(tmp_path, content, message):
    file = tmp_path / "genotype.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(GenotypeError, match=message):
        train.train_and_draw(train_settings(tmp_path / "run", genotype=file))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_prints_its_line_and_records_it_and_repeats_exactly(trained, tmp_path, capsys):
    lines = []
    for _ in range(2):
        assert evaluate.print_evaluation(evaluate_settings(trained, tmp_path / "evaluate")) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]
    assert re.match(r"\d+\.\d\d ± \d+\.\d\d % \(95 % interval over 4 tasks\): 3-way 1-shot", lines[0])
    results = read_run(tmp_path / "evaluate")["results"]
    assert lines[0].startswith(f"{100 * results['accuracy']:.2f} ± {100 * results['half_width']:.2f} %")
    assert len(results["correct"]) == 4
    assert all(type(count) is int for count in results["correct"])
    assert results["cpu_seconds"] > 0
    assert files(tmp_path) == {"evaluate/run.json"}


@pytest.mark.paper("Sec. 6.1: model selection")
def test_the_evaluated_weights_are_the_trained_ones(trained, few_images):
    training = read_training(trained.out)
    assert (training.settings, training.genotype, training.inputs) == (
        trained,
        GENOTYPE,
        inputs_of(few_images),
    )
    saved, ours = weights(trained), training.network.state_dict()
    assert all(torch.equal(value, saved[f"network/{name}"]) for name, value in ours.items())


def test_classes_of_a_validation_and_of_a_test_evaluation_differ(trained, few_images):
    network = read_training(trained.out).network
    digests = {
        split: evaluate.evaluate_on_tasks(
            network, few_images, evaluate_settings(trained, trained.out, split=split)
        ).tasks_digest
        for split in ("val", "test")
    }
    assert digests["val"] != digests["test"]


def test_a_network_is_evaluated_on_the_device_where_it_is(trained, few_images, monkeypatch):
    network = read_training(trained.out).network.to("meta")

    def asked(*_, device, **__):
        raise LookupError(device.type)

    monkeypatch.setattr(package, "evaluate_network", asked)
    with pytest.raises(LookupError, match="meta"):
        evaluate.evaluate_on_tasks(network, few_images, evaluate_settings(trained, trained.out))


def test_an_interrupted_evaluation_stops_at_the_next_batch(trained, tmp_path):
    settings = evaluate_settings(trained, tmp_path)
    with ctrl_c_during(package, "evaluate_network", 1) as stopped:
        evaluate.print_evaluation(settings)
    assert stopped.value.continue_with is None
    assert read_run(tmp_path)["status"] == "interrupted"


def test_a_stop_that_breaks_the_processes_of_an_evaluation_is_still_a_stop(trained, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a process died")

    monkeypatch.setattr(evaluate, "evaluate_on_tasks", broken)
    with pytest.raises(RuntimeError, match="died"):
        evaluate.print_evaluation(evaluate_settings(trained, tmp_path))
    assert read_run(tmp_path)["status"] == "failed"
    with ctrl_c_during(evaluate, "evaluate_on_tasks", 1):
        evaluate.print_evaluation(evaluate_settings(trained, tmp_path))
    assert read_run(tmp_path)["status"] == "interrupted"


def test_an_unfinished_training_is_refused_with_the_command_that_finishes_it(trained, tmp_path):
    settings = dataclasses.replace(trained, out=tmp_path / "train")
    with ctrl_c_during(steps, "train_epoch", 1):
        train.train_network(settings, GENOTYPE)
    with pytest.raises(
        CheckpointError, match="holds 0 of 3 epochs: finish it with python -m experiments train"
    ):
        evaluate.print_evaluation(evaluate_settings(settings, tmp_path / "evaluate"))
    assert not (tmp_path / "evaluate").exists()


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"data": "data/mini-imagenet"}, DataError, "no folder data/mini-imagenet"),
        ({"device": "cuda:99"}, ConfigurationError, "choose another, or auto"),
        ({"ways": 9}, ConfigurationError, "9"),
        ({"shots": 50}, ConfigurationError, "these values fit: --shots 6$"),
        (
            {"ways": 9, "shots": 50, "queries": 60},
            ConfigurationError,
            "ways is 9, .* 6 test classes; shots .* 50 .* 60, .* fit: --ways 6 --shots 4 --queries 4$",
        ),
    ],
)
def test_wrong_settings_of_an_evaluation_are_one_clear_error(trained, tmp_path, others, error, message):
    with pytest.raises(error, match=message):
        evaluate.print_evaluation(evaluate_settings(trained, tmp_path / "evaluate", **others))
    assert not (tmp_path / "evaluate").exists(), "a mistake must not occupy the folder"


def test_an_evaluation_takes_the_training_data_from_wherever_they_lie_and_no_others(
    trained, tmp_path, few_images, capsys
):
    evaluate.print_evaluation(evaluate_settings(trained, tmp_path / "evaluate"))
    for name, data in (("moved", few_images), ("other", noise_data(16, 6, 8))):
        (tmp_path / name).mkdir()
        write_prepared(data, tmp_path / name, Options())
    evaluate.print_evaluation(
        evaluate_settings(trained, tmp_path / "moved run", data=str(tmp_path / "moved"))
    )
    usual, moved = capsys.readouterr().out.splitlines()
    assert usual == moved
    with pytest.raises(DataError, match=r"trained on glyphs, and .*other holds other training images"):
        evaluate.print_evaluation(
            evaluate_settings(trained, tmp_path / "other run", data=str(tmp_path / "other"))
        )
    assert not (tmp_path / "other run").exists()


def in_order(data, split):
    """A split whose classes keep their order in an image folder, where names are sorted."""
    images = getattr(data, split)
    return dataclasses.replace(
        images, class_names=tuple(f"{split} {i}" for i in range(len(images.class_names)))
    )


def write_folder(data, folder):
    """The images as PNG files, which say nothing of statistics and mirroring."""
    for split in ("train", "val", "test"):
        images = getattr(data, split)
        for row, (image, label) in enumerate(zip(images.images, images.labels, strict=True)):
            place = folder / split / images.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{row:04}.png")


def test_an_evaluation_on_an_image_folder_keeps_statistics_and_mirroring_of_the_training(
    tmp_path, few_images, monkeypatch
):
    splits = {split: in_order(few_images, split) for split in ("train", "val", "test")}
    data = dataclasses.replace(few_images, **splits, mean=(0.9, 0.5, 0.1), std=(0.2, 0.3, 0.1))
    write_folder(data, tmp_path / "images")
    moved = load_data(tmp_path / "images", image_size=16)
    assert (moved.mirrors, data.mirrors) == (True, False)
    monkeypatch.setattr(loading, "cached_data", lambda source, _: data if source == "glyphs" else moved)
    settings = train_settings(tmp_path / "train", epochs=1, milestones=())
    train.train_network(settings, GENOTYPE)
    several = {"tasks": 8, "augment": 3}
    usual = evaluate.record_evaluation(evaluate_settings(settings, tmp_path / "usual", **several))
    folder = evaluate_settings(settings, tmp_path / "moved", data=str(tmp_path / "images"), **several)
    assert evaluate.record_evaluation(folder) | {"cpu_seconds": usual["cpu_seconds"]} == usual
    read = read_training(settings.out)
    assert inputs_of(read.data(folder.data)) == inputs_of(data) != inputs_of(moved)
    own = evaluate.evaluate_on_tasks(read.network, moved, folder)
    assert own.correct.tolist() != usual["correct"], "the folder's own would give another result"


def test_a_folder_without_a_training_is_refused(tmp_path, searched):
    with pytest.raises(ConfigurationError, match="no run folder: train first, or name another"):
        evaluate.print_evaluation(
            evaluate_settings(train_settings(tmp_path / "absent"), tmp_path / "evaluate")
        )
    with pytest.raises(ConfigurationError, match="run of 'search', not of 'train'"):
        evaluate.print_evaluation(evaluate_settings(searched, tmp_path / "evaluate"))


def test_spellings_of_a_folder_are_one_data_set():
    assert loading.source_of("data/mini/") == loading.source_of("data//mini") == "data/mini"
    assert loading.source_of("glyphs") == "glyphs"
