"""Functions of a symmetric positive semi-definite matrix: T(M, t), decay and condition number.

Every closed form of the paper is a spectral function of a kernel M = V diag(s) Vᵀ:

    residual that is left     ρ(s)                     what was learnt     T(s) = (1 − ρ(s)) / s
    gradient flow, time t     e^{−ts}                                      −expm1(−ts) / s
    τ steps of rate λ         (1 − λs)^τ                                   λ Σ_{q<τ} (1 − λs)^q
    until convergence         0 (ridge r: r/(s + r))                       1 / (s + r)
    rates λ_t, momentum μ     v ← μ v + ρ,  ρ ← ρ − λ_t s v                v ← μ v + 1 − s T,  T ← T + λ_t v

T is entire in s for finite time (its value at s = 0 is t, or λτ), so that a singular kernel is harmless
there; no inverse is ever formed. Eigenvalues that are negative by rounding alone count as zero. The same
functions serve the inner loop (t = λ0 τ) and the outer loop (t = η0 t) of Eqs. (8), (11)–(13), (58), (88),
(95), (96), (106) and (112), the score of the cell search and the gradient of that score.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.dynamics import (
    Converged,
    Dynamics,
    GradientDescent,
    GradientFlow,
    SampledDescent,
    ScheduledDescent,
    SpectralDynamics,
    check_dynamics,
)
from mamltheory.errors import ShapeError, SingularKernelError, ValueRangeError

Measure = Literal["condition", "harmonic"]
"""How far a kernel is from a multiple of the identity: by its extreme eigenvalues, or by means over all of them."""

CLOSE = 1e-5
"""Relative distance of eigenvalues below which a divided difference is taken around their mean."""


def symmetrised(matrix: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """(M + Mᵀ)/2 in float64, of a matrix M that is symmetric up to rounding; differentiable.

    Returns:
        A matrix that is symmetric exactly.

    Raises:
        ShapeError: not a square matrix with at least one row.
        ValueRangeError: whole numbers, entries that are not finite, or an asymmetry beyond rounding.
    """
    if not isinstance(matrix, Tensor):
        raise ShapeError(
            f"a kernel must be a tensor, got {type(matrix).__name__}: convert with torch.as_tensor(...)"
        )
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1] or matrix.numel() == 0:
        raise ShapeError(f"a kernel must be a non-empty square matrix, got shape {tuple(matrix.shape)}")
    if not matrix.is_floating_point():
        raise ValueRangeError(
            f"a kernel must hold real floating-point numbers, got {matrix.dtype}: convert with .double()"
        )
    wide = matrix.double()
    entries = wide.detach()
    if not bool(torch.isfinite(entries).all()):
        raise ValueRangeError(
            "the kernel has NaN or infinite entries: check the inputs and the network's weights"
        )
    tolerance = 1e-9 if matrix.dtype == torch.float64 else 1e-4
    asymmetry, size = float((entries - entries.T).abs().max()), float(entries.abs().max())
    if asymmetry > tolerance * size:
        raise ValueRangeError(
            f"the kernel is not symmetric: largest entry {size:.3g}, largest |M − Mᵀ| {asymmetry:.3g}; "
            "pass the kernel of a set of samples with itself"
        )
    return (wide + wide.T) / 2


def rounding_level(eigenvalues: Float[Tensor, " p"], dtype: torch.dtype = torch.float64) -> float:
    """Size below which an eigenvalue cannot be told from zero: p · eps · largest |eigenvalue|."""
    return len(eigenvalues) * torch.finfo(dtype).eps * float(eigenvalues.detach().abs().max())


def residual_values(
    s: Float[Tensor, " p"], dynamics: SpectralDynamics, level: float | None = None
) -> Float[Tensor, " p"]:
    """ρ(s), the share of the residual left along eigenvectors of eigenvalues s; as :func:`learnt_values`."""
    match dynamics:
        case GradientFlow(time):
            return torch.exp(-time * s)
        case GradientDescent(rate, steps):
            return (1 - rate * s) ** steps
        case ScheduledDescent(rates, momentum):
            left, velocity = torch.ones_like(s), torch.zeros_like(s)
            for rate in rates:
                velocity = momentum * velocity + left
                left = left - rate * s * velocity
            return left
        case Converged(ridge):
            return ridge / _lifted(s, ridge, level)


def learnt_values(
    s: Float[Tensor, " p"], dynamics: SpectralDynamics, level: float | None = None
) -> Float[Tensor, " p"]:
    """T(s) = (1 − ρ(s))/s without cancellation, finite at s = 0 for finite time.

    Args:
        s: eigenvalues.
        dynamics: how long the loop ran.
        level: size of the rounding errors in ``s``; None for those of float64.

    Returns:
        One value for every eigenvalue. SingularKernelError is raised where infinite time needs a larger ridge.
    """
    match dynamics:
        case GradientFlow(time):
            z = time * s
            late = z > 1  # here time · (…)/z would be ∞ · 0 for a huge time, and the quotient by s is safe
            by_quotient = -torch.expm1(-z) / torch.where(late, s, torch.ones_like(s))
            return torch.where(late, by_quotient, time * _relative_expm1(-z.clamp(max=1)))
        case GradientDescent(rate, steps):
            return _geometric_sum(s, rate, steps)
        case ScheduledDescent(rates, momentum):
            learnt, velocity = torch.zeros_like(s), torch.zeros_like(s)
            for rate in rates:
                velocity = momentum * velocity + 1 - s * learnt
                learnt = learnt + rate * velocity
            return learnt
        case Converged(ridge):
            return 1 / _lifted(s, ridge, level)


def _lifted(s: Tensor, ridge: float, level: float | None) -> Tensor:
    """The eigenvalues s + r, checked to be positive beyond rounding."""
    least, largest = (float(end) for end in s.detach().aminmax())
    if least + ridge <= (rounding_level(s) if level is None else level):
        raise SingularKernelError(
            f"the kernel's least eigenvalue is {least:.3g} (largest {largest:.3g}) and the "
            f"ridge {ridge:.3g} does not lift it above rounding: infinite time needs a positive definite "
            "kernel; remove duplicate samples or pass Converged(ridge=1e-3)"
        )
    return s + ridge


def _relative_expm1(z: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """(e^z − 1)/z, equal to 1 at z = 0."""
    safe = torch.where(z == 0, torch.ones_like(z), z)
    return torch.where(z == 0, torch.ones_like(z), torch.expm1(safe) / safe)


def _geometric_sum(s: Float[Tensor, " p"], rate: float, steps: int) -> Float[Tensor, " p"]:
    """λ Σ_{q<τ} (1 − λs)^q = (1 − (1 − λs)^τ)/s."""
    # For λs < 1/2 the quotient would cancel, and (1 − λs)^τ − 1 = expm1(τ log1p(−λs)) does not; beyond that
    # the quotient is safe, and the base may be negative.
    z = rate * s
    near, far = z.clamp(max=0.5), z.clamp(min=0.5)
    base = torch.where(near == 0, torch.ones_like(near), near)
    by_log = torch.where(
        near == 0, torch.full_like(z, steps), -torch.expm1(steps * torch.log1p(-near)) / base
    )
    by_quotient = (1 - (1 - far) ** steps) / far
    return rate * torch.where(z < 0.5, by_log, by_quotient)


def divided_differences(s: Float[Tensor, " p"], dynamics: SpectralDynamics) -> Float[Tensor, "p p"]:
    """Γ_ij = (T(s_i) − T(s_j))/(s_i − s_j), around the mean of two eigenvalues that are close."""
    # T changes on the scale of s or of one over the time, whichever is larger. A step of CLOSE of it leaves both the
    # truncation and the cancellation near 1e-10, except where gradient descent is about to diverge (λs near 2).
    match dynamics:
        case Converged():
            learnt = learnt_values(s, dynamics)
            return -torch.outer(learnt, learnt)
        case _:
            horizon = dynamics.horizon
    if horizon == 0:
        return torch.zeros(len(s), len(s), dtype=s.dtype, device=s.device)
    mean, gap = (s[:, None] + s) / 2, s[:, None] - s
    step = torch.maximum(gap.abs() / 2, CLOSE * (mean.abs() + 1 / horizon))
    above, below = (learnt_values((mean + sign * step).flatten(), dynamics) for sign in (1, -1))
    return ((above - below) / (2 * step.flatten())).view_as(gap)


def _spectral(
    matrix: Float[Tensor, "p p"],
    values: Callable[[Tensor, SpectralDynamics, float], Tensor],
    dynamics: SpectralDynamics,
) -> Float[Tensor, "p p"]:
    eigenvalues, vectors = torch.linalg.eigh(symmetrised(matrix))
    level = rounding_level(eigenvalues, matrix.dtype)
    # e^{−ts} of an eigenvalue that is −1e-17 instead of 0 would grow without bound in t
    s = torch.where((eigenvalues < 0) & (eigenvalues >= -level), torch.zeros_like(eigenvalues), eigenvalues)
    _check_resolved(s, level, dynamics)
    result = values(s, dynamics, level)
    if not bool(torch.isfinite(result).all()):
        raise ValueRangeError(
            f"{dynamics} diverges beyond the largest number on a kernel with eigenvalues in "
            f"[{float(s.detach()[0]):.3g}, {float(s.detach()[-1]):.3g}]: the kernel must be positive "
            "semi-definite, and rate · eigenvalue below 2"
        )
    return (vectors * result) @ vectors.T


def _check_resolved(s: Tensor, level: float, dynamics: SpectralDynamics) -> None:
    """Refuse times so long that it matters whether an eigenvalue is zero or of the size of rounding."""
    if isinstance(dynamics, Converged):
        return
    horizon = dynamics.horizon
    if horizon * level > 1 and bool((s.abs() <= level).any()):
        raise SingularKernelError(
            f"the kernel is singular up to rounding ({level:.3g}), and a time of {horizon:.3g} is long enough for "
            "rounding to decide the outcome: take a shorter time, or Converged(ridge=1e-3)"
        )


class _TimeOperator(torch.autograd.Function):
    """T(M) = V T(s) Vᵀ with dT = V (Γ ∘ Vᵀ dM V) Vᵀ, Γ the divided differences.

    The derivative of the eigenvectors, which autograd would take, divides by differences of eigenvalues. These
    vanish: the last-layer kernel of k outputs has each of its eigenvalues k times.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, dynamics: SpectralDynamics) -> Tensor:
        return _spectral(matrix, learnt_values, dynamics)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, SpectralDynamics], output: Tensor) -> None:  # noqa: ARG004
        matrix, ctx.dynamics = inputs
        ctx.save_for_backward(matrix)
        ctx.save_for_forward(matrix)

    @staticmethod
    def backward(ctx, cotangent: Tensor) -> tuple[Tensor, None]:
        (matrix,) = ctx.saved_tensors
        return _TimeOperator.jvp(ctx, cotangent, None).to(
            matrix.dtype
        ), None  # dT is a self-adjoint map of dM

    @staticmethod
    def jvp(ctx, tangent: Tensor, _: None) -> Tensor:
        (matrix,) = ctx.saved_tensors
        s, vectors = torch.linalg.eigh(symmetrised(matrix))
        inside = vectors.T @ (tangent.double() + tangent.T.double()) @ vectors / 2
        return vectors @ (divided_differences(s, ctx.dynamics) * inside) @ vectors.T


