"""The record of a run, ``run.json`` (which ``--config`` reads), and its measurements, ``metrics.jsonl``."""

import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.files import read_regular, reason, shown
from mamltheory.runtime.folders import RUN_FILE, check_run_folder, inputs_in
from mamltheory.runtime.interrupt import Interrupted
from mamltheory.runtime.lock import hold, let_go
from mamltheory.runtime.records import plain, read_record, replace_file, sync_directory, to_json
from mamltheory.runtime.scalars import write_scalars
from mamltheory.runtime.starts import STATES, same_results, seconds_before, sessions_after
from mamltheory.runtime.temporary import remove_stale
from mamltheory.strict_json import SEAL_BYTES, misfit, seal_of, sealed, unsealed

METRICS_FILE = "metrics.jsonl"
MOST_METRICS = 2**30
NEW_RUN = "put back a copy of it, or choose another --out"
EDITED = f"{NEW_RUN}; if it was changed on purpose, take out its last entry"
Status = Literal["running", "finished", "interrupted", "failed"]


class Record(TypedDict):
    """The content of ``run.json``."""

    command: str
    config: dict[str, object]
    seed: NotRequired[int | None]
    environment: NotRequired[dict[str, object]]
    started: NotRequired[str]
    ended: NotRequired[str | None]
    resumed: NotRequired[str]
    seconds: NotRequired[float]
    status: NotRequired[Status]
    starts: NotRequired[Annotated[int, 1]]
    sessions: NotRequired[list[dict[str, object]]]
    results: NotRequired[dict[str, object]]


@dataclass(frozen=True)
class RunLog:
    """The record of one run in its directory; made by :func:`open_run`.

    Attributes:
        directory: the run folder.
        record: the content of ``run.json`` (see :class:`Record`). ``starts`` counts the starts, and ``sessions`` lists
            their environments, each with the first start that had it. ``resumed`` is the time of the last start, and
            ``seconds`` the running time of all starts without the pauses between them.
        was_finished: whether the run had come to its end before this start.
        scalars: the writer for TensorBoard, of :func:`mamltheory.runtime.scalars.summary_writer`; None for none.
        kept: the record of a finished run, which stays in ``run.json`` until there is new work; otherwise empty.
        notice: what :meth:`resume` says of a finished run, if it continues in another environment.
        begun: when this start began, by the monotonic clock.
    """

    directory: Path
    record: dict[str, Any]
    was_finished: bool = False
    scalars: Any = None
    kept: dict[str, Any] = field(default_factory=dict)
    notice: str = ""
    begun: float = field(default_factory=time.monotonic)

    def resume(self) -> None:
        """Record this start of a finished run, because there is new work; nothing changes for other runs."""
        if self.kept:
            self.kept.clear()
            sys.stderr.write(self.notice)
            self.write()

    def log(self, **values: object) -> None:
        """Append a line such as ``log(step=3, loss=0.7)`` to ``metrics.jsonl``, sealed with the line before."""
        self.resume()
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
                file.truncate(size)  # the disk is full: half a line would spoil later lines
                raise
        if size == 0:
            sync_directory(self.directory)
        if self.scalars is not None:
            write_scalars(self.scalars, values)

    def close(self, status: str = "finished", **results: object) -> "RunLog":
        """Write how the run ended, and release the folder to other processes.

        The record of a finished run stays as it was, unless :meth:`resume` was called or the results are other ones.

        Args:
            status: "finished", "interrupted" or "failed".
            **results: the results in a few numbers.

        Returns:
            The final record.

        Raises:
            ConfigurationError: another status.
        """
        if status not in ("finished", "interrupted", "failed"):
            raise ConfigurationError(f"status is {status!r}: expected 'finished', 'interrupted' or 'failed'")
        found = plain(results)
        stays = bool(self.kept) and (status != "finished" or same_results(found, self.kept.get("results")))
        ends = {"ended": _now(), "status": status, "results": found}
        if "seconds" in self.record:
            ends["seconds"] = round(self.record["seconds"] + time.monotonic() - self.begun, 1)
        closed = replace(self, record=dict(self.kept) if stays else {**self.record, **ends})
        try:
            if not stays:
                closed.write()
        finally:
            let_go(self.directory)
            if self.scalars is not None:
                self.scalars.close()
        return closed

    def write(self) -> None:
        """Replace ``run.json``; a crash leaves the old one or the new one, never a part."""
        replace_file(self.directory / RUN_FILE, sealed(to_json(self.record)))


