"""Errors of the disk: one line and exit code 2, and the same command continues when there is room."""

import errno
import itertools
import json
import os

import pytest

from experiments import __main__ as shell
from experiments import genotypes
from experiments.commands import COMMANDS
from experiments.search import search
from experiments.studies import measurements
from experiments.studies.settings import Correlation
from mamltheory.runtime.checkpoint import load_state
from mamltheory.runtime.runlog import open_run, read_metrics, read_run
from tests.experiments.disk import ERRORS, files_of_at_most, refusing
from tests.experiments.tiny import GENOTYPE, begun, search_settings, weights
from tests.fewshot import layouts
from tests.fewshot.layouts import tiny_splits

SIZE = "--image-size 16 --channels 4 --cells 3 --stem-stride 4 --device cpu"
SEARCH = f"search {SIZE} --ways 2 --tasks 1 --repeats 1"
TRAIN = f"train {SIZE} --epochs 3 --batch-size 16 --milestones 2 --drop-path 0.2 --learning-rate 0.05"
EVALUATE = "evaluate --ways 3 --shots 1 --queries 2 --tasks 4 --augment 1 --device cpu"


def run(line, capsys, **places):
    """Exit code, and what was said of errors, of a command line with folders."""
    words = [*line.split(), *itertools.chain(*((f"--{key}", str(path)) for key, path in places.items()))]
    code = shell.main(words)
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    return code, [text for text in told.err.splitlines() if text.startswith("error: ")]


def refused(name, code, line, capsys, **places):
    """The command ends in one line about the refusal, with code 2."""
    with refusing(name, getattr(errno, code)) as asked:
        exit_code, lines = run(line, capsys, **places)
    assert asked, name
    assert (exit_code, len(lines)) == (2, 1)
    assert os.strerror(getattr(errno, code)) in lines[0], lines


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if "out" in command.folders])
def test_a_folder_that_cannot_be_made_is_refused_by_every_command_before_its_work(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(COMMANDS[name].__class__, "load", lambda _: lambda _: pytest.fail("work was begun"))
    if not hasattr(COMMANDS[name].settings(), "out"):
        return
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for place in ("/proc/foo", tmp_path / "file", tmp_path / "file" / "in it", tmp_path / "loop" / "x"):
        code, lines = run(name, capsys, out=place)
        assert (code, len(lines)) == (2, 1)
        assert f"cannot write to {place}" in lines[0]
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.parametrize("bad", ["a\udcff", "x" * 300, "nul\0"])
def test_names_that_no_disk_takes_are_refused(bad, tmp_path, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"out": str(tmp_path / bad)}))
    code, lines = run("glyphs --classes 2 --samples 2", capsys, config=config)
    assert (code, len(lines)) == (2, 1)


def test_a_search_goes_on_after_every_refusal(tmp_path, capsys, monkeypatch, few_images):  # noqa: ARG001
    monkeypatch.setattr(search, "draw_found", lambda _: None)  # figures are refused to the training below
    out = begun(tmp_path / "search").out
    for name, code in zip(
        ("run.json", "tensors", "metrics", "genotype", "search.json"), ERRORS, strict=False
    ):
        refused(name, code, SEARCH, capsys, out=out)
    assert run(SEARCH, capsys, out=out) == (0, [])
    state = search.saved_search(search_settings(out)).state
    assert genotypes.read_genotype(out / "genotype.json") == state.candidates.genotype()
    rounds = {row["round"] for row in read_metrics(out)}
    assert rounds == set(range(1, state.round_index + 1))  # none is left out of the record
    assert read_run(out)["status"] == "finished"


def test_a_training_its_evaluation_and_a_table_of_predictions_go_on(trained, tmp_path, capsys):
    cell, out = trained.genotype, tmp_path / "train"
    for name, code in zip(("run.json", "tensors", "metrics", "learning_curves"), ERRORS, strict=False):
        refused(name, code, TRAIN, capsys, genotype=cell, out=out)
    assert run(TRAIN, capsys, genotype=cell, out=out) == (0, [])
    ours = load_state(out / "state", print).tensors
    assert all((ours[name] == tensor).all() for name, tensor in weights(trained).items())
    for code in ("ENOSPC", "EROFS"):
        refused("run.json", code, EVALUATE, capsys, checkpoint=out, out=tmp_path / "evaluate")
    assert run(EVALUATE, capsys, checkpoint=out, out=tmp_path / "evaluate") == (0, [])


