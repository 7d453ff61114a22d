"""What is said about a data set: order of channels, and classes that two splits share."""

import numpy as np
import pytest

from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.inspection import PUBLISHED, channel_order, image_hashes, overlaps
from mamltheory.rng import numpy_generator
from tests.fewshot.small import noise_split


def warm_split(shift, classes=40, seed=0):
    """Classes of random colours that are redder than blue by `shift` on average."""
    random = numpy_generator(seed, "warm images")
    colours = random.integers(60, 180, (classes, 1, 1, 3)) + np.array([shift, 0, 0])
    labels = np.repeat(np.arange(classes), 3)
    images = colours[labels] + random.integers(-30, 30, (len(labels), 8, 8, 3))
    names = tuple(map(str, range(classes)))
    return ImageSplit(images.clip(0, 255).astype(np.uint8), labels.astype(np.int64), names)


def test_warm_images_are_red_first_turned_ones_blue_first_and_grey_ones_undecided():
    warm = warm_split(40)
    assert channel_order(warm).verdict == "red first"
    turned = ImageSplit(warm.images[..., ::-1], warm.labels, warm.class_names)
    assert channel_order(turned).verdict == "blue first"
    assert channel_order(warm_split(0)).verdict == "undecided"
    assert channel_order(turned).difference == pytest.approx(-channel_order(warm).difference)


def test_of_one_class_nothing_is_concluded():
    assert channel_order(warm_split(80, classes=1)).verdict == "undecided"


@pytest.mark.parametrize("seed", range(5))
def test_colourless_images_are_rarely_taken_for_photographs(seed):
    order = channel_order(warm_split(0, seed=seed))
    assert abs(order.difference) < 4 * order.error


def test_hashes_are_equal_for_equal_images_alone_whatever_their_memory_order():
    split = noise_split()
    counts = []
    hashes = image_hashes(split, counts.append)
    assert len(set(hashes.tolist())) == len(split)
    assert sum(counts) == len(split)
    turned = ImageSplit(split.images[..., ::-1], split.labels, split.class_names)
    assert not set(hashes.tolist()) & set(image_hashes(turned).tolist())
    copy = ImageSplit(np.asfortranarray(split.images), split.labels, split.class_names)
    np.testing.assert_array_equal(image_hashes(copy), hashes)


def with_images_of(split, other, count):
    """`split`, whose first class has `count` images of the other's second class."""
    images = split.images.copy()
    images[split.members[0][:count]] = other.images[other.members[1][:count]]
    return ImageSplit(images, split.labels, split.class_names)


@pytest.mark.parametrize(("count", "same"), [(1, False), (2, True), (20, True)])
def test_shared_images_are_counted_and_a_tenth_of_a_class_makes_it_the_same(count, same):
    train, test = noise_split(name="a"), noise_split(seed=1, name="b")
    splits = {
        "train": train,
        "val": noise_split(seed=2, name="c"),
        "test": with_images_of(test, train, count),
    }
    (found,) = overlaps(splits, {name: image_hashes(split) for name, split in splits.items()})
    assert (found.first, found.second) == (("train", "a1"), ("test", "b0"))
    assert found.images == count
    assert found.share == pytest.approx(count / 20)
    assert found.same_class == same


def test_overlaps_agree_with_comparing_every_pair_of_images():
    first, second = noise_split(3, 4, 4), noise_split(3, 4, 4, seed=1)
    images = second.images.copy()
    images[[0, 3, 5]] = first.images[[1, 1, 8]]
    second = ImageSplit(images, second.labels, second.class_names)
    slow = {}
    for i, left in enumerate(first.images):
        for j, right in enumerate(second.images):
            if (left == right).all():
                slow.setdefault((first.labels[i], second.labels[j]), set()).add(i)
    splits = {"train": first, "test": second}
    fast = overlaps(splits, {name: image_hashes(split) for name, split in splits.items()})
    got = {(int(o.first[1][1:]), int(o.second[1][1:])): o.images for o in fast}
    assert got == {pair: len(images) for pair, images in slow.items()}


def test_published_sizes_are_those_of_the_papers():
    totals = {name: sum(images for _, images in splits.values()) for name, splits in PUBLISHED.items()}
    assert totals["miniImageNet"] == totals["CIFAR-FS"] == totals["FC100"] == 100 * 600
    assert totals["tieredImageNet"] == 779_165
    assert sum(classes for classes, _ in PUBLISHED["tieredImageNet"].values()) == 608
