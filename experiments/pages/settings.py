"""The settings of ``report``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunReport:
    """One HTML page of a run, or of several compared: verdict, cell, course, curves, tables, settings, versions."""

    runs: tuple[Path, ...] = ()
    """Folders that commands wrote, finished or not; a folder that holds runs stands for all of them. The flag is
    optional: report RUN RUN."""
    out: Path = Path("runs/report")
    """The page, a name that ends in .html, or its folder."""
