"""Tasks, networks, tolerances and small quantities that several files of these tests share."""

import itertools

import torch

from mamltheory import FullyConnected, InnerLoop, Task, analytic_meta_ntk, analytic_ntk, generator
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.kernels.empirical import gram, jacobian
from mamltheory.rates import largest_rate

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


def rows_of(jacobian):
    return torch.cat([part.flatten(1) for part in jacobian.values()], dim=1)


ROUNDING = 1 + 1e-9


def draws(seed, name, *shape):
    return torch.randn(*shape, generator=generator(seed, name), dtype=torch.float64)


def task_of(query_x, support_x):
    return Task(
        query_x, torch.ones(len(query_x), 1).double(), support_x, torch.ones(len(support_x), 1).double()
    )


def identity(size):
    return torch.eye(size, dtype=torch.float64)


def setting(activation, depth, width, tau=2, algorithm="maml"):
    """A network, two training tasks, one test task and an inner loop at half of its largest stable rate."""
    net = FullyConnected(4, width, depth, 1, activation)
    tasks = make_tasks(net, 3, seed=11, n=2, m=2)
    top = max(extreme_eigenvalues(analytic_ntk(net, one.support_x))[1] for one in tasks)
    return net, tasks[:2], tasks[2:], InnerLoop(0.5 / top, tau, algorithm)


def rate_setting(activation, depth, width):
    """Setting of Theorem 3 with η0 at half of 2/(σ_max + σ_min)."""
    net, tasks, _, inner = setting(activation, depth, width, tau=1)
    phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics)
    return net, tasks, inner, 0.5 * largest_rate(phi), extreme_eigenvalues(phi)[0]


SHALLOW, DEEP = (64, 128, 256, 512, 1024), (64, 128, 256, 512)


def named(what, case):
    return f"{what}, {case[0]} L={case[1]}"


def adaptation(net, task, inner):
    """θ ↦ C_θ = Θ̂(X, X') T(Θ̂(X', X')) for τ steps, differentiable."""

    def matrix(theta):
        query, support = (jacobian(net.model, theta, x) for x in (task.query_x, task.support_x))
        mixed, own = gram(query, support) / net.width, gram(support, support) / net.width
        step = torch.eye(len(own)).double() - inner.lam0 * own
        return mixed @ (inner.lam0 * sum(torch.linalg.matrix_power(step, s) for s in range(inner.tau)))

    return matrix


def with_printed_variances(params):
    """The same draws with the variances of Eq. (16) as printed: over the fan-out in place of the fan-in."""
    return {
        name: part * (part.shape[1] / part.shape[0]) ** 0.5 if part.dim() == 2 else part
        for name, part in params.items()
    }
