"""Two processes under torchrun's environment work as one, and neither waits for a dead one."""

import os

import pytest
import torch
import torch.distributed as dist

from mamltheory.errors import ConfigurationError
from mamltheory.runtime import device, distributed
from mamltheory.runtime.distributed import data_parallel, joined, shared_name, spread_over
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


class Begun(Exception):
    """The process group would begin here."""


@pytest.fixture
def second_of_four(monkeypatch):
    """A rank on a machine of two GPUs; what it does until its process group begins."""
    done = []

    def begin(backend, **options):
        done.append((backend, options.get("device_id")))
        raise Begun

    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(device, "_own_gpu", 0)
    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return done


def test_a_rank_takes_its_gpu_before_its_process_group_begins(second_of_four, monkeypatch):
    with pytest.raises(Begun), joined():
        pass
    assert second_of_four == [1, ("gloo", None)]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ, "the driver may have read it already"
    assert shared_name(torch.device("cuda:1")) == "cuda:1"
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert shared_name(torch.device("cuda:1")) == "cuda", "the own GPU of whoever computes"
    assert shared_name(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", [1, ("cpu:gloo,cuda:nccl", torch.device("cuda:1"))]),
        ("cuda", [1, ("cpu:gloo,cuda:nccl", torch.device("cuda:1"))]),
        ("cpu", [("gloo", None)]),
    ],
)
def test_ranks_of_a_training_bind_their_process_group_to_their_gpu(second_of_four, name, expected):
    with pytest.raises(Begun), data_parallel(name):
        pass
    assert second_of_four == expected


def test_a_rank_of_a_training_without_a_gpu_of_its_own_is_refused(second_of_four, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigurationError, match=r"'cuda:2', but there is 2 CUDA device"), data_parallel():
        pass
    assert second_of_four == []


def test_a_process_that_cannot_be_reached_is_named_with_how_to_go_on():
    refused = pytest.raises(ConfigurationError, match=r"^rank 2 is gone \(Read error\): .* continues")
    with refused, distributed._explained("rank 2 is gone"):
        raise RuntimeError("[a/b.cc:5] Read error. This is typically caused by something.\nat c")
