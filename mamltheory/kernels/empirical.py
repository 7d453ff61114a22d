"""Kernel of a finite network at given parameters: Θ̂ = (1/l) ∇f ∇fᵀ (Definition 1).

Rows are sample-major, class-minor: row i·k + c belongs to output c of sample i. The kernel is computed layer by
layer wherever the layers are known, in closed form for the networks of Eq. (16), and from rows of the Jacobian
otherwise; it is the same kernel. Gradients are in the network's dtype, their products in float64 unless asked
otherwise.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, UnsupportedModelError, ValueRangeError
from mamltheory.guard import as_model, check_independent, checked_samples, with_head
from mamltheory.kernels.layers.fully_connected import fully_connected_gradients
from mamltheory.kernels.layers.jacobian import Outputs, check_dtype, check_outputs, selected
from mamltheory.kernels.layers.jacobian import gram as gram
from mamltheory.kernels.layers.jacobian import jacobian as jacobian
from mamltheory.kernels.layers.layerwise import layerwise_kernels
from mamltheory.kernels.layers.tiles import Budget, Pass, general_gradients, tiled_kernels
from mamltheory.modules import is_dense, plain_numerics
from mamltheory.networks import FullyConnected, Model, output_of
from mamltheory.tasks import Parameters

Method = Literal["auto", "layerwise", "generic"]
"""How a kernel is computed: "layerwise" from the layers' formulas, "generic" by vmap of jacrev, or whichever fits."""

Select = Collection[str] | Callable[[str], bool] | None


@dataclass(frozen=True)
class Checked:
    """A network that has been checked on samples.

    module: its layers, where the method may look at them.
    """

    model: Model
    params: Parameters
    module: nn.Module | None = None

    def names(self, select: Select) -> frozenset[str]:
        """Names of the parameters that ``select`` stands for; raises ConfigurationError when there are none."""
        if select is None:
            moving = self.model.moving(self.params)
            if self.params and not moving:
                raise ConfigurationError(
                    "no parameter requires a gradient: call network.requires_grad_(True), or name some by select="
                )
            return self._not_empty(selected(moving, None))
        if isinstance(select, str) or not (callable(select) or isinstance(select, Collection)):
            raise ConfigurationError(
                f"select is {select!r}: expected names of parameters, [{select!r}] for a single one, or a predicate"
            )
        if callable(select):
            select = {name for name in self.params if select(name)}
        return self._not_empty(selected(self.params, select))

    def _not_empty(self, chosen: Parameters) -> frozenset[str]:
        """The names without those of parameters that have no entries, or all of them if none has any."""
        return frozenset(name for name, value in chosen.items() if value.numel()) or frozenset(chosen)

    def head(self, x: Tensor, head: Collection[str] | None = None, select: Select = None) -> frozenset[str]:
        """Names of the parameters of the last linear layer that are selected, as :func:`with_head`."""
        found = with_head(self.model, self.params, x, head).head
        if not found:
            raise UnsupportedModelError(
                "the network has no linear layer of its own: the last-layer kernel of ANIL is not defined for it"
            )
        return frozenset(selected(self.params, found & self.names(select)))


def checked_network(
    model: Model | nn.Module,
    params: Parameters | None,
    samples: Sequence[Tensor],
    method: Method = "auto",
    chunk: int | None = None,
) -> Checked:
    """A network with its parameters, after all checks of :mod:`mamltheory.guard` on these samples."""
    if method not in ("auto", "layerwise", "generic"):
        raise ValueRangeError(f"method is {method!r}: expected 'auto', 'layerwise' or 'generic'")
    pure, params = as_model(model, params)
    for x in samples:
        checked_samples(pure, params, x)
    if isinstance(model, nn.Module) and method != "generic":
        # The pass over the layers tests on its way what is not known of them.
        if not is_dense(pure.module):
            with torch.no_grad():
                output_of(pure, params, samples[0][:1])
        return Checked(pure, params, pure.module)
    together = len({(x.shape[1:], x.dtype) for x in samples}) == 1
    for x in [torch.cat(list(samples))] if together else samples:
        check_independent(pure, params, x, chunk)
    return Checked(pure, params)


