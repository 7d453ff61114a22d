"""Per-sample gradients of one layer from what enters it and what flows back to what leaves it.

Shapes: what enters n × …, what flows back n × k × (shape of what leaves one sample), gradients n·k × (numbers of
the parameter). A layer whose formula is not written here is differentiated alone, sample by sample.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from mamltheory.errors import UnsupportedModelError
from mamltheory.kernels.layers.gram import Factors
from mamltheory.kernels.layers.jacobian import checked_rows
from mamltheory.modules import call_module
from mamltheory.tasks import Parameters

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
_WEIGHT_GRADIENT = {1: nn.grad.conv1d_weight, 2: nn.grad.conv2d_weight, 3: nn.grad.conv3d_weight}


def kind_of(layer: nn.Module, own: Collection[str]) -> type[nn.Module] | None:
    """The class whose formula applies to a layer with these parameters; None where it must be differentiated alone.

    A subclass counts as its parent when it inherits ``forward`` and holds weight and bias as parameters.
    """
    forward = type(layer).forward
    kind = next((kind for kind in _RULES if forward is kind.forward and isinstance(layer, kind)), None)
    if "weight" not in own or len(own) != 1 + ("bias" in own) or layer.weight.numel() == 0:
        return None
    return kind


def fits(kind: type[nn.Module] | None, layer: nn.Module, args: Sequence[object], samples: int) -> bool:
    """Whether the arguments of a call have one row a sample, and as many axes as the layer's formula expects."""
    tensors = [part for part in args if isinstance(part, Tensor)]
    if not tensors or tensors[0].dim() == 0 or len(tensors[0]) != samples:
        return False
    axes = tensors[0].dim()
    if kind in CONVOLUTIONS:
        return len(args) == 1 and axes == 2 + len(layer.kernel_size)
    least = 1 + len(layer.normalized_shape) if kind is nn.LayerNorm else 2
    return kind is None or (len(args) == 1 and axes >= least)


def linear_factors(entering: Tensor, flow: Tensor, bias: bool) -> Factors:
    """Gradients of a linear layer by its weight, and by its bias if asked, summed over the axes in between."""
    n, k = flow.shape[:2]
    return Factors(
        entering.reshape(n, -1, entering.shape[-1]), flow.reshape(n, k, -1, flow.shape[-1]), float(bias)
    )


def _linear(_: nn.Linear, entering: Tensor, flow: Tensor, names: Sequence[str]) -> Parameters:
    factors, rows = linear_factors(entering, flow, False), {}
    if "weight" in names:
        rows["weight"] = factors.rows
    if "bias" in names:
        rows["bias"] = factors.flowing.sum(2).flatten(0, 1)
    return rows


def _convolution(layer: nn.Module, entering: Tensor, flow: Tensor, names: Sequence[str]) -> Parameters:
    rows = {}
    if "weight" in names:
        rows["weight"] = _convolution_weight(layer, entering, flow)
    if "bias" in names:
        rows["bias"] = flow.flatten(3).sum(3).flatten(0, 1)
    return rows


def _convolution_weight(layer: nn.Module, entering: Tensor, flow: Tensor) -> Tensor:
    """One grouped weight gradient for all samples and outputs.

    Every group of every sample is a group of its own, that leads from its input channels to its output channels
    once for each of the k outputs: nothing is repeated, and no product between groups is formed.
    """
    n, k, groups = *flow.shape[:2], layer.groups
    entering, padding = _padded(layer, entering)
    size, space = tuple(layer.weight.shape[1:]), flow.shape[3:]
    if groups == 1 and set(size[1:]) == {1} and not any(padding):  # a linear layer on the pixels of a grid
        grid = entering[(..., *(slice(None, None, step) for step in layer.stride))]
        return (flow.flatten(1, 2).flatten(2) @ grid.flatten(2).transpose(1, 2)).view(n * k, -1)
    if groups > 1 and k > 1:
        flow = flow.unflatten(2, (groups, -1)).transpose(1, 2)
    gradient = _WEIGHT_GRADIENT[len(layer.kernel_size)](
        entering.reshape(1, -1, *entering.shape[2:]),
        (n * k * layer.out_channels, *size),
        flow.reshape(1, -1, *space),
        layer.stride,
        padding,
        layer.dilation,
        n * groups,
    )
    if groups > 1 and k > 1:
        gradient = gradient.view(n, groups, k, -1).transpose(1, 2)
    return gradient.reshape(n * k, -1)


