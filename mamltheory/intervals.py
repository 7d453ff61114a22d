"""A mean with its 95 % interval."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from mamltheory.errors import ShapeError


@dataclass(frozen=True)
class Interval:
    """A mean with the half-width of its two-sided 95 % interval."""

    mean: float
    half_width: float


def mean_interval(values: np.ndarray) -> Interval:
    """Mean and half-width t(0.975; n-1)·s/√n of at least two independent values."""
    if values.ndim != 1 or len(values) < 2:
        raise ShapeError(
            f"got values of shape {values.shape}: an interval needs at least two numbers in a row"
        )
    return Interval(float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)))
