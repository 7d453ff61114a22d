"""Appendices B.3 and B.4: the residual at initialisation (Lemma 2), and the blocks of the MetaNTK (Lemma 3)."""

import numpy as np
import pytest
import torch

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_meta_ntk,
    generator,
    joint_inputs,
    meta_ntk,
    meta_outputs,
    nngp,
)
from mamltheory.kernels.empirical_meta import stacked_meta_jacobian
from mamltheory.kernels.meta import composition, joint_sizes
from mamltheory.rates import largest_rate
from mamltheory.tasks import query_labels
from tests.paper.cases import (
    EXACT,
    SHALLOW,
    adaptation,
    identity,
    named,
    relative,
    rows_of,
    setting,
    sphere,
    start,
    with_printed_variances,
)
from tests.paper.widths import at_widths, check_level, check_slope


@pytest.mark.paper("Eq. (48)")
@pytest.mark.paper("App. B.4: spectrum", corrected=True)
@pytest.mark.erratum("E27")
@pytest.mark.parametrize(("sigma_w2", "value"), [(2.0, 16.0), (4.0, 16 * 2.0**16), (1.0, 16 * 2.0**-16)])
def test_the_ntk_grows_linearly_in_the_depth_only_at_the_critical_variance(sigma_w2, value, measured):
    """Θ_xx = L (σ_w²/2)^L |x|²/d for ReLU: O(L) is the case σ_w² = 2; at fixed depth a constant is all that is used."""
    x = 2 * sphere(generator(0, "samples"), 1, 4)  # |x|² = d
    for depth in (1, 4, 16):
        net = FullyConnected(4, 64, depth, 1, "relu", sigma_w=sigma_w2**0.5, sigma_b=0.0)
        assert float(analytic_ntk(net, x)) == pytest.approx(depth * (sigma_w2 / 2) ** depth, rel=1e-10)
    assert float(analytic_ntk(net, x)) == pytest.approx(value, rel=1e-10)
    bound = {1.0: {"below": 1e-4}, 2.0: {"below": 1 + 1e-10}, 4.0: {"above": 1e4}}[sigma_w2]
    measured(f"Θ_xx over L at L = 16, σ_w² = {sigma_w2:g}", float(analytic_ntk(net, x)) / 16, **bound)


@pytest.mark.paper("App. B.4: spectrum", "App. B.5: contraction")
@pytest.mark.erratum("E29")
def test_those_misprints_that_change_a_number_do_change_it(measured):
    """η0 Φ̂_0 printed as Φ̂_0, and a kernel called semi-definite because it is symmetric."""
    net, tasks, _, inner = setting("erf", 1, 64)
    params = start(net)
    j = rows_of(stacked_meta_jacobian(net.model, params, tasks, inner))
    phi0 = j @ j.T / net.width
    phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics)
    eta0 = 0.5 * largest_rate(phi)
    step = identity(len(phi)) - eta0 * phi0
    printed, corrected = (
        identity(len(phi)) - eta0 * phi + (eta0 * phi - factor * phi0) for factor in (1.0, eta0)
    )
    measured(
        "error of the decomposition of I − η0 Φ̂_0 with Φ̂_0 for η0 Φ̂_0", relative(printed, step), above=0.05
    )
    measured("error of the decomposition with η0 Φ̂_0", relative(corrected, step), below=EXACT)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    measured("least eigenvalue of a symmetric rows_of", torch.linalg.eigvalsh(swap).min(), below=-0.5)
    measured("least eigenvalue of the Gram rows_of JJᵀ/l", torch.linalg.eigvalsh(phi0).min(), above=0)


slow = pytest.mark.slow


