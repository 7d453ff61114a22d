"""The starts of a run that continues: their environments, their running time, and whether one found new results."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

STATES = "state"
"""The folder of the checkpoints of a run."""


def seconds_before(directory: Path, earlier: Mapping[str, Any]) -> float | None:
    """The running time of all starts before this one, without the pauses between them.

    A start that was killed has no end in the record, and lasted at least until it last wrote a file of the run.

    Args:
        directory: the run folder.
        earlier: its record.

    Returns:
        Seconds; None if an earlier version wrote the record, which then lacks them.
    """
    if "seconds" not in earlier:
        return None
    seconds = float(earlier["seconds"])
    if earlier.get("status") != "running" or "resumed" not in earlier:
        return seconds
    files = [path for place in (directory, directory / STATES) if place.is_dir() for path in place.iterdir()]
    last = max(path.lstat().st_mtime for path in files)
    return seconds + max(0.0, round(last - datetime.fromisoformat(earlier["resumed"]).timestamp(), 1))


def same_results(now: Mapping[str, Any], before: object) -> bool:
    """Whether the results ``now`` are those of a record ``before``, apart from the time that they took."""
    if not isinstance(before, dict):
        return False
    return all(now.get(key) == before.get(key) for key in {*now, *before} - {"cpu_seconds"})


def sessions_after(earlier: Mapping[str, Any], start: int, environment: object) -> list[dict[str, Any]]:
    """The environments of all starts so far, each with the first start that had it.

    Args:
        earlier: the record of the starts before.
        start: the number of this start.
        environment: its environment.

    Returns:
        The entry ``sessions`` of the record.
    """
    sessions = earlier.get("sessions", [{"start": 1, "environment": earlier.get("environment")}])
    sessions = [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []
    if sessions and sessions[-1].get("environment") == environment:
        return sessions
    return [*sessions, {"start": start, "environment": environment}]
