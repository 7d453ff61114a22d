"""The condition number of a network's MetaNTK with its uncertainty over initialisations and tasks."""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from mamltheory.arguments import check_whole
from mamltheory.errors import ConfigurationError, ShapeError, SingularKernelError
from mamltheory.inner_loop import Algorithm
from mamltheory.intervals import Interval, mean_interval
from mamltheory.kernels.meta import meta_ntk
from mamltheory.linalg import Converged, Dynamics, condition_number
from mamltheory.redraw import check_drawable, redrawn
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task, check_tasks

SEEDS = 2**31
"""Seeds of a user's function lie below."""


def score(
    network: nn.Module | Callable[[int], nn.Module],
    tasks: Sequence[Task],
    repeats: int = 8,
    seed: int = 0,
    *,
    algorithm: Algorithm = "maml",
    dynamics: Dynamics = Converged(ridge=1e-3),  # noqa: B008 - frozen
) -> Interval:
    """log₁₀ C of a network's MetaNTK, Eq. (14), with its 95 % interval over initialisations and tasks; lower is better.

    Every repeat has weights and tasks that no other repeat has: repeat r takes the tasks r, r + repeats, …. Condition
    numbers differ by factors from draw to draw, so that the mean is that of the logarithms, and 10**mean is the
    geometric mean. Networks with one seed are scored on the same tasks.

    Args:
        network: a torch module, or a function that makes a module from a seed. The weights that a module holds, trained
            or of its own initialisation, have no influence: copies get torch's default weights, by the
            ``reset_parameters`` of their layers, and a warning names weights that are clearly others. A function keeps
            its own initialisation, ``mt.score(lambda seed: build(), tasks)``; torch's generator has that seed in it.
        tasks: at least one for every repeat, and as many for each; tasks that share no images are best.
        repeats: independent draws, at least two.
        seed: seed of the weights.
        algorithm: as for :func:`mamltheory.meta_ntk`.
        dynamics: as for :func:`mamltheory.meta_ntk`.

    Returns:
        Mean and half-width of log₁₀ C. Errors are raised as by :func:`mamltheory.meta_ntk`; a ShapeError for tasks that
        cannot be dealt evenly to the repeats; and a ConfigurationError for a network that is neither module nor
        function, and for parameters that no layer can draw, such as a class token, which it names. Such parameters stay
        constant with ``requires_grad=False``.

    Raises:
        SingularKernelError: the kernel of one repeat has no finite condition number.

    Example:
        >>> import torch, mamltheory as mt
        >>> draw = lambda i: torch.randn(4, 6, generator=mt.generator(0, "images", i))
        >>> labels = torch.eye(2).repeat(2, 1)
        >>> tasks = [mt.Task(draw(2 * i), labels, draw(2 * i + 1), labels) for i in range(6)]
        >>> network = torch.nn.Sequential(torch.nn.Linear(6, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> found = mt.score(network, tasks, repeats=3)
        >>> print(f"{found.mean:.1f}")
        1.6
    """
    tasks = check_tasks(tasks)
    _check_settings(network, tasks, repeats, seed, dynamics)
    found = []
    for repeat in range(repeats):
        kernel = meta_ntk(_drawn(network, seed, repeat), tasks[repeat::repeats], algorithm, dynamics)
        condition = condition_number(kernel)
        if not math.isfinite(condition):
            raise SingularKernelError(
                f"the MetaNTK of repeat {repeat} is singular: do tasks share samples, or is the network constant? Give "
                "other tasks, or a wider network"
            )
        found.append(math.log10(condition))
    return mean_interval(np.array(found))


def _drawn(network: nn.Module | Callable[[int], nn.Module], seed: int, repeat: int) -> nn.Module:
    """The network with the weights of a repeat."""
    if isinstance(network, nn.Module):
        return redrawn(network, generator(seed, "score weights", repeat))[0]
    if not callable(network) or isinstance(network, type):
        raise ConfigurationError(
            f"the network is {network!r:.80}: expected a torch.nn.Module, or a function from a seed to one"
        )
    return _made(network, derived_seed(seed, "score weights", repeat) % SEEDS)


def _made(function: Callable[[int], nn.Module], seed: int) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made = function(seed)
    except Exception as error:
        raise ConfigurationError(
            f"the function that makes the network failed for the seed {seed}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise ConfigurationError(
            f"the function made a {type(made).__name__}: expected a torch.nn.Module from a seed"
        )
    return made


def _check_settings(
    network: nn.Module | Callable[[int], nn.Module],
    tasks: Sequence[Task],
    repeats: int,
    seed: int,
    dynamics: Dynamics,
) -> None:
    """Check the repeats, and warn of lost weights and of queries that a converged loop fits as support samples."""
    check_whole(least=2, repeats=repeats)
    if len(tasks) % repeats:
        raise ShapeError(
            f"got {len(tasks)} tasks for {repeats} repeats: give every repeat as many, {repeats} or "
            f"{2 * repeats}, or lower repeats"
        )
    if isinstance(network, nn.Module):
        draws = [generator(seed, "score weights", repeat) for repeat in (0, 1)]
        check_drawable(network, tasks[0].query_x, draws, stacklevel=4)
    if not isinstance(dynamics, Converged):
        return
    shared = [
        i
        for i, task in enumerate(tasks)
        if any(bool((task.query_x == x).flatten(1).all(1).any()) for x in task.support_x)
    ]
    if shared:
        warnings.warn(
            f"{len(shared)} of {len(tasks)} tasks, tasks[{shared[0]}] the first, have queries that are support samples "
            "of the same task: the converged inner loop fits these up to its ridge, so that the ridge sets the "
            "condition number, not the network; give queries that are other samples",
            stacklevel=3,
        )
