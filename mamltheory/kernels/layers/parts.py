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


def keeps_samples_apart(call: PartCall, params: Parameters, order: Tensor) -> bool:
    """Whether every sample has the same output in another batch, and some of them the same gradient.

    Gradients are looked at for parts without parameters; a part with parameters has those of the whole network
    compared by the caller.

    Args:
        call: the call.
        params: the network's parameters.
        order: indices of the samples of the call, in another order.

    Returns:
        False also where that cannot be told from this call alone.
    """
    n = len(order)
    mapped = [isinstance(part, Tensor) and part.dim() > 0 and len(part) == n for part in call.args]
    if (
        not any(mapped)
        or not (isinstance(call.output, Tensor) and call.output.dim() and len(call.output) == n)
        or [part._version for part in call.args if isinstance(part, Tensor)] != call.versions
    ):
        return False
    own = call.parameters
    values = {name: params[full] for name, full in own.items() if full in params}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batches that the user did not ask for
            if not own and call.output.is_floating_point():
                return _same_outputs_and_gradients(call, mapped, order)
            again = _outputs(call, values, mapped, [order[:1], order[1:]])
            return _close(_rows(call.output.detach(), order), torch.cat(again))
    except RuntimeError:
        return False


def _same_outputs_and_gradients(call: PartCall, mapped: Sequence[bool], order: Tensor) -> bool:
    """Whether a part without parameters has the same outputs, and FEW gradients, in batches of other sizes.

    The passes whose gradients are compared give outputs as well, and one backward pass serves them all.

    Args:
        call: the call.
        mapped: which arguments have one row a sample.
        order: the samples in another order.

    Returns:
        False where an output or a gradient by an argument differs.
    """
    few, rest = order[:FEW], order[FEW:]
    batches = [batch for batch in (few[:1], few[1:], few) if len(batch)]
    leaves: list[list[Tensor]] = []
    outputs: list[Tensor] = []
    for batch in batches:
        parts = _taken(call.args, mapped, batch)
        leaves.append([p.requires_grad_() for p in parts if isinstance(p, Tensor) and p.is_floating_point()])
        with torch.enable_grad():
            outputs.append(_run(call, {}, parts))
    with torch.enable_grad():
        joined = torch.cat(outputs)
    again = torch.cat([joined.detach()[: len(few)], *_outputs(call, {}, mapped, [rest])])
    if not _close(_rows(call.output.detach(), order), again):
        return False
    if not joined.requires_grad:
        return True
    if not leaves[0]:
        return False  # a gradient by something that the part does not take as an argument
    weights = probe_weights(torch.cat(batches), joined).view(-1, *[1] * (joined.dim() - 1))
    found = torch.autograd.grad(
        joined,
        [leaf for each in leaves for leaf in each],
        weights.expand_as(joined),
        allow_unused=True,
        materialize_grads=True,
    )
    count = len(leaves[0])
    return all(
        _close(together, torch.cat(found[i:-count:count])) for i, together in enumerate(found[-count:])
    )


def _outputs(
    call: PartCall, values: Mapping[str, Tensor], mapped: Sequence[bool], batches: Sequence[Tensor]
) -> list[Tensor]:
    """The part's outputs for every batch that is not empty."""
    with torch.no_grad():
        return [_run(call, values, _taken(call.args, mapped, batch)) for batch in batches if len(batch)]


def _taken(args: Sequence[Any], mapped: Sequence[bool], batch: Tensor) -> list[Any]:
    """The arguments of these samples alone."""
    parts = [part.detach() if isinstance(part, Tensor) else part for part in args]
    return [
        _rows(part, batch) if split else part.clone() if isinstance(part, Tensor) else part
        for part, split in zip(parts, mapped, strict=True)
    ]


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """The rows of these numbers; faster than indexing by a tensor."""
    return values.index_select(0, index.to(values.device))


def _run(call: PartCall, values: Mapping[str, Tensor], parts: Sequence[Any]) -> Any:
    plain = not values and next(call.part.buffers(), None) is None
    return call.part(*parts) if plain else call_module(call.part, values, *parts)


def _close(one: Tensor, two: Tensor) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    if not one.is_floating_point():
        return bool((one == two).all())
    tolerance = 1e3 * torch.finfo(one.dtype).eps * float(one.abs().max())
    return float((one - two).abs_().max()) <= tolerance  # NaN is not
