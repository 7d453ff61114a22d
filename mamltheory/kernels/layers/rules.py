"""Per-sample gradients of one layer from its inputs and the cotangents of its output.

Shapes: inputs n × …, cotangents n × k × (shape of one sample's output), gradients n·k × (numbers of the parameter).
A layer whose formula is not written here is differentiated alone, sample by sample.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from mamltheory.errors import UnsupportedModelError
from mamltheory.kernels.layers.convolutions import (
    CONVOLUTIONS,
    factor_cotangents,
    weight_gradients,
    zero_padded,
)
from mamltheory.kernels.layers.gram import LayerFactors
from mamltheory.kernels.layers.jacobian import checked_rows
from mamltheory.modules import call_module
from mamltheory.tasks import Parameters


def kind_of(layer: nn.Module, own: Collection[str]) -> type[nn.Module] | None:
    """The class whose formula applies to a layer with these parameters; None where it must be differentiated alone.

    A subclass counts as its parent when it inherits ``forward`` and holds weight and bias as parameters.

    Args:
        layer: the layer.
        own: its own names of all its parameters.

    Returns:
        A class that :func:`layer_gradients` knows, or None.
    """
    forward = type(layer).forward
    kind = next((each for each in _RULES if forward is each.forward and isinstance(layer, each)), None)
    if "weight" not in own or len(own) != 1 + ("bias" in own):
        return None
    return kind if isinstance(layer.weight, Tensor) and layer.weight.numel() else None


def fits(kind: type[nn.Module] | None, layer: nn.Module, args: Sequence[object], samples: int) -> bool:
    """Whether the arguments of a call have one row a sample, and as many axes as the layer's formula expects.

    Args:
        kind: the class whose formula applies.
        layer: the layer.
        args: its positional arguments.
        samples: number of samples.

    Returns:
        False where the formula does not apply to the call.
    """
    tensors = [part for part in args if isinstance(part, Tensor)]
    if not tensors or tensors[0].dim() == 0 or len(tensors[0]) != samples:
        return False
    axes = tensors[0].dim()
    if isinstance(layer, CONVOLUTIONS) and kind is not None:
        return len(args) == 1 and axes == 2 + len(layer.kernel_size)
    least = 1 + len(layer.normalized_shape) if isinstance(layer, nn.LayerNorm) else 2
    return kind is None or (len(args) == 1 and axes >= least)


def linear_factors(inputs: Tensor, cotangents: Tensor, bias: bool) -> LayerFactors:
    """Gradients of a linear layer by its weight, and by its bias if asked, summed over the axes in between."""
    n, k = cotangents.shape[:2]
    return LayerFactors(
        inputs.reshape(n, -1, inputs.shape[-1]),
        cotangents.reshape(n, k, -1, cotangents.shape[-1]),
        float(bias),
    )


def _linear(_: nn.Module, inputs: Tensor, cotangents: Tensor, names: Sequence[str]) -> Parameters:
    factors, rows = linear_factors(inputs, cotangents, False), {}
    if "weight" in names:
        rows["weight"] = factors.rows
    if "bias" in names:
        rows["bias"] = factors.cotangents.sum(2).flatten(0, 1)
    return rows


def _convolution(
    layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, inputs: Tensor, cotangents: Tensor, names: Sequence[str]
) -> Parameters:
    rows = {}
    if "weight" in names:
        inputs, geometry = zero_padded(layer, inputs)
        rows["weight"] = weight_gradients(inputs, cotangents, layer.weight.shape, geometry)
    if "bias" in names:
        rows["bias"] = cotangents.flatten(3).sum(3).flatten(0, 1)
    return rows


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, cotangents: Tensor, names: Sequence[str]) -> Parameters:
    standard = nn.functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return _channel_gradients(standard, cotangents, names)


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, cotangents: Tensor, names: Sequence[str]) -> Parameters:
    standard = nn.functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    n, k, size = *cotangents.shape[:2], layer.weight.numel()
    standard, cotangents = standard.reshape(n, 1, -1, size), cotangents.reshape(n, k, -1, size)
    rows = {"weight": lambda: (cotangents * standard).sum(2), "bias": lambda: cotangents.sum(2)}
    return {name: rows[name]().flatten(0, 1) for name in names}


def _batch_norm(
    layer: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d,
    inputs: Tensor,
    cotangents: Tensor,
    names: Sequence[str],
) -> Parameters:
    standard = nn.functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    return _channel_gradients(standard, cotangents, names)


def _channel_gradients(standard: Tensor, cotangents: Tensor, names: Sequence[str]) -> Parameters:
    """Of a scale and a shift of every channel, summed over space."""
    n, k, channels = cotangents.shape[:3]
    standard, cotangents = standard.reshape(n, 1, channels, -1), cotangents.reshape(n, k, channels, -1)
    rows = {"weight": lambda: (cotangents * standard).sum(3), "bias": lambda: cotangents.sum(3)}
    return {name: rows[name]().flatten(0, 1) for name in names}


_RULES: dict[type[nn.Module], Callable[..., Parameters]] = {
    nn.Linear: _linear,
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm,
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
}


def layer_gradients(
    kind: type[nn.Module] | None, layer: nn.Module, inputs: Tensor, cotangents: Tensor, names: Sequence[str]
) -> Parameters:
    """Gradients of a layer by some of its own parameters, by the formula of its kind.

    Args:
        kind: class whose formula applies, see :func:`kind_of`.
        layer: the layer.
        inputs: its inputs n × ….
        cotangents: cotangents of its outputs, n × k × ….
        names: the layer's own names of the parameters.

    Returns:
        The gradients by name, n·k × (numbers of the parameter).

    Raises:
        UnsupportedModelError: there is no such class.
    """
    if kind is None:
        raise UnsupportedModelError(f"no formula for the gradients of a {type(layer).__name__} is known")
    return _RULES[kind](layer, inputs, cotangents, names)


def gradient_cotangents(
    kind: type[nn.Module] | None,
    layer: nn.Module,
    inputs: Tensor,
    cotangents: Tensor,
    by_rows: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Cotangents of the two factors of :func:`layer_gradients`, from those of its gradients.

    Args:
        kind: class whose formula applies, see :func:`kind_of`.
        layer: the layer.
        inputs: its inputs n × ….
        cotangents: cotangents of its outputs, n × k × ….
        by_rows: cotangents of the gradients by name, n·k × (numbers of the parameter).

    Returns:
        Cotangents of the inputs and of the cotangents, in their shapes.
    """
    if isinstance(layer, nn.Conv2d) and kind is nn.Conv2d and set(by_rows) == {"weight"}:
        padded, geometry = zero_padded(layer, inputs)
        if padded is inputs:
            return factor_cotangents(inputs, cotangents, by_rows["weight"], layer.weight.shape, geometry)
    inputs, cotangents = inputs.detach().requires_grad_(), cotangents.detach().requires_grad_()
    with torch.enable_grad():
        rows = layer_gradients(kind, layer, inputs, cotangents, list(by_rows))
    back = [by_rows[name] for name in rows]
    by_inputs, by_cotangents = torch.autograd.grad(
        list(rows.values()), [inputs, cotangents], back, materialize_grads=True
    )
    return by_inputs, by_cotangents


