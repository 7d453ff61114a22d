"""The look into a data set: its report, its sheet, its verdicts, and preparing it."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as shell
from experiments.data import check
from experiments.data.counts import fitting_defaults
from experiments.data.settings import Data
from experiments.doctor import print_environment as doctor
from experiments.settings import Doctor
from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.datasets import load_data
from mamltheory.fewshot.inspection import PUBLISHED
from tests.experiments.tiny import files
from tests.fewshot import layouts
from tests.fewshot.layouts import tiny_splits
from tests.fewshot.small import noise_data, noise_split


@pytest.fixture(autouse=True)
def drawn(monkeypatch, request):
    """The splits of which a sheet was asked for; it is really drawn only in the test of the sheet."""
    calls = []
    if "sheet" not in request.node.name:
        monkeypatch.setattr(check, "draw_splits", lambda splits, _: calls.append(set(splits)))
    return calls


def look(folder, capsys, *flags):
    """Exit code, report by line and error of the command on a folder."""
    code = shell.main(["data", "check", str(folder), "--out", str(folder.parent / "sheet"), *flags])
    told = capsys.readouterr()
    error = [line for line in told.err.splitlines() if line.startswith("error:")]
    return code, {line[:10].strip(): line[11:] for line in told.out.splitlines()}, error


def test_the_word_check_may_be_left_out(tmp_path):
    layouts.write_npz(tmp_path / "tiered", tiny_splits())
    assert shell.main(["data", str(tmp_path / "tiered"), "--out", str(tmp_path / "sheet")]) == 0


def test_a_report_names_layout_sizes_and_storage_and_draws_a_sheet(tmp_path, capsys):
    layouts.write_npz(tmp_path / "tiered", tiny_splits())
    code, report, error = look(tmp_path / "tiered", capsys, "--classes", "2", "--samples", "2")
    assert (code, error) == (0, [])
    assert report["layout"].startswith("tieredImageNet arrays")
    assert report["train"] == (
        "3 classes, 12 images (4 a class); tieredImageNet has 351 classes, 448695 images"
    )
    assert report["images"] == "12 × 12 pixels"
    assert report["memory"].startswith("none")
    assert "first − third" in report["channels"]
    assert report["shared"].startswith("0 identical")
    assert files(tmp_path / "sheet") == {f"contact_sheet.{end}" for end in ("png", "pdf", "json")}
    record = json.loads((tmp_path / "sheet" / "contact_sheet.json").read_text())
    assert record["data"]["classes"]["val"] == ["n00000020", "n00000022"]


def test_photos_of_several_sizes_are_read_as_other_commands_read_them(tmp_path, capsys):
    layouts.write_folders(tmp_path / "own", tiny_splits())
    Image.new("RGB", (40, 30)).save(next((tmp_path / "own" / "val" / "n00000021").iterdir()))
    code, report, error = look(tmp_path / "own", capsys)
    assert (code, error) == (0, [])
    assert "--image-size" in report["sizes"]
    assert report["images"] == "32 × 32 pixels"
    code, _, [error] = look(tmp_path / "own", capsys, "--prepare", str(tmp_path / "ready"))
    assert code == 2
    assert "--image-size" in error


def test_commands_that_no_counts_fit_are_named():
    data = noise_data(8, classes=3, per_class=1)
    assert fitting_defaults(data)[0].split(":")[0] == "no counts of search fit"
    few = noise_data(8, classes=3, per_class=4)
    assert "these do: search --ways 3" in fitting_defaults(few)[0]


def test_the_published_sizes_are_recognised(tmp_path, capsys, monkeypatch):
    tiny = {split: (3, 12) for split in ("train", "val", "test")}
    monkeypatch.setitem(PUBLISHED, "miniImageNet", tiny)
    layouts.write_category(tmp_path / "mini", tiny_splits(size=40))
    _, report, _ = look(tmp_path / "mini", capsys)
    assert report["val"] == "3 classes, 12 images (4 a class), as in miniImageNet"


def test_a_set_with_the_classes_of_two_public_ones_is_the_one_of_its_layout_at_any_size(
    tmp_path, capsys, monkeypatch
):
    for name in ("miniImageNet", "CIFAR-FS"):
        monkeypatch.setitem(PUBLISHED, name, {split: (3, 12) for split in ("train", "val", "test")})
    layouts.write_category(tmp_path / "cifar", tiny_splits(size=32), pattern="CIFAR_FS_{}.pickle")
    for size in ("32", "40"):
        _, report, _ = look(tmp_path / "cifar", capsys, "--image-size", size)
        assert report["val"].endswith("as in CIFAR-FS")


def test_the_embedded_characters_are_looked_into_without_a_guess_at_their_colours(monkeypatch, capsys):
    few = noise_data(8, 4, 5)
    monkeypatch.setattr(check, "load_data", lambda *_, **__: few)
    assert check.check_data(Data(image_size=8)) == 0
    report = capsys.readouterr().out
    assert "4 classes, 20 images (5 a class)" in report
    assert "drawn images, of any colour" in report


def test_classes_in_two_splits_are_refused_by_name_or_by_their_images(tmp_path, capsys):
    splits = tiny_splits()
    layouts.write_category(tmp_path / "named", splits | {"test": splits["train"]})
    code, _, error = look(tmp_path / "named", capsys)
    assert code == 2
    assert "train and test share 3 classes (such as 'n00000010')" in error[0]
    layouts.write_category(tmp_path / "nameless", splits | {"test": splits["train"]}, names=False)
    load_data(tmp_path / "nameless")
    code, report, error = look(tmp_path / "nameless", capsys)
    assert code == 2
    assert "4 images of train class 'train/0' and test class 'test/128' are identical (100%)" in error[0]
    assert "and 2 more such pairs" in error[0]
    assert "shared" not in report


def test_what_is_missing_or_damaged_is_told_after_a_report_on_the_rest(tmp_path, capsys, drawn):
    splits = tiny_splits()
    layouts.write_category(tmp_path / "mini", {"train": splits["train"], "val": splits["val"]})
    code, report, error = look(tmp_path / "mini", capsys)
    assert code == 2
    assert len(error) == 1
    assert "test is missing; expected miniImageNet_category_split" in error[0]
    assert {"train", "val"} <= set(report)
    assert drawn == [{"train", "val"}]
    layouts.write_category(tmp_path / "mini", splits)
    victim = tmp_path / "mini" / "miniImageNet_category_split_val.pickle"
    victim.write_bytes(b"<!DOCTYPE html>")
    code, report, error = look(tmp_path / "mini", capsys)
    assert code == 2
    assert "web page" in error[0]
    assert "test" in report


def test_hostile_data_are_refused_with_code_2(tmp_path, capsys, monkeypatch):
    class Payload:
        def __reduce__(self):
            return eval, ("open('HACKED', 'w')",)

    monkeypatch.chdir(tmp_path)
    layouts.write_category(tmp_path / "mini", tiny_splits())
    victim = tmp_path / "mini" / "miniImageNet_category_split_test.pickle"
    victim.write_bytes(pickle.dumps({"data": Payload(), "labels": [0]}))
    code, _, error = look(tmp_path / "mini", capsys)
    assert code == 2
    assert "eval" in error[0]
    assert not (tmp_path / "HACKED").exists()


def test_prepared_data_are_mapped_and_the_same_and_their_folder_is_not_written_over(tmp_path, capsys):
    layouts.write_png(tmp_path / "tiered", tiny_splits())
    ready = tmp_path / "ready"
    code, report, _ = look(tmp_path / "tiered", capsys, "--image-size", "8", "--prepare", str(ready))
    assert code == 0
    assert report["prepared"].endswith(f"use --data {ready}")
    expected, got = load_data(tmp_path / "tiered", image_size=8), load_data(ready, image_size=8)
    for split in layouts.SPLITS:
        assert isinstance(getattr(got, split).images, np.memmap)
        np.testing.assert_array_equal(getattr(got, split).images, getattr(expected, split).images)
    assert look(ready, capsys)[0] == 0
    code, _, error = look(tmp_path / "tiered", capsys, "--prepare", str(ready))
    assert code == 2
    assert "in use" in error[0]
    with pytest.raises(ConfigurationError):
        check.claim_folder(tmp_path / "tiered")


def warm_tiered(folder, red_first):
    """Warmer than grey, as photographs are, in the published arrays' order or in a red-first copy's."""
    splits = {
        split: dataclasses.replace(each, images=(each.images // 2 + np.array([80, 40, 0], np.uint8)))
        for split, each in tiny_splits(classes=8).items()
    }
    turned = {name: dataclasses.replace(s, images=s.images[..., ::-1]) for name, s in splits.items()}
    layouts.write_npz(folder, turned if red_first else splits)
    return splits


def test_a_copy_of_the_tiered_arrays_that_is_red_first_is_noticed_and_the_advice_mends_it(tmp_path, capsys):
    splits = warm_tiered(tmp_path / "tiered", red_first=True)
    code, report, _ = look(tmp_path / "tiered", capsys)
    assert code == 0
    assert report["channels"].startswith("blue first")
    advice = re.search(r"`data check (.*) --as-stored --prepare READY`", report["channels"])
    assert advice.group(1) == str(tmp_path / "tiered")
    _, report, _ = look(tmp_path / "tiered", capsys, "--as-stored", "--prepare", str(tmp_path / "READY"))
    assert report["channels"].startswith("red first")
    ready = load_data(tmp_path / "READY")
    np.testing.assert_array_equal(ready.train.images, splits["train"].images)
    assert look(tmp_path / "READY", capsys)[1]["channels"].startswith("red first")


def test_a_needless_as_stored_is_noticed_and_that_of_another_layout_refused(tmp_path, capsys):
    splits = warm_tiered(tmp_path / "tiered", red_first=False)
    assert look(tmp_path / "tiered", capsys)[1]["channels"].startswith("red first")
    told = look(tmp_path / "tiered", capsys, "--as-stored")[1]["channels"]
    assert told.startswith("blue first")
    assert told.endswith("without --as-stored they are converted to RGB")
    layouts.write_folders(tmp_path / "birds", splits)
    code, _, error = look(tmp_path / "birds", capsys, "--as-stored")
    assert code == 2
    assert "--as-stored is for tieredImageNet arrays" in error[0]
    turned = {name: dataclasses.replace(s, images=s.images[..., ::-1]) for name, s in splits.items()}
    layouts.write_folders(tmp_path / "cold", turned)
    assert "convert the files from BGR to RGB" in look(tmp_path / "cold", capsys)[1]["channels"]


def test_a_stopped_preparation_is_begun_again(tmp_path):
    (tmp_path / "train_images.npy").write_bytes(b"half")
    check.claim_folder(tmp_path)


def test_images_that_are_resized_fill_memory_and_the_report_says_so(tmp_path, capsys):
    layouts.write_folders(tmp_path / "birds", tiny_splits())
    _, report, _ = look(tmp_path / "birds", capsys)
    assert "decoded again by every command: --prepare FOLDER" in report["memory"]
    assert "no public set is known" in report["expected"]


def test_evenly_spaced_classes_are_shown():
    chosen = check.some_classes(noise_split(7, 5), 3, 2)
    assert chosen.class_names == ("c0", "c3", "c6")
    assert len(chosen) == 6


def test_doctor_names_the_layout_found(tmp_path, capsys):
    layouts.write_npz(tmp_path / "sets" / "tiered", tiny_splits())
    (tmp_path / "sets" / "tiered" / "val_images.npz").unlink()
    doctor(Doctor(device="cpu", data=tmp_path / "sets"))
    assert "tieredImageNet arrays in tiered: train, test, without val" in capsys.readouterr().out
    doctor(Doctor(device="cpu", data=tmp_path))
    assert "no known layout" in capsys.readouterr().out
