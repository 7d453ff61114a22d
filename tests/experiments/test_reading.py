"""Images are read and drawn with progress when that takes long, and can be stopped while it does."""

from functools import partial

import pytest

from experiments import runs
from experiments.data import loading
from mamltheory.fewshot import glyphs
from mamltheory.fewshot.datasets import embedded_count, load_data
from mamltheory.runtime.interrupt import Interrupted, interruptible
from tests.experiments.stops import ctrl_c_during
from tests.fewshot import layouts


@pytest.fixture(autouse=True)
def _tiny_set(monkeypatch):
    sizes = {"image_size": 8, "train_classes": 3, "val_classes": 2, "test_classes": 2, "samples_per_class": 4}
    monkeypatch.setitem(glyphs.GLYPH_SETS, "glyphs-tiny", sizes)
    loading.cached_data.cache_clear()
    yield
    loading.cached_data.cache_clear()


def test_every_image_that_is_drawn_or_decoded_is_counted(tmp_path):
    counts = []
    load_data("glyphs-tiny", advance=counts.append)
    assert counts == [4] * 7
    assert embedded_count("glyphs-tiny") == 28
    assert embedded_count("glyphs-mini") == 60_000
    assert embedded_count("pictures") == 4920
    assert embedded_count("birds") is None
    layouts.write_folders(tmp_path / "birds", layouts.tiny_splits())
    counts.clear()
    load_data(tmp_path / "birds", advance=counts.append)
    assert counts == [12] * 3


def test_short_reading_is_silent_and_long_reading_says_how_to_do_it_once(monkeypatch, capsys):
    loading.cached_data("glyphs-tiny", 8)
    assert capsys.readouterr().err == ""
    loading.cached_data.cache_clear()
    monkeypatch.setattr(loading, "image_stage", partial(runs.image_stage, patience=0.0))
    loading.cached_data("glyphs-tiny", 8)
    told = capsys.readouterr().err
    assert told.startswith("draw glyphs-tiny: ")
    assert "done, 28/28" in told
    assert "`data glyphs-tiny --image-size 8 --prepare READY` does this once for all" in told


def test_what_was_read_before_it_is_shown_is_counted_as_well(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    with runs.image_stage("read", 9, patience=2.0) as advance:
        for _ in range(3):
            now[0] += 1.0
            advance(3)
    assert "done, 9/9" in capsys.readouterr().err


def test_a_process_that_does_not_lead_shows_nothing(monkeypatch, capsys):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with runs.image_stage("read", 3, patience=0.0) as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_a_stop_while_images_are_drawn_comes_after_the_next_character():
    with ctrl_c_during(glyphs, "draw_character", 3) as stopped:
        loading.cached_data("glyphs-tiny", 8)
    assert stopped.value.continue_with is None
    with interruptible():
        try:
            assert len(loading.cached_data("glyphs-tiny", 8).train) == 12
        except Interrupted:
            pytest.fail("the stop before is over")
