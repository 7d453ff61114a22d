"""Appendix B.2: the proof of Lemma 1: matrix exponentials, singular values, and constants line by line.

Every step is an inequality between matrices; the matrices are Jacobians of small networks, or drawn by their spectrum.
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    Converged,
    FullyConnected,
    GradientFlow,
    InnerLoop,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_last_layer_ntk,
    empirical_ntk,
    generator,
    meta_ntk,
    residual_operator,
)
from mamltheory.errors import ValueRangeError
from mamltheory.finite_width.bounds import (
    exponential_lipschitz_constant,
    extreme_eigenvalues,
    lemma1_lipschitz_constant,
)
from mamltheory.kernels.empirical import gram, jacobian
from mamltheory.kernels.empirical_meta import stacked_meta_jacobian
from mamltheory.kernels.meta import adaptation_matrix
from tests.paper.cases import (
    EXACT,
    ROUNDING,
    draws,
    identity,
    make_tasks,
    relative,
    rows_of,
    sphere,
    start,
    task_of,
)
from tests.reference.dense import Dense, flatten
from tests.reference.matrix_functions import exponential, exponential_difference, operator_norm
from tests.strategies import rotation, seeds


@pytest.mark.paper("App. B.2: SVD")
def test_the_kernel_has_the_squared_singular_values_of_the_jacobian():
    net = FullyConnected(4, 6, 2, 2, "tanh")
    params, x = start(net), sphere(generator(0, "samples"), 3, 4)
    dense = Dense(net, params)
    u, s, _ = torch.linalg.svd(dense.jacobian(dense.theta0, x) / net.width**0.5, full_matrices=False)
    theta = empirical_ntk(net.model, x, params=params)
    assert relative((u * s.square()) @ u.T, theta) < EXACT
    assert relative((u / s.square()) @ u.T, torch.linalg.inv(theta)) < 1e-8
    assert relative((u * s) @ u.T, theta) > 0.1


few = settings(max_examples=25)


times = st.floats(-2, 3).map(lambda exponent: 10.0**exponent)


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


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


@pytest.mark.paper("Eq. (61)", corrected=True)
@pytest.mark.erratum("E13")
def test_singular_values_enter_equation_61_squared(measured):
    """I − e^{−λτΘ̂} with the Θ̂ of a real network, rebuilt from the singular values of ∇f(X')/√l."""
    net, time = FullyConnected(4, 40, 2, 1), 0.7
    params, task = start(net), make_tasks(net, 1)[0]
    rows = jacobian(net.model, params, task.support_x)
    theta = gram(rows, rows) / net.width
    u, s, _ = torch.linalg.svd(rows_of(rows) / net.width**0.5, full_matrices=False)
    exact = identity(len(theta)) - exponential(theta, time)
    printed, corrected = ((u * (1 - torch.exp(-time * values))) @ u.T for values in (s, s**2))
    measured("error of (61) with Σ", relative(printed, exact), above=0.05)
    measured("error of (61) with Σ²", relative(corrected, exact), below=EXACT)


@pytest.mark.paper("Remark after Eq. (62)", corrected=True)
@pytest.mark.erratum("E14")
def test_one_is_an_eigenvalue_of_the_exponential_and_zero_is_none(measured):
    """e^{−λτH} of a real network: printed [0, 1), correct (0, 1], with 1 attained on at least D − km directions."""
    net = FullyConnected(3, 3, 1, 1)
    params, task = start(net), make_tasks(net, 1)[0]
    rows = rows_of(jacobian(net.model, params, task.support_x)) / net.width**0.5
    eigenvalues = torch.linalg.eigvalsh(exponential(rows.T @ rows, 1.0))
    ones = int((eigenvalues > 1 - 1e-10).sum())
    measured("eigenvalues 1 of e^{−λτH}, which the printed interval excludes", ones, above=0.5)
    measured("their number over D − km", ones / (rows.shape[1] - len(rows)), below=1 + 1e-12)
    measured("least eigenvalue", eigenvalues.min(), above=1e-4)


@pytest.mark.paper("Eq. (63)", "Eq. (65)")
@pytest.mark.paper("App. D: ANIL")
@pytest.mark.erratum("E41")
@few
@given(seeds, st.sampled_from(["erf", "relu"]), st.integers(1, 3), st.sampled_from([0.3, 3.0, math.inf]))
def test_maml_contracts_the_jacobian_and_anil_is_bounded_by_its_adaptation_matrix(
    seed, activation, depth, time
):
    """φ_ii ⪯ Θ(X, X) for MAML. For ANIL ‖J‖ ≤ ‖∇f(X)‖ + ‖C‖ ‖∇f(X')‖ with ‖C‖ ≤ ‖𝒦(X, X')‖ min{λτ, 1/σ_min(𝒦)}."""
    net = FullyConnected(4, 8, depth, 1, activation, sigma_b=0.5)
    params, g = start(net, seed), generator(seed, "samples")
    task = task_of(sphere(g, 2, 4), sphere(g, 3, 4))
    how = Converged(1e-6) if math.isinf(time) else GradientFlow(time)
    theta = empirical_ntk(net.model, task.query_x, params=params)
    maml, anil = (meta_ntk(net.model, [task], name, how, params=params) for name in ("maml", "anil"))
    assert extreme_eigenvalues(theta - maml)[0] >= -1e-9 * float(theta.norm())
    cross = empirical_last_layer_ntk(net.model, task.query_x, task.support_x, params=params)
    last = empirical_last_layer_ntk(net.model, task.support_x, params=params)
    c = float(torch.linalg.matrix_norm(adaptation_matrix(cross, last, how), 2))
    least = max(extreme_eigenvalues(last)[0], 0.0) + (1e-6 if math.isinf(time) else 0.0)
    assert c <= float(torch.linalg.matrix_norm(cross, 2)) * min(time, 1 / least) * (1 + 1e-6)
    support = empirical_ntk(net.model, task.support_x, params=params)
    assert (
        float(anil.trace()) ** 0.5
        <= (float(theta.trace()) ** 0.5 + c * float(support.trace()) ** 0.5) * ROUNDING
    )


@pytest.mark.paper("Eq. (62)", "Eq. (63)")
def test_the_contraction_of_equation_63_is_that_of_the_residual_on_the_support_samples():
    """On X = X' the kernel is Θ e^{−2λτΘ}: ∇F = e^{−λτΘ} ∇f."""
    net = FullyConnected(4, 64, 2, 1)
    x = sphere(generator(0, "samples"), 3, 4)
    theta, how = analytic_ntk(net, x), GradientFlow(2.0)
    left = residual_operator(theta, how)
    assert relative(analytic_meta_ntk(net, [task_of(x, x)], "maml", how), left @ theta @ left) < EXACT
