"""The condition number of a network's MetaNTK with its uncertainty over initialisations and tasks."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mamltheory.arguments import check_whole
from mamltheory.errors import ConfigurationError, ShapeError, SingularKernelError
from mamltheory.inner_loop import Algorithm
from mamltheory.intervals import Interval, mean_interval
from mamltheory.kernels.meta import meta_ntk
from mamltheory.linalg import Converged, Dynamics, condition_number
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task, check_tasks

SEEDS = 2**31
"""Seeds of a user's function lie below."""
FEWEST_VALUES, MOST_RATIO = 16, 3.0
"""Tensors of fewer values have no telling norm; the norms of two draws of one initialisation differ by less."""
AS_FUNCTION = "give a function from a seed to the network, score(lambda seed: build(), ...)"


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
        network: a torch module, which keeps its weights: those of a copy are drawn by the ``reset_parameters`` of its
            layers, except weights with ``requires_grad=False``, which stay. Or a function that makes a module from a
            seed, with the initialisation that you want scored; torch's generator is seeded with it.
        tasks: at least one for every repeat, and as many for each; tasks that share no images are best.
        repeats: independent draws, at least two.
        seed: seed of the weights.
        algorithm: as for :func:`mamltheory.meta_ntk`.
        dynamics: as for :func:`mamltheory.meta_ntk`.

    Returns:
        Mean and half-width of log₁₀ C. Errors are raised as by :func:`mamltheory.meta_ntk`, and a ConfigurationError
        for a network that is neither module nor function, or has weights that no layer draws; a ShapeError where the
        tasks cannot be dealt evenly to the repeats. A warning says where the network's own weights are no such draw,
        or a query is among the supports of its task.

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
    tasks, found = _dealt(tasks, repeats), []
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


def _dealt(tasks: Sequence[Task], repeats: int) -> tuple[Task, ...]:
    """The tasks, as many for every repeat."""
    tasks = check_tasks(tasks)
    check_whole(least=2, repeats=repeats)
    if len(tasks) % repeats:
        raise ShapeError(
            f"got {len(tasks)} tasks for {repeats} repeats: give every repeat as many, {repeats} or "
            f"{2 * repeats}, or lower repeats"
        )
    _warn_of_shared_samples(tasks)
    return tasks


def _drawn(network: nn.Module | Callable[[int], nn.Module], seed: int, repeat: int) -> nn.Module:
    """The network with the weights of a repeat."""
    if not isinstance(network, nn.Module):
        if not callable(network) or isinstance(network, type):
            raise ConfigurationError(
                f"the network is {network!r:.80}: expected a torch.nn.Module, or a function from a seed to one"
            )
        return _made(network, derived_seed(seed, "score weights", repeat) % SEEDS)
    drawn = copy.deepcopy(network)
    given = {name: value for name, value in network.named_parameters() if not is_lazy(value)}
    values = {name: value for name, value in drawn.named_parameters() if name in given}
    trained = [name for name, value in given.items() if value.requires_grad and value.is_floating_point()]
    random = generator(seed, "score weights", repeat)
    # Layers draw from torch's global generator alone; its state is put back afterwards.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_rng_state(random.get_state())
        for name in trained:
            values[name].fill_(math.nan)  # what is not a number afterwards was not drawn
        for module in _children_first(drawn):
            _reset(module)
        for name in given.keys() - set(trained):
            values[name].copy_(given[name])  # frozen weights are part of the network
    if fixed := [name for name in trained if values[name].isnan().any()]:
        raise ConfigurationError(
            f"no layer's reset_parameters draws {_listed(fixed)}, which would be the same in all repeats: "
            f"{AS_FUNCTION}, or give the module that owns them a reset_parameters"
        )
    if repeat == 0:
        _warn_of_own_weights({name: (given[name].detach(), values[name].detach()) for name in trained})
    return drawn


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (" and others" if names[5:] else "")


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    """All modules, each after those in it, as they were made: a module may initialise its layers in its own way."""
    children = {child: None for part in module.children() for child in _children_first(part)}
    yield from children
    yield module


def _reset(module: nn.Module) -> None:
    """Draw the weights of a module as its constructor did; nothing where it has no way to."""
    for name in ("reset_parameters", "_reset_parameters"):  # the latter of torch's attention and transformer
        if callable(reset := getattr(module, name, None)):
            try:
                reset()
            except Exception as error:
                raise ConfigurationError(
                    f"{type(module).__name__}.{name} failed ({type(error).__name__}: {error}): {AS_FUNCTION}"
                ) from error
            return


def _warn_of_own_weights(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Warn where the weights that were given cannot be a draw like the new ones, which take their place."""
    other = []
    for name, (given, drawn) in pairs.items():
        if drawn.numel() > 1 and (drawn == drawn.flatten()[0]).all():
            same = bool((given == drawn).all())
        else:
            ratio = float(given.double().norm() / drawn.double().norm())
            same = given.numel() < FEWEST_VALUES or 1 / MOST_RATIO < ratio < MOST_RATIO
        if not same:
            other.append(name)
    if other:
        warnings.warn(
            f"score draws weights by the layers' reset_parameters, and the network's {_listed(other)} were "
            f"initialised in another way, or trained: {AS_FUNCTION} to keep "
            "your initialisation",
            stacklevel=4,
        )


def _warn_of_shared_samples(tasks: Sequence[Task]) -> None:
    """Warn of a query sample that is a support sample of its task: adaptation fits it whatever the network is."""
    for number, task in enumerate(tasks):
        support = task.support_x.flatten(1)
        if any(bool((support == sample).all(1).any()) for sample in task.query_x.flatten(1)):
            warnings.warn(
                f"tasks[{number}] has a query sample among its support samples: adaptation to the end fits it, so that "
                "C is that of the ridge and not of the network; draw queries that are no supports",
                stacklevel=4,
            )
            return


def _made(function: Callable[[int], nn.Module], seed: int) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(seed, "weights of a function").get_state())
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
