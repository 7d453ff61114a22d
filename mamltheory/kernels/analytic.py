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

A residual network adds Kⁱ and Tⁱ to the right-hand sides of Kⁱ⁺¹ and Tⁱ⁺¹, for i < L. Layer normalisation divides
Kⁱ and Tⁱ by √((Kⁱ(x, x) + ε)(Kⁱ(x', x') + ε)) before σ: the mean over neurons vanishes, the variance is Kⁱ(x, x), and
what it takes from a gradient is of rank two among l.

:mod:`mamltheory.kernels.moments` states how exact the moments Λ are. ReLU needs the angle between points to full
precision, and k11 k22 − k12² has lost half of its digits where they are nearly parallel: :class:`_Angles` carries it.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.kernels.moments import moments_of, relu_moments_at_angle
from mamltheory.networks import NORM_EPSILON, FullyConnected
from mamltheory.tasks import check_array


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


@dataclass(frozen=True)
class _Layer:
    """Λⁱ and Λ̇ⁱ, σ_w² Λⁱ + σ_b², and what normalisation multiplied Kⁱ and Tⁱ by; between all pairs of samples."""

    value: Tensor
    slope: Tensor
    following: Tensor
    stretch: Tensor | float


def _layers(net: FullyConnected, x1: Tensor, x2: Tensor) -> list[_Layer]:
    """The hidden layers i = 1 … L."""
    moments = moments_of(net.activation)

    def preactivation(second_moment: Tensor) -> Tensor:
        return net.sigma_w**2 * second_moment + net.sigma_b**2

    k12 = preactivation(x1 @ x2.T / net.input_dim)
    k11, k22 = (preactivation(x.square().sum(1) / net.input_dim) for x in (x1, x2))
    # where samples coincide, their covariance must be their variance to the last digit
    same = (x1[:, None] == x2[None]).all(-1)
    angle = _first_angles(net, x1, x2).masked_fill(same, 0) if net.activation == "relu" else None
    layers = []
    for _ in range(net.depth):
        k12 = torch.where(same, k11[:, None], k12)
        n11, n22 = k11, k22
        stretch: Tensor | float = 1.0
        if net.layer_norm:
            one, two = ((k + NORM_EPSILON).rsqrt() for k in (k11, k22))
            n11, n22, stretch = k11 * one.square(), k22 * two.square(), one[:, None] * two
        if angle is None:
            value, slope = moments(n11[:, None], k12 * stretch, n22[None, :])
            m11, m22 = (moments(k, k, k)[0] for k in (n11, n22))
        else:
            value, slope = relu_moments_at_angle((n11[:, None] * n22).sqrt(), angle)
            m11, m22 = n11 / 2, n22 / 2
            angle = _next_angles(net, (k11, k22), (n11, n22), angle)
        following, q11, q22 = (preactivation(m) for m in (value, m11, m22))
        layers.append(_Layer(value, slope, following, stretch))
        if net.residual:
            k12, k11, k22 = k12 + following, k11 + q11, k22 + q22
        else:
            k12, k11, k22 = following, q11, q22
    return layers


def _first_angles(net: FullyConnected, x1: Tensor, x2: Tensor) -> Tensor:
    """The angles between the vectors (σ_w x/√d, σ_b), by Kahan's formula: exact near 0 and near π."""
    one, two = (
        nn.functional.normalize(
            torch.cat([net.sigma_w / net.input_dim**0.5 * x, torch.full_like(x[:, :1], net.sigma_b)], 1)
        )
        for x in (x1, x2)
    )
    apart, together = (
        torch.cdist(one, sign * two, compute_mode="donot_use_mm_for_euclid_dist") for sign in (1, -1)
    )
    return 2 * torch.atan2(apart, together)


def _next_angles(
    net: FullyConnected, before: tuple[Tensor, Tensor], inside: tuple[Tensor, Tensor], angle: Tensor
) -> Tensor:
    """The angles between samples after a layer of ReLU, from the gaps √(k11 k22) − k12, which are sums of small terms.

    Args:
        net: the network.
        before: k11 and k22 of the layer's preactivations.
        inside: the same after normalisation.
        angle: the angles of both.

    Returns:
        The angles of the next preactivations, with an error of 1e-16 and not of 1e-8 where they are small.
    """
    one, two = (k.sqrt() for k in before)
    half = (inside[0][:, None] * inside[1]).sqrt() / 2
    missing = 2 * (angle / 2).sin().square()  # 1 − cos
    gap = net.sigma_w**2 * half * (missing - (angle.sin() - angle * angle.cos()) / math.pi)
    roots = [
        tuple(net.sigma_w * (k / 2).sqrt() for k in inside),
        tuple(net.sigma_b * k.new_ones(len(k)) for k in inside),
    ]
    if net.residual:
        gap = gap + one[:, None] * two * missing
        roots.append((one, two))
    sums = [torch.stack([root[side].square() for root in roots]).sum(0) for side in (0, 1)]
    size = (sums[0][:, None] * sums[1]).sqrt()
    products = torch.stack([root[0][:, None] * root[1] for root in roots]).sum(0)
    crossed = torch.stack(
        [a[0][:, None] * b[1] - b[0][:, None] * a[1] for a, b in itertools.combinations(roots, 2)]
    )
    crossed = crossed.square().sum(0)
    total = gap + crossed / (size + products).clamp(min=torch.finfo(size.dtype).tiny)  # √(k11 k22) − k12
    share = (total / (2 * size).clamp(min=torch.finfo(size.dtype).tiny)).clamp(0, 1)
    return 2 * torch.atan2(share.sqrt(), (1 - share).sqrt())


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
    for i, layer in enumerate(_layers(net, x1, x2), 1):
        skipped = ntk if net.residual and i < net.depth else 0.0
        itself = _layer_itself(net, layer, finite_width)
        ntk = skipped + itself + net.sigma_w**2 * layer.slope * layer.stretch * ntk
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
    last = _layers(net, x1, x2)[-1]
    return expand_outputs(_layer_itself(net, last, finite_width), net.output_dim)


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
    return expand_outputs(_layers(net, x1, x2)[-1].following, net.output_dim)


def _first_layer(net: FullyConnected, x1: Tensor, x2: Tensor, finite_width: bool) -> Tensor:
    products = x1 @ x2.T
    if net.parameterisation == "ntk":
        return net.sigma_w**2 * products / net.input_dim + net.sigma_b**2
    return (products + 1) / net.width if finite_width else torch.zeros_like(products)


def _layer_itself(net: FullyConnected, layer: _Layer, finite_width: bool) -> Tensor:
    if net.parameterisation == "ntk":
        return layer.following
    return layer.value + 1 / net.width if finite_width else layer.value
