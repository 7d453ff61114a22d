"""Appendix B.1, Lemma 4: gradients of the kernel and their factors, over the width.

Lemma 4 states that the gradient of the kernel vanishes. In standard parameterisation it does with one hidden layer,
as l^(−1/2), and does not with two. What its use needs, divided by √l, vanishes in both cases.
"""

import numpy as np
import pytest
import torch
from torch.func import grad, jvp

from mamltheory import FullyConnected, InnerLoop, Task, empirical_ntk, generator
from mamltheory.finite_width.lipschitz import lipschitz_constant, norm
from mamltheory.kernels.empirical import jacobian
from tests.paper.cases import DEEP, EXACT, SHALLOW, named, relative, setting, sphere, start
from tests.paper.widths import at_widths, check_level, check_slope, combined
from tests.reference.dense import Dense


@pytest.mark.paper("Eq. (34)", "Eq. (35)", "Eq. (36)", "Eq. (49)", "Eq. (50)")
def test_the_kernels_gradient_is_the_sum_of_both_hessian_terms(measured):
    """∂Θ̂(x, x'_j)/∂θ = (∇²f(x) ∇f(x'_j) + ∇²f(x'_j) ∇f(x))/l, and the same applied to a vector a."""
    net = FullyConnected(2, 3, 2, 1, "tanh")
    dense = Dense(net, start(net))
    g = generator(0, "samples")
    x, supports = sphere(g, 1, 2), sphere(g, 3, 2)
    a = torch.randn(3, generator=g, dtype=torch.float64)
    theta = dense.theta0

    def gradients(vector, samples):
        return torch.func.jacrev(lambda t: dense.f(t, samples))(vector)

    def kernel(vector):
        return (gradients(vector, x) @ gradients(vector, supports).T / net.width)[0]

    assert relative(kernel(theta), empirical_ntk(net.model, x, supports, params=dense.like)[0]) < EXACT
    step, change = 1e-5, []
    for direction in torch.eye(len(theta)).double():
        change.append((kernel(theta + step * direction) - kernel(theta - step * direction)) / (2 * step))
    change = torch.stack(change, 1)  # m × D
    hessian = torch.func.hessian(lambda t: dense.f(t, x)[0])(theta)
    hessians = torch.func.hessian(lambda t: dense.f(t, supports))(theta)
    first = gradients(theta, supports) @ hessian / net.width
    second = torch.einsum("jab,b->ja", hessians, gradients(theta, x)[0]) / net.width
    measured("error of the product rule", relative(first + second, change), below=1e-7)
    measured(
        "error of the product rule applied to a", relative(a @ first + a @ second, a @ change), below=1e-7
    )
    assert relative(first, change) > 0.1


slow = pytest.mark.slow


def gradient_terms(net, params, task):
    """The two terms of Eq. (36) for one query x and a = (1, …, 1)/√m: (1/l) ∇²f(x)∇f(X')ᵀa, (1/l) ∇f(x)∇²f(X')ᵀa."""
    count = len(task.support_x)

    def query(theta):
        return net.model(theta, task.query_x[:1])[0, 0]

    def support(theta):
        return net.model(theta, task.support_x).sum() / count**0.5

    terms = []
    for curved, straight in ((query, support), (support, query)):
        product = jvp(grad(curved), (params,), (grad(straight)(params),))[1]
        terms.append({name: part / net.model.scale for name, part in product.items()})
    return terms


def sizes_of_terms(net, params, tasks, inner):  # noqa: ARG001 - the signature of every quantity
    first, second = gradient_terms(net, params, tasks[0])
    return norm(first), norm(second), norm(combined(first, second))


@pytest.mark.paper("Lemma 4", "Eq. (34)", "Eq. (35)", "Eq. (36)")
@pytest.mark.parametrize("depth", [1, 2])
def test_the_gradient_of_the_kernel_is_the_sum_of_the_two_terms_of_the_product_rule(depth, measured):
    """By differences of dense kernels."""
    net, tasks, _, _ = setting("tanh", depth, 4)
    params, task, h = start(net), tasks[0], 1e-5
    gradient = torch.cat([part.reshape(-1) for part in combined(*gradient_terms(net, params, task)).values()])
    direction = torch.randn(len(gradient), generator=generator(0, "direction"), dtype=torch.float64)
    dense, values = Dense(net, params), []
    theta = dense.theta0
    for sign in (1, -1):
        dense.theta0 = theta + sign * h * direction
        values.append(dense.ntk(task.query_x[:1], task.support_x).sum() / len(task.support_x) ** 0.5)
    difference = float(values[0] - values[1]) / (2 * h)
    measured("error", abs(float(gradient @ direction) / difference - 1), below=1e-7)


