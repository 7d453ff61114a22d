"""Fast weights as low-rank factors: the inner loop of many tasks on the weights that they share.

For h = c z Wᵀ + c_b b, entering rows A_r (m × fan_in) and back-flowing rows G_r = ∂ℓ/∂h (m × fan_out) at inner
step r, the gradient of the support loss is ∂ℓ/∂W = c G_rᵀ A_r, ∂ℓ/∂b = c_b G_rᵀ 1. After s steps task i has

    W_i(s) = W − λ c Σ_{r<s} G_rᵀ A_r,      b_i(s) = b − λ c_b Σ_{r<s} G_rᵀ 1      (rank s·m, exact)

    forth  h = c z Wᵀ + c_b b − λ (c² z Aᵀ + c_b²) G          A, G: the rows of all steps r < s, stacked
    back   ∂ℓ/∂z = c g W − λ c² (g Gᵀ) A

so that W enters as z Wᵀ and g W alone: one product against the *shared* W for all tasks, N·m rows high, and thin
products. The first layer that adapts (the head, for ANIL) sees the same A at every step, and keeps Σ G_r only.

Cost: 2τ + 1 products of N·m rows for every hidden-hidden layer, and O(τ² N m² l); memory O(τ L N m l), never N l².
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ShapeError
from mamltheory.inner_loop import InnerLoop
from mamltheory.networks import ACTIVATIONS, FullyConnected, Model
from mamltheory.tasks import Parameters, Task


@dataclass(frozen=True, eq=False)
class Layer:
    """The affine map h = c z Wᵀ + c_b b, with c and c_b the factors of NTK parameterisation (1 in standard)."""

    weight: Float[Tensor, "fan_out fan_in"]
    bias: Float[Tensor, " fan_out"]
    c: float
    c_b: float


@dataclass(frozen=True, eq=False)
class Factors:
    """W_i = W − λ c Gᵀ A and b_i = b − λ c_b Gᵀ 1 for N tasks: A ``entering``, G ``flowing``."""

    entering: Float[Tensor, "N r fan_in"]
    flowing: Float[Tensor, "N r fan_out"]


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass of N × n samples leaves, by layer p = 0 … L.

    entering: z_p, the input of layer p (N × n × fan_in).  output: the last layer's h (N × n × k).
    slopes: σ'(h_p);  bends: σ''(h_p)/σ'(h_p), None for ReLU; both of the hidden layers p = 0 … L−1.
    told: c² z_p Aᵀ + c_b² of every layer, None where the weight is the shared one.
    """

    entering: tuple[Tensor, ...]
    slopes: tuple[Tensor, ...]
    bends: tuple[Tensor | None, ...]
    told: tuple[Tensor | None, ...]
    output: Tensor


@dataclass(frozen=True, eq=False)
class FactorPath:
    """The inner loop of N tasks of equal size, step by step, in factored form.

    layers: the shared network, p = 0 … L.  rate: λ.  first: the first layer that adapts (0; ANIL: L).
    steps: the forward pass on the support samples at θ_s, s = 0 … τ−1; steps[s].entering[p] is A_s of layer p.
    flowing: flowing[s][p] is G_s of layer p (N × m × fan_out), None for layers below ``first``.
    inside: inside[s][p] is G_s Gᵀ with the G of all steps before s, None where there is none.
    fast: fast[s][p] are the factors of W_i(s), s = 0 … τ, None where the weight is still the shared one.
    """

    layers: tuple[Layer, ...]
    activation: str
    rate: float
    first: int
    steps: tuple[Pass, ...]
    flowing: tuple[tuple[Tensor | None, ...], ...]
    inside: tuple[tuple[Tensor | None, ...], ...]
    fast: tuple[tuple[Factors | None, ...], ...]


@dataclass(frozen=True, eq=False)
class TaskStack:
    """Tasks of equal sizes as one: ``index`` their places among all tasks, the other fields N × ….

    offset: f_{θ0}(X) for a centred network, whose labels here are those of f itself: Y' + f_{θ0}(X'), Y + offset.
    """

    index: tuple[int, ...]
    query_x: Float[Tensor, "N n d"]
    query_y: Float[Tensor, "N n k"]
    support_x: Float[Tensor, "N m d"]
    support_y: Float[Tensor, "N m k"]
    offset: Float[Tensor, "N n k"] | None = None


