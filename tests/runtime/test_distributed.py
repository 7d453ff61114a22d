"""Two processes under torchrun's environment work as one, and neither waits for a dead one."""

import os

import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.runtime import distributed
from mamltheory.runtime.distributed import joined, spread_over
from tests.runtime.ranks import run_ranks


def square(value):
    return value * value


@pytest.mark.slow
def test_two_ranks_share_the_items_in_order_pass_errors_and_stops_on_and_end_when_one_dies():
    leading, other = run_ranks(2, ["-m", "tests.runtime.ranks_program"])
    results, nothing, error, stop, jobs = leading[1].splitlines()
    assert results == str([(i, (i * i, i % 2)) for i in range(5)])
    assert nothing == "[]"
    assert error == "three is not wanted on rank 1 of 2"
    assert stop == "[8, 0, 1, 2, 3] stopped by SIGTERM"  # what was running was finished and handed out
    assert "leave out --jobs" in jobs
    assert leading[0] == 1
    assert "error: rank 1 has ended, or does not answer" in leading[2]
    assert "the same command continues" in leading[2]
    assert other[0] == 9


def test_without_torchrun_a_process_leads_alone():
    with joined() as leads, spread_over(1) as mapper:
        assert leads
        assert list(mapper(square, [2, 3])) == [(2, 4), (3, 9)]


def test_every_rank_of_a_machine_sees_one_gpu_of_those_it_was_given(monkeypatch):
    monkeypatch.setattr(distributed.torch.version, "cuda", "13.0")
    for rank, expected in ((0, "4"), (1, "6"), (2, "4")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
        distributed._see_one_gpu(rank)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


def test_a_process_that_cannot_be_reached_is_named_with_how_to_go_on():
    refused = pytest.raises(ConfigurationError, match=r"^rank 2 is gone \(Read error\): .* continues")
    with refused, distributed._explained("rank 2 is gone"):
        raise RuntimeError("[a/b.cc:5] Read error. This is typically caused by something.\nat c")
