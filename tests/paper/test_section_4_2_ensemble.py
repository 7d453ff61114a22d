"""Theorem 2 over initialisations: Eq. (12) is the mean of trained networks, and Γ K Γᵀ is their covariance."""

import math

import pytest
import torch
from scipy import stats

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Model,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    nngp,
    train,
)
from mamltheory.errors import ShapeError
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.rates import largest_rate
from tests.paper.cases import EXACT, make_tasks, relative, setting, start
from tests.reference import closed_forms
from tests.strategies import as_users_run_it

LOOPS = [GradientFlow(0.8), GradientDescent(0.2, 3), Converged(ridge=1e-2)]


def effect_of_initial_outputs(x, k, theta, adaptation, tasks, test_tasks, inner, outer):
    """Γ column by column: the paper's formulas for f_0 = e_i less those for f_0 = 0, on training and on test tasks."""
    place = {tuple(sample): i for i, sample in enumerate(x.tolist())}

    def rows(samples):
        return torch.tensor([k * place[tuple(sample)] + j for sample in samples.tolist() for j in range(k)])

    def kernel(matrix):
        return lambda one, two: matrix[rows(one)][:, rows(two)]

    def outputs(f0):
        def f(samples):
            return f0[rows(samples)].reshape(len(samples), k)

        kernels = kernel(theta), kernel(adaptation)
        return [
            torch.cat([closed_forms.trained(f, *kernels, tasks, one, inner, outer) for one in some])
            for some in (tasks, test_tasks)
        ]

    unit = torch.eye(len(theta)).double()
    zero, columns = outputs(0 * unit[0]), [outputs(column) for column in unit]
    return [torch.stack([column[i] - zero[i] for column in columns], 1) for i in (0, 1)]


@pytest.mark.paper("Theorem 2", "Eq. (12)", "Eq. (109)", "Eq. (111)")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize(
    ("inner", "outer"), [(LOOPS[0], LOOPS[1]), (LOOPS[1], LOOPS[2]), (LOOPS[2], LOOPS[0])]
)
def test_the_covariance_is_that_of_the_initial_outputs_through_the_papers_formulas(algorithm, inner, outer):
    net = FullyConnected(4, 20, 2, 2)
    tasks, test_tasks = make_tasks(net, 2), make_tasks(net, 1, seed=1)
    x = joint_inputs((*tasks, *test_tasks))
    theta = analytic_ntk(net, x)
    last = analytic_last_layer_ntk(net, x) if algorithm == "anil" else None
    parts = (theta, tasks, test_tasks, inner, outer, last)
    got, mean = kernel_regression(*parts, nngp=nngp(net, x)), kernel_regression(*parts)
    assert torch.equal(got.train, mean.train)
    assert torch.equal(got.test, mean.test)
    assert (mean.train_covariance, mean.test_covariance) == (None, None)
    moving = theta if last is None else last
    gammas = effect_of_initial_outputs(x, 2, theta, moving, tasks, test_tasks, inner, outer)
    for covariance, gamma in zip((got.train_covariance, got.test_covariance), gammas, strict=True):
        assert relative(covariance, gamma @ nngp(net, x) @ gamma.T) < 1e-8
        assert float(torch.linalg.eigvalsh(covariance)[0]) > -1e-12


def linear_in_its_parameters(algorithm):
    """f_θ(x) = ψ(x) u + ϕ(x) w with fixed features, of which ANIL moves w alone; and the standard deviations of θ_0."""
    g = generator(0, "features")
    first, second = (torch.randn(4, size, generator=g, dtype=torch.float64) for size in (6, 4))
    spread = {
        "u": torch.rand(6, 1, generator=g).double() + 0.5,
        "w": torch.rand(4, 1, generator=g).double() + 0.5,
    }

    def features(x):
        return {"u": torch.tanh(x @ first), "w": torch.cos(x @ second)}

    def function(params, x):
        return sum(part @ params[name] for name, part in features(x).items())

    head = frozenset({"w"}) if algorithm == "anil" else frozenset()
    return Model(function, head=head), features, spread


