"""A training in as many processes as torchrun starts: `python -m tests.fewshot.two_processes FOLDER [epochs]`."""

import json
import sys
from pathlib import Path

import safetensors.torch
import torch

from mamltheory.fewshot.execution import Execution
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.fewshot.training_state import state_tensors
from mamltheory.runtime.distributed import data_parallel
from tests.fewshot.small import SmallNet, noise_data

CONFIG = TrainConfig(batch_size=16, learning_rate=0.05, epochs=2, milestones=(1,), drop_path=0.0, seed=5)


class Normless(SmallNet):
    """A network without batch statistics and with a layer that nothing uses."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed=seed)
        for i in (1, 4):
            self.body[i] = torch.nn.GroupNorm(2, self.body[i].num_features)
        self.unused = torch.nn.Linear(3, 3)


def train(rank: int, size: int) -> tuple[object, list[object]]:
    """The end of the training, and the means of its epochs."""
    torch.manual_seed(rank)
    state, history = (
        start_training(Normless(), noise_data(), CONFIG, execution=Execution(True, rank, size)),
        [],
    )
    while state.epoch < CONFIG.epochs:
        # Left once within the first epoch: what was summed until then is carried on by the first process alone.
        leave = state.epoch == 0 and state.step == 0
        state, metrics = train_epoch(state, lambda step, _, leave=leave: leave and step == 3)
        history += [metrics] if metrics else []
    return state, history


if __name__ == "__main__":
    torch.set_num_threads(1)
    with data_parallel() as world:
        state, history = train(world.rank, world.size)
        world.check_same(state.epoch, "the epoch")
        if world.leads:
            folder = Path(sys.argv[1])
            tensors, _ = state_tensors(state)
            safetensors.torch.save_file(tensors, folder / "end.safetensors")
            (folder / "losses.json").write_text(json.dumps([[m.loss, m.accuracy] for m in history]))
