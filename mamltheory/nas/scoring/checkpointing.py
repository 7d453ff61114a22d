"""Forward and backward passes stage by stage: what flows back to a layer is held while its stage is at work.

A stage is the stem, a cell or the end of the network: a function of earlier states. As long as the budget lasts, its
graph waits for the backward pass; the graphs of the first stages go first, and those stages are run again. What the
next chain would compute again in its first stages it can take over.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks

from mamltheory.nas.scoring.sample_gradients import gradient_rows

Rows = list[Tensor]
"""Gradients by the parameters of a layer, images × outputs × numbers, in blocks of numbers."""


class OverBudget(Exception):
    """The samples at hand need more bytes than there are."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


@dataclass(eq=False)
class Call:
    """One call of one layer: what entered, and where the gradient by what left it passes.

    names: the layer's own parameters that are differentiated by.  holders: which candidates' images entered.
    gridded: what entered is the grid of the pixels that the layer sees.
    flow_bytes, row_bytes: of the gradient by what left it, for one output, and of those by the parameters.
    """

    layer: nn.Module
    names: tuple[str, ...]
    holders: tuple[int, ...]
    entering: Tensor
    gridded: bool
    edge: GradientEdge
    flow_bytes: int
    row_bytes: int

    def kept(self, flow: Tensor, outputs: int) -> Tensor:
        """What waits for the gradients of other outputs: rows, where they are shorter than what flows back."""
        return torch.cat(self.rows(flow[:, None]), 2) if self._waits_as_rows(outputs) else flow

    def joined(self, parts: list[Tensor]) -> Rows:
        """Gradients by the parameters, from what was kept."""
        return [torch.cat(parts, 1)] if self._waits_as_rows(len(parts)) else self.rows(torch.stack(parts, 1))

    def rows(self, flow: Tensor) -> Rows:
        """Gradients by the parameters."""
        return gradient_rows(self.layer, self.names, self.entering, flow, self.gridded)

    def _waits_as_rows(self, outputs: int) -> bool:
        return outputs > 1 and self.row_bytes < self.flow_bytes


@dataclass(eq=False)
class Stage:
    """A function of a note of layers' calls and of earlier states, numbered from 0 for the images, and its last
    forward pass.

    held: bytes of the graph.  flowing: bytes of the gradients that its backward pass holds.
    """

    function: Callable[..., Tensor]
    sources: tuple[int, ...]
    inputs: list[Tensor] = field(default_factory=list)
    output: Tensor | None = None
    calls: list[Call] = field(default_factory=list)
    held: int = 0
    flowing: int = 0

    def forget(self) -> None:
        """Drops the graph."""
        self.inputs, self.output, self.calls, self.held = [], None, [], 0

    def take_over(self, other: "Stage") -> None:
        """The graph of another stage that computes the same."""
        self.inputs, self.output, self.calls = other.inputs, other.output, other.calls
        self.held, self.flowing = other.held, other.flowing


class _Booking:
    """What one forward pass of a stage holds.

    storages: size of every storage that the graph holds, by its address.
    """

    def __init__(
        self,
        stage: Stage,
        layers: Mapping[nn.Module, tuple[str, ...]],
        holders: Callable[[], tuple[int, ...]],
    ) -> None:
        self.stage, self.layers, self.holders = stage, layers, holders
        self.storages: dict[int, int] = {}

    def tensor(self, tensor: Tensor) -> Tensor:
        """Books a tensor that is held, and lets go of its graph."""
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def note(self, layer: nn.Module, entering: Tensor, leaving: Tensor, gridded: bool) -> None:
        """Books a call of a layer, if it is one that is differentiated; a row has the numbers of one of its copies."""
        if layer not in self.layers:
            return
        names, item = self.layers[layer], leaving.element_size()
        copies = getattr(layer, "copies", 1)
        numbers = sum(layer.get_parameter(name).numel() for name in names) // copies
        sizes = leaving.numel() * item, len(leaving) * numbers * item
        entering, edge = self.tensor(entering), get_gradient_edge(leaving)
        self.stage.calls.append(Call(layer, names, self.holders(), entering, gridded, edge, *sizes))


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


