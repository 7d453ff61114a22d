"""The last linear layer of a network, found from what it computes: all that ANIL's inner loop adapts (Eq. 112)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mamltheory.errors import UnsupportedModelError
from mamltheory.networks import Model, output_of
from mamltheory.rng import generator
from mamltheory.tasks import Parameters

Change = Callable[[Tensor], Tensor]


@torch.no_grad()
def find_head(model: Model, params: Parameters, x: Tensor) -> frozenset[str]:
    """Names of the parameters of the linear map whose output is the network's.

    The head is the last layer called on which the outputs depend. The order of definition says nothing: a head may be
    defined first, an auxiliary head be unused, and a 1 × 1 convolution classify where linear layers serve as gates.
    Four properties are computed, on two samples:

        the outputs are a fixed affine function of the layer's output (pooling, reshaping, scaling by constants),
        they depend on the samples and on all other parameters through that output alone,
        the layer is affine in its input, and holds a weight matrix,
        its input does not depend on its parameters (with a weight tied to an embedding it would).

    Args:
        model: a network made of a torch module.
        params: its parameters.
        x: samples n × …; two are used.

    Returns:
        The names of all parameters of that layer.

    Raises:
        UnsupportedModelError: no layer has these properties; the message names the one that fails.
    """
    if model.module is None:
        raise UnsupportedModelError(
            "a Model without a torch module has no layers to search: pass Model(head=...)"
        )
    search = _Search(model, model.module, params, x[:2])
    for layer in search.layers():
        if search.matters(layer):
            fault = search.fault(layer)
            if fault:
                break
            return search.names(layer)
    else:
        fault = "no layer with a weight matrix leads to its outputs"
    raise UnsupportedModelError(
        f"the network has no linear layer whose output is the network's ({fault}): the last-layer kernel of ANIL is "
        f"not defined for it; name its parameters by head=[...], of {sorted(params)}, or use algorithm='maml'"
    )


class _Search:
    """Runs of one network in which the input or output of one layer is changed."""

    def __init__(self, model: Model, module: nn.Module, params: Parameters, x: Tensor) -> None:
        self.model, self.module, self.params, self.x = model, module, params, x
        self.modules = dict(module.named_modules())
        self.random = generator(0, "head")
        self.outputs_of: dict[str, list[Tensor]] = {}
        self.inputs_of: dict[str, list[Tensor]] = {}
        with _hooks(self._candidates(), self._record):
            self.outputs = output_of(model, params, x)

    def _candidates(self) -> dict[str, nn.Module]:
        """Modules with parameters that no child with parameters shares, but for a parametrised weight."""
        return {
            name: module
            for name, module in self.modules.items()
            if any(value.dim() > 1 for value in module.parameters())
            and not any(
                list(child.parameters())
                for key, child in module.named_children()
                if key != "parametrizations"
            )
        }

    def _record(self, name: str, args: tuple, output: object) -> None:
        if isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            before = self.outputs_of.pop(name, [])  # so that the dict is in the order of the last calls
            self.outputs_of[name] = [*before, output.clone()]
            self.inputs_of.setdefault(name, []).append(args[0].clone())

    def layers(self) -> list[str]:
        """Names of the layers called, the last first."""
        return list(reversed(self.outputs_of))

    def names(self, layer: str) -> frozenset[str]:
        """The parameters of a layer, by their names in the network."""
        held = {id(value) for value in self.modules[layer].parameters()}
        return frozenset(name for name, value in self.module.named_parameters() if id(value) in held)

    def matters(self, layer: str) -> bool:
        """Whether the network's outputs depend on those of the layer."""
        return not torch.equal(self._with_output(layer, lambda z: z + self._noise(z)), self.outputs)

    def fault(self, layer: str) -> str | None:
        """Why the layer is not the head; None if it is."""
        title = f"{layer!r}, the last that they depend on,"
        other = {name: value + self._noise(value) for name, value in self.params.items()}
        kept = iter(list(self.outputs_of[layer]))
        fixed = self._with_output(layer, lambda _: next(kept), other, self.x.flip(0))
        if not self._same(fixed, self.outputs):
            return f"{title} is not all that they depend on"
        if not self._is_affine(lambda change: self._with_output(layer, change), self.outputs_of[layer]):
            return f"what follows {title} is not linear"
        if not self._is_affine(lambda change: self._with_input(layer, change), self.inputs_of[layer]):
            return f"{title} is not linear in its input"
        names = self.names(layer)
        moved = {name: other[name] if name in names else value for name, value in self.params.items()}
        seen: list[Tensor] = []
        with _hooks({layer: self.modules[layer]}, lambda _, args, __: seen.append(args[0].clone())):
            output_of(self.model, moved, self.x)
        if not all(self._same(now, then) for now, then in zip(seen, self.inputs_of[layer], strict=True)):
            return f"the parameters of {title} are used before it, too"
        return None

    def _is_affine(self, run: Callable[[Change], Tensor], values: list[Tensor]) -> bool:
        """Whether opposite changes of the values, one for each call of the layer, cancel in the outputs."""
        shifts = [self._noise(value) for value in values]
        both = run(_shift(shifts, 1.0)) + run(_shift(shifts, -1.0))
        return self._same(both / 2, self.outputs, float(both.abs().max()))

    def _with_output(
        self, layer: str, change: Change, params: Parameters | None = None, x: Tensor | None = None
    ) -> Tensor:
        with _hooks({layer: self.modules[layer]}, lambda _, __, output: change(output)):
            return output_of(self.model, params or self.params, self.x if x is None else x)

    def _with_input(self, layer: str, change: Change) -> Tensor:
        def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            first = next(iter(kwargs))
            return args, {**kwargs, first: change(kwargs[first])}

        handle = self.modules[layer].register_forward_pre_hook(before, with_kwargs=True)
        try:
            return output_of(self.model, self.params, self.x)
        finally:
            handle.remove()

    def _noise(self, value: Tensor) -> Tensor:
        """Random numbers three times the size of the value's, so that every kink of an activation is crossed."""
        if not value.is_floating_point():
            return torch.zeros_like(value)
        noise = torch.randn(value.shape, generator=self.random, dtype=torch.float64).to(value)
        return 3 * (float(value.abs().max()) + 1e-3) * noise if value.numel() else noise

    def _same(self, one: Tensor, two: Tensor, size: float = 0.0) -> bool:
        if two.numel() == 0:
            return True
        tolerance = 1e4 * torch.finfo(one.dtype).eps if one.is_floating_point() else 0
        return bool(((one - two).abs() <= tolerance * max(size, float(two.abs().max()))).all())


def _shift(shifts: list[Tensor], sign: float) -> Change:
    waiting = iter(shifts)
    return lambda value: value + sign * next(waiting)


@contextmanager
def _hooks(modules: dict[str, nn.Module], seen: Callable[[str, tuple, Any], Tensor | None]) -> Iterator[None]:
    """Calls ``seen`` with the name, inputs and output of every call; what it returns replaces the output."""

    def after(name: str, _: nn.Module, args: tuple, kwargs: dict, output: object) -> Tensor | None:
        return seen(name, (*args, *kwargs.values()), output)

    handles = [
        module.register_forward_hook(partial(after, name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
