"""Optimisers as functions of a kernel: schedules, momentum and sampled tasks, and training with them."""

import pytest
import torch

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    InnerLoop,
    Optimiser,
    SampledDescent,
    ScheduledDescent,
    empirical_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    linearised,
    meta_loss,
    residual_operator,
    time_operator,
    train,
)
from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative
from tests.strategies import as_users_run_it, with_spectrum

KERNEL = with_spectrum([0.0, 1e-9, 0.3, 1.0, 2.0])
RATES = (0.5, 0.2, 0.9, 0.05)
BATCHES = ((0,), (1, 0), (2,), (1, 2), (0, 0))
EYE = torch.eye(5, dtype=torch.float64)


def walked(kernel, rates, momentum, rows=None):
    """(T, ρ) of the kernel, by the optimiser in the space of outputs: θ = Jᵀ w, and F = J θ = M w."""
    weights, velocity = torch.zeros_like(kernel), torch.zeros_like(kernel)
    for step, rate in enumerate(rates):
        slope = torch.zeros_like(kernel)
        for row in range(len(kernel)) if rows is None else rows[step]:
            slope[row] += EYE[row] - kernel[row] @ weights
        velocity = momentum * velocity + slope
        weights = weights + rate * velocity
    return weights, EYE - kernel @ weights


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_schedules_and_momentum_are_recurrences_on_the_spectrum(momentum):
    dynamics = ScheduledDescent(RATES, momentum)
    learnt, left = walked(KERNEL, RATES, momentum)
    assert relative(time_operator(KERNEL, dynamics), learnt) < 1e-13
    assert relative(residual_operator(KERNEL, dynamics), left) < 1e-13


def test_a_constant_schedule_is_gradient_descent():
    constant, plain = ScheduledDescent((0.3,) * 40), GradientDescent(0.3, 40)
    for operator in (time_operator, residual_operator):
        assert relative(operator(KERNEL, constant), operator(KERNEL, plain)) < 1e-12
    assert torch.equal(time_operator(KERNEL, ScheduledDescent(())), 0 * KERNEL)


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_sampled_tasks_multiply_the_residual_step_by_step(momentum):
    """ρ = Π (I − η M[:, B_t]) without momentum, whatever the order of the factors' spectra."""
    rows = [[row for task in batch for row in {0: (0, 1), 1: (2,), 2: (3, 4)}[task]] for batch in BATCHES]
    dynamics = SampledDescent(0.4, BATCHES, (2, 1, 2), momentum)
    learnt, left = walked(KERNEL, (0.4,) * len(BATCHES), momentum, rows)
    assert relative(time_operator(KERNEL, dynamics), learnt) < 1e-13
    assert relative(residual_operator(KERNEL, dynamics), left) < 1e-13
    if not momentum:
        product = EYE
        for some in rows:
            step = torch.zeros_like(KERNEL)
            for row in some:
                step[:, row] += KERNEL[:, row]
            product = product - 0.4 * step @ product
        assert relative(left, product) < 1e-13


def test_batches_of_all_tasks_are_gradient_descent():
    whole = SampledDescent(0.3, ((0, 1, 2, 3, 4),) * 6)
    assert relative(time_operator(KERNEL, whole), time_operator(KERNEL, GradientDescent(0.3, 6))) < 1e-12


@pytest.mark.parametrize(
    "dynamics", [ScheduledDescent(RATES, 0.5), SampledDescent(0.3, ((0, 1), (2,), (3, 4)), momentum=0.5)]
)
def test_autograd_differentiates_them_by_the_kernel(dynamics):
    g = generator(0, "direction")
    ahead = torch.randn(5, 5, generator=g, dtype=torch.float64)
    ahead = (ahead + ahead.T) / 2
    leaf = KERNEL.clone().requires_grad_()
    weights = torch.randn(5, 5, generator=g, dtype=torch.float64)
    (time_operator(leaf, dynamics) * weights).sum().backward()
    up, down = (time_operator(KERNEL + sign * 1e-5 * ahead, dynamics) for sign in (1, -1))
    expected = float(((up - down) / 2e-5 * weights).sum())
    assert float((leaf.grad * ahead).sum()) == pytest.approx(expected, rel=1e-7)


NET = FullyConnected(4, 12, 2, 1, "tanh")
PARAMS = NET.initialise(generator(0, "init"))
*TASKS, TEST = make_tasks(NET, 4)
ROWS = tuple(len(task.query_x) for task in TASKS)
X = joint_inputs((*TASKS, TEST))
THETA = empirical_ntk(NET.model, X, params=PARAMS)
F0 = NET.model(PARAMS, X).reshape(-1)
TANGENT = linearised(NET.model, PARAMS)
SAMPLED = tuple(tuple((step * 2 + i) % 3 for i in range(1 + step % 2)) for step in range(12))


