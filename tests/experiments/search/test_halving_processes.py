"""Halving in real processes: killed at several moments, in two workers or two ranks of torchrun, the same bits."""

import os
import subprocess
import sys
import time

import pytest

from tests.experiments.search.halving_cases import halving_settings, results
from tests.runtime.ranks import ROOT, run_ranks

pytestmark = pytest.mark.slow
FLAGS = (
    "--method halving --parameters 6000:9000 --channels 4 --cells 3 --stem-stride 4 --image-size 16 --device cpu "
    "--rungs 4 2 --rung-epochs 1 3 --rank-by accuracy loss --search-milestones 2 --validation-tasks 50 --confirm 1 "
    "--anyway"
)
LINE = ["-m", "experiments", "search", *FLAGS.split()]


def start(out, *more):
    return subprocess.Popen(
        [sys.executable, *LINE, "--out", str(out), *more],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def finish(out, *more):
    process = start(out, *more)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return results(halving_settings(out))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("whole") / "search")


def kill_when(out, pattern, count, *more):
    """Start the search, and kill it as soon as its folder holds so many files of this pattern."""
    process, deadline = start(out, *more), time.monotonic() + 400
    while len([*out.glob(pattern)]) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (out / "search.json").exists()
    time.sleep(1)  # its workers end with it


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_search_killed_at_several_moments_ends_in_the_same_bits(whole, tmp_path, jobs):
    out, more = tmp_path / "search", ("--jobs", jobs)
    kill_when(out, "candidates/000/run.json", 1, *more)
    kill_when(out, "candidates/001/state/state-00000001/SHA256SUMS", 1, *more)  # trained, and not measured
    kill_when(out, "measurements/*-epoch-1.json", 3, *more)
    kill_when(out, "candidates/*/state/state-00000002/SHA256SUMS", 1, *more)  # within the last rung
    assert finish(out, *more) == whole


def test_two_ranks_of_torchrun_search_as_one_process(whole, tmp_path):
    out = tmp_path / "search"
    ends = run_ranks(2, [*LINE, "--out", str(out)], timeout=500)
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert not ends[1][1], "rank 1 prints nothing"
    assert results(halving_settings(out)) == whole
