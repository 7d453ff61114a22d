"""Names of scores and settings in the report on a table, in plain words."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "parameters": "log parameters",
    "macs": "log multiply-accumulates",
    "maml condition": "C_N of the MetaNTK",
    "anil condition": "C_N of the MetaNTK of ANIL",
    "ntk condition": "condition number of the NTK",
    "maml harmonic": "harmonic number of the MetaNTK",
    "anil harmonic": "harmonic number of the MetaNTK of ANIL",
    "ntk harmonic": "harmonic number of the NTK",
    "regions": "linear regions R_N",
    "paper": "sum of ranks C_N + R_N",
    "te-nas": "sum of ranks, NTK and R_N",
    "regression loss": "loss of NTK regression",
    "regression accuracy": "accuracy of NTK regression",
}


def epochs_in_words(epochs: int) -> str:
    """For example "4 epochs"."""
    return f"{epochs} epoch{'' if epochs == 1 else 's'}"


def settings_words(settings: Mapping[str, Any], *names: str) -> str:
    """The settings of these names that a table has, for example "data glyphs, image size 32"."""
    return ", ".join(f"{name.replace('_', ' ')} {settings[name]}" for name in names if name in settings)
