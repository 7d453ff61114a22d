import dataclasses
import json

import numpy as np
import pytest
import torch

from mamltheory.errors import CheckpointError, ConfigurationError, ValueRangeError
from mamltheory.fewshot.execution import Execution, check_precision
from mamltheory.fewshot.images import ImageData
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.fewshot.training_state import restore, state_tensors
from mamltheory.nas.genotype import published_genotypes, random_genotype
from mamltheory.nas.network import NetworkSettings, derived_network
from mamltheory.nas.operations import Convolution
from mamltheory.rng import generator
from tests.fewshot.small import SmallNet, noise_data, noise_split
from tests.reference.fewshot_training import train as plain_train

DATA = noise_data()
CONFIG = TrainConfig(batch_size=16, learning_rate=0.05, epochs=4, milestones=(2, 3), drop_path=0.2, seed=5)


def run(state, epochs):
    history = []
    for _ in range(epochs):
        state, metrics = train_epoch(state)
        history.append(metrics)
    return state, history


def searched_network(seed):
    settings = NetworkSettings(channels=4, cells=3, classes=6)
    return derived_network(published_genotypes()[0].genotype, settings, seed)


def small_network(seed):
    return SmallNet(seed=seed)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.paper("Sec. 6.1: training by RFS", "Sec. 6.1: optimisation", "App. E: augmentation")
def test_training_agrees_with_a_plain_loop():
    state, history = run(start_training(SmallNet(), DATA, CONFIG), 4)
    network = SmallNet()
    losses = plain_train(network, DATA, CONFIG, 4)
    np.testing.assert_allclose([m.loss for m in history], losses, rtol=1e-5)
    for ours, theirs in zip(state.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_training_learns_the_training_classes():
    _, history = run(
        start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, epochs=8, milestones=(6,))), 8
    )
    assert history[0].accuracy < 0.6
    assert history[-1].accuracy > 0.9
    assert history[-1].loss < history[0].loss


def in_pieces(make, config, stops):
    """The end of a training that is stopped after these steps, saved as JSON, and taken up by a fresh network."""
    state, history = start_training(make(0), DATA, config), []
    for last in [*stops, config.epochs * state.steps]:
        while (before := state.epoch * state.steps) + state.step < last:
            state, metrics = train_epoch(state, lambda step, _, stop=last - before: step == stop)
            history += [metrics] if metrics else []
        tensors, numbers = state_tensors(state)
        state = restore(start_training(make(99), DATA, config), tensors, json.loads(json.dumps(numbers)))
    return state, history


@pytest.mark.parametrize(
    ("make", "precision", "stops"),
    [
        (small_network, "fp32", [1, 3, 7, 9, 10]),
        (small_network, "fp16", [2, 6, 13]),
        (small_network, "bf16", [8]),
        (searched_network, "fp32", [3]),
    ],
)
def test_stopping_after_any_step_and_going_on_changes_no_bit(make, precision, stops):
    epochs = 1 if make is searched_network else 2
    config = dataclasses.replace(CONFIG, epochs=epochs, milestones=(1,)[: epochs - 1], precision=precision)
    whole, history = run(start_training(make(0), DATA, config), epochs)
    state, seen = in_pieces(make, config, stops)
    assert seen == history
    ours, theirs = state_tensors(state), state_tensors(whole)
    assert same(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def test_a_saved_state_does_not_move_when_training_goes_on():
    state, _ = run(start_training(SmallNet(), DATA, CONFIG), 1)
    tensors, _ = state_tensors(state)
    before = {name: value.clone() for name, value in tensors.items()}
    run(state, 1)
    assert same(tensors, before)


def test_training_depends_on_its_seed_and_not_on_the_global_generator():
    one, _ = run(start_training(SmallNet(), DATA, CONFIG), 1)
    torch.rand(7)
    two, _ = run(start_training(SmallNet(), DATA, CONFIG), 1)
    other, _ = run(start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, seed=6)), 1)
    assert same(state_tensors(one)[0], state_tensors(two)[0])
    assert not same(state_tensors(one)[0], state_tensors(other)[0])


