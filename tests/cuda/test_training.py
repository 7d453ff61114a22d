"""Training, evaluation, prediction and meta-training on a CUDA device: those of the CPU, stopped or not."""

import dataclasses

import numpy as np
import pytest
import torch

from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.evaluation import EvaluationConfig, evaluate_network
from mamltheory.fewshot.meta_train import (
    MetaTrainConfig,
    adapted_accuracies,
    meta_state_tensors,
    meta_train_step,
    restore_meta_training,
    start_meta_training,
)
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.fewshot.training_state import restore, state_tensors
from mamltheory.nas.genotype import published_genotypes
from mamltheory.nas.network import NetworkSettings, derived_network
from tests.fewshot.small import SmallNet, noise_data, noise_split

DATA = noise_data(12, classes=3, per_class=8)
CONFIG = TrainConfig(batch_size=8, learning_rate=0.05, epochs=2, milestones=(1,), drop_path=0.2, seed=5)
STATISTICS = ((0.5, 0.4, 0.5), (0.25, 0.3, 0.2))
META = MetaTrainConfig(ways=2, shots=1, queries=1, tasks=2, inner_steps=2, inner_rate=0.2, learning_rate=0.01)


def small(seed=0):
    return SmallNet(3, 4, seed)


def searched(seed=0):
    settings = NetworkSettings(channels=2, cells=3, classes=3, stem_stride=2)
    return derived_network(published_genotypes()[0].genotype, settings, seed)


def finished(state):
    """The losses of the remaining epochs, and the last state."""
    losses = []
    while state.epoch < state.config.epochs:
        state, metrics = train_epoch(state)
        losses.append(metrics.loss)
    return losses, state


def stopped(make, config, device):
    """A training that is stopped in the second epoch, saved, and taken up by another network."""
    state, metrics = train_epoch(start_training(make(), DATA, config, device))
    state, nothing = train_epoch(state, lambda step, _: step == 1)
    assert nothing is None
    state = restore(start_training(make(1), DATA, config, device), *state_tensors(state))
    losses, state = finished(state)
    return [metrics.loss, *losses], state


@pytest.mark.parametrize(
    ("make", "precision", "tolerance"),
    [(searched, "fp32", 1e-2), (small, "fp32", 1e-2), (small, "bf16", 5e-2), (small, "fp16", 5e-2)],
)
@pytest.mark.usefixtures("card")
def test_a_stopped_training_is_the_whole_one_and_that_of_the_cpu(make, precision, tolerance):
    config = dataclasses.replace(CONFIG, precision=precision)
    losses, whole = finished(start_training(make(), DATA, config, "cuda"))
    again, resumed = stopped(make, config, "cuda")
    assert losses == again
    ours, theirs = (state_tensors(state) for state in (whole, resumed))
    assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())
    assert next(whole.network.parameters()).is_cuda
    here, _ = finished(start_training(make(), DATA, CONFIG, "cpu"))
    np.testing.assert_allclose(losses, here, rtol=tolerance)


@pytest.mark.usefixtures("card")
def test_tf32_is_a_precision_of_the_device():
    losses, _ = finished(start_training(small(), DATA, dataclasses.replace(CONFIG, precision="tf32"), "cuda"))
    here, _ = finished(start_training(small(), DATA, CONFIG, "cpu"))
    np.testing.assert_allclose(losses, here, rtol=1e-2)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("head", ["logistic", "nearest-centroid"])
def test_an_evaluation_is_that_of_the_cpu(head):
    config = EvaluationConfig(ways=2, shots=1, queries=3, tasks=4, head=head, copies=2, jitter=0.4)
    split = noise_split(4, 8, name="evaluation")
    cpu, cuda = (
        evaluate_network(small(), split, *STATISTICS, config, 0, device=device).accuracies
        for device in ("cpu", "cuda")
    )
    assert np.abs(cpu - cuda).max() < 0.1


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_meta_training_is_that_of_the_cpu_also_when_it_is_taken_up_again(algorithm):
    data, config = noise_data(16, classes=3, per_class=4), dataclasses.replace(META, algorithm=algorithm)

    def begun(device, seed=0):
        return start_meta_training(conv4(2, 16, seed, channels=2), data, config, device)

    def trained(state, steps):
        losses = []
        for _ in range(steps):
            state, metrics = meta_train_step(state)
            losses.append(metrics.loss)
        return state, losses

    (_, here), (there, losses) = (trained(begun(device), 2) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(losses, here, rtol=1e-3)
    first, _ = trained(begun("cuda"), 1)
    again, last = trained(restore_meta_training(begun("cuda", 1), *meta_state_tensors(first)), 1)
    assert last == losses[1:]
    assert all(torch.equal(again.values[name], value) for name, value in there.values.items())
    assert 0 <= adapted_accuracies(there, data.test, 1, 1, 0)[0] <= 1
