"""The expected gain of a method over every set of cells that it can draw."""

import itertools

import numpy as np


def expected_gain_of_best(accuracies, scores, count):
    """Gain of the cell with the largest score among ``count`` cells, over all sets of so many cells."""
    chosen = [
        accuracies[max(drawn, key=lambda i: scores[i])]
        for drawn in itertools.combinations(range(len(scores)), count)
    ]
    return np.mean(chosen) - np.mean(accuracies)
