"""Inner loops over some parameters, with rates of their own, implicit, and with first-order gradients."""

import pytest
import torch
from torch.func import jacrev

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    InnerLoop,
    Model,
    Optimiser,
    adapt,
    adaptation_ntk,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    first_order_meta_ntk,
    from_module,
    generator,
    joint_inputs,
    kernel_regression,
    linearised,
    meta_gradient,
    meta_ntk_from_ntk,
    meta_output,
    train,
)
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.kernels.meta import joint_sizes
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, rows_of
from tests.strategies import as_users_run_it

NET = FullyConnected(4, 12, 2, 1, "tanh")
PARAMS = NET.initialise(generator(0, "init"))
*TASKS, TEST = make_tasks(NET, 3)
X = joint_inputs((*TASKS, TEST))
TANGENT = linearised(NET.model, PARAMS)
F0 = NET.model(PARAMS, X).reshape(-1)
THETA = empirical_ntk(NET.model, X, params=PARAMS)


def body(name):
    return not name.endswith("3")


def learnt_rates(seed=0, low=0.2):
    """Λ with an entry for every weight."""
    g = generator(seed, "factors")
    return {
        name: low + torch.rand(value.shape, generator=g, dtype=torch.float64)
        for name, value in PARAMS.items()
    }


LOOPS = {
    "BOIL": InnerLoop(0.3, 3, select=body),
    "last two layers": InnerLoop((0.3, 0.1), 2, select=["weight2", "bias2", "weight3", "bias3"]),
    "bias of the head": InnerLoop(0.3, 2, "anil", select=["bias3"]),
    "Meta-SGD": InnerLoop(0.2, 3, factors=learnt_rates()),
    "rates of either sign": InnerLoop(0.2, 2, factors=learnt_rates(low=-0.5)),
    "a rate for each layer": InnerLoop(
        0.2, 2, factors={"weight1": 0.0, "weight2": 2, "bias3": torch.tensor(0.5)}
    ),
}
every_loop = pytest.mark.parametrize("inner", LOOPS.values(), ids=LOOPS)


@every_loop
def test_the_linearised_network_trains_as_the_kernel_of_the_moving_parameters_says(inner):
    inside, eta0, steps = adaptation_ntk(NET.model, inner, X, params=PARAMS), 0.1, 10
    record = train(TANGENT, PARAMS, TASKS, inner, eta0, steps, [TEST])
    outer = GradientDescent(eta0, steps)
    closed = kernel_regression(THETA, TASKS, [TEST], inner.dynamics, outer, inside, F0)
    assert relative(record.observations[-1].outputs, closed.train) < EXACT
    assert relative(record.observations[-1].test_outputs, closed.test) < EXACT
    whole = kernel_regression(THETA, TASKS, [TEST], inner.dynamics, outer, f0=F0)
    assert relative(whole.test, closed.test) > 1e-4


@every_loop
def test_the_metantk_and_the_gradient_of_the_real_loop_are_those_of_autograd(inner):
    rows = [rows_of(jacrev(lambda p, t=t: meta_output(NET.model, p, t, inner))(PARAMS)) for t in TASKS]
    real = torch.cat(rows)
    kernel = empirical_meta_ntk(NET.model, TASKS, inner, params=PARAMS)
    assert relative(kernel, real @ real.T / NET.width) < EXACT
    gradient, outputs = meta_gradient(NET.model, PARAMS, TASKS, inner)
    flat = torch.cat([gradient[name].reshape(-1) for name in PARAMS])
    assert relative(flat, real.T @ (outputs - query_labels(TASKS))) < EXACT


def test_the_kernel_of_all_parameters_is_the_ntk_and_that_of_the_head_anils():
    kernel = adaptation_ntk(NET.model, InnerLoop(0.1), X[:3], X, params=PARAMS)
    assert relative(kernel, empirical_ntk(NET.model, X[:3], X, params=PARAMS)) < EXACT
    last = adaptation_ntk(NET.model, InnerLoop(0.1, algorithm="anil"), X, params=PARAMS)
    assert relative(last, empirical_last_layer_ntk(NET.model, X, params=PARAMS)) < EXACT
    tripled = InnerLoop(0.1, factors=dict.fromkeys(PARAMS, 3.0))
    assert relative(adaptation_ntk(NET.model, tripled, X, params=PARAMS), 3 * THETA) < EXACT


@every_loop
def test_the_kernel_between_other_samples_weighs_the_products_of_the_moving_gradients(inner):
    chosen = inner.select or PARAMS
    moving = {name for name in PARAMS if (inner.select(name) if callable(inner.select) else name in chosen)}
    one, two = (jacrev(lambda p, x=x: NET.model(p, x)[:, 0])(PARAMS) for x in (X[:3], X[2:7]))
    expected = sum(
        (one[name] * (inner.factors or {}).get(name, 1.0)).flatten(1) @ two[name].flatten(1).T
        for name in moving
    )
    kernel = adaptation_ntk(NET.model, inner, X[:3], X[2:7], params=PARAMS, chunk=2)
    assert relative(kernel, expected / NET.width) < EXACT


class Contextual(torch.nn.Module):
    """CAVIA: a context, which the inner loop alone moves, beside the samples."""

    def __init__(self):
        super().__init__()
        self.context = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(7, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1)
        ).double()

    def forward(self, x):
        return self.layers(torch.cat([x, self.context.expand(len(x), 3)], 1))


