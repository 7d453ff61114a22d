"""Empirical NTK of any module, layer by layer: Θ̂ of Definition 1 without ever holding a Jacobian.

The gradient of an output by the parameters of a layer is a function of the layer's input and of the gradient by its
output. One forward pass with hooks and one backward pass per output give both for all layers; each layer's gradients
are then formed, contracted and discarded.

Nothing is taken on trust, unless the caller vouches for the module. Within its own call a layer sees its
parameters as constants, so that what it contributes comes from its formula alone; whatever gradient still reaches a
parameter (a weight used outside its layer, or a parameter of a module with children) shows in the same backward
passes, and that parameter goes to the general way, :func:`mamltheory.kernels.layers.jacobian.jacobian`. Calls of one
module, and of modules that share a parameter, add up row by row.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.accelerator import float32_products, out_of_memory
from mamltheory.errors import UnsupportedModelError
from mamltheory.guard import check_finite_outputs, check_independent, other_batches
from mamltheory.kernels.layers.gram import Gradients, added_up
from mamltheory.kernels.layers.jacobian import Outputs, gradients_of
from mamltheory.kernels.layers.options import KernelOptions
from mamltheory.kernels.layers.parts import keeps_samples_apart
from mamltheory.kernels.layers.recorder import (
    LayerCall,
    NotCovered,
    Recorder,
    batched_output_gradients,
    output_gradients,
    own_parameters,
    stacked,
)
from mamltheory.kernels.layers.rules import linear_factors, module_gradients
from mamltheory.kernels.layers.tiles import Budget, Pass, general_gradients, tiled_kernels
from mamltheory.modules import call_module, probe_weights, refuse_checkpointing, unknown_parts
from mamltheory.networks import Model, output_of
from mamltheory.tasks import Parameters


@float32_products()
def layerwise_kernels(
    module: nn.Module,
    x1: Tensor,
    x2: Tensor | None,
    selections: Sequence[Collection[str]],
    params: Parameters,
    options: KernelOptions,
    trusted: bool = False,
) -> list[Float[Tensor, "p q"]]:
    """∇f(x1) ∇f(x2)ᵀ by the parameters of every selection, all from the same passes.

    A tile of n samples holds about, in numbers of the network's dtype,
        n Σ_layers (input + (2 + k) output) + n k D_layer of the layer at hand (factors: n (j + k o)),
    and half the budget goes to the rows' tile where there are several.

    Args:
        module: the network.
        x1: samples of the rows.
        x2: samples of the columns; None for the symmetric kernels.
        selections: names of parameters, one set for each kernel.
        params: values of the parameters.
        options: of the kernels; their ``select`` is not used. "layerwise" refuses parameters that only the general
            way covers.
        trusted: the caller knows that the module holds the values of ``params``, keeps samples apart, and uses each
            parameter inside calls of the layer it is in alone. None of that is checked then. Otherwise the parts of
            the module that are not known are tested to keep samples apart.

    Returns:
        One kernel for each selection. UnsupportedModelError names a module that cannot be differentiated, and
        ConfigurationError says that a budget is too small for one sample.
    """
    state = _Layerwise(module, params, selections, options.outputs, x1, trusted)
    while True:
        try:
            return tiled_kernels(state.differentiate, x1, x2, selections, options)
        except NotCovered as found:
            state.leave_out(found, options.method == "layerwise")


def parameter_routes(
    module: nn.Module, x: Tensor, params: Parameters, select: Collection[str]
) -> dict[str, str]:
    """How each parameter's part of the kernel is computed, as seen on the first sample.

    Args:
        module: the network.
        x: samples.
        params: values of the parameters.
        select: names of the parameters.

    Returns:
        For each name "factors" (linear layers), "formula" (other known layers), "module" (a layer differentiated
        alone), "general" (vmap of jacrev through the whole network) or "unused" (no output depends on it).
    """
    state = _Layerwise(module, params, [select], "sum", x)
    while True:
        recorder = state.recorder(Budget(2**62, 1))
        try:
            logits = recorder.run(x[:1])
            cotangents = output_gradients([logits.sum(1)], recorder)
            break
        except NotCovered as found:
            state.leave_out(found, False)
    routes = dict.fromkeys(select, "unused") | dict.fromkeys(state.general, "general")
    for call, cotangent in zip(recorder.calls, cotangents, strict=True):
        layer = call.layer
        kind = "module" if layer.kind is None else "factors" if layer.kind is nn.Linear else "formula"
        routes |= dict.fromkeys(layer.names.values() if cotangent is not None else (), kind)
    return routes


class _Layerwise:
    """How one module's passes run: which parameters move, and which of them the general way takes."""

    def __init__(
        self,
        module: nn.Module,
        params: Parameters,
        selections: Sequence[Collection[str]],
        outputs: Outputs,
        samples: Tensor,
        trusted: bool = False,
    ) -> None:
        self.module, self.params, self.outputs, self.samples = module, params, outputs, samples
        self.own, self.trusted = own_parameters(module), trusted
        self.model = Model(self._run, module=module)
        self.unknown = {} if trusted else unknown_parts(module)
        self.seen: set[tuple[int, int]] = set()
        self.selections = [frozenset(chosen) for chosen in selections]
        self.general: set[str] = set()

    def _run(self, params: Parameters, x: Tensor) -> Any:
        return call_module(self.module, params, x)

    def leave_out(self, found: NotCovered, strict: bool) -> None:
        """Takes parameters from the layers and gives them to the general way, unless that is refused."""
        if strict:
            raise UnsupportedModelError(
                f"{found.reason}: method='layerwise' does not cover {sorted(found.names)}; use method='auto'"
            ) from None
        self.general |= found.names

    def recorder(self, budget: Budget, watched: Mapping[str, nn.Module] | None = None) -> Recorder:
        """The recorder of the layers whose parameters are differentiated by their formulas."""
        moving = frozenset().union(*self.selections) - self.general
        return Recorder(self.module, self.params, moving, budget, self.own, self.trusted, watched)

    def differentiate(self, x: Tensor, budget: Budget) -> Pass:
        """Gradients of the samples, group after group."""
        new = bool(self.unknown) and (x.data_ptr(), len(x)) not in self.seen
        if new and len(x) == 1 < budget.samples:  # a tile in which nothing can mix
            check_independent(self.model, self.params, self.samples)
        recorder = self.recorder(budget, self.unknown if new else {})
        try:
            logits = recorder.run(x)
            whole = new and self._check_parts(recorder, x, logits.detach())
            k = 1 if self.outputs == "sum" else logits.shape[1]
            for call in recorder.calls:
                budget.take(f"module {call.layer.name!r}", call.cotangent_bytes * k)
            if new:
                refuse_checkpointing(logits)
            cotangents = self._output_gradients(logits, recorder)
        except RuntimeError as error:  # the network runs, and not with hooks: a transform inside it, say
            if self.trusted or not recorder.moving or out_of_memory(error):
                raise
            raise NotCovered(recorder.moving, f"its layers cannot be watched ({error})") from error
        groups = self._groups(recorder.calls, cotangents, x, k, budget)
        if whole:
            groups = self._compared(groups, recorder.moving, x, k)
        else:
            self.seen.add((x.data_ptr(), len(x)))
        return Pass(len(x) * k, x.device, groups)

    def _compared(
        self, groups: Iterator[tuple[frozenset[str], Gradients]], moving: frozenset[str], x: Tensor, k: int
    ) -> Iterator[tuple[frozenset[str], Gradients]]:
        """The groups; at the end, weighted and added, they must be the gradient of one plain pass over the tile.

        That sees all samples, outputs and parameters at once: a formula that is not the layer's, a use of a weight
        that no layer's call shows, and samples that mix in the backward pass.

        Args:
            groups: the gradients of a pass.
            moving: names of the parameters that are compared.
            x: samples of the tile.
            k: number of outputs.

        Yields:
            The groups.

        Raises:
            NotCovered: some parameters' sums differ.
        """
        like = next(iter(self.params.values()))
        weights = probe_weights(torch.arange(len(x) * k), like).view(-1, k)
        totals: Parameters = {}
        for names, gradients in groups:
            if names <= moving:
                totals |= added_up(names, gradients, weights, self.params)
            yield names, gradients
        leaves = {name: self.params[name].detach().requires_grad_() for name in moving}
        with torch.enable_grad():
            outputs = output_of(self.model, {**self.params, **leaves}, x)
            outputs = outputs.sum(1, keepdim=True) if self.outputs == "sum" else outputs
            total = (outputs * weights.to(outputs)).sum()
        plain = gradients_of(total, list(leaves.values()), torch.ones_like(total))
        size = max((float(value.abs().max()) for value in plain if value.numel()), default=0.0)
        wrong = {
            name
            for name, value in zip(leaves, plain, strict=True)
            if value.numel()
            and not float((value - totals.get(name, torch.zeros_like(value))).abs().max())
            <= 1e4 * torch.finfo(value.dtype).eps * size
        }
        if wrong:
            raise NotCovered(wrong, f"the layers' formulas are not the gradients by {sorted(wrong)}")
        self.seen.add((x.data_ptr(), len(x)))

    def _check_parts(self, recorder: Recorder, x: Tensor, logits: Tensor) -> bool:
        """Tests that samples are kept apart; returns whether the gradients of the whole network are to be compared."""
        check_finite_outputs(logits)
        order = torch.cat(other_batches(len(x), len(x)))
        apart = all(keeps_samples_apart(call, self.params, order) for call in recorder.parts)
        if not apart:
            check_independent(self.model, self.params, self.samples, len(x))
        return not apart or any(call.parameters for call in recorder.parts)

    def _output_gradients(self, logits: Tensor, recorder: Recorder) -> list:
        with torch.enable_grad():
            if self.outputs == "sum":
                return output_gradients([logits.sum(1)], recorder)
            dense = all(call.layer.kind in (nn.Linear, nn.LayerNorm) for call in recorder.calls)
            if dense and logits.requires_grad and logits.shape[1] > 1:
                cotangents = batched_output_gradients(logits, recorder)
                if cotangents is not None:
                    return cotangents
            return output_gradients(list(logits.unbind(1)), recorder)

    def _groups(
        self, calls: Sequence[LayerCall], cotangents: list, x: Tensor, k: int, budget: Budget
    ) -> Iterator[tuple[frozenset[str], Gradients]]:
        counts = Counter(name for call in calls for name in call.layer.names.values())
        shared = {name for name, count in counts.items() if count > 1}
        sums: Parameters = {}
        for i, call in enumerate(calls):
            cotangent, cotangents[i] = cotangents[i], None
            if cotangent is None:
                continue
            for names, gradients in self._gradients(call, stacked(cotangent), shared):
                if names <= shared and isinstance(gradients, Tensor):
                    (name,) = names
                    sums[name] = sums[name] + gradients if name in sums else gradients
                else:
                    yield names, budget.hold(f"module {call.layer.name!r}", gradients)
        if self.general:
            yield from general_gradients(
                self.model,
                self.params,
                x,
                self.outputs,
                self.general,
                k,
                budget,
            )
        for name, rows in sums.items():
            yield frozenset({name}), budget.hold(f"parameter {name!r}", rows)

    def _gradients(
        self, call: LayerCall, cotangent: Tensor, shared: set[str]
    ) -> Iterator[tuple[frozenset[str], Gradients]]:
        """The gradients of one call by its parameters: factors where a linear layer's weight is used once."""
        layer, rest = call.layer, dict(call.layer.names)
        if call.kept_output is not None:
            rows = self._module_gradients(call, call.kept_output, cotangent)
            yield from ((frozenset({rest[key]}), value) for key, value in rows.items())
            return
        if layer.kind is nn.Linear and "weight" in rest and rest["weight"] not in shared:
            together = rest.get("bias") not in {None, *shared} and self._alike(rest.values())
            taken = [rest.pop(key) for key in (("weight", "bias") if together else ("weight",))]
            yield frozenset(taken), linear_factors(call.inputs[0], cotangent, together)
        if rest:
            rows = call.gradients(cotangent, rest)
            yield from ((frozenset({rest[key]}), value) for key, value in rows.items())

    def _module_gradients(self, call: LayerCall, output: Tensor, cotangent: Tensor) -> Parameters:
        layer = call.layer
        present = dict(layer.module.named_parameters(recurse=False))
        values = {
            key: self.params.get(full, present[key]).detach() for key, full in self.own[layer.name].items()
        }
        moving = {key: values.pop(key) for key in layer.names}
        return module_gradients(layer.module, layer.name, call.inputs, output, cotangent, moving, values)

    def _alike(self, names: Collection[str]) -> bool:
        """Whether every selection has all of these parameters, or none."""
        return all(len(chosen & set(names)) in (0, len(set(names))) for chosen in self.selections)
