"""Search by halving: the same bits however it is run, numbers that are those of its measurements."""

import dataclasses
import json
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import __main__ as shell
from experiments.data.loading import data_of
from experiments.search import halving, search
from experiments.search.halving import Item
from experiments.search.halving_report import gain_words
from experiments.training import evaluate, predict, train
from experiments.training.settings import Predict
from experiments.training.trained import read_training
from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.fewshot import training as steps
from mamltheory.nas import NetworkSettings, Rung
from mamltheory.nas import search as in_memory
from mamltheory.nas.short_trainings import VALIDATION_TASKS
from mamltheory.runtime.checkpoint import load_state
from mamltheory.runtime.runlog import read_run
from tests.experiments.search.halving_cases import (
    BAND,
    backwards,
    enough_images,  # noqa: F401 - a fixture
    halved,  # noqa: F401 - a fixture
    halving_settings,
    results,
    searched_again,
)
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import evaluate_settings, files

pytestmark = pytest.mark.usefixtures("enough_images")


def found_in(settings):
    return json.loads((settings.out / "search.json").read_text())


def moved(settings, folder):
    """The same search in a copy of its folder."""
    shutil.copytree(settings.out, folder)
    return dataclasses.replace(settings, out=folder)


def measured(settings, item):
    place = settings.out / "measurements" / f"{item.folder}-epoch-{item.epochs}.json"
    return json.loads(place.read_text())


# --- the same bits ---


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (steps, "train_epoch", 2),  # within a training
        (halving, "measure_candidate", 8),  # while the result is confirmed
    ],
)
def test_a_search_stopped_anywhere_ends_in_the_same_bits(halved, tmp_path, module, name, call):  # noqa: F811
    settings = halving_settings(tmp_path / "a b")
    with ctrl_c_during(module, name, call) as stopped:
        search.search_cells(settings)
    assert stopped.value.continue_with.endswith(f"search --config '{settings.out}'")
    assert read_run(settings.out)["status"] == "interrupted"
    assert searched_again(settings) == results(halved)


def killed_in(settings, module, name, call):
    """Run the search in a process that is killed when it calls a function for the given time, from 1."""
    child = os.fork()
    if child == 0:
        calls, function = [], getattr(module, name)

        def kill(*arguments, **keywords):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        setattr(module, name, kill)
        try:
            search.search_cells(settings)
        finally:
            os._exit(1)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_search_whose_process_is_killed_at_six_moments_ends_in_the_same_bits(halved, tmp_path):  # noqa: F811
    settings = halving_settings(tmp_path / "search")
    for module, name, call in (
        (train, "save_state", 1),  # the first epoch is over, and nothing is saved
        (halving, "replace_file", 1),  # a training is saved, and its measurement is not
        (halving, "replace_file", 3),  # within the first rung
        (train, "save_state", 4),  # within a training of the last rung
        (halving.shutil, "copytree", 1),
        (search, "replace_file", 2),  # between genotype.json and search.json
    ):
        killed_in(settings, module, name, call)
        assert not (settings.out / "search.json").exists()
    assert searched_again(settings) == results(halved)
    assert read_run(settings.out)["starts"] == 7