@contextmanager
def recorded(log: RunLog, continue_with: str | None) -> Iterator[None]:
    """Record in ``run.json`` when the block is stopped or fails; the exception is raised also on a full disk.

    Args:
        log: the record of the run.
        continue_with: the command that continues the run, which a stop then names.

    Yields:
        Nothing.

    Raises:
        Interrupted: a stop was asked for within the block.
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
    continues: bool = True,
) -> RunLog:
    """Return the log of a run that begins in a directory, or continues if it was begun there.

    Another environment does not stop a run: it is reported on standard error, and the record keeps both.
    ConfigurationError is raised when the directory holds other files, or a run of another command or with other
    settings, or when another process writes there; CheckpointError when its record is broken.

    Args:
        directory: the run folder.
        command: name of the command.
        config: the resolved settings, a dataclass or mapping.
        seed: seed of the run.
        environment: versions, device and threads (see ``device.environment``).
        may_differ: settings and entries of the environment that do not change the results, such as the number of
            workers. They may have other values when a run continues.
        before: values of settings that a record does not hold, as in :func:`differences`.
        known: names of files that may be there without a record, in addition to files that the settings name.
        continues: whether a start uses the work of earlier ones, so that their running times add up.
    """
    if not (directory / RUN_FILE).exists():
        check_run_folder(directory, command, (*known, *inputs_in(directory, config)))
    taken = hold(directory)
    try:
        for place in (directory, directory / STATES) if taken else ():
            remove_stale(place, alone=True)
        earlier = read_run(directory) if (directory / RUN_FILE).exists() else None
        if earlier is not None:
            check_same_run(directory, earlier, command, config, may_differ, before)
        begun = {"command": command, "config": plain(config), "seed": seed, "environment": plain(environment)}
        return _started(directory, begun, earlier, may_differ, continues)
    except BaseException:
        if taken:
            let_go(directory)
        raise


def _started(
    directory: Path,
    begun: dict[str, Any],
    earlier: dict[str, Any] | None,
    may_differ: Collection[str],
    continues: bool,
) -> RunLog:
    starts, started, environment = 1, _now(), begun["environment"]
    sessions, notice = [{"start": 1, "environment": environment}], ""
    seconds = seconds_before(directory, earlier) if earlier is not None and continues else 0.0
    if earlier is not None:
        started = earlier.get("started", started)
        starts = earlier.get("starts", 1) + 1
        sessions = sessions_after(earlier, starts, environment)
        notice = _changes(directory, earlier.get("environment"), environment, may_differ)
        _drop_partial_line(directory / METRICS_FILE)
    times: dict[str, Any] = {
        "started": started,
        "resumed": _now(),
        "ended": None,
        "status": "running",
        "starts": starts,
    }
    spent = {} if seconds is None else {"seconds": seconds}
    record = {**begun, "sessions": sessions, **times, **spent}
    if earlier is not None and earlier.get("status") == "finished":
        return RunLog(directory, record, True, kept=dict(earlier), notice=notice)
    sys.stderr.write(notice)
    log = RunLog(directory, record)
    log.write()
    return log


def _changes(directory: Path, there: object, now: Mapping[str, object], but: Collection[str]) -> str:
    """What is said of a run that continues in another environment; empty for the same one."""
    changes = differences(there, now, but) if isinstance(there, dict) else ""
    if not changes:
        return ""
    return (
        f"{directory} continues in another environment: {changes}; numbers may differ in their last digits from "
        f"those of a run in one, and {RUN_FILE} keeps both\n"
    )


def read_run(path: Path) -> dict[str, Any]:
    """The record at ``path``, a run directory or a ``run.json``; raises CheckpointError if it is broken."""
    path = path / RUN_FILE if path.is_dir() else path
    record = read_record(path, Record, EDITED)
    for name in ("started", "resumed", "ended"):
        try:
            datetime.fromisoformat(record.get(name) or _now())
        except ValueError:
            raise CheckpointError(
                f"{path} says {name} {shown(record[name])}, which is no time: {NEW_RUN}"
            ) from None
    return record


def read_metrics(directory: Path, kind: object = dict) -> list[dict[str, Any]]:
    """The measurements of a run.

    Args:
        directory: the run folder.
        kind: type that every line must fit (see :func:`mamltheory.strict_json.misfit`).

    Returns:
        The lines in the order in which they were logged, without one that a crash has cut short.

    Raises:
        CheckpointError: a line was changed, removed or inserted, or does not fit the type.
    """
    path, digest = directory / METRICS_FILE, ""
    rows: list[dict[str, Any]] = []
    if not path.exists():
        return []
    try:
        lines = read_regular(path, MOST_METRICS).split(b"\n")[:-1]
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({reason(error)}): {NEW_RUN}") from None
    for number, line in enumerate(lines, 1):
        before = digest
        try:
            row, digest = _measurement(line, before, kind)
        except ValueError as error:
            raise CheckpointError(
                f"line {number} of {path} {reason(error)}; or a line before it was changed or removed: {NEW_RUN}"
            ) from None
        rows.append(row)
    return rows


def _measurement(line: bytes, before: str, kind: object) -> tuple[dict[str, Any], str]:
    row, digest = unsealed(line + b"\n", before)
    if before and not digest:
        raise ValueError("is damaged: it has no digest, as the line before it has")
    if wrong := misfit(row, kind, "it"):
        raise ValueError(f"is of another kind: {wrong}")
    return row, digest


def check_complete(
    directory: Path, rows: Iterable[Mapping[str, object]], name: str, expected: Iterable[int]
) -> None:
    """Raise an error unless the measurements of a run have a line for each of the expected numbers.

    Args:
        directory: the run folder.
        rows: its measurements.
        name: the entry that numbers the lines, such as "epoch".
        expected: the numbers.

    Raises:
        CheckpointError: a line is missing.
    """
    there = {row.get(name) for row in rows}
    if lacking := [number for number in expected if number not in there]:
        numbers = ", ".join(map(str, lacking[:5])) + ", …" * (len(lacking) > 5)
        raise CheckpointError(
            f"{directory / METRICS_FILE} has no line for {name} {numbers}, which lie before the saved state: {NEW_RUN}"
        )


def check_same_run(
    directory: Path,
    earlier: Mapping[str, Any],
    command: str,
    config: object,
    may_differ: Collection[str],
    before: object | None,
) -> None:
    """Raise an error, naming the differences, unless a record is of this command with these settings.

    Args:
        directory: the run folder, for the message.
        earlier: the record.
        command: name of the command.
        config: its settings.
        may_differ: names of settings that may differ.
        before: values of settings that the record does not hold, as in :func:`differences`.

    Raises:
        ConfigurationError: the command or a setting differs.
    """
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
    """Return the settings that are not equal as text, which is empty if all are equal.

    Args:
        there: the settings in a record.
        now: the present settings, a dataclass or mapping.
        but: names of settings that may differ.
        before: settings with the values that count where one of the two lacks a setting, because another version wrote
            it. None stands for the defaults of ``now``, if it is a dataclass.
    """
    usual = _defaults(now) if before is None else plain(before)
    then, ours = {**usual, **there}, {**usual, **plain(now)}
    keys = [key for key in {**there, **ours} if key not in but and then.get(key) != ours.get(key)]
    return ", ".join(f"{key} ({_said(then.get(key))} there, {_said(ours.get(key))} now)" for key in keys)


def _said(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else shown(value)


def _defaults(settings: object) -> dict[str, Any]:
    known = fields(settings) if is_dataclass(settings) else ()
    return {field.name: plain(field.default) for field in known if field.default is not MISSING}


def _drop_partial_line(path: Path) -> None:
    if path.exists() and not (data := read_regular(path)).endswith(b"\n") and data:
        replace_file(path, data[: data.rfind(b"\n") + 1])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
