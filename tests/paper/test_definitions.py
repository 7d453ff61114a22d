"""Definitions, assumptions and small identities of the paper, each against an independent computation."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from mamltheory import (
    FullyConnected,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    meta_outputs,
)
from mamltheory.asymptotics import fit_power_law
from mamltheory.bounds import extreme_eigenvalues
from mamltheory.kernels.analytic import _layers
from mamltheory.kernels.empirical_meta import meta_jacobian
from mamltheory.maml import descend
from mamltheory.networks import from_module
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.paper.test_finite_width import setting
from tests.reference.dense import Dense, flatten


def rows_of(jacobian):
    return torch.cat([part.flatten(1) for part in jacobian.values()], dim=1)


# --- Networks, outputs, residuals ---


@pytest.mark.paper("Sec. 3: network")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_network_of_l_hidden_layers_has_d_parameters(depth):
    net = FullyConnected(3, 5, depth, 2)
    assert len(flatten(start(net))) == 4 * 5 + (depth - 1) * 6 * 5 + 6 * 2


@pytest.mark.paper("fn. 3")
def test_kaiming_initialisation_is_the_gaussian_one_with_weights_of_variance_two_without_biases():
    net = FullyConnected(16, 32, 2, 4, "relu", sigma_w=2**0.5, sigma_b=0.0)
    g, params = generator(0, "init"), start(net)
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(net.sizes), 1):
        weight = nn.init.kaiming_normal_(torch.empty(fan_out, fan_in, dtype=torch.float64), generator=g)
        torch.testing.assert_close(params[f"weight{i}"], weight, rtol=1e-12, atol=0)
        torch.randn(fan_out, generator=g, dtype=torch.float64)  # where the other form draws its biases
        assert not params[f"bias{i}"].any()


@pytest.mark.paper("Eq. (17)", "Eq. (18)", "Eq. (19)", "Eq. (21)", "Eq. (23)")
def test_outputs_and_residuals_in_training_are_those_of_the_parameters_at_that_step():
    net = FullyConnected(4, 6, 2, 2, "tanh")
    tasks, inner = make_tasks(net, 2), InnerLoop(0.3, 2)
    for state, seen in itertools.islice(descend(net.model, start(net), tasks, inner, 0.05), 4):
        dense = Dense(net, state.params)  # f_t = f_{θ_t}, F_t = F_{θ_t}
        f = torch.cat([dense.f(dense.theta0, task.query_x) for task in tasks])
        assert relative(meta_outputs(net.model, state.params, tasks, InnerLoop(0.3, 0)), f) < EXACT
        stacked = torch.cat([dense.meta_output(task, inner) for task in tasks])
        assert relative(seen.outputs, stacked) < EXACT
        g = stacked - query_labels(tasks)
        assert seen.loss == pytest.approx(float(g @ g) / 2, rel=1e-12)
    assert state.step == 3
    assert relative(stacked, f) > 1e-2  # the inner loop moves the outputs: F is not f


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


@pytest.mark.paper("fn. 12")
def test_only_with_the_factor_one_over_l_is_the_metantk_of_the_same_size_at_every_width(measured):
    widths, sizes = (64, 256, 1024), []
    for width in widths:
        net, tasks, _, inner = setting("erf", 1, width)
        params = start(net)
        rows = torch.cat([rows_of(meta_jacobian(net.model, params, task, inner)) for task in tasks])
        kernel = empirical_meta_ntk(net.model, tasks, inner, params=params)
        assert relative(rows @ rows.T / width, kernel) < EXACT
        sizes.append(float((rows @ rows.T).norm()))
    grows = fit_power_law(widths, np.array(sizes)[:, None].repeat(2, 1)).slope
    measured("|slope − 1| of ‖JJᵀ‖ in the width", abs(grows - 1), below=0.15)


# --- Assumptions ---


def unequal(widths, seed, sigma_w, sigma_b):
    """A network of two hidden layers of any widths in the scaling of Eq. (16), with scale min l_i."""
    sizes = (4, *widths, 1)
    module = nn.Sequential()
    g = generator(seed, "unequal widths")
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        layer = nn.Linear(fan_in, fan_out, dtype=torch.float64)
        layer.weight.data = sigma_w / fan_in**0.5 * torch.randn(fan_out, fan_in, generator=g).double()
        layer.bias.data = sigma_b * torch.randn(fan_out, generator=g).double()
        module.extend([layer, nn.ReLU()] if i < 2 else [layer])
    return from_module(module, scale=float(min(widths)))


@pytest.mark.paper("Assumption 3", "fn. 2", corrected=True)
@pytest.mark.erratum("E24")
@pytest.mark.parametrize("ratios", [(1, 1), (3, 1), (1, 3)])
def test_the_limit_kernel_depends_on_the_ratios_of_the_widths(ratios, measured):
    """Θ = α_2 q² + α_1 q¹ σ_w² q̇²: with l = min l_i alone, as printed, it would be that of equal widths."""
    net, x, l = FullyConnected(4, 10, 2, 1, "relu"), sphere(generator(0, "samples"), 3, 4), 256  # noqa: E741
    (q1, _, _), (q2, slope2, _) = _layers(net, x, x)
    expected = ratios[1] * q2 + ratios[0] * q1 * net.sigma_w**2 * slope2
    networks = [
        unequal([ratio * l for ratio in ratios], seed, net.sigma_w, net.sigma_b) for seed in range(16)
    ]
    mean = sum(empirical_ntk(model, x, params=params) for model, params in networks) / 16
    measured("error of the kernel with the ratios", relative(mean, expected), below=0.08)
    if ratios == (1, 1):
        assert relative(expected, analytic_ntk(net, x)) < EXACT
    else:
        assert relative(analytic_ntk(net, x), mean) > 0.3


@pytest.mark.paper("Assumption 4", "App. B.4: spectrum")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_limit_kernel_has_full_rank_on_distinct_samples_and_not_where_a_query_occurs_twice(depth):
    net = FullyConnected(4, 64, depth, 2, "erf")
    tasks = make_tasks(net, 2)
    phi = analytic_meta_ntk(net, tasks, "maml", GradientFlow(1.0))
    low, high = extreme_eigenvalues(phi)
    assert low > 1e-6 * high
    assert math.isfinite(high)
    x, y = tasks[0].query_x, tasks[0].query_y
    twice = Task(torch.cat([x, x[:1]]), torch.cat([y, y[:1]]), tasks[0].support_x, tasks[0].support_y)
    low, high = extreme_eigenvalues(analytic_meta_ntk(net, [twice, tasks[1]], "maml", GradientFlow(1.0)))
    assert abs(low) < 1e-12 * high


@pytest.mark.paper("Assumption 5", corrected=True)
@pytest.mark.erratum("E12")
def test_small_initial_weights_shrink_the_kernel_too_and_a_centred_network_does_not():
    """(The centred network's f_0 = 0 with an unchanged kernel is exact: see the tests of the networks.)"""
    x = sphere(generator(0, "samples"), 3, 4)
    sizes = [
        float(analytic_ntk(FullyConnected(4, 64, 2, 1, "erf", sigma_w=1.5 * s, sigma_b=0.1 * s), x).norm())
        for s in (1.0, 0.1)
    ]
    assert sizes[1] < 1e-2 * sizes[0]
