"""Signals to real commands: worker processes finish or end at their next step, and never stay behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments.theory import sweep
from experiments.theory.settings import Theory
from mamltheory.errors import ConfigurationError
from mamltheory.runtime.interrupt import Interrupted, check_interrupted, interruptible
from mamltheory.runtime.runlog import read_metrics
from mamltheory.runtime.workers import workers

ROOT = Path(__file__).resolve().parents[2]


def signal_at_three(value):
    if value == 3:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(0.5)
    return value


def ctrl_c_at_three(value):
    if value == 3:
        signal.raise_signal(signal.SIGINT)
    return value


def endless(value):
    """A function that looks for stops between its steps, as a training does."""
    if value == 1:
        os.kill(os.getppid(), signal.SIGINT)
    for _ in range(600):
        time.sleep(0.1)
        check_interrupted()
    return "never"


def dies(_):
    os._exit(9)


def threads(_):
    return torch.get_num_threads()


def results_until_stopped(jobs, function, items):
    """The results handed out, and the stop that ended them."""
    done = []
    try:
        with interruptible(), workers(jobs) as spread:
            for item, result in spread(function, items):
                done.append((item, result))
    except Interrupted as stop:
        return done, stop
    pytest.fail("nothing stopped")


def test_in_one_process_nothing_new_is_begun_after_a_stop():
    done, stop = results_until_stopped(1, ctrl_c_at_three, range(9))
    assert done == [(i, i) for i in range(4)]
    assert stop.signal_number == signal.SIGINT


def test_one_process_computes_on_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with workers(1) as spread:
            assert [result for _, result in spread(threads, [0])] == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_runs_in_workers_when_a_stop_comes_is_finished_and_handed_out():
    done, stop = results_until_stopped(2, signal_at_three, range(50))
    assert (3, 3) in done
    assert len(done) <= 6
    assert stop.signal_number == signal.SIGTERM


def test_a_function_that_looks_for_stops_ends_at_its_next_step():
    done, stop = results_until_stopped(2, endless, range(9))
    assert done == []
    assert stop.signal_number == signal.SIGINT


def test_a_worker_that_dies_is_one_clear_error():
    with pytest.raises(ConfigurationError, match="fewer processes with --jobs"), workers(2) as spread:
        list(spread(dies, range(3)))


def processes_of(group):
    """Live processes of a group, without those that have ended and only wait to be collected."""
    lines = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True).stdout.split(
        "\n"
    )
    rows = [line.split() for line in lines if line.strip()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [
        (signal.SIGINT, True, 130),  # Ctrl-C on a terminal
        (signal.SIGTERM, False, 143),  # kill
        (signal.SIGTERM, True, 143),  # a batch system
        (signal.SIGKILL, False, -9),
    ],
)
def test_a_signal_leaves_no_process_behind_and_every_finished_run_on_disk(tmp_path, number, to_group, code):
    flags = "--widths 8 16 32 --seeds 40 --steps 40 --dimension 4 --task-count 2 --jobs 2"
    places = ["--out", str(tmp_path / "figures"), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments", "drift", *flags.split(), *places],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    settings = Theory(
        widths=(8, 16, 32), seeds=40, steps=40, dimension=4, task_count=2, runs=tmp_path / "runs"
    )
    folder = sweep.sweep_folder(settings)
    while process.poll() is None and len(read_metrics(folder)) < 3:
        time.sleep(0.05)
    (os.killpg if to_group else os.kill)(process.pid, number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in error
    deadline = time.monotonic() + 10
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(process.pid) == []
    rows = read_metrics(folder)
    assert 3 <= len(rows) < 120
    if code > 0:
        assert "saved; continue with" in error
