"""``verify``: measurements of modules in the units of the standard parameterisation, and verdicts that can be wrong."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from experiments.theory.example_networks import (
    mean_field,
    one_hidden_layer,
    residual_network,
    small_convolution,
    transformer,
)
from mamltheory import (
    FullyConnected,
    GradientDescent,
    InnerLoop,
    empirical_ntk,
    from_module,
    generator,
    joint_inputs,
    kernel_regression,
    train,
    verify,
)
from mamltheory.errors import ConfigurationError, NetworkError, SingularKernelError, ValueRangeError
from mamltheory.finite_width import verdicts
from mamltheory.finite_width.asymptotics import PowerLaw
from mamltheory.finite_width.lipschitz import lipschitz_constant
from mamltheory.finite_width.verification import drawn, found_scale, stable_inner_loop
from tests.paper.cases import make_tasks, relative
from tests.strategies import as_users_run_it, task

NET = FullyConnected(4, 8, 1, 1)
TASKS = make_tasks(NET, 3, n=2, m=2)
TRAINING, HELD_OUT = TASKS[:2], TASKS[2:]


class NtkParameterisation(nn.Module):
    """One hidden layer with standard normal parameters and factors 1/√fan_in."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(width, 4)), nn.Parameter(torch.randn(1, width))

    def forward(self, x):
        return torch.tanh(x @ self.first.T / 2) @ self.second.T / self.second.shape[1] ** 0.5


def stretch(width):
    """A factor of all parameters, no power of the width."""
    return 1 + 100 / width


class Standard(nn.Module):
    """One hidden layer whose initial values have the variances, and parameters that count ``stretch`` times."""

    def __init__(self, width, stretched=False):
        super().__init__()
        self.by = stretch(width) if stretched else 1.0
        self.first = nn.Parameter(torch.randn(width, 4) / 2 / self.by)
        self.second = nn.Parameter(torch.randn(1, width) / width**0.5 / self.by)

    def forward(self, x):
        return torch.tanh(x @ (self.by * self.first).T) @ (self.by * self.second).T


@pytest.mark.parametrize(
    ("build", "power"), [(one_hidden_layer, 1), (Standard, 1), (NtkParameterisation, 0), (mean_field, -1)]
)
def test_the_scale_is_the_power_of_the_width_by_which_the_kernel_grows(build, power):
    assert found_scale(build, (32, 256), TRAINING) == power


def run(build, widths, lipschitz=False, algorithm="maml", steps=8, seeds=3):
    power = found_scale(build, widths, TRAINING, seeds)
    loop = InnerLoop(0.0, 1, algorithm)
    inner = stable_inner_loop(build, widths[-1], float(widths[-1]) ** power, TASKS, loop)
    return verify(
        build, widths, TRAINING, inner, test_tasks=HELD_OUT, steps=steps, seeds=seeds, lipschitz=lipschitz
    )


@pytest.fixture(scope="module")
def lazy():
    return run(NtkParameterisation, (16, 128), lipschitz=True, steps=6, seeds=2)


def test_every_measurement_is_that_of_the_network_alone(lazy):
    """In NTK parameterisation parameters count 1/√l of their length, and the rate of change of J √l times."""
    assert lazy.scales == (1.0, 1.0)
    model, params = drawn(NtkParameterisation, 128, 1.0, 0, 1)
    parts = (model, params, TRAINING, lazy.inner)
    record = train(*parts, lazy.eta0, 6, HELD_OUT, kernel_steps=range(7))
    values = {name: value[1, 1] for name, value in lazy.values.items()}
    labels = torch.cat([one.query_y for one in TRAINING]).flatten()
    assert values["residuals"][0] == pytest.approx(float((record.observations[0].outputs - labels).norm()))
    assert values["residuals"][-1] == pytest.approx(float(2 * record.observations[-1].loss) ** 0.5)
    assert values["path"] == pytest.approx(record.observations[-1].path_length / 128**0.5)
    assert values["drift"] == pytest.approx(
        max(record.kernel_drift().values()) / float(record.kernels[0].norm())
    )
    x = joint_inputs(TASKS)
    outer = GradientDescent(lazy.eta0, 6)
    f0 = model(params, x).flatten()
    closed = kernel_regression(
        empirical_ntk(model, x, params=params), TRAINING, HELD_OUT, lazy.inner.dynamics, outer, f0=f0
    )
    trained = record.observations[-1].test_outputs
    assert values["deviation"] == pytest.approx(float((closed.test - trained).norm() / trained.norm()))
    rate = lipschitz_constant(*parts, generator(1, "another start vector"), 1e-4) * 128**0.5
    size = float(record.kernels[0].trace()) ** 0.5
    assert values["K"] == pytest.approx(max(1.0, size, rate), rel=0.02)


