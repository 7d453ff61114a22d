"""What enters the layers of a network of cells and what flows back to them, as functions of mixing weights.

The Gram matrix of a layer's per-sample gradients is bilinear in what enters, a, and what flows back, g. A scalar
of the kernel, s(G Gᵀ) with M = ∂s/∂(G Gᵀ), therefore has the cotangent Ḡ = 2 M G, and

    ⟨Ḡ, dG(a, g)⟩ = ⟨ā, da⟩ + ⟨ḡ, dg⟩

with ā and ḡ read off the same formula. What is held of a layer for all samples is G where that is smaller than a and
g, as it is for the first cells, and otherwise a and g; then Ḡ, or ā and ḡ, in their place. The graphs in which a
and g depend on the mixing weights are those of a few samples at a time.

ReLU′ is a step, whose derivative is a Dirac δ that automatic differentiation takes for 0. Here the forward pass and
the first derivative are those of ReLU, exactly; in a second derivative alone δ is replaced by a Gaussian bump.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mamltheory.errors import UnsupportedModelError, ValueRangeError
from mamltheory.kernels.layers.rules import kind_of, layer_gradients
from mamltheory.nas.scoring.cell_layers import Geometry, convolved, flow_back, is_padded_by_zeros, is_plain
from mamltheory.nas.scoring.sample_gradients import add_grams
from mamltheory.tasks import Parameters


class _Ramp(torch.autograd.Function):
    """ReLU whose derivative is a :class:`_Gate`."""

    @staticmethod
    def forward(ctx, x: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.width = width
        return x.relu()

    @staticmethod
    def backward(ctx, flow: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _Gate.apply(x, flow, ctx.width), None


class _Gate(torch.autograd.Function):
    """(x, g) -> g · [x > 0], with the derivative g · N(x; 0, width²) by x."""

    @staticmethod
    def forward(ctx, x: Tensor, flow: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x, flow)
        ctx.width = width
        return flow * (x > 0)

    @staticmethod
    def backward(ctx, back: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, flow = ctx.saved_tensors
        by_x = by_flow = None
        if ctx.needs_input_grad[0]:
            bump = (x * x).mul_(-0.5 / ctx.width**2).exp_().mul_(1 / (ctx.width * math.sqrt(2 * math.pi)))
            by_x = bump.mul_(flow).mul_(back)
        if ctx.needs_input_grad[1]:
            by_flow = back * (x > 0)
        return by_x, by_flow, None


def relu_with_surrogate(x: Tensor, width: float = 1.0) -> Tensor:
    """ReLU, with ReLU″ = N(0, width²) instead of a Dirac δ where a second derivative is asked for.

    Raises ValueRangeError for a width that is not positive and finite.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueRangeError(f"the surrogate's width is {width}: expected a positive number such as 1.0")
    return _Ramp.apply(x, width)


@dataclass(eq=False)
class LayerCall:
    """One layer's part of the kernel: its parameters (own name -> name in the network), which of the tensors that
    enter it takes, and what flows back to what leaves it, one tensor for each output.
    """

    layer: nn.Module
    kind: type[nn.Module]
    names: dict[str, str]
    slot: int
    flows: list[Tensor]


@dataclass(eq=False)
class Tape:
    """One pass over some samples: the tensors that enter layers, each once, and the layers' calls."""

    entering: list[Tensor]
    calls: list[LayerCall]


def _note(
    found: list, kind: type[nn.Module], own: dict[str, str], layer: nn.Module, args: tuple, output: Tensor
) -> Tensor:
    output = output if output.requires_grad else output.requires_grad_()
    found.append((layer, kind, own, args[0], output))
    return output


def _surrogate(width: float, _layer: nn.Module, args: tuple, _output: Tensor) -> Tensor:
    return relu_with_surrogate(args[0], width)


