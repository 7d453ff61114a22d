"""Inputs of the layers of a network of cells and cotangents of their outputs, as functions of mixing weights.

The per-sample gradients G of a layer are bilinear in its inputs a and the cotangents g of its outputs. A scalar of the
kernel, s(G Gᵀ) with M = ∂s/∂(G Gᵀ), has the cotangent Ḡ = 2 M G, and

    ⟨Ḡ, dG(a, g)⟩ = ⟨ā, da⟩ + ⟨ḡ, dg⟩

with ā and ḡ read off the same formula. Of each layer G is held for all samples where it is smaller than a
and g, as for the first cells, and otherwise a and g; then Ḡ, or ā and ḡ, in their place. The graphs in which a
and g depend on the mixing weights hold a few samples.

ReLU′ is a step, whose derivative is a Dirac δ that automatic differentiation takes for 0. Here the forward pass and
the first derivative are those of ReLU, exactly; in a second derivative alone δ is replaced by a Gaussian bump.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mamltheory.errors import UnsupportedModelError, ValueRangeError
from mamltheory.kernels.layers.convolutions import is_plain, layer_output
from mamltheory.kernels.layers.gram import add_grams
from mamltheory.kernels.layers.recorder import (
    LayerCall,
    RecordedLayer,
    Recorder,
    layers_of,
    output_gradients,
    own_parameters,
    stacked,
)
from mamltheory.kernels.layers.rules import gradient_cotangents, layer_gradients
from mamltheory.kernels.layers.tiles import Budget
from mamltheory.tasks import Parameters

UNLIMITED = 1 << 62
"""Bytes of a budget that is not checked: what a tape holds is bounded by its number of samples."""


class _Ramp(torch.autograd.Function):
    """ReLU whose derivative is a :class:`_Gate`."""

    @staticmethod
    def forward(ctx, x: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.width = width
        return x.relu()

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _Gate.apply(x, cotangent, ctx.width), None


class _Gate(torch.autograd.Function):
    """(x, g) -> g · [x > 0], with the derivative g · N(x; 0, width²) by x."""

    @staticmethod
    def forward(ctx, x: Tensor, cotangent: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x, cotangent)
        ctx.width = width
        return cotangent * (x > 0)

    @staticmethod
    def backward(ctx, back: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, cotangent = ctx.saved_tensors
        by_x = by_cotangent = None
        if ctx.needs_input_grad[0]:
            bump = (x * x).mul_(-0.5 / ctx.width**2).exp_().mul_(1 / (ctx.width * math.sqrt(2 * math.pi)))
            by_x = bump.mul_(cotangent).mul_(back)
        if ctx.needs_input_grad[1]:
            by_cotangent = back * (x > 0)
        return by_x, by_cotangent, None


def relu_with_surrogate(x: Tensor, width: float = 1.0) -> Tensor:
    """ReLU, with ReLU″ = N(0, width²) instead of a Dirac δ in a second derivative.

    Args:
        x: the input.
        width: standard deviation of the bump.

    Returns:
        The output of ReLU.

    Raises:
        ValueRangeError: the width is not positive and finite.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueRangeError(f"the surrogate's width is {width}: expected a positive number such as 1.0")
    return _Ramp.apply(x, width)


