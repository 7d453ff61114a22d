"""T(s) and ρ(s) of one eigenvalue in 50-digit arithmetic, from the same binary numbers."""

import mpmath

from mamltheory import Converged, GradientDescent, GradientFlow

DIGITS = 50


def residual(s, dynamics):
    """ρ(s) as an mpf."""
    with mpmath.workdps(DIGITS):
        s = mpmath.mpf(s)
        match dynamics:
            case GradientFlow(time):
                return mpmath.exp(-mpmath.mpf(time) * s)
            case GradientDescent(rate, steps):
                return (1 - mpmath.mpf(rate) * s) ** steps
            case Converged(ridge):
                return mpmath.mpf(ridge) / (s + mpmath.mpf(ridge))


def learnt(s, dynamics):
    """T(s) = (1 − ρ(s))/s as an mpf, with its limit at s = 0."""
    with mpmath.workdps(DIGITS):
        s = mpmath.mpf(s)
        match dynamics:
            case GradientFlow(time):
                return -mpmath.expm1(-mpmath.mpf(time) * s) / s if s else mpmath.mpf(time)
            case GradientDescent(rate, steps):
                rate = mpmath.mpf(rate)
                # term by term: in fifty digits 1 − (1 − λs)^τ would cancel for λs = 1e-300
                if rate * s < mpmath.mpf("1e-30"):
                    return rate * steps * (1 - rate * s * (steps - 1) / 2)
                return (1 - (1 - rate * s) ** steps) / s
            case Converged(ridge):
                return 1 / (s + mpmath.mpf(ridge))
