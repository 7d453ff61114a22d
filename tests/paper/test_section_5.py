"""Section 5: the two scores of the search, and Algorithm 1."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import spearmanr

from mamltheory import (
    Converged,
    FullyConnected,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_ntk,
    empirical_meta_ntk,
    generator,
    joint_inputs,
    meta_ntk,
    meta_ntk_from_ntk,
    train,
)
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.linalg import condition_number
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.ranking import ranks
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.genotype import Candidates
from mamltheory.networks import Model
from mamltheory.rates import largest_rate
from tests.paper.cases import EXACT, make_tasks, relative, setting, start
from tests.paper.widths import at_widths, check_slope
from tests.reference.nas_toy import argmin_per_edge, planted_scorer, planted_values
from tests.strategies import kernels


@pytest.mark.paper("Algorithm 1 (MetaNTK-NAS)", corrected=True)
@pytest.mark.erratum("E43")
def test_ranks_by_index_lose_planted_optima_that_least_ranks_always_find(measured):
    """Where R is constant, C alone should decide; the index in a sorted list adds the order of enumeration to it."""
    operators = Candidates().operators()
    assert ranks([0.0] * len(operators), "index") == list(range(1, 127))
    assert set(ranks([0.0] * len(operators), "min")) == {1}
    found, seeds = {"min": 0, "index": 0}, range(4)
    for seed, ties in itertools.product(seeds, found):
        values = planted_values(seed)
        scorer = planted_scorer(values, dict.fromkeys(operators, 7.0))
        state = run_search(scorer, SearchSettings(repeats=1, ties=ties))
        found[ties] += set(state.candidates.operators()) == argmin_per_edge(values)
    measured("share of optima that least ranks find", found["min"] / len(seeds), above=0.9)
    measured("share of optima that ranks by index find", found["index"] / len(seeds), below=0.7)


@pytest.mark.paper("Eq. (14)")
@pytest.mark.erratum("E36")
def test_the_condition_number_depends_on_the_scale_of_the_kernel_at_finite_time_or_with_a_ridge(measured):
    """λτ = 1 on 1000 Θ is λτ = 1000 on Θ: near convergence. Without ridge, λτ = ∞ alone is free of the scale."""
    net = FullyConnected(4, 64, 2, 1)
    tasks = make_tasks(net, 2)
    theta = analytic_ntk(net, joint_inputs(tasks))
    sizes = [(len(task.query_x), len(task.support_x)) for task in tasks]

    def condition(scale, how):
        return condition_number(meta_ntk_from_ntk(scale * theta, sizes, how))

    converged = [condition(scale, Converged()) for scale in (1.0, 10.0, 1000.0)]
    measured("the same at λτ = ∞", max(converged) / min(converged), below=1 + 1e-8)
    finite = [condition(scale, GradientFlow(1.0)) for scale in (1.0, 10.0, 1000.0)]
    measured("largest over least C_N at λτ = 1 for Θ, 10 Θ, 1000 Θ", max(finite) / min(finite), above=1.1)
    assert finite[1] == pytest.approx(condition(1.0, GradientFlow(10.0)), rel=1e-8)
    assert condition(1e-3, Converged(1e-3)) == pytest.approx(condition(1.0, Converged(1.0)), rel=1e-8)
    assert abs(condition(1.0, Converged(1.0)) / converged[0] - 1) > 0.1


slow = pytest.mark.slow


class _Refusing(torch.autograd.Function):
    """Passes its argument on and cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        raise RuntimeError("a second derivative was asked for")


