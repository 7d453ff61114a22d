"""The settings of the command that hands out published cells."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedCells:
    """A published cell of MetaNTK-NAS or MetaNAS as a genotype file; all of them are listed without a name."""

    name: str = ""
    """Which cell; see the list. The flag may be left out: cell NAME."""
    out: Path = Path("genotype.json")
    """The file to write, for ``train --genotype``."""
