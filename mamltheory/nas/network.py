"""Networks of stacked cells (Section 6.1): the supernet of the search and the derived network that is trained.

Both are one module: a supernet is a network whose edges average their live operations, and a derived network
is a supernet with one operation left on an edge. The weight of every layer depends on (seed, name of the
layer) alone, and layers of the same place have the same name in all of them: networks built with one seed
share their weights (common random numbers).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, GenotypeError, ShapeError, ValueRangeError
from mamltheory.nas.genotype import Candidates, CellType, Edge, Genotype, Operator
from mamltheory.nas.operations import (
    Convolution,
    FactorizedReduce,
    Head,
    Norm,
    leading_module,
    normalisation,
    pointwise,
)
from mamltheory.nas.space import PAPER, Space
from mamltheory.nas.weights import Initialisation, initialise
from mamltheory.rng import derived_seed, generator

Value = TypeVar("Value")


@dataclass(frozen=True)
class NetworkSettings:
    """Size of a stacked network; the defaults are the paper's five cells on mini-ImageNet.

    Attributes:
        channels: of the stem and of the cells before the first reduction.
        cells: number of cells, at least 3.
        classes: outputs of the linear classifier (ways of a task in the search).
        stem_stride: 1 in the paper; 2 halves the resolution of small experiments.
        norm: "batch" for training (as released), "group" for the kernels of the search; see :func:`for_search`.
        final_norm: whether a norm with ReLU follows the last cell, as for the kernels of the search.
        input_channels: channels of an image.
        initialisation: see ``Initialisation`` and :func:`initialise_layer`.
    """

    channels: int = 48
    cells: int = 5
    classes: int = 64
    stem_stride: int = 1
    norm: Norm = "batch"
    final_norm: bool = False
    input_channels: int = 3
    initialisation: Initialisation = "kaiming"

    def __post_init__(self) -> None:
        if not isinstance(self.norm, str) or self.norm not in ("batch", "group"):
            raise ConfigurationError(f"norm is {self.norm!r}: expected 'batch' or 'group'")
        if not isinstance(self.initialisation, str) or self.initialisation not in ("kaiming", "default"):
            raise ConfigurationError(
                f"initialisation is {self.initialisation!r}: expected 'kaiming' or 'default'"
            )
        for name in ("channels", "cells", "classes", "stem_stride", "input_channels"):
            least = 3 if name == "cells" else 1
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: expected at least {least}")

    def for_search(self, ways: int) -> "NetworkSettings":
        """The same size as the search sees it: GroupNorm, final norm and ReLU, a head of ``ways`` outputs."""
        return replace(self, classes=ways, norm="group", final_norm=True)


def layout(cells: int) -> tuple[CellType, ...]:
    """Types of the stacked cells: reductions at one third and two thirds of the depth, the others normal."""
    return tuple("reduce" if i in (cells // 3, 2 * cells // 3) else "normal" for i in range(cells))


class StackedCell(nn.Module):
    """One cell: two inputs fitted to its channels, nodes of summed edges, and their concatenation.

    An edge is the mean of its live operations. Edges from the inputs of a reduction cell have stride 2.
    """

    def __init__(
        self,
        live: dict[Edge, tuple[str, ...]],
        channels: int,
        inputs: tuple[int, int],
        reduces: bool,
        after_reduction: bool,
        norm: Norm,
        space: Space = PAPER,
    ) -> None:
        super().__init__()
        self.space = space
        fit = FactorizedReduce if after_reduction else pointwise
        self.fit0, self.fit1 = fit(inputs[0], channels, norm), pointwise(inputs[1], channels, norm)
        self.relu = nn.ReLU()
        self.leading = nn.ModuleDict()
        self.edges = nn.ModuleDict()
        self._live: Mapping[Edge, Collection[str]] = live
        self._strides = {edge: 2 if reduces and edge.source < 2 else 1 for edge in live}
        self._mixing: dict[tuple[Edge, str], Tensor] | None = None
        for edge, names in live.items():
            stride = self._strides[edge]
            for name in names:
                step = space.leading(name, stride)
                if f"{step}{stride}" not in self.leading:
                    self.leading[f"{step}{stride}"] = leading_module(step, stride)
            self.edges[f"{edge.node}_{edge.source}"] = nn.ModuleDict(
                {name: space.build(name, channels, stride, norm) for name in names}
            )

    def mix(self, weights: dict[tuple[Edge, str], Tensor] | None) -> None:
        """Weights of the operations in the sums of their edges; None for the mean."""
        self._mixing = weights

    def restrict(self, live: Mapping[Edge, Collection[str]]) -> None:
        """Runs only these of the operations that the cell was built with."""
        self._live = live

    def forward(
        self,
        s0: Float[Tensor, "n a h0 w0"],
        s1: Float[Tensor, "n b h1 w1"],
        drop: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """Concatenated nodes; ``drop`` is applied to the output of every operation but the identity."""

        def edge_output(edge: Edge, operations: Iterator[tuple[str, nn.Module, Tensor]]) -> Tensor:
            outputs = []
            for name, operation, state in operations:
                output = operation(state)
                output = output if drop is None or isinstance(operation, nn.Identity) else drop(output)
                outputs.append(output if self._mixing is None else self._mixing[edge, name] * output)
            return sum_of(*outputs) if self._mixing is not None or len(outputs) == 1 else mean_of(*outputs)

        return self.walk(lambda function, *states: function(*states), edge_output, self._live, s0, s1)

    def walk(
        self,
        apply: Callable[..., Value],
        edge_output: Callable[[Edge, Iterator[tuple[str, nn.Module, Value]]], Value],
        live: Mapping[Edge, Collection[str]],
        s0: Value,
        s1: Value,
    ) -> Value:
        """The cell on values of any kind: how its parts are connected is said here alone.

        Args:
            apply: (function, values) -> its value; called with the cell's modules, :func:`torch.add` and
                :func:`concatenated`.
            edge_output: (edge, its live operations) -> the edge's value. Of an operation it is given the name, the
                module, and the value of the leading step, which is computed once for all edges of a state.
            live: names of the operations that run.
            s0: value of the first input.
            s1: value of the second input.

        Returns:
            The value of the concatenated nodes.
        """
        states = [apply(self.fit0, apply(self.relu, s0)), apply(self.fit1, apply(self.relu, s1))]
        leading: dict[tuple[int, str], Value] = {}

        def operations(edge: Edge) -> Iterator[tuple[str, nn.Module, Value]]:
            stride, source = self._strides[edge], edge.source
            operations = self.edges[f"{edge.node}_{source}"]
            for name, operation in operations.items():  # type: ignore[operator]
                if name in live[edge]:
                    key = f"{self.space.leading(name, stride)}{stride}"
                    if (source, key) not in leading:
                        leading[source, key] = apply(self.leading[key], states[source])
                    yield name, operation, leading[source, key]

        for node in range(self.space.nodes):
            first, *others = [edge for edge in self._strides if edge.node == node and live[edge]]
            states.append(edge_output(first, operations(first)))
            for edge in others:
                states[-1] = apply(torch.add, states[-1], edge_output(edge, operations(edge)))
        return apply(concatenated, *states[2:])


def sum_of(*terms: Tensor) -> Tensor:
    """The sum of one term or more."""
    return sum(terms[1:], terms[0])


def mean_of(*terms: Tensor) -> Tensor:
    """The mean of one term or more."""
    return sum_of(*terms) / len(terms)


def concatenated(*nodes: Tensor) -> Tensor:
    """The nodes, one after the other along the channels."""
    return torch.cat(nodes, dim=1)


class Network(nn.Module):
    """Stem, stacked cells, global average pooling, linear classifier, for any candidates.

    ``drop_path`` (a float in [0, 1), 0 by default) is the probability with which, in training mode, the output of an
    operation other than the identity is dropped for a sample. The masks are a pure function of (seed, number of the
    training pass), see :meth:`seed_drop_path`; both are part of the ``state_dict``, so that a restored network
    continues with the same masks.
    """

    def __init__(
        self,
        candidates: Candidates,
        settings: NetworkSettings,
        kinds: tuple[CellType, ...],
        stem: bool = True,
    ) -> None:
        super().__init__()
        self.candidates, self.settings, self.kinds = candidates, settings, kinds
        self.drop_path = 0.0
        self._drop_seed, self._drop_step = 0, 0
        channels, space = settings.channels, candidates.space
        before = channels if stem else settings.input_channels
        convolution = Convolution(
            settings.input_channels, channels, 3, settings.stem_stride, padding=1, bias=False
        )
        self.stem = (
            nn.Sequential(convolution, normalisation(settings.norm, channels)) if stem else nn.Identity()
        )
        self.cells = nn.ModuleList()
        widths, after_reduction = (before, before), False
        for kind in kinds:
            channels = 2 * channels if kind == "reduce" else channels
            live = {edge: candidates.on(kind, edge) for edge in space.edges}
            reduces = kind == "reduce"
            cell = StackedCell(live, channels, widths, reduces, after_reduction, settings.norm, space)
            self.cells.append(cell)
            widths, after_reduction = (widths[1], space.nodes * channels), reduces
        last = (normalisation(settings.norm, widths[1]), nn.ReLU()) if settings.final_norm else ()
        self.last = nn.Sequential(*last)
        self.classifier = Head(widths[1], settings.classes)

    def stacked_cells(self) -> list[tuple[CellType, StackedCell]]:
        """The cells and their types, in the order in which they run."""
        cells = [cell for cell in self.cells if isinstance(cell, StackedCell)]
        return list(zip(self.kinds, cells, strict=True))

    def own_operations(self) -> list[nn.Module]:
        """The operations in its cells that are a user's and not the paper's."""
        own = self.candidates.space.own_operations()
        edges = [edge for _, cell in self.stacked_cells() for edge in cell.edges.values() if own]
        return [each for edge in edges for name, each in edge.items() if name in own]  # type: ignore[operator]

    def restrict(self, candidates: Candidates) -> "Network":
        """Makes the network run these of its operations only, which is what building them alone would give.

        Args:
            candidates: operations that the network was built with.

        Returns:
            The same network.

        Raises:
            GenotypeError: the network was built without one of the operations.
        """
        if unknown := set(candidates.operators()) - set(self.candidates.operators()):
            raise GenotypeError(
                f"the network was built without {sorted(unknown)[0]}: build it with more candidates"
            )
        for kind, cell in self.stacked_cells():
            cell.restrict({edge: candidates.on(kind, edge) for edge in candidates.space.edges})
        return self

    def mix(self, weights: Mapping[Operator, Tensor] | None) -> "Network":
        """Sets the weights of the live operators in all cells of their type.

        Args:
            weights: 0-dimensional tensors; None for the mean of the operations of an edge.

        Returns:
            The same network.
        """
        for kind, cell in self.stacked_cells():
            cell.mix(
                None
                if weights is None
                else {(edge, name): w for (own, edge, name), w in weights.items() if own == kind}
            )
        return self

    def feature_map(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f h2 w2"]:
        """Output of the last cell before pooling. Raises ShapeError for images of the wrong shape."""
        if x.dim() != 4 or x.shape[1] != self.settings.input_channels:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, expected samples × {self.settings.input_channels} × "
                "height × width"
            )
        drop = self._drop() if self.training and self.drop_path > 0 else None
        s0 = s1 = self.stem(x)
        for _, cell in self.stacked_cells():
            s0, s1 = s1, cell(s0, s1, drop)
        return self.last(s1)

    def features(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Global average of the last cell's output: what the few-shot heads work on."""
        return self.feature_map(x).mean(dim=(2, 3))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits."""
        return self.classifier(self.features(x))

    def seed_drop_path(self, seed: int, step: int = 0) -> None:
        """Makes the drop-path masks of the next training pass those of pass ``step`` under this seed."""
        self._drop_seed, self._drop_step = int(seed), int(step)

    def _drop(self) -> Callable[[Tensor], Tensor]:
        if not self.drop_path < 1:
            raise ValueRangeError(f"drop_path is {self.drop_path}: expected a probability below 1")
        stream = generator(self._drop_seed, "drop-path", self._drop_step)
        self._drop_step += 1
        keep = 1 - self.drop_path

        def drop(output: Tensor) -> Tensor:
            mask = torch.rand(len(output), 1, 1, 1, generator=stream).lt(keep).to(output.dtype) / keep
            return output * mask.to(output.device, non_blocking=True)

        return drop

    def get_extra_state(self) -> Tensor:
        """Seed and pass of the drop-path masks, as a tensor in the ``state_dict``."""
        return torch.tensor([self._drop_seed, self._drop_step])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what :meth:`get_extra_state` returned."""
        self.seed_drop_path(*state.tolist())


