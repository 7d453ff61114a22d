"""Definitions, assumptions and small identities of the paper, each against an independent computation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mamltheory import (
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    linearised,
    meta_gradient,
    meta_ntk,
    meta_outputs,
    train,
)
from mamltheory.asymptotics import fit_power_law, root_mean_square
from mamltheory.bounds import extreme_eigenvalues, largest_rate
from mamltheory.kernels.analytic import _layers
from mamltheory.kernels.empirical import meta_jacobian
from mamltheory.linalg import condition_number, residual_operator, time_operator
from mamltheory.maml import descend
from mamltheory.networks import Model, from_module
from mamltheory.types import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.paper.test_finite_width import rate_setting, setting
from tests.reference.dense import Dense, flatten
from tests.strategies import kernels


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


# --- Inner loop: any number of steps, and what it costs ---


@pytest.mark.paper("Sec. 3: inner steps", corrected=True)
@pytest.mark.erratum("E11")
def test_for_every_number_of_inner_steps_the_metantk_is_that_of_discrete_time(measured):
    """The printed exponentials are off by O(1/τ): by far for one step, not at all for infinitely many."""
    net = FullyConnected(4, 20, 1, 1, "erf")
    params, tasks, taus = start(net), make_tasks(net, 2), (1, 2, 5, 20)
    top = max(extreme_eigenvalues(empirical_ntk(net.model, t.support_x, params=params))[1] for t in tasks)
    flow, model = (
        meta_ntk(net.model, tasks, "maml", GradientFlow(1 / top), params=params),
        linearised(net.model, params),
    )
    errors = []
    for tau in taus:
        lam0 = 1 / top / tau
        real = empirical_meta_ntk(model, tasks, InnerLoop(lam0, tau), params=params)
        discrete = meta_ntk(net.model, tasks, "maml", GradientDescent(lam0, tau), params=params)
        measured("error in discrete time", relative(discrete, real), below=EXACT)
        errors.append(relative(flow, real))
    measured("error of the exponential at τ = 1", errors[0], above=0.01)
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] * 20 == pytest.approx(errors[2] * 5, rel=0.2)


@pytest.mark.paper("Sec. 4.1: challenges", corrected=True)
@pytest.mark.erratum("E11")
def test_the_jacobian_is_a_product_over_hessians_and_an_exponential_only_in_the_limit_of_many_steps(measured):
    net = FullyConnected(3, 5, 1, 1, "tanh")
    params = start(net)
    task, dense = make_tasks(net, 1)[0], Dense(net, params)
    real = rows_of(meta_jacobian(net.model, params, task, InnerLoop(0.5, 3)))
    measured(
        "error of the product", relative(real, dense.meta_jacobian(task, InnerLoop(0.5, 3))), below=EXACT
    )
    still = Task(task.query_x, task.query_y, task.support_x, net.model(params, task.support_x))
    support = dense.jacobian(dense.theta0, task.support_x) / net.width**0.5
    rows, time = dense.jacobian(dense.theta0, task.query_x), 0.5
    exponential = rows @ torch.linalg.matrix_exp(-time * support.T @ support)
    errors = [
        relative(rows_of(meta_jacobian(net.model, params, still, InnerLoop(time / tau, tau))), exponential)
        for tau in (1, 16, 64)
    ]
    measured("error of the exponential at τ = 1", errors[0], above=0.01)
    assert errors[1] == pytest.approx(4 * errors[2], rel=0.2)


class _Refusing(torch.autograd.Function):
    """Passes its argument on and cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        raise RuntimeError("a second derivative was asked for")


