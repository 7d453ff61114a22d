"""Saved states: directories of safetensors, JSON and SHA-256 digests that appear whole or not at all.

A state is written to a temporary directory, synced to the disk, and renamed into place. Files that do not match their
digests are never used, and nothing that is loaded can contain code. Only one process writes into a directory.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mamltheory.errors import CheckpointError
from mamltheory.files import read_regular, reason, shown
from mamltheory.runtime.records import sha256, sync_directory, write_synced
from mamltheory.runtime.temporary import FOLDER, owner, remove_stale
from mamltheory.strict_json import misfit, parse

TENSORS, STATE, DIGESTS = "tensors.safetensors", "state.json", "SHA256SUMS"
PREFIX = "state-"
LOADS = 20
"""How often a folder is read again because a writer has changed it meanwhile."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded state.

    Attributes:
        tensors: tensors by name, on the CPU.
        state: the other values, as JSON gives them.
        path: where it was read.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


def save_state(
    directory: Path, tensors: Mapping[str, Tensor], state: Mapping[str, object], keep: int = 2
) -> Path:
    """Add a state to a directory and remove the oldest ones.

    Args:
        directory: the directory of the states.
        tensors: tensors by name.
        state: dicts with string keys, lists, strings, numbers, booleans and None, which come back equal.
        keep: number of states to keep, with the new one.

    Returns:
        The path of the new state.

    Raises:
        CheckpointError: ``state`` holds another type, keep is below 1, or the disk refuses.
    """
    if keep < 1:
        raise CheckpointError(f"keep is {keep}: expected at least 1, the state just saved")
    _check_plain(state, "state")
    content = {TENSORS: _pack(tensors), STATE: json.dumps(state, ensure_ascii=False).encode()}
    content[DIGESTS] = _digests(content)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_stale(directory)
        number = max((_number(path) for path in _states(directory)), default=0) + 1
        path = _commit(directory, f"{PREFIX}{number:08d}", content)
        for old in _states(directory)[:-keep]:
            _remove(old)
    except OSError as error:
        raise CheckpointError(
            f"cannot save to {directory}: {error}; free space or choose another folder"
        ) from error
    return path


def load_state(directory: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """The newest intact state in a directory, into which another process may be saving.

    Args:
        directory: the directory of the states.
        report: is called with a sentence about every broken state that is skipped.

    Returns:
        The state; None if the directory holds none.

    Raises:
        CheckpointError: all states are broken.
    """
    states = _states(directory)
    for _ in range(LOADS):
        found, broken = _first_good(states)
        # A state that cannot be read may have been removed for newer ones, which is no damage.
        before, states = states, _states(directory) if broken else states
        if states == before:
            for error in broken:
                report(
                    f"{error}; " + ("trying the state before it" if found else "there is no other before it")
                )
            if found is None and states:
                raise CheckpointError(
                    f"all {len(states)} saved states in {directory} are broken: put back a copy of one, or move them "
                    "elsewhere to start again"
                )
            return found
    raise CheckpointError(f"{directory} changes faster than it can be read: try again")


def _first_good(states: Sequence[Path]) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest state that can be read, and the errors of those after it."""
    broken: list[CheckpointError] = []
    for path in reversed(states):
        try:
            return read_state(path), broken
        except CheckpointError as error:
            broken.append(error)
    return None, broken


def read_state(path: Path) -> Checkpoint:
    """The state at ``path``; raises CheckpointError unless every byte is as it was written."""
    try:
        content = {name: read_regular(path / name) for name in (TENSORS, STATE)}
        recorded = read_regular(path / DIGESTS)
    except OSError as error:
        raise CheckpointError(f"the saved state {path} is incomplete ({reason(error)})") from error
    if recorded != _digests(content):
        raise CheckpointError(f"the saved state {path} is damaged: its files do not match {DIGESTS}")
    try:
        state = parse(content[STATE], infinite=True)
        if not isinstance(state, dict):
            raise ValueError(misfit(state, dict[str, object], STATE))
        return Checkpoint(safetensors.torch.load(content[TENSORS]), state, path)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"the saved state {path} is not in this format: {reason(error)}") from error


def check_state(checkpoint: Checkpoint, kind: object) -> None:
    """Raise CheckpointError unless the values of a state fit the type ``kind`` (see ``strict_json.misfit``)."""
    if wrong := misfit(checkpoint.state, kind, "it"):
        raise CheckpointError(
            f"{checkpoint.path / STATE} is not what this command saves ({wrong}): start again with another --out"
        )


def _states(directory: Path) -> list[Path]:
    found = [path for path in directory.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    # Copies: safetensors refuses views that share memory, such as tied weights.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(own)


def _digests(content: Mapping[str, bytes]) -> bytes:
    """The text that ``sha256sum -c`` reads; fixed to the byte, so damage to it is found as well."""
    return "".join(f"{sha256(content[name])}  {name}\n" for name in (TENSORS, STATE)).encode()


def _commit(directory: Path, name: str, content: Mapping[str, bytes]) -> Path:
    temporary = directory / _temporary_name()
    temporary.mkdir()
    try:
        for file, data in content.items():
            write_synced(temporary / file, data)
        sync_directory(temporary)
        temporary.rename(directory / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(directory)
    return directory / name


def _remove(path: Path) -> None:
    # Renamed first: a crash half-way through must not leave half a state under a state's name.
    doomed = path.with_name(_temporary_name())
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _temporary_name() -> str:
    return f"{FOLDER}{owner(os.getpid())}"


def _check_plain(value: object, where: str) -> None:
    if value is None or type(value) in (bool, int, float, str):
        return
    if isinstance(value, list):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {shown(key)}: JSON keeps only strings as keys")
            _check_plain(item, f"{where}[{shown(key)}]")
    else:
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which JSON would not give back: convert it to a list, "
            "dict, string or number, or store it as a tensor"
        )
