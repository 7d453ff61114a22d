"""Section 4.2: the MetaNTK of Definition 2 and Theorem 2: MAML as kernel regression, its scale, time and labels.

Seeds are fixed and thresholds are ten or more times the scatter, so that no test fails by chance; the formulas
themselves are decided by the exact tests.
"""

import math

import numpy as np
import pytest
import torch

from mamltheory import (
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    centred,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    linearised,
    meta_ntk,
    meta_output,
    time_operator,
    train,
)
from mamltheory.errors import ShapeError, ValueRangeError
from mamltheory.finite_width.asymptotics import fit_power_law, root_mean_square
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.kernels.meta import adaptation_matrix
from mamltheory.rates import largest_rate
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, setting, sphere, start
from tests.paper.widths import check_slope
from tests.strategies import as_users_run_it


@pytest.mark.paper("Remarks after Theorem 2", corrected=True)
@pytest.mark.erratum("E18")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_the_metantk_moves_with_support_labels_and_not_at_all_with_query_labels(algorithm, measured):
    net = FullyConnected(4, 8, 2, 1)
    params, task, inner = start(net), make_tasks(net, 1)[0], InnerLoop(0.3, 2, algorithm)

    def kernel(query_shift, support_shift):
        moved = Task(task.query_x, task.query_y + query_shift, task.support_x, task.support_y + support_shift)
        return empirical_meta_ntk(net.model, [moved], inner, params=params)

    assert torch.equal(kernel(1.0, 0.0), kernel(0.0, 0.0))
    still = relative(kernel(1.0, 0.0), kernel(0.0, 0.0))
    measured("change of Φ̂ with the query labels", still, below=1e-15)
    measured("change of Φ̂ with the support labels", relative(kernel(0.0, 1.0), kernel(0.0, 0.0)), above=0.01)


def equation_11(theta, tasks, i, j, how, first_factor):
    """Block (i, j) of Eq. (11), its last term with Θ(first_factor, X'_j) in front."""

    def c(a, b):
        return theta(a, b) @ time_operator(theta(b, b), how)

    x, s, y, r = tasks[i].query_x, tasks[i].support_x, tasks[j].query_x, tasks[j].support_x
    front = {"·": x, "⋆": r, "∗": s}[first_factor]
    return theta(x, y) + c(x, s) @ theta(s, r) @ c(y, r).T - c(x, s) @ theta(s, y) - c(front, r) @ theta(r, y)


@pytest.mark.paper("Def. 2", "Eq. (11)", corrected=True)
@pytest.mark.paper("Eq. (92)", "Eq. (106)")
@pytest.mark.erratum("E23")
@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("reading", ["⋆", "∗"])
def test_the_last_term_of_equation_11_begins_with_the_query_samples(activation, reading, measured):
    """Θ(⋆, ⋆), as printed, has m rows where n are needed, and leaves the kernel asymmetric for m = n."""
    net, how = FullyConnected(4, 64, 2, 1, activation), GradientFlow(1.0)
    uneven = make_tasks(net, 1, n=2, m=3)

    def theta(a, b):
        return analytic_ntk(net, a, b)

    def kernel(tasks, first):
        blocks = [
            [equation_11(theta, tasks, i, j, how, first) for j in range(len(tasks))]
            for i in range(len(tasks))
        ]
        return torch.cat([torch.cat(row, 1) for row in blocks])

    with pytest.raises(RuntimeError, match="size"):
        kernel(uneven, reading)
    g = generator(1, "even tasks")
    even = [
        Task(sphere(g, 2, 4), torch.ones(2, 1).double(), sphere(g, 2, 4), torch.ones(2, 1).double())
        for _ in "ab"
    ]
    for tasks in (uneven, even):
        assert relative(kernel(tasks, "·"), analytic_meta_ntk(net, tasks, "maml", how)) < EXACT
    printed = kernel(even, reading)
    measured("asymmetry of the printed kernel", relative(printed, printed.T), above=0.02)
    assert relative(printed, kernel(even, "·")) > 0.1


