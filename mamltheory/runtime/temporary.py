"""Temporary files and folders, whose names tell the process that writes them, and the removal of abandoned ones."""

import os
import re
import shutil
import socket
import time
import uuid
from pathlib import Path

FOLDER = ".tmp-"
SECONDS_UNTIL_STALE = 24 * 3600.0
SLACK = 60.0
"""Seconds by which the clocks of the file system and of the processes may differ."""
_FOLDER = re.compile(r"\.tmp-(\d+)-[^-]*-(.*)\Z")
_FILE = re.compile(r"\.(\d+)(?:-[0-9a-f]{8}-(.+))?\.tmp\Z")


def owner(pid: int) -> str:
    """A unique part of a name, which tells the process and the machine."""
    return f"{pid}-{uuid.uuid4().hex[:8]}-{socket.gethostname()}"


def remove_stale(directory: Path, name: str = "*", alone: bool = False) -> list[Path]:
    """Remove what crashed processes left half-written in a directory.

    Args:
        directory: the directory.
        name: name of the file that was being written; by default every file and folder.
        alone: no other process writes into the directory, nor does this one now, so everything temporary is removed.

    Returns:
        The removed paths.
    """
    found = list(directory.glob(f".{_literal(name)}.*.tmp"))
    if name == "*":
        found += directory.glob(f"{FOLDER}*")
    stale = [path for path in found if alone or is_stale(path)]
    for path in stale:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            _unlink(path)
    return stale


def _literal(name: str) -> str:
    return name if name == "*" else "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a leftover does no harm


def is_stale(path: Path) -> bool:
    """Return whether a temporary file is abandoned: it is a day old, or its process on this machine has ended.

    The system reuses process numbers: a process that began after the file was written is not its writer.
    """
    try:
        written = path.stat().st_mtime
    except OSError:
        return False
    pid, host = _writer(path.name)
    if time.time() - written > SECONDS_UNTIL_STALE:
        return True
    if host not in ("", socket.gethostname()) or not pid.isdecimal():
        return False
    begun = _begun(int(pid))
    return not _is_running(int(pid)) or (begun is not None and begun > written + SLACK)


def _writer(name: str) -> tuple[str, str]:
    """Process and host in a temporary name; earlier versions wrote no host, for which it is empty."""
    found = _FOLDER.match(name) or _FILE.search(name)
    return (found[1], found[2] or "") if found else ("", "")


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _begun(pid: int) -> float | None:
    """When a process began, in seconds since 1970; None where the system does not say."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = next(
            line for line in Path("/proc/stat").read_bytes().splitlines() if line.startswith(b"btime ")
        )
        return int(boot.split()[1]) + int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None