def test_neither_the_order_of_results_nor_what_a_dead_process_left_matters(halved, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(halving, "spread_over", backwards)
    settings = halving_settings(tmp_path / "search")
    (settings.out / ".tmp-1-00000000-elsewhere").mkdir(parents=True)
    assert searched_again(settings) == results(halved)
    assert not [name for name in files(settings.out) if "tmp" in name]


def test_a_full_disk_while_the_network_is_copied_leaves_no_half_of_it(halved, tmp_path, monkeypatch):  # noqa: F811
    settings = moved(halved, tmp_path / "moved")
    shutil.rmtree(settings.out / "train")

    def full(source, target):
        target.mkdir()
        raise OSError(28, "No space left on device", str(target), source)

    with monkeypatch.context() as patch:
        patch.setattr(halving.shutil, "copytree", full)
        with pytest.raises(OSError, match="No space left"):
            search.search_cells(settings)
    assert not (settings.out / "train").exists()
    assert searched_again(settings) == results(halved)


def test_a_finished_search_measures_nothing_again(halved):  # noqa: F811
    with counted(halving, "measure_candidate") as calls:
        assert searched_again(halved) == results(halved)
    assert calls == []


def test_a_search_whose_folder_was_moved_continues_where_a_measurement_is_missing(halved, tmp_path):  # noqa: F811
    other = moved(halved, tmp_path / "moved")
    item = Item(found_in(halved)["cell"], 3)
    (other.out / "measurements" / f"{item.folder}-epoch-3.json").unlink()
    with counted(halving, "measure_candidate") as calls:
        assert searched_again(other) == results(halved)
    assert [call[-1] for call in calls] == [item]


def test_a_candidate_that_was_trained_too_far_is_not_measured_as_if_it_were_not(halved, tmp_path):  # noqa: F811
    other = moved(halved, tmp_path / "moved")
    number = found_in(halved)["cell"]
    (other.out / "measurements" / f"{number:03d}-epoch-1.json").unlink()
    with pytest.raises(CheckpointError, match="beyond epoch 1, whose weights are needed: remove this folder"):
        search.search_cells(other)
    shutil.rmtree(other.out / "candidates" / f"{number:03d}")
    assert searched_again(other) == results(halved)


# --- what it leaves ---


def test_the_numbers_of_a_search_are_those_of_its_measurements(halved):  # noqa: F811
    found = found_in(halved)
    assert [rung["epochs"] for rung in found["rungs"]] == [1, 3]
    first, last = ([row["cell"] for row in rung["cells"]] for rung in found["rungs"])
    for rung in found["rungs"]:
        for row in rung["cells"]:
            record = measured(halved, Item(row["cell"], rung["epochs"]))
            assert row == {"cell": row["cell"], **{name: record[name] for name in row.keys() - {"cell"}}}
            assert record["accuracy"] == pytest.approx(sum(record["correct"]) / (20 * 75))
    accuracy = {i: measured(halved, Item(i, 1))["accuracy"] for i in range(4)}
    assert first == sorted(range(4), key=lambda i: -accuracy[i])
    assert last == sorted(first[:2], key=lambda i: measured(halved, Item(i, 3))["loss"])
    assert found["cell"] == last[0]
    assert found["control"] == {
        "epochs": 1,
        "random cells": pytest.approx(np.mean([*accuracy.values()])),
        "found": accuracy[last[0]],
    }
    assert found["cost"] == {"epochs": 4 * 1 + 2 * 2, "full trainings": 8 / 3}
    assert found["diverged"] == []


def test_times_are_in_the_record_of_the_run_and_not_in_what_must_be_equal(halved):  # noqa: F811
    assert "seconds" not in (halved.out / "search.json").read_text()
    rungs = [measured(halved, Item(i, 1)) for i in range(4)]
    rungs += [measured(halved, Item(row["cell"], 3)) for row in found_in(halved)["rungs"][1]["cells"]]
    spent = read_run(halved.out)["results"]["cpu_seconds"]
    assert spent == pytest.approx(sum(each["cpu_seconds"] for each in rungs))


def test_second_trainings_and_random_cells_say_what_was_gained(halved):  # noqa: F811
    found = found_in(halved)["confirmed"]
    last = [row["cell"] for row in found_in(halved)["rungs"][1]["cells"]]
    expected = {
        "kept": [Item(i, 3) for i in last],
        "trained again": [Item(i, 3, 1) for i in last],
        "random cells": [Item(0, 3), Item(1, 3)],
    }
    for name, items in expected.items():
        assert found[name] == [measured(halved, item)["test_accuracy"] for item in items], name
    assert found["finalists"] == last
    assert found["kept"] != found["trained again"]
    random = np.mean(found["random cells"])
    assert found["gain of the network"] == pytest.approx(np.mean(found["kept"]) - random)
    assert found["gain of the cells"] == pytest.approx(np.mean(found["trained again"]) - random)
    assert found["half-width of the cells"] > 0
    assert measured(halved, Item(0, 1))["test_accuracy"] is None, "test classes are for the finalists"


def test_a_search_may_be_confirmed_later(halved, tmp_path):  # noqa: F811
    settings = dataclasses.replace(moved(halved, tmp_path / "moved"), confirm=0)
    search.search_cells(settings)
    assert found_in(settings)["confirmed"] is None
    assert searched_again(settings, confirm=2) == results(halved)


def test_the_trained_network_is_evaluated_and_predicts(halved, tmp_path, enough_images):  # noqa: F811
    place = halved.out / "train"
    trained = read_training(place)
    assert trained.settings.out == place
    assert read_run(place)["config"]["out"] == place.as_posix()
    assert trained.genotype.to_json() == found_in(halved)["genotype"]
    evaluated = evaluate.record_evaluation(evaluate_settings(trained.settings, tmp_path / "evaluate"))
    assert evaluated["parameters"] == found_in(halved)["parameters"]
    for number in range(2):
        for kind, row in zip(
            (f"support/{number}", "query"), enough_images.test.members[number], strict=False
        ):
            (tmp_path / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(enough_images.test.images[row]).save(tmp_path / kind / f"{number}.png")
    out = tmp_path / "predict"
    settings = Predict(checkpoint=place, images=tmp_path, augment=0, device="cpu", out=out)
    assert predict.write_predictions(settings) == 0
    assert len((out / "predictions.csv").read_text().splitlines()) == 3


def test_any_candidate_is_a_training_that_goes_on_and_leaves_the_search_as_it_was(halved):  # noqa: F811
    dropped = found_in(halved)["rungs"][0]["cells"][-1]["cell"]
    place = halved.out / "candidates" / f"{dropped:03d}"
    before = results(halved)
    assert shell.main(["train", "--config", str(place)]) == 0
    assert read_training(place).state["epoch"] == 3
    assert searched_again(halved) == before


def test_a_search_draws_its_rungs_and_says_how_to_go_on(halved, capsys):  # noqa: F811
    search.search_and_draw(dataclasses.replace(halved, verbose=True))
    said = capsys.readouterr().out
    best = found_in(halved)["cell"]
    assert "rung 1 of 2: 4 cells at epoch 1; accuracy " in said
    assert "the best 2 by accuracy are trained further" in said
    assert "epoch 1: 4 cells ranked by accuracy" in said
    assert f"epoch 3: 2 cells ranked by loss: {best} (" in said
    assert f"number         cell {best} of 4\n" in said
    assert "cost           8 epochs, as much as 2.7 full trainings; " in said
    assert "2 finalists against 2 random cells" in said
    fits = f"evaluate --checkpoint {halved.out / 'train'} --queries 11"  # of 16 images a class, 5 support
    assert f"evaluate it    python -m experiments {fits}\n" in said
    assert "% 5-way 1-shot accuracy, 6 validation classes, at epoch 3" in said
    search.search_and_draw(halved)
    assert "cells ranked by" not in capsys.readouterr().out
    drawn = {f"{name}.{ending}" for name in ("cells", "rungs") for ending in ("png", "pdf", "json")}
    assert drawn <= files(halved.out)


# --- networks that do not differ, and trainings that diverge ---


def as_accurate(monkeypatch, correct):
    """Trainings that take no time; ``correct(candidate, random, count)`` of 75 queries of every unit are recognised."""

    def measure(settings, genotypes, device, item):
        del genotypes, device
        random = np.random.default_rng((item.candidate, item.epochs))
        rows = [int(each) for each in correct(item.candidate, random, settings.validation_tasks)]
        accuracy = float(np.mean(rows)) / 75
        return {
            **{"diverged": False, "loss": 1 - accuracy, "accuracy": accuracy, "test_accuracy": accuracy},
            **{"correct": rows, "units": [row / 75 for row in rows], "cpu_seconds": 1.0},
        }

    monkeypatch.setattr(halving, "measure_candidate", measure)
    monkeypatch.setattr(halving, "keep_trained", lambda *_: None)


def test_where_networks_do_not_differ_the_search_stops_after_the_first_rung(tmp_path, monkeypatch, capsys):
    as_accurate(monkeypatch, lambda _, random, count: random.integers(28, 33, count))
    settings = halving_settings(tmp_path, anyway=False, confirm=0)
    with pytest.raises(
        ConfigurationError, match=r"at epoch 1 networks of this size differ by .* give --anyway"
    ):
        search.search_cells(settings)
    assert read_run(tmp_path)["status"] == "failed"
    assert not (tmp_path / "search.json").exists()
    capsys.readouterr()
    assert shell.main(["search", "--config", str(tmp_path)]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    with counted(halving, "measure_candidate") as calls:
        search.search_cells(dataclasses.replace(settings, anyway=True))
    assert {call[-1].epochs for call in calls} == {3}


def test_where_the_data_cannot_tell_the_search_says_so_and_continues(tmp_path, monkeypatch, capsys):
    as_accurate(monkeypatch, lambda _, random, count: random.integers(20, 40, count))
    settings = halving_settings(tmp_path, anyway=False)
    search.search_cells(settings)
    room = found_in(settings)["headroom"]
    assert room["p_value"] > 0.05
    assert room["luck"] > 0.01
    said = capsys.readouterr().out
    assert "6 validation classes cannot tell whether networks of this size differ at epoch 1 (p = " in said
    assert "6 validation classes cannot tell whether they differ (p = " in gain_words(
        found_in(settings), settings
    )


def test_networks_that_differ_are_searched_and_what_can_be_gained_is_said(tmp_path, monkeypatch, capsys):
    as_accurate(monkeypatch, lambda i, random, count: 20 + 5 * i + random.integers(0, 3, count))
    search.search_cells(halving_settings(tmp_path / "one", anyway=False))
    room = found_in(halving_settings(tmp_path / "one"))["headroom"]
    # Candidates are 5/75 apart: the deviation of four such numbers is 1.29 steps.
    assert room["deviation"] == pytest.approx(math.sqrt(5 / 3) * 5 / 75, rel=0.05)
    said = capsys.readouterr().out
    assert f"the best of 4 can be {100 * room['most']:.1f} points ahead of their mean" in said
    with pytest.raises(ConfigurationError, match="next to nothing"):
        search.search_cells(halving_settings(tmp_path / "two", anyway=False, least_gain=50.0))


def test_a_candidate_that_diverges_is_last_counted_and_said(tmp_path, monkeypatch, capsys):
    usual = halving.candidate_training

    def planted(settings, item):
        rate = 1e30 if item.candidate == 0 else settings.search_learning_rate
        return dataclasses.replace(usual(settings, item), learning_rate=rate)

    monkeypatch.setattr(halving, "candidate_training", planted)
    settings = halving_settings(tmp_path)
    search.search_cells(settings)
    found = found_in(settings)
    assert found["diverged"] == [0]
    assert found["rungs"][0]["cells"][-1] == {"cell": 0, "loss": None, "accuracy": None, "diverged": True}
    others = [row["accuracy"] for row in found["rungs"][0]["cells"][:-1]]
    assert found["control"]["random cells"] == pytest.approx(np.mean(others))
    assert found["confirmed"]["random cells"][0] is None
    assert found["confirmed"]["gain of the cells"] is not None
    assert found["confirmed"]["half-width of the cells"] is None
    said = capsys.readouterr()
    assert "1 diverged and is last" in said.out
    search.draw_found(settings)
    assert "diverged       the trainings of cells 0\n" in capsys.readouterr().out
    assert "nan" not in said.out + said.err
    before = results(settings)
    assert searched_again(settings) == before


def test_where_all_trainings_diverge_there_is_one_clear_error(tmp_path):
    settings = halving_settings(tmp_path, search_learning_rate=1e30)
    with pytest.raises(
        ConfigurationError, match="all 4 trainings diverged by epoch 1: lower --search-learning-rate"
    ):
        search.search_cells(settings)


def test_in_memory_the_same_cells_are_kept_with_the_same_weights_as_in_run_folders(tmp_path):
    usual = {"validation_tasks": VALIDATION_TASKS, "search_batch_size": 64, "search_milestones": ()}
    settings = halving_settings(tmp_path / "search", confirm=0, **usual)
    search.search_cells(settings)
    record = json.loads((settings.out / "search.json").read_text())
    rungs, band = (Rung(4, 1), Rung(2, 3, "loss")), tuple(map(int, BAND.split(":")))
    size = NetworkSettings(channels=4, cells=3, stem_stride=4)
    found = in_memory(data_of(settings), "halving", size=size, parameters=band, rungs=rungs)
    written = [
        [(cell["cell"], cell["loss"], cell["accuracy"]) for cell in rung["cells"]] for rung in record["rungs"]
    ]
    assert [[number for number, *_ in rung] for rung in written] == [[*alive] for _, alive in found.standings]
    assert [rung[0] for rung in written][-1][1:] == (found.scores[-1].loss, found.scores[-1].accuracy)
    assert found.genotype.to_json() == record["genotype"]
    saved = load_state(settings.out / "train" / "state", print).tensors
    for name, value in found.network.network.state_dict().items():
        assert torch.equal(value, saved[f"network/{name}"]), name
