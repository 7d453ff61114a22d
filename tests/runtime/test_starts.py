"""A rerun of a finished run changes nothing in its record, and the running time has no pauses."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from mamltheory.runtime.records import to_json
from mamltheory.runtime.runlog import open_run, read_run


def begin(directory, threads=1, **options):
    return open_run(directory, "train", {"width": 3}, 0, {"threads": threads}, **options)


def finished(directory, seconds=None):
    begin(directory).close(accuracy=0.5, cpu_seconds=3.0)
    if seconds is not None:
        change(directory, seconds=seconds)
    return (directory / "run.json").read_bytes()


def change(directory, **entries):
    (directory / "run.json").write_text(to_json(read_run(directory) | entries))


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_a_rerun_without_new_work_leaves_the_record_as_it_was(tmp_path, capsys, status):
    before = finished(tmp_path)
    log = begin(tmp_path, threads=2)
    assert (tmp_path / "run.json").read_bytes() == before
    results = {"accuracy": 0.5, "cpu_seconds": 7.0} if status == "finished" else {}
    assert log.close(status, **results).record == read_run(tmp_path)
    assert (tmp_path / "run.json").read_bytes() == before
    assert capsys.readouterr().err == ""


def test_new_results_of_a_finished_run_are_recorded(tmp_path):
    finished(tmp_path, seconds=100.0)
    begin(tmp_path).close(accuracy=0.75)
    record = read_run(tmp_path)
    assert (record["starts"], record["results"], record["status"]) == (2, {"accuracy": 0.75}, "finished")
    assert 100 <= record["seconds"] < 200


@pytest.mark.parametrize("work", [lambda log: log.resume(), lambda log: log.log(step=1)])
def test_new_work_of_a_finished_run_is_recorded_at_once(tmp_path, capsys, work):
    finished(tmp_path)
    log = begin(tmp_path, threads=2)
    work(log)
    assert (read_run(tmp_path)["status"], read_run(tmp_path)["starts"]) == ("running", 2)
    assert "threads (1 there, 2 now)" in capsys.readouterr().err
    log.close("interrupted")
    assert read_run(tmp_path)["status"] == "interrupted"


def test_pauses_are_no_running_time_and_a_start_that_was_killed_lasts_until_its_last_file(tmp_path):
    begin(tmp_path).close("interrupted")
    change(tmp_path, seconds=50.0, started="2020-01-01T00:00:00+00:00")
    assert 50 <= begin(tmp_path).close("interrupted").record["seconds"] < 60
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "latest").touch()
    killed = datetime.fromtimestamp(time.time() - 30, UTC).isoformat(timespec="seconds")
    change(tmp_path, seconds=50.0, status="running", resumed=killed)
    assert 79 <= begin(tmp_path).close().record["seconds"] < 90
    long_ago = datetime.now(UTC) + timedelta(days=1)  # a clock that was put back takes nothing away
    change(tmp_path, seconds=50.0, status="running", resumed=long_ago.isoformat(timespec="seconds"))
    assert 50 <= begin(tmp_path).close().record["seconds"] < 60


def test_a_command_that_computes_everything_again_has_the_time_of_its_last_start(tmp_path):
    begin(tmp_path).close("interrupted")
    change(tmp_path, seconds=50.0)
    assert begin(tmp_path, continues=False).close().record["seconds"] < 10


def test_a_record_without_running_time_gets_none(tmp_path):
    begin(tmp_path).close("interrupted")
    record = read_run(tmp_path)
    del record["seconds"]
    (tmp_path / "run.json").write_text(to_json(record))
    assert "seconds" not in begin(tmp_path).close().record