class Chain:
    """Stages in a row, each making the next state.

    layers: those that are differentiated, with their own parameters' names.  outputs: how many gradients of every
    image's logits are taken.  holders: whose images go through the layer that is called next.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        layers: Mapping[nn.Module, tuple[str, ...]],
        holders: Callable[[], tuple[int, ...]],
    ) -> None:
        self.stages, self.layers, self.holders = list(stages), layers, holders
        self.states: list[Tensor] = []
        self.taken_over = 0
        self.needed = 0

    def take_over(self, other: "Chain", count: int) -> None:
        """The first stages of another chain that computes the same in them, if it has kept their graphs."""
        if not other.holds(count):
            return
        for own, stage in zip(self.stages[:count], other.stages, strict=False):
            own.take_over(stage)
        self.states, self.taken_over = other.states[: count + 1], count

    def holds(self, count: int) -> bool:
        """Whether the graphs of the first stages are there."""
        return all(stage.output is not None for stage in self.stages[:count])

    def forward(self, x: Tensor, outputs: int, memory: int, aside: int = 0) -> Tensor:
        """The last state; ``needed`` becomes the bytes with which no stage had to be run again.

        aside: bytes of the memory that others hold meanwhile.  Raises OverBudget when one stage alone does not fit.
        """
        self.states, graphs, most = [x, *self.states[1 : self.taken_over + 1]], aside, 0
        for place, stage in enumerate(self.stages):
            if place >= self.taken_over:
                self._advance(stage, outputs)
                self.states.append(stage.output.detach())
            graphs, most = graphs + stage.held, max(most, stage.flowing)
            if aside + stage.held + stage.flowing > memory:
                raise OverBudget(aside + stage.held + stage.flowing)
            for earlier in self.stages[:place]:
                if aside + sum(each.held for each in self.stages) + most > memory:
                    earlier.forget()
        self.needed = graphs + most
        return self.states[-1]

    def backward(self, flows: Sequence[Tensor], take: Callable[[Call, Rows], None], kept: int = 0) -> None:
        """Hands over the gradients by the parameters of every call, from the last stage to the first.

        flows: by the last state, one for each output.  kept: how many of the first stages keep their graphs, unless
        the budget was too tight for one of them and it has to be run again.
        """
        kept = kept if self.holds(kept) else 0
        arriving = [[0.0] * len(flows) for _ in self.stages] + [list(flows)]
        for place in reversed(range(len(self.stages))):
            stage = self.stages[place]
            if stage.output is None:
                self._advance(stage, len(flows))
            pull = self._passed if len(flows) == 1 else self._gathered
            for k, gradients in enumerate(pull(stage, arriving.pop(), take, place < kept)):
                for source, gradient in zip(stage.sources, gradients, strict=True):
                    if gradient is not None:
                        arriving[source][k] = gradient + arriving[source][k]

    def _passed(
        self, stage: Stage, flows: Sequence[Tensor], take: Callable[[Call, Rows], None], kept: bool
    ) -> list[Sequence[Tensor | None]]:
        """For one output: what flows back to a layer is used when it passes, and not held."""
        handles = [call.edge.node.register_prehook(partial(_arrived, call, take)) for call in stage.calls]
        try:
            gradients = torch.autograd.grad(
                stage.output, stage.inputs, flows[0], retain_graph=kept, allow_unused=True
            )
            return [gradients]
        finally:
            for handle in handles:  # a node that keeps a hook that knows the node is never freed
                handle.remove()
            if not kept:
                stage.forget()

    def _gathered(
        self, stage: Stage, flows: Sequence[Tensor], take: Callable[[Call, Rows], None], kept: bool
    ) -> list[Sequence[Tensor | None]]:
        """For several outputs: the rows of all of them together."""
        waiting: list[list[Tensor]] = [[] for _ in stage.calls]
        passed, calls = [], stage.calls
        wanted = [*(call.edge for call in calls), *stage.inputs]
        for k, flow in enumerate(flows):
            gradients = torch.autograd.grad(
                stage.output, wanted, flow, retain_graph=kept or k + 1 < len(flows), allow_unused=True
            )
            for call, parts, gradient in zip(calls, waiting, gradients, strict=False):
                if gradient is not None:
                    parts.append(call.kept(gradient, len(flows)))
            passed.append(gradients[len(calls) :])
        if not kept:
            stage.forget()
        for call, parts in zip(calls, waiting, strict=True):
            if parts:
                take(call, call.joined(parts))
                parts.clear()
        return passed

    def _advance(self, stage: Stage, outputs: int) -> None:
        """Runs a stage on detached states and records the calls of its layers, and what its graph holds."""
        stage.forget()
        stage.inputs = [self.states[i].detach().requires_grad_() for i in stage.sources]
        booking = _Booking(stage, self.layers, self.holders)
        with torch.enable_grad(), saved_tensors_hooks(booking.tensor, _unchanged):
            stage.output = stage.function(booking.note, *stage.inputs)
        stage.held = sum(booking.storages.values())
        stage.flowing = _flowing(stage.calls, outputs)


def _flowing(calls: Sequence[Call], outputs: int) -> int:
    """Bytes of the gradients that a backward pass holds at once, about."""
    rows = max((call.row_bytes * outputs for call in calls), default=0)
    if outputs == 1:
        return rows + 2 * max((call.flow_bytes for call in calls), default=0)
    return rows + sum(
        call.flow_bytes + (outputs - 1) * min(call.flow_bytes, call.row_bytes) for call in calls
    )


def _arrived(call: Call, take: Callable[[Call, Rows], None], flows: tuple[Tensor | None, ...]) -> None:
    flow = flows[call.edge.output_nr]
    if flow is not None:
        take(call, call.rows(flow[:, None]))
