"""The last linear layer of a network, found from what it computes: all that ANIL's inner loop adapts (Eq. 112)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

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

    It is the layer called last on which the outputs depend. Its order of definition says nothing: a head may be
    defined first, an auxiliary head be unused, and a 1 × 1 convolution classify beside linear layers that gate.
    Four properties are computed, on two samples:

        the outputs are a fixed affine function of what leaves the layer (pooling, reshaping, scaling by constants),
        they depend on the samples and on all other parameters through it alone,
        the layer is affine in what enters it, and holds a weight matrix,
        what enters it does not depend on its own parameters (a weight tied to an embedding would).

    Args:
        model: a network made of a torch module.
        params: its parameters.
        x: samples n × …, of which two are used.

    Returns:
        The names of all parameters of that layer.

    Raises:
        UnsupportedModelError: no layer has these properties; the message says which one fails.
    """
    search = _Search(model, params, x[:2])
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
    """Runs of one network in which what enters or leaves one layer is changed."""

    def __init__(self, model: Model, params: Parameters, x: Tensor) -> None:
        self.model, self.params, self.x = model, params, x
        self.modules = dict(model.module.named_modules())
        self.random = generator(0, "head")
        self.calls: dict[str, list[Tensor]] = {}
        self.entered: dict[str, list[Tensor]] = {}
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
            before = self.calls.pop(name, [])  # taken out, so that the order is that of the last calls
            self.calls[name] = [*before, output.clone()]
            self.entered.setdefault(name, []).append(args[0].clone())

    def layers(self) -> list[str]:
        """Names of the layers called, the last first."""
        return list(reversed(self.calls))

    def names(self, layer: str) -> frozenset[str]:
        """The parameters of a layer, by their names in the network."""
        own = {id(value) for value in self.modules[layer].parameters()}
        return frozenset(name for name, value in self.model.module.named_parameters() if id(value) in own)

    def matters(self, layer: str) -> bool:
        """Whether the outputs depend on what leaves the layer."""
        return not torch.equal(self._leaving(layer, lambda z: z + self._noise(z)), self.outputs)

    def fault(self, layer: str) -> str | None:
        """What keeps the layer from being the head; None if nothing does."""
        title = f"{layer!r}, the last that they depend on,"
        other = {name: value + self._noise(value) for name, value in self.params.items()}
        kept = iter(list(self.calls[layer]))
        fixed = self._leaving(layer, lambda _: next(kept), other, self.x.flip(0))
        if not self._same(fixed, self.outputs):
            return f"{title} is not all that they depend on"
        if not self._affine(
            lambda sign, shifts: self._leaving(layer, _shift(shifts, sign)), self.calls[layer]
        ):
            return f"what follows {title} is not linear"
        if not self._affine(
            lambda sign, shifts: self._entering(layer, _shift(shifts, sign)), self.entered[layer]
        ):
            return f"{title} is not linear in what enters it"
        own = self.names(layer)
        moved = {name: other[name] if name in own else value for name, value in self.params.items()}
        seen: list[Tensor] = []
        with _hooks({layer: self.modules[layer]}, lambda _, args, __: seen.append(args[0].clone())):
            output_of(self.model, moved, self.x)
        if not all(self._same(now, then) for now, then in zip(seen, self.entered[layer], strict=True)):
            return f"the parameters of {title} are used before it, too"
        return None

    def _affine(self, run: Callable[[float, list[Tensor]], Tensor], values: list[Tensor]) -> bool:
        shifts = [self._noise(value) for value in values]
        both = run(1.0, shifts) + run(-1.0, shifts)
        return self._same(both / 2, self.outputs, float(both.abs().max()))

    def _leaving(
        self, layer: str, change: Change, params: Parameters | None = None, x: Tensor | None = None
    ) -> Tensor:
        with _hooks({layer: self.modules[layer]}, lambda _, __, output: change(output)):
            return output_of(self.model, params or self.params, self.x if x is None else x)

    def _entering(self, layer: str, change: Change) -> Tensor:
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
        """Random numbers three times the size of the value's: no kink of an activation goes unseen."""
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
def _hooks(
    modules: dict[str, nn.Module], seen: Callable[[str, tuple, object], Tensor | None]
) -> Iterator[None]:
    """While it is open, ``seen`` is told of every call, and what it returns stands in for the output."""

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