@pytest.mark.paper(
    "Def. 1", "Sec. 5: MetaNTK from NTK", "App. B.2: SVD", "Eq. (92)", "Eq. (106)", corrected=True
)
@pytest.mark.erratum("E30")
def test_samples_have_the_dimension_of_the_input_and_not_the_number_of_classes():
    """f: ℝᵈ → ℝᵏ and X ∈ ℝ^{n×d}; the printed ℝᵏ → ℝ, ℝ^{n×k} and ℝ^{k×m} are refused where d ≠ k."""
    d, k, n, m = 3, 5, 2, 4
    net, g = FullyConnected(d, 8, 1, k), generator(0, "samples")
    params = start(net)
    query, support, zeros = sphere(g, n, d), sphere(g, m, d), torch.zeros
    right = Task(query, zeros(n, k).double(), support, zeros(m, k).double())
    assert net.model(params, right.query_x).shape == right.query_y.shape
    with as_users_run_it():
        with pytest.raises(ShapeError, match="expected samples × 3"):
            net.model(params, sphere(g, n, k))
        with pytest.raises(ShapeError, match="must agree"):  # X' ∈ ℝ^{m×k}
            Task(query, zeros(n, k).double(), sphere(g, m, k), zeros(m, k).double())
        with pytest.raises(ShapeError, match="one label row each"):  # X' ∈ ℝ^{k×m}
            Task(query, zeros(n, k).double(), sphere(g, k, m), zeros(m, k).double())
        with pytest.raises(ShapeError, match="samples × dimensions"):  # Y ∈ ℝ^{nk}
            Task(query, zeros(n * k).double(), support, zeros(m, k).double())


WIDTHS = (5, 40, 64)


@pytest.mark.paper(
    "Eq. (7)", "Eq. (8)", "Eq. (95)", "Eq. (96)", "Eq. (100)", "Eq. (101)", "Eq. (102)", corrected=True
)
@pytest.mark.paper("Corollary 3.1", corrected=True)
@pytest.mark.erratum("E8")
@pytest.mark.parametrize("width", WIDTHS)
def test_one_meta_step_moves_the_outputs_width_times_as_far_as_the_printed_equation(width, measured):
    """With 1/l in Φ̂ and η = η0/l the equation is dF/dt = −η l Φ̂ (F − 𝒴): the printed exponents lack the factor l."""
    net = FullyConnected(4, width, 2, 1)
    params, tasks, test_tasks = start(net), make_tasks(net, 2), make_tasks(net, 1, seed=1)
    inner, model = InnerLoop(0.3, 2), net.model
    phi = meta_ntk(model, tasks, "maml", inner.dynamics, params=params)
    eta0 = 0.3 * largest_rate(phi)
    seen = train(linearised(model, params), params, tasks, inner, eta0, 1, test_tasks).observations
    moved = seen[1].outputs - seen[0].outputs
    printed = -(eta0 / width) * phi @ (seen[0].outputs - query_labels(tasks))
    assert relative(moved, width * printed) < EXACT
    measured(
        "step over the printed step, divided by l, less 1",
        abs(moved.norm() / printed.norm() / width - 1),
        below=1e-9,
    )
    joint = meta_ntk(model, (*tasks, *test_tasks), "maml", inner.dynamics, params=params)
    rows = joint[len(phi) :, : len(phi)]
    step = (eta0 / width) * rows @ (query_labels(tasks) - seen[0].outputs)
    assert relative(seen[1].test_outputs - seen[0].test_outputs, width * step) < EXACT


@pytest.mark.paper("Eq. (13)", "Eq. (58)", "Eq. (88)", "Eq. (104)", "Eq. (109)", corrected=True)
@pytest.mark.paper("Eq. (84)", corrected=True)
@pytest.mark.erratum("E8", "E15")
@pytest.mark.parametrize("width", WIDTHS)
def test_adaptation_runs_for_the_time_lambda_times_width_times_tau_and_against_the_residual(width, measured):
    """With the printed exponent λτΘ̂ next to nothing is learnt; with the sign of (84) all of it is unlearnt."""
    net, tau = FullyConnected(4, width, 2, 2), 3
    params, task = start(net), make_tasks(net, 1)[0]
    cross = empirical_ntk(net.model, task.query_x, task.support_x, params=params)
    support = empirical_ntk(net.model, task.support_x, params=params)
    lam0 = 0.5 / extreme_eigenvalues(support)[1]
    adapted = meta_output(linearised(net.model, params), params, task, InnerLoop(lam0, tau))
    f, f_support = (net.model(params, x).reshape(-1) for x in (task.query_x, task.support_x))
    residual = f_support - task.support_y.reshape(-1)

    def learnt(rate):
        return adaptation_matrix(cross, support, GradientDescent(rate, tau)) @ residual

    measured("error with λ0 τ in the exponent", relative(f - learnt(lam0), adapted), below=EXACT)
    missing = float((learnt(lam0 / width) - learnt(lam0)).norm() / learnt(lam0).norm())
    measured("share of the adaptation that the printed exponent misses", missing, above=1 - 2 / width)
    one_step = meta_output(linearised(net.model, params), params, task, InnerLoop(lam0, 1)) - f
    assert relative(one_step, -width * (lam0 / width) * cross @ residual) < EXACT
    wrong_sign = f + learnt(lam0)
    assert relative(wrong_sign - adapted, 2 * (f - adapted)) < EXACT
    excess = (wrong_sign - adapted).norm() / (f - adapted).norm()
    measured("error of (84) with its sign, in units of the adaptation", excess, above=1.9)


