"""The initial weights of networks of cells, layer by layer."""

from typing import Literal

import torch
from torch import nn

from mamltheory.rng import generator

Initialisation = Literal["kaiming", "default"]
"""Kaiming normal (Section 5), or PyTorch's own, which is what the released code has in effect."""


def initialise(network: nn.Module, seed: int, initialisation: Initialisation = "kaiming") -> None:
    """Draws all weights, every layer from (seed, its name); norms at scale 1 and shift 0."""
    for name, module in network.named_modules():
        draw_weights(name, module, seed, initialisation)


def draw_weights(name: str, module: nn.Module, seed: int, initialisation: Initialisation) -> None:
    """Draws the weights of one layer, in place; layers that are not the paper's by their ``reset_parameters``."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        initialise_layer(module, initialisation, generator(seed, f"weights {name}"))
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        module.reset_parameters()
    elif next(module.parameters(recurse=False), None) is not None:
        reset = getattr(module, "reset_parameters", None)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(seed, f"weights {name}").get_state())
            if callable(reset):
                reset()


def initialise_layer(
    module: nn.Conv2d | nn.Linear, initialisation: Initialisation, stream: torch.Generator
) -> None:
    """Kaiming-normal weights W ~ N(0, 2/fan_in), or N(0, 1/fan_in) for a linear head, which follows no ReLU, and no
    bias; the default: weights and bias uniform in ±1/√fan_in, of variance 1/(3 fan_in).
    """
    fan_in = module.weight[0].numel()
    with torch.no_grad():
        if initialisation == "kaiming":
            gain = 2.0 if isinstance(module, nn.Conv2d) else 1.0
            draw = torch.randn(module.weight.shape, generator=stream)
            module.weight.copy_(draw * (gain / fan_in) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            return
        for parameter in (module.weight, module.bias):
            if parameter is not None:
                draw = 2 * torch.rand(parameter.shape, generator=stream) - 1
                parameter.copy_(draw / fan_in**0.5)
