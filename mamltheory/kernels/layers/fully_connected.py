"""Gradients of a fully connected network of Eq. (16) in closed form: ∇_W f = c g aᵀ at every layer.

a is the input of the layer, g = ∂f/∂h the gradient by its pre-activation h, and c = 1 in standard, σ_w/√fan_in in
NTK parameterisation (there the bias carries σ_b). One forward pass and one backward pass for all outputs at once
give the factors of all layers; no weight-sized gradient is formed.
"""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from mamltheory.activations import activation_function
from mamltheory.kernels.layers.gram import Gradients, LayerFactors
from mamltheory.kernels.layers.jacobian import Outputs
from mamltheory.kernels.layers.tiles import Budget, Pass
from mamltheory.networks import FullyConnected, output_of
from mamltheory.products import affine, matmul
from mamltheory.tasks import Parameters


def fully_connected_gradients(
    net: FullyConnected,
    params: Parameters,
    x: Tensor,
    outputs: Outputs,
    selections: Sequence[Collection[str]],
    budget: Budget,
) -> Pass:
    """Factors of the weights and biases in the selections, layer by layer from the output down.

    It holds n (Σ_i l_i + 2 k l) numbers.

    Args:
        net: the network.
        params: its parameters.
        x: samples n × ….
        outputs: "full" for each output, "sum" for their sum.
        selections: names of the parameters of each kernel.
        budget: the bytes that the pass may hold.

    Returns:
        The pass over the samples; samples that do not fit the network raise ShapeError.
    """
    output_of(net.model, params, x[:1])
    k = 1 if outputs == "sum" else net.output_dim
    budget.take("the hidden layers", len(x) * (sum(net.sizes) + 2 * k * net.width) * x.element_size())
    return Pass(len(x) * k, x.device, _groups(net, params, x, outputs, selections, budget))


def _groups(
    net: FullyConnected,
    params: Parameters,
    x: Tensor,
    outputs: Outputs,
    selections: Sequence[Collection[str]],
    budget: Budget,
) -> Iterator[tuple[frozenset[str], Gradients]]:
    inputs, slopes = _forward(net, params, x)
    cotangent = torch.eye(net.output_dim, dtype=x.dtype, device=x.device)
    cotangent = cotangent.sum(0, keepdim=True) if outputs == "sum" else cotangent
    cotangent = cotangent.expand(len(x), *cotangent.shape)
    names = frozenset().union(*selections)
    layers = [i for i in range(1, net.depth + 2) if names & {f"weight{i}", f"bias{i}"}]
    for i in range(net.depth + 1, min(layers) - 1, -1):
        scale, shift = _scales(net, i)
        for group in _alike(names & {f"weight{i}", f"bias{i}"}, selections):
            if f"weight{i}" in group:
                gradients: Gradients
                bias = shift**2 if f"bias{i}" in group else 0.0
                gradients = LayerFactors(scale * inputs[i - 1][:, None], cotangent[:, :, None], bias)
            else:
                gradients = shift * cotangent.flatten(0, 1)
            yield group, budget.hold(f"layer {i}", gradients)
        if i > min(layers):
            # the unit vectors of the outputs are the same for all samples
            back = matmul(cotangent if i <= net.depth else cotangent[:1], params[f"weight{i}"])
            cotangent = (scale * back) * slopes[i - 2][:, None]


def _alike(names: frozenset[str], selections: Sequence[Collection[str]]) -> list[frozenset[str]]:
    """The names together if every selection has all or none of them, else each alone."""
    together = all(len(names & set(chosen)) in (0, len(names)) for chosen in selections)
    return [names] * bool(names) if together else [frozenset({name}) for name in sorted(names)]


def _scales(net: FullyConnected, i: int) -> tuple[float, float]:
    """Factors of weight and bias in layer i: 1 and 1, or σ_w/√fan_in and σ_b."""
    if net.parameterisation == "standard":
        return 1.0, 1.0
    return net.sigma_w / net.sizes[i - 1] ** 0.5, net.sigma_b


def _forward(net: FullyConnected, params: Parameters, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The input of every layer, and σ'(h) of every hidden layer."""
    inputs, slopes = [x], []
    for i in range(1, net.depth + 1):
        scale, shift = _scales(net, i)
        hidden = affine(inputs[-1], params[f"weight{i}"], params[f"bias{i}"], shift, scale).requires_grad_()
        with torch.enable_grad():
            value = activation_function(net.activation)(hidden)
        slopes.append(torch.autograd.grad(value.sum(), hidden)[0])
        inputs.append(value.detach())
    return inputs, slopes
