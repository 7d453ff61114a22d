"""Which method a meta-gradient takes, and steps of dense gradients."""

import pytest
import torch

from mamltheory import (
    FullyConnected,
    InnerLoop,
    Task,
    generator,
    linearised,
    meta_gradient,
    meta_method,
    meta_outputs,
)
from mamltheory.errors import ConfigurationError, UnsupportedModelError, ValueRangeError
from mamltheory.objective import DenseGradient, MetaObjective, chosen_method
from tests.strategies import as_users_run_it, task


def sized(n, m):
    return Task(torch.zeros(n, 4), torch.zeros(n, 1), torch.zeros(m, 4), torch.zeros(m, 1))


@pytest.mark.parametrize(
    ("width", "tau", "n", "method"),
    [
        (20, 75, 8, "factored"),  # 75 · 5 + 8 = 383 rows
        (20, 75, 9, "generic"),
        (1000, 98, 9, "factored"),  # 499 rows, and half of the width is 500
        (1000, 98, 10, "generic"),
    ],
)
def test_factors_are_taken_below_half_the_width_or_384_rows_of_the_largest_task(width, tau, n, method):
    model = FullyConnected(4, width, 2).model
    for tasks in ([sized(n, 5), sized(1, 1)], [sized(1, 1), sized(n, 5)]):
        assert meta_method(model, tasks, InnerLoop(0.1, tau)) == method
        assert chosen_method("auto", model, tasks, InnerLoop(0.1, tau)) == method


def test_factors_need_layers_and_one_rate():
    net, some = FullyConnected(4, 5, 1), [sized(2, 3)]
    other = linearised(net.model, net.initialise(generator(0, "init")))
    assert chosen_method("generic", net.model, some, InnerLoop(0.1)) == "generic"
    assert meta_method(net.model, some, InnerLoop((0.1,), 1)) == "generic"
    assert meta_method(torch.nn.Linear(4, 1), some, InnerLoop(0.1)) == "generic"
    for error, arguments in (
        (UnsupportedModelError, ("factored", other, some, InnerLoop(0.1))),
        (ConfigurationError, ("factored", net.model, some, InnerLoop((0.1,), 1))),
        (ValueRangeError, ("fast", net.model, some, InnerLoop(0.1))),
    ):
        with as_users_run_it(), pytest.raises(error, match="method"):
            chosen_method(*arguments)


def test_a_step_along_a_dense_gradient_has_the_length_of_all_its_parts():
    gradient = DenseGradient({"w": torch.tensor([[3e25, 0.0]]), "b": torch.tensor([4e25])})
    params = {"w": torch.tensor([[1e25, 2.0]]), "b": torch.tensor([0.0])}
    assert gradient.step_(params, 0.5) == pytest.approx(2.5e25, rel=1e-6)  # whose square is beyond float32
    torch.testing.assert_close(params, {"w": torch.tensor([[-0.5e25, 2.0]]), "b": torch.tensor([-2e25])})


@pytest.mark.parametrize("method", ["factored", "generic"])
@pytest.mark.parametrize("chunk", [None, 1, 2])
def test_tasks_in_any_groups_have_one_gradient_and_outputs_in_their_order(method, chunk):
    net, inner = FullyConnected(4, 5, 2, 2, "tanh"), InnerLoop(0.2, 2)
    params = net.initialise(generator(0, "init"))
    some = [task(0, i, 1 + i % 2, 3 - i % 2, 4, 2) for i in range(3)]
    gradient, outputs = meta_gradient(net.model, params, some, inner, method, chunk)
    alone = [meta_gradient(net.model, params, [each], inner, "generic") for each in some]
    torch.testing.assert_close(outputs, torch.cat([each for _, each in alone]))
    torch.testing.assert_close(meta_outputs(net.model, params, some, inner, method), outputs)
    for name in params:
        torch.testing.assert_close(gradient[name], sum(each[name] for each, _ in alone))
    objective = MetaObjective(net.model, some[:2], inner, method, chunk)
    torch.testing.assert_close(objective.outputs(params), outputs[: 2 * (1 + 2)])
    torch.testing.assert_close(objective.outputs(params, some[2:]), alone[2][1])
    torch.testing.assert_close(
        objective.on(some[1:]).gradient(params)[1], torch.cat([alone[1][1], alone[2][1]])
    )
