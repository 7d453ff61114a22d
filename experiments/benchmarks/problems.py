"""What is compared: problems of some sizes, and the methods that solve them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from mamltheory import FullyConnected, InnerLoop, Task, generator
from mamltheory.tasks import Parameters

Sizes = Mapping[str, Any]
Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Method:
    """One way to solve a group's problem.

    Attributes:
        name: Name in tables and figures.
        make: Takes the problem and returns the call that is measured; it does the work that does not depend on the
            numbers. None for a method with an ``interpreter``.
        package: The distribution that it needs; None for torch alone and for ours.
        ours: Whether it belongs to this package.
        interpreter: The setting's name of the other Python in which it runs.
        read: Takes the problem and the call's result and returns the group's result; None where both are equal.
    """

    name: str
    make: Callable[[Any], Callable[[], Any]] | None = None
    package: str | None = None
    ours: bool = False
    interpreter: str | None = None
    read: Callable[[Any, Any], Result] | None = None


@dataclass(frozen=True)
class Group:
    """Problems of one kind, and everything that can be measured on them.

    Attributes:
        name: Name in tables and figures.
        build: Takes sizes, dtype, device and seed, and returns the problem.
        methods: The methods that are compared.
        reference: Plain PyTorch, which is obviously right.
        quick: Sizes that take no time.
        floor: FLOP that any method of this kind needs; None if the cost is not that of matrix products.
        parameters: Number of the network's parameters.
        export: Weights and samples of a problem as arrays, for another Python.
        scaling: Values of each size for which the cost is measured.
        scaling_base: The other sizes in these measurements.
    """

    name: str
    build: Callable[[Sizes, torch.dtype, torch.device, int], Any]
    methods: tuple[Method, ...]
    reference: Method
    quick: Sizes
    floor: Callable[[Sizes], float] | None = None
    parameters: Callable[[Sizes], int] | None = None
    export: Callable[[Any], Mapping[str, Any]] | None = None
    scaling: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scaling_base: Sizes = field(default_factory=dict)

    def method(self, name: str) -> Method:
        """The method of that name, or the reference."""
        return next(method for method in (*self.methods, self.reference) if method.name == name)


@dataclass(frozen=True)
class Case:
    """One problem, measured in float32.

    Attributes:
        name: Name on the command line.
        title: Title of the table.
        group: The kind of problem.
        sizes: Sizes of the problem.
        methods: Names of the methods, ours first.
        check: Sizes that differ when results are compared with the reference, which is too slow at full size.
        tuned: Whether it is measured with the tuned allocator as well.
    """

    name: str
    title: str
    group: Group
    sizes: Sizes
    methods: tuple[str, ...]
    check: Sizes = field(default_factory=dict)
    tuned: bool = False

    @property
    def checked_sizes(self) -> Sizes:
        """Sizes at which results are compared."""
        return {**self.sizes, **self.check}


def case_of_width(name: str, group: Group, width: int, tau: int = 1, **others: Any) -> Case:
    """The case ``name`` of a meta-learning ``group`` at one ``width`` with ``tau`` inner steps; ``others``: fields."""
    sizes = {**group.scaling_base, "width": width, "tau": tau}
    steps = f"-tau{tau}" if tau > 1 else ""
    title = f"{group.name}, l = {width}, τ = {tau}"
    return Case(f"{name}-l{width}{steps}", title, group, sizes, **others)


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
    """A network of Eq. (16) as linear layers and activations that share ``params``."""
    layers: list[nn.Module] = []
    for i in range(1, net.depth + 2):
        weight = params[f"weight{i}"]
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(params[f"bias{i}"])
        layers += [linear] if i > net.depth else [linear, LAYERS[net.activation]()]
    return nn.Sequential(*layers)


def fully_connected_network(sizes: Sizes) -> FullyConnected:
    """The fully connected network of these sizes."""
    return FullyConnected(
        sizes["dimension"], sizes["width"], sizes["depth"], sizes["outputs"], sizes["activation"]
    )


def points(random: torch.Generator, *shape: int) -> Tensor:
    """Independent points on the unit sphere of the last axis, float64."""
    x = torch.randn(*shape, generator=random, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def meta_problem(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> MetaProblem:
    """Tasks on the sphere with normal labels, of ``sizes``, in ``dtype`` on ``device``, with draws from ``seed``."""
    net = fully_connected_network(sizes)
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


def fully_connected_parameters(sizes: Sizes) -> int:
    """Number of weights and biases of a fully connected network."""
    return sum(fan_in * fan_out + fan_out for fan_in, fan_out in weight_shapes(sizes))
