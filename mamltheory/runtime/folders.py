"""Which folders a command may write into: empty ones and those with its own results, never those with other files."""

import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from pathlib import Path

from mamltheory.errors import ConfigurationError

RUN_FILE = "run.json"
RECORDS = (
    {"figure", "data", "config", "seed", "versions"},  # of every figure
    {"data", "config"},  # of a benchmark without one
    {"identity", "record"},  # of a benchmark's case
    {"seed", "rows"},  # of the demonstration's table before it had two searches
    {"seed", "search_cpu_seconds", "rows"},  # of the demonstration's table
    {"machine", "size", "chance", "not_run", "protocols"},
    {"settings", "recipes", "runs", "means", "comparisons", "paper"},  # of a table
)
"""The keys of NAME.json that mark this file, NAME.png, NAME.md and so on as results of this program."""
BENCHMARK_LOG = "workers.log"
PAGES = ("README.md", "paper_checks.html")
"""Pages among the figures, which no command writes."""
PAGE_MARK = "mamltheory report"
"""Marks a page of ``report`` in its head; other commands leave such a page where it is."""
DEPTH = 4
"""The greatest depth of a record below a folder of runs: EXPERIMENT/METHOD/SEED/train for those of a table."""
MOST_BYTES = 2**26
"""Records are smaller; a larger file is not read."""


def check_writable(directory: Path) -> None:
    """Raise ConfigurationError unless files can be written to the folder, or to the one it would be made in."""
    try:
        str(directory).encode()
        with tempfile.TemporaryFile(dir=_nearest(directory)) as file:
            file.write(b"\0")
    except ValueError:  # not UTF-8, or with a zero in it
        raise ConfigurationError(
            f"cannot write to {directory}: no folder can have this name; choose another"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {directory}: {error.strerror or error}; choose another folder, or make room there"
        ) from error


def _nearest(directory: Path) -> Path:
    """The folder itself, or the first one above it that exists."""
    try:
        os.lstat(directory)
    except FileNotFoundError:
        return directory if directory == directory.parent else _nearest(directory.parent)
    return directory


def check_run_folder(directory: Path, command: str, known: Collection[str] = ()) -> None:
    """Raise ConfigurationError when a folder holds foreign files, or a run of another command.

    Args:
        directory: the folder.
        command: name of the command that is to write there.
        known: names of files that may be there. Hidden files and saved states may be there, too.
    """
    _check(directory, command, lambda path: path.name in known or _is_saved_state(path))


def inputs_in(directory: Path, config: object) -> list[str]:
    """Names of files in the directory that the settings read, such as a genotype."""
    values = config.values() if isinstance(config, Mapping) else vars(config).values()
    paths = [value for value in values if isinstance(value, Path)]
    return [path.name for path in paths if path.parent.resolve() == directory.resolve()]


def check_results_folder(directory: Path, command: str) -> None:
    """Raise ConfigurationError when a folder holds files that this program has not written.

    Several commands may share the folder. Figures and tables are recognised by the record of the same name, folders
    by the records in them.

    Args:
        directory: the folder.
        command: name of the command that is to write there.
    """
    _check(directory, command, _is_result)


def _check(directory: Path, command: str, is_known: Callable[[Path], bool]) -> None:
    holder = _object_in(directory / RUN_FILE).get("command")
    if holder == command:
        return
    if isinstance(holder, str):
        raise ConfigurationError(
            f"{directory} holds a run of {holder!r}, not of {command!r}: choose another --out"
        )
    entries = sorted(directory.iterdir(), key=Path.is_dir) if directory.exists() else []
    foreign = (each for each in entries if not (each.name.startswith(".") or is_known(each) or is_page(each)))
    if (first := next(foreign, None)) is not None:
        raise ConfigurationError(
            f"{directory} holds {first.name!r}, which is no result of {command!r}: choose another --out, so that "
            "nothing of yours is overwritten"
        )


def is_page(path: Path) -> bool:
    """Whether a file is a page of ``report``."""
    if path.suffix.lower() not in (".html", ".htm") or not path.is_file():
        return False
    with path.open("rb") as file:
        return f'<meta name="generator" content="{PAGE_MARK}">'.encode() in file.read(1000)


def _is_saved_state(path: Path) -> bool:
    return any(path.glob("state-*/SHA256SUMS"))


def _is_result(path: Path) -> bool:
    if not path.is_dir():
        return path.name in (BENCHMARK_LOG, *PAGES) or _is_record(
            path.stem, _object_in(path.with_suffix(".json"))
        )
    records = chain(*(path.glob(f"{'*/' * depth}{RUN_FILE}") for depth in range(DEPTH)))
    if any(isinstance(_object_in(record).get("command"), str) for record in records):
        return True
    return any(_is_record(file.stem, _object_in(file)) for file in path.glob("*.json"))


def _is_record(name: str, content: Mapping[str, object]) -> bool:
    return content.keys() in RECORDS and content.get("figure", name) == name


def _object_in(path: Path) -> dict[str, object]:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
