"""The settings of ``report``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunReport:
    """One HTML page of a run, or of several compared: verdict, cell, course, curves, tables, settings, versions."""

    runs: tuple[Path, ...] = ()
    """Folders of runs, finished or not, or folders that hold some; the flag is optional: report RUN RUN."""
    out: Path = Path("runs/report")
    """The page, a name that ends in .html or .htm, or its folder."""

    def default_words(self) -> dict[str, str]:
        """What settings without a value stand for, as help shows it."""
        return {} if self.runs else {"runs": "none, name at least one"}