@pytest.mark.parametrize(
    "optimiser",
    [Optimiser(momentum=0.8), Optimiser(batches=SAMPLED), Optimiser(0.5, SAMPLED)],
    ids=["momentum", "sampled tasks", "both"],
)
def test_training_of_the_linearised_network_is_its_closed_form_with_any_optimiser(optimiser):
    inner, eta0, steps = InnerLoop((0.3, 0.1), 2), 0.05, 12
    record = train(TANGENT, PARAMS, TASKS, inner, eta0, steps, [TEST], optimiser=optimiser)
    outer = optimiser.dynamics(eta0, steps, ROWS)
    closed = kernel_regression(THETA, TASKS, [TEST], inner.dynamics, outer, f0=F0)
    assert relative(record.observations[-1].outputs, closed.train) < EXACT
    assert relative(record.observations[-1].test_outputs, closed.test) < EXACT
    plain = kernel_regression(THETA, TASKS, [TEST], inner.dynamics, GradientDescent(eta0, steps), f0=F0)
    assert relative(plain.test, closed.test) > 1e-3
    last = record.observations[-1]
    assert record.losses()[-1] == pytest.approx(
        float((last.outputs - query_labels(TASKS)).square().sum() / 2)
    )
    assert float(meta_loss(TANGENT, record.params, TASKS, inner)) == pytest.approx(last.loss, rel=1e-12)


def test_momentum_and_batches_are_the_same_in_factored_form():
    optimiser, inner = Optimiser(0.5, SAMPLED), InnerLoop(0.2, 2)
    records = [
        train(NET.model, PARAMS, TASKS, inner, 0.05, 12, method=method, optimiser=optimiser)
        for method in ("factored", "generic")
    ]
    assert records[0].method == "factored"
    assert relative(*(record.observations[-1].outputs for record in records)) < 1e-12
    assert records[0].observations[-1].path_length == pytest.approx(records[1].observations[-1].path_length)


def test_a_schedule_of_the_inner_loop_has_no_factored_form():
    with pytest.raises(ConfigurationError, match="one rate for all steps"):
        train(NET.model, PARAMS, TASKS, InnerLoop((0.1, 0.2), 2), 0.05, 1, method="factored")
    assert train(NET.model, PARAMS, TASKS, InnerLoop((0.1, 0.2), 2), 0.05, 1).method == "generic"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ScheduledDescent((0.1, -0.2)), ValueRangeError, "a rate is -0.2"),
        (lambda: ScheduledDescent("abc"), ValueRangeError, "for each step"),
        (lambda: ScheduledDescent((0.1,), 1.0), ValueRangeError, "below 1"),
        (lambda: SampledDescent(0.1, ((0,), ())), ValueRangeError, "numbers of its tasks"),
        (lambda: SampledDescent(0.1, ((0.5,),)), ValueRangeError, "numbers of its tasks"),
        (lambda: SampledDescent(0.1, ((0,),), 0), ValueRangeError, "rows is 0"),
        (lambda: SampledDescent(0.1, ((0,),), 1, 1.0), ValueRangeError, "below 1"),
        (lambda: SampledDescent(-0.1, ((0,),)), ValueRangeError, "rate is -0.1"),
        (lambda: time_operator(KERNEL, SampledDescent(0.1, ((0,),), 2)), ShapeError, "fit together"),
        (lambda: time_operator(KERNEL, SampledDescent(0.1, ((5,),))), ShapeError, "fit together"),
        (lambda: time_operator(KERNEL, SampledDescent(1e200, ((4,),) * 3)), ValueRangeError, "diverges"),
        (lambda: InnerLoop((0.1,), 2), ValueRangeError, "one rate for each step"),
        (lambda: Optimiser(momentum=-0.1), ValueRangeError, "momentum is -0.1"),
    ],
)
def test_what_no_optimiser_does_is_refused(make, error, message):
    with as_users_run_it(), pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("batches", [((0,),), ((0,), (3,))])
def test_batches_must_be_one_a_step_of_tasks_that_exist(batches):
    with pytest.raises(ConfigurationError, match="one batch a step"):
        train(NET.model, PARAMS, TASKS, InnerLoop(0.1), 0.05, 2, optimiser=Optimiser(batches=batches))


def test_dynamics_of_an_optimiser():
    assert Optimiser().dynamics(0.1, 3) == GradientDescent(0.1, 3)
    assert Optimiser(0.5).dynamics(0.1, 3) == ScheduledDescent((0.1,) * 3, 0.5)
    assert Converged().horizon == float("inf")


@pytest.mark.parametrize("index", [-1, 2**31])
def test_numbers_of_tasks_are_whole_and_below_the_largest_index(index):
    with pytest.raises(ValueRangeError, match="numbers of its tasks"):
        SampledDescent(0.1, ((0, index),))
    assert SampledDescent(0.1, ((0, 2**31 - 1),)).batches == ((0, 2**31 - 1),)


def test_the_horizon_of_descent_with_momentum_is_that_of_longer_steps():
    assert ScheduledDescent((0.5, 0.25), momentum=0.5).horizon == 1.5
    assert SampledDescent(0.5, ((0,), (1,)), momentum=0.75).horizon == 4.0


def test_lists_are_kept_as_tuples_so_that_dynamics_can_be_compared_and_hashed():
    with as_users_run_it():
        assert ScheduledDescent([0.5, 0.25]) == ScheduledDescent((0.5, 0.25))
        whole = SampledDescent(0.5, ((0,), (1, 0)), (2, 3))
        assert SampledDescent(0.5, [[0], [1, 0]], [2, 3]) == whole
        assert Optimiser(batches=[[0], [1, 0]]) == Optimiser(batches=((0,), (1, 0)))
        assert len({hash(ScheduledDescent([0.5])), hash(whole), hash(Optimiser(batches=[[0]]))}) == 3
