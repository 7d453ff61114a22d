"""What enters the layers of a network of cells and what flows back to them, as functions of mixing weights.

The Gram matrix of a layer's per-sample gradients is bilinear in what enters, a, and what flows back, g. A scalar
of the kernel, s(G Gᵀ) with M = ∂s/∂(G Gᵀ), therefore has the cotangent Ḡ = 2 M G, and

    ⟨Ḡ, dG(a, g)⟩ = ⟨ā, da⟩ + ⟨ḡ, dg⟩

with ā and ḡ read off the same formula. Per-sample gradients are formed twice, layer by layer, and never kept: what
is held is a and g, and then ā and ḡ in their place.

ReLU′ is a step, whose derivative is a Dirac δ that automatic differentiation takes for 0. Here the forward pass and
the first derivative are those of ReLU, exactly; in a second derivative alone δ is replaced by a Gaussian bump.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from mamltheory.errors import UnsupportedModelError, ValueRangeError
from mamltheory.kernels.contraction import add_contraction
from mamltheory.kernels.layer_gradients import kind_of, layer_gradients
from mamltheory.types import Parameters


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


@contextmanager
def _hooked(network: nn.Module, names: set[str], width: float) -> Iterator[list]:
    """Notes (layer, kind, names, entering, leaving) of every layer, and puts the surrogate into every ReLU."""
    found: list = []
    handles = []

    def note(kind: type[nn.Module], own: dict[str, str]):
        def after(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            found.append((layer, kind, own, args[0], output))
            return output

        return after

    for prefix, module in network.named_modules():
        if type(module) is nn.ReLU:
            handles.append(
                module.register_forward_hook(lambda _, args, __: relu_with_surrogate(args[0], width))
            )
        own = {key: f"{prefix}.{key}" for key, _ in module.named_parameters(recurse=False)}
        chosen = {key: full for key, full in own.items() if full in names}
        if chosen:
            kind = kind_of(module, own)
            if kind is None:
                raise UnsupportedModelError(
                    f"module {prefix!r} is a {type(module).__name__}: the gradient of a score knows convolutions, "
                    "linear layers and norms; use estimator='leave-one-out'"
                )
            handles.append(module.register_forward_hook(note(kind, chosen)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


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


def _rows(tapes: Sequence[Tape], i: int) -> tuple[Tensor, Tensor, Parameters]:
    """What enters layer i, what flows back, and its per-sample gradients, for the samples of all tapes."""
    calls = [tape.calls[i] for tape in tapes]
    enters = torch.cat([t.entering[c.slot].detach() for t, c in zip(tapes, calls, strict=True)])
    flow = torch.cat([torch.stack([each.detach() for each in c.flows], 1) for c in calls])
    call = calls[0]
    return enters, flow, layer_gradients(call.kind, call.layer, enters, flow, list(call.names))


def grams(tapes: Sequence[Tape], selections: Sequence[set[str]]) -> list[Float[Tensor, "p p"]]:
    """Kernels over the samples of all tapes by the parameters of every selection; float64."""
    k = len(tapes[0].calls[0].flows)
    rows = k * sum(len(tape.entering[0]) for tape in tapes)
    device = tapes[0].entering[0].device
    totals = [torch.zeros(rows, rows, dtype=torch.float64, device=device) for _ in selections]
    for i, call in enumerate(tapes[0].calls):
        for key, gradients in _rows(tapes, i)[2].items():
            chosen = [t for t, names in zip(totals, selections, strict=True) if call.names[key] in names]
            add_contraction(chosen, gradients, gradients)
    return [(total + total.T) / 2 for total in totals]


def cotangents(
    tapes: Sequence[Tape], selections: Sequence[set[str]], weights: Sequence[Float[Tensor, "p p"]]
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """(ā, ḡ) for the samples of all tapes, from M = ∂s/∂(kernel) of every selection, symmetric.

    ā in the order of ``Tape.entering``, ḡ call by call and output by output.
    """
    entering: dict[int, Tensor] = {}
    flowing = []
    for i, call in enumerate(tapes[0].calls):
        enters, flow, gradients = _rows(tapes, i)
        by_rows = {}
        for key in gradients:
            chosen = [m for m, names in zip(weights, selections, strict=True) if call.names[key] in names]
            gradients[key] = by_rows[key] = (2 * sum(chosen)).to(flow.dtype) @ gradients[key]
        by_enters, by_flow = pulled_back(call.kind, call.layer, enters, flow, by_rows)
        entering[call.slot] = entering[call.slot] + by_enters if call.slot in entering else by_enters
        flowing.append(list(by_flow.unbind(1)))
    return [entering[slot] for slot in range(len(entering))], flowing


def pulled_back(
    kind: type[nn.Module], layer: nn.Module, enters: Tensor, flow: Tensor, by_rows: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(ā, ḡ) of one layer from the cotangents of its per-sample gradients, n·k × (numbers of the parameter)."""
    if kind is nn.Conv2d and set(by_rows) == {"weight"}:
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
    how = (layer.stride, layer.padding, layer.dilation, n * groups)
    by_flow = nn.functional.conv2d(stacked, kernel, None, *how)
    by_enters = nn.grad.conv2d_input(stacked.shape, kernel, back, *how).view_as(enters)
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
