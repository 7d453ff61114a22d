"""Kernel of a finite network at given parameters: Θ̂ = (1/l) ∇f ∇fᵀ (Definition 1).

Rows are sample-major, class-minor: row i·k + c belongs to output c of sample i. The kernel is computed layer by
layer wherever the layers are known, in closed form for the networks of Eq. (16), and from rows of the Jacobian
otherwise; it is the same kernel. Gradients are in the network's dtype, their products in float64 unless asked
otherwise.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.kernels.fully_connected import fully_connected_gradients
from mamltheory.kernels.jacobian import Outputs, check_dtype, check_outputs, selected
from mamltheory.kernels.jacobian import gram as gram
from mamltheory.kernels.jacobian import jacobian as jacobian
from mamltheory.kernels.layerwise import layerwise_kernels
from mamltheory.kernels.tiles import Budget, Pass, general_gradients, tiled_kernels
from mamltheory.networks import FullyConnected, Model, check_finite, from_module, output_of
from mamltheory.types import Parameters

Method = Literal["auto", "layerwise", "generic"]
"""How a kernel is computed: "layerwise" from the layers' formulas, "generic" by vmap of jacrev, or whichever fits."""

Select = Collection[str] | Callable[[str], bool] | None


def resolve(model: Model | nn.Module, params: Parameters | None) -> tuple[Model, Parameters]:
    """A pure model and its parameters, from either form in which a user may hold a network.

    Raises ConfigurationError when a pure model comes without parameters, ValueRangeError for weights that are
    not finite, UnsupportedModelError for batch statistics.
    """
    if isinstance(model, nn.Module):
        pure, own = from_module(model)
        return pure, _finite(own if params is None else params)
    if params is None:
        raise ConfigurationError(
            "a pure Model has no parameters of its own: pass params=net.initialise(generator)"
        )
    return model, _finite(params)


def _finite(params: Parameters) -> Parameters:
    """The parameters, checked; a sum is finite only if all its terms are, and reads them once."""
    return check_finite(params) if not all(bool(v.sum().isfinite()) for v in params.values()) else params


