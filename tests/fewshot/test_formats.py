import pickle

import numpy as np
import pytest
from PIL import Image

from mamltheory.errors import DataError
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.formats.arrays import open_npz_member
from mamltheory.fewshot.formats.common import IMAGENET_MEAN, Options
from mamltheory.fewshot.formats.pixels import fitted
from tests.fewshot.small import noise_split

SPLITS = ("train", "val", "test")
MINI = "miniImageNet_category_split_{}.pickle"


def write_folder(path, suffix=".png", size=12):
    for seed, split in enumerate(SPLITS):
        content = noise_split(3, 4, size, seed, split)
        for i, (image, label) in enumerate(zip(content.images, content.labels, strict=True)):
            file = path / split / content.class_names[label] / f"{i:03d}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)


def write_mini(path, protocol=2, names=True):
    for seed, (split, part) in enumerate(zip(SPLITS, ("train_phase_train", "val", "test"), strict=True)):
        content = noise_split(3, 4, 12, seed, split)
        labels = [int(v) + 64 * seed for v in content.labels]
        raw = {"data": content.images, "labels": labels}
        if names:
            raw["catname2label"] = {f"n{v:08d}": v for v in sorted(set(labels))}
        (path / MINI.format(part)).write_bytes(pickle.dumps(raw, protocol))


def write_tiered(path, key="labels", compressed=False):
    for seed, split in enumerate(SPLITS):
        content = noise_split(3, 4, 12, seed, split)
        save = np.savez_compressed if compressed else np.savez
        save(path / f"{split}_images.npz", images=content.images[..., ::-1])
        raw = {key: content.labels.astype(np.int32), f"{key}_str": [f"{split} {i}" for i in range(3)]}
        (path / f"{split}_labels.pkl").write_bytes(pickle.dumps(raw, 2))


def test_an_image_folder_gives_back_the_images_with_the_folders_as_classes(tmp_path):
    write_folder(tmp_path)
    data = load_data(tmp_path)
    assert data.val.class_names == ("val0", "val1", "val2")
    expected = noise_split(3, 4, 12, 1, "val")
    for c in range(3):
        np.testing.assert_array_equal(
            data.val.images[data.val.members[c]], expected.images[expected.members[c]]
        )
    assert data.mirrors


def test_images_are_resized_on_request_and_jpeg_is_read(tmp_path):
    write_folder(tmp_path, ".jpg", size=16)
    assert load_data(tmp_path, image_size=8).train.images.shape == (12, 8, 8, 3)


def test_resizing_crops_the_centre_of_an_oblong_image():
    image = np.zeros((1, 4, 12, 3), np.uint8)
    image[:, :, 4:8] = 200
    assert (fitted(image, "train", Options(4)) == 200).all()


@pytest.mark.parametrize("protocol", range(6))
def test_mini_imagenet_pickles_of_every_protocol_are_read(tmp_path, protocol):
    write_mini(tmp_path, protocol)
    data = load_data(tmp_path)
    np.testing.assert_array_equal(data.test.images, noise_split(3, 4, 12, 2, "test").images)
    assert data.test.class_names == ("n00000128", "n00000129", "n00000130")
    assert set(data.test.labels) == {0, 1, 2}
    assert data.mean == IMAGENET_MEAN


def test_classes_without_names_stay_distinct_across_splits(tmp_path):
    write_mini(tmp_path, names=False)
    assert load_data(tmp_path).val.class_names == ("val/64", "val/65", "val/66")


@pytest.mark.parametrize("key", ["labels", "label_specific"])
@pytest.mark.parametrize("compressed", [False, True])
def test_tiered_arrays_are_turned_from_bgr_to_rgb_unless_told_otherwise(tmp_path, key, compressed):
    write_tiered(tmp_path, key, compressed)
    expected = noise_split(3, 4, 12, 0, "train").images
    np.testing.assert_array_equal(load_data(tmp_path).train.images, expected)
    np.testing.assert_array_equal(load_data(tmp_path, tiered_bgr=False).train.images, expected[..., ::-1])


def test_an_uncompressed_npz_is_mapped_not_loaded(tmp_path):
    write_tiered(tmp_path)
    array = open_npz_member(tmp_path / "train_images.npz", "images")
    assert isinstance(array, np.memmap)
    assert isinstance(load_data(tmp_path).train.images, np.memmap)


def test_an_npz_with_python_objects_is_refused(tmp_path):
    write_tiered(tmp_path)
    np.savez(tmp_path / "val_images.npz", images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="val_images"):
        load_data(tmp_path)


def test_a_missing_folder_an_unknown_layout_and_a_missing_part_are_named(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load_data(tmp_path / "nothing")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no known layout \(it holds readme.txt\).*image folder"):
        load_data(tmp_path)
    write_mini(tmp_path)
    (tmp_path / MINI.format("val")).unlink()
    with pytest.raises(DataError, match="is missing"):
        load_data(tmp_path)


def test_an_ordinary_classification_split_is_refused(tmp_path):
    for split in SPLITS:
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "1.png")
    with pytest.raises(DataError, match="split by class"):
        load_data(tmp_path)


def test_broken_images_empty_classes_and_mixed_sizes_are_named(tmp_path):
    write_folder(tmp_path)
    broken = tmp_path / "val" / "val1" / "001.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"001\.png cannot be read"):
        load_data(tmp_path)
    Image.new("RGB", (9, 9)).save(broken)
    with pytest.raises(DataError, match="different sizes"):
        load_data(tmp_path)
    (tmp_path / "test" / "empty").mkdir()
    broken.write_bytes(whole)
    with pytest.raises(DataError, match="empty holds no images"):
        load_data(tmp_path)


def test_a_negative_image_size_is_refused(tmp_path):
    with pytest.raises(DataError, match="positive"):
        load_data(tmp_path, image_size=0)


@pytest.mark.parametrize("content", [[1, 2], {"data": 1}, {"data": [1], "labels": [1]}])
def test_a_pickle_with_other_content_is_named(tmp_path, content):
    write_mini(tmp_path)
    (tmp_path / MINI.format("test")).write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="expected"):
        load_data(tmp_path)
