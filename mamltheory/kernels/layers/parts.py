"""Whether the parts of a network that are not known keep samples apart: tested on their inputs in one pass.

Mixing can only happen inside such a part, so that the layers around it need not run again. A part is tested where it
takes and gives one row a sample; elsewhere the whole network is, by :func:`mamltheory.guard.check_independent`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mamltheory.guard import other_batches
from mamltheory.modules import call_module, probe_weights
from mamltheory.tasks import Parameters

FEW = 8
"""Samples whose gradients are compared, for parts without parameters."""


@dataclass(eq=False)
class PartCall:
    """One call of a part of a network.

    Attributes:
        name: of the part in the network.
        part: the part.
        args: its positional arguments.
        versions: version counters of the tensors among them at the call.
        output: its output.
    """

    name: str
    part: nn.Module
    args: tuple[Any, ...]
    versions: list[int]
    output: Any

    @property
    def parameters(self) -> dict[str, str]:
        """Own names of the part's parameters -> names in the network."""
        prefix = f"{self.name}." if self.name else ""
        return {name: prefix + name for name, _ in self.part.named_parameters(remove_duplicate=False)}


def keeps_samples_apart(call: PartCall, params: Parameters, n: int) -> bool:
    """Whether every sample has the same output in another batch, and some of them the same gradient.

    Gradients are looked at for parts without parameters; a part with parameters has those of the whole network
    compared by the caller.

    Args:
        call: the call, with n samples.
        params: the network's parameters.
        n: number of samples.

    Returns:
        False also where that cannot be told from this call alone.
    """
    mapped = [isinstance(part, Tensor) and part.dim() > 0 and len(part) == n for part in call.args]
    if (
        not any(mapped)
        or not (isinstance(call.output, Tensor) and call.output.dim() and len(call.output) == n)
        or [part._version for part in call.args if isinstance(part, Tensor)] != call.versions
    ):
        return False
    values = {own: params[full] for own, full in call.parameters.items() if full in params}
    order = torch.cat(other_batches(n, n))
    few = order[:FEW]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batches that the user did not ask for
            again = _outputs(call, values, mapped, [order[:1], order[1:]])
            if not _close(call.output.detach()[order.to(call.output.device)], again):
                return False
            if call.parameters or not again.is_floating_point():
                return True
            together, apart = (_gradients(call, mapped, some) for some in ([few], [few[:1], few[1:]]))
    except RuntimeError:
        return False
    return all(_close(one, two) for one, two in zip(together, apart, strict=True))


def _outputs(
    call: PartCall, values: Mapping[str, Tensor], mapped: Sequence[bool], batches: Sequence[Tensor]
) -> Tensor:
    """The part's outputs, batch after batch."""
    with torch.no_grad():
        return torch.cat(
            [_run(call, values, _taken(call.args, mapped, batch)) for batch in batches if len(batch)]
        )


def _gradients(call: PartCall, mapped: Sequence[bool], batches: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of outputs, weighted by sample, by the arguments, batch after batch."""
    collected: list[tuple[Tensor, ...]] = []
    for batch in batches:
        if len(batch) == 0:
            continue
        parts = _taken(call.args, mapped, batch)
        leaves = [p.requires_grad_() for p in parts if isinstance(p, Tensor) and p.is_floating_point()]
        with torch.enable_grad():
            output = _run(call, {}, parts)
        if not output.requires_grad:
            return []
        cotangent = probe_weights(batch, output).view(-1, *[1] * (output.dim() - 1)).expand_as(output)
        collected.append(
            torch.autograd.grad(output, leaves, cotangent, allow_unused=True, materialize_grads=True)
        )
    return [torch.cat(parts) for parts in zip(*collected, strict=True)]


def _taken(args: Sequence[Any], mapped: Sequence[bool], batch: Tensor) -> list[Any]:
    """The arguments of these samples alone."""
    parts = [part.detach() if isinstance(part, Tensor) else part for part in args]
    return [
        part[batch.to(part.device)] if split else part.clone() if isinstance(part, Tensor) else part
        for part, split in zip(parts, mapped, strict=True)
    ]


def _run(call: PartCall, values: Mapping[str, Tensor], parts: Sequence[Any]) -> Any:
    plain = not values and next(call.part.buffers(), None) is None
    return call.part(*parts) if plain else call_module(call.part, values, *parts)


def _close(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not one.is_floating_point():
        return bool((one == two).all())
    tolerance = 1e3 * torch.finfo(one.dtype).eps * float(one.abs().max())
    return bool(((one - two).abs() <= tolerance).all())
