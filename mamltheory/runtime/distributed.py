"""Which share of the work this process does, under torchrun or alone."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mamltheory.errors import ConfigurationError

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """The rank of a process among ``size``, and its rank on its machine (the number of its GPU).

    Raises ConfigurationError for ranks outside the world.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.size and 0 <= self.local_rank < self.size):
            raise ConfigurationError(
                f"rank {self.rank}, local {self.local_rank}, of {self.size}: expected 0 <= rank < size"
            )

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0


def world(environ: Mapping[str, str] | None = None) -> World:
    """The world that torchrun describes in RANK, WORLD_SIZE and LOCAL_RANK; a world of one without it.

    Raises ConfigurationError when only a part of it is there, or not in whole numbers.
    """
    environ = os.environ if environ is None else environ
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    present = [name for name in names if name in environ]
    if not present:
        return World()
    if len(present) < len(names):
        missing = ", ".join(name for name in names if name not in present)
        raise ConfigurationError(
            f"{', '.join(present)} set without {missing}: start with torchrun, or unset them"
        )
    try:
        return World(*(int(environ[name]) for name in names))
    except ValueError as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers: {error}") from error


def shard(items: Sequence[Item], world: World) -> list[Item]:
    """The items of this process: every ``size``-th, so that the shards of all ranks partition ``items``."""
    return list(items[world.rank :: world.size])
