"""A search space as a value: the operations that an edge may have, and the number of nodes in a cell.

A cell has two inputs (sources 0 and 1: the outputs of the last but one cell and of the last one) and some nodes (node
i is source i + 2 of later nodes). Node i may have an edge from every source below i + 2. Networks stack two types of
cells: normal ones, and reductions at one third and two thirds of the depth, whose edges from the inputs have stride 2.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mamltheory.arguments import check_whole
from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.files import reason
from mamltheory.nas.operations import (
    OPERATIONS,
    Leading,
    Norm,
    build_operation,
    leading_module,
    leading_step,
)
from mamltheory.rng import generator

CellType = Literal["normal", "reduce"]
CELL_TYPES: tuple[CellType, CellType] = ("normal", "reduce")
Operation = Callable[[int, int, Norm], nn.Module]
"""(channels, stride, norm) -> a module from n × channels × h × w to n × channels × ⌈h/stride⌉ × ⌈w/stride⌉."""
MOST_NODES, MOST_OPERATIONS = 8, 26
CHANNELS, IMAGES = 8, 3
"""Of the inputs on which operations are checked."""


class Edge(NamedTuple):
    """The edge from a source to a node: node in 0, 1, …, and source in 0, …, node + 1."""

    node: int
    source: int


class Operator(NamedTuple):
    """One operator o_j of the supernet: an operation on an edge of all cells of one type."""

    cell: CellType
    edge: Edge
    operation: str


@dataclass(frozen=True)
class PaperOperation:
    """One of the seven operations of the paper, see :mod:`mamltheory.nas.operations`."""

    name: str

    def __call__(self, channels: int, stride: int, norm: Norm) -> nn.Module:
        """The operation with its leading step; in a cell, edges from one node share that step."""
        step = leading_module(leading_step(self.name, stride), stride)
        return nn.Sequential(step, build_operation(self.name, channels, stride, norm))


PAPER_OPERATIONS: Mapping[str, Operation] = {name: PaperOperation(name) for name in OPERATIONS}


@dataclass(frozen=True)
class Space:
    """What a search may choose from; the default is the paper's space.

    Args:
        operations: by name a function (channels, stride, norm) that returns a module from n × channels × h × w to n ×
            channels × ⌈h/stride⌉ × ⌈w/stride⌉, with the stride 1 or 2. It uses ``normalisation(norm, channels)`` for
            its norms, for networks are scored with GroupNorm and trained with BatchNorm, and ``nn.ReLU`` modules,
            which linear regions are counted by. Weights are drawn again as those of all layers, by
            ``reset_parameters`` in modules that are neither convolutions nor linear layers. With several processes,
            it must be a function at the top level of a module.
        nodes: of a cell.
        normal: names of the operations in normal cells; () for all.
        reduce: the same in reduction cells. With one operation there, nothing is left to search in that cell.
        name: MODULE:NAME by which commands find the space again; the commands set it.

    Raises:
        ConfigurationError: a wrong name or number, or something other than functions.

    Example:
        >>> from torch import nn
        >>> from mamltheory.nas import Space, normalisation
        >>> def conv_5x5(channels, stride, norm):
        ...     layer = nn.Conv2d(channels, channels, 5, stride, padding=2, bias=False)
        ...     return nn.Sequential(nn.ReLU(), layer, normalisation(norm, channels))
        >>> paper = Space().operations
        >>> names = ("skip_connect", "max_pool_3x3BN")
        >>> space = Space({**{name: paper[name] for name in names}, "conv_5x5": conv_5x5}, nodes=2)
        >>> len(space.edges), space.choices("normal")
        (5, ('skip_connect', 'max_pool_3x3BN', 'conv_5x5'))
    """

    operations: Mapping[str, Operation] = field(
        default_factory=lambda: PAPER_OPERATIONS, hash=False, repr=False
    )
    nodes: int = 3
    normal: tuple[str, ...] = ()
    reduce: tuple[str, ...] = ()
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_whole(most=MOST_NODES, nodes=self.nodes)
        if not isinstance(self.name, str):
            raise ConfigurationError(f"name is {self.name!r:.80}: expected MODULE:NAME, or ''")
        operations: Any = self.operations
        if not isinstance(operations, Mapping) or not 1 <= len(operations) <= MOST_OPERATIONS:
            raise ConfigurationError(
                f"operations is {operations!r:.80}: expected a dictionary of 1 to {MOST_OPERATIONS} functions by name"
            )
        for name, function in operations.items():
            _check_operation_name(name)
            if isinstance(function, type) or not callable(function):
                raise ConfigurationError(
                    f"the operation {name!r} is {function!r:.80}: expected a function of channels, stride and norm"
                )
        object.__setattr__(
            self, "operations", dict(operations)
        )  # a later change of the user's one has no effect
        for kind in CELL_TYPES:
            names = getattr(self, kind)
            unknown = (
                [name for name in names if name not in operations] if isinstance(names, tuple) else names
            )
            if not isinstance(names, tuple) or unknown or len(set(names)) < len(names):
                raise ConfigurationError(
                    f"{kind} is {names!r:.80}: expected a tuple of different operations of the space, "
                    f"{', '.join(operations)}, or ()"
                )

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All edges of a cell, node by node."""
        return _edges(self.nodes)

    def choices(self, kind: CellType | None) -> tuple[str, ...]:
        """Names of the operations that an edge in cells of this type may have; None: of either type."""
        return (getattr(self, kind) if kind else ()) or tuple(self.operations)

    def check_names(self, names: Iterable[str], kind: CellType | None = None) -> None:
        """Raise GenotypeError for an operation that cells of this type cannot have in this space."""
        choices = self.choices(kind)
        for name in names:
            if name not in choices:
                where = f" in the {kind} cell" if kind else ""
                raise GenotypeError(
                    f"unknown operation {name!r}{where}: choose one of {', '.join(choices)}, or give the space that "
                    "the cell is of"
                )

    def leading(self, name: str, stride: int) -> Leading:
        """The step without parameters with which an operation begins, which edges share; "none" for own operations."""
        return leading_step(name, stride) if isinstance(self.operations[name], PaperOperation) else "none"

    def build(self, name: str, channels: int, stride: int, norm: Norm) -> nn.Module:
        """An operation without its leading step; raises ConfigurationError if it cannot be built."""
        operation = self.operations[name]
        if isinstance(operation, PaperOperation):
            return build_operation(operation.name, channels, stride, norm)
        place = f"with {channels} channels, stride {stride} and norm {norm!r}"
        with torch.random.fork_rng(devices=[]):  # what no method can draw again is the same in every process
            torch.set_rng_state(generator(0, f"operation {name}").get_state())
            module = _called(operation, f"the operation {name!r} {place}", channels, stride, norm)
        if not isinstance(module, nn.Module):
            raise ConfigurationError(
                f"the operation {name!r} returns a {type(module).__name__} {place}: expected a torch.nn.Module"
            )
        return module

    def own_operations(self) -> tuple[str, ...]:
        """Names of the operations that are not the paper's."""
        return tuple(name for name, each in self.operations.items() if not isinstance(each, PaperOperation))