def stack_tasks(
    tasks: Sequence[Task], model: Model | None = None, chunk: int | None = None
) -> tuple[TaskStack, ...]:
    """The tasks grouped by their numbers of query and support samples, and stacked, at most ``chunk`` at a time.

    model: the network that they are for; needed where it is centred, which then shows in the labels alone.
    """

    def size(i: int) -> tuple[int, int]:
        return len(tasks[i].query_x), len(tasks[i].support_x)

    groups = [tuple(group) for _, group in groupby(sorted(range(len(tasks)), key=size), size)]
    parts = ("query_x", "query_y", "support_x", "support_y")
    stacks = [
        TaskStack(group, *(torch.stack([getattr(tasks[i], part) for i in group]) for part in parts))
        for whole in groups
        for group in (
            whole[i : i + step] for step in [chunk or len(whole)] for i in range(0, len(whole), step)
        )
    ]
    if model is None or model.origin is None:
        return tuple(stacks)
    return tuple(_of_the_network_itself(model, stack) for stack in stacks)


def _of_the_network_itself(model: Model, stack: TaskStack) -> TaskStack:
    """f_θ − f_{θ0} fits Y as f_θ fits Y + f_{θ0}."""
    layers = network_layers(model.network, model.origin, stack.query_x)
    offset, support = (
        run(layers, model.network.activation, x, (None,) * len(layers), 0.0).output
        for x in (stack.query_x, stack.support_x)
    )
    return replace(stack, query_y=stack.query_y + offset, support_y=stack.support_y + support, offset=offset)


def network_layers(net: FullyConnected, params: Parameters, like: Tensor) -> tuple[Layer, ...]:
    """The affine layers of Eq. (16), p = 0 … L.

    Raises ShapeError for parameters that are not the network's, or not of the samples' (``like``) dtype.
    """
    net.check(params, like)
    ntk = net.parameterisation == "ntk"
    return tuple(
        Layer(
            params[f"weight{i}"],
            params[f"bias{i}"],
            net.sigma_w / fan_in**0.5 if ntk else 1.0,
            net.sigma_b if ntk else 1.0,
        )
        for i, fan_in in enumerate(net.sizes[:-1], 1)
    )


def forth(layer: Layer, z: Tensor, factors: Factors | None, rate: float, bias: bool = True,
          told: Tensor | None = None) -> Tensor:  # fmt: skip
    """Each task's affine map c z W_iᵀ + c_b b_i of its rows z (N × n × fan_in); without bias, adjoint to ``back``.

    told: :func:`overlap` of z and the factors, where it is known.
    """
    rows = z.flatten(0, 1)
    if bias:
        shift = layer.bias if layer.c_b == 1 else layer.c_b * layer.bias
        h = torch.addmm(shift, rows, layer.weight.T, alpha=layer.c)
    else:
        h = _scaled(rows @ layer.weight.T, layer.c)
    h = h.unflatten(0, z.shape[:2])
    if factors is None:
        return h
    told = overlap(layer, z, factors, bias) if told is None else told
    return h.baddbmm_(told, factors.flowing, alpha=-rate)


def back(
    layer: Layer, g: Tensor, factors: Factors | None, rate: float, inside: Tensor | None = None
) -> Tensor:
    """∂ℓ/∂z = c g W_i of every task's rows g = ∂ℓ/∂h (N × n × fan_out); inside: g Gᵀ, where it is known."""
    z = _scaled(g.flatten(0, 1) @ layer.weight, layer.c).unflatten(0, g.shape[:2])
    if factors is None:
        return z
    inside = g @ factors.flowing.mT if inside is None else inside
    return z.baddbmm_(inside, factors.entering, alpha=-rate * layer.c**2)


def overlap(layer: Layer, z: Tensor, factors: Factors, bias: bool = True) -> Tensor:
    """c² z Aᵀ + c_b², what a step on the rows A tells the rows z (N × n × r)."""
    inside = _scaled(z @ factors.entering.mT, layer.c**2)
    return inside + layer.c_b**2 if bias else inside


