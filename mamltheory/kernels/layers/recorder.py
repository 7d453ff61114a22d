"""The calls of the layers in one forward pass: their inputs, and the cotangents of their outputs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from mamltheory.kernels.layers.convolutions import Geometry, weight_gradients
from mamltheory.kernels.layers.parts import PartCall
from mamltheory.kernels.layers.rules import fits, kind_of, layer_gradients
from mamltheory.kernels.layers.tiles import Budget
from mamltheory.modules import Interruption, call_module, guarded_forward
from mamltheory.networks import checked_output
from mamltheory.tasks import Parameters

OwnParameters = dict[str, dict[str, str]]
"""Name of a module -> its own name of one of its parameters -> name in the network."""


class NotCovered(Interruption):
    """The layers' formulas do not cover these parameters; they are left to the general way."""

    def __init__(self, names: Collection[str], reason: str) -> None:
        super().__init__(names, reason)
        self.names, self.reason = frozenset(names), reason


@dataclass(frozen=True, eq=False)
class RecordedLayer:
    """A module with parameters that are differentiated by.

    Attributes:
        name: of the module in the network.
        module: the module.
        kind: class whose formula applies; None for a module that is differentiated alone.
        names: the parameters, own name -> name in the network.
        numbers: how many numbers the parameters have together.
    """

    name: str
    module: nn.Module
    kind: type[nn.Module] | None
    names: dict[str, str]
    numbers: int


@dataclass(eq=False)
class LayerCall:
    """One call of one layer.

    Attributes:
        layer: the layer.
        inputs: its positional arguments.
        edge: where in the graph the cotangent of its output passes.
        cotangent_bytes: size of one such cotangent.
        geometry: of a convolution on these inputs, where that is not the layer's own.
        groups: places of the groups of samples that the layer was called with, where samples are grouped.
        kept_output: the output, for layers that are differentiated alone.
    """

    layer: RecordedLayer
    inputs: tuple[Any, ...]
    output: InitVar[Tensor]
    geometry: Geometry | None = None
    groups: tuple[int, ...] = ()
    edge: GradientEdge = field(init=False)
    cotangent_bytes: int = field(init=False)
    kept_output: Tensor | None = field(init=False)

    def __post_init__(self, output: Tensor) -> None:
        self.edge = get_gradient_edge(output)
        self.cotangent_bytes = output.numel() * output.element_size()
        self.kept_output = output.detach().clone() if self.layer.kind is None else None

    def gradients(self, cotangents: Tensor, names: Collection[str] | None = None) -> Parameters:
        """Per-sample gradients by the layer's own parameters of these names (all), from cotangents n × k × …."""
        layer, names = self.layer, list(self.layer.names if names is None else names)
        if self.geometry is not None:
            size = layer.module.get_parameter("weight").shape
            return {"weight": weight_gradients(self.inputs[0], cotangents, size, self.geometry)}
        return layer_gradients(layer.kind, layer.module, self.inputs[0], cotangents, names)


def own_parameters(module: nn.Module) -> OwnParameters:
    """For every submodule that has parameters itself: own name -> name in the network, one for shared ones."""
    first: dict[int, str] = {}
    found: OwnParameters = {}
    for full, value in module.named_parameters(remove_duplicate=False):
        owner, _, key = full.rpartition(".")
        found.setdefault(owner, {})[key] = first.setdefault(id(value), full)
    return found


def layers_of(
    module: nn.Module, moving: Collection[str], own: OwnParameters | None = None
) -> list[RecordedLayer]:
    """The submodules that have parameters of these names; ``own`` is the module's :func:`own_parameters`."""
    modules, found = dict(module.named_modules()), []
    for name, keys in (own_parameters(module) if own is None else own).items():
        names = {key: full for key, full in keys.items() if full in moving}
        if names and name in modules:  # otherwise another name of a module that is in two places
            part = modules[name]
            numbers = sum(getattr(part, key).numel() for key in names)
            found.append(RecordedLayer(name, part, kind_of(part, keys), names, numbers))
    return found


