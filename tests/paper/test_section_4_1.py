"""Section 4.1: Theorem 1 on global convergence, and the ideas of its proof."""

import math

import pytest
import torch

from mamltheory import (
    FullyConnected,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    meta_outputs,
    train,
)
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.kernels.empirical_meta import meta_jacobian, stacked_meta_jacobian
from mamltheory.rates import largest_rate
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, rows_of, setting, sphere, start
from tests.reference.dense import Dense


@pytest.mark.paper("Sec. 4.1: main proof ideas")
@pytest.mark.erratum("E32")
def test_at_the_origin_the_jacobian_has_rank_one_and_training_cannot_reach_zero_loss(measured):
    """A global minimum near *any* initialisation: near a random one with high probability, near θ = 0 there is none."""
    net = FullyConnected(4, 32, 2, 1)
    tasks, inner, random = make_tasks(net, 2), InnerLoop(0.1, 1), start(net)
    origin = {name: torch.zeros_like(value) for name, value in random.items()}
    ranks = [
        int(torch.linalg.matrix_rank(rows_of(stacked_meta_jacobian(net.model, p, tasks, inner))))
        for p in (origin, random)
    ]
    assert ranks == [1, sum(len(task.query_x) for task in tasks)]
    measured("rank of J at the origin", ranks[0], below=2)
    measured("rank of J at random parameters", ranks[1], above=3)
    eta0 = 0.5 * largest_rate(empirical_meta_ntk(net.model, tasks, inner, params=random))
    from_origin, from_random = (train(net.model, p, tasks, inner, eta0, 80) for p in (origin, random))
    fall = from_random.losses()[-1] / from_random.losses()[0]
    measured("loss after 80 steps from random parameters, of its start", fall, below=0.1)
    # all networks on the way are constants, and no constant fits the labels of a task
    floor = sum(float((task.query_y - task.query_y.mean()).square().sum()) / 2 for task in tasks)
    assert floor > 0.1
    least = float(from_origin.losses().min())
    measured("least loss from the origin over that of the best constants", least / floor, above=0.999)
    trained = meta_outputs(net.model, from_origin.params, (tasks[0],), inner)
    assert float(trained.max() - trained.min()) == 0.0


@pytest.mark.paper("Theorem 1", "Eq. (6)", corrected=True)
@pytest.mark.erratum("E1")
def test_with_a_smaller_rate_no_constant_r_makes_the_bound_of_theorem_1_true(measured):
    """Eq. (6) asserts that an R exists; R(t) = 𝓛(θ_t)/(1 − η0 σ_min/3)^{2t} is the least one that serves step t.

    With η = η0/(100 l), η0 = 2/(σ_max + σ_min), it grows without bound: under a constant kernel
    ‖g_t‖ ≥ (1 − η l σ_max)^t ‖g_0‖, so that R(t) ≥ q^{2t} 𝓛(θ_0) with q = (1 − η l σ_max)/(1 − η0 σ_min/3), and q > 1
    as soon as η l < η0 σ_min/(3 σ_max). With η l in place of η0 one R serves all steps.
    """
    net = FullyConnected(16, 64, 1, 1, "erf")
    tasks = make_tasks(net, 2, n=2, m=2)
    inner = InnerLoop(0.5 / max(extreme_eigenvalues(analytic_ntk(net, one.support_x))[1] for one in tasks), 1)
    phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics)
    (low, high), eta0 = extreme_eigenvalues(phi), largest_rate(phi)
    small = 0.01 * eta0
    assert (1 - small * high) / (1 - eta0 * low / 3) > 1
    losses = train(net.model, start(net), tasks, inner, small, 400).losses()
    steps = torch.arange(401, dtype=torch.float64)
    needed, corrected = (losses / losses[0] / (1 - rate * low / 3) ** (2 * steps) for rate in (eta0, small))
    measured("R(t)/𝓛(θ_0) of (6) at t = 100, η = η0/(100 l)", needed[100], above=1e6)
    measured("R(t)/𝓛(θ_0) of (6) at t = 400, η = η0/(100 l)", needed[400], above=1e24)
    expected = 2 * math.log((1 - small * low) / (1 - eta0 * low / 3))
    growth = float((needed[400] / needed[300]).log()) / 100
    measured("growth of log R(t) a step over that of the slowest mode", growth / expected, above=0.9)
    assert growth / expected < 1.1
    measured("R(t)/𝓛(θ_0) with η l in place of η0, at all t", corrected.max(), below=1 + 1e-12)