@pytest.mark.paper("Theorem 2", "Eq. (12)", "Eq. (103)", "Eq. (111)")
@pytest.mark.erratum("E2")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_mean_and_covariance_are_exact_for_an_ensemble_whose_initial_values_have_exact_moments(
    algorithm, measured
):
    """2D initial values ±√D s_i e_i have the mean and covariance of N(0, diag(s²)) exactly, and each is trained."""
    model, features, spread = linear_in_its_parameters(algorithm)
    net = FullyConnected(4, 8, 1, 1)
    tasks, test_tasks = make_tasks(net, 2), make_tasks(net, 1, seed=1)
    x = joint_inputs((*tasks, *test_tasks))
    kernels = {name: part @ part.T for name, part in features(x).items()}
    theta = kernels["u"] + kernels["w"]
    covariance = sum((part * spread[name].T ** 2) @ part.T for name, part in features(x).items())
    inner, steps = InnerLoop(0.5 / extreme_eigenvalues(theta)[1], 2, algorithm), 3
    eta0 = 1 / extreme_eigenvalues(theta)[1]
    size = sum(len(part) for part in spread.values())
    ensemble = []
    for name, part in spread.items():
        for i, sign in ((i, sign) for i in range(len(part)) for sign in (1, -1)):
            params = {other: torch.zeros_like(value) for other, value in spread.items()}
            params[name][i] = sign * math.sqrt(size) * part[i]
            last = train(model, params, tasks, inner, eta0, steps, test_tasks).observations[-1]
            ensemble.append(torch.cat([last.outputs, last.test_outputs]))
    outputs = torch.stack(ensemble)
    adaptation = kernels["w"] if algorithm == "anil" else None
    outer = GradientDescent(eta0, steps)
    got = kernel_regression(theta, tasks, test_tasks, inner.dynamics, outer, adaptation, nngp=covariance)
    mean, trained = outputs.mean(0), len(got.train)
    found = (outputs - mean).T @ (outputs - mean) / len(outputs)
    measured(
        "error of the ensemble's mean, exact moments",
        relative(mean, torch.cat([got.train, got.test])),
        below=EXACT,
    )
    measured(
        "error of the ensemble's covariance, exact moments",
        max(
            relative(found[:trained, :trained], got.train_covariance),
            relative(found[trained:, trained:], got.test_covariance),
        ),
        below=EXACT,
    )
    assert relative(outputs[0], mean) > 0.1


@pytest.mark.paper("Theorem 2", "Eq. (12)", "Eq. (103)", corrected=True)
@pytest.mark.erratum("E2")
def test_equation_12_is_the_mean_of_wide_networks_though_no_single_one_of_them_follows_it(measured):
    """What (12) says holds over initialisations: their mean, and the spread Γ K Γᵀ about it; not for one network."""
    networks, steps = 64, 8
    net, tasks, test_tasks, inner = setting("erf", 1, 1024)
    x = joint_inputs((*tasks, *test_tasks))
    eta0 = 0.5 * largest_rate(analytic_meta_ntk(net, tasks, "maml", inner.dynamics))
    parts = (analytic_ntk(net, x), tasks, test_tasks, inner.dynamics)
    limit = kernel_regression(*parts, GradientDescent(eta0, steps), nngp=nngp(net, x))
    runs = [
        train(net.model, start(net, seed), tasks, inner, eta0, steps, test_tasks).observations[-1]
        for seed in range(networks)
    ]
    for where, seen, mean, covariance in (
        ("training", [run.outputs for run in runs], limit.train, limit.train_covariance),
        ("test", [run.test_outputs for run in runs], limit.test, limit.test_covariance),
    ):
        outputs, spread = torch.stack(seen), covariance.diagonal()
        away = float(((outputs.mean(0) - mean) / (spread / networks).sqrt()).abs().max())
        measured(f"mean of {networks} networks less (12), in standard errors, {where} tasks", away, below=4)
        ratio = outputs.var(0) / spread
        low, high = (stats.chi2.ppf(share, networks - 1) / (networks - 1) for share in (5e-5, 1 - 5e-5))
        measured(f"variance over Γ K Γᵀ, least, {where} tasks", ratio.min(), above=low)
        measured(f"variance over Γ K Γᵀ, largest, {where} tasks", ratio.max(), below=high)
    alone = torch.stack([(run.test_outputs - limit.test).norm() / run.test_outputs.norm() for run in runs])
    measured("median error of (12) for one network, l = 1024", alone.median(), above=0.5)
    untrained = kernel_regression(*parts, GradientDescent(eta0, 0), nngp=nngp(net, x))
    assert float((untrained.train_covariance.diagonal() / limit.train_covariance.diagonal()).max()) > high


@pytest.mark.parametrize(
    "nngp_", [torch.eye(3).double(), torch.eye(4).double().to(torch.cfloat), torch.eye(4).tolist()]
)
def test_a_covariance_of_other_samples_is_refused(nngp_):
    net = FullyConnected(4, 8, 1, 1)
    tasks = make_tasks(net, 1, n=1, m=3)
    with as_users_run_it(), pytest.raises(ShapeError, match="nngp"):
        kernel_regression(torch.eye(4).double(), tasks, [], LOOPS[0], LOOPS[0], nngp=nngp_)
