"""Fast weights as low-rank factors: the inner loop of many tasks on the weights that they share.

At inner step r the layer h = c z Wᵀ + c_b b has the activations A_r (m × fan_in) as its input, and the cotangents
G_r = ∂ℓ/∂h (m × fan_out). The gradient of the support loss is ∂ℓ/∂W = c G_rᵀ A_r, ∂ℓ/∂b = c_b G_rᵀ 1. After s steps
task i has

    W_i(s) = W − λ c Σ_{r<s} G_rᵀ A_r,      b_i(s) = b − λ c_b Σ_{r<s} G_rᵀ 1      (rank s·m, exact)

    forward    h = c z Wᵀ + c_b b − λ (c² z Aᵀ + c_b²) G          A, G: the rows of all steps r < s, stacked
    backward   ∂ℓ/∂z = c g W − λ c² (g Gᵀ) A

so that W is used as z Wᵀ and g W alone: one product against the *shared* W for all tasks, N·m rows high, and thin
products. The first layer that adapts (the head, for ANIL) has the same A at every step, and keeps Σ G_r only.

Cost: 2τ + 1 products of N·m rows for every hidden-hidden layer, and O(τ² N m² l); memory O(τ L N m l), never N l².
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.activations import Activation, activation_function
from mamltheory.errors import ShapeError
from mamltheory.inner_loop import InnerLoop
from mamltheory.networks import FullyConnected, Model
from mamltheory.products import affine, matmul
from mamltheory.tasks import PARTS, Parameters, Task


@dataclass(frozen=True, eq=False)
class AffineLayer:
    """The affine map h = c z Wᵀ + c_b b, with c and c_b the factors of NTK parameterisation (1 in standard)."""

    weight: Float[Tensor, "fan_out fan_in"]
    bias: Float[Tensor, " fan_out"]
    c: float
    c_b: float


@dataclass(frozen=True, eq=False)
class WeightChange:
    """The factors of W_i = W − λ c Gᵀ A and b_i = b − λ c_b Gᵀ 1 for N tasks: A and G."""

    activations: Float[Tensor, "N r fan_in"]
    cotangents: Float[Tensor, "N r fan_out"]


FastWeights = tuple[WeightChange | None, ...]
"""The change of every layer p = 0 … L; None where the weight is still the shared one."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """The intermediate values of a forward pass of N × n samples, by layer p = 0 … L.

    Args:
        activations: z_p, the input of layer p, N × n × fan_in.
        slopes: σ'(h_p) of the hidden layers p = 0 … L−1.
        curvatures: σ''(h_p)/σ'(h_p) of the hidden layers; None for ReLU.
        overlaps: c² z_p Aᵀ + c_b² of every layer; None where the weight is the shared one.
        output: h of the last layer, N × n × k.
    """

    activations: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    curvatures: tuple[Tensor | None, ...]
    overlaps: tuple[Tensor | None, ...]
    output: Tensor


@dataclass(frozen=True, eq=False)
class FactorPath:
    """The inner loop of N tasks of equal size, step by step, in factored form.

    Args:
        layers: the shared network, p = 0 … L.
        activation: the name of σ.
        rate: λ.
        first: the first layer that adapts: 0 for MAML, L for ANIL.
        steps: the forward pass on the support samples at θ_s, s = 0 … τ−1; steps[s].activations[p] is A_s.
        cotangents: cotangents[s][p] is G_s of layer p ≥ ``first``, N × m × fan_out.
        overlaps: overlaps[s][p] is G_s Gᵀ with the G of all steps before s, where there are any.
        fast: fast[s] are the fast weights at θ_s, s = 0 … τ.
    """

    layers: tuple[AffineLayer, ...]
    activation: str | Activation
    rate: float
    first: int
    steps: tuple[ForwardPass, ...]
    cotangents: tuple[dict[int, Tensor], ...]
    overlaps: tuple[dict[int, Tensor], ...]
    fast: tuple[FastWeights, ...]


@dataclass(frozen=True, eq=False)
class TaskStack:
    """N tasks of equal sizes, stacked.

    Args:
        index: the place of each task among all tasks.
        query_x: X.
        query_y: Y; for a centred network Y + ``offset``, the labels of f_θ itself.
        support_x: X'.
        support_y: Y'; for a centred network Y' + f_{θ0}(X').
        offset: f_{θ0}(X) for a centred network, else None.
    """

    index: tuple[int, ...]
    query_x: Float[Tensor, "N n d"]
    query_y: Float[Tensor, "N n k"]
    support_x: Float[Tensor, "N m d"]
    support_y: Float[Tensor, "N m k"]
    offset: Float[Tensor, "N n k"] | None = None

    def part(self, start: int, stop: int) -> "TaskStack":
        """The tasks from ``start`` to ``stop`` of the stack."""
        parts = {name: getattr(self, name)[start:stop] for name in PARTS}
        offset = None if self.offset is None else self.offset[start:stop]
        return TaskStack(self.index[start:stop], **parts, offset=offset)


def stack_tasks(
    tasks: Sequence[Task], model: Model | None = None, chunk: int | None = None
) -> tuple[TaskStack, ...]:
    """The tasks grouped by their numbers of query and support samples, and stacked.

    Args:
        tasks: the tasks, in any order.
        model: the network; needed where it is centred, which changes the labels and nothing else.
        chunk: the most tasks of a stack; None for all of one size.

    Returns:
        The stacks, in the order of their sizes.
    """

    def size(i: int) -> tuple[int, int]:
        return len(tasks[i].query_x), len(tasks[i].support_x)

    stacks = []
    for _, group in groupby(sorted(range(len(tasks)), key=size), size):
        index = tuple(group)
        parts = {name: torch.stack([getattr(tasks[i], name) for i in index]) for name in PARTS}
        whole, step = TaskStack(index, **parts), chunk or len(index)
        stacks += [whole.part(start, start + step) for start in range(0, len(index), step)]
    if model is None or model.network is None or model.origin is None:
        return tuple(stacks)
    return tuple(_uncentred(model.network, model.origin, stack) for stack in stacks)


def _uncentred(net: FullyConnected, origin: Parameters, stack: TaskStack) -> TaskStack:
    """The same problem for f_θ: f_θ − f_{θ0} fits Y exactly as f_θ fits Y + f_{θ0}."""
    offset = network_output(net, origin, stack.query_x)
    support = stack.support_y + network_output(net, origin, stack.support_x)
    return replace(stack, query_y=stack.query_y + offset, support_y=support, offset=offset)


def network_layers(net: FullyConnected, params: Parameters, like: Tensor) -> tuple[AffineLayer, ...]:
    """The affine layers of Eq. (16), p = 0 … L; a ShapeError unless they fit the network and the samples ``like``."""
    net.check(params, like)
    ntk = net.parameterisation == "ntk"
    return tuple(
        AffineLayer(
            params[f"weight{i}"],
            params[f"bias{i}"],
            net.sigma_w / fan_in**0.5 if ntk else 1.0,
            net.sigma_b if ntk else 1.0,
        )
        for i, fan_in in enumerate(net.sizes[:-1], 1)
    )


def network_output(net: FullyConnected, params: Parameters, x: Float[Tensor, "N n d"]) -> Tensor:
    """f_θ(x) of the shared network, N × n × k."""
    layers = network_layers(net, params, x)
    return forward_pass(layers, net.activation, x, (None,) * len(layers), 0.0).output


def forward(layer: AffineLayer, z: Tensor, change: WeightChange | None, rate: float, bias: bool = True,
            overlap: Tensor | None = None) -> Tensor:  # fmt: skip
    """Each task's affine map c z W_iᵀ + c_b b_i.

    Args:
        layer: the shared layer.
        z: activations, N × n × fan_in.
        change: the factors of the tasks' weights; None for the shared weight.
        rate: λ.
        bias: whether to add the bias; without it the map is adjoint to :func:`backward`.
        overlap: :func:`activation_overlap` of z, where it is known.

    Returns:
        h, N × n × fan_out.
    """
    rows = z.flatten(0, 1)
    if bias:
        shift = layer.bias if layer.c_b == 1 else layer.c_b * layer.bias
        h = affine(rows, layer.weight, shift, alpha=layer.c)
    else:
        h = _scaled(matmul(rows, layer.weight.T), layer.c)
    h = h.unflatten(0, z.shape[:2])
    if change is None:
        return h
    overlap = activation_overlap(layer, z, change, bias) if overlap is None else overlap
    return h.baddbmm_(overlap, change.cotangents, alpha=-rate)


def backward(
    layer: AffineLayer, g: Tensor, change: WeightChange | None, rate: float, overlap: Tensor | None = None
) -> Tensor:
    """∂ℓ/∂z = c g W_i of each task.

    Args:
        layer: the shared layer.
        g: cotangents ∂ℓ/∂h, N × n × fan_out.
        change: the factors of the tasks' weights; None for the shared weight.
        rate: λ.
        overlap: g Gᵀ, where it is known.

    Returns:
        ∂ℓ/∂z, N × n × fan_in.
    """
    z = _scaled(matmul(g.flatten(0, 1), layer.weight), layer.c).unflatten(0, g.shape[:2])
    if change is None:
        return z
    overlap = g @ change.cotangents.mT if overlap is None else overlap
    return z.baddbmm_(overlap, change.activations, alpha=-rate * layer.c**2)


def activation_overlap(layer: AffineLayer, z: Tensor, change: WeightChange, bias: bool = True) -> Tensor:
    """c² z Aᵀ + c_b² (N × n × r): how much the steps on A change the ``layer``'s output at z; c_b² with ``bias``."""
    overlap = _scaled(z @ change.activations.mT, layer.c**2)
    return overlap + layer.c_b**2 if bias else overlap


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else factor * x


LOG_SLOPE = math.log(2 / math.pi**0.5)
"""log erf'(0)."""


def slope_and_curvature(activation: str | Activation, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """σ'(h) and σ''(h)/σ'(h) at z = σ(h); None where the second derivative is zero."""
    match activation:
        case "erf":
            return torch.exp(LOG_SLOPE - h.square()), -2 * h
        case "tanh":
            return 1 - z.square(), -2 * z
        case _:
            return (h > 0).to(h.dtype), None


def forward_pass(layers: Sequence[AffineLayer], activation: str | Activation, x: Tensor, fast: FastWeights, rate: float,
                 below: ForwardPass | None = None, first: int = 0) -> ForwardPass:  # fmt: skip
    """Forward pass of N × n samples, each through its task's network.

    Args:
        layers: the shared network.
        activation: the name of σ.
        x: the samples, N × n × d.
        fast: the tasks' weights.
        rate: λ.
        below: a pass of the same samples, from which the layers before ``first`` are taken.
        first: the first layer to compute.

    Returns:
        The values of all layers.
    """
    activations, slopes = [x], []
    curvatures: list[Tensor | None] = []
    overlaps: list[Tensor | None] = []
    if below is not None:
        activations, slopes = list(below.activations[: first + 1]), list(below.slopes[:first])
        curvatures, overlaps = list(below.curvatures[:first]), list(below.overlaps[:first])
    h = x
    for p in range(len(activations) - 1, len(layers)):
        change, z = fast[p], activations[p]
        overlaps.append(None if change is None else activation_overlap(layers[p], z, change))
        h = forward(layers[p], z, change, rate, overlap=overlaps[p])
        if p < len(layers) - 1:
            activations.append(activation_function(activation)(h))
            slope, curvature = slope_and_curvature(activation, h, activations[-1])
            slopes.append(slope)
            curvatures.append(curvature)
    return ForwardPass(tuple(activations), tuple(slopes), tuple(curvatures), tuple(overlaps), h)


def _backward_pass(
    layers: Sequence[AffineLayer],
    seen: ForwardPass,
    residual: Tensor,
    fast: FastWeights,
    rate: float,
    first: int,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """The cotangents G of the layers down to ``first``, and their overlaps with the G of earlier steps."""
    cotangents, overlaps = {len(layers) - 1: residual}, {}
    for p in range(len(layers) - 1, first, -1):
        g, change = cotangents[p], fast[p]
        if change is not None:
            overlaps[p] = g @ change.cotangents.mT
        cotangents[p - 1] = backward(layers[p], g, change, rate, overlaps.get(p)).mul_(seen.slopes[p - 1])
    return cotangents, overlaps


def _after_step(
    fast: FastWeights, seen: ForwardPass, cotangents: dict[int, Tensor], first: int
) -> FastWeights:
    """The fast weights after one more step: rows are appended, or summed where the activations are the same."""
    changes = list(fast)
    for p, g in cotangents.items():
        before, z = fast[p], seen.activations[p]
        if before is None:
            changes[p] = WeightChange(z, g)
        elif p == first:
            changes[p] = WeightChange(before.activations, before.cotangents + g)
        else:
            changes[p] = WeightChange(
                torch.cat([before.activations, z], 1), torch.cat([before.cotangents, g], 1)
            )
    return tuple(changes)


def factor_path(
    net: FullyConnected,
    params: Parameters,
    support_x: Float[Tensor, "N m d"],
    support_y: Float[Tensor, "N m k"],
    inner: InnerLoop,
) -> FactorPath:
    """τ inner steps (line 5 of Algorithm 1, Eq. 83) of N tasks of equal size, as factors.

    Args:
        net: the network.
        params: θ, the shared parameters.
        support_x: X'.
        support_y: Y'.
        inner: the inner loop.

    Returns:
        The path, differentiable in everything except, with ``inner.first_order``, the adaptation.

    Raises:
        ShapeError: labels or parameters that do not fit the network.
    """
    layers = network_layers(net, params, support_x)
    if support_y.shape[-1] != net.output_dim:
        raise ShapeError(f"the tasks have labels of {support_y.shape[-1]} numbers, expected {net.output_dim}")
    rate, first = inner.rate / net.model.scale, len(layers) - 1 if inner.algorithm == "anil" else 0
    fast: list[FastWeights] = [(None,) * len(layers)]
    steps: list[ForwardPass] = []
    cotangents: list[dict[int, Tensor]] = []
    overlaps: list[dict[int, Tensor]] = []
    for _ in range(inner.tau):
        below = steps[0] if steps else None
        seen = forward_pass(layers, net.activation, support_x, fast[-1], rate, below, first)
        g, g_overlaps = _backward_pass(layers, seen, seen.output - support_y, fast[-1], rate, first)
        changes = _after_step(fast[-1], seen, g, first)
        steps.append(seen)
        cotangents.append(g)
        overlaps.append(g_overlaps)
        fast.append(tuple(_detached(change) for change in changes) if inner.first_order else changes)
    return FactorPath(
        layers, net.activation, rate, first, tuple(steps), tuple(cotangents), tuple(overlaps), tuple(fast)
    )


def _detached(change: WeightChange | None) -> WeightChange | None:
    return change and WeightChange(change.activations.detach(), change.cotangents.detach())


def adapted_pass(path: FactorPath, x: Float[Tensor, "N n d"], step: int = -1) -> ForwardPass:
    """Forward pass of n samples of every task through its network at θ_step, by default θ' = θ_τ, Eq. (1)."""
    return forward_pass(path.layers, path.activation, x, path.fast[step], path.rate)
