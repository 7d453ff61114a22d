"""Signals to real trainings, alone and under torchrun: killed anywhere, the same command ends in the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from experiments import genotypes
from mamltheory.runtime.checkpoint import load_state
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.tiny import GENOTYPE

ROOT = Path(__file__).resolve().parents[3]
FLAGS = (
    "--image-size 16 --channels 4 --cells 3 --stem-stride 4 --epochs 2 --milestones 1 --batch-size 64 "
    "--learning-rate 0.05 --device cpu --save-minutes 0"
)
STEPS = 45  # of an epoch: 96 classes of 30 images in batches of 64
ALONE = (sys.executable, "-m", "experiments")
TOGETHER = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    *ALONE[1:],
)

pytestmark = pytest.mark.slow


def started(program, folder, more=""):
    genotypes.write_genotype(folder / "cell.json", GENOTYPE)
    places = ["--genotype", str(folder / "cell.json"), "--out", str(folder / "train")]
    return subprocess.Popen(
        [*program, "train", *FLAGS.split(), *more.split(), *places],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def done_in(folder):
    """Steps that the newest saved state has done."""
    found = load_state(folder / "train" / "state", lambda _: None)
    return found.state["epoch"] * STEPS + found.state["step"] if found else 0


def wait_for(folder, steps, process):
    deadline = time.monotonic() + 200
    while done_in(folder) < steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished(program, folder, more=""):
    process = started(program, folder, more)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return load_state(folder / "train" / "state", print).tensors


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return finished(ALONE, folder, "--save-minutes 10"), read_metrics(folder / "train")


def test_a_training_killed_at_three_points_ends_in_the_same_bits(uninterrupted, tmp_path):
    for point in (7, STEPS + 1, 2 * STEPS - 8):
        process = started(ALONE, tmp_path)
        wait_for(tmp_path, point, process)
        process.kill()
        process.communicate()
        assert point <= done_in(tmp_path) < 2 * STEPS
    tensors, (weights, metrics) = finished(ALONE, tmp_path, "--save-minutes 10"), uninterrupted
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert list({row["epoch"]: row for row in read_metrics(tmp_path / "train")}.values()) == metrics
    assert read_run(tmp_path / "train")["starts"] == 4


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_after_the_step_and_says_how_to_go_on(uninterrupted, tmp_path, number, code):
    process = started(ALONE, tmp_path)
    wait_for(tmp_path, 5, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == code
    command = f"python -m experiments train --config {tmp_path / 'train'}"
    assert f"saved; continue with: {command}" in output
    assert "Traceback" not in output
    again = [sys.executable, *command.split()[1:]]
    subprocess.run(again, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    tensors, (weights, metrics) = load_state(tmp_path / "train" / "state", print).tensors, uninterrupted
    assert all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert read_metrics(tmp_path / "train") == metrics


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid):
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def ranks(process):
    """Process numbers by rank."""
    found = {}
    for pid in children(process.pid):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        found |= {int(v.removeprefix(b"RANK=")): pid for v in variables if v.startswith(b"RANK=")}
    return found


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_rank_ends_the_job_with_a_message_and_the_job_goes_on(tmp_path, dead):
    process = started(TOGETHER, tmp_path)
    wait_for(tmp_path, 3, process)
    pids = ranks(process)
    os.kill(pids[dead], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert not any(is_alive(pid) for pid in pids.values())
    assert "another process of this job has ended" in output
    assert "Signal 9 (SIGKILL)" in output, "torchrun names the rank that died"
    before = done_in(tmp_path)
    assert 0 < before < 2 * STEPS
    finished(TOGETHER, tmp_path, "--save-minutes 10")
    assert done_in(tmp_path) == 2 * STEPS
    rows = read_metrics(tmp_path / "train")
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert read_run(tmp_path / "train")["environment"]["processes"] == 2


def test_a_signal_to_torchrun_saves_the_step_of_all_ranks(tmp_path):
    process = started(TOGETHER, tmp_path, "--save-minutes 10")
    while len(pids := ranks(process)) < 2 or not (tmp_path / "train" / "run.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert not any(is_alive(pid) for pid in pids.values())
    assert "saved; continue with: torchrun --nproc-per-node 2 -m experiments train" in output
    assert 0 < done_in(tmp_path) < 2 * STEPS
    assert read_run(tmp_path / "train")["status"] == "interrupted"


def test_a_stopped_rank_ends_the_job_within_a_minute_and_the_job_goes_on(tmp_path):
    process = started(TOGETHER, tmp_path)
    wait_for(tmp_path, 3, process)
    pids = ranks(process)
    begun = time.monotonic()
    os.kill(pids[0], signal.SIGSTOP)
    output, _ = process.communicate(timeout=200)
    assert time.monotonic() - begun < 60
    assert process.returncode != 0
    assert not any(is_alive(pid) for pid in pids.values())
    assert "rank 0 has given no sign of life for 25 s" in output
    finished(TOGETHER, tmp_path, "--save-minutes 10")
    assert done_in(tmp_path) == 2 * STEPS