@pytest.mark.paper("Eq. (91)", corrected=True)
def test_the_blocks_from_the_empirical_ntk_tend_to_those_from_its_limit(measured):
    """The scatter about the kernel with its terms of order 1/l falls as l^(−1/2), and these terms fall as 1/l.

    With λ = λ0/l in the exponent, as printed, nothing would be adapted: that kernel is far away.
    """
    values, terms = [], []
    for width in SHALLOW:
        net, tasks, _, inner = setting("erf", 1, width)
        limit, phi = (
            analytic_meta_ntk(net, tasks, "maml", inner.dynamics, finite_width=one) for one in (False, True)
        )
        found = [meta_ntk(net.model, tasks, "maml", inner.dynamics, params=start(net, s)) for s in range(16)]
        values.append([relative(one, phi) for one in found])
        terms.append([relative(phi, limit)])
        printed = analytic_meta_ntk(net, tasks, "maml", GradientFlow(inner.lam0 * inner.tau / width))
        measured("error of the printed kernel", relative(printed, sum(found) / 16), above=0.2)
    scale = check_slope(measured, "the scatter of (90) about (91)", SHALLOW, np.array(values), -0.5, 0.15)
    measured("√l times the scatter, l = 1024", scale[-1] * SHALLOW[-1] ** 0.5, below=2.6)
    assert scale[-1] * SHALLOW[-1] ** 0.5 > 0.6
    check_slope(measured, "the terms of order 1/l", SHALLOW, np.array(terms), -1.0, 0.1)


@pytest.mark.paper("Lemma 3", "Eq. (11)")
def test_the_mean_of_the_metantk_is_the_kernel_with_discrete_time(measured):
    """A wrong kernel with the right rate: the mean of 40 networks tells it from those of other inner times."""
    net, tasks, _, inner = setting("erf", 1, 1024)

    def limit(dynamics):
        return analytic_meta_ntk(net, tasks, "maml", dynamics, finite_width=True)

    phi = limit(inner.dynamics)
    kernels = torch.stack(
        [empirical_meta_ntk(net.model, tasks, inner, params=start(net, seed)) for seed in range(40)]
    )
    error = float((kernels - phi).square().sum((1, 2)).mean().sqrt() / phi.norm()) / 40**0.5
    measured("deviation of the mean over its standard error", relative(kernels.mean(0), phi) / error, below=3)
    others = {
        "the flow": GradientFlow(inner.lam0 * inner.tau),
        "one step": GradientDescent(inner.lam0, 1),
        "infinite time": Converged(1e-3),
    }
    for name, dynamics in others.items():
        distance = relative(kernels.mean(0), limit(dynamics)) / error
        measured(f"distance of the mean from the kernel of {name} over the standard error", distance, above=6)


def initial_residual(net, params, tasks, inner):
    """‖g(θ_0)‖, and f_0 of one sample."""
    outputs = meta_outputs(net.model, params, tasks, inner)
    return float((outputs - query_labels(tasks)).norm()), float(net.model(params, tasks[0].query_x[:1]))


@pytest.mark.paper("Lemma 2", "Eq. (27)", "Eq. (82)", "Eq. (87)")
@pytest.mark.erratum("E28")
@pytest.mark.parametrize(
    ("case", "widths"),
    [
        (("erf", 1), (16, 64, 256, 1024)),
        (("relu", 1), (16, 64, 256, 1024)),
        pytest.param(("erf", 2), (16, 64, 256), marks=slow),
        pytest.param(("relu", 2), (16, 64, 256), marks=slow),
    ],
)
def test_the_initial_residual_is_bounded_with_a_probability_that_does_not_depend_on_the_width(
    case, widths, measured
):
    """Its 90 % quantile over 60 networks is flat; the initial outputs in it are of order 1, not of small scale."""
    residuals, outputs = at_widths(case, widths, 60, initial_residual).swapaxes(0, 1)
    quantiles = np.quantile(residuals, 0.9, axis=1)
    check_slope(measured, named("R0", case), widths, quantiles[:, None], 0.0, 0.2)
    check_level(measured, named("R0", case), quantiles[-1], 2.2, 4.8)
    net, tasks, _, _ = setting(*case, widths[-1])
    limit = float(nngp(net, tasks[0].query_x[:1]).sqrt())
    scale = check_slope(measured, named("rms f_0", case), widths, outputs, 0.0, 0.25)
    check_level(measured, named("rms f_0 over its limit", case), scale[-1] / limit, 0.6, 1.5)
    assert limit > 0.5


