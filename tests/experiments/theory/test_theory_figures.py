"""The figures of bounds, plateau and Lipschitz constants: what they draw is what the package computes."""

import json

import numpy as np
import pytest
import torch

from experiments.theory import bounds, constants, drift, lipschitz, plateau, sweep
from experiments.theory.settings import Bounds, Drift, Lipschitz, Plateau, Theory
from mamltheory import (
    GradientDescent,
    GradientFlow,
    analytic_ntk,
    centred,
    generator,
    joint_inputs,
    kernel_regression,
    meta_outputs,
    train,
)
from mamltheory.errors import ConfigurationError
from mamltheory.finite_width.bounds import theorem3_drift_bound, theorem3_path_bound, theorem3_residual_bound
from mamltheory.finite_width.lipschitz import jacobian_size, lipschitz_constant
from tests.experiments.stops import counted

SMALL = {"widths": (8, 32), "seeds": 2, "steps": 4, "dimension": 4, "task_count": 2, "jobs": 1}


def small(folder, kind=Theory, **others):
    return kind(**SMALL | {"out": folder / "figures", "runs": folder / "runs"} | others)


def figure_json(folder, name):
    return json.loads((folder / "figures" / f"{name}_sphere.json").read_text())["data"]


def one_network(width, seed, **others):
    """The network and problem of one (width, seed) of the small sweep, made without it."""
    settings = Theory(**SMALL | others)
    net = sweep.network_of_width(settings, width)
    return net, net.initialise(generator(0, "theory init", width, seed)), sweep.make_problem(settings)


@pytest.fixture(scope="module")
def drifted(tmp_path_factory):
    """The folder of a small drift figure."""
    folder = tmp_path_factory.mktemp("drift")
    assert drift.plot_drift(small(folder, Drift)) == 0
    return folder


def test_of_wide_networks_no_constant_is_measured_and_no_bound_drawn(drifted, monkeypatch):
    monkeypatch.setattr(constants, "WIDEST", SMALL["widths"][1])
    settings = small(drifted, Drift, widths=(*SMALL["widths"], 64), out=drifted / "wide")
    assert drift.plot_drift(settings) == 0
    data = json.loads((settings.out / "drift_sphere.json").read_text())["data"]
    whole = figure_json(drifted, "drift")
    assert data["bound widths"] == list(SMALL["widths"])
    for equation in ("bound (29)", "bound (30)"):
        assert data[equation]["values"] == whole[equation]["values"]
    assert len(data["movement"]["values"]) == 3


def test_the_bounds_drawn_are_those_of_theorem_3_with_the_constants_of_each_network(drifted):
    """K and R0 computed again here, from the network itself."""
    data = figure_json(drifted, "drift")
    for i, width in enumerate(SMALL["widths"]):
        for seed in range(SMALL["seeds"]):
            net, params, problem = one_network(width, seed)
            parts = (net.model, params, problem.tasks, problem.inner)
            worst = lipschitz_constant(*parts, generator(0, "another start vector"), 1e-4)
            k = max(1.0, jacobian_size(*parts), worst)
            labels = torch.cat([task.query_y.reshape(-1) for task in problem.tasks])
            start = float((meta_outputs(*parts[:2], problem.tasks, problem.inner) - labels).norm())
            for equation, bound in (("(29)", theorem3_path_bound), ("(30)", theorem3_drift_bound)):
                expected = bound(k, start, problem.sigma_min, width)
                drawn = data[f"bound {equation}"]["values"][i][seed]
                assert drawn == pytest.approx(expected, rel=4 * constants.TOLERANCE)
    for name, equation in (("path_length", "(29)"), ("kernel_drift", "(30)")):
        assert (np.array(data[name]["values"]) < np.array(data[f"bound {equation}"]["values"])).all()


