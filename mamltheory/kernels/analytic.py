"""Infinite-width kernels of the networks of Eq. (16): the NTK Θ of Eq. (9), the NNGP, and ANIL's last-layer 𝒦.

With K¹ = σ_w² x·x'/d + σ_b², (u, v) ~ N(0, Kⁱ restricted to {x, x'}),
Λⁱ = E[σ(u)σ(v)], Λ̇ⁱ = E[σ'(u)σ'(v)] and Kⁱ⁺¹ = σ_w² Λⁱ + σ_b²:

    T¹ given,  Tⁱ⁺¹ = Aⁱ + σ_w² Λ̇ⁱ Tⁱ  (i = 1 … L),  NTK = T^{L+1} ⊗ I_k,

Aⁱ is the contribution of the layer after σ(hⁱ), and T¹ that of the first layer:

                                  T¹                Aⁱ
    standard, (1/l) J Jᵀ, l → ∞   0                 Λⁱ
    the same, exact 1/l terms     (x·x' + 1)/l      Λⁱ + 1/l
    NTK parameterisation          K¹                Kⁱ⁺¹

In the limit (1/l) J Jᵀ loses the first layer and all biases, whose gradients do not grow with l. The last
layer alone contributes A^L: that is 𝒦 of Eq. (112).
Sources: Cho & Saul (2009) for ReLU, Williams (1997) for erf; atan2 in place of arccos and arcsin, which lose half
of the digits where points coincide.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.networks import FullyConnected
from mamltheory.tasks import check_array

QUADRATURE_NODES = 160
PAIRS_IN_A_BLOCK = 64  # 13 MB for each table of nodes × nodes


def relu_moments(k11: Tensor, k12: Tensor, k22: Tensor) -> tuple[Tensor, Tensor]:
    """E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for ReLU (arc-cosine kernels)."""
    area = (k11 * k22 - k12.square()).clamp(min=0).sqrt()
    angle = torch.atan2(area, k12)
    return (area + (math.pi - angle) * k12) / (2 * math.pi), (math.pi - angle) / (2 * math.pi)


def erf_moments(k11: Tensor, k12: Tensor, k22: Tensor) -> tuple[Tensor, Tensor]:
    """E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for erf (arc-sine kernel)."""
    root = ((1 + 2 * k11) * (1 + 2 * k22) - 4 * k12.square()).sqrt()
    return 2 / math.pi * torch.atan2(2 * k12, root), 4 / math.pi / root


@lru_cache
def _gaussian_trapezium(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the trapezium rule for E[g(z)], z standard normal, on |z| ≤ 8.5."""
    points = np.linspace(-8.5, 8.5, nodes)
    weights = np.exp(-(points**2) / 2)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def tanh_moments(k11: Tensor, k12: Tensor, k22: Tensor) -> tuple[Tensor, Tensor]:
    """E[σ(u)σ(v)] and E[σ'(u)σ'(v)] for tanh, by the trapezium rule in two dimensions."""
    # On functions that are analytic around the real axis the rule converges exponentially, here to 1e-9 for
    # variances k up to 10 and 1e-4 up to 30; Gauss–Hermite with as many nodes is off by 1e-3 there, because the
    # poles of tanh(√k z) come near.
    shape = torch.broadcast_shapes(k11.shape, k12.shape, k22.shape)
    pairs = torch.stack([part.expand(shape).reshape(-1) for part in (k11, k12, k22)])
    moments = [_tanh_moments_of_pairs(*block) for block in pairs.split(PAIRS_IN_A_BLOCK, dim=1)]
    value, slope = (torch.cat(parts).reshape(shape) for parts in zip(*moments, strict=True))
    return value, slope


def _tanh_moments_of_pairs(k11: Tensor, k12: Tensor, k22: Tensor) -> tuple[Tensor, Tensor]:
    """(u, v) = (√k11 z, k12/√k11 z + √(k22 − k12²/k11) w) with independent standard normal z, w."""
    points, weights = (part.to(k12) for part in _gaussian_trapezium(QUADRATURE_NODES))
    scale = k11.clamp(min=torch.finfo(k12.dtype).tiny).sqrt()
    u = torch.tanh(scale[:, None] * points)
    spread = (k22 - (k12 / scale).square()).clamp(min=0).sqrt()
    v = torch.tanh((k12 / scale)[:, None, None] * points[:, None] + spread[:, None, None] * points)
    value = torch.einsum("...p,...pq,p,q->...", u, v, weights, weights)
    slope = torch.einsum("...p,...pq,p,q->...", 1 - u.square(), 1 - v.square(), weights, weights)
    return value, slope


MOMENTS = {"relu": relu_moments, "erf": erf_moments, "tanh": tanh_moments}


def expand_outputs(kernel: Float[Tensor, "p q"], outputs: int) -> Float[Tensor, "pk qk"]:
    """K ⊗ I_k: the kernel of k = ``outputs`` independent outputs, sample-major and class-minor."""
    return torch.kron(kernel, torch.eye(outputs, dtype=kernel.dtype, device=kernel.device))


def _checked(net: FullyConnected, x: Tensor) -> Tensor:
    if not isinstance(net, FullyConnected):
        raise ConfigurationError(
            f"the network is a {type(net).__name__}: analytic kernels are those of a FullyConnected; pass that itself, "
            "not its model, or take an empirical kernel"
        )
    check_array("x", x, None, net.input_dim)
    if len(x) == 0:
        raise ShapeError("x has no samples: expected at least one")
    if not bool(torch.isfinite(x).all()):
        raise ValueRangeError("x contains NaN or infinite entries")
    return x.double()


