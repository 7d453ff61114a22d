"""Kernel of a finite network at given parameters: Θ̂ = (1/l) ∇f ∇fᵀ (Definition 1).

Rows are sample-major, class-minor: row i·k + c belongs to output c of sample i. Jacobians are held parameter
by parameter in the network's dtype, and contracted one parameter at a time in float64.
"""

from collections.abc import Callable, Collection
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, jacrev, vmap

from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.networks import Model, check_finite, from_module, output_of
from mamltheory.types import Parameters

Outputs = Literal["full", "sum"]


def resolve(model: Model | nn.Module, params: Parameters | None) -> tuple[Model, Parameters]:
    """A pure model and its parameters, from either form in which a user may hold a network.

    Raises ConfigurationError when a pure model comes without parameters, ValueRangeError for weights that are
    not finite, UnsupportedModelError for batch statistics.
    """
    if isinstance(model, nn.Module):
        pure, own = from_module(model)
        return pure, check_finite(own if params is None else params)
    if params is None:
        raise ConfigurationError(
            "a pure Model has no parameters of its own: pass params=net.initialise(generator)"
        )
    return model, check_finite(params)


def jacobian(
    model: Model,
    params: Parameters,
    x: Tensor,
    outputs: Outputs = "full",
    select: Collection[str] | None = None,
    chunk: int | None = None,
) -> Parameters:
    """∇_θ f_θ(x) sample by sample: for every parameter a tensor n·k × its shape ("sum": n × its shape).

    outputs: "full" for every output, "sum" for the gradient of the sum of the outputs.
    select: names of the parameters to differentiate by (all).  chunk: samples that are held at a time.
    """
    if outputs not in ("full", "sum"):
        raise ValueRangeError(f"outputs is {outputs!r}: expected 'full' or 'sum'")
    unknown = set(select or ()) - set(params)
    if unknown:
        raise ConfigurationError(f"select names {sorted(unknown)}, but the network has {sorted(params)}")
    moving = {name: value for name, value in params.items() if select is None or name in select}
    if not moving:
        raise ConfigurationError(
            f"select={select!r} names no parameter of the network: it has {sorted(params)}"
        )

    def single(part: Parameters, sample: Tensor) -> Tensor:
        output = output_of(model, {**params, **part}, sample[None])[0]
        return output.sum() if outputs == "sum" else output

    derivative = grad(single) if outputs == "sum" else jacrev(single)
    rows = vmap(derivative, in_dims=(None, 0), chunk_size=chunk)(moving, x)
    return {name: value.reshape(-1, *params[name].shape) for name, value in rows.items()}


def gram(rows1: Parameters, rows2: Parameters) -> Float[Tensor, "p q"]:
    """J1 J2ᵀ, contracted parameter by parameter in float64; exactly symmetric when both are the same object."""
    total = 0
    for name, left in rows1.items():
        right = rows2[name]
        flat = left.flatten(1).double()
        total = total + flat @ (flat if right is left else right.flatten(1).double()).T
    return (total + total.T) / 2 if rows2 is rows1 else total


def empirical_ntk(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    select: Collection[str] | Callable[[str], bool] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical NTK Θ̂(x1, x2) = (1/l) ∇f(x1) ∇f(x2)ᵀ, Definition 1, of any network; float64.

    model: a ``torch.nn.Module`` (then 1/l is left out) or a pure Model with ``params``.
    x2: None for the symmetric kernel of x1 with itself.
    outputs: "full" for n1·k × n2·k, "sum" for the n1 × n2 kernel of the sum of the outputs.
    select: names of parameters, or a predicate on names (all).  chunk: samples differentiated at a time.
    Memory: (n1 + n2)·k·D numbers of the network's dtype.
    Raises UnsupportedModelError for batch statistics or active dropout, ValueRangeError for weights or samples
    that are not finite, ConfigurationError for parameters that do not exist, ShapeError for samples without axes.
    """
    pure, params = resolve(model, params)
    names = {n for n in params if select(n)} if callable(select) else select
    rows1 = jacobian(pure, params, _samples(x1, params), outputs, names, chunk)
    rows2 = rows1 if x2 is None else jacobian(pure, params, _samples(x2, params), outputs, names, chunk)
    return gram(rows1, rows2) / pure.scale


def empirical_last_layer_ntk(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    chunk: int | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical NTK of the last linear layer alone, 𝒦̂ of Eq. (112); arguments as for :func:`empirical_ntk`.

    Raises UnsupportedModelError when the network has no linear layer.
    """
    pure, params = resolve(model, params)
    if not pure.head:
        raise UnsupportedModelError(
            "the network has no nn.Linear: the last-layer kernel of ANIL is not defined for it"
        )
    return empirical_ntk(pure, x1, x2, params=params, outputs=outputs, select=pure.head, chunk=chunk)


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
