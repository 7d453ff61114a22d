"""Search, train and evaluate on tiny networks: resumable bit for bit, and every mistake one clear error."""

import dataclasses
import json
import re

import pytest
import torch

from experiments.cells import common, evaluate, glyphs, search, train
from experiments.settings import Evaluate, Glyphs, Search, Train
from mamltheory.errors import CheckpointError, ConfigurationError, DataError, GenotypeError
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas.genotype import Candidates, Edge, random_genotype
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.search import SearchState
from mamltheory.rng import generator
from mamltheory.runtime.checkpoint import load
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.stops import counted, ctrl_c_during

SIZE = {"channels": 4, "cells": 3, "stem_stride": 4, "image_size": 16, "device": "cpu"}
GENOTYPE = random_genotype(generator(0, "test cell"), inputs="all")


USUAL_DATA = common.cached_data


@pytest.fixture(autouse=True, scope="module")
def few_images():
    """Glyphs of a few classes in the place of the usual ones."""
    data = glyph_data(16, train_classes=6, val_classes=6, test_classes=6, samples_per_class=8)

    def few(*source):
        return data if source == ("glyphs", 16) else USUAL_DATA(*source)

    with pytest.MonkeyPatch.context() as patch:
        for module in (common, search):
            patch.setattr(module, "cached_data", few)
        yield data


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- search


def search_settings(folder, **others):
    return Search(**SIZE | {"ways": 2, "tasks": 1, "repeats": 1, "out": folder} | others)


def nearly_done():
    """A supernet with two operations on two edges of the normal cell and three on one of the other."""
    live = {kind: [(OPERATIONS[2],) for _ in getattr(Candidates(), kind)] for kind in ("normal", "reduce")}
    live["normal"][0], live["normal"][4], live["reduce"][8] = (
        OPERATIONS[1:3],
        OPERATIONS[2:4],
        OPERATIONS[:3],
    )
    return SearchState(Candidates(**{kind: tuple(names) for kind, names in live.items()}))


def begun(folder, **others):
    """A search that has come to :func:`nearly_done` in its folder."""
    settings = search_settings(folder, **others)
    common.begin(settings, "search", "cpu").close("interrupted")
    search.write_state(settings, nearly_done())
    return settings


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    settings = begun(tmp_path_factory.mktemp("searched") / "search")
    assert search.run(settings) == 0
    return settings


def test_a_search_leaves_its_genotype_the_drawing_and_the_record(searched):
    assert files(searched.out) - {name for name in files(searched.out) if name.startswith("state/")} == {
        "genotype.json",
        "run.json",
        "metrics.jsonl",
        "cells.png",
        "cells.pdf",
        "cells.json",
    }
    genotype = common.read_genotype(searched.out / "genotype.json")
    record = read_run(searched.out)
    assert record["status"] == "finished"
    assert record["results"]["genotype"] == genotype.to_json()
    assert json.loads((searched.out / "cells.json").read_text())["data"]["genotype"] == genotype.to_json()
    alive = nearly_done().candidates
    for kind in ("normal", "reduce"):
        for source, vertex, operation in genotype.edges()[kind]:
            assert operation in alive.on(kind, Edge(vertex - 2, source))
    assert [row["operators"] for row in read_metrics(searched.out)] == [19, 18]


@pytest.mark.parametrize("call", [1, 5, 9])
def test_an_interrupted_search_goes_on_with_what_it_lacks_to_the_same_end(searched, tmp_path, call):
    settings = begun(tmp_path / "a b")
    with ctrl_c_during(search, "score_job", call) as stopped:
        search.search(settings)
    assert stopped.value.continue_with.endswith(f"search --config '{settings.out}'")
    assert read_run(settings.out)["status"] == "interrupted"
    with counted(search, "score_job") as scored:
        genotype = search.search(settings)
    # eight scores in the first round (seven operators and all of them), then three
    assert len(scored) == 8 + 3 - call
    assert genotype == common.read_genotype(searched.out / "genotype.json")
    states = [load(each.out / "state", print).state for each in (settings, searched)]
    assert states[0]["trace"] == states[1]["trace"]
    assert states[0]["candidates"] == states[1]["candidates"]


def test_a_finished_search_scores_nothing_again(searched):
    before = (searched.out / "genotype.json").read_bytes()
    with counted(search, "score_job") as scored:
        search.run(searched)
    assert scored == []
    assert (searched.out / "genotype.json").read_bytes() == before


def test_scores_do_not_depend_on_their_order(tmp_path):
    def backwards(function, items):
        return ((item, function(item)) for item in reversed(items))

    settings = begun(tmp_path)
    scorer, rules = search.scorer_of(settings, "cpu"), search.rules_of(settings)
    state = search.finish_round(nearly_done(), rules, scorer, settings, backwards)
    usual = search.search(begun(tmp_path / "usual"))
    while not search.is_finished(state, rules):
        state = search.finish_round(state, rules, scorer, settings, backwards)
    assert state.candidates.genotype() == usual
    assert (
        search.plain(search.state_to_json(state))["trace"]
        == load(tmp_path / "usual/state", print).state["trace"]
    )