def test_cavia_moves_the_context_inside_and_the_network_outside():
    model, params = from_module(Contextual(), scale=4.0)
    inner, outside = InnerLoop(2.0, 2, select=["context"]), [name for name in params if name != "context"]
    tangent, eta0, steps = linearised(model, params), 0.2, 10
    record = train(tangent, params, TASKS, inner, eta0, steps, [TEST], optimiser=Optimiser(select=outside))
    assert torch.equal(record.params["context"], params["context"])
    inside = adaptation_ntk(model, inner, X, params=params)
    theta = empirical_ntk(model, X, params=params, select=outside)
    f0, outer = model(params, X).reshape(-1), GradientDescent(eta0, steps)
    closed = kernel_regression(theta, TASKS, [TEST], inner.dynamics, outer, inside, f0)
    assert relative(record.observations[-1].test_outputs, closed.test) < EXACT
    moved = adapt(model, params, TEST, inner)
    assert all(torch.equal(moved[name], params[name]) for name in outside)
    assert not torch.equal(moved["context"], params["context"])


def test_implicit_maml_is_converged_with_its_ridge():
    """θ' minimises ℓ/l + r‖θ' − θ‖²/2 of the linearised network; dF/dθ = r ∇f (rI + ∇ᵀ∇/l)⁻¹ by implicit derivative."""
    ridge, task = 0.3, TEST
    query, support = (
        rows_of(jacrev(lambda p, x=x: TANGENT(p, x).reshape(-1))(PARAMS))
        for x in (task.query_x, task.support_x)
    )
    proximal = ridge * torch.eye(support.shape[1], dtype=torch.float64) + support.T @ support / NET.width
    residual = (NET.model(PARAMS, task.support_x) - task.support_y).reshape(-1)
    moved = -torch.linalg.solve(proximal, support.T @ residual / NET.width)
    adapted = NET.model(PARAMS, task.query_x).reshape(-1) + query @ moved
    jacobian = ridge * torch.linalg.solve(proximal, query.T).T
    x = joint_inputs([task])
    theta = empirical_ntk(NET.model, x, params=PARAMS)
    closed = kernel_regression(
        theta, [task], [], Converged(ridge), GradientDescent(0.0, 0), f0=NET.model(PARAMS, x).reshape(-1)
    )
    assert relative(closed.train, adapted) < EXACT
    phi = meta_ntk_from_ntk(theta, joint_sizes(theta, [task]), Converged(ridge))
    assert relative(phi, jacobian @ jacobian.T / NET.width) < EXACT


def test_first_order_maml_of_the_linearised_network_follows_its_kernel():
    inner, eta0, steps = InnerLoop(0.5, 2, first_order=True), 0.1, 15
    record = train(TANGENT, PARAMS, TASKS, inner, eta0, steps)
    rows = sum(len(t.query_x) + len(t.support_x) for t in TASKS)
    theta = THETA[:rows, :rows]
    kernel = first_order_meta_ntk(theta, joint_sizes(theta, TASKS), inner.dynamics)
    step = torch.eye(len(kernel), dtype=torch.float64) - eta0 * kernel
    start = record.observations[0].outputs - query_labels(TASKS)
    expected = torch.linalg.matrix_power(step, steps) @ start
    assert relative(record.observations[-1].outputs - query_labels(TASKS), expected) < EXACT
    assert relative(kernel, kernel.T) > 1e-3
    with as_users_run_it(), pytest.raises(ShapeError, match="theta has shape"):
        first_order_meta_ntk(theta[0], joint_sizes(theta, TASKS), inner.dynamics)
    with as_users_run_it(), pytest.raises(ShapeError, match="query rows, support rows"):
        first_order_meta_ntk(theta, [(2.5, 7.5)], inner.dynamics)
    with as_users_run_it(), pytest.raises(ShapeError, match="adaptation has shape"):
        first_order_meta_ntk(theta, joint_sizes(theta, TASKS), inner.dynamics, theta[:-1, :-1])


def test_bad_selections_and_factors_are_refused():
    with as_users_run_it():
        for message, error, inner in (
            (
                "no parameter|names none",
                ConfigurationError,
                InnerLoop(0.1, select=lambda name: name == "other"),
            ),
            ("but the network has", ConfigurationError, InnerLoop(0.1, select=["other"])),
            ("that the algorithm moves", ConfigurationError, InnerLoop(0.1, 1, "anil", select=["weight1"])),
            ("factors names", ConfigurationError, InnerLoop(0.1, factors={"other": 1.0})),
            (
                "expected a number or the parameter's",
                ShapeError,
                InnerLoop(0.1, factors={"bias1": torch.ones(3)}),
            ),
        ):
            with pytest.raises(error, match=message):
                adapt(NET.model, PARAMS, TASKS[0], inner)
        with pytest.raises(ValueRangeError, match="expected a finite number"):
            InnerLoop(0.1, factors={"bias1": float("nan")})
        for wrong in (torch.tensor([1.0, float("inf")]), torch.tensor([1]), torch.eye(2).to_sparse()):
            with pytest.raises(ValueRangeError, match="expected a finite number or tensor"):
                InnerLoop(0.1, factors={"bias1": wrong})
        with pytest.raises(ValueRangeError, match="expected a dict"):
            InnerLoop(0.1, factors=[1.0])


def test_a_network_that_mixes_samples_has_no_adaptation_kernel():
    network = torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
    ).double()
    with pytest.raises(UnsupportedModelError):
        adaptation_ntk(network, InnerLoop(0.1), TASKS[0].query_x)

    def centred_over_the_batch(params, x):
        output = NET.model(params, x)
        return output - output.mean(0)

    with pytest.raises(UnsupportedModelError):
        adaptation_ntk(Model(centred_over_the_batch), InnerLoop(0.1), TASKS[0].query_x, params=PARAMS)
