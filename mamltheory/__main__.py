"""``python -m mamltheory COMMAND [flags]``: the commands of the installed package, as ``mamltheory COMMAND``."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def commands() -> str:
    """The package of the commands, which a wheel holds within this one and a repository next to it.

    Returns:
        Its name; the folder of a repository is put on the path.

    Raises:
        SystemExit: There are no commands; the message says what to do.
    """
    if find_spec("mamltheory.experiments") is not None:
        return "mamltheory.experiments"
    clone = Path(__file__).resolve().parents[1]
    if not (clone / "experiments" / "commands.py").is_file():
        raise SystemExit(
            "error: this copy of mamltheory has no commands: type pip install . in its repository"
        )
    sys.path.insert(0, str(clone))
    return "experiments"


if __name__ == "__main__":
    sys.exit(import_module(f"{commands()}.__main__").run_program())
