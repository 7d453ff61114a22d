"""Powers of the width, fitted: log-log slopes with confidence intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mamltheory.errors import ShapeError, ValueRangeError


@dataclass(frozen=True)
class PowerLaw:
    """value ≈ prefactor · width^slope, with a 95 % confidence interval [low, high] of the slope."""

    slope: float
    low: float
    high: float
    prefactor: float

    def __call__(self, widths: Sequence[int | float]) -> np.ndarray:
        """The fitted line at these widths."""
        return self.prefactor * np.asarray(widths, float) ** self.slope


def root_mean_square(values: np.ndarray) -> np.ndarray:
    """√(mean of squares) over the last axis (the seeds): the scale of a fluctuation, at every width."""
    return np.asarray(np.sqrt(np.mean(np.square(values), axis=-1)))


def fit_power_law(widths: Sequence[int | float], values: np.ndarray) -> PowerLaw:
    """Least squares of log value on log width over all seeds, with Student's interval of the slope.

    With several seeds the residuals about the line are the scatter of the seeds, which is nearly the same at every
    width on the logarithmic scale.

    Args:
        widths: the widths.
        values: widths × seeds, or one value per width.

    Returns:
        The fitted power law.

    Raises:
        ShapeError: fewer than three values or two widths, or values that are not laid out by width.
        ValueRangeError: widths or values that have no logarithm.
    """
    values = np.asarray(values, float)
    if values.ndim not in (1, 2) or len(values) != len(widths):
        raise ShapeError(
            f"values has shape {values.shape} for {len(widths)} widths: expected widths × seeds, or one per width"
        )
    values = values.reshape(len(widths), -1)
    if values.size < 3 or len(set(widths)) < 2:
        raise ShapeError(
            f"got {values.size} values at {len(set(widths))} widths: a slope needs 3 values at 2 widths"
        )
    if not all((np.isfinite(part) & (part > 0)).all() for part in (values, np.asarray(widths, float))):
        raise ValueRangeError("a power law can only be fitted to positive, finite widths and values")
    x = np.repeat(np.log(np.asarray(widths, float)), values.shape[1])
    y = np.log(values).reshape(-1)
    fit = stats.linregress(x, y)
    # not fit.stderr, which is NaN where all values are equal
    scatter = np.sum((y - fit.intercept - fit.slope * x) ** 2) / (len(x) - 2)
    half = stats.t.ppf(0.975, len(x) - 2) * np.sqrt(scatter / np.sum((x - x.mean()) ** 2))
    return PowerLaw(
        float(fit.slope), float(fit.slope - half), float(fit.slope + half), float(np.exp(fit.intercept))
    )
