"""The tutorials run cell by cell, print the numbers that their text quotes, and name commands that exist."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from experiments.commands import COMMANDS

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
NAMES = ("theory", "score", "folder", "own")
MOST_LINES = 130
SMALL = {
    "folder": """
classes, images, side = 6, 16, 12
channels, parameters = 2, (2_000, 4_000)
rungs, epochs, tasks = ((2, 1), (1, 2)), 3, 4
""",
    "own": "count, channels = 8, 2",
}
"""What takes the place of the cell tagged ``sizes`` in the fast test, by page."""


def cells(name: str, sizes: str | None = None) -> list[str]:
    """The code of a page, without notebook commands and tags, and with other ``sizes`` if given."""
    found = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", page(name), flags=re.DOTALL | re.MULTILINE)
    if sizes is not None:
        assert sum(":tags: [sizes]" in cell for cell in found) == 1
        found = [sizes if ":tags: [sizes]" in cell else cell for cell in found]
    return [re.sub(r"^[%:].*$", "", cell, flags=re.MULTILINE) for cell in found]


def page(name: str) -> str:
    """The text of a tutorial."""
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def executed(name: str, sizes: str | None = None) -> dict[str, object]:
    """The names that the cells of a page leave, run one after the other."""
    names: dict[str, object] = {"__name__": name}
    for number, cell in enumerate(cells(name, sizes)):
        exec(compile(cell, f"{name}.md, cell {number}", "exec"), names)
    return names


def quoted(name: str) -> list[str]:
    """The numbers in the text of a page, which stand between backticks."""
    text = re.sub(r"^```.*?^```", "", page(name), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([−-]?\d[^`]*)`", text)


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_run_and_print_the_numbers_of_the_text(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    executed(name, SMALL.get(name))
    said = capsys.readouterr().out
    assert name in SMALL or quoted(name)
    for number in [] if name in SMALL else quoted(name):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", said), (number, said)


@pytest.mark.slow
def test_the_searched_network_learns_what_the_text_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = executed("folder")
    untrained, searched, trained = (each.mean for each in names["accuracy"].values())
    assert 0.2 < untrained < searched - 0.05 < trained - 0.15
    assert names["right"] > 0.4 * len(names["asked"])


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_short(name):
    assert len(page(name).splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_that_a_page_names_exist(name):
    for line in re.findall(r"python -m experiments ((?:\\\n|[^`\n])+)", page(name)):
        command, *rest = shlex.split(line.replace("\\\n", " "), comments=True)
        assert command in COMMANDS, line
        fields = dataclasses.fields(COMMANDS[command].settings)
        flags = {flag for flag in rest if flag.startswith("--")}
        assert flags <= {f"--{field.name.replace('_', '-')}" for field in fields} | {"--preset"}, line


def test_every_tutorial_is_among_those_that_are_tested():
    assert {path.stem for path in PAGES.glob("*.md")} == set(NAMES)
