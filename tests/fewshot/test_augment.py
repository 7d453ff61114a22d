import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.fewshot.augment import (
    ORDERS,
    Augmentation,
    Draws,
    apply_draws,
    augment,
    crop,
    default_padding,
    draw_augmentation,
    join_draws,
    select_draws,
)
from mamltheory.fewshot.uploads import normalise
from mamltheory.rng import generator
from tests.fewshot.small import noise_split
from tests.reference.fewshot_augment import augment_in_reals, augment_with_pillow

MEAN, STD = (0.47, 0.45, 0.41), (0.28, 0.27, 0.28)


def images_of(count, height, seed=0, width=None):
    return torch.randint(
        0,
        256,
        (count, height, width or height, 3),
        generator=generator(seed, "test pixels"),
        dtype=torch.uint8,
    )


@pytest.mark.paper("App. E: augmentation")
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(5, 24), st.integers(0, 9), st.booleans(), st.integers(0, 2**32))
def test_the_batch_transform_agrees_with_loops_over_images(count, size, padding, flip, seed):
    images = images_of(count, size, seed, width=size + 3)
    draws = draw_augmentation(Augmentation(padding=padding, flip=flip), size, count, generator(seed, "draws"))
    ours = apply_draws(images, draws, MEAN, STD).permute(0, 2, 3, 1).numpy()
    for i in range(count):
        parts = [getattr(draws, name)[i].numpy() for name in ("offsets", "mirrored", "factors", "order")]
        exact = augment_in_reals(images[i].numpy(), *parts, MEAN, STD)
        np.testing.assert_allclose(ours[i], exact, atol=1e-5)
        # Pillow cuts off fractions of a grey level after each of three changes of gain up to 1.4, and rounds
        # the
        # grey version: at most (1 + 1.4 + 1.96) + 0.5·0.4·(1 + 1.4) levels of 255.
        pillow = augment_with_pillow(images[i].numpy(), *parts, MEAN, STD)
        np.testing.assert_allclose(ours[i] * STD, pillow * STD, atol=4.9 / 255)


def test_without_padding_jitter_and_flip_it_is_the_test_transform():
    images = images_of(5, 9)
    settings_ = Augmentation(padding=0, jitter=0.0, flip=False)
    torch.testing.assert_close(
        augment(images, settings_, MEAN, STD, generator(0, "x")), normalise(images, MEAN, STD)
    )


def test_batches_cut_in_any_way_give_the_same_bits():
    images = torch.from_numpy(noise_split().images)
    parts = [draw_augmentation(Augmentation(), 12, n, generator(0, "draws", n)) for n in (50, 1, 69)]
    whole = apply_draws(images, join_draws(parts), MEAN, STD)
    cuts = [apply_draws(x, d, MEAN, STD) for x, d in zip(images.split([50, 1, 69]), parts, strict=True)]
    assert torch.equal(torch.cat(cuts), whole)


