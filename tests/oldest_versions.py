"""Print constraints for pip: the lower bound of what the package needs, and the tested versions of what tests need."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def oldest_versions() -> dict[str, str]:
    """Versions by package: the oldest of what is needed to run and to build, the tested one of pytest and so on."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, needed = whole["project"], whole["project"]["dependencies"] + whole["build-system"]["requires"]
    bounds = [re.fullmatch(r"([\w-]+)>=([\w.]+)", line).groups() for line in needed]
    tools = [re.match(r"[\w-]+", line).group() for line in project["optional-dependencies"]["test"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    return {name: tested[name] for name in tools if name in tested} | dict(bounds)


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in oldest_versions().items())
