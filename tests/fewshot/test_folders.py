"""Folders of images as people keep them: nested, with what systems leave there, linked, flat, misnamed."""

import json
import os
import pickle
import re
import unicodedata

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.formats import by_content, recognise
from mamltheory.fewshot.formats.folders import drawn_classes
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.inspection import copies, image_hashes, sampled
from mamltheory.fewshot.places import shares_of
from tests.fewshot import layouts, python2
from tests.fewshot.layouts import SPLITS, encoded, tiny_splits
from tests.fewshot.pictures import saved
from tests.fewshot.small import noise_data, noise_split


def read(folder, **options):
    """The data, and what the reader left out."""
    said = []
    return load_data(folder, notice=said.append, **options), said


def write_flat(folder, classes=10, per_class=2):
    content = noise_split(classes, per_class, 8)
    for row, (image, label) in enumerate(zip(content.images, content.labels, strict=True)):
        layouts.put(folder / content.class_names[label] / f"{row:03d}.png", encoded(image))


def test_every_usual_kind_of_image_is_read_at_any_depth_and_the_rest_is_counted(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits(2, 2))
    place = tmp_path / "train" / "n00000010"
    image = np.full((12, 12, 3), 7, np.uint8)
    for suffix, kind in {"webp": "WEBP", "bmp": "BMP", "GIF": "GIF", "tif": "TIFF", "ppm": "PPM"}.items():
        layouts.put(place / f"x.{suffix}", saved(image, kind))
    layouts.put(place / "more" / "deeper" / "y.jpg", saved(image, "JPEG"))
    for name in ("notes.txt", "read.txt", "photo.heic", "Thumbs.db", "._x.png", "none", ".hidden/z.png"):
        layouts.put(place / name, b"nothing")
    os.mkfifo(place / "pipe.png")
    layouts.put(tmp_path / "train" / "loose.png", encoded(image))
    data, said = read(tmp_path)
    assert len(data.train.members[0]) == 2 + 6
    assert said == [
        "train: left out 2 .txt, 1 .heic, 1 hidden files, 1 hidden or system: .hidden, "
        "1 hidden or system: Thumbs.db, 1 next to the class folders, 1 no regular files, 1 without suffix"
    ]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".Trash-1000", "@EADIR"])
def test_hidden_and_system_folders_are_no_classes_and_named(tmp_path, name):
    layouts.write_folders(tmp_path, tiny_splits(2, 2))
    layouts.put(tmp_path / "val" / name / "a.png", encoded(np.zeros((12, 12, 3), np.uint8)))
    layouts.put(tmp_path / name / "train" / "class" / "a.png", b"")
    data, said = read(tmp_path)
    assert len(data.val.class_names) == 2
    assert said == [f"val: left out 1 hidden or system: {name}"]


def test_what_is_left_out_is_a_warning_where_nobody_asks(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits(2, 2))
    layouts.put(tmp_path / "val" / "n00000020" / "\x1b[31m.txt", b"")
    layouts.put(tmp_path / "test" / "n00000030" / "a.txt", b"")
    with pytest.warns(UserWarning, match=r": val: left out 1 .txt; test: left out 1 .txt$") as told:
        load_data(tmp_path)
    assert [warning.filename for warning in told] == [__file__]  # once, at the line of the caller


def test_shares_are_spelt_as_the_command_spells_them_or_are_numbers(tmp_path):
    for i in range(5):
        layouts.put(tmp_path / f"bird{i}" / "a.png", encoded(np.full((8, 8, 3), i, np.uint8)))
    text, numbers = (load_data(tmp_path, split=split) for split in ("60/20/20", [60, 20, 20]))
    assert text.train.class_names == numbers.train.class_names
    for wrong in ("60/20", "a/b/c", (1, 0, 1), (1, 2), (0.5, 0.25, 0.25), ""):
        with pytest.raises(ConfigurationError, match="expected three positive whole numbers, as in 60/20/20"):
            shares_of(wrong)


