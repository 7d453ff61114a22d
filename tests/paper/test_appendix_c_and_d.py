"""Appendices C and D: trained networks on test tasks, the proof of Theorem 2, and ANIL."""

import math

import numpy as np
import pytest
import torch

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Model,
    Task,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    centred,
    condition_number,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    meta_ntk,
    train,
)
from mamltheory.finite_width.asymptotics import root_mean_square
from mamltheory.kernels.meta import adaptation_matrix
from mamltheory.linalg import residual_operator, time_operator
from mamltheory.maml import descend
from mamltheory.rates import largest_rate
from mamltheory.tasks import query_labels
from tests.paper.cases import make_tasks, rate_setting, relative, setting, sphere, start, task_of
from tests.paper.widths import check_slope
from tests.reference.matrix_functions import operator_norm


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


def scaled(model, kappa):
    """κ f: what the work cited for Assumption 5 makes small."""
    return Model(lambda params, x: kappa * model.function(params, x), model.scale, model.head)


@pytest.mark.paper("Assumption 5", corrected=True)
@pytest.mark.erratum("E42")
def test_a_small_factor_before_the_output_does_what_small_weights_are_said_to_do(measured):
    """With rates over κ², training of κ f tends to Eq. (12) as κ → 0 at a large width; Θ only changes its scale."""
    net, tasks, test_tasks, inner = setting("erf", 1, 1024)
    params, x = start(net), joint_inputs((*tasks, *test_tasks))
    errors, conditions = {}, {}
    for kappa in (1.0, 0.1):
        model = scaled(net.model, kappa)
        theta = empirical_ntk(model, x, params=params)
        loop = type(inner)(inner.lam0 / kappa**2, inner.tau)
        eta0 = 0.5 * largest_rate(meta_ntk(model, tasks, "maml", loop.dynamics, params=params))
        record = train(model, params, tasks, loop, eta0, 4, test_tasks)
        closed = kernel_regression(theta, tasks, test_tasks, loop.dynamics, GradientDescent(eta0, 4)).test
        errors[kappa] = relative(record.observations[-1].test_outputs, closed)
        conditions[kappa] = condition_number(theta)
    small = FullyConnected(4, 1024, 1, 1, "erf", sigma_w=0.1 * net.sigma_w, sigma_b=0.1 * net.sigma_b)
    change = condition_number(analytic_ntk(small, x)) / condition_number(analytic_ntk(net, x))
    measured("condition of Θ with σ_w, σ_b/10 over that without", change, above=100)
    measured("condition of Θ̂ of f/10 over that of f", conditions[0.1] / conditions[1.0], below=1 + 1e-6)
    measured("error of (12) for f", errors[1.0], above=0.2)
    measured("error of (12) for f/10 over that for f", errors[0.1] / errors[1.0], below=0.3)


@pytest.mark.paper("App. D: ANIL")
@pytest.mark.erratum("E41")
def test_the_jacobian_of_anil_exceeds_that_of_the_network_and_stays_within_the_corrected_bound(measured):
    """φ^{1/2} against ‖∇f(X)‖ and against ‖∇f(X)‖ + ‖C‖ ‖∇f(X')‖, all over √l, in the limit of infinite width."""
    net = FullyConnected(4, 64, 3, 1, "relu", sigma_w=2**0.5, sigma_b=0.0)
    angles = torch.tensor([0.0, 1.0, 1.01], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles], 1)
    size = float(analytic_meta_ntk(net, [task_of(x[:1], x[1:])], "anil", Converged())) ** 0.5
    theta, last = analytic_ntk(net, x), analytic_last_layer_ntk(net, x)
    c = operator_norm(adaptation_matrix(last[:1, 1:], last[1:, 1:], Converged()))
    query = float(theta[0, 0]) ** 0.5
    support = math.sqrt(operator_norm(theta[1:, 1:]))
    measured("‖J‖ of ANIL over ‖∇f(X)‖", size / query, above=2)
    measured("‖J‖ of ANIL over ‖∇f(X)‖ + ‖C‖ ‖∇f(X')‖", size / (query + c * support), below=1)