def test_the_constants_are_measured_once_for_every_number_of_steps(drifted):
    first = constants.constants(small(drifted))
    with counted(constants, "measure_constants") as measured:
        again = constants.constants(small(drifted, steps=7))
        assert measured == []
        other = constants.constants(small(drifted, depth=1))
    assert len(measured) == 4
    assert again.rows == first.rows
    assert other.rows != first.rows


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    """The figure of the bounds for L = 1, 2 on few and tiny networks."""
    folder = tmp_path_factory.mktemp("bounds")
    settings = small(folder, Bounds, depth=2, share_widths=(2, 32), batches=2)
    assert bounds.plot_bounds(settings) == 0
    return settings, figure_json(folder, "bounds")


def test_the_figure_of_the_bounds_has_a_column_for_every_depth_and_the_numbers_of_its_sweep(bounded):
    settings, data = bounded
    assert set(data) == {"L = 1", "L = 2"}
    for depth, column in enumerate(data.values(), start=1):
        chosen = constants.sweep_settings(settings, depth=depth)
        result, measured = sweep.run_sweep(chosen, "test"), constants.constants(chosen)
        assert column["path_length"]["values"] == result.values("path_length").tolist()
        assert column["kernel_drift"]["values"] == result.values("kernel_drift").tolist()
        assert column["path_length"]["bound"] == constants.path_bounds(result, measured).tolist()
        assert column["kernel_drift"]["bound"] == constants.drift_bounds(result, measured).tolist()
        bound = theorem3_residual_bound(column["eta0"], column["sigma_min"], 1.0, settings.steps)
        np.testing.assert_allclose(column["residual"]["bound"], bound.numpy(), rtol=1e-14)
        ratio = np.array(column["path_length"]["values"]) / np.array(column["path_length"]["bound"])
        np.testing.assert_allclose(column["path_length"]["median_share_of_bound"], np.median(ratio, axis=1))
        assert (np.array(column["K"]) >= 1).all()


def test_networks_trained_in_a_batch_have_the_residuals_of_each_trained_alone():
    settings = Theory(**SMALL)
    problem, net = sweep.make_problem(settings), sweep.network_of_width(settings, 8)
    starts = bounds.batch_of_starts(settings, net, 1)
    residuals = bounds.batch_residuals(net, starts, problem, 3)
    assert residuals.shape == (bounds.BATCH, 4)
    for i in (0, 7, 24):
        params = net.initialise(generator(0, "share init", 8, bounds.BATCH + i))
        alone = (2 * train(net.model, params, problem.tasks, problem.inner, problem.eta0, 3).losses()).sqrt()
        torch.testing.assert_close(residuals[i], alone, rtol=1e-10, atol=1e-12)


def test_the_share_counts_the_networks_below_the_bound_and_a_diverging_one_is_not(bounded, monkeypatch):
    settings, data = bounded
    counted_ = data["L = 2"]["share"]
    assert counted_["networks"] == 2 * bounds.BATCH
    for low, part, high, count in zip(
        *(counted_[name] for name in ("low", "share", "high", "within_bound")), strict=True
    ):
        assert 0 <= low <= part == count / (2 * bounds.BATCH) <= high <= 1
        assert high - low > 0.03
    assert counted_["share"][0] < counted_["share"][1]
    chosen = constants.sweep_settings(settings)
    problem = sweep.make_problem(chosen)
    rows = torch.ones(bounds.BATCH, settings.steps + 1, dtype=torch.float64) * 0.1
    rows[:, 0] = 1
    rows[3, 2], rows[4, 4] = float("nan"), 0.9999
    monkeypatch.setattr(bounds, "batch_residuals", lambda *_: rows)
    held = bounds.measure_share(chosen, problem, (4, 0))["held"]
    assert [i for i, one in enumerate(held) if not one] == [3, 4]


@pytest.fixture(scope="module")
def plateaued(tmp_path_factory):
    """The figure of the plateau on tiny networks."""
    folder = tmp_path_factory.mktemp("plateau")
    settings = small(folder, Plateau, widths=(16, 1024), steps=10, taus=(1, 2, 32, 64))
    assert plateau.plot_plateau(settings) == 0
    return settings, figure_json(folder, "plateau")


