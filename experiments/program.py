"""How a user calls the commands: ``python -m experiments`` in the repository, ``mamltheory`` once installed.

A wheel holds this folder as ``mamltheory.experiments``, so that it claims no second top-level name; for that, imports
within the folder are relative.
"""

from pathlib import Path

PACKAGE = __name__.rpartition(".")[0]
"""The name under which this folder is imported."""
_INSTALLED = PACKAGE != "experiments"
MODULE = "mamltheory" if _INSTALLED else PACKAGE
"""What follows ``python -m`` or ``torchrun -m``."""
PROGRAM = MODULE if _INSTALLED else f"python -m {MODULE}"
"""The first words of a command line in one process; :func:`program_in` has those for several."""
ROOT = Path(__file__).resolve().parents[1 + PACKAGE.count(".")]
"""The folder from which another process can import ``PACKAGE``."""


def program_in(processes: int) -> str:
    """The first words of a command line that runs in so many processes."""
    return PROGRAM if processes == 1 else f"torchrun --nproc-per-node {processes} -m {MODULE}"
