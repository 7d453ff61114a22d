"""Activation checkpointing: backward passes stage by stage, whose per-sample gradients leave stage by stage.

A stage is the stem, a cell or the end of the network: a function of earlier states. As long as the budget lasts, its
graph is kept for the backward pass; the graphs of the first stages are dropped first, and those stages run again.
First stages that the next chain would compute alike can be reused by it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mamltheory.kernels.layers.convolutions import Geometry
from mamltheory.kernels.layers.recorder import LayerCall, RecordedLayer, stacked
from mamltheory.kernels.layers.tiles import OverBudget

Rows = list[Tensor]
"""Per-sample gradients of a layer, parameter by parameter: samples · outputs × numbers, sample-major."""
Take = Callable[[LayerCall, Rows], None]


class Stage(NamedTuple):
    """A function of a recorder and of earlier states, which are numbered from 0 for the images.

    The function calls the recorder with the groups of samples, a module, its input, its output and the geometry of a
    convolution, for each module that it runs.
    """

    function: Callable[..., Tensor]
    sources: tuple[int, ...]


@dataclass(eq=False)
class Graph:
    """One forward pass of a stage.

    Attributes:
        inputs: states, detached.
        output: the next state.
        calls: calls of the layers that are differentiated by.
        bytes: size of what the graph holds.
        backward_bytes: size of the gradients that its backward pass holds, about.
    """

    inputs: list[Tensor]
    output: Tensor
    calls: list[LayerCall]
    bytes: int
    backward_bytes: int


class Chain:
    """Stages in a row, each of which computes the next state.

    Attributes:
        stages: the stages.
        layers: layers that are differentiated by.
        states: the images and the stages' outputs, detached.
        graphs: of the stages; None where it has been dropped.
        reused: number of first stages whose graphs another chain has computed.
        needed: bytes with which no stage had to run again.
    """

    def __init__(self, stages: Sequence[Stage], layers: Mapping[nn.Module, RecordedLayer]) -> None:
        self.stages, self.layers = list(stages), layers
        self.states: list[Tensor] = []
        self.graphs: list[Graph | None] = [None] * len(stages)
        self.reused = self.needed = 0

    def reuse(self, other: "Chain", count: int) -> None:
        """Takes the first stages of a chain that computes the same in them, if it has kept their graphs."""
        if other.holds(count):
            self.graphs[:count] = other.graphs[:count]
            self.states, self.reused = other.states[: count + 1], count

    def holds(self, count: int) -> bool:
        """Whether the graphs of the first stages are kept."""
        return None not in self.graphs[:count]

    def forward(self, x: Tensor, outputs: int, memory: int, aside: int = 0) -> Tensor:
        """Runs all stages, and keeps as many of their graphs as fit.

        Args:
            x: images.
            outputs: number of outputs that will be differentiated.
            memory: bytes of the budget.
            aside: bytes of it that others hold meanwhile.

        Returns:
            The last state.

        Raises:
            OverBudget: one stage alone does not fit.
        """
        self.states, total, most = [x, *self.states[1 : self.reused + 1]], aside, 0
        for place in range(len(self.stages)):
            graph = self.graphs[place] if place < self.reused else None
            if graph is None:
                graph = self._run(place, outputs)
                self.states.append(graph.output.detach())
            total, most = total + graph.bytes, max(most, graph.backward_bytes)
            if aside + graph.bytes + graph.backward_bytes > memory:
                raise OverBudget("a cell", aside + graph.bytes + graph.backward_bytes)
            for earlier in range(place):
                if aside + sum(each.bytes for each in self.graphs if each is not None) + most > memory:
                    self.graphs[earlier] = None
        self.needed = total + most
        return self.states[-1]

    def backward(self, cotangents: Sequence[Tensor], take: Take, kept: int = 0) -> None:
        """Hands over the per-sample gradients of all calls, from the last stage to the first.

        Args:
            cotangents: of the last state, one for each output.
            take: receives each call and its gradients.
            kept: number of first stages whose graphs are kept, unless one of them had to be dropped.
        """
        kept = kept if self.holds(kept) else 0
        arriving: list[list] = [[0.0] * len(cotangents) for _ in self.stages] + [list(cotangents)]
        for place in reversed(range(len(self.stages))):
            for k, gradients in enumerate(self._pulled_back(place, arriving.pop(), take, place < kept)):
                for source, gradient in zip(self.stages[place].sources, gradients, strict=True):
                    if gradient is not None:
                        arriving[source][k] = gradient + arriving[source][k]

    def _pulled_back(
        self, place: int, cotangents: Sequence[Tensor], take: Take, keep: bool
    ) -> list[tuple[Tensor | None, ...]]:
        """The gradients by the stage's inputs, for each output."""
        graph, outputs = self.graphs[place] or self._run(place, len(cotangents)), len(cotangents)
        self.graphs[place] = graph if keep else None
        handles = [
            call.edge.node.register_prehook(partial(_arrived, call, [], outputs, take))
            for call in graph.calls
        ]
        try:
            return [
                torch.autograd.grad(
                    graph.output,
                    graph.inputs,
                    cotangent,
                    retain_graph=keep or k + 1 < outputs,
                    allow_unused=True,
                )
                for k, cotangent in enumerate(cotangents)
            ]
        finally:
            for handle in handles:  # a node that keeps a hook that knows the node is never freed
                handle.remove()

    def _run(self, place: int, outputs: int) -> Graph:
        """Runs a stage on detached states, records its calls, and keeps its graph."""
        stage = self.stages[place]
        self.graphs[place] = None
        inputs = [self.states[i].detach().requires_grad_() for i in stage.sources]
        calls: list[LayerCall] = []
        storages: dict[int, int] = {}

        def held(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        def record(
            groups: tuple[int, ...], module: nn.Module, x: Tensor, output: Tensor, geometry: Geometry | None
        ) -> None:
            if module in self.layers:
                calls.append(LayerCall(self.layers[module], (held(x),), output, geometry, groups))

        with torch.enable_grad(), saved_tensors_hooks(held, _unchanged):
            output = stage.function(record, *inputs)
        graph = Graph(inputs, output, calls, sum(storages.values()), _backward_bytes(calls, outputs))
        self.graphs[place] = graph
        return graph


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def row_bytes(call: LayerCall) -> int:
    """Size of a layer's per-sample gradients for one output."""
    (x,) = call.inputs
    return len(x) * call.layer.numbers * x.element_size()


def _backward_bytes(calls: Sequence[LayerCall], outputs: int) -> int:
    """Bytes of the gradients that a backward pass holds at once, about."""
    rows = max((row_bytes(call) * outputs for call in calls), default=0)
    if outputs == 1:
        return rows + 2 * max((call.cotangent_bytes for call in calls), default=0)
    return rows + sum(
        call.cotangent_bytes + (outputs - 1) * min(call.cotangent_bytes, row_bytes(call)) for call in calls
    )


def _arrived(
    call: LayerCall, waiting: list, outputs: int, take: Take, cotangents: tuple[Tensor | None, ...]
) -> None:
    """Hands over the gradients of a call when the cotangents of all outputs are there.

    Until then rows wait where they are smaller than cotangents.
    """
    cotangent = cotangents[call.edge.output_nr]
    if cotangent is None:
        return
    as_rows = outputs > 1 and row_bytes(call) < call.cotangent_bytes
    waiting.append(list(call.gradients(cotangent[:, None]).values()) if as_rows else cotangent)
    if len(waiting) == outputs:
        if as_rows:
            rows = [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*waiting, strict=True)]
        else:
            rows = list(call.gradients(stacked(waiting)).values())
        waiting.clear()
        take(call, rows)
