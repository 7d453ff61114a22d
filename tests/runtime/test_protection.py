"""Changes of measurements are noticed, and a state that is read during a write is never called broken."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from mamltheory.errors import CheckpointError
from mamltheory.runtime import checkpoint, records
from mamltheory.runtime.lock import let_go
from mamltheory.runtime.runlog import check_complete, open_run, read_metrics, read_run
from mamltheory.runtime.temporary import SECONDS_UNTIL_STALE, remove_stale


def begin(directory):
    return open_run(directory, "train", {"epochs": 3}, 0, {"device": "cpu"})


@pytest.fixture
def measured(tmp_path):
    """A run folder with three lines of measurements."""
    log = begin(tmp_path)
    for epoch in (1, 2, 3):
        log.log(epoch=epoch, loss=1 / epoch)
    log.close(accuracy=0.5)
    return tmp_path


def test_a_line_is_on_the_disk_before_its_step_counts(tmp_path, monkeypatch):
    log, synced = begin(tmp_path), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    log.log(epoch=1)
    assert synced


def test_every_changed_byte_of_the_measurements_is_noticed(measured):
    file = measured / "metrics.jsonl"
    raw = file.read_bytes()
    last = raw[:-1].rindex(b"\n") + 1
    for position in range(len(raw)):
        for bit in (0, 4):
            broken = bytearray(raw)
            broken[position] ^= 1 << bit
            file.write_bytes(broken)
            if position == len(raw) - 1:  # the last line without its end is one that was cut short
                assert len(read_metrics(measured)) == 2
                continue
            with pytest.raises(CheckpointError, match=r"metrics\.jsonl") as caught:
                read_metrics(measured)
            assert "\n" not in str(caught.value)
    for lines in (raw[last:], raw[:last] + raw[:last], raw[:last] + b'{"epoch": 3, "loss": 0.1}\n'):
        file.write_bytes(lines)
        with pytest.raises(CheckpointError, match=r"line \d of .*metrics\.jsonl"):
            read_metrics(measured)


def test_measurements_that_end_too_early_are_refused_by_who_knows_how_many_there_are(measured):
    file = measured / "metrics.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:1]))
    rows = read_metrics(measured)
    check_complete(measured, rows, "epoch", range(1, 2))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl has no line for epoch 2, 3"):
        check_complete(measured, rows, "epoch", range(1, 4))


def test_lines_of_an_earlier_version_are_read_and_gone_on_from(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (tmp_path / "run.json").write_text(json.dumps({"command": "train", "config": {"epochs": 3}}))
    log = begin(tmp_path)
    log.log(epoch=3)
    log.log(epoch=4, text="\u2028\r")
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert log.record["starts"] == 2


@pytest.mark.parametrize(
    "line", ["[1]", '"a"', "{", '{"epoch": "1"}', "[" * 10**5, '{"epoch": 1e999}', "\xff"]
)
def test_lines_of_another_kind_are_one_error(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(line.encode("latin1") + b"\n")
    with pytest.raises(CheckpointError, match=r"line 1 of .*metrics\.jsonl"):
        read_metrics(tmp_path, dict[str, int])


def test_a_full_disk_leaves_no_half_line(measured, monkeypatch):
    log, before = begin(measured), (measured / "metrics.jsonl").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.log(epoch=4)
    assert (measured / "metrics.jsonl").read_bytes() == before
    log.log(epoch=4)
    assert len(read_metrics(measured)) == 4


def test_a_changed_digit_of_the_record_is_noticed(measured):
    file = measured / "run.json"
    text = file.read_text()
    for position in [i for i, c in enumerate(text) if c.isdigit()]:
        file.write_text(text[:position] + str((int(text[position]) + 1) % 10) + text[position + 1 :])
        with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
            read_run(measured)


WRONG = {
    "command": [3, None, ["train"], {}],
    "config": [3, [], None, "a"],
    "seed": ["0", 1.5, [], 2**70],
    "environment": [[], "cpu", 3],
    "started": [3, "yesterday", [], {}],
    "ended": [3, "soon", []],
    "status": ["done", 3, None],
    "starts": ["2", 0, -1, 1.5, True, None, []],
    "results": [[], "a", 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
def test_a_record_with_a_field_of_another_type_is_one_error(measured, name, value):
    (measured / "run.json").write_text(json.dumps(read_run(measured) | {name: value}))
    with pytest.raises(CheckpointError, match=r"run\.json") as caught:
        begin(measured)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "state", ["[]", "3", "{", "[" * 10**5, '{"a": ' * 200 + "1" + "}" * 200, '{"a": 1, "a": 2}']
)
def test_a_state_of_another_form_is_one_error_even_with_right_digests(tmp_path, state):
    path = checkpoint.save_state(tmp_path, {}, {})
    content = {name: (path / name).read_bytes() for name in (checkpoint.TENSORS, checkpoint.STATE)}
    content[checkpoint.STATE] = state.encode()
    (path / checkpoint.STATE).write_bytes(content[checkpoint.STATE])
    (path / checkpoint.DIGESTS).write_bytes(checkpoint._digests(content))
    with pytest.raises(CheckpointError, match="not in this format"):
        checkpoint.read_state(path)


def test_states_that_a_writer_removes_meanwhile_are_not_called_broken(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save_state(tmp_path, {"w": torch.ones(2)}, {"step": step})
    read, said = checkpoint.read_state, []

    def overtaken(path):
        if path.name.endswith("2") and path.exists():
            for step in (3, 4):
                checkpoint.save_state(tmp_path, {"w": torch.ones(2)}, {"step": step})
        return read(path)

    monkeypatch.setattr(checkpoint, "read_state", overtaken)
    assert checkpoint.load_state(tmp_path, said.append).state == {"step": 4}
    assert said == []


def test_all_states_being_broken_is_said_without_the_advice_to_remove_them(tmp_path):
    checkpoint.save_state(tmp_path, {}, {})
    (tmp_path / "state-00000001" / "state.json").write_text("{} ")
    with pytest.raises(CheckpointError, match="put back a copy of one") as caught:
        checkpoint.load_state(tmp_path, [].append)
    assert "remove" not in str(caught.value)


def left_behind(directory, pid, age=0.0):
    """What writers of the process leave when they are killed, as earlier versions and this one name it."""
    (directory / "state").mkdir(exist_ok=True)
    host = os.uname().nodename
    names = (
        f".run.json.{pid}.tmp",
        f".run.json.{pid}-0123abcd-{host}.tmp",
        f"state/.tmp-{pid}-0123abcd-{host}",
    )
    paths = [directory / name for name in names]
    for path in paths:
        path.mkdir() if "state/" in str(path.relative_to(directory)) else path.write_text("{")
        os.utime(path, (time.time() - age,) * 2)
    return paths


@pytest.mark.parametrize("pid", [os.getppid(), os.getpid(), 2**22 + 1], ids=["parent", "own", "none"])
def test_opening_a_run_sweeps_what_killed_writers_left_whoever_has_their_number_now(measured, pid):
    left = left_behind(measured, pid)
    begin(measured)
    assert [path for path in left if path.exists()] == []
    let_go(measured)


@pytest.mark.skipif(
    not os.path.exists("/proc/self/stat"), reason="the system does not say when a process began"
)
def test_a_file_older_than_the_process_of_its_number_is_of_another_one(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        fresh, old = left_behind(tmp_path, child.pid), tmp_path / "old"
        assert remove_stale(tmp_path) == remove_stale(tmp_path / "state") == []
        old.mkdir()
        aged = left_behind(old, child.pid, age=3600.0)
        remove_stale(old)
        remove_stale(old / "state")
    finally:
        child.communicate(b"\n")
    assert [path for path in aged if path.exists()] == []
    assert all(path.exists() for path in fresh)
    remove_stale(tmp_path)  # now it has ended
    assert [path.name for path in fresh if path.exists()] == [fresh[2].name]


def test_replacing_a_file_sweeps_what_was_left_of_it_alone(tmp_path):
    left = left_behind(tmp_path, os.getppid(), age=2 * SECONDS_UNTIL_STALE)
    other = tmp_path / ".other.json.1.tmp"
    shutil.copy2(left[0], other)
    records.replace_file(tmp_path / "run.json", b"{}")
    assert not left[0].exists()
    assert not left[1].exists()
    assert other.exists()
