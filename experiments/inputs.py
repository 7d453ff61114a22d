"""Folders and files that a command reads: missing ones are found before torch is loaded, which takes seconds.

The messages are those of the functions that read them.
"""

from pathlib import Path
from typing import Any

from .requirements import require

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
    from mamltheory.fewshot.places import check_place

    no_images = getattr(settings, "table", None) is not None or not getattr(settings, "measure", True)
    for place in (getattr(settings, "data", None), getattr(settings, "path", None)):
        if isinstance(place, str) and not no_images:
            check_place(place)


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
