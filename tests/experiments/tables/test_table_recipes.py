"""What the runs of a table do: the paper's recipes for every experiment and method, and settings that are refused."""

import dataclasses

import pytest

from experiments import genotypes
from experiments.tables import paper_results, pipeline
from experiments.tables.settings import RECIPES, TABLE, Table
from mamltheory.errors import ConfigurationError


@pytest.mark.parametrize(
    ("experiment", "shots", "head", "C"),
    [
        ("mini-5", 1, "svc", 0.2),
        ("mini-5", 5, "logistic", 0.6),
        ("mini-8", 1, "svc", 0.35),
        ("mini-8", 5, "logistic", 0.4),
        ("tiered-5", 1, "svc", 0.75),
        ("tiered-5", 5, "logistic", 0.8),
        ("tiered-8", 1, "logistic", 0.95),
        ("tiered-8", 5, "logistic", 0.5),
    ],
)
def test_every_experiment_is_evaluated_as_appendix_e_has_it(experiment, shots, head, C, tmp_path):
    settings = Table(work=tmp_path, mini="M", tiered="T")
    run = next(run for run in pipeline.runs_of(settings) if run.experiment == experiment)
    chosen = pipeline.evaluate_settings(settings, run, shots)
    assert (chosen.head, chosen.C, chosen.shots) == (head, C, shots)
    assert (chosen.ways, chosen.tasks, chosen.augment, chosen.split) == (5, 1000, 5, "test")
    training = pipeline.train_settings(settings, run)
    assert training.data == chosen.data == experiment[0].upper()
    assert chosen.checkpoint == training.out
    assert training.genotype == pipeline.search_settings(settings, run).out / "genotype.json"


def test_methods_of_the_ablation_differ_in_the_search_alone(tmp_path):
    settings = Table(work=tmp_path)
    found = [run for run in pipeline.runs_of(settings) if (run.experiment, run.seed) == ("mini-5", 0)]
    searches = {run.method: pipeline.search_settings(settings, run) for run in found}
    assert [method for method, one in searches.items() if one is None] == ["random", "random-same-size"]
    assert (searches["metantk"].kernel, searches["te-nas"].kernel) == ("maml", "ntk")
    stable = pipeline.search_settings(settings, dataclasses.replace(found[0], method="metantk-stable"))
    assert (stable.protocol, stable.metric, searches["metantk"].metric) == ("stable", "harmonic", "condition")
    free = {"out", "genotype"}
    trainings = [dataclasses.asdict(pipeline.train_settings(settings, run)) for run in found]
    assert all({k for k in t if t[k] != trainings[0][k]} <= free for t in trainings)


@pytest.mark.paper("Sec. 6.1: MetaNAS retrained", "fn. 9", "Sec. 6.2: test tasks")
@pytest.mark.parametrize("experiment", ["mini-5", "mini-8", "tiered-5", "tiered-8"])
def test_the_cell_of_metanas_runs_as_the_searched_one_in_all_but_the_cell(experiment, tmp_path):
    """Three seeds each; training and evaluation on 1000 test tasks are the same."""
    settings = dataclasses.replace(TABLE["table-1"], work=tmp_path)
    runs = [run for run in pipeline.runs_of(settings) if run.experiment == experiment]
    pairs = {method: [run for run in runs if run.method == method] for method in ("metanas", "metantk")}
    assert [len({run.seed for run in pair}) for pair in pairs.values()] == [3, 3]
    cell = genotypes.published_cell(f"metanas-{experiment}")
    for ours, theirs in zip(*pairs.values(), strict=True):
        assert pipeline.cell_without_search(settings, ours) == cell.genotype
        both = [pipeline.train_settings(settings, run) for run in (ours, theirs)]
        first, second = (dataclasses.asdict(one) for one in both)
        assert {key for key in first if first[key] != second[key]} == {"genotype", "out"}
        assert both[0].cells == cell.cells
        for shots in (1, 5):
            first, second = (
                dataclasses.asdict(pipeline.evaluate_settings(settings, run, shots)) for run in (ours, theirs)
            )
            assert {key for key in first if first[key] != second[key]} == {"checkpoint", "out"}
            assert (first["tasks"], first["split"]) == (1000, "test")