@pytest.mark.paper("Def. 1", "Eq. (9)", "Eq. (98)", corrected=True)
@pytest.mark.paper("Lemma 3", corrected=True)
@pytest.mark.erratum("E10")
@pytest.mark.parametrize("depth", [1, 2])
def test_without_one_over_the_width_the_kernels_grow_as_the_width(depth, measured):
    """∇f∇fᵀ and JJᵀ, as Definition 1 and Lemma 3 print them, have no limit: 16 times the width, 16 times the kernel."""
    norms, meta_norms = [], []
    for width in (64, 1024):
        net = FullyConnected(4, width, depth, 1)
        task, inner = make_tasks(net, 1), InnerLoop(0.2, 1)
        params = start(net)
        norms.append(float(empirical_ntk(net.model, task[0].query_x, params=params).norm()))
        meta_norms.append(float(empirical_meta_ntk(net.model, task, inner, params=params).norm()))
    for name, (narrow, wide) in zip(("Θ̂", "Φ̂"), (norms, meta_norms), strict=True):
        assert wide / narrow > 0.6
        measured(f"{name} at 16 times the width over {name}, with 1/l", wide / narrow, below=1.6)
        measured(f"{name} at 16 times the width over {name}, as printed", 16 * wide / narrow, above=9.5)


slow = pytest.mark.slow


def deviation_from_the_closed_form(net, tasks, test_tasks, inner, seed, steps=4, wrong=None):
    """‖F_t − closed form‖/‖F_t‖ on the test task, the centred network trained for ``steps`` steps."""
    params, x = start(net, seed), joint_inputs((*tasks, *test_tasks))
    theta = empirical_ntk(net.model, x, params=params)
    last = empirical_last_layer_ntk(net.model, x, params=params) if inner.algorithm == "anil" else None
    phi = meta_ntk(net.model, tasks, inner.algorithm, inner.dynamics, params=params)
    eta0 = 0.8 * largest_rate(phi)
    record = train(centred(net.model, params), params, tasks, inner, eta0, steps, test_tasks)
    outer, adaptation = GradientDescent(eta0, steps), inner.dynamics
    if wrong == "rate":
        outer = GradientDescent(eta0 / 2, steps)
    if wrong == "kernel":
        last = empirical_last_layer_ntk(net.model, x, params=params)
    if wrong == "time":
        adaptation = GradientDescent(2 * inner.lam0, inner.tau)
    closed = kernel_regression(theta, tasks, test_tasks, adaptation, outer, last)
    return relative(record.observations[-1].test_outputs, closed.test)


@pytest.mark.paper("Theorem 2", "Theorem 4", "Eq. (13)", "Corollary 3.1")
@pytest.mark.parametrize(
    ("activation", "depth", "width", "algorithm", "allowed"),
    [
        ("erf", 1, 1024, "maml", 2e-3),
        ("relu", 1, 1024, "maml", 3e-3),
        ("erf", 2, 512, "maml", 2e-2),
        ("erf", 2, 256, "anil", 3e-2),
    ],
)
def test_the_trained_centred_network_is_the_kernel_regression(activation, depth, width, algorithm, allowed):
    case = setting(activation, depth, width, algorithm=algorithm)
    deviations = [deviation_from_the_closed_form(*case, seed) for seed in range(5)]
    assert float(root_mean_square(np.array(deviations))) < allowed


@pytest.mark.paper("Theorem 2")
@pytest.mark.parametrize("wrong", ["rate", "kernel", "time"])
def test_the_threshold_is_sharp_enough_to_see_a_wrong_closed_form(wrong):
    case = setting("erf", 1, 1024)
    deviations = [deviation_from_the_closed_form(*case, seed, wrong=wrong) for seed in range(3)]
    assert min(deviations) > 2 * 2e-3


