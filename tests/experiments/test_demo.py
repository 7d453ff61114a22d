"""The demonstration from end to end on tiny settings: its files exist, and it continues after a stop."""

import dataclasses
import json

import pytest

from experiments import demo, genotypes
from experiments.data import loading
from experiments.search import search
from experiments.settings import Demo
from experiments.theory import sweep
from experiments.training.trained import read_training
from mamltheory.fewshot import training as steps
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas.sizes import genotype_parameters
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import GENOTYPE, SIZE, begun, files

ROWS = {
    "MetaNTK-NAS, its cell": 3,
    "random, as large as that of MetaNTK-NAS": 3,
    "halving, its network": 1,
    "halving, its cell trained again": 3,
    "random, as large as that of halving": 3,
}
OF_HALVING = 3 + 2 + 1
"""Epochs of the search by halving: three cells to the first, two to the second, one to the third."""
FIGURES = [
    *(
        f"{name}_{tasks}"
        for name in ("convergence", "drift", "equivalence")
        for tasks in ("sphere", "glyphs")
    ),
    "glyphs_train",
    "glyphs_test",
    "searched_cells",
    "halving_cells",
]
HALVING = {"parameters": "6000:8000", "rungs": (3, 2, 1), "validation_tasks": 5}


@pytest.fixture(scope="module")
def few_images():
    """Glyphs of a few classes, with as many samples of each as halving needs for its tasks."""
    data, usual = glyph_data(16, 6, 6, 6, samples_per_class=16), loading.cached_data
    with pytest.MonkeyPatch.context() as patch:
        for module in (loading, search):
            patch.setattr(
                module, "cached_data", lambda *source: data if source == ("glyphs", 16) else usual(*source)
            )
        yield data