@pytest.mark.paper("Sec. 6.1: optimisation")
@pytest.mark.parametrize(
    ("epochs", "milestones", "decayed"), [(100, (60, 80), (61, 81)), (60, (30, 40, 50), (31, 41, 51))]
)
def test_the_first_decayed_epochs_are_those_after_the_milestones(epochs, milestones, decayed):
    config = TrainConfig(epochs=epochs, milestones=milestones, learning_rate=0.02)
    rates = [config.learning_rate_in(epoch) for epoch in range(1, epochs + 1)]
    falls = [e for e in range(2, epochs + 1) if rates[e - 1] < rates[e - 2]]
    assert falls == list(decayed)
    assert rates[0] == 0.02
    np.testing.assert_allclose(rates[-1], 0.02 * 0.1 ** len(decayed))


@pytest.mark.paper("Sec. 6.1: optimisation", "App. E: dropout")
def test_the_rate_and_the_drop_path_of_the_schedule_are_used():
    state = start_training(SmallNet(), DATA, CONFIG)
    for epoch in range(1, 5):
        state, metrics = train_epoch(state)
        assert state.network.drop_path == metrics.drop_path == pytest.approx(0.2 * epoch / 4)
        assert state.optimizer.param_groups[0]["lr"] == metrics.learning_rate
    assert metrics.learning_rate == pytest.approx(0.05 * 0.01)


def test_every_step_has_drop_path_masks_of_its_own_and_the_same_in_every_run():
    seeds = []
    for _ in range(2):
        state, _ = run(start_training(SmallNet(), DATA, CONFIG), 2)
        seeds.append(state.network.drop_path_seeds)
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == len(seeds[0]) == 2 * (120 // 16)


def test_steps_are_reported_and_the_incomplete_batch_is_left_out():
    seen = []
    train_epoch(
        start_training(SmallNet(), DATA, CONFIG), lambda done, total: bool(seen.append((done, total)))
    )
    assert seen == [(i + 1, 7) for i in range(7)]


def test_a_loss_that_is_not_finite_stops_the_training_with_advice():
    state = start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, learning_rate=1e30))
    with pytest.raises(ValueRangeError, match=r"epoch 1.*lower learning_rate"):
        train_epoch(state)


def test_training_beyond_the_last_epoch_is_refused():
    state, _ = run(start_training(SmallNet(), DATA, CONFIG), 4)
    with pytest.raises(ConfigurationError, match="all 4 epochs"):
        train_epoch(state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"decay": 0.0},
        {"momentum": 1.0},
        {"drop_path": 1.0},
        {"weight_decay": -1.0},
        {"milestones": (80, 60)},
        {"padding": -1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        TrainConfig(**wrong)


def test_settings_that_do_not_fit_the_data_are_refused():
    with pytest.raises(ConfigurationError, match="120 training images"):
        start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, batch_size=121))
    with pytest.raises(ConfigurationError, match="6 training classes"):
        start_training(SmallNet(classes=5), DATA, CONFIG)
    characters = ImageData("letters", DATA.train, DATA.val, DATA.test, DATA.mean, DATA.std, mirrors=False)
    with pytest.raises(ConfigurationError, match="flip to False"):
        start_training(SmallNet(), characters, CONFIG)


def test_a_state_of_another_training_is_refused():
    tensors, numbers = state_tensors(run(start_training(SmallNet(), DATA, CONFIG), 1)[0])
    with pytest.raises(CheckpointError, match=r"learning_rate 0.05 \(now 0.1\)"):
        restore(
            start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, learning_rate=0.1)), tensors, numbers
        )
    with pytest.raises(CheckpointError, match="do not fit"):
        restore(start_training(SmallNet(channels=4), DATA, CONFIG), tensors, numbers)
    renamed = dataclasses.replace(DATA, name="other")
    with pytest.raises(CheckpointError, match="data set"):
        restore(start_training(SmallNet(), renamed, CONFIG), tensors, numbers)
    other_images = dataclasses.replace(DATA, train=noise_split(seed=9, name="train"))
    with pytest.raises(CheckpointError, match="data set"):
        restore(start_training(SmallNet(), other_images, CONFIG), tensors, numbers)
    without = {name: value for name, value in tensors.items() if name.startswith("network/")}
    with pytest.raises(CheckpointError, match="no momentum"):
        restore(start_training(SmallNet(), DATA, CONFIG), without, numbers)
    for name, wrong in (("epoch", "1"), ("step", -1), ("totals", [0.0]), ("totals", ["a", "b"])):
        with pytest.raises(CheckpointError, match=name):
            restore(start_training(SmallNet(), DATA, CONFIG), tensors, numbers | {name: wrong})