@pytest.mark.paper("Lemma 2", "Eq. (82)", "Eq. (85)", "Eq. (86)", "Eq. (87)")
def test_the_residual_of_a_task_is_bounded_by_the_networks_and_the_kernels(measured):
    """‖F − Y‖ ≤ ‖f(X) − Y‖ + ‖C‖ ‖f(X') − Y'‖ up to what Eq. (58) leaves out, and R0 = √N R_2 for N tasks."""
    net, tasks, _, inner = setting("erf", 1, 1024)
    for seed in range(5):
        params, parts = start(net, seed), []
        for task in tasks:
            matrix = float(torch.linalg.matrix_norm(adaptation(net, task, inner)(params), 2))
            query, support = (
                float((net.model(params, x) - y).norm())
                for x, y in ((task.query_x, task.query_y), (task.support_x, task.support_y))
            )
            outputs = meta_outputs(net.model, params, (task,), inner)
            parts.append(float((outputs - task.query_y.reshape(-1)).norm()))
            measured("‖F − Y‖/(85)", parts[-1] / (query + matrix * support), below=1.001)
        total = initial_residual(net, params, tasks, inner)[0]
        assert total <= len(tasks) ** 0.5 * max(parts) * (1 + 1e-12)


def bound_from_the_limit(net, tasks, inner, delta, draws=20_000):
    """R0 of Lemma 2 from the Gaussian limit alone: F_0 − 𝒴 ~ N(C Y' − Y, A K Aᵀ) with K the NNGP, no network."""
    theta, x = analytic_ntk(net, joint_inputs(tasks)), joint_inputs(tasks)
    rows = composition(theta, joint_sizes(theta, tasks), inner.dynamics)
    labels = torch.cat([part.reshape(-1) for one in tasks for part in (one.query_y, one.support_y)])
    factor = torch.linalg.cholesky(nngp(net, x))
    noise = torch.randn(len(labels), draws, generator=generator(0, "limit"), dtype=torch.float64)
    return float((rows @ (factor @ noise - labels[:, None])).norm(dim=0).quantile(1 - delta))


@pytest.mark.paper(
    "Lemma 2", "Eq. (27)", "Eq. (82)", "Eq. (85)", "Eq. (86)", "Eq. (87)", "Eq. (93)", corrected=True
)
@pytest.mark.erratum("E9")
@pytest.mark.parametrize("case", [("erf", 1), ("relu", 2)])
def test_one_constant_bounds_the_initial_residual_at_every_width_and_is_known_without_a_network(
    case, measured
):
    """R0 is chosen first, for δ0/10 = 0.05; then 80 networks of every width are drawn, and about 4 exceed it.

    With the variances as printed, outputs and meta-outputs grow as √l, and no R0 serves all widths.
    """
    for width in (16, 64, 256):
        net, tasks, _, inner = setting(*case, width)
        bound = bound_from_the_limit(net, tasks, inner, 0.05)
        found = np.array([initial_residual(net, start(net, seed), tasks, inner)[0] for seed in range(80)])
        measured(named("share of networks beyond R0", case), np.mean(found > bound), below=0.16)
        measured(named("share of networks beyond R0/2", case), np.mean(found > bound / 2), above=0.2)
    literal = [with_printed_variances(start(net, seed)) for seed in range(40)]
    residuals = np.array([initial_residual(net, params, tasks, inner)[0] for params in literal])
    measured(named("share beyond R0 as printed, l = 256", case), np.mean(residuals > bound), above=0.5)
    outputs = [float((net.model(params, tasks[0].query_x) - tasks[0].query_y).norm()) for params in literal]
    measured(
        named("share of ‖f − Y‖ beyond R0 as printed", case), np.mean(np.array(outputs) > bound), above=0.4
    )
