"""``make figures``: the commands that it runs are those that the committed figures say they were made by."""

import json
import re
import shlex
from pathlib import Path

import pytest

from experiments import __main__ as shell
from experiments.commands import COMMANDS
from experiments.demo import DEMO_SEARCH, DEMO_THEORY, halving_search, paper_search
from experiments.runs import without_paths
from experiments.search.settings import Search
from mamltheory.runtime.folders import check_results_folder
from mamltheory.runtime.records import plain

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "figures"


def commands():
    """(command, settings) of every line of the target that runs an experiment."""
    recipe = re.search(r"^figures:.*?(?=^\S)", (ROOT / "Makefile").read_text(), re.M | re.S).group()
    lines = re.sub(r"\\\n|\$\(if[^\n]*\)", " ", recipe).splitlines()
    words = [line.split()[1:] for line in lines if line.strip().startswith("$(RUN)")]
    return [(name, shell.resolve(name, flags)) for name, *flags in words]


MADE = commands()


def settings_of(name, out):
    """The settings of the command that leaves its figure in this folder."""
    found = [settings for command, settings in MADE if (command, settings.out) == (name, Path(out))]
    assert len(found) == 1, (name, out)
    return found[0]


def config(path, part=""):
    return json.loads((FIGURES / path).read_text())[part or "config"]


def recorded(settings):
    return plain(without_paths(settings))


@pytest.mark.parametrize("name", ["bounds", "lipschitz", "plateau", "ensemble", "laziness"])
def test_the_figures_of_the_theory_are_those_of_the_commands(name):
    kept = {k: v for k, v in recorded(settings_of(name, "figures")).items() if k != "runs"}
    assert config(f"{name}_sphere.json") == kept


@pytest.mark.parametrize("name", ["convergence", "drift", "equivalence"])
def test_the_figures_of_wide_networks_are_those_of_the_preset_and_the_others_the_demonstrations(name):
    kept = {k: v for k, v in recorded(settings_of(name, "figures/wide")).items() if k != "runs"}
    assert config(f"wide/{name}_sphere.json") == kept
    assert settings_of("demo", "figures").seed == 0
    for tasks in ("sphere", "glyphs"):
        found = config(f"{name}_{tasks}.json")
        assert {k: found[k] for k in ("widths", "seeds", "steps")} == {
            k: plain(getattr(DEMO_THEORY, k)) for k in ("widths", "seeds", "steps")
        }


@pytest.mark.parametrize(
    ("name", "out", "file"),
    [
        ("correlation", "figures", "correlation.json"),
        ("correlation", "figures/glyph-quick", "glyph-quick/correlation.json"),
        ("stability", "figures", "stability.json"),
        ("stability", "figures/glyph-48", "glyph-48/stability.json"),
        ("stability", "runs/stability-glyph-5", "glyph-5/stability.json"),
    ],
)
def test_the_figures_of_the_studies_are_those_of_the_presets(name, out, file):
    kept, found = recorded(settings_of(name, out)), config(file)
    assert {k: v for k, v in kept.items() if k in found} == found


def test_the_search_the_table_and_the_benchmarks_are_those_of_the_commands():
    searched = {**Search.RETIRED, **recorded(settings_of("search", "runs/glyph-5/search").resolved())}
    found = config("glyph-5/cells.json")
    assert {k: v for k, v in searched.items() if k in found} == found
    assert {k: v for k, v in recorded(DEMO_SEARCH.resolved()).items() if k in ("channels", "cells")} == {
        k: config("searched_cells.json")[k] for k in ("channels", "cells")
    }
    made = {settings.name: recorded(settings) for name, settings in MADE if name == "table"}
    contents = [json.loads(path.read_text()) for path in FIGURES.glob("table_*.json")]
    tables = [content["settings"] for content in contents if "settings" in content]
    assert "glyphs" in {table["name"] for table in tables}
    for table in tables:
        same = ("name", "experiments", "runs", "seed")
        assert {k: made[table["name"]][k] for k in same} == {k: table[k] for k in same}
        assert set(table["methods"]) <= set(made[table["name"]]["methods"])
    for benchmark in (settings for name, settings in MADE if name == "benchmark"):
        found = config(f"{benchmark.name}_{benchmark.device}.json")
        assert found == {k: plain(getattr(benchmark, k)) for k in found}


def rows_of_the_gallery():
    """(figure, command) of every figure in the gallery that a command of the program makes."""
    for line in (FIGURES / "README.md").read_text(encoding="utf-8").splitlines():
        shown = re.findall(r"(?:href=\"|\]\()([^\")]+)\.png", line)
        made = re.findall(r"`([^`]+)`", line.split("|")[-2]) if shown else []
        assert len(made) in (len(shown), 0) or made == ["make ledger"], line
        for figure, command in zip(shown, made, strict=False):
            if command.split()[0] in COMMANDS:
                yield figure, command


GALLERY = dict(rows_of_the_gallery())


def settings_behind(figure, command):
    """The settings with which this command makes this figure."""
    name, *flags = shlex.split(command)
    settings = shell.resolve(name, flags)
    if name == "demo":
        settings = {"searched_cells": paper_search, "halving_cells": halving_search}[figure](settings)
    if isinstance(settings, Search):
        return {**Search.RETIRED, **recorded(settings.resolved())}
    return recorded(settings)


@pytest.mark.parametrize("figure", GALLERY)
def test_the_command_of_a_row_of_the_gallery_has_the_settings_of_the_figure(figure):
    made = settings_behind(figure, GALLERY[figure])
    found = config(
        {"protocols_figure": "protocols"}.get(figure, figure) + ".json", "size" * ("protocols" in figure)
    )
    if isinstance(found.get("table"), dict):  # the figure has the settings of the table's cells as well
        found = found | {"table": found["table"]["data"]}
    known = found.keys() & made.keys() - {"out", "runs", "work", "jobs"}
    assert len(known) >= min(2, len(made))
    assert {key: found[key] for key in known} == {key: made[key] for key in known}


def test_the_picture_of_the_front_page_is_drawn_after_what_it_is_drawn_from():
    recipe = (ROOT / "Makefile").read_text().split("\nfigures:")[1]
    assert 0 < recipe.index("demo --out figures") < recipe.index("-m experiments.theory.front_page figures")


def test_the_gallery_has_commands_for_the_figures_of_the_program():
    assert GALLERY.keys() >= {"convergence_sphere", "wide/drift_sphere", "glyph-5/trace", "benchmark_cpu"}


def test_every_committed_figure_has_a_command_and_no_command_writes_there_by_default():
    assert {name for name, _ in MADE} >= {"demo", "protocols", "table", "benchmark", "search"}
    for name, command in COMMANDS.items():
        for settings in (command.settings(), *command.presets.values()):
            places = [getattr(settings, key, None) for key in command.folders]
            assert not [each for each in places if isinstance(each, Path) and each.parts[0] != "runs"], name


def test_the_folders_of_committed_figures_are_open_to_the_commands_that_draw():
    for out in {settings.out for name, settings in MADE if COMMANDS[name].results}:
        check_results_folder(ROOT / out, "drift")