class _OnceDifferentiable(torch.autograd.Function):
    """tanh with a first derivative and no second one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return _Refusing.apply(gradient * (1 - y.square()))


@pytest.mark.paper("Sec. 5: first-order cost")
def test_the_metantk_from_the_ntk_takes_no_second_derivative_and_equation_4_does():
    net = FullyConnected(3, 6, 1, 1, "tanh")
    params, tasks = start(net), make_tasks(net, 2)

    def forward(p, x):
        hidden = _OnceDifferentiable.apply(x @ p["weight1"].T + p["bias1"])
        return hidden @ p["weight2"].T + p["bias2"]

    once = Model(forward, net.model.scale, net.model.head)
    kernel = meta_ntk(once, tasks, "maml", GradientFlow(1.0), params=params)
    assert relative(kernel, meta_ntk(net.model, tasks, "maml", GradientFlow(1.0), params=params)) < EXACT
    with pytest.raises(RuntimeError, match="second derivative"):
        empirical_meta_ntk(once, tasks, InnerLoop(0.3, 1), params=params)


def flops(function, *arguments, **named):
    with FlopCounterMode(display=False) as counter:
        function(*arguments, **named)
    return counter.get_total_flops()


def resnet12_parameters():
    total, before = 0, 3
    for width in (64, 160, 320, 640):
        convolutions = 9 * before * width + 2 * 9 * width**2 + before * width
        total, before = total + convolutions + 4 * 2 * width, width
    return total + before * 64 + 64


@pytest.mark.paper("Sec. 3: cost of the Hessian", "Sec. 5: first-order cost")
def test_second_order_terms_cost_more_and_a_hessian_of_resnet_12_would_not_fit_anywhere(measured):
    net = FullyConnected(16, 128, 3, 1, "tanh")
    params, tasks = start(net), make_tasks(net, 2)
    costs = [
        flops(meta_gradient, net.model, params, tasks, InnerLoop(0.1, 3, first_order=first))
        for first in (False, True)
    ]
    measured("operations of second against first order", costs[0] / costs[1], above=1.3)
    composite = flops(meta_ntk, net.model, tasks, "maml", GradientFlow(1.0), params=params)
    real = flops(empirical_meta_ntk, net.model, tasks, InnerLoop(0.1, 3), params=params)
    measured("operations of Eq. (4) against Eq. (11)", real / composite, above=1.5)
    measured("parameters of ResNet-12", resnet12_parameters(), above=1e7)
    assert 4 * resnet12_parameters() ** 2 > 6e14  # bytes of a Hessian


# --- Training ---


@pytest.mark.paper("fn. 5", "Sec. 5: both scores")
@settings(max_examples=30)
@given(kernels(condition=1e3))
def test_at_the_best_rate_descent_contracts_by_the_condition_number_alone(kernel):
    matrix, _ = kernel
    kappa, identity = condition_number(matrix), torch.eye(len(matrix)).double()

    def contraction(rate):
        return float(torch.linalg.matrix_norm(identity - rate * matrix, 2))

    best = largest_rate(matrix)
    assert contraction(best) == pytest.approx((kappa - 1) / (kappa + 1), abs=1e-9)
    assert min(contraction(0.9 * best), contraction(1.1 * best)) >= contraction(best)


@pytest.mark.paper("fn. 5", "Sec. 5: both scores", "Sec. 1: indicator")
def test_of_two_sets_of_tasks_the_one_with_the_smaller_condition_number_is_learnt_faster(measured):
    net, tasks, _, inner = setting("erf", 1, 256)
    near = [
        Task(torch.stack([t.query_x[0], t.query_x[0] + 0.3 * (t.query_x[1] - t.query_x[0])]), t.query_y[:2],
             t.support_x, t.support_y) for t in tasks
    ]  # fmt: skip
    params, kappas, rates = start(net), [], []
    for some in (tasks, near):
        phi = empirical_meta_ntk(net.model, some, inner, params=params)
        losses = train(net.model, params, some, inner, largest_rate(phi), 200).losses()
        kappas.append(condition_number(phi))
        rates.append(float((losses[200] / losses[100]) ** (1 / 200)))
    assert kappas[0] < kappas[1]
    assert rates[0] < rates[1]
    for kappa, rate in zip(kappas, rates, strict=True):
        predicted = (kappa - 1) / (kappa + 1)
        measured("error of the predicted rate", abs(math.log(rate) / math.log(predicted) - 1), below=0.2)


@pytest.mark.paper("Eq. (94)", "App. B.5: contraction", "App. B.5: one step")
@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_every_step_shortens_the_residual_by_the_factor_of_the_induction(activation, measured):
    net, tasks, inner, eta0, sigma_min = rate_setting(activation, 1, 256)
    record = train(net.model, start(net), tasks, inner, eta0, 40, kernel_steps=range(41))
    residuals = (2 * record.losses()).sqrt()
    worst = float((residuals[1:] / residuals[:-1]).max())
    measured("growth of the residual over 1 − η0 σ_min/3", worst / (1 - eta0 * sigma_min / 3), below=1.0)
    lengths = [0.0, *np.diff([seen.path_length for seen in record.observations])]
    for t in range(40):  # ‖θ_{t+1} − θ_t‖ ≤ η0/√l · ‖J/√l‖_op · ‖g‖
        size = extreme_eigenvalues(record.kernels[t])[1] ** 0.5
        assert lengths[t + 1] <= eta0 / net.width**0.5 * size * float(residuals[t]) * (1 + 1e-9)


@pytest.mark.paper("Eq. (91)", corrected=True)
def test_the_blocks_from_the_empirical_ntk_tend_to_those_from_its_limit(measured):
    """With λ = λ0/l in the exponent, as printed, nothing would be adapted: that kernel is far away."""
    widths, values = (64, 256, 1024), []
    for width in widths:
        net, tasks, _, inner = setting("erf", 1, width)
        phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics)
        printed = analytic_meta_ntk(net, tasks, "maml", GradientFlow(inner.lam0 * inner.tau / width))
        found = [meta_ntk(net.model, tasks, "maml", inner.dynamics, params=start(net, s)) for s in range(8)]
        values.append([relative(one, phi) for one in found])
        assert relative(printed, sum(found) / 8) > 0.2
    scale = root_mean_square(np.array(values))
    measured(
        "|slope + 1/2| of the deviation in the width",
        abs(fit_power_law(widths, np.array(values)).slope + 0.5),
        below=0.3,
    )
    assert scale[-1] < 0.1


@pytest.mark.paper("Remarks in App. C")
def test_trained_outputs_follow_from_the_initial_kernel_and_outputs_without_training(measured):
    """F_t = F_0 + Φ̂_0(·) Φ̂_0⁻¹ (I − (I − η0 Φ̂_0)^t) (𝒴 − F_0), for the real network as it is."""
    errors = []
    for width in (64, 1024):
        net, tasks, test_tasks, inner = setting("erf", 1, width)
        params = start(net)
        phi = empirical_meta_ntk(net.model, tasks, inner, params=params)
        row = empirical_meta_ntk(net.model, test_tasks, inner, tasks, params=params)
        eta0 = 0.5 * largest_rate(phi)
        first, last = (
            train(net.model, params, tasks, inner, eta0, 30, test_tasks).observations[t] for t in (0, 30)
        )
        outer, labels = GradientDescent(eta0, 30), query_labels(tasks)
        on_training = labels + residual_operator(phi, outer) @ (first.outputs - labels)
        on_test = first.test_outputs + row @ time_operator(phi, outer) @ (labels - first.outputs)
        moved = float((last.test_outputs - first.test_outputs).norm())
        errors.append(float((on_test - last.test_outputs).norm()) / moved)
        assert relative(on_training, last.outputs) < 0.2
    measured("error on test tasks relative to what training changed", errors[1], below=0.02)
    assert errors[1] < 0.5 * errors[0]