@plain_numerics()
def empirical_ntk(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    select: Select = None,
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical NTK Θ̂(x1, x2) = (1/l) ∇f(x1) ∇f(x2)ᵀ, Definition 1, of any network.

    model: a ``torch.nn.Module`` (then 1/l is left out) or a pure Model with ``params``.
    x2: None for the symmetric kernel of x1 with itself, at half the work.
    outputs: "full" for n1·k × n2·k, "sum" for the n1 × n2 kernel of the sum of the outputs.
    select: names of parameters, or a predicate on names; None for all that require a gradient.
    chunk, memory: most samples differentiated at a time, and bytes of temporary tensors (2 GiB); tiles are made as
        small as that needs, see :func:`mamltheory.kernels.layers.layerwise.layerwise_kernels`. "generic" holds n·k·D
        numbers for a tile.
    method: "auto" takes "layerwise", and "generic" for the parameters which that does not cover;
        :func:`mamltheory.kernels.layers.layerwise.parameter_routes` says which. The samples are tested to be
        independent of each other, and the gradients of "generic" are those of plain autograd, whichever way they are
    taken. dtype: of the kernel and of its accumulation, float64 for None. A float32 network's gradients carry float32's
        rounding (some 1e-7 of the largest entry) either way. In float64 their Gram matrix is positive semi-definite to
        float64's rounding, as condition numbers need (their error was 5e-9); torch.float32 is faster and leaves them
        an error of 1e-5, and :func:`mamltheory.linalg.condition_number` takes the kernel at its own dtype's rounding.
    Raises UnsupportedModelError for batch statistics, active dropout, samples that a network mixes, or what no method
    covers, ValueRangeError for weights, samples or outputs that are not finite, ConfigurationError for parameters that
    do not exist or a budget too small for one sample, ShapeError for samples without axes.
    """
    network = checked_network(model, params, [x1] if x2 is None else [x1, x2], method, chunk)
    names = network.names(select)
    return kernels_of(network, x1, x2, [names], outputs, chunk, memory, method, dtype)[0]


def kernels_of(
    network: Checked,
    x1: Tensor,
    x2: Tensor | None,
    selections: Sequence[frozenset[str]],
    outputs: Outputs = "full",
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
) -> list[Float[Tensor, "p q"]]:
    """The empirical NTK by several sets of parameters, from one pass; arguments as for :func:`empirical_ntk`."""
    check_outputs(outputs)
    check_dtype(dtype)
    model, params = network.model, network.params
    if network.module is not None:
        kernels = layerwise_kernels(
            network.module,
            x1,
            x2,
            selections,
            params,
            outputs,
            chunk=chunk,
            memory=memory,
            strict=method == "layerwise",
            dtype=dtype,
        )
    else:
        differentiate = partial(_gradients, _structure(model, method), model, params, outputs, selections)
        kernels = tiled_kernels(differentiate, x1, x2, selections, chunk, memory, dtype)
    return [_finite(kernel) / model.scale for kernel in kernels]


@plain_numerics()
def empirical_last_layer_ntk(
    model: Model | nn.Module,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
    head: Collection[str] | None = None,
) -> Float[Tensor, "p q"]:
    """Empirical NTK of the last linear layer alone, 𝒦̂ of Eq. (112); arguments as for :func:`empirical_ntk`.

    head: names of that layer's parameters; None finds the linear map whose output is the network's.
    Raises UnsupportedModelError when there is none.
    """
    network = checked_network(model, params, [x1] if x2 is None else [x1, x2], method, chunk)
    names = network.head(x1, head)
    return kernels_of(network, x1, x2, [names], outputs, chunk, memory, method, dtype)[0]


def _structure(model: Model, method: Method) -> FullyConnected | None:
    """The network of Eq. (16) that a pure model stands for, if its closed form may and can be used."""
    net = None if method == "generic" else getattr(model, "network", None)
    if net is None and method == "layerwise":
        raise UnsupportedModelError(
            "a pure Model shows no layers: pass the nn.Module itself, or method='auto' or 'generic'"
        )
    return net


def _gradients(
    net: FullyConnected | None,
    model: Model,
    params: Parameters,
    outputs: Outputs,
    selections: list[frozenset[str]],
    x: Tensor,
    budget: Budget,
) -> Pass:
    """Gradients of a pure model: in closed form where its structure is known, else rows of the Jacobian."""
    if net is not None:
        return fully_connected_gradients(net, params, x, outputs, selections, budget)
    with torch.no_grad():
        k = 1 if outputs == "sum" else output_of(model, params, x[:1]).shape[1]
    names = frozenset().union(*selections)
    return Pass(len(x) * k, x.device, general_gradients(model, params, x, outputs, names, k, budget))


def _finite(kernel: Tensor) -> Tensor:
    if not bool(torch.isfinite(kernel).all()):
        raise ValueRangeError(
            "the kernel has NaN or infinite entries though the weights are finite: gradients overflow or are "
            "undefined at these samples; rescale the weights, or use float64"
        )
    return kernel
