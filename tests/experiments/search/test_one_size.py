"""Bands of parameters, cells that a table proposes, and refusals in one line before a run folder is opened."""

import json

import numpy as np
import pytest

from experiments import genotypes
from experiments.__main__ import resolve
from experiments.data import loading
from experiments.search import halving, one_size, search
from mamltheory import nas
from mamltheory.errors import CheckpointError, ConfigurationError, GenotypeError
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas import short_trainings
from mamltheory.nas.algorithms.halving import Rung
from mamltheory.nas.algorithms.surrogate import operation_counts
from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.short_trainings import questions, ranking_tasks
from mamltheory.nas.sizes import Band, genotype_parameters, usual_band
from mamltheory.rng import generator
from mamltheory.runtime.runlog import read_run
from tests.experiments.search.halving_cases import BAND, enough_images, halving_settings  # noqa: F401 - a fixture
from tests.experiments.tiny import GENOTYPE, search_settings
from tests.fewshot.small import noise_data

pytestmark = pytest.mark.usefixtures("enough_images")
SIZE = NetworkSettings(4, 3, 6, 4)


def refused(settings, match, error=ConfigurationError):
    """A mistake is one line, and the run folder is not there."""
    with pytest.raises(error, match=match) as caught:
        search.search_cells(settings)
    assert "\n" not in str(caught.value)
    assert not settings.out.exists()


def forms(cells):
    return {all(len(node) == 2 for node in cell.normal.nodes) for cell in cells}


# --- the band ---


def test_candidates_lie_in_the_band_are_different_and_depend_on_the_seed_alone(tmp_path):
    cells = one_size.candidates_of(halving_settings(tmp_path, rungs=(12, 2)))
    assert len({*cells}) == 12
    assert all(genotype_parameters(cell, SIZE) in Band(5000, 8000) for cell in cells)
    assert forms(cells) == {True}
    assert one_size.candidates_of(halving_settings(tmp_path / "other", rungs=(12, 2))) == cells
    assert one_size.candidates_of(halving_settings(tmp_path, rungs=(4, 2))) == cells[:4]
    assert not {*one_size.candidates_of(halving_settings(tmp_path, rungs=(12, 2), seed=1))} & {*cells}


@pytest.mark.parametrize("form", ["two", "all"])
def test_a_genotype_file_names_its_form_and_its_size_within_eight_percent(tmp_path, form):
    genotype = random_genotype(generator(1, "like this"), form)
    genotypes.write_genotype(tmp_path / "cell.json", genotype)
    settings = halving_settings(tmp_path / "run", parameters=str(tmp_path / "cell.json"))
    cells, target = one_size.candidates_of(settings), genotype_parameters(genotype, SIZE)
    assert forms(cells) == {form == "two"}
    sizes = [genotype_parameters(cell, SIZE) for cell in cells]
    assert all(abs(size - target) <= 0.08 * target + 1 for size in sizes)


def test_without_parameters_halving_takes_the_median_size_of_random_cells_and_says_and_records_it(
    tmp_path,
    capsys,
    enough_images,  # noqa: F811
):
    settings = halving_settings(tmp_path / "run", parameters=None, confirm=0)
    assert search.search_and_draw(settings) == 0
    said, band = capsys.readouterr().out, usual_band(SIZE, settings.seed)
    assert f"cells of {band.least:,} to {band.most:,} parameters; --parameters chooses others\n" in said
    assert read_run(settings.out)["config"]["parameters"] == str(band)
    written = json.loads((settings.out / "search.json").read_text())
    assert written["config"]["parameters"] == str(band)
    assert written["parameters"] in band
    assert search.search_and_draw(settings) == 0, "the same command takes up its run"
    assert "already finished" in capsys.readouterr().out
    lines = []
    rungs = (Rung(4, 1), Rung(2, 3, "loss"))
    found = nas.search(enough_images, "halving", size=SIZE, rungs=rungs, progress=lines.append)
    assert lines[0] == f"cells of {band.least:,} to {band.most:,} parameters; parameters chooses others"
    assert genotype_parameters(found.genotype, SIZE) in band