def test_of_two_spellings_of_a_split_the_other_is_named_and_case_does_not_matter(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits(2, 2), val="Validation")
    layouts.write_folders(tmp_path, {"val": tiny_splits(2, 2)["val"]}, val="valid")
    assert read(tmp_path)[1] == ["val: left out the folder valid, as Validation is read"]


def test_animations_are_counted(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits(2, 2))
    frames = [np.full((12, 12, 3), grey, np.uint8) for grey in (1, 99)]
    film = saved(frames[0], "GIF", save_all=True, append_images=[layouts.Image.fromarray(frames[1])])
    layouts.put(tmp_path / "val" / "n00000020" / "film.gif", film)
    assert read(tmp_path)[1] == ["val: of 1 animated images or images of several pages the first is read"]


# --- nothing leads out of the data's folder ---


def linked_file(data, outside):
    layouts.put(outside / "secret.png", encoded(np.zeros((12, 12, 3), np.uint8)))
    (data / "val" / "n00000020" / "z.png").symlink_to(outside / "secret.png")


def linked_class(data, outside):
    linked_file(data, outside)
    (data / "val" / "n00000020" / "z.png").unlink()
    (data / "val" / "other").symlink_to(outside, target_is_directory=True)


def linked_split(data, outside):
    (data / "val").rename(outside / "val")
    (data / "val").symlink_to(outside / "val", target_is_directory=True)


@pytest.mark.parametrize("link", [linked_file, linked_class, linked_split])
def test_a_link_out_of_the_folder_is_refused_and_one_within_is_followed(tmp_path, link):
    (tmp_path / "outside").mkdir()
    layouts.write_folders(tmp_path / "data", tiny_splits(2, 2))
    (tmp_path / "data" / "val" / "n00000020" / "same.png").symlink_to("000.png")
    (tmp_path / "linked data").symlink_to(tmp_path / "data", target_is_directory=True)
    assert len(read(tmp_path / "linked data")[0].val) == 5
    link(tmp_path / "data", tmp_path / "outside")
    with pytest.raises(DataError, match=r"leads out of .*data, to .*outside.*put the files themselves there"):
        load_data(tmp_path / "data")


@pytest.mark.parametrize(
    "name",
    ["mini-ImageNet pickles", "tieredImageNet arrays", "lists of images", "prepared arrays", "parquet files"],
)
def test_files_of_every_layout_do_not_lead_out_either(tmp_path, name):
    layouts.LAYOUTS[name](tmp_path / "original", tiny_splits(2, 2))
    files = sorted(file.relative_to(tmp_path / "original") for file in (tmp_path / "original").rglob("*.*"))
    for victim in {file.suffix + file.stem[-6:]: file for file in files if "train" in str(file)}.values():
        place = tmp_path / re.sub(r"\W", " ", str(victim))
        layouts.LAYOUTS[name](place, tiny_splits(2, 2))
        (place / victim).rename(tmp_path / "away")
        (place / victim).symlink_to(tmp_path / "away")
        with pytest.raises(DataError, match="leads out of"):
            load_data(place)


