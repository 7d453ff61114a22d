"""Devices are chosen with a reason and never silently replaced, and torchrun says who leads."""

import os
import subprocess

import pytest
import torch

import mamltheory
from mamltheory.errors import ConfigurationError
from mamltheory.runtime import device as module
from mamltheory.runtime.device import choose_device, commit, deterministic, environment, set_threads, take_gpu
from mamltheory.runtime.distributed import World, world
from mamltheory.runtime.records import to_json


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_cuda_auto_takes_the_cpu_and_says_why():
    chosen = choose_device()
    assert chosen.device == torch.device("cpu")
    assert "no CUDA device" in chosen.reason


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_that_is_not_there_is_an_error_not_the_cpu(name):
    with pytest.raises(ConfigurationError, match="no CUDA device"):
        choose_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_with_cuda_auto_takes_the_first_and_a_number_takes_that_one():
    assert choose_device("auto").device == torch.device("cuda:0")
    assert "GPU 0" in choose_device("auto").reason
    assert choose_device("cuda").device == torch.device("cuda:0")
    assert choose_device("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(ConfigurationError, match="2 CUDA device"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cuda1", "CPU", "mps"])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigurationError, match="expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.cuda
def test_cuda_repeats_its_bits_in_deterministic_mode():
    chosen = choose_device("cuda").device
    with deterministic(chosen):
        x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(chosen)
        index = torch.zeros(64, dtype=torch.long, device=chosen)
        sums = [torch.zeros(1, 64, device=chosen).index_add_(0, index, x @ x) for _ in range(5)]
    assert all(torch.equal(sums[0], each) for each in sums)


def switches():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("before", [(True, False), (True, True), (False, False)])
def test_a_block_on_a_gpu_is_deterministic_and_recorded_and_ends_as_it_found_the_process(before, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    strict = switches()
    try:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = True
        found = switches()
        with deterministic("cpu"):
            assert switches() == found
            assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        with deterministic("cuda:1"):
            assert switches() == (True, before != (True, False), False, False)
            assert environment()["deterministic"] is True
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert switches() == found
        with pytest.raises(ZeroDivisionError), deterministic("cuda"):
            raise ZeroDivisionError
        assert switches() == found
    finally:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    assert switches() == strict


@pytest.mark.usefixtures("two_gpus")
def test_a_rank_takes_one_gpu_which_names_without_a_number_stand_for(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(module, "_own_gpu", 0)
    for rank, own in ((1, 1), (2, 0), (3, 1)):
        take_gpu(rank)
        assert taken.pop() == own
        for name in ("auto", "cuda"):
            assert choose_device(name).device == torch.device("cuda", own)
        assert f"GPU {own}" in choose_device("auto").reason
        assert choose_device("cuda:0").device == torch.device("cuda:0")


@pytest.mark.usefixtures("no_gpu")
def test_a_rank_without_gpus_takes_none():
    take_gpu(1)
    assert choose_device("auto").device == torch.device("cpu")


def test_threads_can_be_set_and_read():
    assert set_threads(1) == 1
    assert set_threads() == 1
    with pytest.raises(ConfigurationError, match="at least 1"):
        set_threads(0)


def test_the_environment_is_a_record_of_versions_device_and_threads():
    record = environment("cpu")
    assert record["torch"] == torch.__version__
    assert record["mamltheory"] == mamltheory.__version__
    assert (record["device"], record["threads"]) == ("cpu", torch.get_num_threads())
    assert to_json(record)


def test_the_commit_is_known_in_a_checkout_and_marked_when_changed(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    assert commit(tmp_path) is None
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "--no-verify", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    clean = commit(tmp_path)
    assert len(clean) == 12
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{clean}+"


def test_without_git_there_is_no_commit_and_no_failure(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()

    def absent(*_args, **_kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(module.subprocess, "run", absent)
    assert commit(tmp_path) is None


def test_the_world_is_what_torchrun_says_and_one_process_without_it():
    assert world({}) == World(0, 1, 0)
    second = world({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert second == World(3, 4, 1)
    assert (World().leads, second.leads) == (True, False)


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "0"},
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "0", "WORLD_SIZE": "0", "LOCAL_RANK": "0"},
    ],
)
def test_half_a_world_or_an_impossible_one_is_refused(environ):
    with pytest.raises(ConfigurationError):
        world(environ)


def test_the_environment_names_the_route_of_products_where_it_is_told():
    assert environment("cpu", "native")["products"] == "native"
    assert "products" not in environment()