@pytest.mark.slow
def test_two_processes_search_as_one(tmp_path, monkeypatch):
    # Worker processes draw the usual images, so this one has to as well.
    for module in (common, search):
        monkeypatch.setattr(module, "cached_data", USUAL_DATA)
    states = []
    for jobs in (1, 2):
        settings = begun(tmp_path / str(jobs), jobs=jobs)
        search.search(settings)
        states.append(load(settings.out / "state", print).state)
    assert states[0] == states[1]


def test_other_settings_in_the_same_folder_are_one_error_and_change_nothing(searched):
    before = read_run(searched.out)
    with pytest.raises(ConfigurationError, match=r"ways \(2 there, 3 now\); choose another --out"):
        search.run(dataclasses.replace(searched, ways=3))
    assert read_run(searched.out) == before
    search.run(dataclasses.replace(searched, jobs=1))


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"data": "no/such/folder"}, DataError, "there is no folder no/such/folder"),
        ({"device": "cuda:99"}, ConfigurationError, "choose another, or auto"),
        ({"device": "tpu"}, ConfigurationError, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_data_and_devices_are_refused_before_anything_is_written(tmp_path, others, error, message):
    with pytest.raises(error, match=message):
        search.run(search_settings(tmp_path / "run", **others))
    common.write_genotype(tmp_path / "cell.json", GENOTYPE)
    with pytest.raises(error, match=message):
        train.run(train_settings(tmp_path / "run", genotype=tmp_path / "cell.json", **others))
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_counts_does_not_occupy_the_run_folder(tmp_path):
    with pytest.raises(ConfigurationError, match="ways"):
        search.run(search_settings(tmp_path / "run", ways=50))
    common.write_genotype(tmp_path / "cell.json", GENOTYPE)
    with pytest.raises(ConfigurationError, match="batch_size 9999 exceeds"):
        train.run(train_settings(tmp_path / "run", genotype=tmp_path / "cell.json", batch_size=9999))
    assert not (tmp_path / "run").exists()


def test_a_finite_inner_time_and_infinity_give_their_dynamics(tmp_path):
    assert search.dynamics_of(search_settings(tmp_path, ridge=0.5)).ridge == 0.5
    assert search.dynamics_of(search_settings(tmp_path, inner_time=2.0)).time == 2.0


# --- train


def train_settings(folder, **others):
    usual = {"epochs": 3, "batch_size": 16, "milestones": (2,), "drop_path": 0.2, "learning_rate": 0.05}
    return Train(**SIZE | usual | {"out": folder} | others)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    common.write_genotype(folder / "cell.json", GENOTYPE)
    settings = train_settings(folder / "train", genotype=folder / "cell.json")
    assert train.run(settings) == 0
    return settings


def weights(settings):
    return load(settings.out / "state", print).tensors


def test_a_training_leaves_its_state_curves_and_record(trained):
    names = {name for name in files(trained.out) if not name.startswith("state/")}
    curves = {f"learning_curves.{end}" for end in ("png", "pdf", "json")}
    assert names == curves | {"run.json", "metrics.jsonl"}
    data = json.loads((trained.out / "learning_curves.json").read_text())["data"]
    assert data["epoch"] == [1, 2, 3]
    assert data["learning_rate"] == pytest.approx([0.05, 0.05, 0.005])
    assert read_run(trained.out)["results"]["epochs"] == 3


@pytest.mark.parametrize("call", [1, 2])
def test_a_training_interrupted_in_an_epoch_goes_on_after_it_bit_for_bit(trained, tmp_path, call):
    settings = dataclasses.replace(trained, out=tmp_path / "train")
    with ctrl_c_during(train, "train_epoch", call) as stopped:
        train.train(settings, GENOTYPE)
    assert stopped.value.continue_with == f"python -m experiments train --config {settings.out}"
    assert load(settings.out / "state", print).state["epoch"] == call
    with counted(train, "train_epoch") as epochs:
        train.run(settings)
    assert len(epochs) == 3 - call
    ours, theirs = weights(settings), weights(trained)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_metrics(settings.out) == read_metrics(trained.out)


def test_a_crash_between_log_and_state_repeats_a_line_but_no_point_of_the_curve(trained, tmp_path):
    settings = dataclasses.replace(trained, out=tmp_path / "train")

    def crash(*_):
        raise OSError("no space")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save_state", crash)
        with pytest.raises(OSError, match="no space"):
            train.run(settings)
    assert read_run(settings.out)["status"] == "failed"
    train.run(settings)
    assert len(read_metrics(settings.out)) == 4
    curves = [
        json.loads((each.out / "learning_curves.json").read_text())["data"] for each in (settings, trained)
    ]
    assert curves[0] == curves[1]


def test_a_finished_training_is_not_trained_again(trained):
    with counted(train, "train_epoch") as epochs:
        train.run(trained)
    assert epochs == []


def test_another_genotype_under_the_same_name_is_refused(trained):
    other = random_genotype(generator(1, "test cell"), inputs="all")
    with pytest.raises(CheckpointError, match="trains another genotype: choose another --out"):
        train.train(trained, other)
    train.train(trained, GENOTYPE)


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
        train.run(train_settings(tmp_path / "run", genotype=file))
    assert not (tmp_path / "run").exists()


# --- evaluate


def evaluate_settings(trained, folder, **others):
    usual = {"ways": 3, "shots": 1, "queries": 2, "tasks": 4, "augment": 1, "device": "cpu"}
    return Evaluate(**usual | {"checkpoint": trained.out, "out": folder} | others)


def test_an_evaluation_prints_its_line_and_records_it_and_repeats_exactly(trained, tmp_path, capsys):
    lines = []
    for _ in range(2):
        assert evaluate.run(evaluate_settings(trained, tmp_path / "evaluate")) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]
    assert re.match(r"\d+\.\d\d ± \d+\.\d\d % \(95 % interval over 4 tasks\): 3-way 1-shot", lines[0])
    results = read_run(tmp_path / "evaluate")["results"]
    assert lines[0].startswith(f"{100 * results['accuracy']:.2f} ± {100 * results['half_width']:.2f} %")
    assert files(tmp_path) == {"evaluate/run.json"}