def build(
    candidates: Candidates,
    settings: NetworkSettings,
    seed: int,
    kinds: tuple[CellType, ...] | None = None,
    stem: bool = True,
) -> Network:
    """The network of these candidates with the weights of its initialisation, float32 on the CPU.

    Args:
        candidates: its operations.
        settings: its size.
        seed: seed of its weights.
        kinds: types of the stacked cells, by default :func:`layout`.
        stem: False feeds the images to the cells.

    Returns:
        The network.
    """
    network = Network(candidates, settings, kinds or layout(settings.cells), stem)
    initialise(network, seed, settings.initialisation)
    network.seed_drop_path(derived_seed(seed, "drop-path"))
    return network


def derived_network(genotype: Genotype, settings: NetworkSettings, seed: int) -> Network:
    """The network that stacks finished cells: what the paper trains after the search."""
    return build(genotype.candidates(), settings, seed)


def supernet(candidates: Candidates, settings: NetworkSettings, seed: int) -> Network:
    """The supernet 𝒩_k of Algorithm 1 with these live operations, in the form that the search scores."""
    return build(candidates, settings.for_search(settings.classes), seed)


def parameter_count(network: nn.Module) -> int:
    """Number of weights, the paper's "parameters" in Table 1."""
    return sum(parameter.numel() for parameter in network.parameters())