def test_the_plateau_is_the_distance_of_the_two_closed_forms_and_the_trained_network_nears_only_one(
    plateaued,
):
    settings, data = plateaued
    net, _, problem = one_network(1, 0, depth=1, tau=1)
    x = joint_inputs((*problem.tasks, *problem.test_tasks))
    eta0, inner = problem.eta0, problem.inner
    discrete, printed = (
        kernel_regression(analytic_ntk(net, x), problem.tasks, problem.test_tasks, *dynamics).test
        for dynamics in (
            (inner.dynamics, GradientDescent(eta0, 10)),
            (GradientFlow(inner.lam0), GradientFlow(10 * eta0)),
        )
    )
    assert data["plateau"] == pytest.approx(float((printed - discrete).norm() / discrete.norm()), rel=1e-9)
    net, params, _ = one_network(1024, 1, depth=1, tau=1)
    model = centred(net.model, params)
    trained = train(model, params, problem.tasks, inner, eta0, 10, problem.test_tasks)
    outputs = trained.observations[-1].test_outputs
    for name, form in (("discrete", discrete), ("printed", printed)):
        expected = float((outputs - form).norm() / discrete.norm())
        assert data[name]["values"][1][1] == pytest.approx(expected, rel=1e-6)
    assert data["discrete"]["rms"][1] < data["discrete"]["rms"][0] / 3
    assert settings.taus == (1, 2, 32, 64)


def test_the_plateau_falls_as_one_over_the_number_of_inner_steps(plateaued):
    gaps = plateaued[1]["gaps"]
    assert set(gaps) == {"L = 1", "L = 2", "L = 3"}
    for record in gaps.values():
        assert record["values"][2] / record["values"][3] == pytest.approx(2, rel=0.03)
        assert record["values"][0] > 0.01


@pytest.fixture(scope="module")
def lipschitz_drawn(tmp_path_factory):
    """The figure of the Lipschitz constants of two activations on tiny networks."""
    folder = tmp_path_factory.mktemp("lipschitz")
    sizes = {key: value for key, value in SMALL.items() if key != "steps"}
    places = {"out": folder / "figures", "runs": folder / "runs"}
    settings = Lipschitz(**sizes | places, activations=("erf", "relu"))
    assert lipschitz.plot_lipschitz(settings) == 0
    return settings, figure_json(folder, "lipschitz")


@pytest.mark.slow
def test_the_lipschitz_constants_drawn_are_those_of_the_networks(lipschitz_drawn):
    _, data = lipschitz_drawn
    assert set(data) == {"L = 1", "L = 2", "kink"}
    for depth, activation in ((1, "erf"), (2, "relu")):
        net, params, problem = one_network(32, 1, depth=depth, activation=activation)
        parts = (net.model, params, problem.tasks, problem.inner)
        worst = lipschitz_constant(*parts, generator(0, "another start vector"), 1e-4)
        record = data[f"L = {depth}"][activation]
        assert record["rate_of_change"]["values"][1][1] == pytest.approx(worst, rel=2 * constants.TOLERANCE)
        assert record["jacobian_size"]["values"][1][1] == pytest.approx(jacobian_size(*parts), rel=1e-9)


@pytest.mark.slow
def test_across_a_kink_the_ratio_of_relu_grows_as_the_inverse_distance_and_that_of_erf_does_not(
    lipschitz_drawn,
):
    kink = lipschitz_drawn[1]["kink"]
    assert kink["distances"] == list(lipschitz.DISTANCES)
    assert kink["ratios"]["relu"][-1] / kink["ratios"]["relu"][-2] == pytest.approx(10, rel=1e-3)
    assert kink["ratios"]["erf"][-1] == pytest.approx(kink["ratios"]["erf"][0], rel=0.01)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Bounds, {"share_widths": (4, 2)}, "increasing order"),
        (Bounds, {"batches": 1}, "batches is 1"),
        (Plateau, {"taus": (1,)}, "at least two"),
        (Lipschitz, {"activations": ("erf", "erf")}, "each once"),
        (Lipschitz, {"activations": ()}, "at least one"),
    ],
)
def test_wrong_settings_of_the_figures_are_refused(kind, wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**wrong)