def time_operator(matrix: Float[Tensor, "p p"], dynamics: Dynamics) -> Float[Tensor, "p p"]:
    """T(M, t) = M⁻¹(I − e^{−tM}) of Eqs. (8) and (13), its discrete twin, or (M + rI)⁻¹.

    Autograd differentiates it by the matrix, also where eigenvalues coincide.

    Args:
        matrix: the kernel M, symmetric and positive semi-definite.
        dynamics: how long the loop ran.

    Returns:
        T in float64. SingularKernelError is raised for infinite time, or one beyond 1/rounding, on a kernel that is
        singular within the rounding of its dtype; ValueRangeError where the loop diverges beyond the largest number;
        other errors as by :func:`symmetrised`.

    Example:
        >>> import torch, mamltheory as mt
        >>> kernel = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
        >>> mt.time_operator(kernel, mt.Converged()).diagonal().tolist()
        [1.0, 0.25]
    """
    check_dynamics(dynamics)
    if isinstance(dynamics, SampledDescent):
        return _sampled(matrix, dynamics)[0]
    return _TimeOperator.apply(matrix, dynamics)


def _sampled(matrix: Float[Tensor, "p p"], dynamics: SampledDescent) -> tuple[Tensor, Tensor]:
    """T and ρ = I − M T of steps on some rows each: v ← μ v + P_t ρ, T ← T + η v, with P_t the rows of step t."""
    kernel = symmetrised(matrix)
    left = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    learnt = velocity = moved = torch.zeros_like(left)  # moved = M v
    for rows in dynamics.row_indices(len(kernel)):
        index = torch.tensor(rows, device=kernel.device)
        velocity = (dynamics.momentum * velocity).index_add(0, index, left[index])
        moved = dynamics.momentum * moved + kernel[:, index] @ left[index]
        learnt, left = learnt + dynamics.rate * velocity, left - dynamics.rate * moved
    if not bool(torch.isfinite(left).all()):
        raise ValueRangeError(f"the loop diverges at the rate {dynamics.rate}: take a smaller one")
    return learnt, left


