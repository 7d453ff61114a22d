import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import combinations

import numpy as np
import pytest
import torch

from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot import pictures
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.pictures import (
    NOISE,
    PICTURES,
    TILE,
    choose_regions,
    crop_region,
    distinct_regions,
    picture_data,
    region_pixels,
)

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def data():
    return load_data("pictures")


def test_the_data_have_their_classes_and_samples_and_no_two_images_alike(data):
    assert data.name == "pictures"
    assert [len(getattr(data, split).class_names) for split in SPLITS] == [100, 32, 32]
    everything = np.concatenate([getattr(data, split).images.reshape(-1, 32 * 32 * 3) for split in SPLITS])
    assert len(everything) == 164 * 30
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert data.mirrors
    assert load_data("pictures", image_size=12).val.images.shape == (960, 12, 12, 3)


def test_the_splits_are_cut_from_different_pictures(data):
    for first, second in combinations(SPLITS, 2):
        assert not set(PICTURES[first]) & set(PICTURES[second])
    for split in SPLITS:
        stems = {name.split(".")[0] for name in PICTURES[split]}
        assert {name.split()[0] for name in getattr(data, split).class_names} == stems


def test_a_crop_shows_its_own_region_alone(monkeypatch):
    checkered = np.full((3 * TILE, 3 * TILE, 3), 255, dtype=np.uint8)
    checkered[TILE : 2 * TILE, TILE : 2 * TILE] = 80
    monkeypatch.setattr(pictures, "picture", lambda _: checkered)
    images = crop_region(("checkered", 1, 1), 32, 50, 0) / 255
    spread = images.max((1, 2)) - images.min((1, 2))
    assert spread.max() <= 2 * NOISE + 1 / 255
    assert (region_pixels(("checkered", 0, 1)) == 255).all()


@pytest.mark.slow
def test_another_process_with_other_threads_makes_the_same_bytes_and_another_seed_others(data):
    code = (
        "import hashlib; from mamltheory.fewshot.pictures import picture_data; d = picture_data(); "
        "print(hashlib.sha256(b''.join(s.images.tobytes() for s in (d.train, d.val, d.test))).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads() + 2)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = hashlib.sha256(b"".join(getattr(data, split).images.tobytes() for split in SPLITS)).hexdigest()
    assert other.stdout.strip() == here
    few = {"train_classes": 2, "val_classes": 2, "test_classes": 2}
    assert picture_data(**few, seed=1).train.class_names != data.train.class_names[:2]
    region = distinct_regions("val")[0]
    assert (crop_region(region, 16, 3, 0) != crop_region(region, 16, 3, 1)).any()


def test_a_class_looks_the_same_whatever_other_classes_were_chosen(data):
    few = picture_data(train_classes=3, val_classes=2, test_classes=2)
    assert few.train.class_names == data.train.class_names[:3]
    np.testing.assert_array_equal(few.train.images, data.train.images[:90])


def test_regions_differ_from_each_other_and_show_something():
    for split in SPLITS:
        regions = np.stack([region_pixels(region) / 255 for region in distinct_regions(split)])
        small = regions.reshape(-1, 4, TILE // 4, 4, TILE // 4, 3).mean((2, 4)).reshape(len(regions), -1)
        distances = np.sqrt(((small[:, None] - small[None]) ** 2).mean(2))
        np.fill_diagonal(distances, 1)
        assert distances.min() >= pictures.LEAST_DISTANCE
        assert regions.std((1, 2)).max(1).min() >= pictures.LEAST_DETAIL


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_nearest_image_is_often_of_the_same_class_but_not_always(data, split):
    content = getattr(data, split)
    flat = content.images.reshape(len(content), -1).astype(float)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    alike = flat @ flat.T
    np.fill_diagonal(alike, -1)
    hits = (content.labels[alike.argmax(1)] == content.labels).mean()
    assert 10 / 32 < hits < 0.95


def test_a_missing_package_and_a_missing_picture_say_what_to_install(monkeypatch):
    pictures.picture.cache_clear()
    pictures.distinct_regions.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "find_spec", lambda name: None if name == "skimage" else find_spec(name))
        missing = (
            r"astronaut.png of scikit-image, which is not installed: pip install 'mamltheory\[pictures\]'"
        )
        with pytest.raises(DataError, match=missing):
            load_data("pictures")
    with pytest.raises(DataError, match=r"absent.png is missing: install the version of scikit-image in"):
        pictures.picture("absent.png")


def test_too_many_classes_impossible_sizes_and_a_second_split_are_refused():
    with pytest.raises(ConfigurationError, match=r"coffee.png.*ask for fewer"):
        choose_regions("val", 5000, 0)
    with pytest.raises(ConfigurationError, match="8 pixels"):
        picture_data(image_size=4)
    with pytest.raises(DataError, match="split already"):
        load_data("pictures", split=(1, 1, 1))


def test_a_folder_with_the_name_of_the_embedded_images_is_not_read_in_silence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    notices = []
    load_data("pictures", image_size=8, notice=notices.append)
    assert notices == [
        "pictures are the embedded images; to read the folder of this name, give its absolute path"
    ]