def test_equal_generators_give_equal_images_and_others_different_ones():
    images = images_of(16, 16)
    one, two, other = (augment(images, Augmentation(), MEAN, STD, generator(s, "aug")) for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_global_generator_is_neither_read_nor_moved():
    state = torch.random.get_rng_state()
    augment(images_of(4, 8), Augmentation(), MEAN, STD, generator(0, "aug"))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_images_passed_in_are_left_alone():
    images = images_of(4, 8)
    before = images.clone()
    augment(images, Augmentation(), MEAN, STD, generator(0, "aug"))
    assert torch.equal(images, before)


@pytest.mark.paper("App. E: augmentation")
def test_the_draws_have_the_stated_distributions():
    draws = draw_augmentation(Augmentation(), 84, 40_000, generator(0, "draws"))
    counts = torch.bincount(draws.offsets.flatten() + 8, minlength=17)
    assert len(counts) == 17
    assert ((counts - 80_000 / 17).abs() < 6 * (80_000 / 17) ** 0.5).all()
    assert abs(draws.mirrored.double().mean() - 0.5) < 0.015
    assert draws.factors.min() >= 0.6
    assert draws.factors.max() <= 1.4
    torch.testing.assert_close(draws.factors.mean(0), torch.ones(3), atol=0.01, rtol=0)
    codes = draws.order @ torch.tensor([9, 3, 1])
    assert set(codes.tolist()) == set((ORDERS @ torch.tensor([9, 3, 1])).tolist())


def test_the_draws_are_those_of_the_generator_in_this_order():
    stream, found = generator(4, "draws"), {}
    found["offsets"] = torch.randint(0, 7, (30, 2), generator=stream) - 3
    found["mirrored"] = torch.rand(30, generator=stream) < 0.5
    found["factors"] = 0.75 + 0.5 * torch.rand(30, 3, generator=stream)
    orders = torch.tensor(list(itertools.permutations(range(3))))
    found["order"] = orders[torch.randint(0, 6, (30,), generator=stream)]
    draws = draw_augmentation(Augmentation(padding=3, jitter=0.25), 8, 30, generator(4, "draws"))
    for name, expected in found.items():
        torch.testing.assert_close(getattr(draws, name), expected)
    few = select_draws(draws, slice(3, 9))
    for name, expected in found.items():
        torch.testing.assert_close(getattr(few, name), expected[3:9])


def test_the_padding_of_a_transform_follows_the_height():
    images = images_of(3, 60, width=10)
    draws = draw_augmentation(Augmentation(), 60, 3, generator(0, "aug"))
    found = augment(images, Augmentation(), MEAN, STD, generator(0, "aug"))
    assert torch.equal(found, apply_draws(images, draws, MEAN, STD))


def test_the_transform_has_the_layout_that_is_asked_for_and_takes_no_images():
    images = images_of(3, 6, width=5)
    draws = draw_augmentation(Augmentation(), 6, 3, generator(0, "draws"))
    plain = apply_draws(images, draws, MEAN, STD)
    assert plain.is_contiguous()
    last = apply_draws(images, draws, MEAN, STD, torch.channels_last)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, plain)
    assert apply_draws(images.to("meta"), draws, MEAN, STD).is_meta, "all parts are where the images are"
    assert apply_draws(images[:0], select_draws(draws, slice(0)), MEAN, STD).shape == (0, 3, 6, 5)


def test_flips_are_off_when_the_setting_says_so(monkeypatch):
    assert not draw_augmentation(Augmentation(flip=False), 32, 500, generator(0, "draws")).mirrored.any()
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.zeros(size))
    assert not draw_augmentation(Augmentation(flip=False), 32, 5, generator(0, "draws")).mirrored.any()


@pytest.mark.parametrize(("size", "padding"), [(84, 8), (32, 4), (224, 22)])
def test_the_padding_rule_gives_the_published_paddings(size, padding):
    assert default_padding(size) == padding


def test_a_crop_moves_zeros_in_from_the_side_it_looks_over():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 3, 3, 1).expand(1, 3, 3, 3)
    moved = crop(image, torch.tensor([[1, -1]]), torch.tensor([False]))[0, :, :, 0]
    assert moved.tolist() == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]


def test_a_change_of_the_order_changes_the_image():
    images, ones = images_of(1, 8), torch.ones(1, 3)
    base = Draws(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([False]), 1.4 * ones, ORDERS[:1])
    other = Draws(base.offsets, base.mirrored, base.factors, ORDERS[5:])
    assert not torch.allclose(apply_draws(images, base, MEAN, STD), apply_draws(images, other, MEAN, STD))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigurationError, match="padding"):
        Augmentation(padding=-1)
    with pytest.raises(ConfigurationError, match="jitter"):
        Augmentation(jitter=1.5)
    with pytest.raises(ShapeError, match="once for each"):
        apply_draws(images_of(2, 8), draw_augmentation(Augmentation(), 8, 3, generator(0, "x")), MEAN, STD)