def test_the_scale_of_a_float16_loss_is_part_of_the_state():
    config = dataclasses.replace(CONFIG, precision="fp16")
    tensors, numbers = state_tensors(run(start_training(SmallNet(), DATA, config), 1)[0])
    assert numbers["scaler"]["_growth_tracker"] == 7
    changed = numbers | {"scaler": numbers["scaler"] | {"scale": 4.0}}
    assert restore(start_training(SmallNet(), DATA, config), tensors, changed).scaler.get_scale() == 4.0
    with pytest.raises(CheckpointError, match="scale of the loss"):
        restore(start_training(SmallNet(), DATA, config), tensors, numbers | {"scaler": None})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_short_formats_keep_weights_in_float32_and_learn_as_well(precision):
    config = dataclasses.replace(CONFIG, precision=precision, drop_path=0.0)
    (whole, full), (state, short) = (
        run(start_training(SmallNet(), DATA, c), 4)
        for c in (dataclasses.replace(CONFIG, drop_path=0.0), config)
    )
    assert {p.dtype for p in state.network.parameters()} == {torch.float32}
    np.testing.assert_allclose([m.loss for m in short], [m.loss for m in full], rtol=0.05)
    assert not same(state_tensors(state)[0], state_tensors(whole)[0])


def test_a_precision_that_the_device_lacks_is_refused():
    with pytest.raises(ConfigurationError, match="cpu does not have"):
        start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, precision="tf32"))
    with pytest.raises(ConfigurationError, match="expected fp32"):
        check_precision("fp8", torch.device("cpu"))


def test_the_memory_layout_changes_roundings_alone():
    losses = [
        [m.loss for m in run(start_training(SmallNet(), DATA, CONFIG, execution=Execution(layout)), 2)[1]]
        for layout in (True, False)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_forms_of_the_convolutions_on_a_cpu_change_roundings_alone(monkeypatch):
    genotype = random_genotype(generator(0, "x", 0), inputs="two")
    assert "dil_conv_3x3" in str(genotype.to_json()["reduce"])
    config = TrainConfig(batch_size=20, epochs=2, learning_rate=0.001, drop_path=0.0)

    def losses():
        network = derived_network(genotype, NetworkSettings(8, 3, 6), 0)
        state, found = start_training(network, noise_data(), config), []
        while state.epoch < config.epochs:
            state, metrics = train_epoch(state)
            found.append(metrics.loss)
        return found

    fast = losses()
    monkeypatch.delattr(Convolution, "_conv_forward")
    plain = losses()
    assert fast == pytest.approx(plain, rel=1e-5)
    assert plain[1] != pytest.approx(plain[0], rel=1e-3)


def test_a_batch_is_cut_into_equal_parts_or_refused():
    assert [Execution(rank=r, size=4).part(16) for r in (0, 3)] == [slice(0, 4), slice(12, 16)]
    with pytest.raises(ConfigurationError, match="16 cannot be cut into 3 equal parts"):
        start_training(SmallNet(), DATA, CONFIG, execution=Execution(size=3))
    with pytest.raises(ConfigurationError, match="rank 2 of 2"):
        Execution(rank=2, size=2)


def test_training_may_be_prolonged_only_where_no_ramp_depends_on_its_length():
    plain = dataclasses.replace(CONFIG, drop_path=0.0)
    saved = state_tensors(start_training(SmallNet(), DATA, plain))
    assert restore(start_training(SmallNet(), DATA, dataclasses.replace(plain, epochs=9)), *saved).epoch == 0
    saved = state_tensors(start_training(SmallNet(), DATA, CONFIG))
    with pytest.raises(CheckpointError, match="epochs 4"):
        restore(start_training(SmallNet(), DATA, dataclasses.replace(CONFIG, epochs=9)), *saved)
