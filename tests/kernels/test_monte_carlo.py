"""Kernels of any architecture as the mean over random initialisations."""

import inspect

import pytest
import torch
from torch import nn

from mamltheory import (
    FullyConnected,
    InnerLoop,
    analytic_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    from_module,
    generator,
    monte_carlo_meta_ntk,
    monte_carlo_ntk,
)
from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from tests.paper.cases import relative, sphere
from tests.strategies import as_users_run_it, task

NET = FullyConnected(4, 8, 1)
X = sphere(generator(0, "x"), 3, 4)


def convolutional():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 2)
    ).double()


def test_mean_and_standard_error_are_those_of_the_single_kernels():
    found = monte_carlo_ntk(NET, X, X[:2], draws=7, seed=3)
    single = torch.stack(
        [
            empirical_ntk(NET.model, X, X[:2], params=NET.initialise(generator(3, "monte carlo", i)))
            for i in range(7)
        ]
    )
    assert relative(found.mean, single.mean(0)) < 1e-14
    assert relative(found.standard_error, single.std(0) / 7**0.5) < 1e-13
    assert found.draws == 7


def test_standard_errors_are_the_distance_from_the_exact_mean():
    """For L = 1 the analytic kernel with its terms of 1/l is the exact mean: half of the z-scores are below 0.67."""
    exact = analytic_ntk(NET, X, finite_width=True)
    scores = []
    for seed in range(8):
        found = monte_carlo_ntk(NET, X, draws=40, seed=seed)
        scores.append(((found.mean - exact) / found.standard_error)[torch.triu(torch.ones(3, 3)) > 0])
    assert 0.4 < float(torch.cat(scores).abs().median()) < 1.0


def test_a_module_is_drawn_from_the_seed_alone_and_leaves_the_global_generator_as_it_was():
    before = torch.random.get_rng_state()
    first = monte_carlo_ntk(convolutional, X, draws=3, scale=2.0, outputs="sum")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again = monte_carlo_ntk(convolutional, X, draws=3, scale=2.0, outputs="sum")
    assert torch.equal(first.mean, again.mean)
    assert first.mean.shape == (3, 3)
    assert bool((first.standard_error > 0).all())
    whole = monte_carlo_ntk(convolutional, X, draws=3, outputs="sum")
    assert relative(whole.mean, 2 * first.mean) < 1e-14
    last = monte_carlo_ntk(
        convolutional, X, draws=3, outputs="sum", select=lambda name: name.startswith("4.")
    )
    assert float(last.mean[0, 0]) < float(whole.mean[0, 0])


def test_the_metantk_is_the_mean_of_those_of_single_networks():
    tasks, inner = [task(0, i, d=4, k=2) for i in range(2)], InnerLoop(0.2, 2)
    found = monte_carlo_meta_ntk(convolutional, tasks, inner, draws=2, scale=4.0)
    made, wide = [], FullyConnected(4, 8, 1, 2)

    def keep():
        made.append(convolutional())
        return made[-1]

    monte_carlo_meta_ntk(keep, tasks, inner, draws=2, scale=4.0)
    single = []
    for network in made:
        model, params = from_module(network, 4.0)
        single.append(empirical_meta_ntk(model, tasks, inner, params=params))
    assert relative(found.mean, sum(single) / 2) < 1e-13
    assert relative(found.standard_error, (single[0] - single[1]).abs() / 2) < 1e-9
    plain = monte_carlo_meta_ntk(wide, tasks, inner, draws=2)
    params = [wide.initialise(generator(0, "monte carlo", i)) for i in range(2)]
    kernels = [empirical_meta_ntk(wide.model, tasks, inner, params=one) for one in params]
    assert relative(plain.mean, sum(kernels) / 2) < 1e-13


def growing():
    """A function that makes a wider network at every call, with one output more."""
    sizes = iter(range(1, 5))
    return lambda: nn.Linear(4, next(sizes)).double()


@pytest.mark.parametrize(
    ("build", "draws", "scale", "error", "message"),
    [
        (lambda: 3, 2, 1.0, ConfigurationError, "returns a int"),
        (lambda: 1 / 0, 2, 1.0, ConfigurationError, "ZeroDivisionError"),
        (NET, 1, 1.0, ValueRangeError, "at least 2"),
        (NET, 2, 0.0, ValueRangeError, "positive"),
        (growing(), 2, 1.0, ShapeError, "one architecture"),
    ],
    ids=["no module", "fails", "draws", "scale", "architecture"],
)
def test_what_cannot_be_averaged_is_refused(build, draws, scale, error, message):
    with as_users_run_it(), pytest.raises(error, match=message):
        monte_carlo_ntk(build, X, draws=draws, scale=scale)


@pytest.mark.parametrize(
    ("build", "inner", "options", "error", "message"),
    [
        (NET, InnerLoop(0.1), {"draws": 1}, ValueRangeError, "draws is 1"),
        (NET, InnerLoop(0.1), {"draws": 2**31}, ValueRangeError, "draws is"),
        (NET, InnerLoop(0.1), {"draws": 2.5}, ValueRangeError, "draws is 2.5"),
        (NET, InnerLoop(0.1), {"scale": -1.0}, ValueRangeError, "scale is -1.0"),
        (NET, InnerLoop(0.1), {"scale": "wide"}, ValueRangeError, "scale is 'wide'"),
        (lambda: 1 / 0, 0.1, {}, ConfigurationError, "inner loop is 0.1"),
    ],
)
def test_what_has_no_mean_metantk_is_refused_before_anything_is_built(build, inner, options, error, message):
    with as_users_run_it(), pytest.raises(error, match=message):
        monte_carlo_meta_ntk(build, [task()], inner, **options)


@pytest.mark.parametrize("function", [monte_carlo_ntk, monte_carlo_meta_ntk])
def test_by_default_a_hundred_networks_of_the_first_seed_are_drawn_at_scale_one(function):
    defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
    assert (defaults["draws"], defaults["seed"], defaults["scale"]) == (100, 0, 1.0)
