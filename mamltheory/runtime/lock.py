"""Only one process writes into a folder; the message to a second one names the first."""

import errno
import json
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from mamltheory.errors import ConfigurationError

LOCK_FILE, HOLDER_FILE = ".lock", ".lock.json"
PATIENCE = 0.2
"""Seconds in which a lock file that its holder is about to remove is gone."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system without locks answers."""
_held: dict[Path, BaseFileLock] = {}


def hold(directory: Path) -> bool:
    """Keep other processes from writing into ``directory`` until :func:`let_go`, or until this process ends.

    Args:
        directory: the folder, which is made if it does not exist.

    Returns:
        Whether this call took the lock: not where the process holds it already or the file system has no locks.

    Raises:
        ConfigurationError: another process, which the message names, holds the folder.
        OSError: the lock cannot be made, for example in a folder that is read-only.
    """
    directory = directory.resolve()
    if directory in _held:
        return False
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK_FILE, timeout=PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"{directory} is being written by {_holder(directory)}: wait for it, stop it, or choose another --out"
        ) from None
    except NotImplementedError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    with suppress(OSError):  # a full disk: the lock holds, but nobody knows its holder
        (directory / HOLDER_FILE).write_text(json.dumps(_this_process()), encoding="utf-8")
    _held[directory] = lock
    return True


def let_go(directory: Path) -> None:
    """Release the folder; does nothing when this process does not hold it."""
    directory = directory.resolve()
    lock = _held.pop(directory, None)
    if lock is not None:
        for name in (HOLDER_FILE, LOCK_FILE):
            with suppress(OSError):  # a file that cannot be removed must not keep the lock
                (directory / name).unlink()  # while locked, or it could be the file of another process
        lock.release()


def _this_process() -> dict[str, object]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "since": now}


def _holder(directory: Path) -> str:
    try:
        other = json.loads((directory / HOLDER_FILE).read_bytes()[:4096])
        return f"process {other['process']} on {other['host']} since {other['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