def test_parameters_in_other_units_have_the_same_measurements():
    """f(cθ) instead of f(θ), with kernels and rates divided by c² more: everything that is reported agrees."""
    options = {"test_tasks": HELD_OUT, "steps": 4, "seeds": 2}
    inner = InnerLoop(0.2, 1)
    usual = verify(Standard, (8, 32), TRAINING, inner, scale=float, **options)
    other = verify(
        lambda width: Standard(width, True), (8, 32), TRAINING, inner,
        scale=lambda width: width * stretch(width) ** 2, **options,
    )  # fmt: skip
    assert other.eta0 == pytest.approx(usual.eta0, rel=1e-6)
    for name, value in usual.values.items():
        # the weights are drawn in float32, and K is a maximum within one per cent
        np.testing.assert_allclose(other.values[name], value, rtol=2e-2 if name == "K" else 1e-4)


@pytest.mark.slow
def test_the_theorems_hold_of_a_wide_network_and_not_in_mean_field():
    good = {one.statement: one for one in run(one_hidden_layer, (32, 128, 512)).verdicts}
    bad = {one.statement: one for one in run(mean_field, (32, 128, 512)).verdicts}
    kernel, regression = "Theorem 3, Eq. (30): change of the kernel", "Theorem 2: kernel regression"
    assert all(
        good[name].holds for name in (kernel, regression, "Lemma 3: one kernel for all initialisations")
    )
    assert bad[kernel].holds is False
    assert bad[regression].holds is False
    assert bad[kernel].text.startswith("does not hold, the kernel moves: slope")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "shape", "widths"),
    [
        (small_convolution, (1, 6, 6), (32, 128)),
        (residual_network, (1, 6, 6), (8, 32)),
        (transformer, (3, 4), (8, 32)),
    ],
)
def test_convolutional_residual_and_transformer_networks_are_verified(build, shape, widths):
    x = torch.nn.functional.normalize(
        torch.randn(16, *shape, generator=generator(0, "x"), dtype=torch.float64).flatten(1)
    )
    x, y = x.reshape(16, *shape), torch.randn(16, 1, generator=generator(0, "y"), dtype=torch.float64)
    one = task(k=1)
    tasks = [
        type(one)(x[i : i + 2], y[i : i + 2], x[i + 2 : i + 4], y[i + 2 : i + 4]) for i in range(0, 16, 4)
    ]
    power = found_scale(build, widths, tasks)
    assert power == 1
    inner = stable_inner_loop(build, widths[-1], float(widths[-1]), tasks, InnerLoop(0.0, 1))
    found = verify(build, widths, tasks[:2], inner, test_tasks=tasks[2:], steps=10, seeds=3)
    assert len(found.verdicts) == 8
    change = next(one for one in found.verdicts if "(30): change" in one.statement)
    assert change.holds is not False, str(found)
    residuals = found.values["residuals"]
    assert (residuals[:, :, -1] < residuals[:, :, 0]).all()


WIDTHS = (16, 64, 256)


def law(slope, prefactor=0.5):
    noise = 1 + 0.02 * torch.randn(3, 4, generator=generator(0, "noise")).double().numpy()
    return prefactor * np.array(WIDTHS)[:, None] ** slope * noise


