"""Tables of cells of one size: searches and random cells within a band of parameters, trained alike, run by run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from experiments import genotypes
from experiments.data import loading
from experiments.search import search
from experiments.tables import pipeline, results, sheets, table
from experiments.tables.settings import CELLS, ONE_SIZE, RECIPES, Recipe, Table
from experiments.training.evaluate import accuracies_of
from mamltheory.fewshot import training as steps
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.fewshot.statistics import compare_runs
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import SIZE, evaluate_settings, files, train_settings

RUNS, BAND = 2, (6000, 8000)


pytestmark = pytest.mark.slow  # three searches, nine trainings


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A table of tiny networks with real searches, stopped once; settings, and epochs and searches after the stop."""
    data, usual = glyph_data(16, 6, 6, 6, samples_per_class=16), loading.cached_data
    folder = tmp_path_factory.mktemp("one-size")
    sizes = {name: value for name, value in SIZE.items() if name != "device"}
    band = f"{BAND[0]}:{BAND[1]}"
    halving = {"method": "halving", "parameters": band, "rungs": (3, 2), "rung_epochs": (1, 2)}
    halving |= {"rank_by": ("accuracy", "loss"), "search_batch_size": 32, "search_milestones": (1,)}
    halving |= {"validation_tasks": 5, "anyway": True}
    changes = {"epochs": 2, "batch_size": 32, "milestones": (1,), "learning_rate": 0.1, "drop_path": 0.0}
    training = train_settings(folder, **changes)
    evaluation = evaluate_settings(training, folder, tasks=4)
    sampled = {"parameters": band, "samples": 3, "two_inputs": True, "repeats": 1}
    tiny = Recipe(
        search=dataclasses.replace(RECIPES["glyphs"].search, **sizes, ways=2, tasks=1),
        # A warm start without its table is halving itself, to the last bit.
        methods={"halving": halving, "halving-warm": halving, "metantk-band": sampled},
        train=training,
        evaluate={shots: dataclasses.replace(evaluation, shots=shots) for shots in (1, 5)},
        inputs="all",
        published="mini-5",
        band=band,
    )
    places = {"work": folder, "out": folder / "out", "device": "cpu", "missing": "make"}
    settings = Table(name="tiny", experiments=("glyphs",), methods=ONE_SIZE, runs=RUNS, **places)
    with pytest.MonkeyPatch.context() as patch:
        for module in (loading, search):
            patch.setattr(
                module, "cached_data", lambda *source: data if source == ("glyphs", 16) else usual(*source)
            )
        patch.setitem(RECIPES, "glyphs", tiny)
        with ctrl_c_during(pipeline, "record_evaluation", 3):
            table.make_table(settings)
        with counted(steps, "train_epoch") as epochs, counted(search, "search_cells") as searches:
            assert table.make_table(settings) == 0
        yield settings, len(epochs), len(searches)


@pytest.fixture
def record(study):
    """The numbers of the table."""
    return json.loads((study[0].out / "table_tiny.json").read_text())


def runs_by_method(settings):
    found = {}
    for run in pipeline.runs_of(settings):
        found.setdefault(run.method, []).append(run)
    return found


def accuracies(run, shots=5):
    return accuracies_of(read_run(run.folder / f"evaluate-{shots}-shot")["results"])


def test_a_stopped_table_searches_and_trains_nothing_twice(study):
    settings, epochs, searches = study
    retrained, sampled, random = 1, 1, CELLS["random-band"]
    whole = 2 * (retrained + sampled + random) * RUNS
    of_halving = 2 * (3 + 2)  # by two searches: three cells to the first epoch, and two of them to the second
    assert searches == 3  # those of the second seed: the first one's were finished before the stop
    assert whole + of_halving - 2 * (retrained + 1) <= epochs <= whole + of_halving
    with (
        counted(steps, "train_epoch") as again,
        counted(search, "search_cells") as searched,
        counted(pipeline, "record_evaluation") as evaluated,
    ):
        table.make_table(settings)
    assert (again, searched, evaluated) == ([], [], [])


def test_the_network_that_halving_kept_is_evaluated_and_its_cell_is_trained_from_other_weights(study):
    found = runs_by_method(study[0])
    for kept, retrained in zip(found["halving"], found["halving-retrained"], strict=True):
        place = kept.folder / "search" / "train"
        assert not (kept.folder / "train").exists()
        training = pipeline.train_settings(study[0], kept)
        assert training.out == place
        assert read_run(kept.folder / "evaluate-1-shot")["config"]["checkpoint"] == str(place)
        other = pipeline.train_settings(study[0], retrained)
        assert read_run(place)["config"]["seed"] == training.seed == kept.seed
        assert read_run(other.out)["config"]["seed"] == other.seed != kept.seed
        assert other.genotype == training.genotype == kept.folder / "search" / "genotype.json"
        weights = [read_run(r.folder / "evaluate-1-shot")["results"]["weights"] for r in (kept, retrained)]
        assert weights[0] != weights[1]


