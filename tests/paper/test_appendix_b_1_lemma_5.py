"""Appendix B.1, Lemma 5: the product rule behind it, and the split (59) of the Jacobian, over the width.

As Lemma 4, it holds in standard parameterisation with one hidden layer, and with two after division by √l.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import jacrev

from mamltheory import FullyConnected, generator
from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.finite_width.lipschitz import norm
from mamltheory.kernels.empirical import gram, jacobian
from mamltheory.kernels.empirical_meta import meta_jacobian
from tests.paper.cases import (
    DEEP,
    EXACT,
    ROUNDING,
    SHALLOW,
    adaptation,
    draws,
    identity,
    named,
    relative,
    rows_of,
    setting,
    sphere,
    start,
    task_of,
)
from tests.paper.widths import at_widths, check_level, check_slope, combined
from tests.reference.matrix_functions import (
    commuting_derivative,
    exponential,
    exponential_derivative,
    operator_norm,
)
from tests.strategies import kernels, seeds, with_spectrum

few = settings(max_examples=25)


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


@pytest.mark.paper("Eq. (53)", corrected=True)
@pytest.mark.erratum("E16")
def test_the_printed_derivative_of_the_exponential_is_wrong_where_the_argument_does_not_commute(measured):
    """Against central differences, with a kernel and a direction that do not commute."""
    theta, time, h = with_spectrum([1.0, 0.3, 0.1], 0), 2.0, 1e-5
    direction = with_spectrum([1.0, -0.5, 0.2], 1)
    difference = (exponential(theta + h * direction, time) - exponential(theta - h * direction, time)) / (
        2 * h
    )
    printed, corrected = (
        formula(theta, direction, time) for formula in (commuting_derivative, exponential_derivative)
    )
    measured("error of the printed derivative", relative(printed, difference), above=0.05)
    measured("error of the derivative with Θ̂ on both sides", relative(corrected, difference), below=1e-8)


@pytest.mark.paper("Eq. (44)", "Eq. (54)", "Eq. (56)")
def test_the_gradient_of_lemma_5_is_at_most_the_sum_of_its_terms_and_of_its_queries(measured):
    """The left sides by autograd through the whole product; (45) to (47) by differences of one factor at a time."""
    g = generator(0, "terms")
    net, time = FullyConnected(4, 6, 2, 1), 1.0
    params, support, queries = start(net), sphere(g, 2, 4), sphere(g, 3, 4)

    def gradient(x):
        def product(theta):
            rows, cross = (jacobian(net.model, theta, z) for z in (support, x))
            own, mixed = gram(rows, rows) / net.width, gram(cross, rows) / net.width
            learnt = torch.linalg.solve(own, identity(len(own)) - exponential(own, time))
            return (mixed @ learnt).sum(1)

        return rows_of(jacrev(product)(params))

    singles = [gradient(x[None]) for x in queries]
    terms = lemma5_terms(net, params, task_of(queries, support), time)
    for i, left in enumerate(singles):
        parts = [term[i : i + 1] for term in terms]
        error = relative(sum(parts), left)
        measured("error of (44): sum of the terms against the gradient", error, below=1e-6)
        measured("(54): left over right side", left.norm() / sum(part.norm() for part in parts), below=1)
    whole = gradient(queries)
    measured("(56): left over right side", whole.norm() / sum(one.norm() for one in singles), below=1)


def lemma5_terms(net, params, task, time=1.0):
    """The terms (45), (46) and (47) for the residual (1, …, 1), queries × D, by differences of each factor."""
    h, names = 1e-5, list(params)

    def factors(theta):
        support, query = (jacobian(net.model, theta, x) for x in (task.support_x, task.query_x))
        own, mixed = gram(support, support) / net.width, gram(query, support) / net.width
        return mixed, torch.linalg.inv(own), identity(len(own)) - exponential(own, time)

    flat = torch.cat([params[name].reshape(-1) for name in names])

    def at(vector):
        pieces = torch.split(vector, [params[name].numel() for name in names])
        return factors({n: p.reshape(params[n].shape) for n, p in zip(names, pieces, strict=True)})

    middle, columns = at(flat), []
    for i in range(len(flat)):
        shift = h * torch.nn.functional.one_hot(torch.tensor(i), len(flat)).double()
        change = [(a - b) / (2 * h) for a, b in zip(at(flat + shift), at(flat - shift), strict=True)]
        products = (
            (change[0], middle[1], middle[2]),
            (middle[0], change[1], middle[2]),
            (middle[0], middle[1], change[2]),
        )
        columns.append([(a @ b @ c).sum(1) for a, b, c in products])
    return [torch.stack([column[k] for column in columns], 1) for k in range(3)]


slow = pytest.mark.slow


def sizes_of_lemma_5_terms(net, params, tasks, inner):
    """‖(45)‖ and ‖(46)‖ per unit of the support residual: ∇Θ̂(X, X') and ∇Θ̂⁻¹, every other factor held fixed."""
    task = tasks[0]

    def kernel(theta, x):
        return gram(jacobian(net.model, theta, x), jacobian(net.model, theta, task.support_x)) / net.width

    own, mixed = kernel(params, task.support_x), kernel(params, task.query_x)
    residual = (net.model(params, task.support_x) - task.support_y).reshape(-1)
    learnt = (
        residual
        - torch.linalg.matrix_power(torch.eye(len(own)).double() - inner.lam0 * own, inner.tau) @ residual
    )
    weights = torch.linalg.solve(own, learnt)
    first = jacrev(lambda theta: kernel(theta, task.query_x) @ weights)(params)
    left = torch.linalg.solve(own, mixed.T).T  # ∇Θ̂⁻¹ = −Θ̂⁻¹ (∇Θ̂) Θ̂⁻¹
    second = jacrev(lambda theta: left @ (kernel(theta, task.support_x) @ weights))(params)
    return norm(first) / float(residual.norm()), norm(second) / float(residual.norm())


@pytest.mark.paper("Eq. (51)", "Eq. (52)", corrected=True)
@pytest.mark.erratum("E4")
@pytest.mark.parametrize(
    ("depth", "widths", "slope", "window", "levels"),
    [
        (1, (64, 256, 1024), -0.5, 0.25, ((1.0, 4.2), (0.6, 2.5))),
        (2, (64, 128, 256), 0.0, 0.4, ((0.25, 1.0), (0.2, 0.85))),
    ],
)
def test_both_terms_vanish_only_after_division_by_the_root_of_the_width(
    depth, widths, slope, window, levels, measured
):
    """Printed: → 0 for every depth. With two layers they stay, and over √l they fall as l^(−1/2)."""
    for values, name, level in zip(
        at_widths(("erf", depth), widths, 6, sizes_of_lemma_5_terms).swapaxes(0, 1),
        ("(45)", "(46)"),
        levels,
        strict=True,
    ):
        scale = check_slope(measured, f"{name}, erf L={depth}", widths, values, slope, window)
        check_level(measured, f"l^{-slope:g}·{name}, erf L={depth}", scale[-1] * widths[-1] ** -slope, *level)
        over_root = scale / [width**0.5 for width in widths]
        assert over_root[-1] < 0.7 * over_root[0]


def split(net, params, task, inner):
    """J of the real loop; Eq. (60), ∇f(X) − C∇f(X'); the last term ∇C·(f(X') − Y') of Eq. (59); ‖f(X') − Y'‖."""
    matrix = adaptation(net, task, inner)
    residual = (net.model(params, task.support_x) - task.support_y).reshape(-1)
    last = jacrev(lambda theta: matrix(theta) @ residual)(params)
    query, support = (jacobian(net.model, params, x) for x in (task.query_x, task.support_x))
    constant = matrix(params)
    main = {name: query[name] - torch.tensordot(constant, support[name], 1) for name in params}
    return meta_jacobian(net.model, params, task, inner), main, last, float(residual.norm())


def sizes_of_split(net, params, tasks, inner):
    """‖last term‖; ‖J − (60)‖/√l; ‖J − ∇(58)‖/√l, each per unit of the support residual, in which they are linear."""
    real, main, last, residual = split(net, params, tasks[0], inner)
    rest = combined(real, main, -1)
    return (
        norm(last) / residual,
        norm(rest) / (net.width**0.5 * residual),
        norm(combined(rest, last)) / (net.width**0.5 * residual),
    )


@pytest.mark.paper("Eq. (59)")
def test_the_three_terms_of_equation_59_are_the_gradient_of_equation_58(measured):
    net, tasks, _, inner = setting("tanh", 2, 8)
    params, task = start(net), tasks[0]
    _, main, last, _ = split(net, params, task, inner)
    matrix = adaptation(net, task, inner)

    def output(theta):
        residual = (net.model(theta, task.support_x) - task.support_y).reshape(-1)
        return net.model(theta, task.query_x).reshape(-1) - matrix(theta) @ residual

    whole = jacrev(output)(params)
    error = norm(combined(combined(whole, main, -1), last)) / norm(whole)
    measured("error", error, below=EXACT)


SHALLOW_CASE = (("erf", 1), (64, 256, 1024), 8, -0.5, 0.12, (1.5, 2.6), (-1.9, 0.5, 2e-5))


DEEP_CASE = (("erf", 2), (64, 128, 256), 8, 0.0, 0.25, (0.25, 0.7), (-1.0, 0.95, 4e-3))


@pytest.mark.paper("Lemma 5", "Eq. (42)", "Eq. (43)", "Eq. (55)", "Eq. (57)", corrected=True)
@pytest.mark.paper("Eq. (60)", "Eq. (89)", corrected=True)
@pytest.mark.erratum("E4", "E22")
@pytest.mark.parametrize(
    ("case", "widths", "seeds", "slope", "window", "level", "closeness"),
    [
        SHALLOW_CASE,
        DEEP_CASE,
        pytest.param(("erf", 1), SHALLOW, 24, -0.5, 0.08, (1.5, 2.6), (-1.9, 0.25, 1e-5), marks=slow),
        pytest.param(("erf", 2), DEEP, 24, 0.0, 0.15, (0.3, 0.6), (-1.0, 0.4, 1e-3), marks=slow),
    ],
)
def test_the_last_term_of_equation_59_vanishes_only_after_division_by_the_root_of_the_width(
    case, widths, seeds, slope, window, level, closeness, measured
):
    """As printed, its norm → 0. What Lemmas 1 and 3 need is (60) after division by √l, and J close to ∇(58)."""
    last, rest, beyond = at_widths(case, widths, seeds, sizes_of_split).swapaxes(0, 1)
    scale = check_slope(measured, named("(43)", case), widths, last, slope, window)
    check_level(measured, named(f"l^{-slope:g}·(43)", case), scale[-1] * widths[-1] ** -slope, *level)
    check_slope(measured, named("‖J − (60)‖/√l", case), widths, rest, slope - 0.5, window)
    power, around, most = closeness
    scale = check_slope(measured, named("‖J − ∇(58)‖/√l", case), widths, beyond, power, around)
    measured(named("‖J − ∇(58)‖/√l", case), scale[-1], below=most)
    if case[1] > 1:
        assert root_mean_square(last)[-1] > 0.7 * root_mean_square(last)[0]
