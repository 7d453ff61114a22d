"""A run's record says what ran, can be fed back, and survives crashes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.runtime.records import plain, replace_file, to_json
from mamltheory.runtime.runlog import open_run, read_metrics, read_run


@dataclass(frozen=True)
class Config:
    width: int = 3
    inner_time: float = math.inf
    out: Path = Path("runs/x")
    jobs: int = 1


def begin(directory, config=None, command="search", **options):
    config = Config() if config is None else config
    return open_run(directory, command, config, seed=0, environment={"threads": 1}, **options)


def test_the_record_holds_command_settings_seed_environment_and_end(tmp_path):
    log = begin(tmp_path)
    running = read_run(tmp_path)
    assert (running["status"], running["ended"]) == ("running", None)
    log.close("finished", accuracy=0.5)
    record = read_run(tmp_path / "run.json")
    assert record["command"] == "search"
    assert record["config"] == {"width": 3, "inner_time": "inf", "out": "runs/x", "jobs": 1}
    assert (record["seed"], record["environment"]) == (0, {"threads": 1})
    assert record["started"] <= record["ended"]
    assert (record["status"], record["results"]) == ("finished", {"accuracy": 0.5})


def test_metrics_are_appended_across_starts_of_the_same_run(tmp_path):
    begin(tmp_path).log(step=1, loss=torch.tensor(0.25))
    second = begin(tmp_path)
    second.log(step=2, loss=math.nan)
    assert second.record["starts"] == 2
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.25}, {"step": 2, "loss": "nan"}]


def test_a_line_cut_by_a_crash_is_dropped_and_nothing_else(tmp_path):
    begin(tmp_path).log(step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1}]
    begin(tmp_path).log(step=2)
    assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path):
    begin(tmp_path)
    with pytest.raises(ConfigurationError, match=r"width \(3 there, 4 now\)"):
        begin(tmp_path, Config(width=4))
    with pytest.raises(ConfigurationError, match="run of 'search', not of 'train'"):
        begin(tmp_path, command="train")


def test_settings_that_do_not_change_results_may_differ(tmp_path):
    begin(tmp_path)
    with pytest.raises(ConfigurationError, match="jobs"):
        begin(tmp_path, Config(jobs=2))
    assert begin(tmp_path, Config(jobs=2), may_differ=("jobs",)).record["config"]["jobs"] == 2


def begun_before(directory, *names):
    """A run of an earlier version, which had no such settings."""
    begin(directory).close("interrupted")
    record = read_run(directory)
    for name in names:
        del record["config"][name]
    (directory / "run.json").write_text(to_json(record))


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default_alone(tmp_path):
    begun_before(tmp_path, "jobs", "inner_time", "out")
    with pytest.raises(ConfigurationError, match=r"other settings: jobs \(1 there, 2 now\);"):
        begin(tmp_path, Config(jobs=2))
    with pytest.raises(ConfigurationError, match=r"other settings: inner_time \('inf' there, 0\.5 now\);"):
        begin(tmp_path, Config(inner_time=0.5))
    log = begin(tmp_path)
    assert log.record["starts"] == 2
    assert log.record["config"] == plain(Config())


def test_what_a_setting_was_before_it_existed_can_be_given(tmp_path):
    begun_before(tmp_path, "jobs")
    with pytest.raises(ConfigurationError, match=r"jobs \(4 there, 1 now\)"):
        begin(tmp_path, before=Config(jobs=4))
    with pytest.raises(ConfigurationError, match=r"width \(3 there, 5 now\);"):
        begin(tmp_path, Config(jobs=4, width=5), before=Config(jobs=4, width=5))
    assert begin(tmp_path, Config(jobs=4), before=Config(jobs=4)).record["starts"] == 2


def test_a_setting_that_no_longer_exists_is_a_difference_unless_it_had_the_given_value(tmp_path):
    begin(tmp_path, {"width": 3, "depth": 2})
    with pytest.raises(ConfigurationError, match=r"depth \(2 there, None now\)"):
        begin(tmp_path, {"width": 3})
    with pytest.raises(ConfigurationError, match=r"depth \(2 there, 1 now\)"):
        begin(tmp_path, {"width": 3}, before={"depth": 1})
    assert begin(tmp_path, {"width": 3}, before={"depth": 2}).record["config"] == {"width": 3}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": "search"}', '{"command": "a", "config": 3}'])
def test_a_broken_record_is_an_error(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(CheckpointError):
        read_run(tmp_path)


def test_an_unknown_status_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="status"):
        begin(tmp_path).close("ok")


def test_plain_values_survive_strict_json():
    value = {
        "a": (1, np.float64(0.1), np.int64(3)),
        "b": torch.eye(2),
        3: {Path("x/y")},
        "c": [None, True, -math.inf],
    }
    text = to_json(value)
    assert json.loads(text) == {
        "a": [1, 0.1, 3],
        "b": [[1, 0], [0, 1]],
        "3": ["x/y"],
        "c": [None, True, "-inf"],
    }
    assert float(json.loads(text)["c"][2]) == -math.inf


@pytest.mark.parametrize("value", [object(), {"a": b"x"}, {(1, 2): 3}, {"f": len}])
def test_what_has_no_plain_form_is_refused(value):
    with pytest.raises(ConfigurationError, match="cannot record"):
        plain(value)


def test_replacing_a_file_leaves_nothing_else_behind(tmp_path):
    for text in (b"old", b"new"):
        replace_file(tmp_path / "folder" / "file", text)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]
    assert (tmp_path / "folder" / "file").read_bytes() == b"new"


def test_another_environment_is_said_once_and_the_record_keeps_both(tmp_path, capsys):
    def start(threads, torch_version="2.1", **options):
        where = {"threads": threads, "torch": torch_version}
        return open_run(tmp_path, "train", Config(), 0, where, **options).record

    assert start(2)["sessions"] == [{"start": 1, "environment": {"threads": 2, "torch": "2.1"}}]
    start(2)
    assert capsys.readouterr().err == ""
    record = start(1)
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "threads (2 there, 1 now)" in told
    assert "torch" not in told
    assert record["environment"] == {"threads": 1, "torch": "2.1"}
    assert [(one["start"], one["environment"]["threads"]) for one in record["sessions"]] == [(1, 2), (3, 1)]
    assert "torch ('2.1' there, '2.2' now)" in (start(1, "2.2"), capsys.readouterr().err)[1]
    record = start(4, "2.2", may_differ=("threads",))
    assert capsys.readouterr().err == ""
    assert read_run(tmp_path)["sessions"] == record["sessions"]
    assert [one["environment"]["threads"] for one in record["sessions"]] == [2, 1, 1, 4]


def test_the_first_environment_of_a_run_from_before_they_were_listed_is_kept(tmp_path, capsys):
    begun_before(tmp_path)
    record = read_run(tmp_path)
    del record["sessions"]
    (tmp_path / "run.json").write_text(to_json(record))
    found = open_run(tmp_path, "search", Config(), 0, {"threads": 8}).record["sessions"]
    assert [each["environment"] for each in found] == [{"threads": 1}, {"threads": 8}]
    assert "threads (1 there, 8 now)" in capsys.readouterr().err
