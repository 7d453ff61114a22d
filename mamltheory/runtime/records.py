"""Results, configurations and environments as strict JSON, and files that are replaced whole."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.files import read_regular, reason, shown
from mamltheory.runtime.temporary import owner, remove_stale
from mamltheory.strict_json import MOST_BYTES, misfit, unsealed


def plain(value: object) -> Any:
    """Return ``value`` as dict, list, str, int, float, bool and None alone, which any JSON reader takes.

    Dataclasses become dicts, tuples become lists, paths become strings, tensors and arrays become nested lists. The
    floats that JSON lacks become the strings "inf", "-inf" and "nan", which ``float`` reads back. For another type
    ConfigurationError is raised.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, os.PathLike):
        return Path(value).as_posix()
    return _plain_container(value)


def _plain_container(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=json.dumps)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [plain(item) for item in value]
    if hasattr(value, "detach"):  # a torch tensor, without importing torch here
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.bool_)):
        return plain(value.tolist())
    raise ConfigurationError(
        f"cannot record a {type(value).__name__}: convert it to numbers, strings or lists of them"
    )


def _key(key: object) -> str:
    if not isinstance(key, (str, int)):
        raise ConfigurationError(f"cannot record the key {shown(key)}: keys must be strings or whole numbers")
    return str(key)


def to_json(value: object, indent: int | None = 2) -> str:
    """Return the strict JSON text of :func:`plain` of ``value``, ending in a newline; keys keep their order.

    Bytes of file names that are not UTF-8 are escaped, so that the text can be encoded and reads back the same.
    """
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"  # \udcNN is JSON's own escape as well


def sha256(data: bytes) -> str:
    """The hexadecimal SHA-256 digest of ``data``."""
    return hashlib.sha256(data).hexdigest()


def write_synced(path: Path, data: bytes) -> None:
    """Write ``data`` and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in ``directory`` are on the disk (where the system can do that)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``; readers and crashes see the old content or the new, never a part.

    Temporary files that killed writers of this file have left are removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, path.name)
    temporary = path.with_name(f".{path.name}.{owner(os.getpid())}.tmp")
    try:
        write_synced(temporary, data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_record(path: Path, kind: object, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file that was written with :func:`mamltheory.strict_json.sealed`.

    Args:
        path: the file.
        kind: type that the object must fit (see :func:`mamltheory.strict_json.misfit`).
        remedy: end of the message: what the user can do.

    Raises:
        CheckpointError: the file was changed, does not fit the type, or cannot be read.
    """
    try:
        content, _ = unsealed(read_regular(path, MOST_BYTES))
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({reason(error)}): {remedy}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} {error}: {remedy}") from None
    if wrong := misfit(content, kind, "it"):
        raise CheckpointError(f"{path} holds something else ({wrong}): {remedy}")
    return content