class Recorder:
    """Runs a module once and records the calls of every layer that owns parameters that move.

    Within its call a layer holds its parameters as constants; outside, they are ``leaves``, so that every other
    use of them shows in the graph.

    Args:
        module: the network.
        params: values of its parameters.
        moving: names of the parameters that are differentiated by.
        budget: the bytes that the pass may hold.
        own: the module's :func:`own_parameters`.
        trusted: the module holds the values of ``params`` and uses each inside calls of its own layer alone; it runs
            as it is, and there are no leaves.
        watched: parts of the module whose calls are kept in ``parts``, by name.
        detached: whether the recorded inputs are without their graph.
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
        detached: bool = True,
    ) -> None:
        self.module, self.params, self.budget = module, params, budget
        self.watched, self.detached = watched or {}, detached
        self.moving, self.own, self.trusted = frozenset(moving), own, trusted
        self.leaves: Parameters = {}
        self.constants: Parameters = {}
        if not trusted:
            self.leaves = {name: nn.Parameter(params[name].detach()) for name in sorted(moving)}
            self.constants = {
                name: nn.Parameter(leaf.detach(), requires_grad=False) for name, leaf in self.leaves.items()
            }
        self.calls: list[LayerCall] = []
        self.parts: list[PartCall] = []
        self._open: dict[nn.Module, tuple[tuple[object, ...], list[int]]] = {}
        self._versions: list[list[int]] = []
        self._seen: set[int] = set()
        self._samples = 0
        self._entered: dict[nn.Module, list[tuple[tuple[object, ...], list[int]]]] = {}

    def run(self, x: Tensor) -> Tensor:
        """The outputs n × k, with the graph down to the layers.

        Args:
            x: samples n × ….

        Returns:
            The outputs.

        Raises:
            NotCovered: a layer is called in a way that its formula does not cover.
        """
        with self.watching(len(x)), torch.enable_grad():
            logits = self._outputs(x)
        logits = checked_output(logits, x)
        for call, versions in zip(self.calls, self._versions, strict=True):
            if _versions(call.inputs) != versions:
                raise NotCovered(
                    call.layer.names.values(), f"the input of module {call.layer.name!r} is changed in place"
                )
        return logits

    @contextmanager
    def watching(self, samples: int) -> Iterator[None]:
        """Records the calls of the layers with this number of samples while the module runs."""
        self._samples = samples
        layers = layers_of(self.module, self.moving, self.own)
        handles = [
            handle
            for layer in layers
            if layer.kind is not None or next(layer.module.children(), None) is None
            for handle in self._hooked(layer)
        ]
        for name, part in self.watched.items():
            after = partial(self._after_part, name)
            handles.append(part.register_forward_hook(after, with_kwargs=True, prepend=True))
            handles.append(part.register_forward_pre_hook(self._before_part))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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

    def _hooked(self, layer: RecordedLayer) -> list[RemovableHandle]:
        """Hooks before and after the layer's calls; bound methods, for closures would be made for every layer."""
        return [
            layer.module.register_forward_pre_hook(partial(self._before, layer), with_kwargs=True),
            layer.module.register_forward_hook(partial(self._after, layer), prepend=True),
        ]

    def _before(self, layer: RecordedLayer, module: nn.Module, args: tuple, kwargs: dict) -> None:
        names = layer.names
        if kwargs or module in self._open or not fits(layer.kind, module, args, self._samples):
            raise NotCovered(names.values(), f"module {layer.name!r} is not called with one row a sample")
        if not self.trusted and any(
            getattr(module, key) is not self.leaves[full] for key, full in names.items()
        ):
            raise NotCovered(
                names.values(), f"module {layer.name!r} is called with other values than its own"
            )
        self._open[module] = _detached(args) if self.detached else args, _versions(args)
        self._set(layer, self.constants)

    def _after(self, layer: RecordedLayer, module: nn.Module, _: tuple, output: object) -> Tensor | None:
        self._set(layer, self.leaves)
        return self._record(layer, *self._open.pop(module), output)

    def _set(self, layer: RecordedLayer, values: Parameters) -> None:
        """Gives an untrusted layer these values of its parameters."""
        if not self.trusted:
            for key, full in layer.names.items():
                setattr(layer.module, key, values[full])

    def _before_part(self, part: nn.Module, args: tuple) -> None:
        self._entered.setdefault(part, []).append((_detached(args), _versions(args)))

    def _after_part(self, name: str, part: nn.Module, _: tuple, kwargs: dict, output: object) -> None:
        args, versions = self._entered[part].pop()
        self.parts.append(PartCall(name, part, () if kwargs else args, versions, output))

    def _record(
        self, layer: RecordedLayer, inputs: tuple[object, ...], versions: list[int], output: object
    ) -> Tensor | None:
        """Records a call; a clone replaces an output that has no graph yet, or that is a view of another."""
        names = layer.names
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != self._samples:
            raise NotCovered(names.values(), f"module {layer.name!r} does not return one row a sample")
        if not torch.is_grad_enabled() or not output.is_floating_point():
            return None  # no gradient passes here
        if output.dtype != self.params[next(iter(names.values()))].dtype:
            raise NotCovered(names.values(), f"module {layer.name!r} computes in {output.dtype}")
        replaced = not output.requires_grad or output._base is not None
        if not output.requires_grad:
            output = output.detach().requires_grad_()
        output = output.clone() if replaced else output
        call = LayerCall(layer, inputs, output)
        self.budget.take(f"module {layer.name!r}", 2 * call.cotangent_bytes + self._new_bytes(inputs))
        self.calls.append(call)
        self._versions.append(versions)
        return output if replaced else None

    def _new_bytes(self, inputs: tuple[object, ...]) -> int:
        total = 0
        for part in inputs:
            if isinstance(part, Tensor) and part.data_ptr() not in self._seen:
                self._seen.add(part.data_ptr())
                total += part.numel() * part.element_size()
        return total


