import math
from itertools import islice, pairwise

import pytest
import torch

from mamltheory import (
    FullyConnected,
    InnerLoop,
    Optimiser,
    adapt,
    empirical_meta_ntk,
    from_module,
    generator,
    linearised,
    maml,
    meta_gradient,
    meta_loss,
    meta_method,
    meta_output,
    meta_outputs,
    train,
)
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.inner_loop import inner_path, square_loss
from mamltheory.kernels.empirical import jacobian
from mamltheory.kernels.empirical_meta import meta_jacobian, stacked_meta_jacobian
from mamltheory.maml import descend, distance
from mamltheory.objective import MetaObjective
from mamltheory.tasks import PARTS, Task, query_labels
from tests.paper.cases import relative
from tests.strategies import as_users_run_it, task

NET = FullyConnected(2, 3, 2, 2, "tanh", sigma_b=0.3)
LOOPS = [InnerLoop(0.4, 1), InnerLoop(0.3, 2), InnerLoop(0.4, 2, "anil")]
loops = pytest.mark.parametrize("inner", LOOPS, ids=["maml-1", "maml-2", "anil-2"])


def start(net=NET, seed=0):
    return net.initialise(generator(seed, "init"))


def some_tasks(count=2, net=NET, seed=0):
    return tuple(task(seed, i, 2, 2, net.input_dim, net.output_dim) for i in range(count))


