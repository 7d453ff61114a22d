"""Errata of the paper's matrix algebra: each printed form is shown to fail by a margin, and the corrected one to hold.

Perturbations of the matrix exponential (78), its derivative (53), and the singular values of (61)–(63).
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import FullyConnected, generator
from mamltheory.bounds import exponential_lipschitz_constant, extreme_eigenvalues
from mamltheory.errors import ValueRangeError
from mamltheory.kernels.empirical import gram, jacobian
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.reference.dense import Dense
from tests.reference.matrix_functions import (
    commuting_derivative,
    exponential,
    exponential_derivative,
    exponential_difference,
    operator_norm,
)
from tests.strategies import kernels, rotation, seeds

ROUNDING = 1 + 1e-9
few = settings(max_examples=25)
times = st.floats(-2, 3).map(lambda exponent: 10.0**exponent)


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def draws(seed, name, *shape):
    return torch.randn(*shape, generator=generator(seed, name), dtype=torch.float64)


def printed_lines_of_78(h, other, time):
    """The right-hand sides of the first two lines of Eq. (78)."""
    change, top = operator_norm(h - other), operator_norm(h)
    return change * time * math.exp(-time * (top - change)), change / (top - change)


@st.composite
def support_jacobians(draw):
    """∇f(X')/√l at two parameters, nearly equal or not at all: rows × D with fewer rows than D."""
    rows = draw(st.integers(1, 3))
    shape, seed = (rows, rows + draw(st.integers(1, 3))), draw(seeds)
    first = draws(seed, "first", *shape)
    return first, first + 10.0 ** draw(st.floats(-4, 1)) * draws(seed, "second", *shape)


# --- Eq. (78) ---


@pytest.mark.paper("Eq. (78)", corrected=True)
@pytest.mark.erratum("E5")
@pytest.mark.parametrize(
    ("h", "other", "time", "difference"),
    [
        (diagonal(10, 0), diagonal(10, 0.1), 1.0, 9.516e-2),
        (diagonal(10, 0), diagonal(10, 0.1), 1000.0, 1.0),
        (diagonal(10, 1e-3, 0), diagonal(10, 0.1, 0), 1000.0, 0.3679),  # rank 2 of 3, as H = ∇fᵀ∇f/l has
    ],
)
def test_the_change_of_the_matrix_exponential_is_not_governed_by_the_largest_eigenvalue(
    h, other, time, difference, measured
):
    """Both printed lines decay with ‖H‖; the least eigenvalue decides, and there λτ‖ΔH‖ is the bound."""
    true = operator_norm(exponential(h, time) - exponential(other, time))
    first, second = printed_lines_of_78(h, other, time)
    assert true == pytest.approx(difference, rel=1e-3)
    assert true > 1e4 * first
    measured("change of e^{−λτH} over the second printed line", true / second, above=9)
    measured("change of e^{−λτH} over λτ‖ΔH‖", true / (time * operator_norm(h - other)), below=1)


@pytest.mark.paper("Eq. (78)", corrected=True)
@pytest.mark.erratum("E5")
def test_a_large_hessian_alone_makes_no_lipschitz_constant_that_is_uniform_in_time():
    """The third line of (78) infers O(‖ΔH‖) from ‖H‖ = Ω(1); the quotient is 1/‖ΔH‖, and only σ_min bounds it."""
    for change in (1e-1, 1e-2, 1e-3):
        h, other = diagonal(10, 0), diagonal(10, change)
        true = operator_norm(exponential(h, 100 / change) - exponential(other, 100 / change))
        assert true / change == pytest.approx(1 / change, rel=1e-9)
        full, moved = diagonal(10, 1), diagonal(10, 1 + change)
        for time in (0.1, 1.0, 10.0, 1000.0):
            assert operator_norm(exponential(full, time) - exponential(moved, time)) <= change


@pytest.mark.paper("Eq. (78)", corrected=True)
@pytest.mark.erratum("E5")
@settings(max_examples=150)
@given(support_jacobians(), times)
def test_the_matrix_exponential_changes_by_at_most_the_time_and_the_inverse_gap_times_the_change(pair, time):
    h, other = (j.T @ j for j in pair)
    change, gap = h - other, min(extreme_eigenvalues(j @ j.T)[0] for j in pair)
    difference = exponential_difference(h, other, time)
    by_subtraction = exponential(h, time) - exponential(other, time)
    assert float((difference - by_subtraction).norm()) < EXACT * (1 + time * operator_norm(h))
    assert operator_norm(difference) <= time * operator_norm(change) * ROUNDING
    uniform = exponential_lipschitz_constant(time, max(gap, 0.0)) * float(change.norm())
    assert float(difference.norm()) <= uniform * ROUNDING


@pytest.mark.paper("Eq. (78)", corrected=True)
@pytest.mark.erratum("E5")
def test_neither_bound_on_the_change_of_the_matrix_exponential_can_be_improved():
    """λτ is attained by short times, 1/s by a rotation of the range at long times."""
    h, other = diagonal(0, 0), diagonal(1e-6, 0)
    short = operator_norm(exponential(h, 1.0) - exponential(other, 1.0))
    assert 0.999999 < short / (exponential_lipschitz_constant(1.0, 0.0) * 1e-6) <= ROUNDING
    v, w = (rotation(3, seed)[:, :1] for seed in (0, 1))
    h, other = 0.3 * v @ v.T, 0.3 * w @ w.T
    long = float((exponential(h, 200.0) - exponential(other, 200.0)).norm())
    assert (
        0.999999 < long / (exponential_lipschitz_constant(200.0, 0.3) * float((h - other).norm())) <= ROUNDING
    )
    assert exponential_lipschitz_constant(math.inf, 0.5) == 2.0
    with pytest.raises(ValueRangeError, match="singular"):
        exponential_lipschitz_constant(math.inf, 0.0)


# --- Eqs. (44)–(47) and (53) ---


@pytest.mark.paper("Eq. (53)", corrected=True)
@pytest.mark.erratum("E16")
@few
@given(kernels(condition=20, largest_size=5), seeds, st.floats(0.3, 3))
def test_the_derivative_of_the_matrix_exponential_needs_its_argument_on_both_sides(
    kernel, seed, relative_time
):
    """−λτ ∫₀¹ e^{−(1−s)λτΘ} ∂Θ e^{−sλτΘ} ds; the printed −λτ e^{−λτΘ} ∂Θ is right only where the two commute."""
    theta, s = kernel
    time = relative_time / float(s.max())
    direction = draws(seed, "direction", len(theta), len(theta))
    direction = direction + direction.T
    true = torch.func.jvp(lambda m: exponential(m, time), (theta,), (direction,))[1]
    assert relative(exponential_derivative(theta, direction, time), true) < EXACT
    nodes, weights = np.polynomial.legendre.leggauss(20)
    integral = sum(
        weight / 2 * exponential(theta, (1 - u) * time) @ direction @ exponential(theta, u * time)
        for u, weight in zip((nodes + 1) / 2, weights, strict=True)
    )
    assert relative(-time * integral, true) < EXACT
    assert operator_norm(true) <= time * operator_norm(direction) * ROUNDING  # enough for the bound (53)
    commuting = theta @ theta / s.max()
    moved = exponential_derivative(theta, commuting, time)
    assert relative(commuting_derivative(theta, commuting, time), moved) < EXACT


def kernel_along(net, params, direction, x1, x2):
    """(Θ̂_θ(x1, x2), its derivative when θ moves in the direction)."""

    def kernel(theta):
        return gram(jacobian(net.model, theta, x1), jacobian(net.model, theta, x2)) / net.model.scale

    return torch.func.jvp(kernel, (params,), (direction,))


@pytest.mark.paper("Eq. (44)", "Eq. (45)", "Eq. (46)", "Eq. (47)")
@pytest.mark.paper("Eq. (53)", corrected=True)
@pytest.mark.erratum("E16")
@pytest.mark.parametrize("activation", ["erf", "tanh"])
def test_the_product_rule_of_lemma_5_holds_on_a_network_and_its_last_term_is_not_as_printed(activation):
    net, time = FullyConnected(4, 6, 2, 1, activation), 0.8
    params, g = start(net), generator(3, "product rule")
    direction = {n: torch.randn(p.shape, generator=g, dtype=p.dtype) for n, p in params.items()}
    x, support = sphere(g, 2, 4), sphere(g, 3, 4)
    residual = torch.randn(3, generator=g, dtype=torch.float64)

    def adaptation(theta):
        rows = jacobian(net.model, theta, support)
        cross = gram(jacobian(net.model, theta, x), rows) / net.model.scale
        kernel = gram(rows, rows) / net.model.scale
        learnt = torch.eye(3).double() - exponential(kernel, time)
        return cross @ torch.linalg.inv(kernel) @ learnt @ residual

    whole = torch.func.jvp(adaptation, (params,), (direction,))[1]
    cross, cross_moved = kernel_along(net, params, direction, x, support)
    theta, theta_moved = kernel_along(net, params, direction, support, support)
    inverse, left = torch.linalg.inv(theta), exponential(theta, time)
    learnt = torch.eye(3).double() - left
    common = cross_moved @ inverse @ learnt - cross @ inverse @ theta_moved @ inverse @ learnt  # (45) + (46)
    correct = common - cross @ inverse @ exponential_derivative(theta, theta_moved, time)
    printed = common - cross @ inverse @ commuting_derivative(theta, theta_moved, time)
    assert relative(correct @ residual, whole) < EXACT
    assert relative(printed @ residual, whole) > 0.01
    wrong = commuting_derivative(theta, theta_moved, time)
    assert relative(wrong, wrong.T) > 0.1  # and the printed derivative of a symmetric matrix is not symmetric


# --- Eqs. (61)–(63) ---


@pytest.mark.paper("App. B.2: SVD")
@pytest.mark.paper("Eq. (61)", "Eq. (62)", corrected=True)
@pytest.mark.erratum("E13")
@few
@given(st.integers(1, 3), st.integers(0, 3), seeds, st.floats(0.3, 1))
def test_the_singular_values_of_the_jacobian_enter_the_exponential_squared(rows, extra, seed, time):
    sigma = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64)[:rows]
    u, v = rotation(rows, seed), rotation(rows + extra, seed + 1)[:, :rows]
    support, query = (u * sigma) @ v.T, draws(seed, "query", 2, rows + extra)
    theta, h = support @ support.T, support.T @ support

    def through_svd(values):
        return (u * torch.exp(-time * values)) @ u.T, query - query @ (
            v * (1 - torch.exp(-time * values))
        ) @ v.T

    exact = exponential(theta, time), query @ exponential(h, time)
    for squared, printed, true in zip(through_svd(sigma**2), through_svd(sigma), exact, strict=True):
        assert relative(squared, true) < EXACT
        moved = torch.eye(rows).double() - true if true is exact[0] else query - true
        assert float((printed - true).norm() / moved.norm()) > 0.05


