"""The calls of the layers in one forward pass of a module: what entered, and where gradients flow back to."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from mamltheory.kernels.layers.parts import PartCall
from mamltheory.kernels.layers.rules import fits, kind_of
from mamltheory.kernels.layers.tiles import Budget
from mamltheory.modules import Interruption, call_module, guarded_forward
from mamltheory.networks import checked_output
from mamltheory.tasks import Parameters

OwnParameters = dict[str, dict[str, str]]
"""Name of a module -> own name of a parameter of its -> name in the network."""


class NotCovered(Interruption):
    """The layers' formulas do not cover these parameters; they are left to the general way."""

    def __init__(self, names: Collection[str], reason: str) -> None:
        super().__init__(names, reason)
        self.names, self.reason = frozenset(names), reason


@dataclass(eq=False)
class Call:
    """One call of one layer.

    names: its parameters that move, own name -> name in the network.  entering: positional arguments.
    edge: where in the graph the gradient by what leaves it passes.  flow_bytes: size of one such gradient.
    leaving: what left it, for layers without a formula alone.  versions: of the arguments, when they entered.
    """

    name: str
    layer: nn.Module
    kind: type[nn.Module] | None
    names: dict[str, str]
    entering: tuple[object, ...]
    versions: list[int]
    edge: GradientEdge | None = None
    flow_bytes: int = 0
    leaving: Tensor | None = None