def empirical_ntk(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    select: Select = None,
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical NTK Θ̂(x1, x2) = (1/l) ∇f(x1) ∇f(x2)ᵀ, Definition 1, of any network.

    model: a ``torch.nn.Module`` (then 1/l is left out) or a pure Model with ``params``.
    x2: None for the symmetric kernel of x1 with itself, at half the work.
    outputs: "full" for n1·k × n2·k, "sum" for the n1 × n2 kernel of the sum of the outputs.
    select: names of parameters, or a predicate on names (all, whether or not they require a gradient).
    chunk, memory: most samples differentiated at a time, and bytes of temporary tensors (2 GiB); tiles are made as
        small as that needs, see :func:`mamltheory.kernels.layerwise.layerwise_kernels`. "generic" holds n·k·D
        numbers for a tile.
    method: "auto" takes "layerwise", and "generic" for the parameters which that does not cover;
        :func:`mamltheory.kernels.layerwise.parameter_routes` says which.
    dtype: of the kernel and of its accumulation, float64 for None. A float32 network's gradients carry float32's
        rounding (some 1e-7 of the largest entry) either way. In float64 their Gram matrix is positive semi-definite to
        float64's rounding, as condition numbers need (their error was 5e-9); torch.float32 is faster and leaves them
        an error of 1e-5, and :func:`mamltheory.linalg.condition_number` takes the kernel at its own dtype's rounding.
    Raises UnsupportedModelError for batch statistics, active dropout or a layer that no method covers,
    ValueRangeError for weights or samples that are not finite, ConfigurationError for parameters that do not exist
    or a budget too small for one sample, ShapeError for samples without axes or of integers.
    """
    (kernel,) = empirical_ntks(
        model,
        x1,
        x2,
        [select],
        params=params,
        outputs=outputs,
        chunk=chunk,
        memory=memory,
        method=method,
        dtype=dtype,
    )
    return kernel


def empirical_ntks(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None,
    selects: Sequence[Select],
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
) -> list[Float[Tensor, "p q"]]:
    """The empirical NTK by several sets of parameters, from one pass; arguments as for :func:`empirical_ntk`."""
    check_outputs(outputs)
    check_dtype(dtype)
    if method not in ("auto", "layerwise", "generic"):
        raise ValueRangeError(f"method is {method!r}: expected 'auto', 'layerwise' or 'generic'")
    pure, params = resolve(model, params)
    selections = [_names(params, select) for select in selects]
    x1, x2 = _samples(x1, params), None if x2 is None else _samples(x2, params)
    if isinstance(model, nn.Module) and method != "generic":
        kernels = layerwise_kernels(
            model,
            x1,
            x2,
            selections,
            params,
            outputs,
            chunk=chunk,
            memory=memory,
            strict=method == "layerwise",
            dtype=dtype,
        )
    else:
        differentiate = partial(_gradients, _structure(pure, method), pure, params, outputs, selections)
        kernels = tiled_kernels(differentiate, x1, x2, selections, chunk, memory, dtype)
    return [_checked(kernel) / pure.scale for kernel in kernels]


def empirical_last_layer_ntk(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical NTK of the last linear layer alone, 𝒦̂ of Eq. (112); arguments as for :func:`empirical_ntk`.

    Raises UnsupportedModelError when the network has no linear layer.
    """
    (kernel,) = empirical_ntks(
        model,
        x1,
        x2,
        [last_layer(model)],
        params=params,
        outputs=outputs,
        chunk=chunk,
        memory=memory,
        method=method,
        dtype=dtype,
    )
    return kernel


def last_layer(model: Model | nn.Module) -> frozenset[str]:
    """Names of the parameters of the last linear layer; raises UnsupportedModelError when there is none."""
    pure = from_module(model)[0] if isinstance(model, nn.Module) else model
    if not pure.head:
        raise UnsupportedModelError(
            "the network has no nn.Linear: the last-layer kernel of ANIL is not defined for it"
        )
    return pure.head


def _structure(model: Model, method: Method) -> FullyConnected | None:
    """The network of Eq. (16) that a pure model stands for, if its closed form may and can be used."""
    net = None if method == "generic" else getattr(model, "network", None)
    if net is None and method == "layerwise":
        raise UnsupportedModelError(
            "a pure Model shows no layers: pass the nn.Module itself, or method='auto' or 'generic'"
        )
    return net


def _gradients(
    net: FullyConnected | None,
    model: Model,
    params: Parameters,
    outputs: Outputs,
    selections: list[frozenset[str]],
    x: Tensor,
    budget: Budget,
) -> Pass:
    """Gradients of a pure model: in closed form where its structure is known, else rows of the Jacobian."""
    if net is not None:
        return fully_connected_gradients(net, params, x, outputs, selections, budget)
    with torch.no_grad():
        k = 1 if outputs == "sum" else output_of(model, params, x[:1]).shape[1]
    names = frozenset().union(*selections)
    return Pass(len(x) * k, x.device, general_gradients(model, params, x, outputs, names, k, budget))


def chosen_names(model: Model | nn.Module, params: Parameters | None, select: Select) -> frozenset[str]:
    """Names of the parameters that ``select`` stands for; raises as :func:`empirical_ntk`."""
    return _names(resolve(model, params)[1], select)


def _names(params: Parameters, select: Select) -> frozenset[str]:
    if callable(select):
        select = {name for name in params if select(name)}
    return frozenset(selected(params, select))


def _checked(kernel: Tensor) -> Tensor:
    if not bool(torch.isfinite(kernel).all()):
        raise ValueRangeError(
            "the kernel has NaN or infinite entries though the weights are finite: gradients overflow or are "
            "undefined at these samples; rescale the weights, or use float64"
        )
    return kernel


def _samples(x: Tensor, params: Parameters) -> Tensor:
    if x.dim() < 2 or len(x) == 0 or not x.is_floating_point():
        raise ShapeError(
            f"got samples of shape {tuple(x.shape)} and dtype {x.dtype}: expected floating-point samples × dimensions"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueRangeError("the samples contain NaN or infinite entries: clean the data first")
    if params and x.dtype not in {value.dtype for value in params.values()}:
        own = next(iter(params.values())).dtype
        raise ShapeError(
            f"the samples are {x.dtype} and the parameters {own}: convert one of them with .to(dtype)"
        )
    return x
