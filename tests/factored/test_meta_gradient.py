"""The factored meta-gradient against a loop with every weight written out, and its step in place."""

import itertools

import pytest
import torch

from mamltheory import FullyConnected, InnerLoop, centred, generator
from mamltheory.factored import meta_gradient
from mamltheory.factored.fast_weights import stack_tasks
from mamltheory.factored.meta_gradient import FactoredGradient, factored_meta_gradient
from tests.reference import maml_loop
from tests.strategies import task

CASES = list(
    itertools.product(["maml", "anil"], [False, True], [0, 1, 3], [(1, "relu"), (2, "erf"), (3, "tanh")])
)


@pytest.mark.parametrize(("algorithm", "first_order", "tau", "shape"), CASES)
def test_the_gradient_is_that_of_the_loop_task_by_task(algorithm, first_order, tau, shape):
    """Uneven numbers of inputs, neurons, outputs, queries and supports; weights and biases have factors."""
    net = FullyConnected(3, 5, *(shape[0], 2), shape[1], 1.7, 0.6, "ntk" if tau != 1 else "standard")
    params, tasks = (
        net.initialise(generator(0, "init")),
        [task(0, i, 1 + i % 2, 4 - i % 2, 3, 2) for i in range(3)],
    )
    inner, origin = InnerLoop(0.2, tau, algorithm, first_order), net.initialise(generator(1, "init"))
    for model, start in ((net.model, None), (centred(net.model, origin), origin)):
        stacks = stack_tasks(tasks, model)
        gradient, outputs = factored_meta_gradient(net, params, stacks, inner)
        expected, plain = maml_loop.meta_gradient(net, params, tasks, inner, start)
        for name, value in gradient.dense().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-13)
        found = {
            i: row
            for stack, output in zip(stacks, outputs, strict=True)
            for i, row in zip(stack.index, output if start is None else output - stack.offset, strict=True)
        }
        torch.testing.assert_close(
            torch.cat([found[i].flatten() for i in range(3)]), plain, rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize("block", [1, 8, 2**21])
def test_a_step_in_place_is_the_step_along_the_gradient_whatever_its_blocks(monkeypatch, block):
    draw = lambda *shape: torch.randn(*shape, generator=generator(shape[0], "step"), dtype=torch.float64)  # noqa: E731
    u, v, bias = draw(6, 5), draw(6, 4), draw(5)
    gradient, heights = FactoredGradient({"w": (u, v, 2.0)}, {"b": bias}), []
    torch.testing.assert_close(gradient.dense()["w"], 2 * u.T @ v)
    assert gradient.dense()["b"] is bias
    params = {"w": draw(5, 4), "b": draw(5)}
    expected = {"w": params["w"] - 0.3 * 2 * u.T @ v, "b": params["b"] - 0.3 * bias}
    product = meta_gradient.matmul
    monkeypatch.setattr(meta_gradient, "BLOCK", block)
    monkeypatch.setattr(meta_gradient, "matmul", lambda a, b: heights.append(len(a)) or product(a, b))
    length = gradient.step_(params, 0.3)
    assert heights == {1: [1] * 5, 8: [2, 2, 1], 2**21: [5]}[block]
    for name, value in expected.items():
        torch.testing.assert_close(params[name], value)
    assert length == pytest.approx(0.3 * float(torch.cat([(2 * u.T @ v).flatten(), bias]).norm()), rel=1e-12)
