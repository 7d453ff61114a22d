"""The files that a code host and pre-commit read: they parse, and agree with the project's own settings."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
YAML = (".pre-commit-config.yaml", ".github/workflows/tests.yml")


@pytest.mark.parametrize("name", YAML)
def test_the_files_are_yaml(name):
    yaml = pytest.importorskip("yaml")
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_the_style_before_a_commit_is_that_of_the_tested_version():
    pinned = re.findall(r"^ruff==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    hooks = re.findall(r"ruff==([\d.]+)", (ROOT / YAML[0]).read_text(encoding="utf-8"))
    assert hooks == pinned * 2


def test_the_versions_of_python_that_are_tested_are_those_that_the_package_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [each.split(" :: ")[-1] for each in project["classifiers"] if " :: 3." in each]
    tested = re.search(r"python: \[(.*)\]", (ROOT / YAML[1]).read_text(encoding="utf-8"))
    assert tested is not None
    assert re.findall(r"[\d.]+", tested[1]) == named
    assert project["requires-python"] == f">={named[0]}"
