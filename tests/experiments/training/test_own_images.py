"""Commands on images as people have them: flat folders, copies, odd names, links, phone photos."""

import csv
import dataclasses
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from experiments import __main__ as shell
from experiments import genotypes
from experiments.data import check, loading
from experiments.data.loading import cached_data
from experiments.data.settings import Data
from experiments.search.settings import Search
from experiments.training import evaluate, predict, train
from experiments.training.settings import MetaTrain, Predict, Train
from experiments.training.trained import read_training
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.formats import Options
from mamltheory.fewshot.formats.prepared import write_prepared
from mamltheory.fewshot.images import ImageSplit
from mamltheory.runtime.records import plain, to_json
from mamltheory.runtime.runlog import differences, read_run
from tests.experiments.tiny import GENOTYPE, evaluate_settings, train_settings
from tests.fewshot import layouts
from tests.fewshot.layouts import SPLITS, encoded, tiny_splits
from tests.fewshot.pictures import phone_photo
from tests.fewshot.small import noise_split

UNSAFE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def write_flat(folder, content):
    for row, (image, label) in enumerate(zip(content.images, content.labels, strict=True)):
        layouts.put(folder / content.class_names[label] / f"{row:03d}.png", encoded(image))


@pytest.fixture
def flat(tmp_path):
    write_flat(tmp_path / "birds", noise_split(12, 8, 16))
    return tmp_path / "birds"


# --- --split ---


def test_a_flat_folder_is_split_alike_in_every_command_and_the_split_is_recorded(flat, tmp_path, capsys):
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    usual = {"genotype": tmp_path / "cell.json", "data": str(flat)}
    with pytest.raises(DataError, match="give --split 60/20/20"):
        train.train_and_draw(train_settings(tmp_path / "no", **usual))
    settings = train_settings(
        tmp_path / "train", **usual, split="50/25/25", split_seed=3, seed=5, epochs=1, milestones=()
    )
    train.train_and_draw(settings)
    record = read_run(settings.out)["config"]
    assert (record["split"], record["split_seed"]) == ("50/25/25", 3)
    test = dataclasses.replace(evaluate_settings(settings, tmp_path / "evaluate"), data=str(flat))
    assert evaluate.print_evaluation(test) == 0
    here = loading.data_of(settings)
    assert [len(getattr(here, split).class_names) for split in SPLITS] == [6, 3, 3]
    meta = MetaTrain(data=str(flat), class_split="50/25/25", split_seed=3, image_size=16)
    assert cached_data(*loading.source_in(meta)) is here
    flags = ["--split", "50/25/25", "--split-seed", "3", "--prepare", str(tmp_path / "READY")]
    assert shell.main(["data", "check", str(flat), "--out", str(tmp_path / "sheet"), *flags]) == 0
    assert cached_data(str(tmp_path / "READY"), 16).test.class_names == here.test.class_names
    assert shell.main(["data", "check", str(flat), "--out", str(tmp_path / "sheet")]) == 2
    assert "give --split 60/20/20" in capsys.readouterr().err


@pytest.mark.parametrize(
    "split", ["60/40", "60/20/0", "60/20/-20", "a/b/c", "60/20/20/5", "", "0.6/0.2/0.2", "1/2/²"]
)
def test_what_is_no_split_is_refused_with_an_example(split):
    for kind, name in ((Train, "split"), (Data, "split"), (MetaTrain, "class_split")):
        with pytest.raises(ConfigurationError, match="expected three positive whole numbers, as in 60/20/20"):
            kind(**{name: split})


# --- --no-mirrors ---


def test_folders_of_characters_are_mirrored_by_no_command_once_the_training_was_told(flat, tmp_path, capsys):
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    usual = {"genotype": tmp_path / "cell.json", "data": str(flat), "split": "50/25/25", "epochs": 1}
    settings = train_settings(tmp_path / "train", **usual, milestones=(), mirrors=False)
    assert not train.train_config(settings, loading.data_of(settings)).flip
    train.train_and_draw(settings)
    training = read_training(settings.out)
    assert not training.inputs.mirrors
    for place in (None, str(flat)):
        test = evaluate_settings(settings, tmp_path / f"evaluate-{place is None}", data=place)
        assert not evaluate.evaluation_config(test, training.data(place)).flip
    assert loading.data_of(dataclasses.replace(settings, mirrors=None)).mirrors
    assert cached_data(*loading.source_in(settings)) is loading.data_of(settings)
    ready = str(tmp_path / "READY")
    line = ["data", "check", str(flat), "--split", "50/25/25", "--out", str(tmp_path / "sheet")]
    assert shell.main(line) == 0
    assert "training: yes; --no-mirrors if these are characters\n" in capsys.readouterr().out
    assert shell.main([*line, "--no-mirrors", "--prepare", ready]) == 0
    told = capsys.readouterr().out
    assert "mirrored images in training: no\n" in told
    assert "of drawn images" in told
    assert not cached_data(ready, 16).mirrors
    assert shell.main(["data", "check", ready, "--mirrors", "--out", str(tmp_path / "sheet")]) == 2
    assert "was prepared as images of characters" in capsys.readouterr().err


