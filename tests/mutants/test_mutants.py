"""The campaign of mutants: which edits it makes, which tests it runs, and that it tells killed from surviving."""

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.mutants import campaign
from tests.mutants.covering import Covering, forked
from tests.mutants.edits import edits

SOURCE = '''"""A module with 1 docstring."""
import math

@dataclass(frozen=True)
class Circle:
    pass

def area(r: float = 2, *, sign=-1.5, flag=True) -> float:
    if r < 0:
        raise ValueError(f"r is {r - 1}")
    total = 0
    total += (r + 1) ** 2
    return max(sign * math.pi, zip(r, total, strict=True)) if not flag and r is not None else clip(r, low=0)
'''


def test_every_kind_of_edit_is_made_once_and_checks_are_left_alone():
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


def test_the_lines_of_a_statement_are_its_own():
    lines = SOURCE.splitlines()
    header = next(number for number, line in enumerate(lines, 1) if line.startswith("def"))
    assert campaign.statement(SOURCE, header) == [header]
    assert campaign.statement(SOURCE, header + 1) == [header + 1]  # the condition, not what it guards
    assert campaign.statement("f(1,\n  2)\n", 2) == [1, 2]
    assert [campaign.in_a_function(SOURCE, header + k) for k in (0, 1, 5)] == [False, True, True]


def test_the_tests_of_a_line_are_chosen_within_the_budget_and_those_of_the_mirror_first():
    near, far = "tests/nas/test_sizes.py", "tests/test_far.py"
    covering = Covering(
        {"mamltheory/nas/sizes.py": {3: [f"{far}::a", f"{near}::slow", f"{near}::b"], 7: [f"{far}::c"]}},
        {f"{far}::a": 1.0, f"{near}::b": 2.0, f"{near}::slow": 9.0, f"{far}::c": 1.0, f"{near}::reads": 0.1},
    )

    def choose(lines, budget):
        return set(covering.choose("mamltheory/nas/sizes.py", lines, budget))

    assert choose([3], 2.5) == {f"{near}::b"}
    assert choose([3], 100) == {f"{far}::a", f"{near}::b", f"{near}::slow"}
    assert choose([3], 0.5) == {f"{near}::b"}, "one test is always run"
    assert choose([4], 100) == set(covering.seconds), (
        "of a line that no test runs, those of its file and mirror"
    )
    order = covering.choose("mamltheory/nas/sizes.py", [3], 100)
    assert order[0].startswith(far), "files that end soon go first"


def test_calls_run_in_forks_with_a_folder_each(tmp_path):
    def call(code):
        def run(folder):
            (folder / "file").write_text("x")
            (tmp_path / str(code)).write_text(str(folder))
            return code

        return str(code), run

    assert sorted(forked(map(call, range(4)), jobs=2)) == [(str(code), code) for code in range(4)]
    assert not any(os.path.exists(path.read_text()) for path in tmp_path.iterdir())
    assert list(forked([("fails", lambda _: 1 // 0)], jobs=1)) == [("fails", 70)]


PACKAGE = {
    "mamltheory/__init__.py": "",
    "mamltheory/sums.py": "FOUR = 1 + 3\n\n\ndef twice(x):\n    unused = 7\n    return 2 * x\n",
    **dict.fromkeys(campaign.STATIC, "def test_nothing():\n    pass\n"),
    "tests/test_sums.py": (
        "from mamltheory.sums import FOUR, twice\n\n\ndef test_sums():\n    assert FOUR == 4 and twice(3) == 6\n"
    ),
}


@pytest.mark.slow
def test_mutants_of_functions_and_of_constants_are_killed_by_the_tests_of_their_lines(tmp_path):
    """The whole campaign in a package of its own: in a process of its own, for pytest runs in it."""
    for name, text in PACKAGE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    program = (
        "import sys, pathlib; from tests.mutants import campaign, covering\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "campaign.ROOT = covering.ROOT = root; covering.PACKAGE = root / 'mamltheory'\n"
        "campaign.main(['--modules', 'sums', '--jobs', '1', '--out', str(root / 'runs')])\n"
    )
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(campaign.ROOT)])},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "SURVIVED" in done.stdout
        runs.append((tmp_path / "runs" / "outcomes.jsonl").read_text().splitlines())
    assert len(runs[1]) == len(runs[0]) + 1, "only the survivor is run again"
    entries = map(json.loads, runs[1])
    found = {entry["place"].split(": ", 1)[1]: entry["killed"] for entry in entries}
    assert {place for place, killed in found.items() if not killed} == {"'7' -> '8' in unused = 7"}
    assert "'1' -> '2' in FOUR = 1 + 3" in found


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