@pytest.mark.paper("Lemma 4", "Eq. (33)", "Eq. (37)", "Eq. (38)", "Eq. (40)", "Eq. (41)", corrected=True)
@pytest.mark.erratum("E3")
@pytest.mark.parametrize(
    ("case", "widths", "slope", "window", "level"),
    [
        (("erf", 1), SHALLOW, -0.5, 0.07, (0.9, 1.5)),
        (("erf", 2), DEEP, 0.0, 0.2, (0.5, 1.1)),
        pytest.param(("tanh", 2), DEEP, 0.0, 0.25, (0.35, 0.8), marks=slow),
    ],
)
def test_the_gradient_of_the_kernel_vanishes_only_after_division_by_the_root_of_the_width(
    case, widths, slope, window, level, measured
):
    """As printed, ‖∇Θ̂(x, X')·a‖ → 0; with two hidden layers it tends to a constant, (33) and both of its terms."""
    values = at_widths(case, widths, 8, sizes_of_terms).swapaxes(0, 1)
    for what, part in zip(("(37)", "(40)", "(33)"), values, strict=True):
        scale = check_slope(measured, named(what, case), widths, part, slope, window)
        corrected = scale / np.sqrt(widths)
        check_slope(measured, named(f"{what}/√l", case), widths, corrected[:, None], slope - 0.5, window)
    check_level(measured, named(f"l^{-slope:g}·(33)", case), scale[-1] * widths[-1] ** -slope, *level)
    if case[1] > 1:
        assert scale[-1] > 0.8 * scale[0]  # what is printed would be a third or less


def hessian_norm(net, params, tasks, inner):  # noqa: ARG001
    """‖∇²f(x)‖_op/√l: the Lipschitz constant without inner steps of a single output."""
    one = Task(tasks[0].query_x[:1], tasks[0].query_y[:1], tasks[0].support_x, tasks[0].support_y)
    start_vector = generator(0, "start vector")
    return lipschitz_constant(net.model, params, (one,), InnerLoop(0.0, 0), start_vector, tolerance=1e-2)


@pytest.mark.paper("Lemma 4", "Eq. (39)", corrected=True)
@pytest.mark.erratum("E3")
@pytest.mark.parametrize(
    ("case", "widths", "seeds", "slope", "window", "level"),
    [
        (("erf", 1), (64, 256, 1024), 4, -0.5, 0.1, (1.1, 2.3)),
        (("erf", 2), (64, 128, 256), 4, 0.0, 0.35, (1.1, 2.4)),
        pytest.param(("erf", 2), DEEP, 12, 0.0, 0.15, (1.1, 2.4), marks=slow),
        pytest.param(("erf", 3), (64, 128, 256), 12, 0.0, 0.3, (2.5, 7.0), marks=slow),
    ],
)
def test_the_hessian_of_the_network_is_of_the_order_of_the_root_of_the_width_from_two_layers_on(
    case, widths, seeds, slope, window, level, measured
):
    """‖∇²f‖_op/√l → 0 is a fact about the NTK parameterisation; in the paper's own it is constant for L ≥ 2."""
    values = at_widths(case, widths, seeds, hessian_norm)
    scale = check_slope(measured, named("‖∇²f‖/√l", case), widths, values, slope, window)
    check_level(measured, named(f"l^{-slope:g}·‖∇²f‖/√l", case), scale[-1] * widths[-1] ** -slope, *level)


def net_factors(net, tasks, seed):
    """‖Θ̂(x, X')‖, ‖Θ̂⁻¹‖ and ‖f(X') − Y'‖ of Eq. (48) for the first task."""
    params, task = start(net, seed), tasks[0]
    query, support = (
        torch.cat([v.flatten(1) for v in jacobian(net.model, params, x).values()], 1)
        for x in (task.query_x, task.support_x)
    )
    own = support @ support.T / net.width
    residual = net.model(params, task.support_x) - task.support_y
    return [
        float(torch.linalg.matrix_norm(query @ support.T / net.width, 2)),
        float(torch.linalg.matrix_norm(torch.linalg.inv(own), 2)),
        float(residual.norm()),
    ]


@pytest.mark.paper("Eq. (48)")
@pytest.mark.parametrize("depth", [1, 2])
def test_the_factors_of_equation_48_do_not_grow_with_the_width(depth, measured):
    """Largest over 12 networks at 1024 neurons beside 64; ‖I − e^{−λτΘ̂}‖ is at most 1 whatever Θ̂ ≥ 0 is."""
    largest = []
    for width in (64, 1024):
        net, tasks, _, _ = setting("erf", depth, width)
        largest.append(np.max([net_factors(net, tasks, seed) for seed in range(12)], axis=0))
    for name, narrow, wide in zip(("‖Θ̂(X, X')‖", "‖Θ̂⁻¹‖", "‖f(X') − Y'‖"), *largest, strict=True):
        measured(f"{name}, l = 1024 over l = 64, L = {depth}", wide / narrow, below=2)
