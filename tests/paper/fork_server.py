"""Runs tests on the package with an error planted in it, each time in a fork of a process that has all of it loaded.

The arguments are the modules of tests to load. Requests come from standard input, a JSON line each:
    {"tests": file, "chosen": which of them, as for pytest -k, "output": file, "error": [file, right, wrong] or null}
and the answers are pytest's exit statuses. To plant an error, the source of one file of the package is compiled with
``wrong`` in the place of ``right``, and the functions that this changes get the new code. So it reaches every module
that has imported them.
"""

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import CodeType, FunctionType

import pytest
import torch

ROOT = Path(__file__).parents[2]
OPTIONS = f"-q -x -p no:cacheprovider -p no:xdist -o addopts= -c /dev/null --assert=plain --rootdir {ROOT}"
SECONDS = 300


def warm() -> None:
    """Load what torch loads at the first derivative."""
    vector = torch.ones(2)
    torch.func.vmap(torch.func.grad(torch.sum))(torch.ones(2, 2))
    torch.func.jvp(torch.sum, (vector,), (vector,))


def codes(code: CodeType) -> Iterator[CodeType]:
    """The code of the functions and methods of a module, without those inside functions."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            if not part.co_flags & 0x1:  # CO_OPTIMIZED: a function; otherwise the body of a class
                yield from codes(part)


def plant(functions: list[FunctionType], file: Path, right: str, wrong: str) -> None:
    """Give those of the functions that the change of this source changes their new code; raises if there are none."""
    source = file.read_text()
    before, after = (
        codes(compile(text, str(file), "exec", dont_inherit=True))
        for text in (source, source.replace(right, wrong))
    )
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    found = [(each, new) for old, new in changed for each in functions if each.__code__ == old]
    if not found:
        raise LookupError(f"no function in use has {right!r} of {file}")
    for function, new in found:
        function.__code__ = new


def run(request: dict, functions: list[FunctionType]) -> int:
    """Exit status of the tests, in this process."""
    with Path(request["output"]).open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        signal.alarm(SECONDS)
        if request["error"] is not None:
            file, right, wrong = request["error"]
            plant(functions, ROOT / "mamltheory" / file, right, wrong)
        status = pytest.main([*OPTIONS.split(), request["tests"], "-k", request["chosen"]])
        sys.stdout.flush()
        return int(status)


def serve(modules: list[str]) -> None:
    """Answer until the input ends."""
    sys.path.insert(0, str(ROOT))
    for name in chain(["tests.conftest"], modules):
        importlib.import_module(name)
    warm()
    package = str(ROOT / "mamltheory")
    functions = [
        each
        for each in gc.get_objects()
        if isinstance(each, FunctionType) and each.__code__.co_filename.startswith(package)
    ]
    gc.freeze()  # a fork collects no garbage among what it has inherited
    for line in sys.stdin:
        process = os.fork()
        if not process:
            status = 70  # an error of this file, not of pytest
            try:
                status = run(json.loads(line), functions)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        _, waited = os.waitpid(process, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(waited)}\n")
        sys.stdout.flush()


@contextmanager
def planted_errors(*modules: str) -> Iterator[Callable[..., tuple[int, str]]]:
    """A function (file of tests, which of them, (file, right, wrong) or None) -> exit status and output.

    Args:
        modules: the names of the modules of tests.

    Yields:
        The function; the tests run in a process that ends with the context.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, __file__, *modules],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"

        def outcome(tests: Path, chosen: str, error: tuple[str, str, str] | None) -> tuple[int, str]:
            request = {"tests": str(tests), "chosen": chosen, "output": str(output), "error": error}
            server.stdin.write(f"{json.dumps(request)}\n")
            server.stdin.flush()
            answer = server.stdout.readline()
            assert answer, f"the process that runs the tests has ended with {server.wait(timeout=30)}"
            return int(answer), output.read_text()

        try:
            yield outcome
        finally:
            server.stdin.close()
            server.wait(timeout=30)
            server.stdout.close()


if __name__ == "__main__":
    serve(sys.argv[1:])
