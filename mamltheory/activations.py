"""Activation functions by name, and the checks of a function that a user passes instead."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mamltheory.errors import ValueRangeError

Activation = Callable[[Tensor], Tensor]


def softplus(h: Tensor) -> Tensor:
    """log(1 + e^h), smooth everywhere; torch's own is the identity from 20 on, with a jump of 2e-9."""
    return torch.logaddexp(h, torch.zeros_like(h))


ACTIVATIONS: dict[str, Activation] = {
    "erf": torch.erf,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "softplus": softplus,
    "sin": torch.sin,
}

FACTORED = frozenset({"erf", "tanh", "relu"})
"""Activations whose first two derivatives the factored inner loop has in closed form."""


def activation_function(activation: str | Activation) -> Activation:
    """σ from its name, or the function itself."""
    return ACTIVATIONS[activation] if isinstance(activation, str) else activation


def check_activation(activation: Any) -> None:
    """A ValueRangeError unless ``activation`` is a known name, or a function that acts on every number alone."""
    expected = f"expected one of {sorted(ACTIVATIONS)}, or a pointwise function of a tensor"
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueRangeError(f"activation is {activation!r}: {expected}")
        return
    if not callable(activation):
        raise ValueRangeError(f"activation is {activation!r}: {expected}")
    h = torch.linspace(-2, 2, 7, dtype=torch.float64)
    try:
        whole, part = activation(h), activation(h[:3].reshape(3, 1))
        pointwise = bool(torch.isfinite(whole).all()) and torch.equal(whole[:3], part.reshape(3))
    except Exception as error:
        raise ValueRangeError(f"activation fails on a tensor ({error}): {expected}") from error
    if whole.shape != h.shape or part.shape != (3, 1) or whole.dtype != h.dtype or not pointwise:
        raise ValueRangeError(
            f"activation maps float64 of shape {tuple(h.shape)} to {whole.dtype} of shape {tuple(whole.shape)}, or "
            f"mixes entries: {expected}"
        )
