"""E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for Gaussian (u, v): closed forms, and quadrature for any smooth activation.

    ReLU    arc-cosine kernels, Cho & Saul (2009), as functions of the angle between the points
    erf     arc-sine kernel, Williams (1997)
    others  trapezium rule in two dimensions, refined until its error is below 1e-12

Relative errors, of the size √(E σ(u)² · E σ(v)²) that a moment has at most: 1e-14 for ReLU, also for points that are
nearly parallel (given their angle); 1e-15 (1 + variance) for erf; ERROR for quadrature.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from mamltheory.activations import Activation, activation_function
from mamltheory.errors import ValueRangeError

Moments = tuple[Tensor, Tensor]

ERROR = 1e-12
"""Bound of the relative error of quadrature, where it does not refuse."""

AGREEMENT = 1e-8
"""Two rules, one with every other node of the other, differ by less: the rule with all nodes errs by its square."""

FEWEST_NODES, MOST_NODES = 65, 4097
REACH = 8.5  # standard deviations; the rest weighs 2e-17
ENTRIES_IN_A_BLOCK = 2**21  # of a table pairs × nodes × nodes: 16 MB


def relu_moments(k11: Tensor, k12: Tensor, k22: Tensor) -> Moments:
    """Both moments for ReLU; at k12² = k11 k22 (1 − ε) the slope has an error of 1e-16/√ε, as its argument has."""
    angle = torch.atan2((k11 * k22 - k12.square()).clamp(min=0).sqrt(), k12)
    return relu_moments_at_angle((k11 * k22).sqrt(), angle)


def relu_moments_at_angle(size: Tensor, angle: Tensor) -> Moments:
    """Both moments for ReLU from √(k11 k22) and the angle, without loss of digits at any angle."""
    return (
        size * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi),
        (math.pi - angle) / (2 * math.pi),
    )


def erf_moments(k11: Tensor, k12: Tensor, k22: Tensor) -> Moments:
    """Both moments for erf, with a relative error of 1e-15 (1 + k)."""
    root = ((1 + 2 * k11) * (1 + 2 * k22) - 4 * k12.square()).sqrt()
    return 2 / math.pi * torch.atan2(2 * k12, root), 4 / math.pi / root


@lru_cache
def _gaussian_trapezium(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezium rule for E[g(z)], z standard normal, on |z| ≤ REACH."""
    points = np.linspace(-REACH, REACH, nodes)
    weights = np.exp(-(points**2) / 2)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def quadrature_moments(activation: str | Activation, k11: Tensor, k12: Tensor, k22: Tensor) -> Moments:
    """Both moments of any smooth activation, by the trapezium rule in two dimensions.

    On functions that are analytic around the real axis the rule converges exponentially: its error is the square of
    its distance from the rule with every other node. Nodes are doubled until that distance is below AGREEMENT, from a
    step of at most 1 in u and v on. The nearer to the real axis the activation has a pole, and the larger the variance,
    the more nodes are needed: tanh takes 129 per dimension at variance 1, 1025 at 60, 4097 at 1000.

    Args:
        activation: its name, or a pointwise function: smooth, growing no faster than a power, and changing on a scale
            of 1 or more.
        k11: variances of u.
        k12: covariances.
        k22: variances of v, of a shape that broadcasts with the others.

    Returns:
        Both moments in the common shape, with a relative error of at most ERROR.

    Raises:
        ValueRangeError: MOST_NODES do not suffice.
    """
    shape = torch.broadcast_shapes(k11.shape, k12.shape, k22.shape)
    pairs = torch.stack([part.expand(shape).reshape(-1) for part in (k11, k12, k22)])
    result, waiting = torch.empty_like(pairs[:2]), torch.arange(pairs.shape[1], device=pairs.device)
    # a step above π would take sin for a slower function
    least = max(FEWEST_NODES, 1 + 2 * REACH * math.sqrt(float(pairs[::2].max()))) if pairs.numel() else 1
    nodes = FEWEST_NODES
    while nodes < least:
        nodes = 2 * nodes - 1
    while len(waiting):
        if nodes > MOST_NODES:
            raise ValueRangeError(
                f"quadrature with {MOST_NODES}² nodes does not reach an error of {ERROR} at variances of "
                f"{float(pairs[::2, waiting].max()):.3g}: take an activation without kinks, or samples or weights "
                "of a smaller scale"
            )
        most = max(1, ENTRIES_IN_A_BLOCK // nodes**2)
        unsure = []
        for some in waiting.split(most):
            result[:, some], distance = _trapezium(activation_function(activation), nodes, *pairs[:, some])
            unsure.append(some[distance > AGREEMENT])
        waiting, nodes = torch.cat(unsure), 2 * nodes - 1
    return result[0].reshape(shape), result[1].reshape(shape)


def _trapezium(function: Activation, nodes: int, k11: Tensor, k12: Tensor, k22: Tensor) -> Moments:
    """Both moments of each pair, 2 × pairs, and the relative distance from the rule with every other node."""
    # (u, v) = (√k11 z, k12/√k11 z + √(k22 − k12²/k11) w) with independent standard normal z, w
    points, weights = (part.to(k12) for part in _gaussian_trapezium(nodes))
    scale = k11.clamp(min=torch.finfo(k12.dtype).tiny).sqrt()
    along = (k12 / scale)[:, None, None] * points[:, None]
    spread = (k22 - (k12 / scale).square()).clamp(min=0).sqrt()
    one, two, alone = (
        value_and_slope(function, h)
        for h in (
            scale[:, None] * points,
            along + spread[:, None, None] * points,
            k22.sqrt()[:, None] * points,
        )
    )
    moments, distance = [], torch.zeros_like(k12)
    for u, v, w in zip(one, two, alone, strict=True):
        rules = [
            torch.einsum("ip,ipq,p,q->i", u[:, ::step], v[:, ::step, ::step], part, part)
            for step in (1, 2)
            for part in (weights[::step] / weights[::step].sum(),)
        ]
        size = ((u.square() @ weights) * (w.square() @ weights)).sqrt()
        gap = (rules[0] - rules[1]).abs() / size.clamp(min=torch.finfo(size.dtype).tiny)
        moments.append(rules[0])
        distance = torch.maximum(distance, gap)
    return torch.stack(moments), distance


def value_and_slope(function: Activation, h: Tensor) -> tuple[Tensor, Tensor]:
    """σ(h) and σ'(h) of a pointwise function, by autograd."""
    h = h.detach().requires_grad_()
    with torch.enable_grad():
        value = function(h)
        slope = torch.autograd.grad(value.sum(), h)[0] if value.requires_grad else torch.zeros_like(h)
    return value.detach(), slope


CLOSED_FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Moments]] = {
    "relu": relu_moments,
    "erf": erf_moments,
}


def moments_of(activation: str | Activation) -> Callable[[Tensor, Tensor, Tensor], Moments]:
    """(k11, k12, k22) -> both moments, in closed form where there is one."""
    closed = CLOSED_FORMS.get(activation) if isinstance(activation, str) else None
    return closed or partial(quadrature_moments, activation)
