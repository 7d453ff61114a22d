"""Functions and values of a user's own modules, which settings name as MODULE:NAME."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from mamltheory.errors import ConfigurationError
from mamltheory.files import reason
from mamltheory.nas.scoring.own_score import OwnScore
from mamltheory.nas.space import PAPER, Space, check_operations

from .inputs import look_here, not_importable


def named_value(name: str, expected: str) -> Any:
    """What MODULE:NAME names; modules of the current folder are found.

    Args:
        name: The name.
        expected: What is looked for, for messages.

    Returns:
        The value.

    Raises:
        ConfigurationError: There is no such value.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigurationError(f"got {name!r}: expected MODULE:NAME of {expected}, as in my_module:mine")
    look_here()
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        what = f"{type(error).__name__}: {reason(error)}"
        raise ConfigurationError(not_importable(name, expected, what)) from error


def function_of(name: str) -> Callable[..., Any]:
    """The function that MODULE:FUNCTION names; raises ConfigurationError for anything else."""
    found = named_value(name, "a function")
    if not callable(found):
        raise ConfigurationError(f"{name!r} is a {type(found).__name__}: expected a function")
    return found


@lru_cache
def space_of(name: str | None) -> Space:
    """The search space that MODULE:NAME names, checked; the paper's for None."""
    if name is None:
        return PAPER
    found = named_value(name, "a search space")
    if not isinstance(found, Space):
        raise ConfigurationError(f"{name!r} is a {type(found).__name__}: expected a mamltheory.nas.Space")
    check_operations(found)
    return replace(found, name=name)


def score_of(name: str | None) -> OwnScore | None:
    """The score that MODULE:NAME names, which is a function or an OwnScore; None for None."""
    if name is None:
        return None
    found = named_value(name, "a score")
    if not isinstance(found, OwnScore) and (isinstance(found, type) or not callable(found)):
        raise ConfigurationError(
            f"{name!r} is a {type(found).__name__}: expected a function of network and tasks, or an OwnScore"
        )
    return found if isinstance(found, OwnScore) else OwnScore(found)
