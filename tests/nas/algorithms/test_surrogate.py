"""The ridge on operation counts against augmented least squares and explicit refits."""

import numpy as np
import pytest

from mamltheory.errors import ConfigurationError
from mamltheory.nas.algorithms.surrogate import (
    PENALTIES,
    _best_penalty,
    _left_out_error,
    _ridge,
    fit_surrogate,
    operation_counts,
)
from mamltheory.nas.genotype import Cell, Genotype
from mamltheory.nas.operations import OPERATIONS
from mamltheory.rng import numpy_generator
from tests.nas.tables import genotypes
from tests.reference.nas_surrogate import best_penalty, left_out_errors, ridge


def cells(count=20, noise=0.02, signal=0.02, seed=0):
    """(genotypes, counts, accuracies): linear in the counts, with noise."""
    random = numpy_generator(seed, "surrogate")
    drawn = genotypes(count, seed)
    x = np.array([operation_counts(each) for each in drawn])
    weights = signal * random.standard_normal(14)
    return drawn, x, 0.6 + x @ weights + noise * random.standard_normal(count)


def test_counts_are_of_the_normal_and_then_of_the_reduction_cell():
    normal = Cell(
        (
            (("conv_3x3", 0), ("conv_3x3", 1)),
            (("skip_connect", 0), ("conv_3x3", 2)),
            (("conv_1x5_5x1", 0), ("avg_pool_3x3BN", 3)),
        )
    )
    reduce = Cell(tuple((("max_pool_3x3BN", 0), ("sep_conv_3x3", 1)) for _ in range(3)))
    expected = {("normal", "conv_3x3"): 3, ("normal", "skip_connect"): 1, ("normal", "conv_1x5_5x1"): 1}
    expected |= {
        ("normal", "avg_pool_3x3BN"): 1,
        ("reduce", "max_pool_3x3BN"): 3,
        ("reduce", "sep_conv_3x3"): 3,
    }
    names = [(kind, name) for kind in ("normal", "reduce") for name in OPERATIONS]
    found = operation_counts(Genotype(normal, reduce))
    assert found.tolist() == [expected.get(name, 0) for name in names]
    for genotype in genotypes(5):
        assert operation_counts(genotype).reshape(2, 7).sum(1).tolist() == [6, 6]


@pytest.mark.parametrize("penalty", [PENALTIES[0], 3.0, PENALTIES[-1]])
def test_leave_one_out_by_the_hat_matrix_is_that_of_refits(penalty):
    _, x, y = cells()
    assert _left_out_error(x, y, penalty) == pytest.approx(
        (left_out_errors(x, y, penalty) ** 2).mean(), rel=1e-9
    )
    weights, intercept = _ridge(x, y, penalty)
    expected_weights, expected_intercept = ridge(x, y, penalty)
    np.testing.assert_allclose(weights, expected_weights, atol=1e-10)
    assert intercept == pytest.approx(expected_intercept, rel=1e-9)


def test_the_penalty_is_chosen_by_refits_and_what_is_explained_by_nested_ones():
    assert PENALTIES == (0.1, 0.3, 1, 3, 10, 30, 100, 300)
    drawn, x, y = cells(12)
    found = fit_surrogate(drawn, y.tolist())
    assert found.penalty == best_penalty(x, y, PENALTIES)
    errors = []
    for i in range(len(y)):
        others, known = np.delete(x, i, 0), np.delete(y, i)
        weights, intercept = ridge(others, known, best_penalty(others, known, PENALTIES))
        errors.append(y[i] - x[i] @ weights - intercept)
    expected = 1 - (np.array(errors) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert found.explained == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(found.predict(drawn), x @ found.weights + found.intercept)


def test_the_penalty_is_small_for_a_signal_and_large_for_noise():
    _, x, y = cells(40, noise=1e-4)
    assert _best_penalty(x, y) == PENALTIES[0]
    random = numpy_generator(0, "noise")
    penalties = [_best_penalty(x, random.standard_normal(40)) for _ in range(9)]
    assert set(penalties) <= set(PENALTIES)
    assert np.median(penalties) >= 30


def test_a_planted_linear_truth_is_recovered_on_cells_that_were_not_seen():
    drawn, _, y = cells(60, noise=0.002)
    found = fit_surrogate(drawn[:40], y[:40].tolist())
    assert found.explained > 0.95
    truth = y[40:]
    predicted = found.predict(drawn[40:])
    assert 1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum() > 0.95


def test_of_pure_noise_nothing_is_explained():
    drawn = genotypes(40)
    shares = [
        fit_surrogate(drawn, numpy_generator(i, "pure noise").standard_normal(40).tolist()).explained
        for i in range(8)
    ]
    assert max(shares) < 0.3
    assert np.mean(shares) <= 0.1


def test_of_equal_accuracies_nothing_is_explained_and_all_are_predicted():
    drawn = genotypes(10)
    found = fit_surrogate(drawn, [0.7] * 10)
    assert found.explained == 0
    np.testing.assert_allclose(found.predict(genotypes(3, 1)), 0.7)


def test_too_few_cells_or_not_one_accuracy_each_are_refused():
    drawn = genotypes(9)
    for cells_of, accuracies in ((drawn[:7], [0.5] * 7), (drawn, [0.5] * 8)):
        with pytest.raises(ConfigurationError, match="expected one each, for at least 8"):
            fit_surrogate(cells_of, accuracies)
    assert fit_surrogate(drawn[:8], [0.5] * 8).explained == 0