def test_bands_that_cannot_be_searched_are_one_line(tmp_path, monkeypatch):
    run = tmp_path / "run"
    refused(halving_settings(run, parameters="90000:95000"), "have from 1402 to 21754; choose a band there")
    refused(halving_settings(run, parameters="no/cell.json"), "cannot read no/cell.json", GenotypeError)
    for text in ("5000", "8000:5000", "a:b"):
        with pytest.raises(ConfigurationError, match="expected the fewest and the most, as in 36000:42000"):
            halving_settings(run, parameters=text)
    monkeypatch.setattr(short_trainings, "random_genotype_within", lambda *_, **__: GENOTYPE)
    refused(
        halving_settings(run), "only 1 different cells with 5000:8000 parameters were found, and 4 are needed"
    )


@pytest.mark.parametrize(
    ("others", "match"),
    [
        ({"rungs": (4, 4)}, r"rungs is \(4, 4\): expected fewer cells in every rung"),
        ({"rungs": (4, 0)}, "expected fewer cells in every rung"),
        ({"rungs": (4,)}, "differ in length: give each one value per rung"),
        ({"rank_by": ("loss",)}, "one value per rung$"),
        ({"rung_epochs": (3, 3)}, "expected more epochs in every rung"),
        ({"confirm": 3}, "confirm is 3: expected at most the 2 cells of the last rung"),
        ({"search_milestones": (3,)}, r"\[3\] lie outside the 3 epochs: give --search-milestones, or"),
        ({"search_milestones": (2, 1)}, "give increasing epochs, each once"),
        ({"search_learning_rate": 0.0}, "search_learning_rate is 0.0: expected a positive finite number"),
        ({"search_cells": 2}, "search_cells"),
        ({"search_channels": 0}, "search_channels"),
        ({"search_image_size": 7}, "search_image_size"),
        ({"search_stem_stride": 3}, "search_stem_stride is 3: expected 1, 2 or 4"),
        ({"then_train": "mini-6"}, "then_train is 'mini-6': expected one of glyph-smoke"),
        ({"proposals": 3, "warm_start": "glyphs"}, "proposals is 3: the first rung takes 4"),
        (
            {"method": "metantk-nas"},
            "metantk-nas does not use confirm, anyway: leave that out, or choose halving",
        ),
        ({"method": "te-nas", "confirm": 0, "anyway": False}, "method te-nas takes no --parameters"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_made(tmp_path, others, match):
    with pytest.raises(ConfigurationError, match=match):
        halving_settings(tmp_path, **others)


def test_data_that_cannot_rank_cells_are_one_line(tmp_path, monkeypatch):
    run = tmp_path / "run"
    refused(
        halving_settings(run, search_batch_size=97),
        "search_batch_size is 97, and there are 96 training images; these values fit: --search-batch-size 96",
    )
    for counts, samples, match in (
        ((6, 1, 6), 16, "ways is 2, and there is 1 validation class; give data with more"),
        ((6, 6, 1), 16, "there is 1 test class"),
        (
            (40, 2, 2),
            1,
            r"shots \+ queries is 1 \+ 1, and the validation class .* has 1 image; .* test class",
        ),
    ):
        data = glyph_data(16, *counts, samples_per_class=samples)
        monkeypatch.setattr(loading, "cached_data", lambda *_, data=data: data)
        refused(halving_settings(run), match)


def test_cells_are_ranked_by_smaller_tasks_where_data_have_fewer_classes_or_images(tmp_path, monkeypatch):
    data = glyph_data(16, 6, 3, 2, samples_per_class=12)
    monkeypatch.setattr(loading, "cached_data", lambda *_: data)
    assert len(halving.checked_candidates(halving_settings(tmp_path, search_batch_size=72))) == 4
    (task,) = ranking_tasks(data, "val", 0, tasks=1)
    assert (task.support.shape, task.query.shape, questions(data, "test")) == ((3, 1), (3, 11), 22)


# --- a table proposes ---

TABLED = {"data": "glyphs", "split": None, "split_seed": 0, "image_size": 16, "inputs": "two"}
TABLED |= {"channels": 4, "cells": 3, "stem_stride": 4, "parameters": BAND}


def worth(genotype):
    """What makes a cell good in the planted table: its convolutions of 3 × 3."""
    return float(operation_counts(genotype)[[2, 9]].sum())


def table_file(folder, **others):
    """A table in which accuracy is a linear function of the operations, and one training that diverged."""
    random, cells = generator(2, "table"), []
    for number in range(24):
        genotype, diverged = random_genotype(random, "two"), number == 23
        training = {
            **{"training": 0, "factor": 1, "parameters": 6000, "macs": 1, "diverged": diverged},
            **{"epoch": [], "loss": [], "train_accuracy": [], "val": {}, "test": {}, "cpu_seconds": []},
        }
        accuracy = {} if diverged else {"accuracy": {"1": 0.5 + 0.02 * worth(genotype)}}
        scores = {"scores": {}, "scoring_cpu_seconds": 1.0}
        cells.append({"genotype": genotype.to_json(), "trainings": [training | accuracy], **scores})
    path = folder / "table.json"
    path.write_text(json.dumps({"settings": TABLED | others, "cells": cells}))
    return str(path)


def test_a_warm_start_trains_the_best_predicted_cells_and_compares_with_random_ones(tmp_path):
    settings = halving_settings(tmp_path, warm_start=table_file(tmp_path), proposals=60)
    cells = one_size.candidates_of(settings)
    drawn = one_size.random_cells(settings, 60, "halving candidates")
    assert len(cells) == 4 + 2
    values = np.array([worth(cell) for cell in drawn])
    assert min(worth(cell) for cell in cells[:4]) >= np.sort(values)[-6]
    assert [worth(cell) for cell in cells[:4]] == sorted([worth(cell) for cell in cells[:4]], reverse=True)
    assert cells[4:] == drawn[:2]
    assert [*one_size.controls_of(settings)] == [4, 5]
    assert [*one_size.controls_of(halving_settings(tmp_path))] == [0, 1]


def test_a_table_of_other_settings_is_one_line_that_says_what_differs(tmp_path):
    run = tmp_path / "run"
    for others, match in (
        ({"channels": 8, "image_size": 32}, r"image_size \(32 there, 16 now\), channels \(8 there, 4 now\)"),
        ({"data": "pictures"}, r"data \('pictures' there, 'glyphs' now\); give one that `tabulate` made"),
        ({"cells": 5}, r"cells \(5 there, 3 now\)"),
        ({"inputs": "all"}, r"inputs \('all' there, 'two' now\)"),
        ({"parameters": "9000:9500"}, r"parameters \(9000:9500 there, 5000:8000 now\)"),
    ):
        refused(halving_settings(run, warm_start=table_file(tmp_path, **others)), match)
    table = table_file(tmp_path, channels=2, parameters="1000:1500")
    small = halving_settings(run, search_channels=2, proposals=8, warm_start=table)
    assert len(halving.checked_candidates(small)) == 6, "at other scales the bands are not comparable"
    refused(
        halving_settings(run, warm_start=str(tmp_path / "none.json")),
        "cannot read the table",
        CheckpointError,
    )


def test_the_papers_method_draws_cells_of_two_inputs_unless_it_is_told_otherwise(tmp_path):
    usual = {"parameters": "6000:9000", "samples": 3}
    two = search_settings(tmp_path, **usual).resolved()
    assert two.two_inputs is True
    assert forms(one_size.random_cells(two, 3, "cells")) == {True}
    every = search_settings(tmp_path, **usual, two_inputs=False).resolved()
    assert forms(one_size.random_cells(every, 3, "cells")) == {False}
    assert search_settings(tmp_path).resolved().two_inputs is False


def test_fewer_rungs_need_no_other_flags_than_the_message_names():
    common = ["--method", "halving", "--parameters", "5000:8000"]
    with pytest.raises(ConfigurationError, match="one value per rung, as in --rungs 32 8") as caught:
        resolve("search", [*common, "--rung-epochs", "2", "8"])
    found = resolve("search", [*common, *str(caught.value).split(" as in ")[1].split()])
    assert (found.rungs, found.rung_epochs, found.rank_by) == ((32, 8), (2, 8), ("accuracy", "loss"))
    assert found.search_milestones == short_trainings.recipe(noise_data(), 8, 0).milestones == (7,)
    flag = "give --milestones 6 8$"
    with pytest.raises(ConfigurationError, match=flag):
        resolve("train", ["--epochs", "10"])
    assert resolve("train", ["--epochs", "10", *flag.rstrip("$").split()[1:]]).milestones == (6, 8)
