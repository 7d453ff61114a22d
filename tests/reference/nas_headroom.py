"""Analysis of variance by least squares on indicator columns, with the effects of networks and without them."""

import numpy as np
from scipy import stats


def f_test_of_networks(accuracies):
    """(F, p) of the hypothesis that all rows have one mean, when columns have effects as well."""
    n, tasks = accuracies.shape
    row, column = np.divmod(np.arange(n * tasks), tasks)
    of_tasks = np.eye(tasks)[column]
    both = np.column_stack([of_tasks, np.eye(n)[row][:, 1:]])
    squares = []
    for design in (of_tasks, both):
        fitted = design @ np.linalg.lstsq(design, accuracies.ravel(), rcond=None)[0]
        squares.append(((accuracies.ravel() - fitted) ** 2).sum())
    free = n * tasks - both.shape[1]
    ratio = (squares[0] - squares[1]) / (n - 1) / (squares[1] / free)
    return ratio, 1 - stats.f.cdf(ratio, n - 1, free)
