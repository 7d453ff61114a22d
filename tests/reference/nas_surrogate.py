"""The ridge by augmented least squares, and leave-one-out by fitting again without each sample."""

import numpy as np


def ridge(x, y, penalty):
    """(weights, intercept) that minimise |y − Xw − b|² + penalty |w|²."""
    n, d = x.shape
    rows = np.block([[x, np.ones((n, 1))], [np.sqrt(penalty) * np.eye(d), np.zeros((d, 1))]])
    solution = np.linalg.lstsq(rows, np.concatenate([y, np.zeros(d)]), rcond=None)[0]
    return solution[:-1], solution[-1]


def left_out_errors(x, y, penalty):
    """The error at every sample of the ridge that is fitted to the others."""
    errors = []
    for i in range(len(y)):
        weights, intercept = ridge(np.delete(x, i, 0), np.delete(y, i), penalty)
        errors.append(y[i] - (x[i] @ weights + intercept))
    return np.array(errors)


def best_penalty(x, y, penalties):
    """The penalty with the least mean squared leave-one-out error."""
    return min(penalties, key=lambda penalty: (left_out_errors(x, y, penalty) ** 2).mean())
