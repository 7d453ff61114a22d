"""Two processes train as one does. SyncBatchNorm exists on CUDA alone: on the CPU the network has none."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mamltheory.fewshot import training
from mamltheory.fewshot.execution import Execution
from mamltheory.fewshot.training import start_training, train_epoch
from mamltheory.fewshot.training_state import state_tensors
from tests.fewshot import two_processes
from tests.fewshot.small import SmallNet, noise_data

ROOT = Path(__file__).resolve().parents[2]
DATA = noise_data()


def inputs_of(execution):
    """The images and labels of the first three steps as the network and the loss get them in one process."""
    seen = []
    state = start_training(SmallNet(), DATA, two_processes.CONFIG)
    state.network.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    train_epoch(dataclasses.replace(state, execution=execution), lambda step, _: step == 3)
    return torch.stack(seen), list(state.network.drop_path_seeds)


def test_the_parts_of_two_processes_are_the_batches_of_one(monkeypatch):
    monkeypatch.setattr(training.torch.distributed, "all_reduce", lambda *_: None)
    whole, _ = inputs_of(Execution())
    (first, seeds), (second, others) = (inputs_of(Execution(rank=rank, size=2)) for rank in (0, 1))
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert not set(seeds) & set(others), "processes draw drop-path masks of their own"


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.fewshot.two_processes", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = safetensors.torch.load_file(tmp_path / "end.safetensors")
    state, history = two_processes.train(0, 1)
    ours, _ = state_tensors(state)
    for name in set(ours) - {"network/unused.weight", "network/unused.bias"}:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-6, rtol=1e-6)
    assert ours.keys() == theirs.keys(), "what has no gradient has no momentum, in one process or two"
    np.testing.assert_allclose(
        json.loads((tmp_path / "losses.json").read_text()), [[m.loss, m.accuracy] for m in history], rtol=1e-6
    )