def _layers(net: FullyConnected, x1: Tensor, x2: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(Λⁱ, Λ̇ⁱ, Kⁱ⁺¹) of every hidden layer, between all pairs of samples."""
    moments = MOMENTS[net.activation]

    def preactivation(second_moment: Tensor) -> Tensor:
        return net.sigma_w**2 * second_moment + net.sigma_b**2

    k12 = preactivation(x1 @ x2.T / net.input_dim)
    k11, k22 = (preactivation(x.square().sum(1) / net.input_dim) for x in (x1, x2))
    # The moments contain √(k11 k22 − k12²): where samples coincide it must be 0, and not 1e-8, the root of 1e-16.
    same = (x1[:, None] == x2[None]).all(-1)
    layers = []
    for _ in range(net.depth):
        k12 = torch.where(same, k11[:, None], k12)
        value, slope = moments(k11[:, None], k12, k22[None, :])
        k12, k11, k22 = preactivation(value), *(preactivation(moments(k, k, k)[0]) for k in (k11, k22))
        layers.append((value, slope, k12))
    return layers


def analytic_ntk(
    net: FullyConnected,
    x1: Float[Tensor, "n1 d"],
    x2: Float[Tensor, "n2 d"] | None = None,
    finite_width: bool = False,
) -> Float[Tensor, "n1k n2k"]:
    """NTK in the infinite-width limit, Θ = lim (1/l) ∇f ∇fᵀ, Eq. (9).

    Args:
        net: the network; of its width only 1/l matters, and only with ``finite_width``.
        x1: samples of the rows.
        x2: samples of the columns; None for those of the rows.
        finite_width: add the terms of order 1/l (first layer and biases) that the limit drops, with l = net.width.
            Finite networks are compared with that kernel without bias.

    Returns:
        The kernel in float64, sample-major and class-minor. ShapeError or ValueRangeError is raised for samples that
        do not fit the network or are not finite.

    Example:
        >>> import torch, mamltheory as mt
        >>> net = mt.FullyConnected(input_dim=2, width=64, depth=2, activation="relu", sigma_w=1.0, sigma_b=0.0)
        >>> mt.analytic_ntk(net, torch.tensor([[1.0, 1.0]])).item()
        0.5
    """
    x1 = _checked(net, x1)
    x2 = x1 if x2 is None else _checked(net, x2)
    ntk = _first_layer(net, x1, x2, finite_width)
    for value, slope, following in _layers(net, x1, x2):
        ntk = _layer_itself(net, value, following, finite_width) + net.sigma_w**2 * slope * ntk
    return expand_outputs(ntk, net.output_dim)


def analytic_last_layer_ntk(
    net: FullyConnected,
    x1: Float[Tensor, "n1 d"],
    x2: Float[Tensor, "n2 d"] | None = None,
    finite_width: bool = False,
) -> Float[Tensor, "n1k n2k"]:
    """NTK of the last linear layer alone, the 𝒦 of ANIL in Eq. (112).

    Returns:
        The kernel. The arguments net, x1, x2 and finite_width are those of :func:`analytic_ntk`, as are errors.

    Example:
        >>> import torch, mamltheory as mt
        >>> net = mt.FullyConnected(input_dim=2, width=64, depth=1, activation="relu", sigma_w=1.0, sigma_b=0.0)
        >>> x = torch.tensor([[1.0, 1.0]])  # ReLU halves the second moment of u ~ N(0, |x|²/d)
        >>> mt.analytic_last_layer_ntk(net, x).item()
        0.5
    """
    x1 = _checked(net, x1)
    x2 = x1 if x2 is None else _checked(net, x2)
    value, _, following = _layers(net, x1, x2)[-1]
    return expand_outputs(_layer_itself(net, value, following, finite_width), net.output_dim)


def nngp(
    net: FullyConnected, x1: Float[Tensor, "n1 d"], x2: Float[Tensor, "n2 d"] | None = None
) -> Float[Tensor, "n1k n2k"]:
    """Covariance of the outputs f_0 at initialisation in the limit, K^{L+1} ⊗ I_k (no factor 1/l).

    Returns:
        The kernel. The arguments net, x1 and x2 are those of :func:`analytic_ntk`, as are errors.

    Example:
        >>> import torch, mamltheory as mt
        >>> net = mt.FullyConnected(input_dim=2, width=64, depth=1, activation="relu", sigma_w=2.0, sigma_b=0.0)
        >>> mt.nngp(net, torch.tensor([[1.0, 1.0]])).item()  # σ_w² E[σ(u)²] with u ~ N(0, σ_w² |x|²/d)
        8.0
    """
    x1 = _checked(net, x1)
    x2 = x1 if x2 is None else _checked(net, x2)
    return expand_outputs(_layers(net, x1, x2)[-1][2], net.output_dim)


def _first_layer(net: FullyConnected, x1: Tensor, x2: Tensor, finite_width: bool) -> Tensor:
    products = x1 @ x2.T
    if net.parameterisation == "ntk":
        return net.sigma_w**2 * products / net.input_dim + net.sigma_b**2
    return (products + 1) / net.width if finite_width else torch.zeros_like(products)


def _layer_itself(net: FullyConnected, value: Tensor, following: Tensor, finite_width: bool) -> Tensor:
    if net.parameterisation == "ntk":
        return following
    return value + 1 / net.width if finite_width else value