@pytest.mark.paper("Eq. (2)", "Eq. (3)")
@loops
def test_the_meta_loss_has_the_derivatives_that_finite_differences_say(inner):
    params, tasks = start(), some_tasks()
    names = list(params)

    def loss(*values):
        return meta_loss(NET.model, dict(zip(names, values, strict=True)), tasks, inner)

    values = [params[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values, fast_mode=True)


@pytest.mark.paper("Eq. (2)", "Eq. (20)")
@loops
def test_the_meta_loss_is_half_the_sum_of_squares_over_tasks_samples_and_outputs(inner):
    params, tasks = start(), some_tasks(3)
    parts = []
    for one in tasks:
        adapted = adapt(NET.model, params, one, inner)
        parts.append(0.5 * (NET.model(adapted, one.query_x) - one.query_y).square().sum())
    assert float(meta_loss(NET.model, params, tasks, inner)) == pytest.approx(float(sum(parts)), rel=1e-14)


@pytest.mark.paper("Eq. (1)")
def test_the_inner_loop_is_gradient_descent_on_the_support_loss_as_autograd_does_it():
    params, one = start(), some_tasks(1)[0]
    inner = InnerLoop(0.6, 3)
    module_like = {name: value.clone().requires_grad_() for name, value in params.items()}
    optimiser = torch.optim.SGD(module_like.values(), lr=inner.lam0 / NET.width)
    path = inner_path(NET.model, params, one, inner)
    for theta in path[1:]:
        optimiser.zero_grad()
        square_loss(NET.model(module_like, one.support_x), one.support_y).backward()
        optimiser.step()
        assert distance(theta, {name: value.detach() for name, value in module_like.items()}) < 1e-14
    assert len(path) == 4


@pytest.mark.paper("App. D: ANIL")
def test_anil_moves_the_head_alone_and_no_steps_move_nothing():
    params, one = start(), some_tasks(1)[0]
    adapted = adapt(NET.model, params, one, InnerLoop(0.6, 2, "anil"))
    moved = {name for name in params if not torch.equal(params[name], adapted[name])}
    assert moved == NET.model.head
    unchanged = meta_output(NET.model, params, one, InnerLoop(0.6, 0))
    assert torch.equal(unchanged, NET.model(params, one.query_x).reshape(-1))


@pytest.mark.paper("Eq. (22)", "Eq. (28)", "Eq. (97)")
@loops
def test_one_step_of_training_is_the_transposed_jacobian_times_the_residual(inner):
    params, tasks = start(), some_tasks()
    rows = stacked_meta_jacobian(NET.model, params, tasks, inner)
    residual = meta_outputs(NET.model, params, tasks, inner) - query_labels(tasks)
    stepped = train(NET.model, params, tasks, inner, eta0=0.2, steps=1).params
    for name, value in params.items():
        gradient = torch.tensordot(residual, rows[name], dims=1)
        assert float((stepped[name] - (value - 0.2 / NET.width * gradient)).abs().max()) < 1e-14


@pytest.mark.paper("Eq. (7)", "Eq. (98)")
def test_a_small_step_moves_the_outputs_by_the_metantk_times_the_residual():
    """ΔF = −η0 Φ̂ (F − 𝒴) + O(η0²), with η0 where Eq. (7) prints η."""
    params, tasks, inner = start(), some_tasks(), LOOPS[1]
    kernel = empirical_meta_ntk(NET.model, tasks, inner, params=params)
    before = meta_outputs(NET.model, params, tasks, inner)
    errors = []
    for eta0 in (1e-4, 1e-5):
        stepped = train(NET.model, params, tasks, inner, eta0, steps=1).params
        after = meta_outputs(NET.model, stepped, tasks, inner)
        errors.append(relative(after - before, -eta0 * kernel @ (before - query_labels(tasks))))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_first_order_maml_takes_the_gradient_at_the_adapted_parameters(algorithm):
    params, tasks = start(), some_tasks()
    inner = InnerLoop(0.5, 2, algorithm, first_order=True)
    gradient, outputs = meta_gradient(NET.model, params, tasks, inner)
    expected = dict.fromkeys(params, 0)
    for one in tasks:
        theta = adapt(NET.model, params, one, inner)
        rows = jacobian(NET.model, theta, one.query_x)
        residual = (NET.model(theta, one.query_x) - one.query_y).reshape(-1)
        expected = {name: expected[name] + torch.tensordot(residual, rows[name], dims=1) for name in params}
        for name, value in meta_jacobian(NET.model, params, one, inner).items():
            assert torch.equal(value, rows[name])
    assert distance(gradient, expected) < 1e-13
    second = InnerLoop(0.5, 2, algorithm)
    assert torch.equal(outputs, meta_outputs(NET.model, params, tasks, second))
    assert distance(gradient, meta_gradient(NET.model, params, tasks, second)[0]) > 1e-3


def test_a_training_record_tells_what_happened():
    params, tasks, held_out, inner = start(), some_tasks(), some_tasks(1, seed=5), InnerLoop(0.3, 1)
    record = train(NET.model, params, tasks, inner, 0.1, 6, held_out, kernel_steps=(3, 6))
    seen = record.observations
    assert [one.step for one in seen] == list(range(7))
    assert record.losses().tolist() == [one.loss for one in seen]
    assert all(later < earlier for earlier, later in pairwise(record.losses()))
    assert seen[0].movement == 0
    assert seen[0].path_length == 0
    assert all(one.movement <= one.path_length * (1 + 1e-12) for one in seen)
    assert all(a.path_length < b.path_length for a, b in pairwise(seen))
    assert seen[1].movement == pytest.approx(seen[1].path_length, rel=1e-14)
    assert seen[6].movement == pytest.approx(distance(record.params, params), rel=1e-14)
    assert torch.equal(seen[6].outputs, meta_outputs(NET.model, record.params, tasks, inner))
    assert torch.equal(seen[6].test_outputs, meta_outputs(NET.model, record.params, held_out, inner))
    assert seen[6].loss == pytest.approx(float(meta_loss(NET.model, record.params, tasks, inner)), rel=1e-14)
    drift = record.kernel_drift()
    assert set(drift) == {0, 3, 6}
    assert drift[0] == 0
    last = empirical_meta_ntk(NET.model, tasks, inner, params=record.params)
    first = empirical_meta_ntk(NET.model, tasks, inner, params=params)
    assert drift[6] == pytest.approx(float((last - first).norm()), rel=1e-12)


@pytest.mark.parametrize("method", ["factored", "generic"])
def test_training_takes_one_gradient_a_step_and_none_at_the_last(method, monkeypatch):
    taken, gradient = [], MetaObjective.gradient

    def counted(self, params):
        taken.append(params)
        return gradient(self, params)

    monkeypatch.setattr(MetaObjective, "gradient", counted)
    params = start()
    record = train(NET.model, params, some_tasks(), InnerLoop(0.3, 1), 0.1, 3, method=method)
    assert (len(taken), len(record.observations)) == (3, 4)
    got = meta_outputs(NET.model, record.params, some_tasks(), InnerLoop(0.3, 1), method)
    assert torch.equal(record.observations[3].outputs, got)


def test_training_in_two_parts_is_training_in_one():
    params, tasks, inner = start(), some_tasks(), InnerLoop(0.3, 1)
    whole = train(NET.model, params, tasks, inner, 0.1, 5)
    first = train(NET.model, params, tasks, inner, 0.1, 2)
    second = train(NET.model, first.params, tasks, inner, 0.1, 3)
    assert all(torch.equal(whole.params[name], second.params[name]) for name in params)
    assert train(NET.model, params, tasks, inner, 0.1, 0).params is params
    assert not whole.kernel_drift()


def test_the_linearised_networks_kernel_never_drifts():
    params, tasks = start(), some_tasks()
    record = train(linearised(NET.model, params), params, tasks, InnerLoop(0.3, 2), 0.1, 3, kernel_steps=(3,))
    assert record.kernel_drift()[3] < 1e-12


def test_divergence_is_refused_with_the_rates_that_would_do():
    """Activations that saturate would stop it: the network is linearised."""
    params, tasks = start(), some_tasks()
    with pytest.raises(ValueRangeError, match=r"eta0 = 500\.0"):
        train(linearised(NET.model, params), params, tasks, InnerLoop(0.1, 1), 500.0, 2000)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": -1}, ValueRangeError, "steps is -1"),
        ({"steps": 1.5}, ValueRangeError, "whole number"),
        ({"eta0": -0.1}, ValueRangeError, "-0.1"),
        ({"eta0": math.nan}, ValueRangeError, "nan"),
        ({"kernel_steps": (4,)}, ValueRangeError, "from 0 to 3"),
        ({"kernel_steps": (-1,)}, ValueRangeError, "from 0 to 3"),
        ({"tasks": ()}, ShapeError, "no tasks"),
        ({"test_tasks": (task(d=9),)}, ShapeError, "differs"),
    ],
)
def test_runs_that_cannot_be_are_refused(change, error, message):
    arguments = {"tasks": some_tasks(), "eta0": 0.1, "steps": 3, **change}
    with as_users_run_it(), pytest.raises(error, match=message):
        train(NET.model, start(), inner=InnerLoop(0.3), **arguments)


