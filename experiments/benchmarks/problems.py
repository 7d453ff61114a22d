"""Few-shot problems for fully connected networks, as ours and as the peers take them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from experiments.benchmarks.cases import Sizes
from mamltheory import FullyConnected, InnerLoop, Task, generator
from mamltheory.tasks import Parameters

LAM0 = 0.1
"""λ0 of all inner loops: small enough for every width and number of steps here."""


class Erf(nn.Module):
    """erf as a layer, which torch lacks."""

    def forward(self, x: Tensor) -> Tensor:
        """erf(x)."""
        return torch.erf(x)


LAYERS: Mapping[str, Callable[[], nn.Module]] = {"erf": Erf, "relu": nn.ReLU}


@dataclass(frozen=True)
class MetaProblem:
    """Tasks for a fully connected network, its parameters, and the inner loop."""

    net: FullyConnected
    params: Parameters
    tasks: tuple[Task, ...]
    inner: InnerLoop

    @property
    def rate(self) -> float:
        """λ = λ0 / l, with which peers take their inner steps."""
        return self.inner.lam0 / self.net.model.scale

    @property
    def module(self) -> nn.Sequential:
        """The network with these parameters (not copied), as people write it."""
        return sequential(self.net, self.params)


def sequential(net: FullyConnected, params: Parameters) -> nn.Sequential:
    """A network of Eq. (16) as linear layers and activations that hold ``params`` themselves."""
    layers: list[nn.Module] = []
    for i in range(1, net.depth + 2):
        weight = params[f"weight{i}"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(params[f"bias{i}"])
        layers += [linear] if i > net.depth else [linear, LAYERS[net.activation]()]
    return nn.Sequential(*layers)


def network(sizes: Sizes) -> FullyConnected:
    """The fully connected network of these sizes."""
    return FullyConnected(
        sizes["dimension"],
        sizes["width"],
        sizes["depth"],
        sizes["outputs"],
        sizes["activation"],
    )


def points(random: torch.Generator, *shape: int) -> Tensor:
    """Independent points on the unit sphere of the last axis, float64."""
    x = torch.randn(*shape, generator=random, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def meta_problem(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> MetaProblem:
    """Tasks of points on the sphere with normal labels; the same numbers in every dtype, up to rounding."""
    net = network(sizes)
    params = net.initialise(generator(seed, "benchmark init", sizes["width"]))
    random = generator(seed, "benchmark tasks")

    def task() -> Task:
        query, support = (points(random, sizes[name], net.input_dim) for name in ("queries", "supports"))
        labels = [
            torch.randn(len(x), net.output_dim, generator=random, dtype=torch.float64)
            for x in (query, support)
        ]
        return Task(query, labels[0], support, labels[1]).to(device=device, dtype=dtype)

    tasks = tuple(task() for _ in range(sizes["tasks"]))
    placed = {name: value.to(device=device, dtype=dtype) for name, value in params.items()}
    return MetaProblem(net, placed, tasks, InnerLoop(LAM0, sizes["tau"]))


def weight_shapes(sizes: Sizes) -> list[tuple[int, int]]:
    """(fan_in, fan_out) of every layer of a fully connected network."""
    width = [sizes["width"]] * sizes["depth"]
    ends = [sizes["dimension"], *width, sizes["outputs"]]
    return list(pairwise(ends))


def parameter_count(sizes: Sizes) -> int:
    """Number of weights and biases of a fully connected network."""
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in weight_shapes(sizes))
