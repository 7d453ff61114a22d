import dataclasses
import json

import numpy as np
import pytest
import torch

from mamltheory.errors import (
    CheckpointError,
    ConfigurationError,
    ShapeError,
    UnsupportedModelError,
    ValueRangeError,
)
from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.episodes import episode_tasks
from mamltheory.fewshot.meta_train import (
    MetaTrainConfig,
    adapted_accuracies,
    meta_state_tensors,
    meta_train_step,
    restore_meta_training,
    start_meta_training,
)
from mamltheory.rng import generator
from tests.fewshot.small import noise_data

DATA = noise_data(16)
CONFIG = MetaTrainConfig(
    ways=3, shots=1, queries=2, tasks=2, inner_steps=2, inner_rate=0.2, learning_rate=0.01
)


def begun(config=CONFIG, seed=0):
    return start_meta_training(conv4(3, 16, seed, channels=4), DATA, config)


def run(state, steps):
    seen = []
    for _ in range(steps):
        state, metrics = meta_train_step(state)
        seen.append(metrics)
    return state, seen


@pytest.mark.parametrize(("ways", "size"), [(5, 84), (5, 28), (3, 16)])
def test_conv4_has_the_thirty_thousand_parameters_of_table_1(ways, size):
    by_hand = (3 * 9 + 1) * 32 + 3 * (32 * 9 + 1) * 32 + 4 * 64 + (32 * (size // 16) ** 2 + 1) * ways
    assert sum(p.numel() for p in conv4(ways, size, 0).parameters()) == by_hand
    assert size != 84 or by_hand == 32_901


def test_conv4_has_kaimings_fan_in_variance_and_no_biases():
    convolutions = [m for m in conv4(5, 16, 0, channels=64).modules() if isinstance(m, torch.nn.Conv2d)]
    for layer in convolutions[1:]:
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().var()) * fan_in == pytest.approx(2, rel=0.04)
        assert not layer.bias.any()
    assert len(convolutions) == 4


def test_conv4_is_zero_at_first_and_its_output_for_an_image_depends_on_no_other():
    network = conv4(5, 20, 0, channels=6)
    x = torch.randn(4, 3, 20, 20, generator=generator(0, "x"))
    assert torch.equal(network(x), torch.zeros(4, 5))
    torch.testing.assert_close(network.features(x[:1]), network.features(x)[:1])
    with pytest.raises(ShapeError, match="16 × 16 pixels for a network of 20"):
        network(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigurationError, match="at least 16 pixels"):
        conv4(5, 15, 0)


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_a_step_is_adams_on_the_meta_gradient_of_a_plain_second_order_loop(algorithm):
    """The loop: weights by name, inner steps by autograd with create_graph, the outer gradient by backward."""
    config = dataclasses.replace(CONFIG, algorithm=algorithm)
    network = conv4(3, 16, 0, channels=4)
    head = {"classifier.weight", "classifier.bias"}
    params = dict(network.named_parameters())
    optimizer = torch.optim.Adam(params.values(), config.learning_rate)
    state = begun(config)
    for step in range(3):
        tasks = episode_tasks(
            DATA.train, 2, 3, 1, 2, config.seed, step, mean=DATA.mean, std=DATA.std, centred=True
        )
        loss = 0
        for task in tasks:
            fast = dict(params)
            for _ in range(config.inner_steps):
                f = torch.func.functional_call(network, fast, (task.support_x,))
                moving = [n for n in fast if algorithm == "maml" or n in head]
                inner = ((f - task.support_y) ** 2).sum() / 2
                slopes = torch.autograd.grad(inner, [fast[n] for n in moving], create_graph=True)
                fast |= {n: fast[n] - config.inner_rate * g for n, g in zip(moving, slopes, strict=True)}
            f = torch.func.functional_call(network, fast, (task.query_x,))
            loss = loss + ((f - task.query_y) ** 2).sum() / 2
        loss = loss / (2 * 3 * 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state, metrics = meta_train_step(state)
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-4)
    for name, value in params.items():
        torch.testing.assert_close(state.values[name], value.detach(), atol=2e-4, rtol=1e-3)


@pytest.mark.slow
def test_meta_training_learns_to_adapt_to_classes_it_has_not_seen():
    config = dataclasses.replace(CONFIG, algorithm="anil", inner_steps=1, queries=3)
    state = begun(config)
    before = adapted_accuracies(state, DATA.test, 40, 5, 0).mean()
    state, seen = run(state, 60)
    after = adapted_accuracies(state, DATA.test, 40, 5, 0).mean()
    assert np.mean([m.loss for m in seen[-10:]]) < 0.7 * np.mean([m.loss for m in seen[:10]])
    assert after > max(before, 1 / 3) + 0.1


def test_stopping_after_any_step_and_going_on_changes_no_bit():
    config = dataclasses.replace(CONFIG, inner_steps=1)
    whole, history = run(begun(config), 4)
    for stop in (0, 3):
        half, first = run(begun(config), stop)
        tensors, numbers = meta_state_tensors(half)
        state = restore_meta_training(begun(config, seed=9), tensors, json.loads(json.dumps(numbers)))
        state, rest = run(state, 4 - stop)
        assert first + rest == history
        ours, theirs = meta_state_tensors(state)[0], meta_state_tensors(whole)[0]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_another_meta_training_is_refused():
    tensors, numbers = meta_state_tensors(run(begun(), 1)[0])
    with pytest.raises(CheckpointError, match="another config"):
        restore_meta_training(begun(dataclasses.replace(CONFIG, inner_rate=0.3)), tensors, numbers)
    with pytest.raises(CheckpointError, match="another data"):
        restore_meta_training(begun(), tensors, numbers | {"data": "other"})
    with pytest.raises(CheckpointError, match="step"):
        restore_meta_training(begun(), tensors, numbers | {"step": "1"})
    without = {name: value for name, value in tensors.items() if not name.startswith("exp_avg_sq")}
    with pytest.raises(CheckpointError, match="does not fit"):
        restore_meta_training(begun(), without, numbers)


def test_the_defaults_are_five_ways_one_shot_and_one_step_of_second_order():
    stated = {"algorithm": "maml", "ways": 5, "shots": 1, "queries": 5, "tasks": 4, "seed": 0}
    stated |= {"inner_steps": 1, "inner_rate": 0.1, "learning_rate": 1e-3}
    assert dataclasses.asdict(MetaTrainConfig()) == stated
    assert not MetaTrainConfig().inner().first_order


def test_impossible_settings_and_networks_with_batch_statistics_are_refused():
    for wrong in ({"ways": 1}, {"tasks": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ConfigurationError):
            MetaTrainConfig(**wrong)
    with pytest.raises(ValueRangeError, match="lam0"):
        MetaTrainConfig(inner_rate=-1.0)
    batch = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    with pytest.raises(UnsupportedModelError, match="batch statistics"):
        start_meta_training(batch, DATA, CONFIG)


def test_a_diverging_inner_loop_is_told_which_rate_to_lower():
    config = dataclasses.replace(CONFIG, inner_rate=1e6, inner_steps=8)
    with pytest.raises(ValueRangeError, match="lower inner_rate"):
        run(begun(config), 3)
