"""The README's code runs, its commands exist, and its table is the demonstration's."""

import re
from pathlib import Path

import pytest

from experiments.commands import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("default")
def test_the_code_blocks_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
    said = capsys.readouterr().out
    scores = re.search(r"```text\n(.*?)```", TEXT, flags=re.DOTALL).group(1)
    assert said.startswith(scores)
    assert "tensor" in said.removeprefix(scores)
    assert float((names["run"].observations[-1].test_outputs - names["closed"].test).abs().max()) < 0.1


def test_the_table_of_commands_is_complete():
    listed = re.findall(r"^\| `([a-z-]+)` \|", TEXT, flags=re.MULTILINE)
    assert listed == sorted(listed, key=listed.index)
    assert set(listed) == set(COMMANDS)


def test_the_presets_that_are_named_exist():
    known = {name for command in COMMANDS.values() for name in command.presets}
    assert set(re.findall(r"--preset ([\w-]+)", TEXT)) <= known


def test_the_table_of_accuracies_is_the_one_that_the_demonstration_wrote():
    inside = TEXT.split("<!-- demo table -->")[1].split("<!-- end of demo table -->")[0]
    assert inside.strip() == (ROOT / "figures" / "demo_table.md").read_text(encoding="utf-8").strip()


def test_every_file_that_is_named_exists():
    for name in re.findall(r"\]\((figures/[^)]+|paper_checks\.md)\)", TEXT):
        assert (ROOT / name).exists(), name
