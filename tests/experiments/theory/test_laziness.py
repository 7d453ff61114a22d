"""The negative controls: a multiplier is a factor of the labels, and where the theory must fail the check says so."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from experiments.theory import laziness, sweep
from experiments.theory.settings import Laziness, Theory
from mamltheory import empirical_ntk, meta_ntk, train
from mamltheory.finite_width.asymptotics import fit_power_law
from mamltheory.rates import largest_rate
from tests.paper.cases import relative

SMALL = {"depth": 1, "steps": 6, "dimension": 4, "task_count": 2, "jobs": 1}


def case(width, seed=0, **others):
    """A network, its initial parameters and the problem of the settings."""
    settings = Theory(**SMALL | others)
    return *sweep.initialised(settings, (width, seed)), sweep.make_problem(settings)


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_a_multiplier_leaves_the_kernels_and_is_a_factor_of_the_labels_in_training(algorithm):
    """αf on Y, rates and kernels over α², trained as any function is: f on Y/α by the factored method, times α."""
    net, params, problem = case(6, algorithm=algorithm)
    alpha, steps = 0.3, 3
    model = laziness.multiplied(net.model, alpha)
    x = problem.tasks[0].query_x
    kernels = [empirical_ntk(one, x, params=params) for one in (model, net.model)]
    assert relative(*kernels) < 1e-12
    parts = (problem.inner, problem.eta0, steps)
    whole = train(model, params, problem.tasks, *parts, problem.test_tasks, kernel_steps=(steps,))
    assert whole.method == "generic"
    divided = [laziness.with_labels(some, 1 / alpha) for some in (problem.tasks, problem.test_tasks)]
    fast = train(net.model, params, divided[0], *parts, divided[1], kernel_steps=(steps,))
    assert fast.method == "factored"
    assert relative(alpha * fast.observations[-1].test_outputs, whole.observations[-1].test_outputs) < 1e-10
    assert relative(fast.kernels[steps], whole.kernels[steps]) < 1e-10
    assert fast.observations[-1].movement == pytest.approx(whole.observations[-1].movement, rel=1e-9)


WIDTHS, SEEDS, STEPS = (64, 256, 1024), 3, 20


def accepted(errors):
    """Whether Theorem 2 holds of networks of these widths: the error falls, and is small at the largest width."""
    law = fit_power_law(WIDTHS, np.asarray(errors))
    return law.high < -0.25 and max(errors[-1]) < 0.05


@pytest.fixture(scope="module")
def errors():
    """Both measures, widths × seeds, of networks in NTK parameterisation, in mean field, and of lazier ones."""
    settings, found = Theory(**SMALL), {"ntk": [], "mean field": [], "lazy": []}
    problem = sweep.make_problem(settings)
    for width in WIDTHS:
        rows = {name: [] for name in found}
        for seed in range(SEEDS):
            net = sweep.network_of_width(settings, width)
            parts = laziness.in_ntk_parameterisation(net, problem, settings, (width, seed))
            for name, alpha in (("ntk", 1.0), ("mean field", width**-0.5), ("lazy", 10.0)):
                there = laziness.multiplied_labels(parts[2], alpha)
                rows[name].append(laziness.lazy_or_rich(*parts[:2], there, STEPS))
        for name in found:
            found[name].append(rows[name])
    return {
        measure: {name: [[one[measure] for one in row] for row in rows] for name, rows in found.items()}
        for measure in laziness.MEASURES
    }


@pytest.mark.paper("Theorem 2", "Theorem 4")
def test_the_check_of_theorem_2_accepts_the_ntk_parameterisation_and_rejects_mean_field(errors):
    assert accepted(errors["error"]["ntk"])
    assert not accepted(errors["error"]["mean field"])
    assert min(min(row) for row in errors["error"]["mean field"]) > 0.05


@pytest.mark.paper("Theorem 3", "Eq. (30)")
def test_the_kernel_of_a_mean_field_network_moves_as_much_at_every_width(errors):
    moved = {name: fit_power_law(WIDTHS, np.asarray(rows)) for name, rows in errors["drift"].items()}
    assert moved["ntk"].high < -0.25
    assert moved["mean field"].low > -0.25
    assert min(errors["drift"]["mean field"][-1]) > 0.05
    assert (np.mean(errors["drift"]["lazy"], axis=1) < 0.7 * np.mean(errors["drift"]["ntk"], axis=1)).all()


def test_beyond_the_critical_rate_the_largest_eigenvalue_falls_until_the_rate_is_stable():
    """The catapult: where it ends, σ_max(Φ̂_T) < 2/η0, so that the kernel has moved by a share that no width changes."""
    for width in (64, 512):
        net, params, problem = case(width)
        start = meta_ntk(net.model, problem.tasks, "maml", problem.inner.dynamics, params=params)
        eta0, steps = 1.3 * 2 / float(torch.linalg.eigvalsh(start)[-1]), 60
        record = train(net.model, params, problem.tasks, problem.inner, eta0, steps, kernel_steps=(steps,))
        top = [float(torch.linalg.eigvalsh(record.kernels[step])[-1]) for step in (0, steps)]
        assert top[1] < 2 / eta0 < top[0]
        losses = record.losses()
        assert losses.max() > 2 * losses[0]
        assert losses[-1] < losses[0]
        calm = train(net.model, params, problem.tasks, problem.inner, 0.8 * largest_rate(start), 5).losses()
        assert (calm[1:] < calm[:-1]).all()


def test_a_training_that_diverges_has_nothing_in_common_with_the_theory():
    net, params, problem = case(16)
    wild = dataclasses.replace(problem, eta0=1e3 * problem.eta0)
    assert laziness.lazy_or_rich(net, params, wild, 5) == {"drift": 1.0, "error": 1.0}
    one = torch.ones(2)
    assert laziness.disagreement(one, one) == 0
    assert laziness.disagreement(one, -one) == laziness.disagreement(one, one * float("nan")) == 1


@pytest.mark.slow
def test_the_figure_draws_what_is_measured(tmp_path, monkeypatch):
    for name in ("MULTIPLIERS", "RATES", "SIGMAS"):
        monkeypatch.setattr(laziness, name, (0.5, 1.5))
    settings = Laziness(
        **SMALL | {"steps": 2}, widths=(8, 16), seeds=2, out=tmp_path / "figures", runs=tmp_path / "runs"
    )
    assert laziness.plot_laziness(settings) == 0
    data = json.loads((settings.out / "laziness_sphere.json").read_text())["data"]
    net, params, problem = case(16, 1, steps=2)
    found = laziness.lazy_or_rich(net, params, problem, 2)
    for measure, expected in found.items():
        record = data["measures"][measure]
        assert record["standard"]["values"][1][1] == pytest.approx(expected, rel=1e-9)
        assert np.array(record["rate"]).shape == np.array(record["multiplier"]).shape == (2, 2, 2)
    small = laziness.in_ntk_parameterisation(net, problem, settings, (16, 1), 0.5)
    assert (small[0].parameterisation, small[0].sigma_w, small[0].sigma_b) == ("ntk", 0.5, 0.5 / 15)
    expected = laziness.lazy_or_rich(*small, 2)
    assert data["measures"]["drift"]["sigma_w"][1][1][0] == pytest.approx(expected["drift"], rel=1e-9)
    assert small[2].eta0 > 2 * problem.eta0
