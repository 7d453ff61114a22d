"""What a run was and what it measured: ``run.json`` (feeds back as ``--config``) and ``metrics.jsonl``."""

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.files import read_regular, reason, shown
from mamltheory.runtime.folders import RUN_FILE, check_run_folder
from mamltheory.runtime.interrupt import Interrupted
from mamltheory.runtime.lock import hold, let_go
from mamltheory.runtime.records import plain, read_record, replace_file, sync_directory, to_json
from mamltheory.runtime.temporary import sweep
from mamltheory.strict_json import SEAL_BYTES, misfit, seal_of, sealed, unsealed

METRICS_FILE, STATES = "metrics.jsonl", "state"
MOST_METRICS = 2**30
NEW_RUN = "put back a copy of it, or choose another --out"
EDITED = f"{NEW_RUN}; if it was changed on purpose, take out its last entry"
Status = Literal["running", "finished", "interrupted", "failed"]


class Record(TypedDict):
    """What ``run.json`` holds."""

    command: str
    config: dict[str, object]
    seed: NotRequired[int | None]
    environment: NotRequired[dict[str, object]]
    started: NotRequired[str]
    ended: NotRequired[str | None]
    status: NotRequired[Status]
    starts: NotRequired[Annotated[int, 1]]
    sessions: NotRequired[list[dict[str, object]]]
    results: NotRequired[dict[str, object]]


@dataclass(frozen=True)
class RunLog:
    """The record of one run in its directory; made by :func:`open_run`.

    ``record`` holds command, config, seed, environment, started, ended and status ("running", "finished",
    "interrupted" or "failed"); every start after the first is counted in ``starts``, and ``sessions`` lists the
    environments that they had, where one differs from the one before.
    """

    directory: Path
    record: dict[str, object]

    def log(self, **values: object) -> None:
        """Append one line of measurements to ``metrics.jsonl``, for example ``log(step=3, loss=0.7)``.

        It has reached the disk afterwards. Every line ends with a digest of itself and of the one before it.
        """
        path = self.directory / METRICS_FILE
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - SEAL_BYTES))
            line = sealed(to_json(values, indent=None), before=seal_of(file.read()))
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # the disk is full: half a line would spoil those that may follow
                raise
        if size == 0:
            sync_directory(self.directory)

    def close(self, status: str = "finished", **results: object) -> "RunLog":
        """Write how the run ended, with its results in a few numbers, and leave the folder to other processes.

        Returns the final record.
        """
        if status not in ("finished", "interrupted", "failed"):
            raise ConfigurationError(f"status is {status!r}: expected 'finished', 'interrupted' or 'failed'")
        closed = replace(
            self, record={**self.record, "ended": _now(), "status": status, "results": plain(results)}
        )
        try:
            closed.write()
        finally:
            let_go(self.directory)
        return closed

    def write(self) -> None:
        """Put ``run.json`` in place; a crash leaves the old or the new one, never a part."""
        replace_file(self.directory / RUN_FILE, sealed(to_json(self.record)))


@contextmanager
def recorded(log: RunLog, continue_with: str | None) -> Iterator[None]:
    """Note in the run's record when the block is stopped or fails; a stop then names how to go on.

    What ended the block is raised also where the note cannot be written, as on a full disk.
    """
    try:
        yield
    except Interrupted as stop:
        with suppress(OSError):
            log.close("interrupted")
        raise Interrupted(stop.signal_number, continue_with) from None
    except Exception:
        with suppress(OSError):
            log.close("failed")
        raise


def open_run(
    directory: Path,
    command: str,
    config: object,
    seed: int,
    environment: Mapping[str, object],
    may_differ: Collection[str] = (),
    before: object | None = None,
    known: Collection[str] = (),
) -> RunLog:
    """Begin a run in ``directory``, or go on with the same one if it was begun there.

    config: the resolved settings, a dataclass or mapping. may_differ: settings, and entries of the environment, that
    do not change the results, such as the number of workers, and may be others when a run goes on. Another
    environment does not stop a run: it is said on standard error, and the record keeps both. before: as in
    :func:`differences`. known: names of files that may be there without a record, besides files that the settings
    name. Raises ConfigurationError when the directory holds other files, a run of another command or other settings,
    naming them, or when another process writes there; CheckpointError when its record is broken.
    """
    if not (directory / RUN_FILE).exists():
        check_run_folder(directory, command, (*known, *_inputs_in(directory, config)))
    taken = hold(directory)
    try:
        for place in (directory, directory / STATES) if taken else ():
            sweep(place, alone=True)
        return _open_held(directory, command, config, seed, environment, may_differ, before)
    except BaseException:
        if taken:
            let_go(directory)
        raise


def _open_held(
    directory: Path,
    command: str,
    config: object,
    seed: int,
    environment: Mapping[str, object],
    may_differ: Collection[str],
    before: object | None,
) -> RunLog:
    starts, started, environment = 1, _now(), plain(environment)
    sessions = [{"start": 1, "environment": environment}]
    if (directory / RUN_FILE).exists():
        earlier = read_run(directory)
        check_same_run(directory, earlier, command, config, may_differ, before)
        started = earlier.get("started", started)
        starts = earlier.get("starts", 1) + 1
        sessions = _sessions_after(earlier, starts, environment)
        _say_what_changed(directory, earlier.get("environment"), environment, may_differ)
        _drop_partial_line(directory / METRICS_FILE)
    record = {
        "command": command,
        "config": plain(config),
        "seed": seed,
        "environment": environment,
        "sessions": sessions,
        "started": started,
        "ended": None,
        "status": "running",
        "starts": starts,
    }
    log = RunLog(directory, record)
    log.write()
    return log