@pytest.mark.paper(
    "Theorem 2", "Eq. (12)", "Eq. (103)", "Eq. (110)", "Eq. (111)", "Assumption 5", corrected=True
)
@pytest.mark.erratum("E2")
@pytest.mark.parametrize(("width", "allowed"), [(64, 0.1), (1024, 3e-3)])
def test_equation_12_is_false_for_the_network_as_it_is_and_true_with_its_initial_outputs(
    width, allowed, measured
):
    """f_0 = O(1) at every width: Eq. (12), which drops it, stays wrong; Eq. (109) in its place is right."""
    net, tasks, test_tasks, inner = setting("erf", 1, width)
    params, x = start(net), joint_inputs((*tasks, *test_tasks))
    theta, f0 = empirical_ntk(net.model, x, params=params), net.model(params, x).reshape(-1)
    eta0 = 0.8 * largest_rate(meta_ntk(net.model, tasks, "maml", inner.dynamics, params=params))
    trained = train(net.model, params, tasks, inner, eta0, 4, test_tasks).observations[-1].test_outputs
    outer = GradientDescent(eta0, 4)
    printed = kernel_regression(theta, tasks, test_tasks, inner.dynamics, outer).test
    kept = kernel_regression(theta, tasks, test_tasks, inner.dynamics, outer, f0=f0).test
    measured(f"error of (12) as printed, l = {width}", relative(printed, trained), above=0.2)
    measured(f"error with the initial outputs kept, l = {width}", relative(kept, trained), below=allowed)


@slow
@pytest.mark.paper("Theorem 2", "Eq. (12)")
@pytest.mark.parametrize(("activation", "low", "high"), [("erf", -1.0, -0.2), ("relu", -1.0, -0.2)])
def test_the_network_approaches_the_regression_with_the_limit_kernel(activation, low, high):
    """Rate l^(−1/2): the scatter of the kernel at initialisation."""
    widths, values = (128, 256, 512, 1024, 2048), []
    for width in widths:
        net, tasks, test_tasks, inner = setting(activation, 1, width)
        theta = analytic_ntk(net, joint_inputs((*tasks, *test_tasks)))
        eta0 = 0.5 * largest_rate(analytic_meta_ntk(net, tasks, "maml", inner.dynamics))
        closed = kernel_regression(theta, tasks, test_tasks, inner.dynamics, GradientDescent(eta0, 20)).test
        row = []
        for seed in range(8):
            params = start(net, seed)
            record = train(centred(net.model, params), params, tasks, inner, eta0, 20, test_tasks)
            row.append(relative(record.observations[-1].test_outputs, closed))
        values.append(row)
    law = fit_power_law(widths, np.array(values))
    assert low < law.slope < high


@pytest.mark.paper("Remarks after Theorem 2")
def test_the_influence_of_support_labels_on_the_kernel_vanishes_with_the_width():
    values, widths = [], (64, 256, 1024)
    for width in widths:
        net, tasks, _, inner = setting("erf", 1, width)
        moved = [Task(one.query_x, one.query_y, one.support_x, one.support_y + 1) for one in tasks]
        row = []
        for seed in range(5):
            params = net.initialise(generator(seed, "init"))
            kernel = empirical_meta_ntk(net.model, tasks, inner, params=params)
            row.append(relative(empirical_meta_ntk(net.model, moved, inner, params=params), kernel))
        values.append(row)
    assert fit_power_law(widths, root_mean_square(np.array(values))).slope == pytest.approx(-1.95, abs=0.5)


@pytest.mark.paper("Eq. (11)", "Eq. (91)", "Eq. (106)", "Sec. 3: inner steps", corrected=True)
@pytest.mark.erratum("E11")
@pytest.mark.parametrize(("activation", "depth"), [("erf", 1), ("erf", 2), ("relu", 2)])
def test_the_kernel_of_the_flow_is_that_of_many_small_steps_and_not_of_one(activation, depth, measured):
    """Whatever the width: e^{−λ0τΘ} is off by the order of 1/τ at fixed λ0 τ, and exact only as τ → ∞."""
    net, tasks, _, inner = setting(activation, depth, 1)
    time, taus = 2 * inner.lam0, (4, 8, 16, 32, 64, 128, 256)
    flow = analytic_meta_ntk(net, tasks, "maml", GradientFlow(time))

    def gap(tau):
        return relative(analytic_meta_ntk(net, tasks, "maml", GradientDescent(time / tau, tau)), flow)

    check_slope(measured, "gap in τ", taus, np.array([[gap(tau)] for tau in taus]), -1.0, 0.05)
    measured("gap of one step", gap(1), above=0.1)
    measured("gap of 256 steps", gap(256), below=5e-4)