@pytest.mark.paper("Eq. (112)")
@pytest.mark.erratum("E37")
def test_with_one_hidden_layer_maml_and_anil_have_one_kernel_in_the_limit_and_differ_by_one_over_the_width(
    measured,
):
    """The first layer's gradients do not grow with l: with one hidden layer, all of Θ is the last layer's."""

    def share(depth, width):
        net = FullyConnected(4, width, depth, 1)
        x = sphere(generator(0, "samples"), 5, 4)
        theta = analytic_ntk(net, x, finite_width=True)
        return float((theta - analytic_last_layer_ntk(net, x, finite_width=True)).norm() / theta.norm())

    net = FullyConnected(4, 64, 1, 1)
    tasks, how = make_tasks(net, 2), GradientFlow(2.0)
    deep = FullyConnected(4, 64, 2, 1)
    gaps = [
        relative(*(analytic_meta_ntk(some, tasks, name, how) for name in ("anil", "maml")))
        for some in (net, deep)
    ]
    measured("distance of the kernels of ANIL and MAML, L = 1", gaps[0], below=1e-13)
    measured("distance of the kernels of ANIL and MAML, L = 2", gaps[1], above=0.05)
    assert share(1, 10**4) == pytest.approx(share(1, 10**5) * 10, rel=1e-2)
    assert share(2, 10**4) == pytest.approx(share(2, 10**5), rel=1e-2) != pytest.approx(0, abs=0.1)


@pytest.mark.paper("App. D: ANIL")
@pytest.mark.erratum("E41")
def test_anil_does_not_contract_the_jacobian_where_supports_nearly_coincide(measured):
    """C is a projection in the last layer's coordinates alone: with 𝒦 near singular, φ is many times Θ(X, X)."""
    net = FullyConnected(4, 64, 3, 1, "relu", sigma_w=2**0.5, sigma_b=0.0)

    def tasks_and_query(gap):
        angles = torch.tensor([0.0, 1.0, 1.0 + gap], dtype=torch.float64)
        x = torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles], 1)
        return [task_of(x[:1], x[1:])], x[:1]

    for gap, excess in ((0.01, 6.0), (0.001, 60.0)):
        tasks, query = tasks_and_query(gap)
        theta = float(analytic_ntk(net, query))
        maml, anil = (float(analytic_meta_ntk(net, tasks, name, Converged())) for name in ("maml", "anil"))
        assert maml / theta < 1
        measured("‖J‖²/‖∇f‖² of ANIL", anil / theta, above=excess)
    tasks, query = tasks_and_query(0.1)
    shares = []
    for seed in range(30):  # real networks scatter widely, but MAML contracts all of them and ANIL does not
        params = start(net, seed)
        theta = float(empirical_ntk(net.model, query, params=params))
        pair = (meta_ntk(net.model, tasks, name, Converged(), params=params) for name in ("maml", "anil"))
        shares.append([float(phi) / theta for phi in pair])
    measured("largest ‖J‖²/‖∇f‖² of MAML over 30 networks", max(one for one, _ in shares), below=1)
    measured("largest ‖J‖²/‖∇f‖² of ANIL over 30 networks", max(two for _, two in shares), above=1.2)


slow = pytest.mark.slow


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


@pytest.mark.paper("Assumption 5", "Assumption 4")
@pytest.mark.erratum("E12")
def test_for_an_odd_activation_a_small_initialisation_makes_the_kernel_singular(measured):
    """Θ tends to a multiple of x·x', of rank d = 4 over 8 samples: its condition number grows as σ_w^(−4)."""
    scales, conditions = (0.4, 0.2, 0.1), []
    for sigma_w in scales:
        net = FullyConnected(4, 1, 1, 1, "erf", sigma_w=sigma_w, sigma_b=0.0)
        tasks = make_tasks(net, 1, seed=11, n=4, m=4)
        conditions.append([condition_number(analytic_ntk(net, joint_inputs(tasks)))])
    check_slope(measured, "condition of Θ in σ_w", scales, np.array(conditions), -4.0, 0.4)


def drift_of_test_rows(net, params, tasks, inner, test_tasks, eta0, steps=(5, 10, 20, 40)):
    """sup_t ‖Φ̂_t(T, ·) − Φ̂_0(T, ·)‖/‖Φ̂_0(T, ·)‖ of a test task T while the others are trained on."""
    first, drift = empirical_meta_ntk(net.model, test_tasks, inner, tasks, params=params), 0.0
    for state, _ in descend(net.model, params, tasks, inner, eta0):
        if state.step in steps:
            rows = empirical_meta_ntk(net.model, test_tasks, inner, tasks, params=state.params)
            drift = max(drift, relative(rows, first))
        if state.step == max(steps):
            return drift
    raise AssertionError


