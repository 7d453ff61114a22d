"""The wheels that a machine without a network needs, from what is installed here."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution

PROJECT = "mamltheory"
HEAD = f"""\
# What gpu-check needs, as installed here ({{where}}).
# Here:  pip wheel --wheel-dir wheels --requirement THIS-FILE .
# There: pip install --no-index --find-links wheels {PROJECT}
# Leave out what that machine has. Of torch take the build for its CUDA, with the wheels that it requires.
"""


def wheel_list() -> str:
    """A requirements file with the installed versions of all dependencies of the project."""
    where = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    found = dict(installed(PROJECT))
    rows = [
        f"{name}=={version}" if version else f"# {name} is not installed here"
        for name, version in found.items()
    ]
    return HEAD.format(where=where) + "\n".join(sorted(rows, key=lambda row: row.lstrip("# ").lower())) + "\n"


def installed(project: str) -> Iterator[tuple[str, str | None]]:
    """Names and versions of the distributions that a project needs, directly or not; None where one is missing."""
    # A dependency of matplotlib, and so always there.
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    seen: set[tuple[str, str]] = set()
    names: dict[str, None] = {}
    todo = [(project, "")]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found = distribution(name)
        except PackageNotFoundError:
            yield name, None
            continue
        if name != project and name not in names:
            names[name] = None
            yield name, found.version.partition("+")[0]
        for text in found.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(needed.name), each) for each in ("", *needed.extras)]