@contextmanager
def _hooked(network: nn.Module, names: set[str], width: float) -> Iterator[list]:
    """Notes (layer, kind, names, entering, leaving) of every layer, puts the surrogate into every ReLU, and runs
    convolutions in the form whose second derivative is cheap.
    """
    found: list = []
    handles, replaced = [], []
    try:
        for prefix, module in network.named_modules():
            if is_plain(module):
                module.forward = partial(convolved, module)
                replaced.append(module)
            if type(module) is nn.ReLU:
                handles.append(module.register_forward_hook(partial(_surrogate, width)))
            own = {key: f"{prefix}.{key}" for key, _ in module.named_parameters(recurse=False)}
            chosen = {key: full for key, full in own.items() if full in names}
            if chosen:
                kind = _known_kind(prefix, module, own)
                handles.append(module.register_forward_hook(partial(_note, found, kind, chosen)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for module in replaced:
            del module.forward


def _known_kind(prefix: str, module: nn.Module, own: Mapping[str, str]) -> type[nn.Module]:
    kind = kind_of(module, own)
    if kind is None:
        raise UnsupportedModelError(
            f"module {prefix!r} is a {type(module).__name__}: the gradient of a score knows convolutions, "
            "linear layers and norms; use estimator='leave-one-out'"
        )
    return kind


def record(
    network: nn.Module, x: Tensor, names: set[str], full: bool, width: float, differentiable: bool
) -> Tape:
    """One forward pass, and one backward pass per output (full) or one for their sum.

    names: parameters that the kernel differentiates by.  differentiable: whether the tape carries the graph down to
    the mixing weights, or numbers alone.
    """
    frozen = {name: value.detach() for name, value in network.named_parameters()}
    with torch.enable_grad(), _hooked(network, names, width) as found:
        logits = functional_call(network, frozen, (x,))
    columns = list(logits.sum(0)) if full else [logits.sum()]
    leaving = [each[-1] for each in found]
    passes = [
        torch.autograd.grad(
            column,
            leaving,
            retain_graph=differentiable or i + 1 < len(columns),
            create_graph=differentiable,
            materialize_grads=True,
        )
        for i, column in enumerate(columns)
    ]
    slots: dict[int, int] = {}
    entering: list[Tensor] = []
    calls = []
    for (layer, kind, own, enters, _), *flows in zip(found, *passes, strict=True):
        if id(enters) not in slots:
            slots[id(enters)] = len(entering)
            entering.append(enters if differentiable else enters.detach())
        calls.append(LayerCall(layer, kind, own, slots[id(enters)], list(flows)))
    return Tape(entering, calls)


@dataclass(eq=False)
class _Part:
    """One layer for all samples: chunk by chunk its rows, or what flows back to it where ``factored``."""

    layer: nn.Module
    kind: type[nn.Module]
    names: dict[str, str]
    slot: int
    factored: bool
    held: list

    def rows(self, enters: Tensor, flow: Tensor) -> Parameters:
        """Per-sample gradients from what enters and what flows back."""
        return layer_gradients(self.kind, self.layer, enters, flow, list(self.names))


class SampleGradients:
    """Per-sample gradients of all layers, each held in the smaller of two forms; samples come in chunks.

    After :meth:`turn` their cotangents are held in their place.
    """

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.entering: dict[int, list[Tensor]] = {}
        self.sizes: list[int] = []
        self.outputs = 0

    def add(self, tape: Tape) -> None:
        """Takes a chunk of samples from its tape, of which nothing is kept but numbers."""
        if not self.parts:
            self.outputs = len(tape.calls[0].flows)
            self.parts = [_part(tape, call) for call in tape.calls]
            self.entering = {part.slot: [] for part in self.parts if part.factored}
        for part, call in zip(self.parts, tape.calls, strict=True):
            flow = torch.stack([each.detach() for each in call.flows], 1)
            part.held.append(flow if part.factored else part.rows(tape.entering[call.slot].detach(), flow))
        for slot, chunks in self.entering.items():
            chunks.append(tape.entering[slot].detach())
        self.sizes.append(self.outputs * len(tape.entering[0]))

    def grams(self, selections: Sequence[set[str]]) -> list[Float[Tensor, "p p"]]:
        """Kernels over all samples by the parameters of every selection; float64."""
        count, device = sum(self.sizes), self.parts[0].layer.weight.device
        totals = [torch.zeros(count, count, dtype=torch.float64, device=device) for _ in selections]
        for part in self.parts:
            for key, gradients in self._rows(part).items():
                for total, names in zip(totals, selections, strict=True):
                    if part.names[key] in names:
                        add_grams(total[None], gradients[:, None], (0,))
        return [(total + total.T) / 2 for total in totals]

    def turn(self, selections: Sequence[set[str]], weights: Sequence[Float[Tensor, "p p"]]) -> None:
        """Puts cotangents into the place of the gradients, from M = ∂s/∂(kernel) of every selection, symmetric."""
        by_entering: dict[int, list[Tensor]] = {}
        for part in self.parts:
            rows = self._rows(part)
            for key in rows:
                chosen = [m for m, names in zip(weights, selections, strict=True) if part.names[key] in names]
                rows[key] = (2 * sum(chosen)).to(rows[key].dtype) @ rows[key]
            split = {key: value.split(self.sizes) for key, value in rows.items()}
            chunks = [
                {key: pieces[i].clone() for key, pieces in split.items()} for i in range(len(self.sizes))
            ]
            if not part.factored:
                part.held = chunks
                continue
            back = [
                pulled_back(part.kind, part.layer, *each)
                for each in zip(self.entering[part.slot], part.held, chunks, strict=True)
            ]
            part.held = [by_flow for _, by_flow in back]
            before = by_entering.get(part.slot, [0.0] * len(back))
            by_entering[part.slot] = [a + b for (a, _), b in zip(back, before, strict=True)]
        self.entering = by_entering

    def cotangents(self, chunk: int, tape: Tape) -> tuple[list[Tensor], list[list[Tensor]]]:
        """(ā, ḡ) of a chunk, after :meth:`turn`: ā in the order of ``tape.entering``, ḡ by call and by output."""
        entering = {slot: chunks[chunk] for slot, chunks in self.entering.items()}
        flowing = []
        for part, call in zip(self.parts, tape.calls, strict=True):
            by_flow = part.held[chunk]
            if not part.factored:
                flow = torch.stack([each.detach() for each in call.flows], 1)
                enters = tape.entering[part.slot].detach()
                by_enters, by_flow = pulled_back(part.kind, part.layer, enters, flow, by_flow)
                entering[part.slot] = entering.get(part.slot, 0.0) + by_enters
            flowing.append(list(by_flow.unbind(1)))
        return [entering[slot] for slot in range(len(tape.entering))], flowing

    def _rows(self, part: _Part) -> Parameters:
        """Per-sample gradients of one layer for all samples."""
        chunks = part.held
        if part.factored:
            chunks = [part.rows(*each) for each in zip(self.entering[part.slot], part.held, strict=True)]
        return {key: torch.cat([rows[key] for rows in chunks]) for key in part.names}


def _part(tape: Tape, call: LayerCall) -> _Part:
    rows = len(call.flows) * sum(call.layer.get_parameter(key).numel() for key in call.names)
    enters = tape.entering[call.slot]
    factors = (enters.numel() + sum(flow.numel() for flow in call.flows)) // len(enters)
    return _Part(call.layer, call.kind, call.names, call.slot, factors < rows, [])


def pulled_back(
    kind: type[nn.Module], layer: nn.Module, enters: Tensor, flow: Tensor, by_rows: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(ā, ḡ) of one layer from the cotangents of its per-sample gradients, n·k × (numbers of the parameter)."""
    if kind is nn.Conv2d and set(by_rows) == {"weight"} and is_padded_by_zeros(layer):
        return _convolution_back(layer, enters, flow, by_rows["weight"])
    enters, flow = enters.detach().requires_grad_(), flow.detach().requires_grad_()
    with torch.enable_grad():
        rows = layer_gradients(kind, layer, enters, flow, list(by_rows))
    back = [by_rows[key] for key in rows]
    by_enters, by_flow = torch.autograd.grad(
        list(rows.values()), [enters, flow], back, materialize_grads=True
    )
    return by_enters, by_flow


def _convolution_back(
    layer: nn.Conv2d, enters: Tensor, flow: Tensor, by_rows: Tensor
) -> tuple[Tensor, Tensor]:
    """⟨Ḡ, G(a, g)⟩ = ⟨g, a convolved with Ḡ⟩: a convolution with weights of its own for every sample and output.

    As for the gradients themselves, every group of every sample is a group of its own, with k outputs for one.
    """
    n, k, groups = *flow.shape[:2], layer.groups
    size, space = tuple(layer.weight.shape[1:]), flow.shape[3:]
    if groups == 1 and set(size[1:]) == {1} and not any(layer.padding):
        return _pointwise_back(layer, enters, flow, by_rows)
    kernel = by_rows.view(n, k, groups, -1, *size).transpose(1, 2).reshape(-1, *size)
    back = flow.unflatten(2, (groups, -1)).transpose(1, 2).reshape(1, -1, *space)
    stacked = enters.reshape(1, -1, *enters.shape[2:])
    how = Geometry(layer.stride, layer.padding, layer.dilation, n * groups)
    by_flow = nn.functional.conv2d(stacked, kernel, None, *how)
    by_enters = flow_back(stacked.shape, kernel, back, how).view_as(enters)
    by_flow = by_flow.view(n, groups, k, -1, *space).transpose(1, 2).reshape(flow.shape)
    return by_enters, by_flow


def _pointwise_back(layer: nn.Conv2d, enters: Tensor, flow: Tensor, by_rows: Tensor) -> tuple[Tensor, Tensor]:
    n = len(enters)
    places = (..., *(slice(None, None, step) for step in layer.stride))
    grid, kernel = enters[places], by_rows.view(n, -1, enters.shape[1])
    by_flow = (kernel @ grid.flatten(2)).view(flow.shape)
    by_enters = torch.zeros_like(enters)
    by_enters[places] = (kernel.transpose(1, 2) @ flow.flatten(1, 2).flatten(2)).view(grid.shape)
    return by_enters, by_flow
