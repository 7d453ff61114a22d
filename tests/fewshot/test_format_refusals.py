"""What is missing, damaged or does not fit together is named in one error, before memory is asked for."""

import io
import json
import pickle
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from mamltheory.errors import DataError, ImageSizesError
from mamltheory.fewshot.datasets import load_data, read_data
from mamltheory.fewshot.formats import Options
from mamltheory.fewshot.formats.arrays import open_npz_member
from mamltheory.fewshot.formats.folders import FOLDER_FORMAT
from tests.fewshot import layouts, python2
from tests.fewshot.layouts import SPLITS, tiny_splits
from tests.fewshot.small import noise_split


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    for split in SPLITS:
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"mamltheory\[parquet\]"):
        load_data(tmp_path)


def test_broken_images_empty_classes_and_mixed_sizes_are_named(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits())
    broken = sorted((tmp_path / "val" / "n00000021").iterdir())[1]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{broken.name} cannot be read"):
        load_data(tmp_path)
    broken.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(DataError, match="web page"):
        load_data(tmp_path)
    Image.new("RGB", (9, 9)).save(broken)
    with pytest.raises(ImageSizesError, match="different sizes"):
        load_data(tmp_path)
    assert load_data(tmp_path, image_size=9).val.images.shape[1:] == (9, 9, 3)
    (tmp_path / "test" / "empty").mkdir()
    broken.write_bytes(whole)
    with pytest.raises(DataError, match="empty holds no images"):
        load_data(tmp_path)


def test_all_broken_images_and_empty_classes_are_named_at_once(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits())
    classes = [next(iter(sorted((tmp_path / split).iterdir()))) for split in ("train", "val")]
    broken = [file for each in classes for file in sorted(each.iterdir())[:2]]
    for file in broken:
        file.write_bytes(b"no image")
    for name in ("empty", "void"):
        (tmp_path / "test" / name).mkdir()
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    said = str(caught.value)
    assert all(file.name in said for file in broken)
    assert said.count("2 images are broken") == 2
    assert "empty holds no images, nor do void" in said


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_an_image_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path, side):
    layouts.write_folders(tmp_path, {"test": noise_split(1, 2)})
    bomb = layouts.png_of_declared_size(side, side)
    (tmp_path / "test" / "c0" / "001.png").write_bytes(bomb)
    with pytest.raises(DataError, match=r"001\.png is refused.*pixels"):
        FOLDER_FORMAT.read(tmp_path, "test", Options(image_size=8))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "C:\\secret.png", "a\\..\\..\\b.png", "."]
)
def test_a_list_cannot_name_files_outside_its_folder(tmp_path, name):
    layouts.write_csv(tmp_path, tiny_splits())
    (tmp_path / "val.csv").write_text(f"filename,label\n{name},n01\n")
    with pytest.raises(DataError, match="expected plain names"):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na,b\n", r"columns \['name', 'class'\].*expected"),
        ("filename,label\n", "0 rows"),
        ("", "0 rows"),
        ("filename,label\nabsent.jpg,n01\n", "neither in images/ nor next to"),
        ("filename,label\na.jpg\n", "expected plain names"),
    ],
)
def test_a_list_of_other_content_is_named(tmp_path, text, message):
    layouts.write_csv(tmp_path, tiny_splits())
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a JSON object"),
        ({"class_names": ["a"]}, "class_roots"),
        ({"class_names": ["a"], "class_roots": ["images/a", "b"]}, "1 class_names but 2"),
        ({"class_names": ["a"], "class_roots": ["no/such/place"]}, "not there"),
        ({"class_names": ["a", 3], "class_roots": ["b"]}, "list of strings"),
    ],
)
def test_a_specification_of_other_content_is_named(tmp_path, content, message):
    layouts.write_json(tmp_path, tiny_splits())
    (tmp_path / "test.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"data": 1},
        {"data": [1], "labels": [1]},
        {"data": np.zeros((2, 4, 4, 3), np.uint8), "labels": [1, 2, 3]},
        {"data": np.zeros((2, 4, 4, 3), np.uint8), "labels": [[1], [1, 2]]},
        {"data": np.zeros((2, 4, 4, 3), np.uint8), "labels": ["a", "b"]},
        {"data": np.zeros((2, 4, 4, 3), np.uint8), "labels": [0, 1], "catname2label": {"a": "b"}},
    ],
)
def test_a_pickle_with_other_content_is_named(tmp_path, content):
    layouts.write_category(tmp_path, tiny_splits())
    (tmp_path / "miniImageNet_category_split_test.pickle").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"split_test\.pickle"):
        load_data(tmp_path)


