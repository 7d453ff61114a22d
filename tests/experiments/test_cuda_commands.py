"""The commands with --device cuda: they end as on a CPU, with the same cells and the same numbers up to rounding."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from experiments.data import loading
from experiments.search import search
from experiments.search.settings import Search
from experiments.studies import correlation, stability
from experiments.tables import table
from experiments.tables.settings import RECIPES, Recipe, Table
from experiments.training import evaluate, meta_train, predict, train
from experiments.training.settings import Predict
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas.genotype import Candidates
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.search.halving_cases import enough_images, halving_settings  # noqa: F401 - a fixture
from tests.experiments.studies.cases import correlation_settings, stability_settings
from tests.experiments.tiny import (
    SIZE,
    begun,
    evaluate_settings,
    meta_train_settings,
    train_settings,
)

DEVICES = ("cpu", "cuda")
FEW = Candidates(*((("conv_3x3", "skip_connect"), *((("max_pool_3x3BN",),) * 8)) for _ in range(2)))


def on_both(run):
    """What a command makes on the CPU and on the device."""
    return [run(device) for device in DEVICES]


@pytest.mark.usefixtures("card", "few_images")
def test_a_search_finds_the_cell_of_the_cpu(tmp_path):
    def found(device):
        settings = begun(tmp_path / device, device=device)
        search.search_cells(settings)
        return (settings.out / "genotype.json").read_bytes(), read_run(settings.out)["status"]

    here, there = on_both(found)
    assert here == there
    assert there[1] == "finished"


@pytest.mark.usefixtures("card", "few_images")
def test_a_search_keeps_the_budget_of_its_first_start(tmp_path, monkeypatch):
    """On a GPU the last bits of scores depend on the sizes of batches, and these on the budget."""
    settings, given, scores = begun(tmp_path, device="cuda"), [], search.CellScorer.scores

    def noting(scorer, *arguments):
        given.append(scorer.memory)
        return scores(scorer, *arguments)

    monkeypatch.setattr(search.CellScorer, "scores", noting)
    search.write_state(settings, dataclasses.replace(search.saved_search(settings), memory=1 << 28))
    search.search_cells(settings)
    assert set(given) == {1 << 28}
    assert read_run(settings.out)["results"]["memory"] == 1 << 28 == search.saved_search(settings).memory


@pytest.mark.slow
@pytest.mark.usefixtures("card", "enough_images")
def test_a_search_by_halving_finds_a_cell(tmp_path):
    others = {
        "rungs": (2, 1),
        "rung_epochs": (1, 2),
        "search_milestones": (1,),
        "validation_tasks": 4,
        "confirm": 1,
    }

    def found(device):
        settings = halving_settings(tmp_path / device, device=device, **others)
        search.search_cells(settings)
        return json.loads((settings.out / "search.json").read_text())

    here, there = on_both(found)
    assert here.keys() == there.keys()


@pytest.mark.usefixtures("card", "few_images")
def test_what_is_trained_is_evaluated_and_predicts_as_on_the_cpu(tmp_path, trained, few_images):
    def run(device):
        usual = {"genotype": trained.genotype, "epochs": 1, "milestones": (), "validate_every": 1}
        settings = train_settings(tmp_path / device, device=device, **usual)
        assert train.train_and_draw(settings) == 0
        evaluation = evaluate_settings(settings, tmp_path / f"evaluated-{device}", device=device)
        found = evaluate.accuracies_of(evaluate.record_evaluation(evaluation))
        return read_metrics(settings.out)[-1]["loss"], found.mean()

    here, there = on_both(run)
    assert there[0] == pytest.approx(here[0], rel=1e-2)
    assert abs(here[1] - there[1]) < 0.2

    for number in range(2):
        for place, row in (("support/class", 0), ("query", 1)):
            folder = tmp_path / "images" / (f"{place} {number}" if row == 0 else place)
            folder.mkdir(parents=True, exist_ok=True)
            image = few_images.test.images[few_images.test.members[number][row]]
            Image.fromarray(image).save(folder / f"{number}.png")

    def predicted(device):
        settings = Predict(
            checkpoint=trained.out,
            images=tmp_path / "images",
            augment=0,
            device=device,
            out=tmp_path / f"p-{device}",
        )
        assert predict.write_predictions(settings) == 0
        with (settings.out / "predictions.csv").open() as file:
            return [(line["file"], line["class"]) for line in csv.DictReader(file)]

    here, there = on_both(predicted)
    assert here == there
    assert len(there) == 2


@pytest.mark.usefixtures("card", "few_images")
def test_meta_training_has_the_losses_of_the_cpu(tmp_path):
    def losses(device):
        settings = meta_train_settings(
            tmp_path / device, device=device, steps=1, report_every=1, algorithm="maml"
        )
        assert meta_train.meta_train(settings) == 0
        return [row["loss"] for row in read_metrics(settings.out)]

    here, there = on_both(losses)
    assert there == pytest.approx(here, rel=1e-2)


@pytest.fixture
def study(monkeypatch):
    """Studies whose report only keeps what was measured."""
    data, kept = glyph_data(16, 12, 6, 6, samples_per_class=20), []
    for module in (loading, correlation, stability):
        monkeypatch.setattr(module, "cached_data", lambda *_: data)
    for module, name in ((correlation, "report_correlation"), (stability, "report_stability")):
        monkeypatch.setattr(module, name, lambda _, records: kept.append(records))
    monkeypatch.setattr(correlation, "trainings_of", lambda _: {"network-000-training-0": (0, 0)})
    repeats = {
        "exact-T1-000": ("exact", 1, 0),
        "gradient-T1-000": ("gradient", 1, 0),
        "regions-T0-000": ("regions", 0, 0),
    }
    monkeypatch.setattr(stability, "repeats_of", lambda _: repeats)
    monkeypatch.setattr(stability, "Candidates", lambda: FEW)
    monkeypatch.setattr(stability, "without_each", lambda: [FEW, FEW.without(FEW.operators()[0])])
    correlation.draw_pool.cache_clear()
    yield kept
    correlation.draw_pool.cache_clear()


def numbers(value):
    """All numbers of nested records that are no times."""
    if isinstance(value, dict):
        return [n for name, each in value.items() if "seconds" not in name for n in numbers(each)]
    if isinstance(value, list | tuple | np.ndarray):
        return [n for each in value for n in numbers(each)]
    return [float(value)] if isinstance(value, int | float | np.number) else []


@pytest.mark.usefixtures("card")
def test_a_study_of_correlation_measures_the_numbers_of_the_cpu(tmp_path, study):
    for device in DEVICES:
        settings = correlation_settings(tmp_path / device, device=device, initialisations=1, pools=1)
        assert correlation.study_correlation(settings) == 0
    here, there = map(numbers, study)
    assert len(here) == len(there) > 10
    close = np.isclose(here, there, rtol=5e-2, atol=5e-2)
    assert close.mean() > 0.8, (here, there)


@pytest.mark.slow
@pytest.mark.usefixtures("card")
def test_a_study_of_stability_measures_the_numbers_of_the_cpu(tmp_path, study):
    for device in DEVICES:
        settings = stability_settings(tmp_path / device, device=device)
        assert stability.study_stability(settings) == 0
    here, there = map(numbers, study)
    assert len(here) == len(there) > 10
    np.testing.assert_allclose(there, here, rtol=5e-2, atol=5e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("card", "few_images")
def test_a_table_makes_its_runs_on_the_device(tmp_path, monkeypatch):
    sizes = {name: value for name, value in SIZE.items() if name != "device"}

    def means(device):
        training = train_settings(tmp_path / device, epochs=1, milestones=())
        evaluation = evaluate_settings(training, tmp_path / device)
        tiny = Recipe(
            search=Search(**sizes, ways=2),
            methods=RECIPES["glyphs"].methods,
            train=training,
            evaluate={1: dataclasses.replace(evaluation, shots=1)},
            inputs="all",
            published="mini-5",
        )
        monkeypatch.setitem(RECIPES, "glyphs", tiny)
        settings = Table(
            name="tiny",
            experiments=("glyphs",),
            methods=("random",),
            runs=1,
            missing="make",
            device=device,
            work=tmp_path / device,
            out=tmp_path / device / "out",
        )
        assert table.make_table(settings) == 0
        return json.loads((settings.out / "table_tiny.json").read_text())["means"]

    here, there = on_both(means)
    assert len(here) == len(there) > 0
