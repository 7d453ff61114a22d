"""Folders and files that a command reads: missing ones are found before torch is loaded, which takes seconds.

The messages are those of the functions that read them.
"""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from .requirements import require
from .settings import shares_of

RUN_FILE = "run.json"
EMBEDDED_TABLE = "glyphs"


def check_inputs(settings: Any) -> None:
    """Raise the error that the command would raise later, if a folder or a file that it reads is not there.

    A run that has begun may need none of them; its command decides.

    Args:
        settings: The settings of any command.
    """
    runs = getattr(settings, "runs", None)
    for path in runs if isinstance(runs, tuple) else ():
        require(path.exists(), f"there is no folder {path}: expected one that a command wrote")
        require(
            not path.is_dir() or _holds_json(path),
            f"{path} holds nothing that a command wrote: expected {RUN_FILE}, or figures or tables with their JSON",
        )
    if _has_begun(settings):
        return
    if isinstance(images := getattr(settings, "images", None), Path):
        _check_images(images)
    if (checkpoint := getattr(settings, "checkpoint", None)) is not None:
        is_run = (checkpoint / RUN_FILE).is_file()
        require(is_run, f"{checkpoint} is no run folder: train first, or name another folder")
    if getattr(settings, "network", None) == "cells":
        _check_genotype(settings.genotype)
    parameters = getattr(settings, "parameters", None)
    if isinstance(parameters, str) and parameters.endswith(".json"):
        _check_genotype(Path(parameters))
    for table in (getattr(settings, "table", None), getattr(settings, "warm_start", None)):
        if table not in (None, EMBEDDED_TABLE):
            _check_table(Path(table))
    _check_modules(settings)
    _check_data(settings)


def _has_begun(settings: Any) -> bool:
    """Whether a run is in a folder for results, or below it."""
    folders = [getattr(settings, name, None) for name in ("out", "runs")]
    return any(
        any(folder.glob(pattern))
        for folder in folders
        if isinstance(folder, Path)
        for pattern in (RUN_FILE, f"*/{RUN_FILE}")
    )


def _holds_json(path: Path) -> bool:
    from mamltheory.runtime.folders import DEPTH

    return any(any(path.glob("*/" * depth + "*.json")) for depth in range(DEPTH + 1))


def _check_data(settings: Any) -> None:
    no_images = getattr(settings, "table", None) is not None or not getattr(settings, "measure", True)
    for place in (getattr(settings, "data", None), getattr(settings, "path", None)):
        if isinstance(place, str) and not no_images:
            _check_place(place, settings)


def _check_place(place: str, settings: Any) -> None:
    from mamltheory.fewshot.places import EMBEDDED, check_embedded, check_place

    check_place(place)
    if hasattr(settings, "checkpoint"):  # the training says how these images are read
        return
    # The split of meta-train says which classes are tested.
    shares = shares_of(
        getattr(settings, "class_split" if hasattr(settings, "class_split") else "split", None)
    )
    mirrors = getattr(settings, "mirrors", None)
    if place in EMBEDDED:
        check_embedded(place, shares is not None, mirrors)
        return
    from mamltheory.fewshot.formats import Options, check_layout

    check_layout(Path(place), Options(shares=shares, mirrors=mirrors), whole=not hasattr(settings, "path"))


def _check_modules(settings: Any) -> None:
    """Raise ConfigurationError if a module of MODULE:NAME is not there; it is not imported, for it may load torch."""
    for setting, expected in (("space", "a search space"), ("score", "a score")):
        name = getattr(settings, setting, None)
        lacking = _lacking_module(name.partition(":")[0]) if isinstance(name, str) else None
        require(lacking is None, not_importable(f"{name}", expected, f"ModuleNotFoundError: {lacking}"))


def _lacking_module(name: str) -> str | None:
    """What the import of a module would say if there is none; None if it is there. No parent is imported."""
    look_here()
    places: Any = None
    for end in range(1, len(parts := name.split(".")) + 1):
        whole = ".".join(parts[:end])
        if whole in sys.modules:
            places = getattr(sys.modules[whole], "__path__", None)
            continue
        if end > 1 and places is None:
            return f"No module named '{name}'; '{'.'.join(parts[: end - 1])}' is not a package"
        found = importlib.util.find_spec(whole) if end == 1 else PathFinder.find_spec(whole, places)
        if found is None:
            return f"No module named '{whole}'"
        places = found.submodule_search_locations
    return None


def look_here() -> None:
    """Let modules of the current folder be found."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def not_importable(name: str, expected: str, what: str) -> str:
    """The message for a MODULE:NAME that cannot be imported."""
    return f"cannot find {name!r} ({what}): expected MODULE:NAME of {expected} in an importable module"


def _check_images(folder: Path) -> None:
    from mamltheory.errors import DataError

    if not folder.is_dir():
        layout = f"expected {folder}/support/CLASS/*.png for every class and {folder}/query/*.png"
        raise DataError(f"there is no folder {folder}: {layout}")


def _check_genotype(path: Path) -> None:
    from mamltheory.errors import GenotypeError

    if (wrong := _unreadable(path)) is not None:
        raise GenotypeError(f"cannot read {path}: {wrong}; search first, or name another file")


def _check_table(path: Path) -> None:
    from mamltheory.errors import CheckpointError

    if (wrong := _unreadable(path)) is not None:
        raise CheckpointError(f"cannot read the table {path}: {wrong}; name a file of `tabulate`")


def _unreadable(path: Path) -> str | None:
    from mamltheory.files import open_regular, reason

    try:
        open_regular(path).close()
    except OSError as error:
        return reason(error)
    return None
