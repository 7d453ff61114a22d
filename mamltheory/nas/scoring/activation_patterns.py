"""Activation patterns of several candidates of one network: what two candidates compute alike is computed once.

A value is named by the module that made it and by the names of what entered. A candidate differs from the supernet in
one edge, so that all values before that edge have the same names. The bits of every ReLU are packed when it is run;
a candidate's pattern is the bytes of all the values that it uses.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mamltheory.nas.genotype import EDGES, NODES, Candidates, CellType, Edge
from mamltheory.nas.network import Network, StackedCell
from mamltheory.nas.operations import leading_step


def packed_bits(patterns: Bool[Tensor, "n bits"]) -> np.ndarray:
    """The rows as bytes."""
    return np.packbits(patterns.cpu().numpy(), axis=1)


def distinct_rows(parts: Sequence[np.ndarray]) -> int:
    """Number of distinct rows of the parts side by side."""
    rows = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return len(np.unique(rows.view(f"V{rows.shape[1]}")))


@lru_cache(maxsize=1)
def _relus(network: Network) -> tuple[nn.ReLU, ...]:
    """Found once for all candidates of a network."""
    return tuple(module for module in network.modules() if isinstance(module, nn.ReLU))


@dataclass(eq=False)
class Value:
    """What a module made: its name, itself, and the packed bits of the ReLUs that were run for it."""

    name: int
    tensor: Tensor
    bits: list[np.ndarray]


class PatternCounter:
    """Counts the activation patterns of candidates of one network on the same inputs, the first one in full."""

    def __init__(self, network: Network, x: Float[Tensor, "n c h w"]) -> None:
        self.network, self.x = network, x
        self.names: dict[tuple, int] = {}
        self.first: dict[int, Value] = {}
        self.used: dict[int, Value] = {}
        self.bits: list[np.ndarray] = []

    def count(self, candidates: Candidates) -> int:
        """Number of distinct activation patterns."""
        self.used = {}
        handles = [relu.register_forward_hook(self._remember) for relu in _relus(self.network)]
        try:
            with torch.no_grad():
                self._run(candidates)
        finally:
            for handle in handles:
                handle.remove()
        self.first = self.first or self.used
        return distinct_rows([bits for value in self.used.values() for bits in value.bits])

    def _remember(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.bits.append(packed_bits((output > 0).flatten(1)))

    def _value(self, place: Hashable, function: Callable[..., Tensor], *inputs: Value) -> Value:
        """function(inputs), run unless this candidate or the first one has done so."""
        key = (place, *(value.name for value in inputs))
        name = self.names.setdefault(key, len(self.names))
        if name not in self.used:
            if name not in self.first:
                self.bits = []
                self.used[name] = Value(name, function(*(value.tensor for value in inputs)), self.bits)
            else:
                self.used[name] = self.first[name]
        return self.used[name]

    def _run(self, candidates: Candidates) -> None:
        s0 = s1 = self._value("stem", self.network.stem, Value(-1, self.x, []))
        for i, (kind, cell) in enumerate(zip(self.network.kinds, self.network.cells, strict=True)):
            s0, s1 = s1, self._cell(i, kind, cell, candidates, s0, s1)
        self._value("last", self.network.last, s1)

    def _cell(
        self, i: int, kind: CellType, cell: StackedCell, candidates: Candidates, s0: Value, s1: Value
    ) -> Value:
        relu = partial(self._value, (i, "relu"), cell.relu)
        states = [
            self._value((i, "fit0"), cell.fit0, relu(s0)),
            self._value((i, "fit1"), cell.fit1, relu(s1)),
        ]
        for node in range(NODES):
            live = {edge: candidates.on(kind, edge) for edge in EDGES if edge.node == node}
            means = [self._edge(i, kind, cell, edge, names, states) for edge, names in live.items() if names]
            states.append(self._value("sum", lambda *terms: sum(terms[1:], terms[0]), *means))
        return self._value("cat", lambda *nodes: torch.cat(nodes, dim=1), *states[2:])

    def _edge(
        self, i: int, kind: CellType, cell: StackedCell, edge: Edge, live: Sequence[str], states: list[Value]
    ) -> Value:
        """Mean of the live operations, in the network's order."""
        stride, parts = 2 if kind == "reduce" and edge.source < 2 else 1, []
        place = f"{edge.node}_{edge.source}"
        for name, operation in cell.edges[place].items():
            if name in live:
                step = f"{leading_step(name, stride)}{stride}"
                leading = self._value((i, step), cell.leading[step], states[edge.source])
                parts.append(self._value((i, place, name), operation, leading))
        if len(parts) == 1:
            return parts[0]
        return self._value("mean", lambda *terms: sum(terms[1:], terms[0]) / len(terms), *parts)
