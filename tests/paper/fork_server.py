"""Runs the exact layer on copies of the package, each in a fork of a process that has its libraries loaded.

Reads folders from standard input, a line each, and answers with pytest's exit status; what pytest printed is left in
FOLDER/output. Neither the package nor its tests are imported before the fork, so that every copy is its own.
"""

import os
import signal
import sys
import traceback
from pathlib import Path

# Most of what a run loads; the first transforms load more of torch.
import hypothesis  # noqa: F401
import jaxtyping  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import pytest
import scipy.special  # noqa: F401
import torch
from beartype import claw  # noqa: F401

OPTIONS = "-q -x -p no:cacheprovider -o addopts= -c /dev/null --import-mode=importlib --assert=plain"
FAST = "erf-L2-l5-k2-maml-3 or erf-L2-l5-k2-anil-3"
SECONDS = 300


def warm() -> None:
    """Load what torch loads at the first derivative."""
    vector = torch.ones(2)
    torch.func.vmap(torch.func.grad(torch.sum))(torch.ones(2, 2))
    torch.func.jvp(torch.sum, (vector,), (vector,))


def run_copy(folder: Path) -> int:
    """Exit status of the exact layer on the copy, in this process."""
    with (folder / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        signal.alarm(SECONDS)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        tests = str(folder / "tests" / "paper" / "test_exact.py")
        status = pytest.main([*OPTIONS.split(), "--rootdir", str(folder), tests, "-k", FAST])
        sys.stdout.flush()
        return int(status)


def serve() -> None:
    """Answer until the input ends."""
    warm()
    for line in sys.stdin:
        process = os.fork()
        if not process:
            status = 70  # an error of this file, not of pytest
            try:
                status = run_copy(Path(line.rstrip("\n")))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, waited = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(waited)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
