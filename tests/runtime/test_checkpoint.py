"""A saved state comes back bit by bit or not at all, whatever happens to the process or the files."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import CheckpointError
from mamltheory.runtime import checkpoint
from mamltheory.runtime.temporary import SECONDS_UNTIL_STALE, remove_stale
from tests.runtime import writer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def refuse(message):
    raise AssertionError(f"nothing should be reported, got: {message}")


def save_two(directory):
    for step in (1, 2):
        checkpoint.save_state(directory, {"w": torch.full((4, 3), float(step))}, {"step": step})


@settings(max_examples=20)
@given(
    state=st.dictionaries(st.text(), JSON, max_size=3), dtype=st.sampled_from([torch.float32, torch.float64])
)
def test_a_state_comes_back_equal(tmp_path_factory, state, dtype):
    directory = tmp_path_factory.mktemp("state")
    values = torch.tensor([0.1, -0.0, float("inf"), 1e-300, 2.0**-149], dtype=dtype)
    tensors = {"a": values, "view": values[::2], "scalar": torch.tensor(7), "empty": torch.empty(0, 3)}
    checkpoint.save_state(directory, tensors, state)
    back = checkpoint.load_state(directory, refuse)
    assert back.state == state
    assert back.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert torch.equal(back.tensors[name], tensor)
        assert torch.equal(torch.signbit(back.tensors[name]), torch.signbit(tensor))


def test_tensors_that_share_memory_are_saved_each_on_its_own(tmp_path):
    tied = torch.arange(6.0)
    checkpoint.save_state(tmp_path, {"first": tied, "second": tied, "part": tied[2:]}, {})
    back = checkpoint.load_state(tmp_path, refuse).tensors
    assert torch.equal(back["second"], tied)
    assert torch.equal(back["part"], tied[2:])


def test_nothing_saved_is_no_error(tmp_path):
    assert checkpoint.load_state(tmp_path, refuse) is None
    assert checkpoint.load_state(tmp_path / "absent", refuse) is None


def test_only_the_last_states_are_kept_and_the_newest_is_loaded(tmp_path):
    for step in range(12):
        checkpoint.save_state(tmp_path, {}, {"step": step}, keep=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"state-000000{n}" for n in (10, 11, 12)]
    assert checkpoint.load_state(tmp_path, refuse).state == {"step": 11}


def test_the_digests_are_those_of_sha256sum(tmp_path):
    path = checkpoint.save_state(tmp_path, {"w": torch.ones(2)}, {"step": 1})
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "extended"])
def test_a_damaged_file_is_found_and_the_state_before_is_used_after_saying_so(tmp_path, name, damage):
    save_two(tmp_path)
    file = tmp_path / "state-00000002" / name
    data = file.read_bytes()
    if damage == "removed":
        file.unlink()
    else:
        file.write_bytes({"truncated": data[:-1], "emptied": b"", "extended": data + b"\n"}[damage])
    said = []
    assert checkpoint.load_state(tmp_path, said.append).state == {"step": 1}
    assert len(said) == 1
    assert "state-00000002" in said[0]


def test_every_flipped_bit_is_found(tmp_path):
    path = checkpoint.save_state(tmp_path, {"w": torch.ones(3)}, {"step": 1, "text": "é"})
    for file in path.iterdir():
        data = file.read_bytes()
        for position in range(len(data) * 8):
            broken = bytearray(data)
            broken[position // 8] ^= 1 << position % 8
            file.write_bytes(broken)
            with pytest.raises(CheckpointError):
                checkpoint.read_state(path)
        file.write_bytes(data)
    assert checkpoint.read_state(path).state["step"] == 1


def test_when_all_states_are_broken_it_is_an_error(tmp_path):
    save_two(tmp_path)
    for path in tmp_path.glob("state-*/state.json"):
        path.write_text("{}")
    with pytest.raises(CheckpointError, match="all 2 saved states"):
        checkpoint.load_state(tmp_path, [].append)


def test_wrong_content_with_right_digests_is_still_refused(tmp_path):
    path = checkpoint.save_state(tmp_path, {}, {})
    for content in ((b"\x80\x04cos\nsystem\n.", b"{}"), (safetensors.torch.save({}), b"{")):
        files = dict(zip(("tensors.safetensors", "state.json"), content, strict=True))
        for name, data in files.items():
            (path / name).write_bytes(data)
        (path / "SHA256SUMS").write_bytes(checkpoint._digests(files))
        with pytest.raises(CheckpointError, match="not in this format"):
            checkpoint.read_state(path)


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": [torch.ones(1)]}, {"a": Path()}])
def test_what_json_would_change_is_refused(tmp_path, state):
    with pytest.raises(CheckpointError, match="'a'"):
        checkpoint.save_state(tmp_path, {}, state)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_with_its_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot save to"):
        checkpoint.save_state(tmp_path / "file" / "states", {}, {})


def test_a_full_disk_leaves_the_earlier_states_untouched(tmp_path, monkeypatch):
    save_two(tmp_path)

    def full(path, data):
        path.write_bytes(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.save_state(tmp_path, {"w": torch.ones(9)}, {"step": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000001", "state-00000002"]
    assert checkpoint.load_state(tmp_path, refuse).state == {"step": 2}


def test_what_a_dead_process_left_is_swept_and_a_living_one_is_left_alone(tmp_path, monkeypatch):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    monkeypatch.setattr(checkpoint.os, "getpid", lambda: dead.pid)
    left = tmp_path / checkpoint._temporary_name()
    monkeypatch.undo()
    own, parents = (
        tmp_path / checkpoint._temporary_name(),
        tmp_path / left.name.replace(f"{dead.pid}", f"{os.getppid()}"),
    )
    old = tmp_path / ".tmp-1-00000000-elsewhere"
    for path in (left, own, parents, old):
        path.mkdir()
    long_ago = time.time() - 2 * SECONDS_UNTIL_STALE
    os.utime(old, (long_ago, long_ago))
    assert set(remove_stale(tmp_path)) == {left, old}
    assert sorted(tmp_path.iterdir()) == sorted([own, parents])


def kill_at_random(directory, kills, seed):
    """Start the writer, kill it after a random time, start it again, ...; checks what each one leaves."""
    chance, newest = random.Random(seed), 0
    for _ in range(kills):
        command = [sys.executable, "-m", "tests.runtime.writer", str(directory)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        found = int(process.stdout.readline())
        time.sleep(chance.uniform(0.0, 0.15))
        process.kill()
        process.wait()
        process.stdout.close()
        assert found >= newest, "a state that had been reached was lost"
        back = checkpoint.load_state(directory, refuse)
        if back is not None:
            newest = back.state["step"]
            assert torch.equal(back.tensors["weights"], writer.expected(newest))
    checkpoint.save_state(directory, {}, {"step": newest + 1}, keep=1)
    assert newest > 0
    assert len(list(directory.iterdir())) == 1, "leftovers of killed processes were not swept"


@pytest.mark.slow
def test_killing_the_process_at_any_moment_leaves_a_good_state(tmp_path):
    kill_at_random(tmp_path, kills=4, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(2400)  # two hundred processes, which on a busy machine take seconds each
def test_killing_the_process_two_hundred_times_leaves_a_good_state(tmp_path):
    kill_at_random(tmp_path, kills=200, seed=1)


def test_a_state_is_plain_json_beside_plain_tensors(tmp_path):
    path = checkpoint.save_state(tmp_path, {"w": torch.ones(2)}, {"round": 3})
    assert json.loads((path / "state.json").read_text()) == {"round": 3}
    assert torch.equal(safetensors.torch.load_file(path / "tensors.safetensors")["w"], torch.ones(2))
