import numpy as np
import pytest
import torch

from mamltheory.errors import DataError, ValueRangeError
from mamltheory.fewshot.images import ImageData, ImageSplit, channel_statistics, fingerprint
from mamltheory.fewshot.uploads import normalise, resident, take
from tests.fewshot.small import noise_data, noise_split


def test_members_list_every_image_once_under_its_own_class():
    split = noise_split()
    assert sorted(np.concatenate(split.members)) == list(range(len(split)))
    assert all((split.labels[m] == c).all() for c, m in enumerate(split.members))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "ab", "uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), [0, 1], "ab", "channels last"),
        (np.zeros((0, 4, 4, 3), np.uint8), [], "", "non-empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], "ab", "renumber"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 0], "ab", "every value"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "a", "shape"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 1], "aa", "more than once"),
    ],
)
def test_a_split_refuses_what_is_not_labelled_rgb_images(images, labels, names, message):
    with pytest.raises(DataError, match=message):
        ImageSplit(images, np.array(labels, dtype=np.int64), tuple(names))


def test_a_class_in_both_train_and_test_is_refused():
    data = noise_data()
    with pytest.raises(DataError, match="train and test share 6 classes"):
        ImageData("x", data.train, data.val, data.train, data.mean, data.std)


def test_splits_of_different_image_size_are_refused():
    data = noise_data()
    with pytest.raises(DataError, match="image_size"):
        ImageData("x", data.train, data.val, noise_split(size=8, name="other"), data.mean, data.std)


def test_statistics_on_the_scale_of_bytes_are_refused():
    data = noise_data()
    with pytest.raises(ValueRangeError, match="255"):
        ImageData("x", data.train, data.val, data.test, (120.0, 115.0, 104.0), (70.0, 68.0, 72.0))


def test_channel_statistics_are_those_of_numpy_and_normalised_images_have_mean_0_and_spread_1():
    split = noise_split()
    mean, std = channel_statistics(split)
    pixels = split.images.reshape(-1, 3) / 255.0
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-9)
    x = normalise(torch.from_numpy(split.images), mean, std)
    assert x.shape == (len(split), 3, 12, 12)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_a_constant_channel_does_not_give_infinities():
    split = ImageSplit(np.full((3, 4, 4, 3), 7, np.uint8), np.zeros(3, np.int64), ("a",))
    assert torch.isfinite(normalise(torch.from_numpy(split.images), *channel_statistics(split))).all()


def test_images_are_taken_alike_from_arrays_views_and_tensors():
    split, rows = noise_split(), np.array([5, 0, 5])
    expected = torch.from_numpy(split.images[rows])
    assert torch.equal(take(split.images, rows), expected)
    assert torch.equal(take(torch.from_numpy(split.images), rows), expected)
    assert torch.equal(take(split.images[..., ::-1], rows), expected.flip(-1))
    assert resident(split, "cpu") is split.images


def test_the_fingerprint_sees_names_labels_and_images():
    split = noise_split()
    prints = {
        fingerprint(split),
        fingerprint(noise_split(seed=1)),
        fingerprint(ImageSplit(split.images, split.labels[::-1].copy(), split.class_names)),
        fingerprint(ImageSplit(split.images, split.labels, split.class_names[::-1])),
    }
    assert len(prints) == 4
    assert fingerprint(noise_split()) in prints


@pytest.mark.usefixtures("card")
def test_images_live_on_the_cuda_device_when_they_fit():
    split = noise_split()
    assert resident(split, "cuda").is_cuda
    assert torch.equal(
        take(resident(split, "cuda"), np.array([1, 2]), "cuda").cpu(), take(split.images, np.array([1, 2]))
    )