@pytest.mark.parametrize(("slope", "holds"), [(-0.5, True), (-1.0, True), (0.0, False), (-0.1, False)])
def test_a_fall_is_judged_by_the_interval_of_its_slope(slope, holds):
    found, text = verdicts.falls(WIDTHS, law(slope), "it stays")
    assert found is holds
    assert ("it stays" in text) == (not holds)
    assert float(re.search(r"slope (\S+)", text)[1]) == pytest.approx(slope, abs=0.03)


def test_an_interval_that_contains_the_threshold_decides_nothing():
    rows = np.array([[1.0, 0.3], [0.4, 0.9], [0.2, 0.7]])
    found, text = verdicts.falls(WIDTHS, rows, "it stays")
    assert found is None
    assert "more seeds" in text
    assert verdicts.falls(WIDTHS, np.zeros((3, 2)), "it stays")[0] is True


@pytest.mark.parametrize(
    ("interval", "holds"),
    [
        ((-0.08, -0.34, 0.18), False),
        ((-0.49, -0.77, -0.21), None),
        ((-0.3, -0.45, -0.1), None),
        ((-0.3, -0.7, 0.1), None),
        ((-0.4, -0.5, -0.26), True),
        ((-0.1, -0.2, -0.05), False),
    ],
)
def test_an_interval_without_the_expected_slope_that_reaches_zero_is_no_fall(monkeypatch, interval, holds):
    monkeypatch.setattr(verdicts, "fit_power_law", lambda *_: PowerLaw(*interval, 1.0))
    found, text = verdicts.falls(WIDTHS, law(0.0), "it stays")
    assert found is holds
    assert text.startswith({True: "holds", False: "does not hold, it stays", None: "undecided"}[holds])


@pytest.mark.parametrize(("slope", "holds"), [(0.0, True), (-0.5, True), (0.5, False)])
def test_a_constant_must_not_grow(slope, holds):
    assert verdicts.stays(WIDTHS, law(slope))[0] is holds


def test_a_bound_holds_from_the_width_on_from_which_all_networks_are_within_it():
    inside = np.array([[True, True], [True, False], [True, True]])
    assert verdicts.bounded(WIDTHS, inside) == (True, "holds from width 256")
    assert verdicts.bounded(WIDTHS, inside | True) == (True, "holds at all widths from 16")
    assert verdicts.bounded(WIDTHS, inside[:2])[0] is False
    assert "1 of 2" in verdicts.bounded(WIDTHS[:2], inside[:2])[1]


def no_network(_):
    return 3


def broken(width):
    raise RuntimeError(f"no network of {width}")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"build": 3}, ConfigurationError, "function from the width"),
        ({"build": no_network}, ConfigurationError, "gives a int"),
        ({"build": broken}, NetworkError, "no network of 16"),
        ({"widths": (8,)}, ConfigurationError, "two or more"),
        ({"widths": (16, 8)}, ConfigurationError, "increasing"),
        ({"seeds": 1}, ValueRangeError, "at least 2"),
        ({"eta0": -1.0}, ValueRangeError, "positive"),
        ({"scale": 3.0}, ConfigurationError, "function of the width"),
        ({"scale": lambda width: -width}, ValueRangeError, "positive"),
        ({"tasks": (TASKS[0], TASKS[0])}, SingularKernelError, "positive definite"),
    ],
)
def test_what_cannot_be_verified_is_refused(change, error, message):
    arguments = {
        "build": one_hidden_layer,
        "widths": (8, 16),
        "tasks": TRAINING,
        "inner": InnerLoop(0.1),
        "test_tasks": HELD_OUT,
        "steps": 1,
        "seeds": 2,
        "scale": float,
        **change,
    }
    with as_users_run_it(), pytest.raises(error, match=message):
        verify(**arguments)


def test_the_global_generator_is_left_as_it_was():
    before = torch.get_rng_state()
    one, again = (drawn(one_hidden_layer, 8, 8.0, 0, 2)[1] for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], again[name]) for name in one)
    other = drawn(one_hidden_layer, 8, 8.0, 0, 3)[1]
    assert relative(one["0.weight"], other["0.weight"]) > 0.1
    assert from_module(one_hidden_layer(8).double(), 8.0)[0].scale == 8.0