class _OnceDifferentiable(torch.autograd.Function):
    """tanh with a first derivative and no second one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):  # noqa: ARG004
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return _Refusing.apply(gradient * (1 - y.square()))


@pytest.mark.paper("Sec. 5: first-order cost")
def test_the_metantk_from_the_ntk_takes_no_second_derivative_and_equation_4_does():
    net = FullyConnected(3, 6, 1, 1, "tanh")
    params, tasks = start(net), make_tasks(net, 2)

    def forward(p, x):
        hidden = _OnceDifferentiable.apply(x @ p["weight1"].T + p["bias1"])
        return hidden @ p["weight2"].T + p["bias2"]

    once = Model(forward, net.model.scale, net.model.head)
    kernel = meta_ntk(once, tasks, "maml", GradientFlow(1.0), params=params)
    assert relative(kernel, meta_ntk(net.model, tasks, "maml", GradientFlow(1.0), params=params)) < EXACT
    with pytest.raises(RuntimeError, match="second derivative"):
        empirical_meta_ntk(once, tasks, InnerLoop(0.3, 1), params=params)


@pytest.mark.paper("fn. 5", "Sec. 5: both scores")
@settings(max_examples=30)
@given(kernels(condition=1e3))
def test_at_the_best_rate_descent_contracts_by_the_condition_number_alone(kernel):
    matrix, _ = kernel
    kappa, identity = condition_number(matrix), torch.eye(len(matrix)).double()

    def contraction(rate):
        return float(torch.linalg.matrix_norm(identity - rate * matrix, 2))

    best = largest_rate(matrix)
    assert contraction(best) == pytest.approx((kappa - 1) / (kappa + 1), abs=1e-9)
    assert min(contraction(0.9 * best), contraction(1.1 * best)) >= contraction(best)


@pytest.mark.paper("fn. 5", "Sec. 5: both scores", "Sec. 1: indicator")
def test_of_two_sets_of_tasks_the_one_with_the_smaller_condition_number_is_learnt_faster(measured):
    net, tasks, _, inner = setting("erf", 1, 256)
    near = [
        Task(torch.stack([t.query_x[0], t.query_x[0] + 0.3 * (t.query_x[1] - t.query_x[0])]), t.query_y[:2],
             t.support_x, t.support_y) for t in tasks
    ]  # fmt: skip
    params, kappas, rates = start(net), [], []
    for some in (tasks, near):
        phi = empirical_meta_ntk(net.model, some, inner, params=params)
        losses = train(net.model, params, some, inner, largest_rate(phi), 200).losses()
        kappas.append(condition_number(phi))
        rates.append(float((losses[200] / losses[100]) ** (1 / 200)))
    assert kappas[0] < kappas[1]
    assert rates[0] < rates[1]
    for kappa, rate in zip(kappas, rates, strict=True):
        predicted = (kappa - 1) / (kappa + 1)
        measured("error of the predicted rate", abs(math.log(rate) / math.log(predicted) - 1), below=0.2)


NETWORKS = [
    ("erf", 1, 1.5), ("erf", 2, 1.5), ("erf", 3, 1.5), ("tanh", 1, 1.5), ("tanh", 2, 2.5), ("relu", 1, 1.5),
    ("relu", 2, 1.5), ("erf", 1, 0.7),
]  # fmt: skip


@pytest.mark.paper("fn. 5", "Sec. 5: both scores", "Sec. 1: indicator")
def test_of_eight_networks_on_the_same_tasks_those_with_smaller_condition_numbers_train_faster(measured):
    """Each at the best rate of its own kernel; a rate is that of the residual over the steps 40 to 80."""
    kappas, rates, left = [], [], []
    for activation, depth, sigma_w in NETWORKS:
        net = FullyConnected(4, 128, depth, 1, activation, sigma_w=sigma_w)
        tasks, params = make_tasks(net, 2, seed=11, n=2, m=2), start(net)
        supports = [analytic_ntk(net, task.support_x) for task in tasks]
        inner = InnerLoop(0.5 / max(extreme_eigenvalues(one)[1] for one in supports), 1)
        phi = empirical_meta_ntk(net.model, tasks, inner, params=params)
        losses = train(net.model, params, tasks, inner, largest_rate(phi), 80).losses()
        kappas.append(condition_number(phi))
        rates.append(float((losses[80] / losses[40]) ** (1 / 80)))
        left.append(float(losses[80] / losses[0]))
        predicted = math.log((kappas[-1] - 1) / (kappas[-1] + 1))
        measured(
            "error of the predicted rate of a network", abs(math.log(rates[-1]) / predicted - 1), below=0.3
        )
    measured("rank correlation of C_N and the rate", spearmanr(kappas, rates).statistic, above=0.9)
    measured(
        "rank correlation of C_N and the loss that is left", spearmanr(kappas, left).statistic, above=0.8
    )
    measured("largest over least C_N", max(kappas) / min(kappas), above=4)


@pytest.mark.paper("Sec. 5: both scores")
def test_a_network_of_few_linear_regions_cannot_alternate_more_often(measured):
    """Expressive in the sense of R: on a line a function of R linear pieces changes its sign at most R times.

    Networks of three widths, 100 draws each, fit their output weights to alternating labels at 24 points.
    """
    x = torch.linspace(-1, 1, 24, dtype=torch.float64)[:, None]
    labels = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(12)[:, None]
    grid, alternations, pieces = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None], [], []
    for width in (2, 6, 18):
        changes, regions = [], []
        for seed in range(100):
            g = generator(seed, "hidden neurons", width)
            weight, bias = torch.randn(2, 1, width, generator=g, dtype=torch.float64)

            def hidden(z, weight=weight, bias=bias):
                units = (z @ weight + bias).relu()
                return torch.cat([units, torch.ones_like(z)], 1)

            fit = torch.linalg.lstsq(hidden(x), labels, driver="gelsd").solution
            values = (hidden(x) @ fit).flatten()
            changes.append(int((values[1:] * values[:-1] < 0).sum()))
            kinks = -bias / weight
            regions.append(1 + int(((kinks > -1) & (kinks < 1)).sum()))
            patterns = (grid @ weight + bias > 0).unique(dim=0)
            assert len(patterns) <= regions[-1]
        assert all(a <= r for a, r in zip(changes, regions, strict=True))
        alternations.append(np.mean(changes))
        pieces.append(np.mean(regions))
    assert pieces == sorted(pieces)
    measured(
        "mean alternations with the most regions over those with the fewest",
        alternations[2] / alternations[0],
        above=2,
    )


@pytest.mark.paper("Sec. 5: both scores", "Algorithm 1 (MetaNTK-NAS)")
def test_the_search_lowers_the_condition_number_and_raises_the_regions_at_once(measured):
    """Independent additive scores: of the single paths, the one that is found is good in both, not in one alone."""
    random = np.random.default_rng(0)
    places = {"C": [], "R": []}
    for seed in range(5):
        planted = planted_values(2 * seed), planted_values(2 * seed + 1)
        found = run_search(planted_scorer(*planted), SearchSettings(repeats=1)).candidates.operators()
        edges = {}
        for operator in Candidates().operators():
            edges.setdefault((operator.cell, operator.edge), []).append(operator)
        paths = [[options[random.integers(len(options))] for options in edges.values()] for _ in range(1000)]
        for name, values, sign in (("C", planted[0], 1), ("R", planted[1], -1)):
            own = sign * sum(values[o] for o in found)
            others = [sign * sum(values[o] for o in path) for path in paths]
            places[name].append(np.mean([other < own for other in others]))
    measured("share of random paths with a lower C than the found one", max(places["C"]), below=0.1)
    measured("share of random paths with a higher R than the found one", max(places["R"]), below=0.1)


def approximation_error(net, params, tasks, inner):
    """‖Φ̂ − AΘ̂Aᵀ‖/‖Φ̂‖: what Section 5 leaves out with the second derivatives."""
    composed = meta_ntk(net.model, tasks, "maml", inner.dynamics, params=params)
    return relative(composed, empirical_meta_ntk(net.model, tasks, inner, params=params))


@pytest.mark.paper("Sec. 5: MetaNTK from NTK", "Eq. (89)", "Eq. (90)")
@pytest.mark.parametrize(
    ("case", "widths", "seeds", "slope", "window", "most"),
    [
        (("erf", 1), (64, 256, 1024), 5, -1.9, 0.45, 3e-4),
        (("erf", 2), (64, 128, 256), 5, -1.0, 0.7, 0.03),
        pytest.param(("erf", 1), (64, 128, 256, 512, 1024), 10, -1.9, 0.35, 2e-4, marks=slow),
        pytest.param(("erf", 2), (64, 128, 256, 512), 20, -1.0, 0.4, 0.01, marks=slow),
        pytest.param(("relu", 1), (64, 256, 1024), 10, -1.9, 0.4, 3e-4, marks=slow),
    ],
)
def test_the_metantk_composed_of_the_ntk_of_a_finite_network_tends_to_the_real_one(
    case, widths, seeds, slope, window, most, measured
):
    """Faster than either tends to its limit, which is at l^(−1/2)."""
    values = at_widths(case, widths, seeds, approximation_error)
    scale = check_slope(measured, f"Φ̂ − AΘ̂Aᵀ, {case[0]} L={case[1]}", widths, values, slope, window)
    measured(f"Φ̂ − AΘ̂Aᵀ, {case[0]} L={case[1]}, widest", scale[-1], below=most)
