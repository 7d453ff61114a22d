"""Every layout comes back as what was written, under whatever folder it is found."""

import pickle
from functools import partial

import numpy as np
import pytest
from PIL import Image

from mamltheory.errors import DataError
from mamltheory.fewshot.datasets import load_data, read_data
from mamltheory.fewshot.formats import FORMATS, Options, recognise
from mamltheory.fewshot.formats.arrays import open_npz_member
from mamltheory.fewshot.formats.common import CIFAR_MEAN, IMAGENET_MEAN
from mamltheory.fewshot.formats.pixels import fitted
from mamltheory.fewshot.formats.prepared import room_in, write_prepared
from mamltheory.fewshot.images import fingerprint
from tests.fewshot import layouts
from tests.fewshot.layouts import SPLITS, tiny_splits
from tests.fewshot.small import noise_split


def assert_same(data, splits, names=True, turn=False):
    """Each class has its images in their order, under its name or as the same number within the split."""
    for split, expected in splits.items():
        got = getattr(data, split)
        for label, name in enumerate(expected.class_names):
            index = got.class_names.index(name) if names else label
            images = got.images[got.members[index]]
            np.testing.assert_array_equal(
                images[..., ::-1] if turn else images, expected.images[expected.members[label]]
            )


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_every_layout_is_recognised_and_gives_back_its_classes_and_images(tmp_path, name):
    splits = tiny_splits()
    layouts.LAYOUTS[name](tmp_path, splits)
    layout, folder = recognise(tmp_path)
    assert (layout.name, folder) == (name, tmp_path)
    assert layout.present(tmp_path) == SPLITS
    assert_same(load_data(tmp_path), splits, names=not name.startswith("CIFAR"))


def test_every_layout_has_a_test_of_its_own():
    assert {layout.name for layout in FORMATS} == set(layouts.LAYOUTS)


@pytest.mark.parametrize(
    "write",
    [
        partial(layouts.write_cache, validation="validation"),
        partial(layouts.write_png, columns=False, prefix="tiered-imagenet-"),
        partial(layouts.write_npz, compressed=True),
        partial(layouts.write_csv, ravi=False, kind="PNG"),
        partial(layouts.write_folders, val="validation"),
        *(
            partial(write, dumps=partial(pickle.dumps, protocol=protocol))
            for protocol in range(6)
            for write in (layouts.write_category, layouts.write_cache, layouts.write_png, layouts.write_npz)
        ),
    ],
    ids=lambda write: f"{write.func.__name__} {write.keywords.get('dumps', write).keywords}",
)
def test_variants_of_a_layout_give_the_same_data(tmp_path, write):
    splits = tiny_splits()
    write(tmp_path, splits)
    assert_same(load_data(tmp_path), splits)


@pytest.mark.parametrize("pattern", ["{}.pickle", "CIFAR_FS_{}.pickle", "FC100_{}.pickle"])
def test_cifar_sets_are_told_apart_by_their_names(tmp_path, pattern):
    layouts.write_category(tmp_path, tiny_splits(), names=False, pattern=pattern)
    data = load_data(tmp_path)
    assert data.name == ("FC100" if "FC100" in pattern else "CIFAR-FS")
    assert data.mean == CIFAR_MEAN
    assert data.val.class_names == ("val/64", "val/65", "val/66")


def test_published_statistics_are_used_for_published_sets_and_the_images_own_for_others(tmp_path):
    layouts.write_category(tmp_path / "mini", tiny_splits())
    layouts.write_folders(tmp_path / "own", tiny_splits())
    assert load_data(tmp_path / "mini").mean == IMAGENET_MEAN
    train = tiny_splits()["train"].images / 255
    np.testing.assert_allclose(load_data(tmp_path / "own").mean, train.mean((0, 1, 2)))


def test_images_of_a_python_2_pickle_stay_in_their_file(tmp_path):
    splits = tiny_splits(per_class=40)
    layouts.write_category(tmp_path, splits)
    images = load_data(tmp_path).train.images
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    assert_same(load_data(tmp_path), splits)


def test_an_uncompressed_npz_is_mapped_and_turned_from_bgr_without_a_copy(tmp_path):
    splits = tiny_splits()
    layouts.write_npz(tmp_path, splits)
    assert isinstance(open_npz_member(tmp_path / "train_images.npz", "images"), np.memmap)
    images = load_data(tmp_path).train.images
    assert isinstance(images, np.memmap)
    assert images.strides[-1] == -1
    assert_same(load_data(tmp_path, tiered_bgr=False), splits, turn=True)


