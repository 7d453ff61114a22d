"""The documents' code runs, their commands and files exist, and their numbers are those of the files they link to."""

import re
from pathlib import Path

import pytest

from experiments.commands import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "experiments/README.md",
        "figures/README.md",
        "mamltheory/README.md",
    )
}
FRONT, COMMAND_PAGE = DOCUMENTS["README.md"], DOCUMENTS["experiments/README.md"]


@pytest.mark.filterwarnings("default")
def test_the_code_blocks_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    for name in ("README.md", "mamltheory/README.md"):
        for block in re.findall(r"```python\n(.*?)```", DOCUMENTS[name], flags=re.DOTALL):
            exec(compile(block, name, "exec"), names)
    said = capsys.readouterr().out
    scores = re.search(r"```text\n(.*?)```", FRONT, flags=re.DOTALL).group(1)
    assert said.startswith(scores)
    assert "tensor" in said.removeprefix(scores)
    assert float((names["run"].observations[-1].test_outputs - names["closed"].test).abs().max()) < 0.1


def test_the_table_of_commands_is_complete():
    listed = re.findall(r"^\| `([a-z-]+)` \|", COMMAND_PAGE, flags=re.MULTILINE)
    assert listed == sorted(listed, key=listed.index)
    assert set(listed) == set(COMMANDS)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_presets_that_are_named_exist(name):
    known = {name for command in COMMANDS.values() for name in command.presets}
    assert set(re.findall(r"--preset ([\w-]+)", DOCUMENTS[name])) <= known


def test_the_table_of_accuracies_is_the_one_that_the_demonstration_wrote():
    inside = COMMAND_PAGE.split("<!-- demo table -->")[1].split("<!-- end of demo table -->")[0]
    assert inside.strip() == (ROOT / "figures" / "demo_table.md").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name):
    links = re.findall(r"\]\(([^)#]+)\)|(?:src|href)=\"([^\"]+)\"", DOCUMENTS[name])
    for link in filter(None, (found for pair in links for found in pair)):
        assert link.startswith("https://") or (ROOT / name).parent.joinpath(link).exists(), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_section_that_is_linked_exists(name):
    heads = re.findall(r"^#+ (.+)$", DOCUMENTS[name], flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCUMENTS[name])) <= anchors


def test_the_gallery_shows_every_committed_figure_once():
    committed = {str(path.relative_to(ROOT / "figures")) for path in (ROOT / "figures").rglob("*.png")}
    shown = re.findall(r"\(([^)]+\.png)\)|src=\"([^\"]+\.png)\"", DOCUMENTS["figures/README.md"])
    names = [name for pair in shown for name in pair if name]
    assert len(names) == len(set(names))
    assert set(names) == committed


def test_the_front_page_is_one_screen_with_a_picture_at_its_top():
    assert len(FRONT.split()) <= 900
    assert any("figures/" in line for line in FRONT.splitlines()[:25])


def test_the_numbers_of_the_findings_are_in_the_files_that_they_link_to():
    section = FRONT.split("## What came out")[1].split("\n## ")[0]
    findings = re.split(r"^\d\. ", section, flags=re.MULTILINE)[1:]
    assert len(findings) == 3
    for finding in findings:
        links = re.findall(r"\]\(([^)#]+)\)", finding)
        linked = "".join((ROOT / link).read_text(encoding="utf-8") for link in links)
        numbers = re.findall(r"[−+]?\d+\.\d+(?:e-\d+)?(?: ± \d+\.\d+| \[[^]]+\])?", finding)
        assert numbers, finding
        for number in numbers:
            assert number.lstrip("+") in linked, number
