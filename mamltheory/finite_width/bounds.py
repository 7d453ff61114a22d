"""The inequalities of Lemma 1 and Theorem 3, one function each.

σ_min and σ_max are the extreme eigenvalues of the limit kernel Φ; η0 = η l; K and R0 are the constants of
Lemmas 1 and 2. Kernels carry 1/l, parameters are in standard parameterisation.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ValueRangeError
from mamltheory.linalg import spectrum


def extreme_eigenvalues(kernel: Float[Tensor, "p p"]) -> tuple[float, float]:
    """(σ_min, σ_max) of a kernel."""
    eigenvalues = spectrum(kernel)
    return float(eigenvalues[0]), float(eigenvalues[-1])


def _check_positive(**constants: int | float) -> None:
    for name, value in constants.items():
        if not 0 < value < math.inf:
            raise ValueRangeError(
                f"{name} is {value}: the bounds of Theorem 3 need a positive, finite {name}"
            )


def theorem3_residual_bound(eta0: float, sigma_min: float, start: float, steps: int) -> Float[Tensor, " t"]:
    """(1 − η0 σ_min/3)^t R0, the bound (31) on ‖F_t − 𝒴‖.

    Args:
        eta0: η0.
        sigma_min: σ_min.
        start: R0 = ‖g(θ_0)‖.
        steps: the last step.

    Returns:
        The bound for t = 0 … ``steps``.

    Raises:
        ValueRangeError: η0 σ_min is not between 0 and 1, as η0 < 2/(σ_max + σ_min) implies.
    """
    _check_positive(eta0=eta0, sigma_min=sigma_min)
    if eta0 * sigma_min >= 1:
        raise ValueRangeError(
            f"eta0 · sigma_min is {eta0 * sigma_min:.3g}: Theorem 3 needs eta0 below 2/(sigma_max + sigma_min), "
            "and then it is below 1"
        )
    return start * (1 - eta0 * sigma_min / 3) ** torch.arange(steps + 1, dtype=torch.float64)


def theorem3_path_bound(lipschitz: float, start: float, sigma_min: float, width: int) -> float:
    """3 K R0 / (σ_min √l), the bound (29) on Σ_t ‖θ_t − θ_{t−1}‖; K is ``lipschitz``, R0 ``start``, l ``width``."""
    _check_positive(lipschitz=lipschitz, sigma_min=sigma_min, width=width)
    return 3 * lipschitz * start / (sigma_min * width**0.5)


def theorem3_drift_bound(lipschitz: float, start: float, sigma_min: float, width: int) -> float:
    """6 K³ R0 / (σ_min √l), the bound (30) on sup_t ‖Φ̂_t − Φ̂_0‖_F; K is ``lipschitz``, R0 ``start``, l ``width``."""
    _check_positive(lipschitz=lipschitz, sigma_min=sigma_min, width=width)
    return 6 * lipschitz**3 * start / (sigma_min * width**0.5)


def theorem3_least_width(lipschitz: float, start: float, sigma_min: float) -> float:
    """(18 K³ R0 / σ_min²)²: from this width on the drift bound (30) is at most σ_min/3, as Theorem 3's proof needs.

    The proof states the condition with the square, which is missing in Λ.

    Args:
        lipschitz: K, positive as all constants here.
        start: R0.
        sigma_min: σ_min.

    Returns:
        The least width.
    """
    _check_positive(lipschitz=lipschitz, start=start, sigma_min=sigma_min)
    return (18 * lipschitz**3 * start / sigma_min**2) ** 2


def exponential_lipschitz_constant(time: float, sigma_min: float) -> float:
    """K_2 = min{λ0 τ, 1/σ} of Eq. (78), corrected: ‖e^{−λ0τH} − e^{−λ0τH̄}‖ ≤ K_2 ‖H − H̄‖_F for H = ∇fᵀ∇f/l.

    The bound by λ0τ is Duhamel's formula. The bound by 1/σ is uniform in τ, by divided differences: the pair of two
    null vectors, whose divided difference is −λ0τ, does not contribute.

    Args:
        time: λ0 τ; infinite if the inner loop converges.
        sigma_min: σ, the least eigenvalue of the two support kernels Θ̂(X', X') = ∇f∇fᵀ/l; 0 where one is singular.

    Returns:
        K_2.

    Raises:
        ValueRangeError: a negative argument, or infinite time at σ = 0, which bounds nothing.
    """
    if not (time >= 0 and sigma_min >= 0) or (math.isinf(time) and sigma_min == 0):
        raise ValueRangeError(
            f"time is {time}, sigma_min is {sigma_min}: expected at least 0 each, and a finite time where a support "
            "kernel is singular; shorten the time or remove duplicate support samples"
        )
    return time if sigma_min == 0 else min(time, 1 / sigma_min)


def lemma1_lipschitz_constant(k0: float, k1: float, k2: float, rows: int, tasks: int) -> float:
    """K = √N max{K_0, √(nk) (K_1 + 2 K_0² K_1 K_2)} of Lemma 1, Eqs. (66) and (81), for the Jacobian of N tasks.

    The factor √N, which is missing in the proof, carries the constants of one task to the stacked Jacobian.

    Args:
        k0: bound of ∇f/√l on the samples of one task, Eq. (64).
        k1: Lipschitz constant of ∇f/√l on these samples, Eq. (73).
        k2: :func:`exponential_lipschitz_constant`.
        rows: nk, the number of outputs of one task.
        tasks: N.

    Returns:
        K.

    Raises:
        ValueRangeError: a constant is negative or infinite.
    """
    for name, value in {"k0": k0, "k1": k1, "k2": k2}.items():
        if not 0 <= value < math.inf:
            raise ValueRangeError(f"{name} is {value}: expected a finite constant of at least 0")
    _check_positive(rows=rows, tasks=tasks)
    return tasks**0.5 * max(k0, rows**0.5 * (k1 + 2 * k0**2 * k1 * k2))