def test_training_does_not_start_from_parameters_that_are_not_finite():
    params = start()
    params["bias2"][1] = math.nan
    with pytest.raises(ValueRangeError, match="'bias2'"):
        next(descend(NET.model, params, some_tasks(), InnerLoop(0.3), 0.1))


@pytest.mark.parametrize("arguments", [(-0.1, 1), (math.inf, 1), (0.1, -1), (0.1, 1, "reptile")])
def test_inner_loops_that_cannot_be_are_refused(arguments):
    with as_users_run_it(), pytest.raises(ValueRangeError, match="expected"):
        InnerLoop(*arguments)


def test_anil_needs_a_linear_head():
    with torch.random.fork_rng():
        module = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Tanh()).double()
    model, params = from_module(module)
    one = task(d=4, k=2)
    assert meta_output(model, params, one, InnerLoop(0.1, 1)).shape == (4,)
    with pytest.raises(UnsupportedModelError, match="maml"):
        meta_output(model, params, one, InnerLoop(0.1, 1, "anil"))


def test_large_labels_are_not_taken_for_a_loop_that_diverges():
    params, tasks = (
        start(),
        [Task(t.query_x, 1e6 * t.query_y, t.support_x, t.support_y) for t in some_tasks()],
    )
    losses = train(NET.model, params, tasks, LOOPS[0], eta0=1e-3, steps=2).losses()
    assert 1e11 < losses[2] < losses[0]


def test_the_method_follows_the_task_with_the_most_rows():
    """Tasks of 2 + 2 and of 300 + 200 rows: with two steps the larger one has 800, and half of the width is 500."""
    net, tasks = FullyConnected(4, 1000, 1), [task(0, 0, 2, 2), task(0, 1, 200, 300)]
    assert meta_method(net.model, tasks, InnerLoop(0.1, 2)) == "generic"
    assert meta_method(net.model, tasks, InnerLoop(0.1, 0)) == "factored"
    assert meta_method(net.model, tasks[:1], InnerLoop(0.1, 2)) == "factored"
    assert meta_method(FullyConnected(4, 10, 1).model, [task(0, 1, 83, 300)], InnerLoop(0.1)) == "factored"
    assert meta_method(FullyConnected(4, 10, 1).model, [task(0, 1, 84, 300)], InnerLoop(0.1)) == "generic"


