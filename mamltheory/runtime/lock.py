"""Only one process writes into a folder; the message to a second one names the first."""

import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from mamltheory.errors import ConfigurationError

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing is locked there
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
_held: dict[Path, int] = {}


def hold(directory: Path) -> bool:
    """Keep other processes from writing into ``directory`` until :func:`let_go`, or until this process ends.

    Args:
        directory: the folder, which is made if it does not exist.

    Returns:
        Whether this call took the lock: not where the process holds it already or the file system has no locks.

    Raises:
        ConfigurationError: another process, which the message names, holds the folder.
    """
    directory = directory.resolve()
    if fcntl is None or directory in _held:
        return False
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0)
            os.close(descriptor)
            raise ConfigurationError(
                f"{directory} is being written by {_named(holder)}: wait for it, stop it, or choose another --out"
            ) from None
        except OSError:
            os.close(descriptor)
            return False
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder removed the file between the two calls
    with suppress(OSError):  # a full disk: the lock holds, but does not name its holder
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_this_process()).encode(), 0)
    _held[directory] = descriptor
    return True


def let_go(directory: Path) -> None:
    """Release the folder; does nothing when this process does not hold it."""
    descriptor = _held.pop(directory.resolve(), None)
    if descriptor is not None:
        with suppress(OSError):  # a file that cannot be removed must not keep the lock
            (directory / LOCK_FILE).unlink()  # while locked, or it could be the file of another process
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, object]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _named(holder: bytes) -> str:
    try:
        other = json.loads(holder)
        return f"process {other['process']} on {other['host']} since {other['since']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
