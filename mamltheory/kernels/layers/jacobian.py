"""Rows of ∇f sample by sample, for anything that torch can differentiate: the general way.

Rows are sample-major, class-minor: row i·k + c belongs to output c of sample i. They are held parameter by
parameter in the network's dtype, and contracted one parameter at a time in float64.
"""

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap

from mamltheory.accelerator import out_of_memory
from mamltheory.errors import ConfigurationError, NetworkError, UnsupportedModelError, ValueRangeError
from mamltheory.modules import probe_weights
from mamltheory.networks import Model, in_transform, not_differentiable, output_of
from mamltheory.tasks import Parameters

Outputs = Literal["full", "sum"]


@contextmanager
def without_batching_warnings() -> Iterator[None]:
    """Silences torch where it runs an operation sample by sample: slower, and the same numbers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        yield


def check_outputs(outputs: str) -> None:
    """Raises ValueRangeError unless outputs is "full" or "sum"."""
    if not isinstance(outputs, str) or outputs not in ("full", "sum"):
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

    The rows come from vmap of jacrev, where those are the gradients of plain autograd; see :func:`checked_rows`.

    Args:
        model: the network.
        params: its parameters.
        x: samples n × ….
        outputs: "full" for every output, "sum" for the gradient of the sum of the outputs.
        select: names of the parameters to differentiate by; None for all that are not frozen.
        chunk: samples that vmap holds together.

    Returns:
        The gradients, by name of the parameter. It raises UnsupportedModelError where plain autograd does not give
        them either, or the gradients mix samples.

    """
    check_outputs(outputs)
    moving = selected(params, select if select is not None else list(model.moving(params)))

    def batch(own: Parameters, samples: Tensor) -> Tensor:
        output = output_of(model, {**params, **own}, samples)
        return output.sum(1, keepdim=True) if outputs == "sum" else output

    derivative = jacrev(lambda own, sample: batch(own, sample[None])[0])
    with torch.no_grad():
        first = batch({}, x[:1])
    n, k = len(x), first.shape[1]
    cotangents = torch.eye(k, dtype=first.dtype, device=first.device).expand(n, k, k)

    def vectorised() -> Parameters:
        return vmap(derivative, in_dims=(None, 0), chunk_size=chunk)(moving, x)

    rows = checked_rows(
        vectorised, lambda own: batch(own, x), lambda own, i: batch(own, x[i : i + 1])[0], cotangents, moving
    )
    return {name: rows[name].reshape(n * k, *params[name].shape) for name in moving}


def checked_rows(
    fast: Callable[[], Parameters],
    whole: Callable[[Parameters], Tensor],
    single: Callable[[Parameters, int], Tensor],
    cotangents: Tensor,
    values: Parameters,
) -> Parameters:
    """Gradients n × k × shape by every parameter, from ``fast`` where it gives those of plain autograd.

    Some operations have batching rules that give wrong numbers, or none. The rows are therefore compared with one
    plain backward pass over the whole batch, which sees all samples and outputs at once, and rows by plain autograd,
    one sample and one output after the other, replace them where they differ. Inside a transform of torch.func there is
    no plain autograd, and ``fast`` is what there is.

    Args:
        fast: the rows, by whatever is faster than one backward pass a row.
        whole: parameters -> outputs n × … of all samples in one pass.
        single: (parameters, i) -> the output … of sample i alone.
        cotangents: n × k × …, the cotangents of the outputs.
        values: the parameters to differentiate by.

    Returns:
        The rows n × k × shape, by name of the parameter. Where plain autograd fails, it raises NetworkError.

    Raises:
        RuntimeError: the device has too little memory.
        UnsupportedModelError: the rows of plain autograd do not add up to the gradient of ``whole``.
    """
    if in_transform(values):
        return fast()
    try:
        with without_batching_warnings():
            rows = fast()
        if adds_up(rows, whole, cotangents, values):
            return rows
        reason = "it gives other gradients than plain autograd"
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        inside = error.__cause__ if isinstance(error, NetworkError) else error
        reason = (str(inside).splitlines() or [type(error).__name__])[0]
    _say_once(tuple(sorted(values)), reason)
    try:
        rows = plain_rows(single, cotangents, values)[1]
        agree = adds_up(rows, whole, cotangents, values, torch.finfo(cotangents.dtype).eps ** 0.5 * 10)
    except UnsupportedModelError:
        raise
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        refused: NetworkError = not_differentiable(values, error)
        raise refused from error
    if not agree:
        raise UnsupportedModelError(
            f"the gradients by {sorted(values)} of a sample alone are not those in its batch: the network mixes "
            "samples in its backward pass, or computes in lower precision than its outputs have"
        )
    return rows


