"""The campaign of mutants: which edits it makes, which tests it runs, and that it tells killed from surviving."""

import ast
import json

import pytest

from tests.mutants import campaign
from tests.mutants.edits import edits

SOURCE = '''"""A module with 1 docstring."""
import math

def area(r: float = 2, *, sign=-1.5, flag=True) -> float:
    if r < 0:
        raise ValueError(f"r is {r - 1}")
    total = 0
    total += (r + 1) ** 2
    return max(sign * math.pi, total) if not flag and r is not None else clip(r, low=0)
'''


def test_every_kind_of_edit_is_made_once_and_errors_are_left_alone():
    found = {(edit.before, edit.after) for edit in edits(SOURCE)}
    assert found == {
        ("2", "3"), ("-", ""), ("1.5", "2.25"), ("True", "False"), ("0", "1"), ("total += (r + 1) ** 2", "pass"),
        ("+", "-"), ("1", "2"), ("**", "*"), ("max", "min"), ("*", "/"), ("not ", ""), ("and", "or"),
        ("is not", "is"), ("not flag and r is not None", "not (not flag and r is not None)"), ("low=0", ""),
    }  # fmt: skip
    for edit in edits(SOURCE):
        assert ast.dump(ast.parse(edit.apply(SOURCE))) != ast.dump(ast.parse(SOURCE))


def test_a_smaller_campaign_is_the_beginning_of_a_larger_one():
    few, more = (campaign.drawn(count, 3, ["linalg", "finite_width/bounds"]) for count in (5, 9))
    assert few == more[:5]
    assert len({mutant["key"] for mutant in more}) == 9


def test_the_tests_of_a_module_are_its_mirror_then_those_that_import_it():
    first, second, third, last = campaign.stages("mamltheory/linalg.py")
    assert first == ["tests/test_linalg.py"]
    assert "tests/test_dynamics.py" in second
    assert third == []
    assert last[0] == "tests/test_architecture.py"
    of_the_folder = campaign.stages("mamltheory/nas/algorithms/ranking.py")[2]
    assert "tests/nas/algorithms/test_algorithm1.py" in of_the_folder
    assert campaign.stages("mamltheory/kernels/layers/parts.py")[0]


def test_killed_and_surviving_mutants_are_told_apart_and_kept(tmp_path, monkeypatch):
    def none_fails(folder, _):
        return "2 + 2" not in (folder / "mamltheory" / "sums.py").read_text()

    (tmp_path / "mamltheory").mkdir()
    (tmp_path / "mamltheory" / "sums.py").write_text("FOUR = 1 + 2 + 5\n")
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    monkeypatch.setattr(campaign, "passes", none_fails)
    monkeypatch.setattr(campaign, "stages", lambda _: [["test_sums.py"]])
    mutants = campaign.drawn(20, 0, ["sums"])
    results = tmp_path / "runs" / "outcomes.jsonl"
    entries = campaign.campaign(mutants, results, jobs=1)
    assert [entry["killed"] for entry in entries].count(True) == 1
    assert (tmp_path / "mamltheory" / "sums.py").read_text() == "FOUR = 1 + 2 + 5\n"
    monkeypatch.setattr(campaign, "passes", None)  # everything is known
    assert campaign.campaign(mutants, results, jobs=1) == entries
    assert entries[0]["place"].endswith("in FOUR = 1 + 2 + 5")
    text = campaign.table(entries, {entries[0]["place"]: "equivalent"})
    assert text.count("survivor") == len(entries) - 1


@pytest.mark.parametrize("known", [True, False])
def test_survivors_with_a_reason_do_not_count(known):
    entries = [
        {"key": key, "file": "a.py", "place": key, "edit": "1 -> 2", "killed": key == "x"} for key in "xy"
    ]
    text = campaign.table(entries, {"y": "equivalent: the value is overwritten"} if known else {})
    assert ("1 of 1 killed: 100.0 %" in text) == known
    assert ("1 of 2 killed: 50.0 %" in text) != known


def test_every_reason_is_of_a_line_that_still_stands():
    for place in json.loads(campaign.REASONS.read_text(encoding="utf-8")):
        file, edit = place.split(": ", 1)
        lines = (campaign.ROOT / file).read_text(encoding="utf-8").splitlines()
        assert any(edit.endswith(f" in {line.strip()}") for line in lines if line.strip()), place