def test_all_cells_have_two_inputs_and_a_size_within_the_band_and_random_ones_differ(study, record):
    assert all(BAND[0] <= run["parameters"] <= BAND[1] for run in record["runs"])
    assert len(record["runs"]) == RUNS * (len(ONE_SIZE) - 1 + CELLS["random-band"])
    found = runs_by_method(study[0])
    cells = {method: [genotypes.read_genotype(r.genotype) for r in runs] for method, runs in found.items()}
    assert all(len(node) == 2 for each in cells.values() for cell in each for node in cell.normal.nodes)
    assert len(set(cells["random-band"])) == RUNS * CELLS["random-band"]


def test_the_mean_of_the_random_cells_of_a_run_is_one_sample(study, record):
    found = runs_by_method(study[0])
    control = {seed: [r for r in found["random-band"] if r.seed == seed] for seed in range(RUNS)}
    means = [np.mean([accuracies(run) for run in runs], axis=0) for runs in control.values()]
    shown = {(c["of"], c["minus"]): c["result"] for c in record["comparisons"] if c["shots"] == 5}
    assert set(shown) == {
        ("halving", "random-band"),
        ("halving-retrained", "random-band"),
        ("halving-warm", "random-band"),
        ("metantk-band", "random-band"),
        ("halving-warm", "halving"),
    }
    for method in ("halving", "halving-retrained", "metantk-band"):
        expected = compare_runs([accuracies(run) for run in found[method]], means)
        result = shown[method, "random-band"]
        assert result["differences"] == list(expected.differences)
        assert result["p_value"] == expected.p_value
        test = stats.ttest_1samp(expected.differences, 0)
        assert result["t_p_value"] == pytest.approx(test.pvalue)
    (mean,) = [m for m in record["means"] if (m["method"], m["shots"]) == ("random-band", 5)]
    assert mean["per_cent"]["runs"] == RUNS
    assert mean["per_cent"]["mean"] == pytest.approx(100 * np.mean(means))
    assert len(mean["sources"]) == RUNS * CELLS["random-band"]


def test_two_searches_of_one_seed_find_the_same_bits(record):
    (result,) = [c["result"] for c in record["comparisons"] if (c["minus"], c["shots"]) == ("halving", 5)]
    assert result["differences"] == [0.0] * RUNS
    assert (result["p_value"], result["t_p_value"]) == (1.0, 1.0)
    weights = {(run["method"], run["seed"]): run["accuracy"]["1-shot"]["weights"] for run in record["runs"]}
    for seed in range(RUNS):
        assert weights["halving", seed] == weights["halving-warm", seed]


def test_the_table_and_its_figure_show_every_method(study, record):
    settings = study[0]
    text = (settings.out / "table_tiny.md").read_text()
    assert text.startswith("**Cells of one size on glyphs: 3 cells of 4 channels, 5-way**")
    for method in ONE_SIZE:
        assert f"| {sheets.NAMES[method]} |" in text
    assert text.count(f"| {sheets.NAMES['random-band']} | 0, cell ") == CELLS["random-band"]
    assert "Is a search better than random cells of its size? Does a warm start help?" in text
    assert "6000 to 8000 parameters" in text
    name = "table_tiny_glyphs_differences"
    kinds = {f"table_tiny{end}" for end in (".md", ".tex", ".csv", ".json")}
    assert files(settings.out) == kinds | {f"{name}.{end}" for end in ("png", "pdf", "json")}
    drawn = json.loads((settings.out / f"{name}.json").read_text())["data"]["differences"]
    known = {(c["of"], c["shots"]): c["result"] for c in record["comparisons"] if c["minus"] == "random-band"}
    assert {(each["method"], each["shots"]) for each in drawn} == set(known)
    for each in drawn:
        assert each["differences"] == known[each["method"], each["shots"]]["differences"]


def test_a_run_that_lacks_one_of_its_random_cells_is_no_sample(study, tmp_path):
    shutil.copytree(study[0].work, tmp_path / "work")
    settings = dataclasses.replace(study[0], work=tmp_path / "work", out=tmp_path, missing="show")
    shutil.rmtree(tmp_path / "work/glyphs/random-band/seed-1/cell-2/evaluate-5-shot")
    found = results.collect_results(settings)
    assert list(found.by_seed("glyphs", "random-band", 5)) == [0]
    assert found.comparison("glyphs", "halving", "random-band", 5) is None
    assert found.accuracy("glyphs", "random-band", 5).runs == 1
    assert found.accuracy("glyphs", "random-band", 1).runs == RUNS
