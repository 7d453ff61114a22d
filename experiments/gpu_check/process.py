"""The process of a stage: ``python -m experiments.gpu_check.process REQUEST`` writes a line of JSON for every line."""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mamltheory.errors import ConfigurationError
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.records import to_json

from ..program import ROOT
from .machine import Machine
from .settings import FAKE


def check_fake_device() -> None:
    """Raise ConfigurationError unless the device of the rehearsal is there: it belongs to the tests."""
    if not (ROOT / "tests" / "fake_cuda").is_dir():
        raise ConfigurationError(
            f"device {FAKE} needs tests/fake_cuda of the repository, which an installed package lacks: run the "
            "command in a checkout"
        )


@contextmanager
def machine_of(device: str, seconds: float) -> Iterator[Machine]:
    """The device of a stage, within whose block it can be used.

    Args:
        device: "cuda", "cuda:N" or "fake".
        seconds: What the stage may take.

    Yields:
        The device.
    """
    if device == FAKE:
        check_fake_device()
        with importlib.import_module("tests.fake_cuda").fake_cuda() as card:
            yield Machine(torch.device("cuda", 0), card, seconds)
        return
    chosen = choose_device(device).device
    torch.cuda.set_device(chosen)
    yield Machine(chosen, None, seconds)


def without_root(text: str) -> str:
    """The text with paths from the root of the source tree."""
    return text.replace(f"{ROOT}/", "")


def run_stage(request: dict) -> int:
    """Run the function of a stage, write its lines, and return the exit status."""
    # What else is printed goes to the log.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def write(line: dict) -> None:
        lines.write(without_root(to_json(line, indent=None)))
        lines.flush()

    try:
        module, name = request["function"].split(":")
        function = getattr(importlib.import_module(module), name)
        with machine_of(request["device"], request["seconds"]) as machine:
            for line in function(machine):
                write(line._asdict())
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        write({"error": f"{type(error).__name__}: {first}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_stage(json.loads(sys.argv[1])))
