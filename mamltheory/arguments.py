"""Checks of plain arguments that many functions take: numbers, choices, functions, devices."""

from collections.abc import Collection
from numbers import Integral

import torch

from mamltheory.errors import ConfigurationError

MOST = 10**9
"""No number of samples, steps or parameters is larger."""
MOST_NUMBER = 1e300


def check_whole(least: int = 1, most: int = MOST, **values: object) -> None:
    """Raise ConfigurationError unless each named value is a whole number within these limits."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
            raise ConfigurationError(
                f"{name} is {value!r:.80}: expected a whole number from {least} to {most}"
            )


def check_positive(**values: object) -> None:
    """Raise ConfigurationError unless each named value is a positive finite number."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MOST_NUMBER:
            raise ConfigurationError(f"{name} is {value!r:.80}: expected a positive finite number")


def check_seed(seed: object) -> None:
    """Raise ConfigurationError unless the seed is a whole number below 2⁶³."""
    check_whole(least=0, most=2**63 - 1, seed=seed)


def check_choice(choices: Collection[str], **values: object) -> None:
    """Raise ConfigurationError unless each named value is one of the words."""
    for name, value in values.items():
        if not isinstance(value, str) or value not in choices:
            raise ConfigurationError(f"{name} is {value!r:.80}: expected one of {', '.join(choices)}")


def check_kind(kind: type, **values: object) -> None:
    """Raise ConfigurationError unless each named value is None or of this kind."""
    for name, value in values.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigurationError(
                f"{name} is a {type(value).__name__}: expected a {kind.__name__}, or None"
            )


def check_function(**values: object) -> None:
    """Raise ConfigurationError unless each named value is None or can be called."""
    for name, value in values.items():
        if value is not None and (isinstance(value, type) or not callable(value)):
            raise ConfigurationError(f"{name} is {value!r:.80}: expected a function, or None")


def checked_device(device: object) -> torch.device:
    """The device; raises ConfigurationError if this machine has none of this name."""
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError):
        raise ConfigurationError(
            f"the device is {device!r:.80}: expected cpu, or cuda where this machine has one"
        ) from None
    return found