def trained_and_predicted(width, seed, steps=20):
    """‖F_t − closed form‖/‖closed form‖ with the network's own kernel: steps as they are, and the paper's flows."""
    net, tasks, test_tasks, inner = setting("erf", 1, width)
    params, x = start(net, seed), joint_inputs((*tasks, *test_tasks))
    eta0 = 0.5 * largest_rate(analytic_meta_ntk(net, tasks, "maml", inner.dynamics))
    record = train(centred(net.model, params), params, tasks, inner, eta0, steps, test_tasks)
    theta = empirical_ntk(net.model, x, params=params)
    discrete = inner.dynamics, GradientDescent(eta0, steps)
    flows = GradientFlow(inner.lam0 * inner.tau), GradientFlow(eta0 * steps)
    return [
        relative(
            record.observations[-1].test_outputs, kernel_regression(theta, tasks, test_tasks, *loops).test
        )
        for loops in (discrete, flows)
    ]


@pytest.mark.paper("Theorem 2", "Theorem 4", "Eq. (103)", "Eq. (104)", "Eq. (111)", corrected=True)
@pytest.mark.erratum("E11")
@pytest.mark.parametrize(
    ("widths", "seeds"), [((128, 1024), 5), pytest.param((128, 512, 2048), 8, marks=slow)]
)
def test_at_a_fixed_number_of_steps_the_exponential_form_is_wrong_at_every_width(widths, seeds, measured):
    """Two inner steps: the error of the printed form does not fall with the width; with powers it does."""
    values = np.array([[trained_and_predicted(w, s) for s in range(seeds)] for w in widths])
    discrete, printed = root_mean_square(values.transpose(2, 0, 1))
    measured("printed, widest", printed[-1], above=0.04)
    assert printed[-1] > 0.42 * printed[0]  # at the rate l^(−1/2) it would be 0.35 or less
    measured("with powers, widest", discrete[-1], below=2e-3)
    assert discrete[-1] < 0.15 * discrete[0]


def after_training(sigma_w, seed, activation="relu", width=512, steps=40):
    """‖F_t − (12)‖/‖(12)‖, relative kernel drift and rms f_0 of the network as it is; ∞ where training diverges."""
    net = FullyConnected(4, width, 1, 1, activation, sigma_w=sigma_w, sigma_b=sigma_w / 15)
    *tasks, test = make_tasks(net, 3, seed=11, n=2, m=2)
    top = max(extreme_eigenvalues(analytic_ntk(net, task.support_x))[1] for task in tasks)
    inner, x = InnerLoop(0.5 / top, 2), joint_inputs((*tasks, test))
    eta0 = 0.5 * largest_rate(analytic_meta_ntk(net, tasks, "maml", inner.dynamics))
    theta, outer = analytic_ntk(net, x), GradientDescent(eta0, steps)
    closed = kernel_regression(theta, tasks, [test], inner.dynamics, outer).test
    params = start(net, seed)
    initial = float(net.model(params, x).square().mean().sqrt())
    try:
        record = train(net.model, params, tasks, inner, eta0, steps, [test], kernel_steps=(steps,))
    except ValueRangeError:
        return math.inf, math.inf, initial
    drift = relative(record.kernels[steps], record.kernels[0])
    return relative(record.observations[-1].test_outputs, closed), drift, initial


@pytest.mark.paper("Assumption 5", "Theorem 2", "Eq. (12)", corrected=True)
@pytest.mark.erratum("E2", "E12")
def test_at_one_width_a_smaller_initialisation_first_helps_and_then_breaks_the_limit(measured):
    """f_0 falls with σ_w, but so does Θ, and with it the kernel stops being constant: l → ∞ must come first."""
    means = {}
    for sigma_w in (1.5, 0.5, 0.2, 0.1):
        runs = np.array([after_training(sigma_w, seed) for seed in range(4)])
        means[sigma_w] = np.mean(runs, axis=0)
    measured("error of (12), σ_w = 1.5", means[1.5][0], above=0.15)
    measured("error of (12), σ_w = 0.5", means[0.5][0], below=0.3)
    assert means[0.5][0] < 0.75 * means[1.5][0]
    diverged = min(means[0.1][0], 1000.0)  # the value itself, 1e72 or ∞, says nothing more
    measured("error of (12), σ_w = 0.1, at most 1000", diverged, above=10)
    measured("kernel drift, σ_w = 1.5", means[1.5][1], below=0.01)
    measured("kernel drift, σ_w = 0.2", means[0.2][1], above=0.25)
    assert means[0.1][2] < 0.05 * means[1.5][2]