def test_the_evaluated_weights_are_the_trained_ones(trained, few_images):
    settings, genotype = train.settings_of_run(trained.out)
    assert (settings, genotype) == (trained, GENOTYPE)
    network = train.trained_network(settings, genotype, few_images)
    saved = weights(trained)
    assert all(torch.equal(value, saved[f"network/{name}"]) for name, value in network.state_dict().items())


def test_classes_of_a_validation_and_of_a_test_evaluation_differ(trained, few_images):
    network = train.trained_network(trained, GENOTYPE, few_images)
    digests = {
        split: evaluate.evaluate(
            network, few_images, evaluate_settings(trained, trained.out, split=split)
        ).tasks_digest
        for split in ("val", "test")
    }
    assert digests["val"] != digests["test"]


def test_a_network_is_evaluated_on_the_device_where_it_is(trained, few_images, monkeypatch):
    network = train.trained_network(trained, GENOTYPE, few_images).to("meta")
    asked = []
    monkeypatch.setattr(evaluate, "evaluate_network", lambda *_, device, **__: asked.append(device.type))
    evaluate.evaluate(network, few_images, evaluate_settings(trained, trained.out))
    assert asked == ["meta"]


def test_an_interrupted_evaluation_stops_at_the_next_batch(trained, tmp_path):
    settings = evaluate_settings(trained, tmp_path)
    with ctrl_c_during(evaluate, "evaluate_network", 1) as stopped:
        evaluate.run(settings)
    assert stopped.value.continue_with is None
    assert read_run(tmp_path)["status"] == "interrupted"


def test_an_unfinished_training_is_refused_with_the_command_that_finishes_it(trained, tmp_path):
    settings = dataclasses.replace(trained, out=tmp_path / "train")
    with ctrl_c_during(train, "train_epoch", 1):
        train.train(settings, GENOTYPE)
    with pytest.raises(
        CheckpointError, match="holds 1 of 3 epochs: finish it with python -m experiments train"
    ):
        evaluate.run(evaluate_settings(settings, tmp_path / "evaluate"))
    assert not (tmp_path / "evaluate").exists()


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"data": "data/mini-imagenet"}, ConfigurationError, "trained on glyphs, and data is data/mini"),
        ({"device": "cuda:99"}, ConfigurationError, "choose another, or auto"),
        ({"ways": 9}, ConfigurationError, "9"),
        ({"shots": 50}, DataError, "lower shots or queries"),
    ],
)
def test_wrong_settings_of_an_evaluation_are_one_clear_error(trained, tmp_path, others, error, message):
    with pytest.raises(error, match=message):
        evaluate.run(evaluate_settings(trained, tmp_path / "evaluate", **others))
    assert not (tmp_path / "evaluate").exists(), "a mistake must not occupy the folder"


def test_a_folder_without_a_training_is_refused(tmp_path, searched):
    with pytest.raises(ConfigurationError, match="no run folder: train first, or name another"):
        evaluate.run(evaluate_settings(train_settings(tmp_path / "absent"), tmp_path / "evaluate"))
    with pytest.raises(ConfigurationError, match="run of 'search', not of 'train'"):
        evaluate.run(evaluate_settings(searched, tmp_path / "evaluate"))


def test_spellings_of_a_folder_are_one_data_set():
    assert common.source_of("data/mini/") == common.source_of("data//mini") == "data/mini"
    assert common.source_of("glyphs") == "glyphs"


# --- glyphs


def test_the_contact_sheet_names_its_classes_and_does_not_care_for_the_folder(tmp_path):
    sheets = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        glyphs.run(Glyphs(split="val", classes=3, samples=2, image_size=16, out=folder))
        assert files(folder) == {f"glyphs_val.{end}" for end in ("png", "pdf", "json")}
        sheets.append((folder / "glyphs_val.json").read_bytes())
    assert sheets[0] == sheets[1]
    assert len(json.loads(sheets[0])["data"]["classes"]) == 3