@pytest.mark.parametrize("rows", [{"a": [0, 1], "b": [1, 2]}, {"a": [0, 9]}, {"a": [0]}, {"a": []}, [0, 1]])
def test_rows_of_a_cache_that_are_no_partition_are_refused(tmp_path, rows):
    layouts.write_cache(tmp_path, tiny_splits())
    raw = {"image_data": np.zeros((3, 4, 4, 3), np.uint8), "class_dict": rows}
    (tmp_path / "mini-imagenet-cache-test.pkl").write_bytes(python2.dumps(raw))
    with pytest.raises(DataError, match=r"cache-test\.pkl"):
        load_data(tmp_path)


def test_an_npz_with_python_objects_or_a_declared_size_beyond_its_own_is_refused(tmp_path):
    layouts.write_npz(tmp_path, tiny_splits())
    file = tmp_path / "val_images.npz"
    np.savez(file, images=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        load_data(tmp_path)
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        _write_with_shape(file, (9 * 10**17, 2, 2, 3), kind)
        with pytest.raises(DataError, match="is announced"):
            load_data(tmp_path)


def _write_with_shape(target, shape, kind):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(target, "w", kind) as archive:
        archive.writestr("images.npy", stream.getvalue() + bytes(24))


def test_a_small_npz_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("mamltheory.fewshot.formats.arrays.SMALL", 2**16)
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((100, 30, 30, 3), np.uint8))
    with pytest.raises(DataError, match="announce"):
        open_npz_member(tmp_path / "x.npz", "images")


def test_a_negative_image_size_is_refused(tmp_path):
    with pytest.raises(DataError, match="from 1 to"):
        load_data(tmp_path, image_size=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [("mean", [4.5, 0.5, 0.5]), ("std", ["a", 1, 1]), ("name", 3), ("class_names", {"train": []})],
)
def test_a_record_of_prepared_data_with_impossible_entries_is_refused(tmp_path, key, value):
    layouts.write_arrays(tmp_path, tiny_splits())
    file = tmp_path / "few-shot-data.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(DataError, match=r"few-shot-data\.json"):
        load_data(tmp_path)


def test_images_that_no_memory_holds_are_refused_unless_they_go_to_a_file(tmp_path, monkeypatch):
    layouts.write_folders(tmp_path, tiny_splits())
    monkeypatch.setattr("mamltheory.fewshot.formats.common._physical_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"train images take .* --prepare FOLDER"):
        load_data(tmp_path)
    room = {}
    read_data(
        tmp_path, Options(allocate=lambda split, shape: room.setdefault(split, np.empty(shape, np.uint8)))
    )
    assert set(room) == set(SPLITS)


def test_a_shard_that_is_missing_is_named_and_not_passed_over(tmp_path):
    layouts.LAYOUTS["parquet files"](tmp_path, tiny_splits(2, 2, 8))
    files = sorted(tmp_path.rglob("*-of-*.parquet"))
    files[-1].rename(files[-1].with_name(files[-1].name.replace(".parquet", ".part")))
    with pytest.raises(DataError, match=r"is one of \d+ files, and \d+ are there"):
        load_data(tmp_path)
