import math

import pytest
from hypothesis import given, settings

from mamltheory.errors import ValueRangeError
from mamltheory.finite_width.bounds import (
    exponential_lipschitz_constant,
    extreme_eigenvalues,
    lemma1_lipschitz_constant,
    theorem3_drift_bound,
    theorem3_least_width,
    theorem3_path_bound,
    theorem3_residual_bound,
)
from tests.strategies import as_users_run_it, kernels


@settings(max_examples=20)
@given(kernels())
def test_the_extreme_eigenvalues_are_those_of_the_spectrum(kernel):
    matrix, s = kernel
    low, high = extreme_eigenvalues(matrix)
    assert (low, high) == (pytest.approx(float(s.min()), rel=1e-9), pytest.approx(float(s.max()), rel=1e-9))


@pytest.mark.paper("Eq. (31)")
def test_the_residual_bound_starts_at_the_residual_and_shrinks_by_a_constant_factor():
    bound = theorem3_residual_bound(eta0=0.5, sigma_min=0.6, start=3.0, steps=4)
    assert bound.tolist() == pytest.approx([3.0 * 0.9**t for t in range(5)], rel=1e-14)


@pytest.mark.paper("Eq. (29)", "Eq. (30)")
def test_path_and_drift_bounds_fall_with_the_root_of_the_width():
    """3·2·5/(0.5·√64) = 7.5 and 6·2³·5/(0.5·√64) = 60."""
    assert theorem3_path_bound(2.0, 5.0, 0.5, 64) == 7.5
    assert theorem3_drift_bound(2.0, 5.0, 0.5, 64) == 60
    for bound in (theorem3_path_bound, theorem3_drift_bound):
        assert bound(2.0, 5.0, 0.5, 256) == pytest.approx(bound(2.0, 5.0, 0.5, 64) / 2)
        assert bound(2.0, 10.0, 0.5, 64) == pytest.approx(2 * bound(2.0, 5.0, 0.5, 64))
        assert bound(2.0, 5.0, 1.0, 64) == pytest.approx(bound(2.0, 5.0, 0.5, 64) / 2)


@pytest.mark.parametrize("sigma_min", [0.0, -1e-17, math.nan, math.inf])
def test_a_singular_kernel_has_no_bounds(sigma_min):
    for bound in (theorem3_path_bound, theorem3_drift_bound):
        with pytest.raises(ValueRangeError, match="sigma_min"):
            bound(1.0, 1.0, sigma_min, 64)
    with pytest.raises(ValueRangeError, match="sigma_min"):
        theorem3_residual_bound(0.1, sigma_min, 1.0, 3)


def test_a_rate_beyond_theorem_3_has_no_bound():
    with pytest.raises(ValueRangeError, match="below 1"):
        theorem3_residual_bound(eta0=4.0, sigma_min=1.0, start=1.0, steps=3)
    with pytest.raises(ValueRangeError, match="eta0"):
        theorem3_residual_bound(eta0=0.0, sigma_min=1.0, start=1.0, steps=3)


def test_the_constant_of_lemma_1_is_that_by_hand():
    """√9 max{3, √9 (3 + 2 · 9 · 3 · ½)} = 3 · 3 · 30, and √9 · 1000 where K_0 is the largest."""
    assert lemma1_lipschitz_constant(k0=3.0, k1=3.0, k2=0.5, rows=9, tasks=9) == 270
    assert lemma1_lipschitz_constant(k0=1000.0, k1=0.0, k2=0.5, rows=9, tasks=9) == 3000


CONSTANTS = {"lipschitz": 2.0, "start": 5.0, "sigma_min": 0.5, "width": 16}
BOUNDS = {
    theorem3_path_bound: (("lipschitz", "start", "sigma_min", "width"), 3 * 2 * 5 / (0.5 * 4)),
    theorem3_drift_bound: (("lipschitz", "start", "sigma_min", "width"), 6 * 8 * 5 / (0.5 * 4)),
    theorem3_least_width: (("lipschitz", "start", "sigma_min"), (18 * 8 * 5 / 0.25) ** 2),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_bounds_are_those_by_hand_and_need_positive_finite_constants(bound):
    names, value = BOUNDS[bound]
    arguments = {name: CONSTANTS[name] for name in names}
    assert bound(**arguments) == pytest.approx(value, rel=1e-15)
    for name in names if bound is theorem3_least_width else set(names) - {"start"}:
        for wrong in (0.0, -1.0, math.inf, math.nan):
            with as_users_run_it(), pytest.raises(ValueRangeError, match=f"{name} is"):
                bound(**{**arguments, name: wrong})


def test_the_residual_bound_is_that_by_hand():
    found = theorem3_residual_bound(eta0=1.5, sigma_min=0.5, start=8.0, steps=2)
    assert found.tolist() == [8.0, 6.0, 4.5]
    for wrong in ({"eta0": 0.0}, {"sigma_min": -1.0}, {"eta0": math.nan}):
        with pytest.raises(ValueRangeError, match="need a positive, finite"):
            theorem3_residual_bound(**{"eta0": 0.1, "sigma_min": 0.5, "start": 1.0, "steps": 2, **wrong})
    with pytest.raises(ValueRangeError, match="eta0 below"):
        theorem3_residual_bound(2.0, 0.5, 1.0, 2)


def test_the_constant_of_the_exponential_is_the_smaller_of_time_and_one_over_the_least_eigenvalue():
    assert exponential_lipschitz_constant(3.0, 0.5) == 2.0
    assert exponential_lipschitz_constant(1.5, 0.5) == 1.5
    assert exponential_lipschitz_constant(math.inf, 0.25) == 4.0
    assert exponential_lipschitz_constant(7.0, 0.0) == 7.0
    assert exponential_lipschitz_constant(0.0, 0.0) == 0.0
    for time, least in ((-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.nan), (math.inf, 0.0)):
        with pytest.raises(ValueRangeError, match="expected at least 0 each"):
            exponential_lipschitz_constant(time, least)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({name: value}, name) for name in ("k0", "k1", "k2") for value in (-0.1, math.inf, math.nan)]
    + [({name: value}, name) for name in ("rows", "tasks") for value in (0, math.inf)],
)
def test_lemma_1_needs_finite_constants(wrong, message):
    arguments = {"k0": 0.0, "k1": 0.0, "k2": 0.0, "rows": 1, "tasks": 1}
    assert lemma1_lipschitz_constant(**arguments) == 0.0
    with as_users_run_it(), pytest.raises(ValueRangeError, match=f"{message} is"):
        lemma1_lipschitz_constant(**{**arguments, **wrong})
