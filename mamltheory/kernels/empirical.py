"""Kernel of a finite network at given parameters: Θ̂ = (1/l) ∇f ∇fᵀ (Definition 1).

Rows are sample-major, class-minor: row i·k + c belongs to output c of sample i. The kernel is computed layer by
layer wherever the layers are known, in closed form for the networks of Eq. (16), and from rows of the Jacobian
otherwise; it is the same kernel. Gradients are in the network's dtype, their products in float64 by default.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, UnsupportedModelError, ValueRangeError
from mamltheory.guard import as_model, check_independent, checked_samples, with_head
from mamltheory.kernels.layers.fully_connected import fully_connected_gradients
from mamltheory.kernels.layers.jacobian import Outputs, selected
from mamltheory.kernels.layers.jacobian import gram as gram
from mamltheory.kernels.layers.jacobian import jacobian as jacobian
from mamltheory.kernels.layers.layerwise import layerwise_kernels
from mamltheory.kernels.layers.options import KernelOptions, Method
from mamltheory.kernels.layers.tiles import Budget, Pass, general_gradients, tiled_kernels
from mamltheory.modules import is_dense, plain_numerics
from mamltheory.networks import FullyConnected, Model, output_of
from mamltheory.tasks import Parameters, Select, selected_names


@dataclass(frozen=True)
class Checked:
    """A network that has been checked on samples, with the options of its kernels.

    Args:
        model: the network as a pure function.
        params: its parameters.
        options: of the kernels.
        module: its layers, where the method may look at them.
    """

    model: Model
    params: Parameters
    options: KernelOptions
    module: nn.Module | None = None

    def names(self, select: Select) -> frozenset[str]:
        """Names of the parameters that ``select`` stands for.

        Returns:
            At least one name, without those of empty parameters where there are others.

        Raises:
            ConfigurationError: there are none, or ``select`` is neither a collection nor a predicate.
        """
        if select is None:
            moving = self.model.moving(self.params)
            if self.params and not moving:
                raise ConfigurationError(
                    "no parameter requires a gradient: call network.requires_grad_(True), or name some by select="
                )
            return self._not_empty(selected(moving, None))
        return self._not_empty(selected(self.params, selected_names(self.params, select)))

    def _not_empty(self, chosen: Parameters) -> frozenset[str]:
        """The names without those of parameters that have no entries, or all of them if none has any."""
        return frozenset(name for name, value in chosen.items() if value.numel()) or frozenset(chosen)

    def head(self, x: Tensor, head: Collection[str] | None = None) -> frozenset[str]:
        """Names of the selected parameters of the last linear layer, as :func:`mamltheory.guard.with_head` finds it.

        ``x`` is a batch of samples; ``head`` names the layer's parameters, None for those of the linear map whose
        output is the network's.

        Returns:
            At least one name.

        Raises:
            UnsupportedModelError: the network has no such layer.
        """
        found = with_head(self.model, self.params, x, head).head
        if not found:
            raise UnsupportedModelError(
                "the network itself has no linear layer: the last-layer kernel of ANIL is not defined for it"
            )
        return frozenset(selected(self.params, found & self.names(self.options.select)))


def checked_network(
    model: Model | nn.Module,
    params: Parameters | None,
    samples: Sequence[Tensor],
    options: KernelOptions,
) -> Checked:
    """A network with its parameters, after all checks of :mod:`mamltheory.guard` on these samples.

    Args:
        model: a module, or a pure Model.
        params: values of its parameters; None for a module's own.
        samples: tensors n × …, each tested alone and, where they have one shape, together.
        options: of the kernels that will be computed.

    Returns:
        The network, ready for :func:`kernels_of`. Errors are raised as by :func:`empirical_ntk`.
    """
    pure, params = as_model(model, params)
    for x in samples:
        checked_samples(pure, params, x)
    module = pure.module if isinstance(model, nn.Module) and options.method != "generic" else None
    if module is not None:
        # The pass over the layers tests the layers that are not known.
        if not is_dense(module):
            with torch.no_grad():
                output_of(pure, params, samples[0][:1])
        return Checked(pure, params, options, module)
    together = len({(x.shape[1:], x.dtype) for x in samples}) == 1
    for x in [torch.cat(list(samples))] if together else samples:
        check_independent(pure, params, x, options.chunk)
    return Checked(pure, params, options)


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

    Samples are tested to be independent of each other, and gradients are those of plain autograd with every method.
    A float32 network's gradients carry float32's rounding, some 1e-7 of the largest entry. In float64 their Gram
    matrix is positive semi-definite to float64's rounding (error 5e-9), as condition numbers need.

    Args:
        model: a ``torch.nn.Module`` (then 1/l is left out), or a pure Model with ``params``.
        x1: samples of the rows, n1 × ….
        x2: samples of the columns; None for the symmetric kernel of ``x1`` with itself, at half the work.
        params: values of the parameters; None for a module's own.
        outputs: "full" for n1·k × n2·k, "sum" for the n1 × n2 kernel of the sum of the outputs.
        select: names of parameters, or a predicate on names; None for all that require a gradient.
        chunk: most samples differentiated together; None for all.
        memory: bytes of temporary tensors (None: 2 GiB on a CPU, on CUDA by the free memory); as few samples are
            differentiated together as that needs.
            "generic" holds D numbers for each row of a tile.
        method: "auto" takes "layerwise", and "generic" for the parameters which that does not cover.
        dtype: of the kernel and of its accumulation, float64 for None. torch.float32 is faster and leaves an error
            of 1e-5, which :func:`mamltheory.linalg.condition_number` takes into account.

    Returns:
        The kernel, sample-major and class-minor. UnsupportedModelError is raised for batch statistics, active
        dropout, samples that a network mixes, or what no method covers; ValueRangeError for weights, samples or
        outputs that are not finite; ConfigurationError for parameters that do not exist or a budget too small for
        one sample; ShapeError for samples without axes.

    Example:
        >>> import torch, mamltheory as mt
        >>> network = torch.nn.Linear(2, 1)  # f(x) = w · x + b: the kernel is x · x' + 1
        >>> mt.empirical_ntk(network, torch.tensor([[1.0, 0.0], [2.0, 3.0]])).tolist()
        [[2.0, 3.0], [3.0, 14.0]]
    """
    options = KernelOptions(outputs, select, chunk, memory, method, dtype)
    network = checked_network(model, params, [x1] if x2 is None else [x1, x2], options)
    return kernels_of(network, x1, x2, [network.names(select)])[0]