@lru_cache
def _edges(nodes: int) -> tuple[Edge, ...]:
    return tuple(Edge(node, source) for node in range(nodes) for source in range(node + 2))


def _check_operation_name(name: object) -> None:
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,39}", name)
    if not plain or getattr(nn.ModuleDict, str(name), None) is not None:  # a name of torch's
        raise ConfigurationError(
            f"{name!r:.60} cannot name an operation: expected letters, digits and underscores, as in conv_5x5"
        )


PAPER = Space()
"""The space of the paper: seven operations (Section 6.1), three nodes."""


def _called(function: Callable[..., Any], what: str, *arguments: Any) -> Any:
    """function(arguments); an error in it becomes a ConfigurationError that says what failed."""
    try:
        return function(*arguments)
    except Exception as error:
        raise ConfigurationError(f"{what} fails: {type(error).__name__}: {reason(error)}") from error


def checked_space(space: object) -> Space:
    """The space itself; raises ConfigurationError for anything else."""
    if not isinstance(space, Space):
        raise ConfigurationError(f"space is a {type(space).__name__}: expected a Space")
    return space


def check_operations(space: Space) -> None:
    """Build and run the operations of a space that are not the paper's, on images of even and of odd size.

    It raises ConfigurationError where an operation fails, returns another shape, changes its input, or does not compute
    every sample alone and the same each time, as the kernels of single samples require.
    """
    for name in space.own_operations():
        for stride in (1, 2):
            module = space.build(name, CHANNELS, stride, "group")
            for side in (8, 7):
                _check_run(f"the operation {name!r} with stride {stride}", module, stride, side)


def _check_run(what: str, module: nn.Module, stride: int, side: int) -> None:
    x = torch.randn(IMAGES, CHANNELS, side, side, generator=generator(0, "images", side))
    given, half = x.clone(), (side + stride - 1) // stride
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = _called(module, what, given)
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if shape != (IMAGES, CHANNELS, half, half):
            raise ConfigurationError(
                f"{what} makes {shape} of {tuple(x.shape)}: expected {(IMAGES, CHANNELS, half, half)}, with "
                "⌈side/stride⌉; choose another padding, or another number of output channels"
            )
        if not torch.equal(given, x):
            raise ConfigurationError(
                f"{what} changes its input, which other operations share: use modules without inplace=True first"
            )
        alone = torch.cat([_called(module, what, part) for part in x.split(1)])
    if not torch.allclose(alone, output, rtol=1e-3, atol=1e-4):
        raise ConfigurationError(
            f"{what} gives an image another output alone than in a batch: use normalisation(norm, channels) with the "
            "norm that it is given in place of batch statistics, and neither dropout nor other noise"
        )