@pytest.mark.paper("Sec. 4.1: challenges", corrected=True)
@pytest.mark.erratum("E11")
def test_the_jacobian_is_a_product_over_hessians_and_an_exponential_only_in_the_limit_of_many_steps(measured):
    net = FullyConnected(3, 5, 1, 1, "tanh")
    params = start(net)
    task, dense = make_tasks(net, 1)[0], Dense(net, params)
    real = rows_of(meta_jacobian(net.model, params, task, InnerLoop(0.5, 3)))
    measured(
        "error of the product", relative(real, dense.meta_jacobian(task, InnerLoop(0.5, 3))), below=EXACT
    )
    still = Task(task.query_x, task.query_y, task.support_x, net.model(params, task.support_x))
    support = dense.jacobian(dense.theta0, task.support_x) / net.width**0.5
    rows, time = dense.jacobian(dense.theta0, task.query_x), 0.5
    exponential = rows @ torch.linalg.matrix_exp(-time * support.T @ support)
    errors = [
        relative(rows_of(meta_jacobian(net.model, params, still, InnerLoop(time / tau, tau))), exponential)
        for tau in (1, 16, 64)
    ]
    measured("error of the exponential at τ = 1", errors[0], above=0.01)
    assert errors[1] == pytest.approx(4 * errors[2], rel=0.2)


@pytest.mark.paper("Sec. 4.1: main proof ideas")
def test_up_to_a_minimum_of_zero_loss_near_the_start_the_loss_is_almost_quadratic(measured):
    """The loss on the way from θ_0 to the trained parameters, against the quadratic of the linearised outputs."""
    excess, remaining, lengths = [], [], []
    for width in (64, 1024):
        net, tasks, _, inner = setting("erf", 1, width)
        params = start(net)
        rate = 0.9 * largest_rate(empirical_meta_ntk(net.model, tasks, inner, params=params))
        record = train(net.model, params, tasks, inner, rate, 200)
        remaining.append(float(record.losses()[-1] / record.losses()[0]))
        step = {name: record.params[name] - params[name] for name in params}
        lengths.append(float(torch.stack([part.square().sum() for part in step.values()]).sum().sqrt()))
        excess.append(deviation_from_quadratic(net, params, step, tasks, inner))
    measured("loss of the trained network of 1024 neurons, of its start", remaining[1], below=1e-6)
    measured("√l ‖θ − θ_0‖, l = 1024 over l = 64", (1024 / 64) ** 0.5 * lengths[1] / lengths[0], below=2)
    measured("deviation of the loss from the quadratic, l = 1024", excess[1], below=0.02)
    assert excess[1] < 0.5 * excess[0]


def deviation_from_quadratic(net, params, step, tasks, inner):
    """Largest difference of loss and quadratic model on the segment, of the loss at θ_0."""

    def outputs(s):
        theta = {name: params[name] + s * step[name] for name in params}
        return meta_outputs(net.model, theta, tasks, inner)

    labels, zero = query_labels(tasks), torch.zeros((), dtype=torch.float64)
    first, slope = torch.func.jvp(outputs, (zero,), (torch.ones_like(zero),))
    gaps = []
    for s in torch.linspace(0, 1, 6, dtype=torch.float64):
        loss, model = (float((f - labels).square().sum()) / 2 for f in (outputs(s), first + s * slope))
        gaps.append(abs(loss - model))
    return max(gaps) / (float((first - labels).square().sum()) / 2)


@pytest.mark.paper("Sec. 1: zero loss")
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_deep_networks_reach_almost_zero_loss_and_full_training_accuracy(activation, measured):
    """Three hidden layers of 32 neurons, 3 classes, 12 query images of noise in two tasks, three starts of three."""
    net, g = FullyConnected(8, 32, 3, 3, activation), generator(0, "classes")
    labels = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    tasks = [Task(sphere(g, 6, 8), labels, sphere(g, 6, 8), labels) for _ in range(2)]
    for seed in range(3):
        params = start(net, seed)
        inner = InnerLoop(0.5 / largest_eigenvalue(net, params, tasks), 1)
        rate = 0.7 * largest_rate(empirical_meta_ntk(net.model, tasks, inner, params=params))
        record = train(net.model, params, tasks, inner, rate, 250)
        outputs = record.observations[-1].outputs.reshape(-1, 3)
        right = (outputs.argmax(1) == query_labels(tasks).reshape(-1, 3).argmax(1)).double().mean()
        losses = record.losses()
        measured(f"loss after 250 steps, of its start, {activation}", losses[-1] / losses[0], below=1e-3)
        measured(f"training accuracy, {activation}", right, above=0.999)


def largest_eigenvalue(net, params, tasks):
    return max(extreme_eigenvalues(empirical_ntk(net.model, t.support_x, params=params))[1] for t in tasks)