def test_the_papers_rows_are_complete_and_agree_with_each_other():
    results = paper_results.PAPER_RESULTS
    assert len([r for r in results if r.table == 1]) == 11 + 7
    assert len([r for r in results if r.table == 2]) == 4 * 2
    for cells in (5, 8):
        rows = [
            r for r in results if (r.model, r.cells, r.data) == ("MetaNTK-NAS", cells, paper_results.MINI)
        ]
        assert len(rows) == 2
        assert rows[0].accuracy == rows[1].accuracy


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runs": 0}, "runs"),
        ({"methods": ("random", "random-same-size")}, "add metantk"),
        ({"methods": ("metantk", "random-te-nas-size")}, "add te-nas"),
        ({"methods": ("random", "random")}, "each once"),
        ({"experiments": ()}, "at least one"),
        ({"name": "a/b"}, "letters"),
    ],
)
def test_impossible_tables_are_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Table(**wrong)


def test_the_presets_name_their_files_apart():
    names = [settings.name for settings in TABLE.values()]
    assert len(set(names)) == len(names) == 5


def test_every_run_of_the_published_method_has_a_published_cell_of_its_own():
    settings = Table(experiments=("glyphs",), methods=("metantk-published",), runs=4, seed=5)
    found = pipeline.runs_of(settings)
    names = ["mini-5-1", "mini-5-2", "mini-5-3", "mini-5-1"]
    expected = [genotypes.published_cell(name).genotype for name in names]
    assert [pipeline.cell_without_search(settings, run) for run in found] == expected
    for name, recipe in RECIPES.items():
        assert genotypes.published_cell(f"{recipe.published}-{pipeline.PUBLISHED}").cells in (5, 8), name


@pytest.mark.parametrize("preset", ["glyphs-halving", "pictures"])
def test_halving_trains_by_the_recipe_of_the_table(preset, tmp_path):
    settings = dataclasses.replace(TABLE[preset], work=tmp_path)
    runs = {run.method: run for run in pipeline.runs_of(settings) if run.seed == 0}
    assert list(runs) == list(settings.methods)
    assert settings.runs >= 6
    for method in set(runs) & set(pipeline.KEPT):
        chosen, training = (
            f(settings, runs[method]) for f in (pipeline.search_settings, pipeline.train_settings)
        )
        same = ("data", "image_size", "channels", "cells", "stem_stride", "seed", "split", "split_seed")
        assert all(getattr(chosen, name) == getattr(training, name) for name in same)
        scales = [
            getattr(chosen, f"search_{name}") for name in ("channels", "cells", "image_size", "stem_stride")
        ]
        assert scales == [None] * 4
        assert (chosen.search_batch_size, chosen.search_learning_rate, chosen.search_milestones) == (
            training.batch_size,
            training.learning_rate,
            training.milestones,
        )
        assert (chosen.rung_epochs[-1], training.drop_path) == (training.epochs, 0.0)
        assert chosen.warm_start == ("glyphs" if method == "halving-warm" else None)
    paper = pipeline.search_settings(settings, runs["metantk-band"])
    assert (paper.method, paper.parameters, paper.two_inputs) == ("metantk-nas", "36000:42000", True)
    assert paper.data == settings.experiments[0]
    trained = [pipeline.train_settings(settings, run) for run in runs.values()]
    assert {(t.epochs, t.image_size, t.data) for t in trained} == {(12, 32, settings.experiments[0])}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"experiments": ("mini-5",), "methods": ("halving",)}, "mini-5 has no recipe"),
        (
            {"experiments": ("pictures",), "methods": ("halving-warm", "random-band")},
            "pictures has no recipe",
        ),
        ({"experiments": ("glyphs",), "methods": ("halving-retrained",)}, "add halving"),
    ],
)
def test_methods_that_an_experiment_lacks_are_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        Table(**wrong)