@pytest.mark.slow
def test_files_that_cannot_grow_end_a_training_with_its_saved_state_whole(trained, tmp_path, capsys):
    places = {"genotype": trained.genotype, "out": tmp_path / "train"}
    with files_of_at_most(20_000):
        code, lines = run(TRAIN, capsys, **places)
    assert (code, len(lines)) == (2, 1)
    assert "File too large" in lines[0]
    assert run(TRAIN, capsys, **places) == (0, [])
    ours = load_state(tmp_path / "train" / "state", print).tensors
    assert all((ours[name] == tensor).all() for name, tensor in weights(trained).items())


def test_a_lock_that_cannot_be_written_still_holds_and_one_that_cannot_be_made_is_one_line(tmp_path, capsys):
    with refusing(".lock", errno.EROFS):
        assert run(f"evaluate --checkpoint {tmp_path}", capsys, out=tmp_path / "x")[0] == 2
    with refusing(".lock", errno.EACCES), pytest.raises(PermissionError):
        open_run(tmp_path / "run", "search", {"width": 3}, 0, {})
    with files_of_at_most(0), pytest.raises(OSError, match="File too large"):
        open_run(tmp_path / "run", "search", {"width": 3}, 0, {})
    open_run(tmp_path / "run", "search", {"width": 3}, 0, {}).close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]


def test_a_study_measures_only_what_could_not_be_written(tmp_path):
    settings, items = Correlation(runs=tmp_path / "runs", out=tmp_path / "out"), {"a": 1, "b": 2, "c": 3}
    calls = []

    def measure(item):
        calls.append(item)
        return {"value": item, "cpu_seconds": 0.5 * item}

    with refusing("b.json", errno.EDQUOT), pytest.raises(OSError, match="quota"):
        measurements.measure_missing(settings, "correlation", items, measure, (), "cpu")
    assert read_run(tmp_path / "runs")["status"] == "failed"
    found = measurements.measure_missing(settings, "correlation", items, measure, (), "cpu")
    assert found == {name: {"value": item, "cpu_seconds": 0.5 * item} for name, item in items.items()}
    assert calls == [1, 2, 2, 3]
    assert read_run(tmp_path / "runs")["results"] == {"measurements": 3, "cpu_seconds": 3.0}


def test_images_for_which_there_is_no_room_end_in_a_line_and_are_prepared_when_there_is(tmp_path, capsys):
    layouts.write_npz(tmp_path / "tiered", tiny_splits())
    line = f"data check {tmp_path / 'tiered'} --image-size 64"
    places = {"out": tmp_path / "sheet", "prepare": tmp_path / "ready"}
    refused("contact_sheet.png", "ENOSPC", line, capsys, **places)
    with files_of_at_most(100_000):
        code, lines = run(line, capsys, **places)
    assert (code, len(lines)) == (2, 1)
    (tmp_path / "ready" / "few-shot-data.json.part").touch()  # the last file that could not be finished
    assert run(line, capsys, **places) == (0, [])


def test_a_cell_is_one_line_where_it_cannot_be_written(tmp_path, capsys):
    for code in ERRORS:
        refused("cell.json", code, "cell mini-8-2", capsys, out=tmp_path / "cell.json")
    assert run("cell mini-8-2", capsys, out=tmp_path / "no" / "cell.json") == (0, [])
    genotypes.write_genotype(tmp_path / "mine.json", GENOTYPE)
    before = (tmp_path / "mine.json").read_bytes()
    code, lines = run("cell mini-8-2", capsys, out=tmp_path / "mine.json")
    assert (code, len(lines)) == (2, 1)
    assert "is there already" in lines[0]
    assert (tmp_path / "mine.json").read_bytes() == before