def test_a_circle_of_links_ends(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits(2, 2))
    (tmp_path / "val" / "n00000020" / "again").symlink_to("..", target_is_directory=True)
    data, said = read(tmp_path)
    assert said == ["val: left out 1 a folder linked twice"]
    assert len(data.val.members[0]) == 4  # the other class, by way of the link


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("{outside}/n00000020", "lies outside the folder of the data"),
        ("../outside/n00000020", r"with \.\."),
        ("images/../../outside/n00000020", r"with \.\."),
        ("link/n00000020", "leads out of"),
    ],
)
def test_class_roots_stay_below_the_folder(tmp_path, root, message):
    layouts.write_json(tmp_path / "data", tiny_splits(2, 2))
    (tmp_path / "data" / "images" / "n00000020").rename(tmp_path / "data" / "gone")
    layouts.put(tmp_path / "outside" / "n00000020" / "a.png", encoded(np.zeros((12, 12, 3), np.uint8)))
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    content = {"class_names": ["a"], "class_roots": [root.format(outside=tmp_path / "outside")]}
    (tmp_path / "data" / "val.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "data")


# --- folders of classes without splits ---


def test_a_flat_folder_asks_for_the_split_and_gets_the_same_one_every_time(tmp_path):
    write_flat(tmp_path / "birds")
    with pytest.raises(DataError, match=r"classes without splits \(10 folders\): give --split 60/20/20"):
        load_data(tmp_path / "birds")
    first, again, other = (read(tmp_path / "birds", split=(60, 20, 20), split_seed=s)[0] for s in (0, 0, 1))
    names = [[getattr(data, split).class_names for split in SPLITS] for data in (first, again, other)]
    assert [len(part) for part in names[0]] == [6, 2, 2]
    assert names[0] == names[1] != names[2]
    assert len({name for part in names[0] for name in part}) == 10


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (["a.png"], "holds images: sort them into a folder for each class"),
        (["birds/a.png"], "holds the images of one folder, birds: give a folder for each class"),
        (
            ["train/a.png", "test/b.png"],
            "splits without classes: sort the images in test, train into folders",
        ),
        (["x/small/a.png", "y/small/b.png"], "images lie deeper: put them into the folder of their class"),
        (["notes.txt"], r"no known layout \(it holds notes.txt\)"),
    ],
)
def test_a_folder_that_is_nearly_one_of_classes_is_told_what_it_looks_like(tmp_path, places, message):
    for place in places:
        layouts.put(tmp_path / "own" / place, encoded(np.zeros((12, 12, 3), np.uint8)))
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "own")


def test_data_with_splits_take_no_other(tmp_path):
    layouts.write_folders(tmp_path, tiny_splits(2, 2))
    with pytest.raises(DataError, match="and is split already: leave out --split 60/20/20"):
        load_data(tmp_path, split=(60, 20, 20))
    with pytest.raises(DataError, match="leave the split out"):
        load_data("glyphs", split=(60, 20, 20))


@pytest.mark.parametrize("names", [("Train", "Test"), ("training", "dev", "test"), ("train", "val")])
def test_folders_with_the_names_of_splits_are_no_classes(tmp_path, names):
    for name in names:
        layouts.put(tmp_path / name / "a.png", encoded(np.zeros((8, 8, 3), np.uint8)))
    with pytest.raises(DataError, match="looks like splits without classes"):
        load_data(tmp_path, split=(60, 20, 20))


@pytest.mark.parametrize(
    ("count", "shares"), [(3, (98, 1, 1)), (7, (1, 1, 98)), (100, (60, 20, 20)), (5, (1, 98, 1))]
)
def test_every_split_gets_a_class_and_all_are_drawn_once(count, shares):
    names = [f"c{i:03d}" for i in range(count)]
    parts = drawn_classes(names, shares, 0)
    assert parts == drawn_classes(names[::-1], shares, 0)
    assert sorted(name for part in parts.values() for name in part) == names
    assert min(map(len, parts.values())) >= 1
    if count == 100:
        assert [len(part) for part in parts.values()] == [60, 20, 20]


@pytest.mark.parametrize(("names", "shares"), [("ab", (60, 20, 20)), ("abcd", (60, 40)), ("abcd", (1, 0, 1))])
def test_impossible_splits_are_refused(names, shares):
    with pytest.raises(DataError):
        drawn_classes(list(names), shares, 0)


# --- pickles under other names ---