def test_momentum_adds_the_gradients_before_to_those_of_the_parameters_that_move():
    """Two steps written out: v ← μ v + ∇𝓛 and θ ← θ − η v."""
    params, some, inner = start(), some_tasks(), LOOPS[0]
    moving, values, velocity = ("weight1", "bias3"), dict(params), dict.fromkeys(params, 0.0)
    for _ in range(2):
        gradient, _ = meta_gradient(NET.model, values, some, inner)
        for name in moving:
            velocity[name] = 0.5 * velocity[name] + gradient[name]
            values[name] = values[name] - 0.2 / NET.width * velocity[name]
    record = train(NET.model, params, some, inner, 0.2, 2, optimiser=Optimiser(0.5, select=moving))
    for name, value in values.items():
        torch.testing.assert_close(record.params[name], value, rtol=1e-12, atol=0)
    whole = train(NET.model, params, some, inner, 0.2, 2, optimiser=Optimiser(0.5))
    assert not torch.equal(whole.params["bias1"], params["bias1"])
    first = train(NET.model, params, some, inner, 0.2, 1)
    gradient, _ = meta_gradient(NET.model, first.params, some, inner)
    before, _ = meta_gradient(NET.model, params, some, inner)
    expected = first.params["bias1"] - 0.2 / NET.width * (0.5 * before["bias1"] + gradient["bias1"])
    torch.testing.assert_close(whole.params["bias1"], expected, rtol=1e-12, atol=0)


def test_a_loss_diverges_from_1e8_times_those_of_the_outputs_and_of_the_labels_on():
    params, some = start(), some_tasks()
    outputs, labels = (
        torch.cat([NET.model(params, each.query_x).flatten() for each in some]),
        query_labels(some),
    )
    size = 0.5 * float(outputs @ outputs + labels @ labels)
    assert maml._largest_loss(NET.model, params, some) == pytest.approx(1e8 * size, rel=1e-14)
    nothing = {name: torch.zeros_like(value).float() for name, value in params.items()}
    zero = [Task(*(torch.zeros_like(getattr(each, name)).float() for name in PARTS)) for each in some]
    assert maml._largest_loss(NET.model, nothing, zero) == torch.finfo(torch.float32).tiny


def test_every_state_of_an_endless_descent_keeps_its_own_parameters():
    params, some, inner = start(), some_tasks(), LOOPS[0]
    kept = [state for state, _ in islice(descend(NET.model, params, some, inner, 0.2), 3)]
    for state in kept:
        expected = train(NET.model, params, some, inner, 0.2, state.step).params
        assert distance(state.params, expected) < 1e-14
    assert [state.step for state in kept] == [0, 1, 2]


def test_distances_of_parameters_in_single_precision_neither_vanish_nor_overflow():
    for size in (1e-30, 1e30):
        here, there = ({"weight": torch.full((3,), value, dtype=torch.float32)} for value in (size, 0.0))
        assert distance(here, there) == pytest.approx(3**0.5 * size, rel=1e-6)


def test_params_may_be_left_out_for_a_module():
    network = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
    tasks, inner = [task(k=2, seed=i) for i in range(2)], InnerLoop(0.1)
    rates = {"inner": inner, "eta0": 0.1, "steps": 2}
    expected = train(network, None, tasks, **rates).losses()
    assert expected[2] < expected[0]
    other = {name: 2 * value.detach() for name, value in network.named_parameters()}
    for found in (
        train(network, tasks, inner, 0.1, 2),
        train(network, tuple(tasks), **rates),
        train(network, tasks=tasks, **rates),
        train(model=network, tasks=tasks, **rates),
        train(tasks=tasks, model=network, params=None, **rates),
    ):
        assert torch.equal(found.losses(), expected)
    for found in (
        train(network, other, tasks, **rates),
        train(network, params=other, tasks=tasks, **rates),
    ):
        assert not torch.equal(found.losses(), expected)
    for function, what in (
        (meta_outputs, tasks),
        (meta_loss, tasks),
        (meta_gradient, tasks),
        (adapt, tasks[0]),
        (meta_output, tasks[0]),
    ):
        torch.testing.assert_close(function(network, what, inner), function(network, None, what, inner))
    with pytest.raises(ConfigurationError, match="holds no parameters"):
        train(FullyConnected(4, 8, 1, 2).model, tasks, **rates)
    with pytest.raises(TypeError, match="tasks"):
        train(network, **rates)
