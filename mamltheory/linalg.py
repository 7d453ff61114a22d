"""Functions of a symmetric positive semi-definite matrix: T(M, t), decay and condition number.

Every closed form of the paper is a spectral function of a kernel M = V diag(s) Vᵀ:

    residual that is left     ρ(s)                     what was learnt     T(s) = (1 − ρ(s)) / s
    gradient flow, time t     e^{−ts}                                      −expm1(−ts) / s
    τ steps of rate λ         (1 − λs)^τ                                   λ Σ_{q<τ} (1 − λs)^q
    until convergence         0 (ridge r: r/(s + r))                       1 / (s + r)

T is entire in s for finite time (its value at s = 0 is t, or λτ), so that a singular kernel is harmless
there; no inverse is ever formed. Eigenvalues that are negative by rounding alone count as zero. The same
functions serve the inner loop (t = λ0 τ) and the outer loop (t = η0 t) of Eqs. (8), (11)–(13), (58), (88),
(95), (96), (106) and (112), and the score of the cell search.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ConfigurationError, ShapeError, SingularKernelError, ValueRangeError


@dataclass(frozen=True)
class GradientFlow:
    """Continuous time: the paper's e^{−λ0 Θ τ}; ``time`` is the product λ0 τ (or η0 t), at least 0."""

    time: float

    def __post_init__(self) -> None:
        _check_nonnegative("time", self.time, "use Converged(ridge) for infinite time")


@dataclass(frozen=True)
class GradientDescent:
    """``steps`` steps of size ``rate`` (λ0 or η0, the learning rate times the width): (I − λ0 Θ)^τ."""

    rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_nonnegative("rate", self.rate, "use Converged(ridge) for infinite time")
        if not (is_number(self.steps) and self.steps >= 0 and self.steps == int(self.steps)):
            raise ValueRangeError(f"steps is {self.steps}: expected a whole number of at least 0")


@dataclass(frozen=True)
class Converged:
    """Infinite time, with an optional ridge r inside the inverse: T(M) = (M + rI)⁻¹."""

    ridge: float = 0.0

    def __post_init__(self) -> None:
        _check_nonnegative("ridge", self.ridge, "choose a small positive number such as 1e-3")


Dynamics = GradientFlow | GradientDescent | Converged
"""How, and for how long, a loop ran."""


def _check_dynamics(dynamics: Dynamics) -> None:
    if not isinstance(dynamics, Dynamics):
        raise ConfigurationError(
            f"dynamics is {dynamics!r}: expected Converged(ridge), GradientDescent(rate, steps) or GradientFlow(time)"
        )


def is_number(value: object) -> bool:
    """Whether a value is a finite real number."""
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _check_nonnegative(name: str, value: float, advice: str) -> None:
    if not (is_number(value) and value >= 0):
        raise ValueRangeError(f"{name} is {value!r}: expected a finite number of at least 0; {advice}")


