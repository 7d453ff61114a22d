"""Appendices A and B: assumptions, the MetaNTK at initialisation, and the bounds of Theorem 3."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from mamltheory import (
    FullyConnected,
    GradientFlow,
    InnerLoop,
    Model,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    centred,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    meta_ntk,
    meta_ntk_from_ntk,
    meta_outputs,
    train,
)
from mamltheory.finite_width.asymptotics import fit_power_law, root_mean_square
from mamltheory.finite_width.bounds import (
    extreme_eigenvalues,
    theorem3_drift_bound,
    theorem3_path_bound,
    theorem3_residual_bound,
)
from mamltheory.kernels.analytic import _layers
from mamltheory.kernels.empirical_meta import meta_jacobian, stacked_meta_jacobian
from mamltheory.kernels.moments import erf_moments
from mamltheory.maml import descend
from mamltheory.networks import from_module
from mamltheory.tasks import query_labels
from tests.paper.cases import (
    EXACT,
    ROUNDING,
    make_tasks,
    rate_setting,
    relative,
    rows_of,
    setting,
    sphere,
    start,
    with_printed_variances,
)
from tests.paper.widths import check_level, check_slope
from tests.reference.dense import Dense


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
    first, second = _layers(net, x, x)
    expected = ratios[1] * second.value + ratios[0] * first.value * net.sigma_w**2 * second.slope
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


@pytest.mark.paper("Theorem 3", "Eq. (63)")
@pytest.mark.erratum("E38")
@pytest.mark.parametrize(("share", "contracts"), [(0.5, True), (1.9, True), (2.2, False)])
def test_the_bound_on_the_inner_rate_that_theorem_3_leaves_open_is_two_over_the_largest_eigenvalue(
    share, contracts, measured
):
    """Gradient flow contracts at every λ; τ steps do below 2/σ_max(Θ), and beyond it ‖J‖ grows with τ without end."""
    net = FullyConnected(4, 20, 2, 1)
    params, task = start(net), make_tasks(net, 1)[0]
    silent = Task(task.query_x, task.query_y, task.support_x, net.model(params, task.support_x))
    lam0 = share / extreme_eigenvalues(empirical_ntk(net.model, task.support_x, params=params))[1]

    def size(tau):
        return float(rows_of(stacked_meta_jacobian(net.model, params, [silent], InnerLoop(lam0, tau))).norm())

    sizes = [size(tau) for tau in (0, 1, 20, 40)]
    assert (max(sizes) <= sizes[0] * ROUNDING) == contracts
    assert (sizes[3] > 20 * sizes[2] > 0) == (not contracts)
    bound = {"below": ROUNDING} if contracts else {"above": 20}
    measured(f"‖J‖ at τ = 40 over ‖J‖ at τ = 0, λ0 σ_max = {share}", sizes[3] / sizes[0], **bound)
    flow = meta_ntk(net.model, [task], "maml", GradientFlow(40 * lam0), params=params)
    assert float(flow.trace() * net.width) <= sizes[0] ** 2 * ROUNDING


slow = pytest.mark.slow


RATES = [("erf", 1, 256, 3), ("relu", 1, 256, 3), ("erf", 2, 256, 2)]


FULL_RATES = [
    pytest.param(a, d, w, 10, marks=slow) for a, d in (("erf", 1), ("relu", 1), ("erf", 2)) for w in (64, 256)
]


@pytest.mark.paper("Theorem 3", "Eq. (31)", "Eq. (32)")
@pytest.mark.parametrize(("activation", "depth", "width", "seeds"), [*RATES, *FULL_RATES])
def test_the_residual_stays_below_the_bound_of_theorem_3_at_every_step(activation, depth, width, seeds):
    net, tasks, inner, eta0, sigma_min = rate_setting(activation, depth, width)
    for seed in range(seeds):
        residuals = (2 * train(net.model, start(net, seed), tasks, inner, eta0, 40).losses()).sqrt()
        bound = theorem3_residual_bound(eta0, sigma_min, float(residuals[0]), 40)
        assert bool((residuals <= bound * (1 + 1e-12)).all())


@pytest.mark.paper("Theorem 3", "Eq. (29)", "Eq. (30)")
@pytest.mark.parametrize(("activation", "depth"), [("erf", 1), ("erf", 2)])
def test_path_and_kernel_drift_stay_below_their_bounds(activation, depth):
    """With K at least ‖J‖/√l, a lower bound of the constant, there is a factor of 10 and more to spare."""
    net, tasks, inner, eta0, sigma_min = rate_setting(activation, depth, 256)
    params = start(net)
    kernel = empirical_meta_ntk(net.model, tasks, inner, params=params)
    lipschitz = max(1.0, float(kernel.trace().sqrt()))
    record = train(net.model, params, tasks, inner, eta0, 40, kernel_steps=(20, 40))
    residual = math.sqrt(2 * float(record.losses()[0]))
    path, drift = record.observations[-1].path_length, max(record.kernel_drift().values())
    assert 0 < path < 0.2 * theorem3_path_bound(lipschitz, residual, sigma_min, net.width)
    assert 0 < drift < 0.1 * theorem3_drift_bound(lipschitz, residual, sigma_min, net.width)


@pytest.mark.paper("Theorem 3", "Eq. (30)")
@pytest.mark.parametrize(
    ("activation", "depth", "seeds", "low", "high"),
    [
        ("erf", 1, 4, -2.6, -1.3),
        pytest.param("erf", 1, 10, -2.3, -1.6, marks=slow),
        pytest.param("relu", 1, 10, -2.4, -1.6, marks=slow),
        pytest.param("erf", 2, 10, -1.3, -0.5, marks=slow),
    ],
)
def test_the_kernel_drifts_less_than_the_bound_says(activation, depth, seeds, low, high):
    """Eq. (30) bounds it by l^(−1/2); it falls as l^(−2) with one hidden layer and as l^(−1) with two."""
    widths, values = (64, 128, 256, 512), []
    for width in widths:
        net, tasks, inner, eta0, _ = rate_setting(activation, depth, width)
        runs = [
            train(centred(net.model, params), params, tasks, inner, eta0, 20, kernel_steps=(20,))
            for params in (start(net, seed) for seed in range(seeds))
        ]
        values.append([run.kernel_drift()[20] for run in runs])
    assert low < fit_power_law(widths, root_mean_square(np.array(values))).slope < high


def kernel_deviations(activation, depth, widths, seeds):
    """‖Φ̂_0 − Φ‖/‖Φ‖ with the terms of order 1/l in Φ: widths × seeds."""
    values = []
    for width in widths:
        net, tasks, _, inner = setting(activation, depth, width)
        phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics, finite_width=True)
        kernels = (
            empirical_meta_ntk(net.model, tasks, inner, params=start(net, seed)) for seed in range(seeds)
        )
        values.append([relative(kernel, phi) for kernel in kernels])
    return np.array(values)


@pytest.mark.paper("Lemma 3", "Eq. (5)", "Eq. (24)")
@pytest.mark.parametrize(
    ("activation", "depth", "seeds", "slope", "window", "level"),
    [
        ("erf", 1, 10, -0.50, 0.30, (0.6, 2.6)),
        pytest.param("relu", 1, 24, -0.50, 0.20, (1.0, 5.0), marks=slow),
        pytest.param("erf", 2, 24, -0.45, 0.30, (0.7, 3.5), marks=slow),
    ],
)
def test_the_metantk_at_initialisation_scatters_about_its_limit_as_the_root_of_the_width(
    activation, depth, seeds, slope, window, level
):
    """The slope alone would not see a wrong constant: √l times the deviation is pinned down too."""
    widths = (64, 128, 256, 512, 1024) if depth == 1 else (64, 128, 256, 512)
    scale = root_mean_square(kernel_deviations(activation, depth, widths, seeds))
    assert fit_power_law(widths, scale).slope == pytest.approx(slope, abs=window)
    levels = scale * np.sqrt(widths)
    assert levels.min() > level[0]
    assert levels.max() < level[1]


@pytest.mark.paper("Eq. (16)", corrected=True)
@pytest.mark.erratum("E9")
@pytest.mark.parametrize(("depth", "widths"), [(1, (64, 256, 1024, 4096)), (2, (64, 256, 1024))])
def test_with_the_printed_fan_out_in_the_variances_the_initial_outputs_grow_with_the_width(
    depth, widths, measured
):
    """As √l (l_i is the number of columns of W^i); with the fan-in they are of order 1."""
    printed, meant = [], []
    for width in widths:
        net = FullyConnected(4, width, depth, 1, "erf", sigma_b=0.5)
        x = make_tasks(net, 1, seed=11)[0].query_x[:1]
        for seed in range(40):
            params = start(net, seed)
            meant.append(float(net.model(params, x)))
            printed.append(float(net.model(with_printed_variances(params), x)))
    table = [np.reshape(values, (len(widths), 40)) for values in (printed, meant)]
    check_slope(measured, f"f_0 as printed, L={depth}", widths, table[0], 0.52, 0.3)
    scale = check_slope(measured, f"f_0 with the fan-in, L={depth}", widths, table[1], 0.0, 0.25)
    assert 0.6 < scale[-1] < 2
    measured(f"rms f_0 as printed, L={depth}", root_mean_square(table[0])[-1], above=12)


def two_layers(widths, sigma_w=1.5, sigma_b=0.1, input_dim=4):
    """An erf network with hidden layers of two widths, scaled by the smaller one, and how to draw it."""
    sizes = (input_dim, *widths, 1)

    def function(params, x):
        for i in (1, 2):
            x = torch.erf(linear(x, params[f"weight{i}"], params[f"bias{i}"]))
        return linear(x, params["weight3"], params["bias3"])

    def draw(seed):
        g, params = generator(seed, "two widths"), {}
        for i, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
            weight = torch.randn(after, before, generator=g, dtype=torch.float64)
            params[f"weight{i}"] = weight * sigma_w / before**0.5
            params[f"bias{i}"] = torch.randn(after, generator=g, dtype=torch.float64) * sigma_b
        return params

    return Model(function, float(min(widths))), draw


def two_width_ntk(x, ratios, sigma_w=1.5, sigma_b=0.1):
    """Θ = α_2 q² + α_1 q¹ σ_w² q̇² with α_i = l_i/l and q^i = E[σσ], q̇^i = E[σ'σ'] of layer i."""
    covariance, q = x @ x.T / x.shape[1], []
    for _ in range(2):
        covariance = sigma_w**2 * covariance + sigma_b**2
        diagonal = covariance.diagonal()
        covariance, slope = erf_moments(diagonal[:, None], covariance, diagonal[None])
        q.append((covariance, slope))
    return ratios[1] * q[1][0] + ratios[0] * q[0][0] * sigma_w**2 * q[1][1]


@pytest.mark.paper("Assumption 3", corrected=True)
@pytest.mark.erratum("E24")
@pytest.mark.parametrize(("wide", "off"), [(1024, 0.8), (2048, 2.0)])
def test_unequal_widths_change_the_limit_kernel(wide, off, measured):
    """With l the least width the theory is said to hold unchanged; the limit depends on all ratios l_i/l."""
    model, draw = two_layers((256, wide))
    equal, _, _, inner = setting("erf", 2, 256)
    tasks = make_tasks(equal, 2, seed=11, n=2, m=2)
    x, sizes = joint_inputs(tasks), [(len(task.query_x), len(task.support_x)) for task in tasks]
    kernel = sum(empirical_ntk(model, x, params=draw(seed)) for seed in range(3)) / 3
    assert relative(two_width_ntk(x, (1, 1)), analytic_ntk(equal, x)) < 1e-12
    aware = two_width_ntk(x, (1, wide / 256))
    measured("Θ, ratios kept", relative(kernel, aware), below=0.15)
    measured(f"Θ, l_2/l = {wide // 256}", relative(kernel, two_width_ntk(x, (1, 1))), above=off)
    phi, phi_aware, phi_equal = (
        meta_ntk_from_ntk(theta, sizes, inner.dynamics) for theta in (kernel, aware, two_width_ntk(x, (1, 1)))
    )
    measured("Φ, ratios kept", relative(phi, phi_aware), below=0.25)
    measured(f"Φ, l_2/l = {wide // 256}", relative(phi, phi_equal), above=0.5)


@pytest.mark.paper("Theorem 3", "Eq. (29)")
@pytest.mark.parametrize(
    ("case", "widths", "seeds"),
    [
        (("erf", 1), (64, 256, 1024), 4),
        pytest.param(("erf", 1), (64, 256, 1024), 10, marks=slow),
        pytest.param(("relu", 1), (64, 256, 1024), 10, marks=slow),
        pytest.param(("erf", 2), (64, 128, 256), 10, marks=slow),
    ],
)
def test_the_path_of_training_shortens_as_the_root_of_the_width(case, widths, seeds, measured):
    """As the bound (29) says; √l times the length stays of order 1."""
    values = []
    for width in widths:
        net, tasks, inner, eta0, _ = rate_setting(*case, width)
        runs = [train(net.model, start(net, seed), tasks, inner, eta0, 40) for seed in range(seeds)]
        values.append([run.observations[-1].path_length for run in runs])
    scale = check_slope(measured, f"path, {case[0]} L={case[1]}", widths, np.array(values), -0.5, 0.3)
    check_level(measured, f"√l·path, {case[0]} L={case[1]}", scale[-1] * widths[-1] ** 0.5, 0.5, 20)


@slow
@pytest.mark.paper("Theorem 1", "Theorem 3", "Eq. (31)", "Eq. (32)", "Eq. (94)")
@pytest.mark.parametrize(
    ("activation", "depth", "widths"),
    [("erf", 1, (16, 64, 256, 1024)), ("relu", 1, (16, 64, 256, 1024)), ("erf", 2, (16, 64, 256))],
)
def test_the_bound_of_theorem_3_holds_with_a_probability_that_reaches_one_from_some_width_on(
    activation, depth, widths, measured
):
    """For all of 12 networks at l ≥ 64, for some ReLU networks not at l = 16, as "l ≥ Λ" admits.

    At half of the largest rate. The rate that is seen comes close to 1 − η0 σ_min, and far below the bound's.
    """
    counts = []
    for width in widths:
        net, tasks, inner, eta0, sigma_min = rate_setting(activation, depth, width)
        held, rates = 0, []
        for seed in range(100, 112):
            residuals = (2 * train(net.model, start(net, seed), tasks, inner, eta0, 60).losses()).sqrt()
            bound = theorem3_residual_bound(eta0, sigma_min, float(residuals[0]), 60)
            held += bool((residuals <= bound * (1 + 1e-12)).all())
            rates.append(float(residuals[-1] / residuals[-11]) ** 0.1)
        counts.append(held)
        name = f"networks of 12 within the bound, {activation} L={depth} l={width}"
        measured(name, held, above=11.5 if width >= 64 else 5.5)
    assert counts == sorted(counts)
    expected, printed = 1 - eta0 * sigma_min, 1 - eta0 * sigma_min / 3
    gap = abs(float(np.mean(rates)) - expected) / (printed - expected)
    measured(f"rate beside 1 − η0σ_min, {activation} L={depth}", gap, below=0.7)