def test_labels_of_copies_without_names_are_read(tmp_path):
    layouts.write_npz(tmp_path, tiny_splits(), key="labels")
    assert load_data(tmp_path).train.class_names == ("train/0", "train/1", "train/2")


def test_jpeg_files_are_decoded_and_resized_on_request(tmp_path):
    layouts.write_csv(tmp_path, tiny_splits(size=16))
    data = load_data(tmp_path)
    first = sorted((tmp_path / "images").glob("n00000010*.jpg"))[0]
    np.testing.assert_array_equal(data.train.images[0], np.asarray(Image.open(first)))
    small = load_data(tmp_path, image_size=8)
    assert small.train.images.shape == (12, 8, 8, 3)
    assert abs(small.train.images.mean() - data.train.images.mean()) < 2


def test_resizing_crops_the_centre_of_an_oblong_image():
    image = np.zeros((1, 4, 12, 3), np.uint8)
    image[:, :, 4:8] = 200
    assert (fitted(image, "train", Options(4)) == 200).all()


def test_many_images_decoded_in_threads_keep_their_order(tmp_path):
    splits = tiny_splits(per_class=1, size=4) | {"train": noise_split(2, 300, 4)}
    layouts.write_png(tmp_path, splits)
    counts = []
    assert_same(read_data(tmp_path, Options(advance=counts.append)), splits)
    assert counts == [512, 88, 3, 3]


@pytest.mark.parametrize("name", ["tieredImageNet PNG pickles", "mini-ImageNet pickles"])
@pytest.mark.parametrize("size", [None, 8])
def test_prepared_data_are_the_same_data_mapped(tmp_path, name, size):
    layouts.LAYOUTS[name](tmp_path / "raw", tiny_splits())
    (tmp_path / "ready").mkdir()
    options = Options(size, allocate=partial(room_in, tmp_path / "ready"))
    data = read_data(tmp_path / "raw", options)
    write_prepared(data, tmp_path / "ready", options)
    again = load_data(tmp_path / "ready", image_size=size)
    for split in SPLITS:
        assert isinstance(getattr(again, split).images, np.memmap)
        assert fingerprint(getattr(again, split)) == fingerprint(getattr(data, split))
    assert (again.name, again.mean, again.std) == (data.name, data.mean, data.std)
    (tmp_path / "ready" / "few-shot-data.json").unlink()
    with pytest.raises(DataError, match="no known layout"):
        load_data(tmp_path / "ready")


def test_the_only_data_set_inside_a_folder_is_found_and_of_two_one_must_be_named(tmp_path):
    layouts.write_category(tmp_path / "mini-imagenet", tiny_splits())
    assert recognise(tmp_path)[1] == tmp_path / "mini-imagenet"
    layouts.write_folders(tmp_path / "birds", tiny_splits())
    with pytest.raises(DataError, match=r"several data sets \(birds, mini-imagenet\)"):
        load_data(tmp_path)


def test_the_layout_with_most_splits_counts(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits())
    (tmp_path / "train.csv").write_text("filename,label\n")
    assert recognise(tmp_path)[0].name == "image folder"


def test_a_missing_folder_a_file_and_an_unknown_layout_are_named(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        load_data(tmp_path / "nothing")
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no known layout \(it holds readme.txt\).*image folder"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="is a file: give the folder"):
        load_data(tmp_path / "readme.txt")


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_missing_split_is_named_with_the_layout(tmp_path, name):
    splits = tiny_splits()
    layouts.LAYOUTS[name](tmp_path, {split: splits[split] for split in ("train", "test")})
    with pytest.raises(DataError, match=rf"{name}, of which val is missing: expected"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    "name", [name for name in layouts.LAYOUTS if not name.startswith(("CIFAR", "prepared"))]
)
def test_an_ordinary_classification_split_is_refused_in_every_layout(tmp_path, name):
    splits = tiny_splits()
    splits["test"] = splits["train"]
    layouts.LAYOUTS[name](tmp_path, splits)
    with pytest.raises(DataError, match=r"train and test share 3 classes .*split by class"):
        load_data(tmp_path)
