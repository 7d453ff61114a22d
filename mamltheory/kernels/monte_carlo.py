"""Kernels of any architecture by Monte Carlo: the mean over random initialisations, with standard errors.

At infinite width the kernel of every initialisation is the limit kernel. At finite width this mean is what infinitely
many networks have, and the scatter about it tells how far a single one may be.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.dynamics import is_number
from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.inner_loop import InnerLoop, algorithm_of
from mamltheory.kernels.empirical import empirical_ntk
from mamltheory.kernels.empirical_meta import empirical_meta_ntk
from mamltheory.kernels.layers.jacobian import Outputs
from mamltheory.networks import FullyConnected, Model, from_module
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Parameters, Select, Task

Build = FullyConnected | Callable[[], nn.Module]
"""A network of Eq. (16), or a function that makes a module with random weights."""


@dataclass(frozen=True)
class KernelEstimate:
    """The mean of a kernel over random initialisations.

    Args:
        mean: the mean kernel.
        standard_error: of every entry of the mean: the standard deviation over the draws, divided by √draws.
        draws: number of initialisations.

    Example:
        >>> import torch, mamltheory as mt
        >>> net = mt.FullyConnected(input_dim=2, width=8, depth=1)
        >>> found = mt.monte_carlo_ntk(net, torch.eye(2, dtype=torch.float64), draws=10)
        >>> found.draws, bool((found.standard_error > 0).all())
        (10, True)
    """

    mean: Float[Tensor, "p q"]
    standard_error: Float[Tensor, "p q"]
    draws: int


def monte_carlo_ntk(
    build: Build,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    draws: int = 100,
    seed: int = 0,
    scale: float = 1.0,
    outputs: Outputs = "full",
    select: Select = None,
    chunk: int | None = None,
) -> KernelEstimate:
    """E Θ̂(x1, x2) over random initialisations of any architecture, with standard errors.

    Args:
        build: a FullyConnected, or a function without arguments that makes a ``torch.nn.Module`` with new weights from
            torch's global generator, which is seeded for it and restored.
        x1: samples of the rows.
        x2: samples of the columns; None for those of the rows.
        draws: number of initialisations, at least 2.
        seed: draw i depends on the seed and i alone.
        scale: l, by which the kernel of a module is divided; a FullyConnected has its own.
        outputs: as for :func:`mamltheory.kernels.empirical.empirical_ntk`, whose errors are raised.
        select: which parameters the gradients are taken by.
        chunk: most samples differentiated together.

    Returns:
        The mean kernel and its standard errors, in float64.

    Example:
        >>> import torch, mamltheory as mt
        >>> def build():
        ...     layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        ...     return torch.nn.Sequential(layer, torch.nn.Flatten())
        >>> mt.monte_carlo_ntk(build, torch.ones(1, 1).double(), draws=2).mean.item()  # f = w x, at any w
        1.0
    """
    _check_draws(draws, scale)
    return _mean(
        empirical_ntk(
            network, x1, x2, params=params, outputs=outputs, select=select, chunk=chunk, dtype=torch.float64
        )
        / (1.0 if isinstance(network, Model) else scale)
        for network, params in _networks(build, draws, seed)
    )


def monte_carlo_meta_ntk(
    build: Build,
    tasks: Sequence[Task],
    inner: InnerLoop,
    *,
    draws: int = 100,
    seed: int = 0,
    scale: float = 1.0,
    chunk: int | None = None,
) -> KernelEstimate:
    """E Φ̂ of the real inner loop over random initialisations of any architecture, with standard errors.

    Args:
        build: as for :func:`monte_carlo_ntk`.
        tasks: the tasks; their support labels matter.
        inner: the inner loop.
        draws: number of initialisations, at least 2.
        seed: draw i depends on the seed and i alone.
        scale: l, by which the kernel and the inner rate of a module are divided.
        chunk: as for :func:`mamltheory.kernels.empirical_meta.empirical_meta_ntk`, whose errors are raised.

    Returns:
        The mean MetaNTK and its standard errors, in float64.

    Example:
        >>> import torch, mamltheory as mt
        >>> label = torch.zeros(1, 1).double()
        >>> task = mt.Task(torch.ones(1, 1).double(), label, 2 * torch.ones(1, 1).double(), label)
        >>> net = mt.FullyConnected(input_dim=1, width=8, depth=1)
        >>> mt.monte_carlo_meta_ntk(net, [task], mt.InnerLoop(lam0=0.1), draws=3).mean.shape
        torch.Size([1, 1])
    """
    _check_draws(draws, scale)
    algorithm_of(inner)

    def kernel(network: Model | nn.Module, params: Parameters | None) -> Tensor:
        if isinstance(network, nn.Module):
            network, params = from_module(network, scale)
        return empirical_meta_ntk(network, tasks, inner, params=params, chunk=chunk)

    return _mean(kernel(*drawn) for drawn in _networks(build, draws, seed))


def _check_draws(draws: int, scale: float) -> None:
    if not (isinstance(draws, Integral) and 2 <= int(draws) < 2**31):
        raise ValueRangeError(f"draws is {draws!r}: expected a whole number of at least 2")
    if not (is_number(scale) and scale > 0):
        raise ValueRangeError(f"scale is {scale!r}: expected a finite positive number")


def _networks(build: Build, draws: int, seed: int) -> Iterator[tuple[Model | nn.Module, Parameters | None]]:
    """Networks with new weights: a model with its parameters, or a module that holds them."""
    for i in range(draws):
        if isinstance(build, FullyConnected):
            yield build.model, build.initialise(generator(seed, "monte carlo", i))
            continue
        # torch's layers draw their weights from the global generator
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "monte carlo", i))
            try:
                network = build()
            except Exception as error:
                raise ConfigurationError(
                    f"build fails ({type(error).__name__}: {error}): expected a FullyConnected, or a function without "
                    "arguments that makes a torch.nn.Module"
                ) from error
        if not isinstance(network, nn.Module):
            raise ConfigurationError(
                f"build returns a {type(network).__name__}: expected a torch.nn.Module with new weights"
            )
        yield network, None


def _mean(kernels: Iterator[Tensor]) -> KernelEstimate:
    """Mean and standard error of kernels that come one after the other, by Welford's updates."""
    count, mean, squares = 1, next(kernels).double(), torch.zeros(())
    for count, kernel in enumerate(kernels, 2):
        if kernel.shape != mean.shape:
            raise ShapeError(
                f"build makes networks whose kernels are {tuple(mean.shape)} and {tuple(kernel.shape)}: expected one "
                "architecture"
            )
        change = kernel - mean
        mean = mean + change / count
        squares = squares + change * (kernel - mean)
    return KernelEstimate(mean, (squares / (count - 1) / count).sqrt(), count)