def _inputs_in(directory: Path, config: object) -> list[str]:
    """Names of files in the directory that the settings read, such as a genotype: they are no strangers there."""
    values = config.values() if isinstance(config, Mapping) else vars(config).values()
    paths = [value for value in values if isinstance(value, Path)]
    return [path.name for path in paths if path.parent.resolve() == directory.resolve()]


def _sessions_after(
    earlier: Mapping[str, object], start: int, environment: object
) -> list[dict[str, object]]:
    """The environments of all starts so far, each with the first start that had it."""
    sessions = earlier.get("sessions", [{"start": 1, "environment": earlier.get("environment")}])
    sessions = [each for each in sessions if isinstance(each, dict)] if isinstance(sessions, list) else []
    if sessions and sessions[-1].get("environment") == environment:
        return sessions
    return [*sessions, {"start": start, "environment": environment}]


def _say_what_changed(
    directory: Path, there: object, now: Mapping[str, object], but: Collection[str]
) -> None:
    changes = differences(there, now, but) if isinstance(there, dict) else ""
    if changes:
        sys.stderr.write(
            f"{directory} goes on in another environment: {changes}; numbers may differ in their last digits from "
            f"those of a run in one, and {RUN_FILE} keeps both\n"
        )


def read_run(path: Path) -> dict[str, object]:
    """The record at ``path``, a run directory or a ``run.json``; raises CheckpointError if it is none, or changed."""
    path = path / RUN_FILE if path.is_dir() else path
    record = read_record(path, Record, EDITED)
    for name in ("started", "ended"):
        try:
            datetime.fromisoformat(record.get(name) or _now())
        except ValueError:
            raise CheckpointError(
                f"{path} says {name} {shown(record[name])}, which is no time: {NEW_RUN}"
            ) from None
    return record


def read_metrics(directory: Path, kind: object = dict) -> list[dict[str, object]]:
    """All measurements of a run in the order they were logged; a line cut short by a crash is left out.

    kind: what every line has to be, as :func:`mamltheory.strict_json.misfit` takes it. Raises CheckpointError, naming
    file and line, for a line that was changed, taken out or put in, or is of another kind.
    """
    path, rows, digest = directory / METRICS_FILE, [], ""
    if not path.exists():
        return []
    try:
        lines = read_regular(path, MOST_METRICS).split(b"\n")[:-1]
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({reason(error)}): {NEW_RUN}") from None
    for number, line in enumerate(lines, 1):
        before = digest
        try:
            row, digest = unsealed(line + b"\n", before)
            if before and not digest:
                raise ValueError("is damaged: it has no digest, as the line before it has")
            if wrong := misfit(row, kind, "it"):
                raise ValueError(f"is of another kind: {wrong}")
        except ValueError as error:
            raise CheckpointError(
                f"line {number} of {path} {reason(error)}; or a line before it was changed or removed: {NEW_RUN}"
            ) from None
        rows.append(row)
    return rows


def check_complete(
    directory: Path, rows: Iterable[Mapping[str, object]], name: str, expected: Iterable[int]
) -> None:
    """Raise CheckpointError unless the measurements of a run have a line for each of the expected numbers."""
    there = {row.get(name) for row in rows}
    if lacking := [number for number in expected if number not in there]:
        numbers = ", ".join(map(str, lacking[:5])) + ", …" * (len(lacking) > 5)
        raise CheckpointError(
            f"{directory / METRICS_FILE} has no line for {name} {numbers}, which the saved state has behind it: "
            f"{NEW_RUN}"
        )


def check_same_run(
    directory: Path,
    earlier: dict[str, object],
    command: str,
    config: object,
    may_differ: Collection[str],
    before: object | None,
) -> None:
    """Raise ConfigurationError, naming the differences, unless the record is of this command with these settings."""
    if earlier["command"] != command:
        raise ConfigurationError(
            f"{directory} holds a run of {shown(earlier['command'])}, not of '{command}': choose another --out"
        )
    if changes := differences(earlier["config"], config, may_differ, before):
        raise ConfigurationError(
            f"{directory} holds a run with other settings: {changes}; choose another --out"
        )


def differences(
    there: Mapping[str, object], now: object, but: Collection[str], before: object | None = None
) -> str:
    """In words, the settings that are not equal, except those in ``but``; empty where all are.

    there: the settings in a record; now: a dataclass or mapping. A setting that one of the two lacks, being of
    another version, counts as its value in ``before``: other settings, or None for the defaults of ``now``, if it is
    a dataclass.
    """
    usual = _defaults(now) if before is None else plain(before)
    then, ours = {**usual, **there}, {**usual, **plain(now)}
    keys = [key for key in {**there, **ours} if key not in but and then.get(key) != ours.get(key)]
    return ", ".join(f"{key} ({shown(then.get(key))} there, {shown(ours.get(key))} now)" for key in keys)


def _defaults(settings: object) -> dict[str, object]:
    known = fields(settings) if is_dataclass(settings) else ()
    return {field.name: plain(field.default) for field in known if field.default is not MISSING}


def _drop_partial_line(path: Path) -> None:
    if path.exists() and not (data := read_regular(path)).endswith(b"\n") and data:
        replace_file(path, data[: data.rfind(b"\n") + 1])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
