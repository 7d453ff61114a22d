"""Errors of placement and waits, planted in the package, fail on the device that computes on the CPU."""

import inspect

import pytest
import torch

from mamltheory.fewshot import augment, meta_train, resnet, training
from mamltheory.fewshot.augment import Augmentation, draw_augmentation
from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.meta_train import MetaTrainConfig, start_meta_training
from mamltheory.fewshot.training import TrainConfig, start_training, train_epoch
from mamltheory.nas.scoring import linear_regions
from mamltheory.rng import generator
from tests.fake_cuda import CardError, fake_cuda
from tests.fewshot.small import SmallNet, noise_data

DATA = noise_data(12, classes=3, per_class=8)
IMAGES = noise_data(16, classes=2, per_class=2)


def trained_without_waits(card, precision="fp32", allowed=0):
    """Places where the host waits in every step of an epoch."""
    config = TrainConfig(batch_size=8, epochs=1, milestones=(), precision=precision)
    state = start_training(SmallNet(3, 4), DATA, config, "cuda")
    card.clear()
    train_epoch(state)
    assert state.steps == 3
    assert max(card.blocking.values()) < state.steps, card.blocking
    assert sum(count >= state.steps for count in card.waits.values()) == allowed, card.waits


def meta_trained_without_waits(card):
    config = MetaTrainConfig("anil", 2, 1, 1, tasks=1, learning_rate=0.01)
    state = start_meta_training(conv4(2, 16, 0, channels=2), IMAGES, config, "cuda")
    state, _ = meta_train.meta_train_step(state)
    card.clear()
    meta_train.meta_train_step(state, measured=False)
    assert not card.waits + card.blocking, card.waits


def augmented(_card):
    draws = draw_augmentation(Augmentation(2, 0.4, True), 8, 2, generator(0, "draws"))
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8, device="cuda")
    assert augment.apply_draws(images, draws, (0.5,) * 3, (0.5,) * 3).is_cuda


def dropped(_card):
    random = generator(0, "dropout", device="cuda")
    assert resnet.dropout(torch.ones(4, device="cuda"), 0.5, random).is_cuda


def counted(_card):
    assert linear_regions.distinct_patterns(torch.tensor([[True], [False]], device="cuda")) == 2


PLANTED = {
    "numpy of the device's memory": (
        linear_regions,
        "_packed_bits",
        ("patterns.cpu().numpy()", "patterns.numpy()"),
        counted,
        TypeError,
    ),
    "a draw of the CPU": (resnet, "dropout", (", device=x.device", ""), dropped, CardError),
    "an operand of the CPU": (
        augment,
        "apply_draws",
        ("x.to(device, non_blocking=True) for x in (draws.factors", "x for x in (draws.factors"),
        augmented,
        CardError,
    ),
    "a wait in every step": (
        training,
        "_train_step",
        (
            "loss.detach().double() * len(rows)",
            "torch.tensor(loss.item(), device=y.device).double() * len(rows)",
        ),
        trained_without_waits,
        AssertionError,
    ),
    "a wait in a step of a meta-training": (
        meta_train,
        "meta_train_step",
        ("gradient[name] / len(truth)", "gradient[name] / len(truth) if gradient[name].any() else None"),
        meta_trained_without_waits,
        AssertionError,
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_caught(name, monkeypatch):
    module, function, (right, wrong), check, error = PLANTED[name]
    source = inspect.getsource(getattr(module, function))
    assert source.count(right) == 1
    with fake_cuda() as card:
        check(card)
        planted = dict(vars(module))
        exec(source.replace(right, wrong), planted)
        monkeypatch.setattr(module, function, planted[function])
        with pytest.raises(error):
            check(card)


@pytest.mark.parametrize(("precision", "allowed"), [("bf16", 0), ("fp16", 1)])
def test_no_step_of_a_training_waits_but_for_the_scaler_of_float16(precision, allowed):
    with fake_cuda() as card:
        trained_without_waits(card, precision, allowed)