@pytest.fixture(scope="module")
def tiny_demo(few_images, tmp_path_factory):  # noqa: ARG001
    """The demonstration's settings, shrunk to seconds, in an empty folder in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("demo"))
        shrink = {
            "DEMO_THEORY": {"widths": (8, 16), "seeds": 2, "steps": 4, "dimension": 4, "task_count": 2},
            "DEMO_SEARCH": {**SIZE, "ways": 2, "tasks": 1, "repeats": 1},
            "DEMO_HALVING": {**SIZE, **HALVING},
            "DEMO_TRAIN": {**SIZE, "epochs": 3, "batch_size": 16, "milestones": (2,)},
            "DEMO_EVALUATE": {"tasks": 20, "ways": 3, "queries": 2, "augment": 1, "device": "cpu"},
        }
        for name, values in shrink.items():
            patch.setattr(demo, name, dataclasses.replace(getattr(demo, name), **values))
        patch.setattr(demo, "JOBS", 1)
        patch.setattr(demo, "SIZE_DRAWS", 300)
        yield Demo()


def plant_search(settings):
    """A search that has nearly come to its end: the whole one takes minutes."""
    recipe = dataclasses.replace(
        demo.DEMO_SEARCH, seed=settings.seed, out=demo.work_folder(settings) / "search"
    )
    begun(recipe.out, **{k: getattr(recipe, k) for k in ("ways", "tasks", "repeats", "seed", "outputs")})


@pytest.fixture(scope="module")
def shown(tiny_demo):
    """The folder, and how often the demonstration trained what, when it was stopped twice and went on."""
    plant_search(tiny_demo)
    stops = []
    for module, name, call in ((sweep, "measure_training", 3), (steps, "train_epoch", OF_HALVING + 5)):
        with ctrl_c_during(module, name, call) as stopped:
            demo.run_demo(tiny_demo)
        stops.append(stopped.value.continue_with)
    with counted(steps, "train_epoch") as epochs, counted(sweep, "measure_training") as measured:
        assert demo.run_demo(tiny_demo) == 0
    return stops, len(epochs), len(measured)


@pytest.mark.slow
def test_the_demonstration_leaves_every_figure_it_names_and_the_table(shown, tiny_demo):
    names = {f"{name}.{end}" for name in FIGURES for end in ("png", "pdf", "json")}
    assert files(tiny_demo.out) == names | {"demo_table.md", "demo_table.json"}
    assert len(shown[0]) == 2


@pytest.mark.slow
def test_the_table_has_a_row_for_every_kind_of_network_and_compares_with_random_cells_of_its_size(
    shown,  # noqa: ARG001
    tiny_demo,
):
    lines = (tiny_demo.out / "demo_table.md").read_text().splitlines()
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["cells", *ROWS]
    assert all(len(row) == len(rows[0]) for row in rows)
    content = json.loads((tiny_demo.out / "demo_table.json").read_text())
    assert set(content["search_cpu_seconds"]) == {"MetaNTK-NAS", "halving"}
    means = {}
    for row, record in zip(rows[1:], content["rows"], strict=True):
        found = record["accuracy"]["1-shot"]
        assert int(row[1]) == ROWS[row[0]] == len(found) == len(record["parameters"])
        means[row[0]] = sum(found) / len(found)
        assert row[3].split(" (")[0] == f"{100 * means[row[0]]:.1f}"
        assert all(0 <= each <= 1 for each in found)
    for record in content["rows"]:
        name = record["cell"]
        if name.startswith("random"):
            assert record["gain"] == {}
            continue
        control = f"random, as large as that of {name.split(',')[0]}"
        assert record["gain"]["1-shot"]["mean"] == pytest.approx(means[name] - means[control])
        assert record["gain"]["1-shot"]["half_width"] > 0
        sizes = next(each["parameters"] for each in content["rows"] if each["cell"] == control)
        assert all(abs(size - record["parameters"][0]) <= 0.05 * record["parameters"][0] for size in sizes)
    assert "cannot show that the method finds better ones" in lines[-1]


@pytest.mark.slow
def test_a_stopped_demonstration_goes_on_by_its_own_command_and_repeats_nothing(shown, tiny_demo):
    stops, epochs, measured = shown
    again = f"python -m experiments demo --seed 0 --budget 10 --out {tiny_demo.out}"
    assert stops == [again, again]
    assert measured == 0
    trainings = sum(ROWS.values()) - 1
    assert epochs == trainings * 3 - 4  # the fifth was left after a step, and finished


@pytest.mark.slow
def test_every_training_of_the_demonstration_can_be_taken_up_alone(shown, tiny_demo):  # noqa: ARG001
    names = ["MetaNTK-NAS-0", "MetaNTK-NAS-random-2", "halving-1", "halving-3", "halving-random-0"]
    for name in names:
        folder = demo.work_folder(tiny_demo) / name
        record = read_run(folder)
        assert record["status"] == "finished"
        assert record["config"]["genotype"] == str(folder / "genotype.json")
        training = read_training(folder)
        assert genotypes.read_genotype(training.settings.genotype) == training.genotype


def test_another_budget_is_other_work_in_another_folder():
    assert (
        demo.work_folder(Demo(budget=10))
        != demo.work_folder(Demo(budget=5))
        != demo.work_folder(Demo(seed=1, budget=5))
    )
    assert demo.scaled(Demo(budget=5), 8, 2) == 4
    assert demo.scaled(Demo(budget=0.1), 8, 2) == 2


def test_found_cells_and_random_cells_of_their_size_are_trained_with_the_same_seeds(
    few_images,  # noqa: ARG001
    tmp_path,
    monkeypatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "DEMO_TRAIN", dataclasses.replace(demo.DEMO_TRAIN, **SIZE))
    monkeypatch.setattr(demo, "SIZE_DRAWS", 200)
    size = genotypes.network_size(demo.DEMO_TRAIN, 6)
    for name, kept in (("MetaNTK-NAS", 0), ("halving", 1)):
        found = demo.Found(GENOTYPE, tmp_path / "search", 1.0)
        networks = demo.networks_of(Demo(), name, found)
        assert len({network.folder for network in networks}) == len(networks) == 6 + kept
        assert [network.training is None for network in networks] == [True] * kept + [False] * 6
        trained, random = networks[kept : kept + 3], networks[kept + 3 :]
        assert {network.training[0] for network in trained} == {GENOTYPE}
        cells = [network.training[0] for network in random]
        assert len({str(cell) for cell in [*cells, GENOTYPE]}) == 4
        counts = [genotype_parameters(cell, size) for cell in [GENOTYPE, *cells]]
        assert all(abs(count - counts[0]) <= 0.05 * counts[0] for count in counts)
        seeds = [[network.training[1].seed for network in group] for group in (trained, random)]
        assert seeds[0][: 3 - kept] == seeds[1][kept:]
        assert all(len(set(each)) == 3 for each in seeds)


@pytest.mark.parametrize("budget", [0.01, 1, 2, 3, 4, 5, 7, 7.5, 10, 12, 40])
def test_every_budget_gives_trainings_and_rungs_that_their_settings_allow(budget):
    recipe, chosen = demo.demo_recipe(Demo(budget=budget)), demo.halving_search(Demo(budget=budget))
    assert max(recipe.milestones) < recipe.epochs == chosen.rung_epochs[-1]
    assert (chosen.search_batch_size, chosen.search_learning_rate, chosen.search_milestones) == (
        recipe.batch_size,
        recipe.learning_rate,
        recipe.milestones,
    )
    same = ("data", "image_size", "channels", "cells", "stem_stride", "seed")
    assert all(getattr(chosen, name) == getattr(recipe, name) for name in same)
    assert demo.paper_search(Demo(budget=budget)).repeats >= 1
