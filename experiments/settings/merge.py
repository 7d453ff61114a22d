"""The settings of the command that joins the shards of a search."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Merge:
    """Join what ``search --shard i/n`` has computed into the search, and prune once the round is complete."""

    out: Path = Path("runs/search")
    """Run folder of the search."""
