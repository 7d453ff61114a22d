"""Two processes cannot write one run folder, and a process that died leaves it free."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.lock import HOLDER_FILE, LOCK_FILE, hold, let_go
from mamltheory.runtime.runlog import open_run

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from mamltheory.runtime.lock import hold
assert hold(Path(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
os._exit(9)
"""


@pytest.fixture
def other_process(tmp_path):
    """A process that holds the folder until its input ends, and then dies without letting go."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(ROOT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().strip() == str(process.pid)
        yield process
        process.stdin.close()


def test_a_run_in_a_folder_that_another_process_writes_is_refused_by_name_until_that_ends(
    tmp_path, other_process
):
    with pytest.raises(ConfigurationError, match=f"process {other_process.pid} on .* choose another --out"):
        open_run(tmp_path, "search", {"width": 3}, 0, {})
    assert not (tmp_path / "run.json").exists()
    other_process.stdin.close()
    other_process.wait(timeout=30)
    assert (tmp_path / LOCK_FILE).exists()  # it died with the lock
    log = open_run(tmp_path, "search", {"width": 3}, 0, {})
    assert f'"process": {os.getpid()}' in (tmp_path / HOLDER_FILE).read_text()
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_one_process_may_hold_a_folder_twice_and_a_refused_run_does_not_free_it(tmp_path):
    log = open_run(tmp_path, "search", {"width": 3}, 0, {})
    with pytest.raises(ConfigurationError, match="width"):
        open_run(tmp_path, "search", {"width": 4}, 0, {})
    assert (tmp_path / LOCK_FILE).exists()
    assert not hold(tmp_path)
    log.close()
    assert hold(tmp_path)
    let_go(tmp_path)
    let_go(tmp_path)


def test_a_lock_file_removed_by_its_holder_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Between opening the file and locking it, another process ends and removes it."""
    fcntl = pytest.importorskip("fcntl")
    usual, calls = fcntl.flock, []

    def removed_first(descriptor, how):
        if not calls:
            (tmp_path / LOCK_FILE).unlink()
        calls.append(how)
        return usual(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_first)
    assert hold(tmp_path)
    assert len(calls) == 2
    assert (tmp_path / LOCK_FILE).exists()
    let_go(tmp_path)