@pytest.mark.paper("Eq. (96)", "Eq. (100)", "Eq. (102)", "Eq. (108)")
@pytest.mark.erratum("E39")
@pytest.mark.parametrize(
    ("case", "widths", "seeds", "slope", "window", "most"),
    [
        (("erf", 1), (64, 256, 1024), 2, -1.8, 1.1, 2e-3),
        pytest.param(("erf", 1), (64, 128, 256, 512, 1024), 10, -1.8, 0.5, 1e-3, marks=slow),
        pytest.param(("erf", 2), (64, 128, 256, 512), 10, -0.95, 0.5, 0.03, marks=slow),
    ],
)
def test_the_rows_of_a_test_task_hardly_move_either(case, widths, seeds, slope, window, most, measured):
    """Eq. (30) bounds the kernel of the training tasks; (102) needs these rows to stay as well."""
    values = []
    for width in widths:
        net, tasks, inner, eta0, _ = rate_setting(*case, width)
        _, _, test_tasks, _ = setting(*case, width)
        seeds_ = range(seeds)
        values.append(
            [drift_of_test_rows(net, start(net, s), tasks, inner, test_tasks, eta0) for s in seeds_]
        )
    name = f"test rows, {case[0]} L={case[1]}"
    scale = check_slope(measured, name, widths, np.array(values), slope, window)
    measured(f"{name}, widest", scale[-1], below=most)


def limit_case(activation, depth, width, algorithm, infinite):
    """A setting in which τ = 4 steps come to rest: one support sample a task, all of one Θ(x', x') on the sphere."""
    if not infinite:
        net, tasks, test_tasks, inner = setting(activation, depth, width, algorithm=algorithm)
        return net, (*tasks, *test_tasks), inner, inner.dynamics
    net = FullyConnected(4, width, depth, 1, activation)
    every = tuple(
        Task(task.query_x, task.query_y, task.support_x[:1], task.support_y[:1])
        for task in make_tasks(net, 3, seed=11, n=2, m=2)
    )
    kernel = analytic_ntk if algorithm == "maml" else analytic_last_layer_ntk
    return net, every, InnerLoop(1 / float(kernel(net, every[0].support_x)), 4, algorithm), Converged()


def deviation_from_the_limit(activation, depth, width, algorithm, infinite, seeds, steps=10):
    """‖F_t − (111)‖/‖(111)‖ on a test task: the centred network, and the analytic kernels."""
    net, every, inner, dynamics = limit_case(activation, depth, width, algorithm, infinite)
    tasks, test_tasks, x = every[:2], every[2:], joint_inputs(every)
    last = analytic_last_layer_ntk(net, x) if algorithm == "anil" else None
    eta0 = 0.5 * largest_rate(analytic_meta_ntk(net, tasks, algorithm, dynamics))
    outer = GradientDescent(eta0, steps)
    closed = kernel_regression(analytic_ntk(net, x), tasks, test_tasks, dynamics, outer, last).test
    deviations = []
    for seed in range(seeds):
        params = start(net, seed)
        record = train(centred(net.model, params), params, tasks, inner, eta0, steps, test_tasks)
        deviations.append(relative(record.observations[-1].test_outputs, closed))
    return deviations


WIDE, DEEP = (128, 512, 2048), (64, 128, 256, 512)


@slow
@pytest.mark.paper(
    "Theorem 2", "Theorem 4", "Eq. (103)", "Eq. (104)", "Eq. (111)", "App. D: ANIL", "Eq. (112)"
)
@pytest.mark.parametrize(
    ("case", "widths", "algorithm", "infinite", "most"),
    [
        (("erf", 1), WIDE, "maml", True, 0.12),
        (("relu", 1), WIDE, "maml", True, 0.15),
        (("erf", 2), DEEP, "maml", False, 0.4),
        (("erf", 2), DEEP, "anil", False, 0.35),
        (("erf", 2), DEEP, "anil", True, 0.6),
    ],
)
def test_the_trained_network_tends_to_the_regression_with_the_limit_kernel(
    case, widths, algorithm, infinite, most, measured
):
    """At infinite inner time (λ0 τ = ∞, G interpolates the support) and with the kernel of ANIL, too."""
    values = [deviation_from_the_limit(*case, width, algorithm, infinite, 8) for width in widths]
    name = f"{algorithm}, {case[0]} L={case[1]}{', λ0τ = ∞' if infinite else ''}"
    scale = check_slope(measured, name, widths, np.array(values), -0.55, 0.45)
    measured(f"{name}, widest", scale[-1], below=most)
    assert root_mean_square(np.array(values))[0] > 1.5 * scale[-1]
