"""What hypothesis draws from: kernels with a prescribed spectrum, networks and tasks; and a view without checks."""

from contextlib import contextmanager

import jaxtyping
import torch
from hypothesis import strategies as st

from mamltheory import Converged, FullyConnected, GradientDescent, GradientFlow, Task, generator

seeds = st.integers(0, 2**31)


@contextmanager
def as_users_run_it():
    """Shape annotations are checked in tests only: without them, what a user gets for a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def rotation(size, seed=0):
    """A random orthogonal matrix."""
    return torch.linalg.qr(
        torch.randn(size, size, generator=generator(seed, "rotation"), dtype=torch.float64)
    )[0]


def with_spectrum(eigenvalues, seed=0):
    """V diag(s) Vᵀ with a random V, exactly symmetric."""
    s = torch.as_tensor(eigenvalues, dtype=torch.float64)
    v = rotation(len(s), seed)
    matrix = (v * s) @ v.T
    return (matrix + matrix.T) / 2


@st.composite
def kernels(draw, condition=1e4, largest_size=6):
    """(M, s): a positive definite matrix and its spectrum, condition number at most ``condition``."""
    size = draw(st.integers(1, largest_size))
    exponents = draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))
    scale = 10.0 ** draw(st.integers(-3, 3))
    s = scale * condition ** -torch.tensor(exponents, dtype=torch.float64)
    return with_spectrum(s, draw(seeds)), s


@st.composite
def dynamics(draw, top=1.0):
    """A loop of any kind that is stable for eigenvalues up to ``top``."""
    kind = draw(st.sampled_from(["flow", "descent", "converged"]))
    if kind == "flow":
        return GradientFlow(draw(st.floats(0, 10)) / top)
    if kind == "descent":
        return GradientDescent(draw(st.floats(0, 1.9)) / top, draw(st.integers(0, 5)))
    return Converged(ridge=draw(st.floats(1e-3, 1)) * top)


@st.composite
def networks(draw, output_dim=None, activation=None):
    """A small fully connected network of either parameterisation."""
    return FullyConnected(
        input_dim=draw(st.integers(1, 4)),
        width=draw(st.integers(2, 6)),
        depth=draw(st.integers(1, 3)),
        output_dim=draw(st.integers(1, 3)) if output_dim is None else output_dim,
        activation=activation or draw(st.sampled_from(["erf", "tanh", "relu"])),
        sigma_b=draw(st.sampled_from([0.1, 0.5])),
        parameterisation=draw(st.sampled_from(["standard", "ntk"])),
    )


def task(seed=0, index=0, n=2, m=3, d=4, k=1, dtype=torch.float64):
    """A task of normal samples and labels."""
    g = generator(seed, "task", index)
    shapes = ((n, d), (n, k), (m, d), (m, k))
    return Task(*(torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes))


@st.composite
def tasks(draw, d, k, largest=3):
    """One to ``largest`` tasks of different sizes."""
    seed, count = draw(seeds), draw(st.integers(1, largest))
    sizes = st.tuples(st.integers(1, 3), st.integers(1, 3))
    return tuple(task(seed, i, *draw(sizes), d, k) for i in range(count))
