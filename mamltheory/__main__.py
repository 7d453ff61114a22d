"""``python -m mamltheory COMMAND [flags]``: the commands of the installed package, as ``mamltheory COMMAND``."""

import sys
from importlib import import_module

if __name__ == "__main__":
    # The wheel has the commands here; a repository has them next to the package: python -m experiments.
    sys.exit(import_module("mamltheory.experiments.__main__").run_program())