def test_mirrors_that_contradict_embedded_images_are_refused(tmp_path, capsys):
    for name, flag in (("glyphs", "--mirrors"), ("pictures", "--no-mirrors")):
        assert shell.main(["data", name, flag, "--out", str(tmp_path)]) == 2
        assert f"and a mirrored image of {name} shows" in capsys.readouterr().err
    with pytest.raises(DataError, match="shows another class: leave it out"):
        loading.data_of(Train(mirrors=True, image_size=16))


def test_a_training_of_before_the_setting_continues_unless_it_is_given(flat, tmp_path):
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    usual = {"genotype": tmp_path / "cell.json", "data": str(flat), "split": "50/25/25", "epochs": 1}
    settings = train_settings(tmp_path / "train", **usual, milestones=())
    train.train_and_draw(settings)
    record = read_run(settings.out)
    assert record["config"].pop("mirrors") is None
    (settings.out / "run.json").write_text(to_json(record))
    assert "mirrors" not in read_run(settings.out)["config"]
    assert read_training(settings.out).settings == settings
    assert train.train_and_draw(settings) == 0
    with pytest.raises(ConfigurationError, match=r"other settings: mirrors \(None there, no now\)"):
        train.train_and_draw(dataclasses.replace(settings, mirrors=False))
    begun = {key: value for key, value in vars(Search().resolved()).items() if key != "mirrors"}
    assert differences(plain(begun), Search().resolved(), (), Search().before()) == ""


# --- what a training tells the commands after it ---


def test_an_evaluation_needs_no_more_than_the_training_and_the_flags_that_it_prints(flat, tmp_path, capsys):
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    common = [
        "--genotype",
        str(tmp_path / "cell.json"),
        "--epochs",
        "1",
        "--milestones",
        "--image-size",
        "16",
    ]
    common += ["--channels", "4", "--cells", "3", "--stem-stride", "4", "--device", "cpu"]
    run, other = tmp_path / "train", tmp_path / "evaluate"
    data = ["--data", str(flat), "--split", "50/25/25"]
    assert shell.main(["train", *data, *common, "--out", str(run), "--batch-size", "65"]) == 2
    told = capsys.readouterr().err
    assert "batch_size is 65, and there are 48 training images; these values fit: --batch-size 48\n" in told
    assert not run.exists()
    assert shell.main(["train", *data, *common, "--out", str(run), "--batch-size", "48"]) == 0
    flags = capsys.readouterr().out.splitlines()[-1].split(" evaluate ")[1].split()
    assert flags == ["--checkpoint", str(run), "--ways", "3", "--queries", "3"]
    few = ["--tasks", "3", "--augment", "1", "--out", str(other)]
    assert shell.main(["evaluate", *flags[:2], *few]) == 2
    assert "--ways 3 --queries 3\n" in capsys.readouterr().err
    assert shell.main(["evaluate", *flags, *few]) == 0
    assert read_run(other)["config"]["data"] == str(flat)
    flat.rename(tmp_path / "moved")
    cached_data.cache_clear()
    result = capsys.readouterr().out
    assert shell.main(["evaluate", *flags, *few]) == 2
    told = capsys.readouterr().err
    assert f"was trained on the images in {flat}, which cannot be read from here (there is no folder" in told
    assert told.endswith("name their folder with --data\n")
    few[-1] = str(tmp_path / "again")
    assert shell.main(["evaluate", *flags, *few, "--data", str(tmp_path / "moved")]) == 0
    assert capsys.readouterr().out == result


def test_a_prepared_copy_of_a_flat_folder_is_not_split_again(flat, tmp_path, capsys):
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    settings = train_settings(
        tmp_path / "train",
        genotype=tmp_path / "cell.json",
        data=str(flat),
        split="50/25/25",
        epochs=1,
        milestones=(),
    )
    train.train_and_draw(settings)
    write_prepared(loading.data_of(settings), _made(tmp_path / "READY"), Options())
    evaluate.print_evaluation(evaluate_settings(settings, tmp_path / "evaluate"))
    usual = capsys.readouterr().out.splitlines()[-1]
    evaluate.print_evaluation(evaluate_settings(settings, tmp_path / "other", data=str(tmp_path / "READY")))
    assert capsys.readouterr().out.splitlines() == [usual]


