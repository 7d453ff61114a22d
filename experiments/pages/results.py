"""What lies in a folder that a command wrote; whatever is missing or damaged is said and no error."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mamltheory.errors import CheckpointError, ConfigurationError, printable
from mamltheory.files import read_regular, reason
from mamltheory.runtime.folders import DEPTH, MOST_BYTES, RECORDS
from mamltheory.runtime.runlog import METRICS_FILE, RUN_FILE, read_metrics, read_run
from mamltheory.strict_json import INFINITE, parse, unsealed

MOST_RUNS = 200
"""A page of more runs would not be read."""


@dataclass(frozen=True)
class Folder:
    """A run, or figures and tables without one.

    Attributes:
        path: The folder.
        record: The content of ``run.json``; None where there is none.
        metrics: The lines of ``metrics.jsonl``.
        contents: The objects in its other JSON files, by name without ending.
        problems: What cannot be read, a sentence each.
    """

    path: Path
    record: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...] = ()
    contents: Mapping[str, Any] = ()  # type: ignore[assignment]
    problems: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that wrote the run; empty for figures."""
        return str(self.record["command"]) if self.record else ""

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings of the run; empty for figures, each of which has its own."""
        found = self.record["config"] if self.record else {}
        return found if isinstance(found, dict) else {}

    @property
    def results(self) -> Mapping[str, Any]:
        """The results in the record."""
        found = self.record.get("results") if self.record else None
        return found if isinstance(found, dict) else {}

    @property
    def status(self) -> str:
        """How the run ended."""
        return str(self.record.get("status", "running")) if self.record else "finished"

    def object(self, name: str) -> dict[str, Any]:
        """The object in NAME.json; empty where there is none."""
        found = self.contents.get(name)
        return found if isinstance(found, dict) else {}

    def figure_data(self, name: str) -> dict[str, Any]:
        """The numbers of the figure NAME; empty where there is none."""
        found = self.object(name).get("data")
        return found if isinstance(found, dict) else {}


def folders_at(path: Path) -> list[Folder]:
    """The runs at a path.

    Args:
        path: A folder with a run or with results, one that holds such folders, or one file of results.

    Returns:
        All of them, in the order of their names; a run's own parts are not looked into.

    Raises:
        ConfigurationError: there is no folder, or nothing that a command wrote.
    """
    if path.is_file():
        only = None if path.name == RUN_FILE else path.with_suffix("").name
        return [read_results(path.parent, only)]
    if not path.is_dir():
        raise ConfigurationError(f"there is no folder {path}: expected one that a command wrote")
    found = [read_results(each) for each, _ in zip(_below(path, DEPTH), range(MOST_RUNS + 1), strict=False)]
    if not found:
        raise ConfigurationError(
            f"{path} holds nothing that a command wrote: expected {RUN_FILE}, or figures or tables with their JSON"
        )
    if len(found) > MOST_RUNS:
        raise ConfigurationError(
            f"{path} holds more than {MOST_RUNS} runs, too many for a page: name some of the folders in it"
        )
    return found


def _below(path: Path, depth: int) -> Iterator[Path]:
    if (path / RUN_FILE).exists():
        yield path
        return
    if any(is_result(_read_object(file)[0]) for file in sorted(path.glob("*.json"))):
        yield path
    for each in sorted(path.iterdir()) if depth else ():
        if each.is_dir() and not each.is_symlink() and not each.name.startswith("."):
            yield from _below(each, depth - 1)


def is_result(content: object) -> bool:
    """Whether a JSON file is the record of a figure or table."""
    return isinstance(content, dict) and content.keys() in RECORDS and "identity" not in content


def read_results(path: Path, only: str | None = None) -> Folder:
    """The run or results in a folder, or one file of results there; CheckpointError for a damaged ``run.json``."""
    record = read_run(path) if (path / RUN_FILE).exists() and only is None else None
    contents, problems = {}, []
    for file in sorted(path.glob("*.json" if only is None else f"{only}.json")):
        if file.name == RUN_FILE:
            continue
        content, problem = _read_object(file)
        if problem:
            problems.append(f"{file.name} cannot be read: {problem}.")
        elif record is not None or is_result(content):
            contents[file.stem] = content
    metrics: list[dict[str, Any]] = []
    try:
        metrics = read_metrics(path) if record is not None else []
    except CheckpointError as error:
        problems.append(f"{METRICS_FILE} is damaged, and is left out: {error}.")
    if only is not None and not contents:
        raise ConfigurationError(
            f"{path / only}.json is no result of a command: expected {RUN_FILE}, or the JSON of a figure or table"
        )
    lines = tuple({key: _number_of(value) for key, value in line.items()} for line in metrics)
    return Folder(path, record, lines, contents, tuple(map(printable, problems)))


def _number_of(value: object) -> object:
    return float(value) if isinstance(value, str) and value in INFINITE else value


def _read_object(file: Path) -> tuple[Any, str]:
    """(content, problem) of a JSON file, sealed or not."""
    try:
        data = read_regular(file, MOST_BYTES)
        content = parse(data)
        if isinstance(content, dict) and "sha256" in content:
            content, _ = unsealed(data)
    except (OSError, ValueError, RecursionError, json.JSONDecodeError) as error:
        return None, reason(error)
    return content, ""
