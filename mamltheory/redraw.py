"""New default weights for a network: the layers draw them, and what no layer can draw is named."""

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mamltheory.errors import ConfigurationError
from mamltheory.files import reason
from mamltheory.guard import as_model
from mamltheory.modules import check_module, plain_numerics, rescaled_weights
from mamltheory.networks import output_of

RESETS = "reset_parameters", "_reset_parameters"
"""The methods by which layers of torch draw their weights; nn.MultiheadAttention and nn.Transformer have the second."""
LEAST = 16
"""Fewest entries of a tensor whose norm is compared."""
OWN = "give a function that builds the network with its own initialisation, mt.score(lambda seed: build(), tasks)"


def redrawn(network: nn.Module, random: torch.Generator) -> tuple[nn.Module, frozenset[str]]:
    """A copy of the network with weights that its layers draw, and the names of the parameters that none has drawn.

    A layer is drawn before the module that holds it, as when they are made: nn.Transformer draws the weights of its
    layers once more. A weight with a parametrisation is drawn as the layer draws it, and then assigned.

    Args:
        network: a network that :func:`mamltheory.modules.check_module` accepts; it stays as it is.
        random: gives the state from which torch's generator starts; the generator is put back afterwards.

    Returns:
        The copy, and the names. A parameter that no layer draws, or only in part, keeps its values, and so does one
        that requires no gradient.

    Raises:
        ConfigurationError: the network cannot be copied; or, of :func:`_reset`, a layer fails to draw.
    """
    try:
        drawn = copy.deepcopy(network)
    except Exception as error:
        raise ConfigurationError(
            f"the network cannot be copied, {type(error).__name__}: {reason(error)}; {OWN}"
        ) from error
    given = dict(network.named_parameters())
    with torch.no_grad():
        for value in drawn.parameters():
            if value.is_floating_point() or value.is_complex():
                value.fill_(math.nan)  # what is still NaN afterwards, no layer has drawn
    # Layers draw from torch's global generator alone; its state is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random.get_state())
        for name, module in _inner_first(drawn):
            _reset(name, module)
    fixed = {name for name, value in drawn.named_parameters() if bool(value.isnan().any())}
    with torch.no_grad():
        for name, value in drawn.named_parameters():
            kept = name in fixed or not given[name].requires_grad  # frozen weights are part of the network
            if kept or not (value.is_floating_point() or value.is_complex()):
                value.copy_(given[name])
    return drawn, frozenset(fixed)


def _inner_first(module: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    found = []
    for child, part in module.named_children():
        found += _inner_first(part, f"{name}.{child}" if name else child)
    return [*found, (name, module)]


def _reset(name: str, module: nn.Module) -> None:
    """Let one module draw its weights, also where parametrisations compute them."""
    reset = next((found for key in RESETS if callable(found := getattr(module, key, None))), None)
    if reset is None:
        return
    held: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    if any(True for key in held for _ in held[key].buffers()):
        return  # buffers, such as the vectors of spectral_norm, belong to the old weights
    try:
        with torch.no_grad(), parametrize.cached():
            # The layer writes to the cached weight, from which the parametrised parameters are computed below.
            values = {key: getattr(module, key) for key in held}
            reset()
    except Exception as error:
        raise ConfigurationError(
            f"{type(module).__name__} {name!r} fails to draw weights, {type(error).__name__}: {reason(error)}; {OWN}"
        ) from error
    for key in held:
        try:
            with torch.no_grad():
                setattr(module, key, values[key])
        except (RuntimeError, NotImplementedError, ValueError):
            continue  # a parametrisation without inverse: its parameters are not drawn


def check_drawable(network: nn.Module, x: Tensor, random: Sequence[torch.Generator], stacklevel: int) -> None:
    """Refuse a network with parameters that no layer draws, and warn of weights that are clearly no default draw.

    A UserWarning names parameters and running statistics with values that no draw has: other values where all draws
    have the same, a constant where draws differ, or a norm that differs by a factor of 1 + 8/√n or more from that of
    two draws of the n entries (3 for the smallest tensors compared, and at least 1.25).

    Args:
        network: the network.
        x: samples; parameters on which their outputs do not depend are let pass.
        random: of two draws.
        stacklevel: of the warning, as of :func:`warnings.warn`.

    Raises:
        ConfigurationError: parameters that require a gradient are drawn by no layer; the message names them.
    """
    check_module(network)
    (one, fixed), (two, _) = (redrawn(network, each) for each in random)
    held = {name for name, value in network.named_parameters() if name in fixed and value.requires_grad}
    if bare := _used(network, held, x):
        raise ConfigurationError(
            f"no layer of the network can draw {_listed(bare)}: an interval over initial weights needs draws of all "
            f"parameters; {OWN}, or keep them constant by requires_grad_(False)"
        )
    rescaled = rescaled_weights(network)
    first, second = _state(one), _state(two)
    other = [
        name
        for name, value in _state(network).items()
        if name not in fixed | rescaled and _is_other(value, first[name], second[name])
    ]
    if other:
        warnings.warn(
            f"the network holds weights that are no default draw, in {_listed(other)}: mt.score draws new "
            f"ones in their place, so that your initialisation or training has no influence; to keep your own, {OWN}",
            stacklevel=stacklevel,
        )


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers, such as running statistics, by name."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: value.detach() for name, value in tensors.items() if value.is_floating_point()}


def _is_other(given: Tensor, one: Tensor, two: Tensor) -> bool:
    """Whether values are clearly from another distribution than two draws."""
    if torch.equal(one, two):
        return not torch.equal(given, one)
    if given.numel() > 1 and bool((given == given.flatten()[0]).all()):
        return True
    if given.numel() < LEAST:
        return False
    norms = [float(torch.linalg.vector_norm(value.double())) for value in (given, one, two)]
    usual, factor = math.hypot(*norms[1:]) / math.sqrt(2), 1 + max(8 / math.sqrt(given.numel()), 0.25)
    return not usual / factor <= norms[0] <= usual * factor


@plain_numerics()
def _used(network: nn.Module, names: set[str], x: Tensor) -> list[str]:
    """Those of the parameters on which the outputs for these samples depend."""
    if not names:
        return []
    model, values = as_model(network)
    leaves = {name: values[name].detach().requires_grad_() for name in values if name in names}
    with torch.enable_grad():
        outputs = output_of(model, {**values, **leaves}, x)
    if not outputs.requires_grad:
        return []
    gradients = torch.autograd.grad(outputs.sum(), list(leaves.values()), allow_unused=True)
    return [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None]


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
