"""Checks of settings; the message of an error says what to change."""

import itertools
from collections.abc import Collection


def require(condition: bool, message: str) -> None:
    """Raise ConfigurationError with ``message`` unless ``condition`` holds."""
    if not condition:
        # Imported only here: the package loads torch, which help and good settings do not need.
        from mamltheory.errors import ConfigurationError

        raise ConfigurationError(message)


def require_at_least(settings: object, least: float, names: Collection[str]) -> None:
    """Raise ConfigurationError unless each named setting is at least ``least`` (NaN never is)."""
    for name in names:
        value = getattr(settings, name)
        require(value >= least, f"{name} is {value}: expected at least {least}")


def require_widths(name: str, widths: tuple[int, ...]) -> None:
    """Raise ConfigurationError unless these are two or more whole numbers in increasing order."""
    require(len(widths) > 0, f"{name} is empty: give at least two numbers")
    require(min(widths) >= 1, f"{name} contains {min(widths)}: expected whole numbers from 1 up")
    increasing = all(a < b for a, b in itertools.pairwise(widths))
    require(increasing, f"{name} is {widths}: give them in increasing order, each once")
    require(len(widths) > 1, f"{name} is {widths}: a slope needs at least two")