def _detached(args: tuple) -> tuple[Any, ...]:
    return tuple(part.detach() if isinstance(part, Tensor) else part for part in args)


def _versions(args: Sequence[object]) -> list[int]:
    return [part._version for part in args if isinstance(part, Tensor)]


def output_gradients(
    columns: Sequence[Tensor], recorder: Recorder, differentiable: bool = False
) -> list[list[Tensor] | None]:
    """The gradients of sums of outputs by the outputs of all recorded calls.

    Args:
        columns: outputs, each of which is summed and differentiated.
        recorder: the recorder that has run.
        differentiable: whether the gradients carry a graph, so that they can be differentiated.

    Returns:
        For each call one gradient for each column, or None where no column depends on it. It raises NotCovered for
        parameters on which a column depends outside the layers' calls.
    """
    passes: list[Sequence[Tensor | None]] = []
    for i, column in enumerate(columns):
        keep = differentiable or i + 1 < len(columns)
        if column.requires_grad and (recorder.calls or recorder.leaves):
            passes.append(_pass(column.sum(), None, recorder, retain_graph=keep, create_graph=differentiable))
        else:
            passes.append([None] * len(recorder.calls))
    return [_filled(list(each)) for each in zip(*passes, strict=True)]


def batched_output_gradients(logits: Tensor, recorder: Recorder) -> list[Tensor | None] | None:
    """The same for all outputs in one vectorised pass, outputs first; None if an operation does not allow it."""
    n, k = logits.shape
    basis = torch.eye(k, dtype=logits.dtype, device=logits.device)[:, None].expand(k, n, k)
    try:
        return list(_pass(logits, basis, recorder, retain_graph=True, is_grads_batched=True))
    except RuntimeError:
        return None


def _pass(
    output: Tensor, cotangent: Tensor | None, recorder: Recorder, **options: bool
) -> tuple[Tensor | None, ...]:
    """One backward pass to the outputs of all calls; raises NotCovered where it reaches a leaf."""
    edges: list[Any] = [call.edge for call in recorder.calls]
    wanted = [*edges, *recorder.leaves.values()]
    gradients = torch.autograd.grad(output, wanted, cotangent, allow_unused=True, **options)
    pairs = zip(recorder.leaves, gradients[len(edges) :], strict=True)
    reached = {name for name, gradient in pairs if gradient is not None}
    if reached:
        raise NotCovered(
            reached, f"parameters {sorted(reached)} are used outside a call of the layer they are in"
        )
    return gradients[: len(edges)]


def stacked(cotangents: Sequence[Tensor] | Tensor) -> Tensor:
    """Cotangents n × k × …, from one tensor for each output or from k × n × …."""
    if isinstance(cotangents, Tensor):
        return cotangents.transpose(0, 1)
    return cotangents[0][:, None] if len(cotangents) == 1 else torch.stack(list(cotangents), 1)


def _filled(gradients: list[Tensor | None]) -> list[Tensor] | None:
    """Zeros for the outputs that do not depend on the layer."""
    some = next((each for each in gradients if each is not None), None)
    return None if some is None else [torch.zeros_like(some) if each is None else each for each in gradients]