@pytest.mark.paper("Eq. (63)", "Eq. (65)")
@pytest.mark.paper("Remark after Eq. (62)", corrected=True)
@pytest.mark.erratum("E14")
@few
@given(seeds, times, st.sampled_from([1, 2]))
def test_the_exponential_of_the_hessian_keeps_all_directions_without_samples_and_contracts(seed, time, k):
    """Its eigenvalues lie in (0, 1], and 1, excluded in print, has multiplicity D − km; (63) holds all the same."""
    net = FullyConnected(3, 3, 1, k)
    dense, task = Dense(net, start(net, seed)), make_tasks(net, 1, seed)[0]
    rows = dense.jacobian(dense.theta0, task.support_x) / dense.scale**0.5
    rank = int(torch.linalg.matrix_rank(rows))
    left = exponential(rows.T @ rows, time)
    eigenvalues = torch.linalg.eigvalsh(left)
    slowest = extreme_eigenvalues(rows @ rows.T)[0]
    assert rank == k * len(task.support_x) < len(left)
    assert int((eigenvalues > 1 - 1e-12 * (1 + time)).sum()) >= len(left) - rank > 0
    if time * slowest > 1e-6:
        assert int((eigenvalues > 1 - 1e-7).sum()) == len(left) - rank
    assert float(eigenvalues.max()) == pytest.approx(1, abs=1e-10)
    assert float(eigenvalues.min()) > -1e-12
    query = dense.jacobian(dense.theta0, task.query_x)
    assert float((query @ left).norm()) <= float(query.norm()) * ROUNDING
    scaled = query / dense.scale**0.5  # (65) divides (63) by √l
    assert float((scaled @ left).norm()) <= float(scaled.norm()) * ROUNDING