def residual_operator(matrix: Float[Tensor, "p p"], dynamics: Dynamics) -> Float[Tensor, "p p"]:
    """ρ(M): e^{−tM} of Eq. (95), its discrete twin (I − λM)^τ, or r(M + rI)⁻¹, the share of the residual left.

    Returns:
        ρ(M) in float64. Arguments and errors are those of :func:`time_operator`.

    Example:
        >>> import torch, mamltheory as mt
        >>> kernel = torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> mt.residual_operator(kernel, mt.GradientDescent(rate=0.5, steps=2)).diagonal().tolist()
        [0.25, 0.0]
    """
    check_dynamics(dynamics)
    if isinstance(dynamics, SampledDescent):
        return _sampled(matrix, dynamics)[1]
    return _spectral(matrix, residual_values, dynamics)


def spectrum(kernel: Float[Tensor, "p p"]) -> Float[Tensor, " p"]:
    """Eigenvalues of a kernel in rising order, in float64; differentiable. Errors as :func:`symmetrised`."""
    return torch.linalg.eigvalsh(symmetrised(kernel))


def conditioning(
    kernel: Float[Tensor, "p p"], measure: Measure = "condition", dtype: torch.dtype | None = None
) -> Float[Tensor, ""]:
    """σ_max/σ_min of a kernel, Eq. (14), or tr Φ · tr Φ⁻¹/n²; differentiable, also where eigenvalues coincide.

    Args:
        kernel: symmetric.
        measure: "condition" for the ratio of the extreme eigenvalues, "harmonic" for the ratio of their arithmetic
            to their harmonic mean.
        dtype: the precision of the gradients that the kernel was built from; None for the kernel's own.

    Returns:
        A float64 number of at least 1. It is +inf, and has no gradient, where the least eigenvalue is not positive
        beyond the rounding of ``dtype``. Errors are raised as by :func:`symmetrised`.
    """
    eigenvalues = spectrum(kernel)
    if float(eigenvalues[0].detach()) <= rounding_level(eigenvalues, dtype or kernel.dtype):
        return eigenvalues.new_tensor(math.inf)
    if measure == "harmonic":
        return eigenvalues.mean() * (1 / eigenvalues).mean()
    return eigenvalues[-1] / eigenvalues[0]


def condition_number(kernel: Float[Tensor, "p p"]) -> float:
    """C = σ_max/σ_min of a kernel, Eq. (14).

    Returns:
        C; +inf, never a negative number or NaN, where the least eigenvalue is not positive beyond the rounding of the
        kernel's dtype. Errors are raised as by :func:`symmetrised`.

    Example:
        >>> import torch, mamltheory as mt
        >>> mt.condition_number(torch.diag(torch.tensor([1.0, 4.0])))
        4.0
        >>> mt.condition_number(torch.ones(2, 2))
        inf
    """
    return float(conditioning(kernel))
