"""Any number of inner steps, what second order costs, and training at the best rate."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from mamltheory import (
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    linearised,
    meta_gradient,
    meta_ntk,
    train,
)
from mamltheory.asymptotics import fit_power_law, root_mean_square
from mamltheory.bounds import extreme_eigenvalues, largest_rate
from mamltheory.kernels.empirical_meta import meta_jacobian
from mamltheory.linalg import condition_number, residual_operator, time_operator
from mamltheory.networks import Model
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, start
from tests.paper.test_definitions import rows_of
from tests.paper.test_finite_width import rate_setting, setting
from tests.reference.dense import Dense
from tests.strategies import kernels

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
