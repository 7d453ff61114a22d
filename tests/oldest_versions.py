"""Print constraints for pip: the lower bound of every dependency, and the tested versions of what only tests use."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def oldest_versions() -> dict[str, str]:
    """The version of every package by name: the oldest of the dependencies, the tested one of pytest and so on."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [re.fullmatch(r"([\w-]+)>=([\w.]+)", line).groups() for line in project["dependencies"]]
    tools = [re.match(r"[\w-]+", line).group() for line in project["optional-dependencies"]["test"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    return {name: tested[name] for name in tools if name in tested} | dict(bounds)


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in oldest_versions().items())
