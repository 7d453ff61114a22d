"""The inequalities of Theorem 3, one function each, and the learning rates under which they are stated.

σ_min and σ_max are the extreme eigenvalues of the limit kernel Φ; η0 = η l; K and R0 are the constants of
Lemmas 1 and 2. Kernels carry 1/l, parameters are in standard parameterisation.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import SingularKernelError, ValueRangeError
from mamltheory.linalg import symmetrised


def extreme_eigenvalues(kernel: Float[Tensor, "p p"]) -> tuple[float, float]:
    """(σ_min, σ_max) of a kernel."""
    eigenvalues = torch.linalg.eigvalsh(symmetrised(kernel))
    return float(eigenvalues[0]), float(eigenvalues[-1])


def largest_rate(kernel: Float[Tensor, "p p"]) -> float:
    """2/(σ_max + σ_min): η0 must stay below it in Theorem 3, and at it ‖I − η0 Φ‖ is smallest.

    Raises SingularKernelError for a kernel without positive eigenvalues, which bounds no rate.
    """
    low, high = extreme_eigenvalues(kernel)
    if high + low <= 0:
        raise SingularKernelError(
            f"the kernel's eigenvalues lie in [{low:.3g}, {high:.3g}]: expected a positive semi-definite kernel "
            "that is not zero"
        )
    return 2 / (high + low)


def _check_positive(**constants: int | float) -> None:
    for name, value in constants.items():
        if not 0 < value < math.inf:
            raise ValueRangeError(
                f"{name} is {value}: the bounds of Theorem 3 need a positive, finite {name}"
            )


def theorem3_residual_bound(eta0: float, sigma_min: float, start: float, steps: int) -> Float[Tensor, " t"]:
    """(1 − η0 σ_min/3)^t ‖g(θ_0)‖ for t = 0 … steps, the bound (31) on ‖F_t − 𝒴‖ with R0 = ``start``.

    Raises ValueRangeError unless 0 < η0 σ_min < 1, as η0 < 2/(σ_max + σ_min) implies.
    """
    _check_positive(eta0=eta0, sigma_min=sigma_min)
    if eta0 * sigma_min >= 1:
        raise ValueRangeError(
            f"eta0 · sigma_min is {eta0 * sigma_min:.3g}: Theorem 3 needs eta0 below 2/(sigma_max + sigma_min), "
            "and then it is below 1"
        )
    return start * (1 - eta0 * sigma_min / 3) ** torch.arange(steps + 1, dtype=torch.float64)


def theorem3_path_bound(lipschitz: float, start: float, sigma_min: float, width: int) -> float:
    """3 K R0 / (σ_min √l), the bound (29) on Σ_t ‖θ_t − θ_{t−1}‖.

    Raises ValueRangeError for constants that are not positive.
    """
    _check_positive(lipschitz=lipschitz, sigma_min=sigma_min, width=width)
    return 3 * lipschitz * start / (sigma_min * width**0.5)


def theorem3_drift_bound(lipschitz: float, start: float, sigma_min: float, width: int) -> float:
    """6 K³ R0 / (σ_min √l), the bound (30) on sup_t ‖Φ̂_t − Φ̂_0‖_F.

    Raises ValueRangeError for constants that are not positive.
    """
    _check_positive(lipschitz=lipschitz, sigma_min=sigma_min, width=width)
    return 6 * lipschitz**3 * start / (sigma_min * width**0.5)