@pytest.mark.parametrize("dumps", [python2.dumps, pickle.dumps])
@pytest.mark.parametrize("pattern", ["mini_imagenet_{}.pkl", "My{}Set.pickle", "{}-data.p"])
def test_pickles_are_known_by_their_content(tmp_path, dumps, pattern):
    splits = tiny_splits()
    layouts.write_cache(tmp_path / "cache", splits, dumps)
    layouts.write_category(tmp_path / "category", splits, dumps)
    for kind, name in (
        ("cache", "mini-imagenet-cache-{}.pkl"),
        ("category", "miniImageNet_category_split_{}.pickle"),
    ):
        for split in SPLITS:
            word = split.capitalize() if pattern.startswith("My") else split
            stored = layouts.CATEGORY[split] if kind == "category" else split
            (tmp_path / kind / name.format(stored)).rename(tmp_path / kind / pattern.format(word))
        data = load_data(tmp_path / kind)
        for split, expected in splits.items():
            assert getattr(data, split).class_names == expected.class_names
            np.testing.assert_array_equal(
                np.sort(getattr(data, split).images, 0), np.sort(expected.images, 0)
            )


def test_encoded_images_and_their_labels_are_known_by_their_content(tmp_path):
    splits = tiny_splits()
    layouts.write_png(tmp_path, splits)
    for split in SPLITS:
        (tmp_path / f"{split}_images_png.pkl").rename(tmp_path / f"tiered {split} pictures.pkl")
        (tmp_path / f"{split}_labels.pkl").rename(tmp_path / f"tiered {split} classes.pkl")
    np.testing.assert_array_equal(load_data(tmp_path).val.images, splits["val"].images)


def test_pickles_of_other_content_or_with_doubtful_names_are_not_taken(tmp_path):
    layouts.write_cache(tmp_path, tiny_splits(), pickle.dumps)
    for split in SPLITS:
        (tmp_path / f"mini-imagenet-cache-{split}.pkl").rename(tmp_path / f"a_{split}.pkl")
    (tmp_path / "b_test.pkl").write_bytes((tmp_path / "a_test.pkl").read_bytes())
    with pytest.raises(DataError, match="of which test is missing"):
        load_data(tmp_path)
    (tmp_path / "b_test.pkl").write_bytes(pickle.dumps([1, 2]))
    assert recognise(tmp_path)[0].name == "mini-ImageNet cache pickles under other names"
    assert by_content.split_named("train_phase_val") is None
    assert by_content.split_named("latest contest") is None


# --- what is there twice ---


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Robin", "robin"),
        ("robin", "robin "),
        ("\u00e9toile", unicodedata.normalize("NFD", "\u00c9toile")),
        ("ß", "SS"),
    ],
)
def test_names_that_differ_by_form_case_or_blanks_are_the_same_class(first, second):
    data = noise_data(8, 2, 2)
    parts = {
        split: ImageSplit(part.images, part.labels, (part.class_names[0], name))
        for split, part, name in (
            ("train", data.train, first),
            ("val", data.val, "c"),
            ("test", data.test, second),
        )
    }
    with pytest.raises(DataError, match="train and test share 1 classes"):
        type(data)("birds", **parts, mean=data.mean, std=data.std)


def test_copies_within_a_split_are_counted_by_class():
    split = noise_split(4, 5, 8)
    assert copies(split, image_hashes(split)).worst is None
    images = split.images.copy()
    rows = split.members
    images[rows[0][1]] = images[rows[0][2]] = images[rows[0][0]]  # two more of one, in its class
    images[rows[3][0]] = images[rows[0][0]]  # and one in another
    twice = ImageSplit(images, split.labels, split.class_names)
    found = copies(twice, image_hashes(twice))
    assert (found.images, found.within, found.across, found.worst) == (20, 2, 1, "c0")


def test_of_a_large_split_evenly_spaced_classes_are_looked_at():
    split = noise_split(8, 3, 4)
    assert sampled(split, split.images.nbytes) is split
    part = sampled(split, split.images.nbytes - 1)
    assert part.class_names == ("c0",)
    assert sampled(noise_split(40, 3, 4), 40 * 3 * 48 - 1).class_names[-1] == "c39"
    np.testing.assert_array_equal(part.images, split.images[split.members[0]])