def symmetrised(matrix: Float[Tensor, "p p"]) -> Float[Tensor, "p p"]:
    """The matrix in float64, checked to be finite and symmetric up to rounding, then made exactly so.

    Raises ShapeError or ValueRangeError.
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
    if not bool(torch.isfinite(wide).all()):
        raise ValueRangeError(
            "the kernel has NaN or infinite entries: check the inputs and the network's weights"
        )
    tolerance = 1e-9 if matrix.dtype == torch.float64 else 1e-4
    asymmetry, size = float((wide - wide.T).abs().max()), float(wide.abs().max())
    if asymmetry > tolerance * size:
        raise ValueRangeError(
            f"the kernel is not symmetric: largest entry {size:.3g}, largest |M − Mᵀ| {asymmetry:.3g}; "
            "pass the kernel of a set of samples with itself"
        )
    return (wide + wide.T) / 2


def rounding_level(eigenvalues: Float[Tensor, " p"], dtype: torch.dtype = torch.float64) -> float:
    """Size below which an eigenvalue cannot be told from zero: p · eps · largest |eigenvalue|."""
    return len(eigenvalues) * torch.finfo(dtype).eps * float(eigenvalues.abs().max())


def residual_values(
    s: Float[Tensor, " p"], dynamics: Dynamics, level: float | None = None
) -> Float[Tensor, " p"]:
    """ρ(s), the share of the residual that is left along an eigenvector of eigenvalue s.

    level and SingularKernelError as for :func:`learnt_values`.
    """
    match dynamics:
        case GradientFlow(time):
            return torch.exp(-time * s)
        case GradientDescent(rate, steps):
            return (1 - rate * s) ** steps
        case Converged(ridge):
            return ridge / _lifted(s, ridge, level)


def learnt_values(
    s: Float[Tensor, " p"], dynamics: Dynamics, level: float | None = None
) -> Float[Tensor, " p"]:
    """T(s) = (1 − ρ(s))/s without cancellation, finite at s = 0 for finite time.

    level: size of the rounding errors in s; None for those of float64.
    Raises SingularKernelError for infinite time without a sufficient ridge.
    """
    match dynamics:
        case GradientFlow(time):
            z = time * s
            late = z > 1  # here time · (…)/z would be ∞ · 0 for a huge time, and the quotient by s is safe
            by_quotient = -torch.expm1(-z) / torch.where(late, s, torch.ones_like(s))
            return torch.where(late, by_quotient, time * _relative_expm1(-z.clamp(max=1)))
        case GradientDescent(rate, steps):
            return _geometric_sum(s, rate, steps)
        case Converged(ridge):
            return 1 / _lifted(s, ridge, level)


def _lifted(s: Tensor, ridge: float, level: float | None) -> Tensor:
    """The eigenvalues s + r, checked to be positive beyond rounding."""
    lifted = s + ridge
    if float(lifted.min()) <= (rounding_level(s) if level is None else level):
        raise SingularKernelError(
            f"the kernel's least eigenvalue is {float(s.min()):.3g} (largest {float(s.max()):.3g}) and the "
            f"ridge {ridge:.3g} does not lift it above rounding: infinite time needs a positive definite "
            "kernel; remove duplicate samples or pass Converged(ridge=1e-3)"
        )
    return lifted


def _relative_expm1(z: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
    """(e^z − 1)/z, equal to 1 at z = 0."""
    safe = torch.where(z == 0, torch.ones_like(z), z)
    return torch.where(z == 0, torch.ones_like(z), torch.expm1(safe) / safe)


def _geometric_sum(s: Float[Tensor, " p"], rate: float, steps: int) -> Float[Tensor, " p"]:
    """λ Σ_{q<τ} (1 − λs)^q = (1 − (1 − λs)^τ)/s.

    For λs < 1/2 the quotient would cancel, and (1 − λs)^τ − 1 = expm1(τ log1p(−λs)) does not; beyond that
    the quotient is safe, and the base may be negative.
    """
    z = rate * s
    near, far = z.clamp(max=0.5), z.clamp(min=0.5)
    base = torch.where(near == 0, torch.ones_like(near), near)
    by_log = torch.where(
        near == 0, torch.full_like(z, steps), -torch.expm1(steps * torch.log1p(-near)) / base
    )
    by_quotient = (1 - (1 - far) ** steps) / far
    return rate * torch.where(z < 0.5, by_log, by_quotient)


def _spectral(
    matrix: Float[Tensor, "p p"], values: Callable[[Tensor, float], Tensor], dynamics: Dynamics
) -> Float[Tensor, "p p"]:
    _check_dynamics(dynamics)
    eigenvalues, vectors = torch.linalg.eigh(symmetrised(matrix))
    level = rounding_level(eigenvalues, matrix.dtype)
    # e^{−ts} of an eigenvalue that is −1e-17 instead of 0 would grow without bound in t
    s = torch.where((eigenvalues < 0) & (eigenvalues >= -level), torch.zeros_like(eigenvalues), eigenvalues)
    _check_resolved(s, level, dynamics)
    result = values(s, level)
    if not bool(torch.isfinite(result).all()):
        raise ValueRangeError(
            f"{dynamics} diverges beyond the largest number on a kernel with eigenvalues in "
            f"[{float(s[0]):.3g}, {float(s[-1]):.3g}]: the kernel must be positive "
            "semi-definite, and rate · eigenvalue below 2"
        )
    return (vectors * result) @ vectors.T


def _check_resolved(s: Tensor, level: float, dynamics: Dynamics) -> None:
    """Refuse times so long that the outcome hangs on whether an eigenvalue is zero or of the size of rounding."""
    match dynamics:
        case GradientFlow(time):
            horizon = time
        case GradientDescent(rate, steps):
            horizon = rate * steps
        case _:
            return
    if horizon * level > 1 and bool((s.abs() <= level).any()):
        raise SingularKernelError(
            f"the kernel is singular up to rounding ({level:.3g}), and a time of {horizon:.3g} is long enough for "
            "rounding to decide the outcome: take a shorter time, or Converged(ridge=1e-3)"
        )


def time_operator(matrix: Float[Tensor, "p p"], dynamics: Dynamics) -> Float[Tensor, "p p"]:
    """T(M, t) = M⁻¹(I − e^{−tM}) of Eqs. (8) and (13), its discrete twin, or (M + rI)⁻¹; float64, by eigh.

    Raises SingularKernelError for infinite time, or one beyond 1/rounding, on a kernel that is singular within
    the rounding of the dtype it came in, ValueRangeError where the loop diverges beyond the largest number, and
    as :func:`symmetrised`.
    """
    return _spectral(matrix, lambda s, level: learnt_values(s, dynamics, level), dynamics)


def residual_operator(matrix: Float[Tensor, "p p"], dynamics: Dynamics) -> Float[Tensor, "p p"]:
    """e^{−tM} of Eq. (95), its discrete twin (I − λM)^τ, or r(M + rI)⁻¹: what is left of the residual.

    Raises as :func:`time_operator`.
    """
    return _spectral(matrix, lambda s, level: residual_values(s, dynamics, level), dynamics)


def condition_number(kernel: Float[Tensor, "p p"]) -> float:
    """C = σ_max/σ_min of a kernel, Eq. (14).

    +inf, never a negative number or NaN, when the least eigenvalue is not positive beyond the rounding of
    the dtype that the kernel came in. Raises ShapeError or ValueRangeError for what is not a kernel.
    """
    eigenvalues = torch.linalg.eigvalsh(symmetrised(kernel))
    if float(eigenvalues[0]) <= rounding_level(eigenvalues, kernel.dtype):
        return math.inf
    return float(eigenvalues[-1] / eigenvalues[0])


def expand_outputs(kernel: Float[Tensor, "p q"], outputs: int) -> Float[Tensor, "pk qk"]:
    """K ⊗ I_k: the kernel of k independent outputs, sample-major and class-minor."""
    return torch.kron(kernel, torch.eye(outputs, dtype=kernel.dtype, device=kernel.device))
