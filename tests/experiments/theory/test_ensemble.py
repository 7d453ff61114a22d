"""The figure of the ensemble: what it draws is trained networks and the limit, along a circle through two samples."""

import json

import numpy as np
import pytest
import torch

from experiments.theory import ensemble, sweep
from experiments.theory.bounds import BATCH
from experiments.theory.settings import Ensemble
from mamltheory import (
    GradientDescent,
    Task,
    analytic_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    nngp,
    train,
)
from tests.paper.cases import relative

SMALL = {"widths": (8, 32), "batches": 2, "steps": 3, "tau": 2, "dimension": 4, "task_count": 2, "jobs": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Settings, problem and numbers of a small figure."""
    folder = tmp_path_factory.mktemp("ensemble")
    settings = Ensemble(**SMALL, out=folder / "figures", runs=folder / "runs")
    assert ensemble.plot_ensemble(settings) == 0
    content = json.loads((settings.out / "ensemble_sphere.json").read_text())
    return settings, sweep.make_problem(settings), content["data"]


def test_the_circle_is_of_length_one_and_goes_through_both_support_samples(drawn):
    _, problem, data = drawn
    circle, angles = ensemble.circle_task(problem.test_tasks[0])
    assert torch.allclose(circle.query_x.norm(dim=1), torch.ones(ensemble.POINTS).double())
    points, support, angles = circle.query_x.numpy(), circle.support_x.numpy(), angles.numpy()
    for sample, angle in zip(support, data["support_angles"], strict=True):
        # the product with a point of the circle is the cosine of the angle between them
        np.testing.assert_allclose(points @ sample, np.cos(angles - angle), atol=1e-12)


def test_networks_and_their_mean_are_those_of_trainings_and_the_limit_is_the_regression(drawn):
    settings, problem, data = drawn
    circle, _ = ensemble.circle_task(problem.test_tasks[0])
    net = sweep.network_of_width(settings, 32)
    for seed in (0, ensemble.DRAWN - 1):
        params = net.initialise(generator(0, "share init", 32, seed))
        parts = (problem.tasks, problem.inner, problem.eta0, settings.steps, [circle])
        alone = train(net.model, params, *parts).observations[-1].test_outputs
        np.testing.assert_allclose(data["networks"][seed], alone, rtol=1e-9)
    rows = [ensemble.measure_outputs(settings, problem, (32, batch))["outputs"] for batch in range(2)]
    trained = torch.tensor(rows, dtype=torch.float64).reshape(2 * BATCH, -1)
    np.testing.assert_allclose(data["mean_of_networks"][1], trained.mean(0), rtol=1e-9)
    np.testing.assert_allclose(data["deviation_of_networks"][1], trained.std(0), rtol=1e-9)
    x = joint_inputs((*problem.tasks, circle))
    loops = problem.inner.dynamics, GradientDescent(problem.eta0, settings.steps)
    theta = analytic_ntk(net, x, finite_width=True)
    limit = kernel_regression(theta, problem.tasks, [circle], *loops, nngp=nngp(net, x))
    np.testing.assert_allclose(data["mean"][1], limit.test, rtol=1e-9)
    np.testing.assert_allclose(
        np.square(data["standard_deviation"][1]), limit.test_covariance.diagonal(), rtol=1e-9
    )
    assert data["error_of_one"][1][30] == pytest.approx(relative(trained[30], limit.test))
    assert data["error_of_mean"][1] == pytest.approx(relative(trained.mean(0), limit.test))
    size = float(limit.test_covariance.trace() / (2 * BATCH)) ** 0.5 / float(limit.test.norm())
    assert data["sampling_error"][1] == pytest.approx(size)


def test_the_circle_does_not_use_labels_of_its_own():
    x = torch.eye(3).double()
    task = Task(x[:1], torch.ones(1, 1).double(), x[:2], torch.tensor([[1.0], [2.0]]).double())
    circle, angles = ensemble.circle_task(task)
    assert not circle.query_y.any()
    assert torch.equal(circle.support_y, task.support_y)
    assert torch.allclose(circle.query_x[:, 1], angles.sin())