def _scaled(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else factor * x


LOG_SLOPE = math.log(2 / math.pi**0.5)
"""log erf'(0)."""


def slope_and_bend(activation: str, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """σ'(h) and σ''(h)/σ'(h) at z = σ(h); None where the second derivative is zero."""
    match activation:
        case "erf":
            return torch.exp(LOG_SLOPE - h.square()), -2 * h
        case "tanh":
            return 1 - z.square(), -2 * z
        case _:
            return (h > 0).to(h.dtype), None


def run(path_layers: Sequence[Layer], activation: str, x: Tensor, fast: Sequence[Factors | None], rate: float,
        below: Pass | None = None, first: int = 0) -> Pass:  # fmt: skip
    """Forward pass of N × n samples; ``below`` and ``first``: take the layers before ``first`` from that pass."""
    entering, slopes, bends, told = [x], [], [], []
    if below is not None:
        entering, slopes, bends, told = (
            list(part[:first]) for part in (below.entering, below.slopes, below.bends, below.told)
        )
        entering.append(below.entering[first])
    for p in range(len(entering) - 1, len(path_layers)):
        factors = fast[p]
        told.append(None if factors is None else overlap(path_layers[p], entering[p], factors))
        h = forth(path_layers[p], entering[p], factors, rate, told=told[p])
        if p == len(path_layers) - 1:
            break
        z = ACTIVATIONS[activation](h)
        slope, bend = slope_and_bend(activation, h, z)
        entering.append(z)
        slopes.append(slope)
        bends.append(bend)
    return Pass(tuple(entering), tuple(slopes), tuple(bends), tuple(told), h)


def _flow(path: Sequence[Layer], seen: Pass, residual: Tensor, fast: Sequence[Factors | None], rate: float,
          first: int) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:  # fmt: skip
    """G of every layer down to ``first``, the residual flown back; and its overlaps with the G of the past."""
    flowing: list[Tensor | None] = [None] * len(path)
    inside: list[Tensor | None] = [None] * len(path)
    flowing[-1] = residual
    for p in range(len(path) - 1, first, -1):
        inside[p] = None if fast[p] is None else flowing[p] @ fast[p].flowing.mT
        flowing[p - 1] = back(path[p], flowing[p], fast[p], rate, inside[p]).mul_(seen.slopes[p - 1])
    return tuple(flowing), tuple(inside)


def _appended(
    fast: Sequence[Factors | None], seen: Pass, flowing: Sequence[Tensor | None], first: int
) -> tuple[Factors | None, ...]:
    """The factors after one more step: rows appended, or added where the entering rows are the same."""
    grown: list[Factors | None] = []
    for p, (before, g) in enumerate(zip(fast, flowing, strict=True)):
        if g is None or before is None:
            grown.append(None if g is None else Factors(seen.entering[p], g))
        elif p == first:
            grown.append(Factors(before.entering, before.flowing + g))
        else:
            entering = torch.cat([before.entering, seen.entering[p]], 1)
            grown.append(Factors(entering, torch.cat([before.flowing, g], 1)))
    return tuple(grown)


def factor_path(
    net: FullyConnected,
    params: Parameters,
    support_x: Float[Tensor, "N m d"],
    support_y: Float[Tensor, "N m k"],
    inner: InnerLoop,
) -> FactorPath:
    """τ inner steps (line 5 of Algorithm 1, Eq. 83) of N tasks of equal size, as factors.

    Differentiable in everything but, with ``inner.first_order``, the adaptation. Raises ShapeError.
    """
    layers = network_layers(net, params, support_x)
    if support_y.shape[-1] != net.output_dim:
        raise ShapeError(f"the tasks have labels of {support_y.shape[-1]} numbers, expected {net.output_dim}")
    rate, first = inner.lam0 / net.model.scale, len(layers) - 1 if inner.algorithm == "anil" else 0
    fast: list[tuple[Factors | None, ...]] = [(None,) * len(layers)]
    steps: list[Pass] = []
    flows: list[tuple[Tensor | None, ...]] = []
    insides: list[tuple[Tensor | None, ...]] = []
    for _ in range(inner.tau):
        below = steps[0] if steps else None
        seen = run(layers, net.activation, support_x, fast[-1], rate, below, first)
        flowing, inside = _flow(layers, seen, seen.output - support_y, fast[-1], rate, first)
        grown = _appended(fast[-1], seen, flowing, first)
        steps.append(seen)
        flows.append(flowing)
        insides.append(inside)
        fast.append(tuple(_detached(part) for part in grown) if inner.first_order else grown)
    return FactorPath(
        layers, net.activation, rate, first, tuple(steps), tuple(flows), tuple(insides), tuple(fast)
    )


def _detached(factors: Factors | None) -> Factors | None:
    return factors and Factors(factors.entering.detach(), factors.flowing.detach())


def adapted_pass(path: FactorPath, x: Float[Tensor, "N n d"], step: int = -1) -> Pass:
    """Forward pass of n samples of every task through its network at θ_step, by default θ' = θ_τ, Eq. (1)."""
    return run(path.layers, path.activation, x, path.fast[step], path.rate)
