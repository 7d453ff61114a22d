import unicodedata

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.fewshot import glyphs
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.glyph_shapes import (
    LOOK_ALIKE,
    SCRIPTS,
    distinct_characters,
    faces_of,
    likeness,
    shapes_of,
)
from mamltheory.fewshot.glyphs import (
    GLYPH_SETS,
    choose_characters,
    contact_sheet,
    draw_character,
    glyph_data,
    named_glyphs,
)


@pytest.fixture(scope="module")
def data():
    return glyph_data(train_classes=8, val_classes=6, test_classes=7, samples_per_class=20, seed=3)


def test_the_data_have_the_requested_sizes_and_no_two_images_alike(data):
    assert [len(s.class_names) for s in (data.train, data.val, data.test)] == [8, 6, 7]
    assert data.train.images.shape == (160, 32, 32, 3)
    everything = np.concatenate([s.images.reshape(len(s), -1) for s in (data.train, data.val, data.test)])
    assert len(np.unique(everything, axis=0)) == len(everything)
    assert not data.mirrors


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(data):
    again = glyph_data(train_classes=8, val_classes=6, test_classes=7, samples_per_class=20, seed=3)
    np.testing.assert_array_equal(again.train.images, data.train.images)
    assert again.test.class_names == data.test.class_names
    other = glyph_data(train_classes=8, val_classes=6, test_classes=7, samples_per_class=20, seed=4)
    assert other.train.class_names != data.train.class_names


def test_a_class_looks_the_same_whatever_other_classes_were_drawn(data):
    more = glyph_data(train_classes=12, val_classes=6, test_classes=7, samples_per_class=20, seed=3)
    assert more.train.class_names[:8] == data.train.class_names
    np.testing.assert_array_equal(more.train.images[:160], data.train.images)


def test_the_splits_are_scripts():
    for split, blocks in SCRIPTS.items():
        assert all(any(a <= code <= b for a, b in blocks.values()) for code in distinct_characters(split))
    names = [unicodedata.name(chr(code)) for code in distinct_characters("test")]
    assert not any(name.startswith(("LATIN CAPITAL", "LATIN SMALL", "CYRILLIC", "DIGIT")) for name in names)


def test_no_two_characters_of_any_split_look_alike():
    codes = [code for split in SCRIPTS for code in distinct_characters(split)]
    alike = likeness(codes)
    np.fill_diagonal(alike, 0)
    assert alike.max() <= LOOK_ALIKE
    assert not any({ord(a), ord(b)} <= set(codes) for a, b in ("vV", "sS", "SՏ", "éê", "EF", "3З"))
    # Greek capitals that repeat Latin ones are gone from the test classes, as is Armenian ո for Latin n.
    assert not {ord(c) for c in "ΑΒΕΗΚΜΝΟΡΤΧո"} & set(distinct_characters("test"))


def test_every_class_has_at_least_six_faces_that_are_not_placeholders():
    for split in SCRIPTS:
        codes = choose_characters(split, 20, 0)
        assert all(len(faces_of(code)) >= 6 for code in codes)
        # Symbols may have one shape in several faces; most characters have not.
        assert np.mean([len(np.unique(shapes_of(code), axis=0)) for code in codes]) >= 5
    assert not any("LastResort" in face or "STIXSiz" in face for face in faces_of(ord("A")))


def test_cyrillic_italics_which_have_other_shapes_are_left_out():
    assert not any("Italic" in face or "Oblique" in face for face in faces_of(ord("и")))
    assert any("Italic" in face for face in faces_of(ord("a")))


def test_the_character_is_seen_against_its_background():
    images = draw_character(ord("A"), 32, 24, 0).astype(float).mean(3)
    assert (images.std((1, 2)) > 10).all()
    assert 0.2 < (images.mean((1, 2)) > 127).mean() < 0.8  # both polarities occur


def test_a_class_is_nearer_to_itself_than_chance_so_that_there_is_something_to_learn(data):
    grey = data.test.images.astype(float).mean(3)
    flat = np.abs(grey - np.median(grey, axis=(1, 2))[:, None, None]).reshape(len(grey), -1)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    alike = flat @ flat.T
    np.fill_diagonal(alike, -1)
    hits = (data.test.labels[alike.argmax(1)] == data.test.labels).mean()
    assert hits > 3 / 7


@pytest.mark.parametrize("size", [9, 32])
def test_how_many_images_are_drawn_at_once_changes_no_pixel(size, monkeypatch):
    usual = draw_character(ord("A"), size, 40, 0)
    for at_once in (7, 40):
        monkeypatch.setattr(glyphs, "AT_ONCE", at_once)
        np.testing.assert_array_equal(draw_character(ord("A"), size, 40, 0), usual)


def test_too_many_classes_and_impossible_sizes_are_refused():
    with pytest.raises(ConfigurationError, match="ask for fewer"):
        choose_characters("val", 5000, 0)
    with pytest.raises(ConfigurationError, match="8 pixels"):
        glyph_data(image_size=4)


def test_the_contact_sheet_shows_classes_as_rows_and_samples_as_columns(data):
    sheet = contact_sheet(data.val, classes=4, samples=5, gap=1)
    assert sheet.shape == (4 * 33 - 1, 5 * 33 - 1, 3)
    np.testing.assert_array_equal(sheet[33:65, 66:98], data.val.images[data.val.members[1][2]])
    assert (sheet[32] == 255).all()


def test_the_stand_in_for_miniimagenet_has_its_classes_its_samples_and_its_size(monkeypatch):
    assert GLYPH_SETS["glyphs-mini"] == {
        "image_size": 84,
        "train_classes": 64,
        "val_classes": 16,
        "test_classes": 20,
        "samples_per_class": 600,
    }
    monkeypatch.setitem(GLYPH_SETS["glyphs-mini"], "samples_per_class", 1)
    data = load_data("glyphs-mini")
    assert data.name == "glyphs-mini"
    assert [s.images.shape for s in (data.train, data.val, data.test)] == [
        (n, 84, 84, 3) for n in (64, 16, 20)
    ]
    assert load_data("glyphs-mini", image_size=16).train.images.shape == (64, 16, 16, 3)
    with pytest.raises(ConfigurationError, match="glyphs, glyphs-mini"):
        named_glyphs("glyphs-maxi")


def test_glyphs_are_loaded_by_name():
    data = load_data("glyphs", image_size=16)
    assert data.name == "glyphs"
    assert data.train.images.shape == (96 * 30, 16, 16, 3)
