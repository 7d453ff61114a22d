"""Saves states as fast as it can until it is killed; the kill test starts it in a separate process."""

import sys
from pathlib import Path

import torch

from mamltheory.runtime import checkpoint


def expected(step):
    return torch.full((50_000,), float(step), dtype=torch.float64)


def main(directory):
    before = checkpoint.load_state(directory, report=sys.exit)
    step = 0 if before is None else before.state["step"]
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()
    while True:
        step += 1
        checkpoint.save_state(directory, {"weights": expected(step)}, {"step": step}, keep=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