def module_gradients(
    layer: nn.Module,
    name: str,
    inputs: tuple[Any, ...],
    output: Tensor,
    cotangents: Tensor,
    values: Parameters,
    constants: Parameters,
) -> Parameters:
    """Gradients of any module by its own parameters: one vector-Jacobian product of it alone a row.

    Args:
        layer: the module.
        name: its name in the network.
        inputs: its positional arguments; a tensor with n rows is taken sample by sample.
        output: its output for the whole batch.
        cotangents: cotangents of its outputs, n × k × ….
        values: the parameters to differentiate by, by the module's own names.
        constants: its other parameters.

    Returns:
        The gradients by name, n·k × (numbers of the parameter).

    Raises:
        UnsupportedModelError: a sample alone gives another output than in its batch.
    """
    mapped = [isinstance(part, Tensor) and part.dim() > 0 and len(part) == len(output) for part in inputs]
    alone: list[Tensor] = []

    def call(own: Parameters, *parts: Any) -> Any:
        return call_module(layer, {**constants, **own}, *parts)

    def run(own: Parameters, parts: Sequence[Any]) -> Tensor:
        pairs = zip(parts, mapped, strict=True)
        return call(own, *(part[None] if split else part for part, split in pairs))[0]

    def pulled(ways: Tensor, *parts: Any) -> tuple[Tensor, Parameters]:
        alone_output, pull, *_ = vjp(lambda own: run(own, parts), values)
        return alone_output, vmap(lambda each: pull(each)[0])(ways)

    def vectorised() -> Parameters:
        axes = (0 if split else None for split in mapped)
        outputs, rows = vmap(pulled, in_dims=(0, *axes))(cotangents, *inputs)
        alone.extend(outputs)
        return rows

    def single(own: Parameters, i: int) -> Tensor:
        pairs = zip(inputs, mapped, strict=True)
        alone_output = run(own, [part[i] if split else part for part, split in pairs])
        alone.append(alone_output.detach())
        return alone_output

    rows = checked_rows(vectorised, lambda own: call(own, *inputs), single, cotangents, values)
    if not _close(torch.stack(alone[-len(output) :]), output):
        raise UnsupportedModelError(
            f"module {name!r} ({type(layer).__name__}) gives a sample another output alone than in its batch: it "
            "uses batch statistics, chance, or hooks that change its output, with which no kernel of single "
            "samples exists"
        )
    return {key: value.reshape(cotangents.shape[:2].numel(), -1) for key, value in rows.items()}


def _close(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e3 * torch.finfo(other.dtype).eps * float(other.abs().max())
    return bool(((one - other).abs() <= tolerance).all())