def _made(folder):
    folder.mkdir()
    return folder


def test_the_check_names_the_flags_with_which_each_command_fits_small_data(flat, tmp_path, capsys):
    assert (
        shell.main(["data", "check", str(flat), "--split", "50/25/25", "--out", str(tmp_path / "sheet")]) == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("small")]
    assert [line.split(": ", 1)[1] for line in lines] == [
        "search --method halving --search-batch-size 48",
        "train --batch-size 48",
        "meta-train --ways 3 --tasks 2",
        "evaluate --ways 3 --queries 3",
    ]


# --- copies and what is left out ---


def with_copies(split):
    images = split.images.copy()
    images[split.members[0][1]] = images[split.members[0][0]]
    images[split.members[2][1]] = images[split.members[1][0]]
    return ImageSplit(images, split.labels, split.class_names)


@pytest.mark.parametrize("write", [layouts.write_folders, layouts.write_arrays, layouts.write_category])
def test_copies_within_a_split_are_said_by_the_check_and_once_by_commands(
    tmp_path, capsys, monkeypatch, write
):
    monkeypatch.setattr(check, "draw_splits", lambda *_: None)
    splits = tiny_splits()
    write(tmp_path / "set", splits | {"test": with_copies(splits["test"])})
    assert shell.main(["data", "check", str(tmp_path / "set")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("copies"))
    told = "test: 2 of 12 images are copies of others (1 in the same class, 1 under another class; most in 'n0000"
    assert told in line
    for _ in range(2):
        cached_data(str(tmp_path / "set"), 12)
    warned = capsys.readouterr().err
    assert warned.count("warning:") == 1
    assert told in warned


def test_what_is_left_out_is_in_the_report_and_warned_of(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "draw_splits", lambda *_: None)
    layouts.write_folders(tmp_path / "birds", tiny_splits())
    layouts.put(tmp_path / "birds" / "train" / "n00000010" / "notes.txt", b"")
    layouts.put(tmp_path / "birds" / "train" / ".ipynb_checkpoints" / "a.png", b"")
    assert shell.main(["data", "check", str(tmp_path / "birds")]) == 0
    expected = "train: left out 1 .txt, 1 hidden or system: .ipynb_checkpoints"
    assert f"left out   {expected}\n" in capsys.readouterr().out
    cached_data(str(tmp_path / "birds"), 12)
    assert capsys.readouterr().err == f"warning: {expected}\n"


# --- names ---

ODD = ["esc \x1b[31m.png", "line\nend.png", "tab\t.png", "right\u202eto left.png", b"latin \xe9.png"]


def test_names_never_reach_the_terminal_raw(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "draw_splits", lambda *_: None)
    layouts.write_folders(tmp_path / "birds", tiny_splits())
    place = tmp_path / "birds" / "val" / "n00000020"
    for name in ODD:
        (place / os.fsdecode(name)).with_suffix(".x\x1b[2J").write_bytes(b"")
        place.rename(place.with_name(os.fsdecode(name)))
        place = place.with_name(os.fsdecode(name))
        assert shell.main(["data", "check", str(tmp_path / "birds")]) == 0
        cached_data.cache_clear()
        cached_data(str(tmp_path / "birds"), 12)
        (place / os.fsdecode(name)).write_bytes(b"no image")
        assert shell.main(["data", "check", str(tmp_path / "birds")]) == 2
        (place / os.fsdecode(name)).unlink()
        told = capsys.readouterr()
        assert not UNSAFE.search(told.out + told.err)
        (told.out + told.err).encode()
        assert told.err.splitlines()[-1].startswith("error: ")


def test_a_sheet_of_classes_with_odd_names_is_drawn(tmp_path):
    layouts.write_folders(tmp_path / "birds", tiny_splits())
    for old, new in zip(
        sorted((tmp_path / "birds" / "val").iterdir()), [b"\xe9", b"$\\x$ 1", b"\x1b[1m"], strict=True
    ):
        old.rename(old.with_name(os.fsdecode(new)))
    settings = Data(path=str(tmp_path / "birds"), out=tmp_path / "sheet")
    assert check.check_data(settings) == 0
    classes = json.loads((tmp_path / "sheet" / "contact_sheet.json").read_text())["data"]["classes"]["val"]
    assert classes == ["\x1b[1m", "$\\x$ 1", "\\udce9"]


def test_a_record_holds_names_that_are_no_text_and_gives_them_back():
    name = os.fsdecode(b"latin \xe9")
    assert json.loads(to_json({"images": name}).encode().decode()) == {"images": name}


# --- predict ---


@pytest.fixture
def folder(tmp_path, few_images):
    for number in range(3):
        rows = few_images.test.members[number]
        for place, chosen in ((f"support/c{number}", rows[:4]), ("query", rows[4:8])):
            for row in chosen:
                layouts.put(tmp_path / place / f"{number}-{row}.png", encoded(few_images.test.images[row]))
    return tmp_path


def settings_of(trained, folder, name="run"):
    return Predict(checkpoint=trained.out, images=folder, augment=0, device="cpu", out=folder / name)


def table(settings):
    with (settings.out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_predictions_of_phone_photos_are_those_of_upright_ones(trained, folder):
    predict.write_predictions(settings_of(trained, folder))
    for number, file in enumerate(sorted((folder / "query").iterdir())):
        file.write_bytes(phone_photo(np.asarray(Image.open(file).convert("RGB")), number % 8 + 1))
    predict.write_predictions(settings_of(trained, folder, "again"))
    assert table(settings_of(trained, folder)) == table(settings_of(trained, folder, "again"))


def test_odd_names_end_no_prediction_and_begin_no_formula(trained, folder, capsys):
    formulas = ["=1+1.png", "+a.png", "-b.png", "@c.png", "\td.png", "\re.png", " =f.png", "＝g.png"]
    files = sorted((folder / "query").iterdir())
    for file, name in zip(files, formulas + ODD[:4], strict=True):
        file.rename(file.with_name(name))
    (folder / "query" / ODD[1]).rename(folder / "query" / os.fsdecode(ODD[4]))
    (folder / "support" / "c0").rename(folder / "support" / os.fsdecode(b"=\xe9\x1b[0m"))
    settings = settings_of(trained, folder)
    assert predict.write_predictions(settings) == 0
    rows = table(settings)[1:]
    assert len(rows) == 12
    assert not any(cell.lstrip()[:1] in tuple("=+-@\t\r＝") for row in rows for cell in row[:2])
    assert {"'=1+1.png", "latin \\xe9.png", "\\td.png", "esc \\x1b[31m.png"} <= {row[0] for row in rows}
    told = capsys.readouterr()
    assert not UNSAFE.search(told.out + told.err + (settings.out / "predictions.csv").read_text("utf-8"))
    assert "=\\xe9\\x1b[0m: " in told.out
    assert read_run(settings.out)["results"]["summary"] == told.out.splitlines()[:-1]


def test_images_at_a_path_that_is_no_text_are_predicted(trained, folder):
    odd = folder / os.fsdecode(b"\xe9")
    odd.mkdir()
    for part in ("support", "query"):
        (folder / part).rename(odd / part)
    assert predict.write_predictions(settings_of(trained, odd)) == 0


@pytest.mark.timeout(60)
def test_nested_images_are_read_others_counted_and_repeated_ones_named(trained, folder, capsys):
    query = folder / "query"
    (query / "more").mkdir()
    moved = sorted(query.glob("*.png"))[0]
    moved.rename(query / "more" / moved.name)
    os.mkfifo(query / "pipe.png")
    for name in (
        "query/@eaDir/x.png",
        "support/.ipynb_checkpoints/a.png",
        "query/a.heic",
        "support/c0/.DS_Store",
    ):
        layouts.put(folder / name, b"")
    first = sorted((folder / "support" / "c0").glob("*.png"))[0]
    (query / "zz.png").write_bytes(first.read_bytes())
    settings = settings_of(trained, folder)
    predict.write_predictions(settings)
    assert f"more/{moved.name}" in {row[0] for row in table(settings)}
    told = capsys.readouterr().out
    assert "5 other files were left out: 1 .heic, 1 hidden or system: .DS_Store, " in told
    assert "1 no regular files" in told
    assert "1 query images are identical to labelled ones" in told


def test_a_link_out_of_the_images_is_refused(trained, folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("elsewhere")
    layouts.put(place / "secret.png", encoded(np.zeros((9, 9, 3), np.uint8)))
    (folder / "query" / "z.png").symlink_to(place / "secret.png")
    with pytest.raises(DataError, match="leads out of"):
        predict.write_predictions(settings_of(trained, folder))
