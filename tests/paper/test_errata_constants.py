"""The constants of Lemma 1 and the steps of Theorem 3's proof: those that hold line by line, and those to be corrected.

Every step is an inequality between matrices; the matrices are Jacobians of small networks, or drawn by their spectrum.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import FullyConnected, InnerLoop, analytic_meta_ntk, generator, meta_output, meta_outputs
from mamltheory.bounds import (
    exponential_lipschitz_constant,
    extreme_eigenvalues,
    largest_rate,
    lemma1_lipschitz_constant,
    theorem3_drift_bound,
    theorem3_least_width,
)
from mamltheory.errors import ValueRangeError
from mamltheory.kernels.empirical_meta import stacked_meta_jacobian
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.reference.dense import Dense, flatten, unflatten
from tests.reference.matrix_functions import exponential, operator_norm
from tests.strategies import kernels, seeds

ROUNDING = 1 + 1e-9
few = settings(max_examples=25)
times = st.floats(-2, 3).map(lambda exponent: 10.0**exponent)


def draws(seed, name, *shape):
    return torch.randn(*shape, generator=generator(seed, name), dtype=torch.float64)


# --- Lemma 1: Eqs. (66)–(81) ---


def jacobians_at_two_parameters(seed, distance, x, support):
    """∇f(X), ∇f(X') at θ_0 and at a random point at the given distance, and the width l."""
    net = FullyConnected(3, 6, 2, 1, "erf")
    dense = Dense(net, start(net, seed))
    step = draws(seed, "step", len(dense.theta0))
    moved = dense.theta0 + distance * step / step.norm()
    return [dense.jacobian(t, part) for part in (x, support) for t in (dense.theta0, moved)], dense.scale


@pytest.mark.paper(
    "Eq. (67)", "Eq. (68)", "Eq. (69)", "Eq. (70)", "Eq. (71)", "Eq. (72)", "Eq. (73)", "Eq. (74)"
)
@pytest.mark.paper("Eq. (75)", "Eq. (76)", "Eq. (77)", "Eq. (79)", "App. B.2: Lipschitz")
@pytest.mark.paper("Eq. (78)", "Eq. (80)", "Eq. (81)", corrected=True)
@pytest.mark.erratum("E5", "E21")
@few
@given(seeds, st.floats(-3, 0.5).map(lambda e: 10.0**e), times)
def test_every_line_of_lemma_1_holds_with_the_least_of_the_time_and_the_inverse_gap_for_k2(
    seed, distance, time
):
    """K_0 and K_1 are taken as small as the two parameters allow, so that no line has slack from the constants."""
    g = generator(seed, "samples")
    parts, width = jacobians_at_two_parameters(seed, distance, sphere(g, 2, 3), sphere(g, 3, 3))
    grad, grad_, sup, sup_ = parts
    h, h_ = sup.T @ sup / width, sup_.T @ sup_ / width
    e, e_ = exponential(h, time), exponential(h_, time)
    k0 = max(float(part.norm()) for part in parts) / width**0.5
    k1 = max(float((a - b).norm()) for a, b in ((grad, grad_), (sup, sup_))) / width**0.5 / distance
    gap = min(extreme_eigenvalues(part @ part.T / width)[0] for part in (sup, sup_))
    k2 = exponential_lipschitz_constant(time, max(gap, 0.0))
    split = ((grad - grad_) @ (e + e_) + (grad + grad_) @ (e - e_)) / 2
    assert relative(split, grad @ e - grad_ @ e_) < EXACT  # (68)
    split = ((sup + sup_).T @ (sup - sup_) + (sup - sup_).T @ (sup + sup_)) / (2 * width)
    assert relative(split, h - h_) < EXACT  # the first step of (77)
    op = operator_norm
    line_69 = (op(grad - grad_) * op(e + e_) + op(grad + grad_) * op(e - e_)) / 2
    line_70, line_71 = op(grad - grad_) * (op(e) + op(e_)) / 2, (op(grad) + op(grad_)) * op(e - e_) / 2
    line_75, line_79 = k1 * width**0.5 * distance, 2 * width**0.5 * k0**2 * k1 * k2 * distance
    chain = [op(grad @ e - grad_ @ e_), line_69, line_70 + line_71, line_75 + line_79]
    assert all(left <= right * ROUNDING for left, right in itertools.pairwise(chain))
    assert op(grad - grad_) <= float((grad - grad_).norm()) * ROUNDING  # (72), (74)
    assert line_70 <= line_75 * ROUNDING
    assert (op(grad) + op(grad_)) / 2 <= width**0.5 * k0 * ROUNDING  # (76)
    assert float((h - h_).norm()) <= 2 * k0 * k1 * distance * ROUNDING  # (77)
    assert op(e - e_) <= 2 * k0 * k1 * k2 * distance * ROUNDING  # (78)
    assert line_71 <= line_79 * ROUNDING
    frobenius = float((grad @ e - grad_ @ e_).norm()) / width**0.5
    assert (
        frobenius <= lemma1_lipschitz_constant(k0, k1, k2, rows=2, tasks=1) * distance * ROUNDING
    )  # (80), (81)


@pytest.mark.paper("Eq. (66)", "Eq. (80)", "Eq. (81)", corrected=True)
@pytest.mark.erratum("E21")
@pytest.mark.parametrize("count", [2, 4])
def test_the_stacked_jacobian_needs_the_constants_of_one_task_times_the_root_of_their_number(count, measured):
    """Without inner steps (K_2 = 0) and with one output per task both printed constants are attained, but for √N."""
    net = FullyConnected(4, 8, 2, 1)
    params, moved = start(net), start(net, 1)
    distance = float((flatten(params) - flatten(moved)).norm())
    rest = InnerLoop(0.0, 1)

    def stacked(tasks):
        pair = [stacked_meta_jacobian(net.model, theta, tasks, rest) for theta in (params, moved)]
        rows, other = ({n: v.flatten(1) / net.model.scale**0.5 for n, v in part.items()} for part in pair)
        rows, other = (torch.cat([part[n] for n in params], 1) for part in (rows, other))
        return float(rows.norm()), float((rows - other).norm()) / distance

    single = make_tasks(net, 1, n=1)[0]
    k0, k1 = stacked([single])
    size, slope = stacked([single] * count)
    assert (size, slope) == (pytest.approx(count**0.5 * k0), pytest.approx(count**0.5 * k1))
    measured("‖J‖ over the printed K0 √l", size / k0, above=1.4)
    measured("‖J‖ over √N K0 √l", size / (count**0.5 * k0), below=ROUNDING)
    assert slope > 1.4 * lemma1_lipschitz_constant(0.0, k1, 0.0, rows=1, tasks=1)
    assert size == pytest.approx(lemma1_lipschitz_constant(k0, 0.0, 0.0, rows=1, tasks=count))
    assert slope == pytest.approx(lemma1_lipschitz_constant(0.0, k1, 0.0, rows=1, tasks=count))
    different = make_tasks(net, count + count % 2, n=1)[::2]
    each = [stacked([task]) for task in different]
    size, slope = stacked(different)
    assert size <= len(each) ** 0.5 * max(a for a, _ in each) * ROUNDING
    assert slope <= len(each) ** 0.5 * max(b for _, b in each) * ROUNDING
    with pytest.raises(ValueRangeError, match="k1 is -1"):
        lemma1_lipschitz_constant(k0, -1.0, 0.0, rows=1, tasks=1)


# --- The proof of Theorem 3 ---


def best_single_derivative(derivative, change, points):
    """min_μ ‖g(1) − g(0) − g'(μ)‖ over a grid of μ."""
    return min(float((change - derivative(mu)).norm()) for mu in points)


def integral(derivative, nodes):
    """∫₀¹ g'(s) ds by Gauss–Legendre."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return sum(w / 2 * derivative((u + 1) / 2) for u, w in zip(points, weights, strict=True))


@pytest.mark.paper("Proof of Theorem 3", "App. B.5: mean value", corrected=True)
@pytest.mark.erratum("E17")
def test_the_mean_value_theorem_fails_for_vectors_and_its_integral_form_holds():
    """On an arc of length 2 every derivative is 2 long and the chord 2 sin 1: they differ by 2 − 2 sin 1 at least."""
    grid = np.linspace(0, 1, 201)
    chord = torch.tensor([math.cos(2) - 1, math.sin(2)], dtype=torch.float64)

    def tangent(s):
        return 2 * torch.tensor([-math.sin(2 * s), math.cos(2 * s)], dtype=torch.float64)

    assert best_single_derivative(tangent, chord, grid) == pytest.approx(2 - 2 * math.sin(1), rel=1e-12)
    assert float((integral(tangent, 20) - chord).norm()) < 1e-13


@pytest.mark.paper("Proof of Theorem 3", "App. B.5: mean value", corrected=True)
@pytest.mark.erratum("E17")
def test_no_single_jacobian_of_maml_gives_a_step_and_the_mean_jacobian_does(measured):
    """g(θ_1) − g(θ_0) = ∫₀¹ J(θ_0 + s(θ_1 − θ_0)) ds (θ_1 − θ_0), on a segment that stays in any ball."""
    net = FullyConnected(3, 5, 1, 1, "tanh")
    params, task = start(net), make_tasks(net, 1, n=3)[0]
    theta, other = flatten(params), flatten(start(net, 1))
    inner = InnerLoop(0.3, 1)

    def outputs(vector):
        return meta_output(net.model, unflatten(vector, params), task, inner)

    def derivative(s):
        return torch.func.jvp(outputs, (theta + s * (other - theta),), (other - theta,))[1]

    change = outputs(other) - outputs(theta)
    single = best_single_derivative(derivative, change, np.linspace(0, 1, 101)) / float(change.norm())
    measured("error of the best single Jacobian on the segment", single, above=3e-3)
    measured("error of the mean Jacobian", relative(integral(derivative, 60), change), below=EXACT)


@pytest.mark.paper("App. B.5: learning rate")
@settings(max_examples=100)
@given(kernels(condition=1e3), st.floats(0.01, 3))
def test_a_step_contracts_by_one_minus_rate_times_least_eigenvalue_exactly_up_to_the_largest_rate(
    kernel, share
):
    matrix, _ = kernel
    low, high = extreme_eigenvalues(matrix)
    rate = share * largest_rate(matrix)
    contracts = operator_norm(torch.eye(len(matrix)).double() - rate * matrix) <= 1 - rate * low + 1e-12
    assert (
        contracts == (share <= 1) or abs(share - 1) < 1e-9 or (high - low < 1e-9 * high and rate * low <= 1)
    )


@pytest.mark.paper("Proof of Theorem 3", "App. B.5: closeness", corrected=True)
@pytest.mark.paper("App. B.5: contraction")
@pytest.mark.erratum("E19")
@few
@given(kernels(condition=20, largest_size=4), seeds, st.floats(0.05, 0.999))
def test_the_kernel_must_be_within_a_third_of_its_least_eigenvalue_whatever_the_rate(kernel, seed, share):
    """The proof asks ‖Φ − Φ̂_0‖ ≤ η0 σ_min/3 and then multiplies by η0 once more; without η0 the step is right."""
    phi, _ = kernel
    low, eta0 = extreme_eigenvalues(phi)[0], share * largest_rate(phi)
    change = draws(seed, "change", len(phi), len(phi))
    change = change + change.T
    near = phi + change * (low / 3 / operator_norm(change))
    step = operator_norm(torch.eye(len(phi)).double() - eta0 * near)
    assert step <= 1 - 2 * eta0 * low / 3 + 1e-10
    drift = draws(seed, "drift", len(phi), len(phi))  # of the Jacobians since θ_0, not symmetric
    moved = near + drift * (low / 3 / operator_norm(drift))
    assert operator_norm(torch.eye(len(phi)).double() - eta0 * moved) <= 1 - eta0 * low / 3 + 1e-10
    phi, eta0 = torch.diag(torch.tensor([0.5, 0.4], dtype=torch.float64)), 2.2
    assert eta0 < largest_rate(phi)
    near = phi - torch.eye(2).double() * (eta0 * 0.4 / 3)  # allowed by the printed condition
    assert eta0 * operator_norm(phi - near) > 2 * (eta0 * 0.4 / 3)  # 0.645 where the proof uses 0.293
    assert operator_norm(torch.eye(2).double() - eta0 * near) > 1 - eta0 * 0.4 / 3 + 0.05


@pytest.mark.paper("Proof of Theorem 3", "App. B.5: width", corrected=True)
@pytest.mark.erratum("E20")
@few
@given(st.floats(1.01, 5), st.floats(0.5, 10), st.floats(0.01, 1))
def test_the_least_width_of_theorem_3_is_a_square(lipschitz, start_, sigma_min):
    """At l = 18 K³R0/σ_min² the drift is not below σ_min/3, but √l times as large."""
    least = theorem3_least_width(lipschitz, start_, sigma_min)
    printed = least**0.5
    allowed = sigma_min / 3

    def drift(width):
        return 6 * lipschitz**3 * start_ / (sigma_min * width**0.5)

    assert theorem3_drift_bound(lipschitz, start_, sigma_min, math.ceil(least)) <= allowed * ROUNDING
    assert drift(least) == pytest.approx(allowed)
    assert drift(printed) == pytest.approx(allowed * printed**0.5)
    assert printed**0.5 > 2
    assert theorem3_drift_bound(1.5, 2.0, 0.3, 1350) == pytest.approx(3.674, rel=1e-3)  # 0.1 is allowed
    assert theorem3_least_width(1.5, 2.0, 0.3) == pytest.approx(1350**2)


@pytest.mark.paper("App. B.5: one step", "App. B.5: contraction")
@pytest.mark.paper("Proof of Theorem 3", "App. B.5: mean value", corrected=True)
@pytest.mark.erratum("E17")
@pytest.mark.parametrize("activation", ["erf", "tanh"])
def test_a_step_of_maml_multiplies_the_residual_by_the_mean_jacobian_of_the_step_and_contracts_as_the_proof_says(
    activation,
):
    """g(θ_1) = (I − η J̄ J(θ_0)ᵀ) g(θ_0) exactly; its norm by the triangle inequality through Φ, Φ̂_0 and the ball."""
    net, inner = FullyConnected(3, 12, 1, 1, activation), InnerLoop(0.2, 1)
    params, tasks = start(net), make_tasks(net, 2)
    theta = flatten(params)
    labels = torch.cat([task.query_y.reshape(-1) for task in tasks])

    def residual(vector):
        return meta_outputs(net.model, unflatten(vector, params), tasks, inner) - labels

    jacobian = torch.func.jacrev(residual)
    g, j = residual(theta), jacobian(theta)
    phi_hat = j @ j.T / net.width
    eta0 = 0.5 * largest_rate(phi_hat)
    eta = eta0 / net.width
    step = -eta * j.T @ g
    assert float(step.norm()) <= eta * operator_norm(j) * float(g.norm()) * ROUNDING
    mean = integral(lambda s: jacobian(theta + s * step), 20)
    factor = torch.eye(len(g)).double() - eta * mean @ j.T
    assert relative(factor @ g, residual(theta + step)) < EXACT
    phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics)
    moved = eta * operator_norm(j @ j.T - mean @ j.T)
    contraction = operator_norm(torch.eye(len(g)).double() - eta0 * phi)
    assert operator_norm(factor) <= contraction + eta0 * operator_norm(phi - phi_hat) + moved * ROUNDING
    # as printed, without η0 before Φ̂_0, the two sides of the decomposition are different matrices
    parts = torch.eye(len(g)).double() - eta0 * phi + eta * (j @ j.T - mean @ j.T)
    assert relative(parts + eta0 * phi - eta0 * phi_hat, factor) < EXACT
    assert relative(parts + eta0 * phi - phi_hat, factor) > 0.05