class Recorder:
    """Runs a module once and records the calls of every layer that owns parameters that move.

    Within its call a layer holds its parameters as constants; outside, they are ``leaves``, so that every other
    use of them shows in the graph.

    own: the module's :func:`own_parameters`.  trusted: the module holds the values of ``params`` and uses each
    inside calls of its own layer alone; it runs as it is, and there are no leaves.  watched: parts of the module
    whose calls are kept in ``parts``.
    """

    def __init__(
        self,
        module: nn.Module,
        params: Parameters,
        moving: Collection[str],
        budget: Budget,
        own: OwnParameters,
        trusted: bool = False,
        watched: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.module, self.params, self.budget = module, params, budget
        self.watched = watched or {}
        self.moving, self.own, self.trusted = frozenset(moving), own, trusted
        self.leaves, self.constants = {}, {}
        if not trusted:
            self.leaves = {name: nn.Parameter(params[name].detach()) for name in sorted(moving)}
            self.constants = {
                name: nn.Parameter(leaf.detach(), requires_grad=False) for name, leaf in self.leaves.items()
            }
        self.calls: list[Call] = []
        self._open: dict[nn.Module, Call] = {}
        self._seen: set[int] = set()
        self._samples = 0
        self.parts: list[PartCall] = []
        self._entered: dict[nn.Module, list[tuple[tuple[object, ...], list[int]]]] = {}

    def run(self, x: Tensor) -> Tensor:
        """The outputs n × k, with the graph down to the layers; raises NotCovered, OverBudget, ShapeError."""
        self._samples = len(x)
        handles = [handle for layer in self._layers() for handle in self._hooked(*layer)]
        for name, part in self.watched.items():
            after = partial(self._after_part, name)
            handles.append(part.register_forward_hook(after, with_kwargs=True, prepend=True))
            handles.append(part.register_forward_pre_hook(self._before_part))
        try:
            with torch.enable_grad():
                logits = self._outputs(x)
        finally:
            for handle in handles:
                handle.remove()
        logits = checked_output(logits, x)
        for call in self.calls:
            if _versions(call.entering) != call.versions:
                raise NotCovered(call.names.values(), f"what enters module {call.name!r} is changed in place")
        return logits

    def _outputs(self, x: Tensor) -> object:
        if self.trusted:
            return self.module(x)
        return guarded_forward(
            type(self.module).__name__,
            call_module,
            self.module,
            {**self._replaced(), **self.leaves},
            x.clone(),
        )

    def _replaced(self) -> Parameters:
        """Values that are not those that the module holds."""
        own = dict(self.module.named_parameters(remove_duplicate=False))
        return {name: value for name, value in self.params.items() if not value.is_set_to(own[name])}

    def _layers(self) -> Iterator[tuple[str, nn.Module, type[nn.Module] | None, dict[str, str]]]:
        """Modules whose own parameters move and have a formula, or that have no children."""
        modules = dict(self.module.named_modules())
        for name, own in self.own.items():
            moving = {key: full for key, full in own.items() if full in self.moving}
            if name not in modules:  # another name of a module that is in two places
                continue
            layer = modules[name]
            kind = kind_of(layer, own)
            if moving and (kind is not None or next(layer.children(), None) is None):
                yield name, layer, kind, moving

    def _hooked(
        self, name: str, layer: nn.Module, kind: type[nn.Module] | None, names: dict[str, str]
    ) -> list[RemovableHandle]:
        """Hooks before and after the layer's calls; bound methods, for closures would be made for every layer."""
        before = partial(self._before, name, kind, names)
        return [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(partial(self._after, names), prepend=True),
        ]

    def _before(
        self,
        name: str,
        kind: type[nn.Module] | None,
        names: dict[str, str],
        layer: nn.Module,
        args: tuple,
        kwargs: dict,
    ) -> None:
        if kwargs or layer in self._open or not fits(kind, layer, args, self._samples):
            raise NotCovered(names.values(), f"module {name!r} is not called with one row a sample")
        if not self.trusted and any(
            getattr(layer, key) is not self.leaves[full] for key, full in names.items()
        ):
            raise NotCovered(names.values(), f"module {name!r} is called with other values than its own")
        self._open[layer] = Call(name, layer, kind, names, _detached(args), _versions(args))
        if not self.trusted:
            for key, full in names.items():
                setattr(layer, key, self.constants[full])

    def _after(self, names: dict[str, str], layer: nn.Module, _: tuple, output: object) -> Tensor | None:
        if not self.trusted:
            for key, full in names.items():
                setattr(layer, key, self.leaves[full])
        return self._record(self._open.pop(layer), output)

    def _before_part(self, part: nn.Module, args: tuple) -> None:
        self._entered.setdefault(part, []).append((_detached(args), _versions(args)))

    def _after_part(self, name: str, part: nn.Module, _: tuple, kwargs: dict, output: object) -> None:
        args, versions = self._entered[part].pop()
        self.parts.append(PartCall(name, part, () if kwargs else args, versions, output))

    def _record(self, call: Call, output: object) -> Tensor | None:
        """Books a call; a clone stands in for an output that has no graph yet, or that is a view of another."""
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != self._samples:
            raise NotCovered(call.names.values(), f"module {call.name!r} does not return one row a sample")
        if not torch.is_grad_enabled() or not output.is_floating_point():
            return None  # no gradient passes here
        if output.dtype != self.params[next(iter(call.names.values()))].dtype:
            raise NotCovered(call.names.values(), f"module {call.name!r} computes in {output.dtype}")
        replaced = not output.requires_grad or output._base is not None
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output = output.clone() if replaced else output
        call.edge, call.flow_bytes = get_gradient_edge(output), output.numel() * output.element_size()
        call.leaving = output.detach().clone() if call.kind is None else None
        self.budget.take(f"module {call.name!r}", 2 * call.flow_bytes + self._new_bytes(call.entering))
        self.calls.append(call)
        return output if replaced else None

    def _new_bytes(self, entering: tuple[object, ...]) -> int:
        total = 0
        for part in entering:
            if isinstance(part, Tensor) and part.data_ptr() not in self._seen:
                self._seen.add(part.data_ptr())
                total += part.numel() * part.element_size()
        return total


def own_parameters(module: nn.Module) -> OwnParameters:
    """For every submodule with parameters of its own: own name -> name in the network, one for shared ones."""
    first: dict[int, str] = {}
    found: OwnParameters = {}
    for full, value in module.named_parameters(remove_duplicate=False):
        owner, _, key = full.rpartition(".")
        found.setdefault(owner, {})[key] = first.setdefault(id(value), full)
    return found


def _detached(args: tuple) -> tuple[object, ...]:
    return tuple(part.detach() if isinstance(part, Tensor) else part for part in args)


def _versions(args: Sequence[object]) -> list[int]:
    return [part._version for part in args if isinstance(part, Tensor)]


def flows_back(columns: Sequence[Tensor], recorder: Recorder) -> list[list[Tensor] | None]:
    """∂(output)/∂(what leaves the layer) of every call, output by output; None where no output depends on it.

    Raises NotCovered for parameters that a gradient reaches past the layers' calls.
    """
    edges, leaves = [call.edge for call in recorder.calls], recorder.leaves
    passes = []
    if not edges and not leaves:
        return []
    for i, column in enumerate(columns):
        if not column.requires_grad:
            passes.append([None] * len(edges))
            continue
        gradients = torch.autograd.grad(
            column.sum(), [*edges, *leaves.values()], retain_graph=i + 1 < len(columns), allow_unused=True
        )
        _check_covered(leaves, gradients[len(edges) :])
        passes.append(gradients[: len(edges)])
    return [_filled(list(flows)) for flows in zip(*passes, strict=True)]


def batched_flows(logits: Tensor, recorder: Recorder) -> list[Tensor | None] | None:
    """The same for all outputs in one vectorised pass, outputs first; None if an operation does not allow it."""
    edges, leaves = [call.edge for call in recorder.calls], recorder.leaves
    n, k = logits.shape
    basis = torch.eye(k, dtype=logits.dtype, device=logits.device)[:, None].expand(k, n, k)
    try:
        gradients = torch.autograd.grad(
            logits,
            [*edges, *leaves.values()],
            basis,
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
    except RuntimeError:
        return None
    _check_covered(leaves, gradients[len(edges) :])
    return list(gradients[: len(edges)])


def _check_covered(leaves: Parameters, gradients: Sequence[Tensor | None]) -> None:
    reached = {name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None}
    if reached:
        raise NotCovered(
            reached, f"parameters {sorted(reached)} are used outside a call of the layer they are in"
        )


def _filled(flows: list[Tensor | None]) -> list[Tensor] | None:
    """Zeros for the outputs that do not depend on the layer."""
    some = next((flow for flow in flows if flow is not None), None)
    return None if some is None else [torch.zeros_like(some) if flow is None else flow for flow in flows]
