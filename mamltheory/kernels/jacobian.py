"""Rows of ∇f sample by sample, for anything that torch.func can differentiate: the general way, and the oracle.

Rows are sample-major, class-minor: row i·k + c belongs to output c of sample i. They are held parameter by
parameter in the network's dtype, and contracted one parameter at a time in float64.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, jacrev, vmap

from mamltheory.errors import ConfigurationError, UnsupportedModelError, ValueRangeError
from mamltheory.networks import Model, output_of
from mamltheory.types import Parameters

Outputs = Literal["full", "sum"]


@contextmanager
def without_batching_warnings() -> Iterator[None]:
    """Silences torch where it runs an operation sample by sample: slower, and the same numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def check_outputs(outputs: str) -> None:
    """Raises ValueRangeError unless outputs is "full" or "sum"."""
    if outputs not in ("full", "sum"):
        raise ValueRangeError(f"outputs is {outputs!r}: expected 'full' or 'sum'")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises ValueRangeError unless kernels can be accumulated in this dtype; None stands for float64."""
    if dtype not in (None, torch.float32, torch.float64):
        raise ValueRangeError(f"dtype is {dtype}: expected torch.float64 (or None) or torch.float32")


def selected(params: Parameters, select: Collection[str] | None) -> Parameters:
    """The parameters of these names (all for None); raises ConfigurationError for unknown names or none at all."""
    unknown = set(select or ()) - set(params)
    if unknown:
        raise ConfigurationError(f"select names {sorted(unknown)}, but the network has {sorted(params)}")
    moving = {name: value for name, value in params.items() if select is None or name in select}
    if not moving:
        raise ConfigurationError(
            f"select={select!r} names no parameter of the network: it has {sorted(params)}"
        )
    return moving


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
    Raises UnsupportedModelError for a network that torch.func cannot differentiate sample by sample.
    """
    check_outputs(outputs)
    moving = selected(params, select)

    def single(part: Parameters, sample: Tensor) -> Tensor:
        output = output_of(model, {**params, **part}, sample[None])[0]
        return output.sum() if outputs == "sum" else output

    derivative = grad(single) if outputs == "sum" else jacrev(single)
    try:
        with without_batching_warnings():
            rows = vmap(derivative, in_dims=(None, 0), chunk_size=chunk)(moving, x)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            f"the network cannot be differentiated sample by sample with respect to {sorted(moving)} "
            f"({str(error).splitlines()[0]}): write it with operations that torch.func.vmap supports, or "
            "leave those parameters out with select="
        ) from error
    return {name: value.reshape(-1, *params[name].shape) for name, value in rows.items()}


def adds_up(
    rows: Parameters, outputs: Callable[[Parameters], Tensor], flow: Tensor, values: Parameters
) -> bool:
    """Whether rows of n × k gradients, weighted and added, are the gradient of one plain pass over the batch.

    outputs: parameters -> n × …; flow: n × k × …, its gradients that the rows pulled back; rows: n × k × shape.
    Some operations' batching rules give wrong numbers (PReLU with several slopes in torch 2.13).
    """
    weights = torch.arange(flow.shape[0] * flow.shape[1], device=flow.device).to(flow.dtype).cos() + 0.5
    weights = weights.view(flow.shape[:2])
    own = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad():
        output = outputs(own)
    combined = torch.einsum("nk,nk...->n...", weights, flow)
    plain = torch.autograd.grad(
        output, list(own.values()), combined, allow_unused=True, materialize_grads=True
    )
    tolerance = 1e3 * torch.finfo(flow.dtype).eps
    for name, gradient in zip(own, plain, strict=True):
        total = torch.einsum("nk,nk...->...", weights, rows[name])
        size = torch.einsum("nk,nk...->...", weights.abs(), rows[name].abs()).amax()
        if not bool(((total - gradient).abs() <= tolerance * size + tolerance**2).all()):
            return False
    return True


def gram(rows1: Parameters, rows2: Parameters, dtype: torch.dtype = torch.float64) -> Float[Tensor, "p q"]:
    """J1 J2ᵀ, contracted parameter by parameter in a dtype; exactly symmetric when both are the same object."""
    total = 0
    for name, left in rows1.items():
        right = rows2[name]
        flat = left.flatten(1).to(dtype)
        total = total + flat @ (flat if right is left else right.flatten(1).to(dtype)).T
    return (total + total.T) / 2 if rows2 is rows1 else total
