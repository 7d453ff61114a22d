"""Networks of a width for ``verify``: convolutional, residual with GroupNorm, a transformer, and one in mean field.

Each function takes the width and returns a module with new random weights, as your own function would.
"""

import torch
from torch import Tensor, nn

GROUPS = 2
HEADS = 2


class PlusInput(nn.Sequential):
    """x + g(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        return x + super().forward(x)


class Attention(nn.Module):
    """Self-attention of ``width`` with HEADS heads, in operations that can be differentiated any number of times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The mixed sequence, n × length × width."""
        parts = self.inputs(x).unflatten(-1, (3, HEADS, -1)).movedim(2, 0).transpose(2, 3)
        query, key, value = parts[0], parts[1], parts[2]
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return self.output((weights @ value).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """A transformer layer between two linear maps, with the mean over the sequence; inputs are n × length × size."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        mlp = (nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.Sequential(
            nn.Linear(size, width), PlusInput(nn.LayerNorm(width), Attention(width)), PlusInput(*mlp)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """One output for every sequence."""
        return self.head(self.layers(x).mean(1))


class Divided(nn.Module):
    """The outputs of a network, divided by a number."""

    def __init__(self, network: nn.Module, divisor: float) -> None:
        super().__init__()
        self.network, self.divisor = network, divisor

    def forward(self, x: Tensor) -> Tensor:
        """The quotient."""
        return self.network(x) / self.divisor


def small_convolution(width: int) -> nn.Module:
    """Two convolutions of ``width`` channels with tanh, for images of one channel; one output."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.Tanh(), nn.Conv2d(width, width, 3, stride=2), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1),
    )  # fmt: skip


def residual_network(width: int) -> nn.Module:
    """A residual block with GroupNorm of ``width`` channels, an even number, for images of one channel; one output."""
    block = PlusInput(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(GROUPS, width), nn.Softplus())
    return nn.Sequential(
        nn.Conv2d(1, width, 3), block, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 1)
    )


def transformer(width: int) -> nn.Module:
    """A transformer layer of an even ``width`` with two heads, for sequences of vectors of size 4; one output."""
    return Encoder(4, width)


def one_hidden_layer(width: int) -> nn.Module:
    """One hidden layer of ``width`` neurons with tanh, for vectors of size 4; one output."""
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))


def mean_field(width: int) -> nn.Module:
    """The same in mean field, where features are learnt at every width: standard normal weights, divided by l."""
    network = one_hidden_layer(width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
        network[0].weight.div_(2)
    return Divided(network, width)