@dataclass(eq=False)
class Tape:
    """One pass over some samples.

    Attributes:
        calls: calls of the layers that are differentiated by.
        inputs: distinct inputs of the calls.
        slots: for each call the place of its input.
        cotangents: for each call the cotangents of its output, one tensor for each output of the network.
    """

    calls: list[LayerCall]
    inputs: list[Tensor]
    slots: list[int]
    cotangents: list[list[Tensor]]

    def pulled_to(
        self, weights: Tensor, by_inputs: Sequence[Tensor], by_cotangents: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """The gradient by the mixing weights, from cotangents of the inputs and of the calls' cotangents."""
        tensors = [*self.inputs, *itertools.chain(*self.cotangents)]
        back = [*by_inputs, *itertools.chain(*by_cotangents)]
        moved = [(each, by) for each, by in zip(tensors, back, strict=True) if each.requires_grad]
        return torch.autograd.grad(
            [each for each, _ in moved], weights, [by for _, by in moved], materialize_grads=True
        )[0]


@contextmanager
def _differentiable_twice(network: nn.Module, width: float) -> Iterator[None]:
    """Puts the surrogate into every ReLU, and runs convolutions in the form whose second derivative is cheap."""
    handles = [
        module.register_forward_hook(lambda _, args, __: relu_with_surrogate(args[0], width))
        for module in network.modules()
        if type(module) is nn.ReLU
    ]
    replaced = [module for module in network.modules() if isinstance(module, nn.Conv2d) and is_plain(module)]
    try:
        for module in replaced:
            module.forward = partial(layer_output, module)  # type: ignore[method-assign]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in replaced:
            vars(module).pop("forward", None)


def record_tape(
    network: nn.Module, x: Tensor, names: set[str], full: bool, width: float, differentiable: bool
) -> Tape:
    """One forward pass, and one backward pass per output (full) or one for their sum.

    Args:
        network: the network.
        x: samples.
        names: parameters that the kernel differentiates by.
        full: whether each output has rows, or their sum.
        width: of the bump that stands for ReLU″.
        differentiable: whether the tape carries the graph down to the mixing weights, or numbers alone.

    Returns:
        The tape.

    Raises:
        UnsupportedModelError: no formula is known for a layer with such parameters.
    """
    frozen = {name: value.detach() for name, value in network.named_parameters()}
    own = own_parameters(network)
    for layer in layers_of(network, names, own):
        if layer.kind is None:
            raise UnsupportedModelError(
                f"module {layer.name!r} is a {type(layer.module).__name__}: the gradient of a score knows "
                "convolutions, linear layers and norms; use estimator='leave-one-out'"
            )
    budget = Budget(UNLIMITED, len(x))
    recorder = Recorder(network, frozen, names, budget, own, trusted=True, detached=not differentiable)
    with torch.enable_grad(), _differentiable_twice(network, width), recorder.watching(len(x)):
        logits = functional_call(network, frozen, (x,))
    columns = list(logits.unbind(1)) if full else [logits]
    pairs = zip(recorder.calls, output_gradients(columns, recorder, differentiable), strict=True)
    reached = [(call, each) for call, each in pairs if each is not None]
    places: dict[tuple, int] = {}
    inputs: list[Tensor] = []
    slots = []
    for call, _ in reached:
        (tensor,) = call.inputs
        key = (tensor.data_ptr(), tensor.shape)
        if key not in places:
            places[key] = len(inputs)
            inputs.append(tensor)
        slots.append(places[key])
    return Tape([call for call, _ in reached], inputs, slots, [each for _, each in reached])


@dataclass(eq=False)
class _Part:
    """One layer for all samples: chunk by chunk its rows, or the cotangents of its output where ``factored``."""

    layer: RecordedLayer
    slot: int
    factored: bool
    held: list

    def rows(self, inputs: Tensor, cotangents: Tensor) -> Parameters:
        """Per-sample gradients from the inputs and the cotangents of the outputs."""
        return layer_gradients(self.layer.kind, self.layer.module, inputs, cotangents, list(self.layer.names))

    def pulled_back(self, inputs: Tensor, cotangents: Tensor, by_rows: Parameters) -> tuple[Tensor, Tensor]:
        """Cotangents of the inputs and of the cotangents, from those of the rows."""
        return gradient_cotangents(self.layer.kind, self.layer.module, inputs, cotangents, by_rows)


class SampleGradients:
    """Per-sample gradients of all layers, each held in the smaller of two forms; samples come in chunks.

    After :meth:`turn` their cotangents are held in their place.
    """

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.inputs: dict[int, list[Tensor]] = {}
        self.sizes: list[int] = []

    def add(self, tape: Tape) -> None:
        """Takes a chunk of samples from its tape, of which nothing is kept but numbers."""
        if not self.parts:
            self.parts = [_part(tape, place) for place in range(len(tape.calls))]
            self.inputs = {part.slot: [] for part in self.parts if part.factored}
        for part, cotangents in zip(self.parts, tape.cotangents, strict=True):
            both = stacked(cotangents).detach()
            part.held.append(both if part.factored else part.rows(tape.inputs[part.slot].detach(), both))
        for slot, chunks in self.inputs.items():
            chunks.append(tape.inputs[slot].detach())
        self.sizes.append(len(tape.cotangents[0]) * len(tape.inputs[0]))

    def grams(self, selections: Sequence[set[str]]) -> list[Float[Tensor, "p p"]]:
        """Kernels over all samples by the parameters of every selection; float64."""
        count, weight = sum(self.sizes), self.parts[0].layer.module.get_parameter("weight")
        totals = [weight.new_zeros(count, count, dtype=torch.float64) for _ in selections]
        for part in self.parts:
            for key, gradients in self._rows(part).items():
                for total, names in zip(totals, selections, strict=True):
                    if part.layer.names[key] in names:
                        add_grams(total[None], gradients, (0,))
        return [(total + total.T) / 2 for total in totals]

    def turn(self, selections: Sequence[set[str]], weights: Sequence[Float[Tensor, "p p"]]) -> None:
        """Replaces the gradients by their cotangents.

        Args:
            selections: names of the parameters of each kernel.
            weights: M = ∂s/∂(kernel) of each kernel, symmetric.
        """
        by_inputs: dict[int, list[Tensor]] = {}
        for part in self.parts:
            rows = self._rows(part)
            for key in rows:
                chosen = [
                    m for m, names in zip(weights, selections, strict=True) if part.layer.names[key] in names
                ]
                rows[key] = (2 * sum(chosen[1:], chosen[0])).to(rows[key].dtype) @ rows[key]
            split = {key: value.split(self.sizes) for key, value in rows.items()}
            chunks = [
                {key: pieces[i].clone() for key, pieces in split.items()} for i in range(len(self.sizes))
            ]
            if not part.factored:
                part.held = chunks
                continue
            back = [
                part.pulled_back(*each)
                for each in zip(self.inputs[part.slot], part.held, chunks, strict=True)
            ]
            part.held = [by_cotangents for _, by_cotangents in back]
            found = [by_input for by_input, _ in back]
            before = by_inputs.get(part.slot)
            by_inputs[part.slot] = (
                found if before is None else [a + b for a, b in zip(found, before, strict=True)]
            )
        self.inputs = by_inputs

    def cotangents(self, chunk: int, tape: Tape) -> tuple[list[Tensor], list[list[Tensor]]]:
        """(ā, ḡ) of a chunk, after :meth:`turn`: ā in the order of ``tape.inputs``, ḡ by call and by output."""
        inputs = {slot: chunks[chunk] for slot, chunks in self.inputs.items()}
        back = []
        for part, cotangents in zip(self.parts, tape.cotangents, strict=True):
            by_cotangents = part.held[chunk]
            if not part.factored:
                both = stacked(cotangents).detach()
                by_inputs, by_cotangents = part.pulled_back(
                    tape.inputs[part.slot].detach(), both, by_cotangents
                )
                inputs[part.slot] = inputs.get(part.slot, 0.0) + by_inputs
            back.append(list(by_cotangents.unbind(1)))
        return [inputs[slot] for slot in range(len(tape.inputs))], back

    def _rows(self, part: _Part) -> Parameters:
        """Per-sample gradients of one layer for all samples."""
        chunks = part.held
        if part.factored:
            chunks = [part.rows(*each) for each in zip(self.inputs[part.slot], part.held, strict=True)]
        return {key: torch.cat([rows[key] for rows in chunks]) for key in part.layer.names}


def _part(tape: Tape, place: int) -> _Part:
    layer, slot, cotangents = tape.calls[place].layer, tape.slots[place], tape.cotangents[place]
    inputs = tape.inputs[slot]
    factors = (inputs.numel() + sum(each.numel() for each in cotangents)) // len(inputs)
    return _Part(layer, slot, factors < len(cotangents) * layer.numbers, [])