def _padded(layer: nn.Module, entering: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input with the padding that a symmetric frame of zeros cannot express, and the frame that is left."""
    axes = len(layer.kernel_size)
    if layer.padding == "valid":
        return entering, (0,) * axes
    if layer.padding == "same":
        totals = [d * (size - 1) for d, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    else:
        sides = [(p, p) for p in layer.padding]
    if layer.padding_mode == "zeros" and all(left == right for left, right in sides):
        return entering, tuple(left for left, _ in sides)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    frame = [width for pair in reversed(sides) for width in pair]
    return nn.functional.pad(entering, frame, mode=mode), (0,) * axes


def _group_norm(layer: nn.GroupNorm, entering: Tensor, flow: Tensor, names: Sequence[str]) -> Parameters:
    standard = nn.functional.group_norm(entering, layer.num_groups, eps=layer.eps)
    return _channel_gradients(standard, flow, names)


def _layer_norm(layer: nn.LayerNorm, entering: Tensor, flow: Tensor, names: Sequence[str]) -> Parameters:
    standard = nn.functional.layer_norm(entering, layer.normalized_shape, eps=layer.eps)
    n, k, size = *flow.shape[:2], layer.weight.numel()
    standard, flow = standard.reshape(n, 1, -1, size), flow.reshape(n, k, -1, size)
    rows = {"weight": lambda: (flow * standard).sum(2), "bias": lambda: flow.sum(2)}
    return {name: rows[name]().flatten(0, 1) for name in names}


def _batch_norm(layer: nn.Module, entering: Tensor, flow: Tensor, names: Sequence[str]) -> Parameters:
    standard = nn.functional.batch_norm(entering, layer.running_mean, layer.running_var, eps=layer.eps)
    return _channel_gradients(standard, flow, names)


def _channel_gradients(standard: Tensor, flow: Tensor, names: Sequence[str]) -> Parameters:
    """Of a scale and a shift of every channel, summed over space."""
    n, k, channels = flow.shape[:3]
    standard, flow = standard.reshape(n, 1, channels, -1), flow.reshape(n, k, channels, -1)
    rows = {"weight": lambda: (flow * standard).sum(3), "bias": lambda: flow.sum(3)}
    return {name: rows[name]().flatten(0, 1) for name in names}


_RULES: dict[type[nn.Module], Callable[[nn.Module, Tensor, Tensor, Sequence[str]], Parameters]] = {
    nn.Linear: _linear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
}


def layer_gradients(
    kind: type[nn.Module], layer: nn.Module, entering: Tensor, flow: Tensor, names: Sequence[str]
) -> Parameters:
    """Gradients of a layer by those of its own parameters that are named, by the formula of its kind."""
    return _RULES[kind](layer, entering, flow, names)


def module_gradients(
    layer: nn.Module,
    name: str,
    entering: tuple[object, ...],
    leaving: Tensor,
    flow: Tensor,
    values: Parameters,
    constants: Parameters,
) -> Parameters:
    """Gradients of any module by its own parameters: one vector-Jacobian product of it alone a row.

    entering: its positional arguments; a tensor with n rows is taken sample by sample.  leaving: what it gave for
    the whole batch.  values: the parameters to differentiate by.  constants: its others.
    Raises UnsupportedModelError when a sample alone gives another output than in its batch.
    """
    n = len(leaving)
    mapped = [isinstance(part, Tensor) and part.dim() > 0 and len(part) == n for part in entering]
    alone: list[Tensor] = []

    def run(own: Parameters, parts: Sequence[object]) -> Tensor:
        parts = [part[None] if split else part for part, split in zip(parts, mapped, strict=True)]
        return call_module(layer, {**constants, **own}, *parts)[0]

    def pulled(flows: Tensor, *parts: object) -> tuple[Tensor, Parameters]:
        output, pull = vjp(lambda own: run(own, parts), values)
        return output, vmap(lambda each: pull(each)[0])(flows)

    def vectorised() -> Parameters:
        outputs, rows = vmap(pulled, in_dims=(0, *(0 if split else None for split in mapped)))(
            flow, *entering
        )
        alone.extend(outputs)
        return rows

    def single(own: Parameters, i: int) -> Tensor:
        output = run(own, [part[i] if split else part for part, split in zip(entering, mapped, strict=True)])
        alone.append(output.detach())
        return output

    def whole(own: Parameters) -> Tensor:
        return call_module(layer, {**constants, **own}, *entering)

    rows = checked_rows(vectorised, whole, single, flow, values)
    tolerance = 1e3 * torch.finfo(leaving.dtype).eps * float(leaving.abs().max())
    if not bool(((torch.stack(alone[-n:]) - leaving).abs() <= tolerance).all()):
        raise UnsupportedModelError(
            f"module {name!r} ({type(layer).__name__}) gives a sample another output alone than in its batch: it "
            "uses batch statistics, chance, or hooks that change its output, with which no kernel of single "
            "samples exists"
        )
    return {name: value.reshape(flow.shape[0] * flow.shape[1], -1) for name, value in rows.items()}
