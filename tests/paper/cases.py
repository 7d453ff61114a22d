"""Tasks, networks and tolerances shared by the exact tests."""

import itertools

import torch

from mamltheory import FullyConnected, Task, generator

EXACT = 1e-10
"""Relative error allowed to an identity in float64; the true error is near 1e-15, mutants are above 1e-3."""

NETWORKS = [
    FullyConnected(4, width, depth, k, activation)
    for activation, depth, width, k in [
        ("erf", 1, 40, 1),
        ("erf", 2, 5, 2),
        ("tanh", 2, 40, 1),
        ("tanh", 3, 5, 2),
        ("relu", 1, 5, 2),
        ("relu", 2, 40, 1),
        ("relu", 3, 40, 2),
    ]
]
NETWORKS.append(FullyConnected(4, 5, 2, 2, "erf", parameterisation="ntk"))
ALGORITHMS = ("maml", "anil")
STEPS = (1, 3)


def cases(algorithms=ALGORITHMS, largest=10**6, steps=STEPS):
    """Every network with at most ``largest`` hidden neurons, algorithm and number of inner steps."""
    small = [net for net in NETWORKS if net.width * net.depth <= largest]
    return list(itertools.product(small, algorithms, steps))


def name(value):
    """The name of a case in the test report."""
    if not hasattr(value, "width"):
        return str(value)
    kind = "" if value.parameterisation == "standard" else "-ntk"
    return f"{value.activation}-L{value.depth}-l{value.width}-k{value.output_dim}{kind}"


def sphere(generator_, *shape):
    x = torch.randn(*shape, generator=generator_, dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def make_tasks(net, count, seed=0, n=2, m=3):
    """Tasks of different sizes on the unit sphere with normal labels."""
    g = generator(seed, "tasks")
    return tuple(
        Task(
            sphere(g, n + i % 2, net.input_dim),
            torch.randn(n + i % 2, net.output_dim, generator=g, dtype=torch.float64),
            sphere(g, m - i % 2, net.input_dim),
            torch.randn(m - i % 2, net.output_dim, generator=g, dtype=torch.float64),
        )
        for i in range(count)
    )


def start(net, seed=0):
    return net.initialise(generator(seed, "init"))


def relative(got, expected):
    """Frobenius error relative to the size of what is expected."""
    return float((got - expected).norm() / expected.norm())