def kernels_of(
    network: Checked, x1: Tensor, x2: Tensor | None, selections: Sequence[frozenset[str]]
) -> list[Float[Tensor, "p q"]]:
    """The empirical NTK by several sets of parameters, from one pass.

    Args:
        network: the network, with the options of the kernels.
        x1: samples of the rows.
        x2: samples of the columns; None for symmetric kernels.
        selections: names of parameters, one set for each kernel.

    Returns:
        One kernel for each set. Errors are raised as by :func:`empirical_ntk`.
    """
    model, params, options = network.model, network.params, network.options
    if network.module is not None:
        kernels = layerwise_kernels(network.module, x1, x2, selections, params, options)
    else:
        net = _structure(model, options.method)
        differentiate = partial(_gradients, net, model, params, options.outputs, selections)
        kernels = tiled_kernels(differentiate, x1, x2, selections, options)
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
    """Empirical NTK of the last linear layer alone, 𝒦̂ of Eq. (112).

    ``head`` names that layer's parameters; None finds the linear map whose output is the network's. The arguments
    model, x1, x2, params, outputs, chunk, memory, method and dtype are those of :func:`empirical_ntk`.

    Returns:
        The kernel, as from :func:`empirical_ntk`. UnsupportedModelError is raised for a network without such a layer.

    Example:
        >>> import torch, mamltheory as mt
        >>> network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> mt.empirical_last_layer_ntk(network, torch.zeros(2, 2)).shape
        torch.Size([2, 2])
    """
    options = KernelOptions(outputs, None, chunk, memory, method, dtype)
    network = checked_network(model, params, [x1] if x2 is None else [x1, x2], options)
    return kernels_of(network, x1, x2, [network.head(x1, head)])[0]


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
    selections: Sequence[frozenset[str]],
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
    # a NaN or infinite entry shows in the sum, which is faster; a sum of finite entries may overflow
    if not bool(torch.isfinite(kernel.sum())) and not bool(torch.isfinite(kernel).all()):
        raise ValueRangeError(
            "the kernel has NaN or infinite entries though the weights are finite: gradients overflow or are "
            "undefined at these samples; rescale the weights, or use float64"
        )
    return kernel
