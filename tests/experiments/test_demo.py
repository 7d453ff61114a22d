"""The demonstration from end to end on tiny settings: its files exist, and it continues after a stop."""

import dataclasses
import json

import pytest

from experiments import demo, genotypes
from experiments.settings import Demo
from experiments.theory import sweep
from experiments.training import train
from experiments.training.settings import Train
from experiments.training.trained import read_training
from mamltheory.errors import ConfigurationError
from mamltheory.nas.sizes import genotype_parameters
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import GENOTYPE, SIZE, begun, files

CELLS = ["searched", "random 1", "random 2", "same size 1", "same size 2"]
FIGURES = [
    *(
        f"{name}_{tasks}"
        for name in ("convergence", "drift", "equivalence")
        for tasks in ("sphere", "glyphs")
    ),
    "glyphs_train",
    "glyphs_test",
    "searched_cells",
]


@pytest.fixture(scope="module")
def tiny_demo(few_images, tmp_path_factory):  # noqa: ARG001
    """The demonstration's settings, shrunk to seconds, in an empty folder in one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("demo"))
        shrink = {
            "DEMO_THEORY": {"widths": (8, 16), "seeds": 2, "steps": 4, "dimension": 4, "task_count": 2},
            "DEMO_SEARCH": {**SIZE, "ways": 2, "tasks": 1, "repeats": 1},
            "DEMO_TRAIN": {**SIZE, "epochs": 4, "batch_size": 16, "milestones": (2, 3)},
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
    for module, name, call in ((sweep, "measure_training", 3), (train, "train_epoch", 6)):
        with ctrl_c_during(module, name, call) as stopped:
            demo.run_demo(tiny_demo)
        stops.append(stopped.value.continue_with)
    with counted(train, "train_epoch") as epochs, counted(sweep, "measure_training") as measured:
        assert demo.run_demo(tiny_demo) == 0
    return stops, len(epochs), len(measured)


@pytest.mark.slow
def test_the_demonstration_leaves_every_figure_it_names_and_the_table(shown, tiny_demo):
    names = {f"{name}.{end}" for name in FIGURES for end in ("png", "pdf", "json")}
    assert files(tiny_demo.out) == names | {"demo_table.md", "demo_table.json"}
    assert len(shown[0]) == 2


@pytest.mark.slow
def test_the_table_has_a_row_for_every_cell(shown, tiny_demo):  # noqa: ARG001
    lines = (tiny_demo.out / "demo_table.md").read_text().splitlines()
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["cell", *CELLS]
    assert all(len(row) == len(rows[0]) for row in rows)
    content = json.loads((tiny_demo.out / "demo_table.json").read_text())
    assert [row["cell"] for row in content["rows"]] == CELLS
    for row, record in zip(rows[1:], content["rows"], strict=True):
        assert int(row[1]) == record["parameters"] > 0
        for text, shots in zip(row[2:4], ("1-shot", "5-shot"), strict=True):
            interval = record["accuracy"][shots]
            assert text == f"{100 * interval['mean']:.1f} ± {100 * interval['half_width']:.1f}"
            assert 0 < interval["mean"] <= 1
    sizes = [int(row[1]) for row in rows[1:]]
    assert all(abs(size - sizes[0]) <= 0.05 * sizes[0] for size in sizes[3:])
    assert rows[1][4] == ""
    difference = (
        content["rows"][0]["accuracy"]["5-shot"]["mean"] - content["rows"][1]["accuracy"]["5-shot"]["mean"]
    )
    assert float(rows[2][4].split(" ±")[0]) == pytest.approx(100 * difference, abs=0.051)


@pytest.mark.slow
def test_a_stopped_demonstration_goes_on_by_its_own_command_and_repeats_nothing(shown, tiny_demo):
    stops, epochs, measured = shown
    again = f"python -m experiments demo --seed 0 --budget 10 --out {tiny_demo.out}"
    assert stops == [again, again]
    assert measured == 0
    assert epochs == len(CELLS) * 4 - 5  # the sixth was left after a step, and finished


@pytest.mark.slow
def test_every_training_of_the_demonstration_can_be_taken_up_alone(shown, tiny_demo):  # noqa: ARG001
    for name in CELLS:
        folder = demo.work_folder(tiny_demo) / name.replace(" ", "-")
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


def test_random_cells_of_the_same_size_are_compared_as_well(few_images, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr(demo, "DEMO_TRAIN", dataclasses.replace(demo.DEMO_TRAIN, **SIZE))
    monkeypatch.setattr(demo, "SIZE_DRAWS", 200)
    cells = demo.cells_to_compare(Demo(), GENOTYPE)
    assert list(cells) == CELLS
    assert len(set(map(str, cells.values()))) == len(CELLS)
    size = genotypes.network_size(demo.DEMO_TRAIN, 6)
    counts = [genotype_parameters(cell, size) for cell in cells.values()]
    assert all(abs(count - counts[0]) <= 0.05 * counts[0] for count in counts[3:])


@pytest.mark.parametrize("budget", [0.01, 1, 3, 7, 10, 40])
def test_every_budget_gives_a_training_that_its_settings_allow(budget, monkeypatch):
    seen = []

    def pretend(_, training):
        seen.append(training[2])
        raise ConfigurationError("seen enough")

    monkeypatch.setattr(demo, "train_and_evaluate", pretend)
    monkeypatch.setattr(demo, "JOBS", 1)
    monkeypatch.setattr(demo, "write_genotype", lambda *_: None)
    monkeypatch.setattr(demo, "cells_to_compare", lambda *_: {"searched": None})
    with pytest.raises(ConfigurationError, match="seen enough"):
        demo.compare(Demo(budget=budget), None)
    assert isinstance(seen[0], Train)
    assert max(seen[0].milestones) < seen[0].epochs