_said: set[tuple[str, ...]] = set()


def _say_once(names: tuple[str, ...], reason: str) -> None:
    if names not in _said:
        _said.add(names)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        logging.getLogger("mamltheory").warning(
            "torch.func does not differentiate this network by %s (%s): its rows come from plain autograd, one at a "
            "time, and the numbers are right but slower",
            shown,
            reason,
        )


def plain_rows(
    single: Callable[[Parameters, int], Tensor], cotangents: Tensor, values: Parameters
) -> tuple[Tensor, Parameters]:
    """Outputs n × … and gradients n × k × shape by one plain backward pass a row; arguments as :func:`checked_rows`."""
    own = {name: value.detach().requires_grad_() for name, value in values.items()}
    outputs: list[Tensor] = []
    rows: dict[str, list[Tensor]] = {name: [] for name in own}
    for i, ways in enumerate(cotangents):
        with torch.enable_grad():
            output = single(own, i)
        for each in ways:
            for name, gradient in zip(own, gradients_of(output, list(own.values()), each), strict=True):
                rows[name].append(gradient)
        outputs.append(output.detach())
    shaped = {
        name: torch.stack(parts).reshape(*cotangents.shape[:2], *own[name].shape)
        for name, parts in rows.items()
    }
    return torch.stack(outputs), shaped


def gradients_of(output: Tensor, values: Sequence[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    """The gradients of ⟨output, cotangent⟩ by the values, zeros where it does not depend on them; the graph is kept."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(value) for value in values)
    return torch.autograd.grad(
        output, values, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def adds_up(
    rows: Parameters,
    outputs: Callable[[Parameters], Tensor],
    cotangents: Tensor,
    values: Parameters,
    tolerance: float | None = None,
) -> bool:
    """Whether rows of n × k gradients, weighted and added, are the gradient of one plain pass over the batch.

    Args:
        rows: gradients n × k × shape, by parameter.
        outputs: parameters -> outputs n × ….
        cotangents: n × k × …, the cotangents of the outputs that the rows belong to.
        values: the parameters.
        tolerance: relative to the largest entry of the sum of absolute values; None for a thousand roundings.

    Returns:
        False where some sum differs.
    """
    weights = probe_weights(torch.arange(cotangents.shape[0] * cotangents.shape[1]), cotangents).view(
        cotangents.shape[:2]
    )
    own = {name: value.detach().requires_grad_() for name, value in values.items()}
    with torch.enable_grad():
        output = outputs(own)
    plain = gradients_of(output, list(own.values()), torch.einsum("nk,nk...->n...", weights, cotangents))
    tolerance = 1e3 * torch.finfo(cotangents.dtype).eps if tolerance is None else tolerance
    for name, gradient in zip(own, plain, strict=True):
        if gradient.numel() == 0:
            continue
        part = weights.to(gradient.dtype)
        total = torch.einsum("nk,nk...->...", part, rows[name])
        size = torch.einsum("nk,nk...->...", part.abs(), rows[name].abs()).amax()
        if not bool(((total - gradient).abs() <= tolerance * size + tolerance**2).all()):
            return False
    return True


def gram(rows1: Parameters, rows2: Parameters, dtype: torch.dtype = torch.float64) -> Float[Tensor, "p q"]:
    """J1 J2ᵀ, contracted parameter by parameter in a dtype; exactly symmetric when both are the same object."""
    first = next(iter(rows1))
    total = rows1[first].new_zeros(len(rows1[first]), len(rows2[first]), dtype=dtype)
    for name, left in rows1.items():
        right = rows2[name]
        flat = left.reshape(len(left), -1).to(dtype)
        total = total + flat @ (flat if right is left else right.reshape(len(right), -1).to(dtype)).T
    return (total + total.T) / 2 if rows2 is rows1 else total
