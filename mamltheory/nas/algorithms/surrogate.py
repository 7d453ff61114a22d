"""A ridge regression of accuracy on the numbers of operations in a cell: what a table knows of cells not in it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import CELL_TYPES, Genotype

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
FEWEST = 8


def operation_counts(genotype: Genotype) -> Float[np.ndarray, " counts"]:
    """How often each operation of its space occurs in the normal and in the reduction cell."""
    edges = genotype.edges()
    names = [[name for *_, name in edges[kind]] for kind in CELL_TYPES]
    return np.array([each.count(name) for each in names for name in genotype.space.operations], dtype=float)


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A linear prediction of accuracy.

    Attributes:
        weights: per operation count.
        intercept: the prediction for a cell with the mean counts is this plus their product with the weights.
        penalty: of the ridge, chosen by leave-one-out.
        explained: share of the variance that leave-one-out predictions explain, with the penalty chosen again for
            each of them; below zero if they are worse than the mean, and zero if all accuracies are equal.
    """

    weights: Float[np.ndarray, " counts"]
    intercept: float
    penalty: float
    explained: float

    def predict(self, genotypes: Sequence[Genotype]) -> Float[np.ndarray, " n"]:
        """The predicted accuracies."""
        return np.array([operation_counts(each) for each in genotypes]) @ self.weights + self.intercept


def fit_surrogate(genotypes: Sequence[Genotype], accuracies: Sequence[float]) -> Surrogate:
    """Fit the ridge, with a penalty that leave-one-out chooses.

    Args:
        genotypes: trained cells of about one size, at least 8.
        accuracies: of their networks.

    Returns:
        The prediction; its ``explained`` is from nested leave-one-out: nothing that was predicted took part in the
        choice of its penalty.

    Raises:
        ConfigurationError: fewer cells, or not one accuracy each.
    """
    if len(genotypes) < FEWEST or len(genotypes) != len(accuracies):
        raise ConfigurationError(
            f"got {len(genotypes)} cells and {len(accuracies)} accuracies: expected one each, for at least {FEWEST}"
        )
    x, y = np.array([operation_counts(each) for each in genotypes]), np.asarray(accuracies)
    left_out = np.empty(len(y))
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        weights, intercept = _ridge(x[others], y[others], _best_penalty(x[others], y[others]))
        left_out[i] = x[i] @ weights + intercept
    varies = bool(np.ptp(y) > 0)
    explained = 1 - float(((y - left_out) ** 2).sum() / ((y - y.mean()) ** 2).sum()) if varies else 0.0
    penalty = _best_penalty(x, y)
    return Surrogate(*_ridge(x, y, penalty), penalty, explained)


def _best_penalty(x: np.ndarray, y: np.ndarray) -> float:
    return min(PENALTIES, key=lambda penalty: _left_out_error(x, y, penalty))


def _left_out_error(x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Mean squared leave-one-out error of the ridge."""
    # With H = X(XᵀX + rI)⁻¹Xᵀ of the centred counts plus 11ᵀ/n for the intercept, the prediction of a left-out sample
    # has the error (y − Hy)ᵢ / (1 − Hᵢᵢ).
    centred, n = x - x.mean(0), len(y)
    hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T) + 1 / n
    return float((((y - hat @ y) / (1 - hat.diagonal())) ** 2).mean())


def _ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    mean = x.mean(0)
    centred = x - mean
    weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    return weights, float(y.mean() - mean @ weights)
