import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import FullyConnected, InnerLoop, generator, meta_output
from mamltheory.fast_weights import adapted_pass, factor_path, stack_tasks
from mamltheory.inner import inner_path
from tests.strategies import networks, seeds, task


def start(net, seed=0, dtype=torch.float64):
    return net.initialise(generator(seed, "init"), dtype)


@st.composite
def problems(draw, steps=4, largest=4):
    """A network, an inner loop, the sizes of some tasks, and a seed."""
    net = draw(networks())
    inner = InnerLoop(
        draw(st.floats(0.05, 0.4)),
        draw(st.integers(0, steps)),
        draw(st.sampled_from(["maml", "anil"])),
        draw(st.booleans()),
    )
    sizes = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=largest))
    return net, inner, sizes, draw(seeds)


def unpacked(problem, dtype=torch.float64):
    """Network, parameters, tasks and inner loop of a drawn problem."""
    net, inner, sizes, seed = problem
    some = tuple(task(seed, i, *size, net.input_dim, net.output_dim, dtype) for i, size in enumerate(sizes))
    return net, start(net, seed, dtype), some, inner


def close(got, expected, tolerance=1e-12):
    assert float((got - expected).norm()) <= tolerance * (1e-3 + float(expected.norm()))


@settings(max_examples=60, deadline=None)
@given(problems())
def test_factors_are_the_adapted_weights_minus_the_shared_ones_at_every_step(problem):
    net, params, some, inner = unpacked(problem)
    for stack in stack_tasks(some):
        path = factor_path(net, params, stack.support_x, stack.support_y, inner)
        for place, i in enumerate(stack.index):
            for theta, fast in zip(inner_path(net.model, params, some[i], inner), path.fast, strict=True):
                for p, (layer, factors) in enumerate(zip(path.layers, fast, strict=True), 1):
                    weight, bias = theta[f"weight{p}"], theta[f"bias{p}"]
                    if factors is None:
                        assert torch.equal(layer.weight, weight)
                        continue
                    a, g = factors.entering[place], factors.flowing[place]
                    close(layer.weight - path.rate * layer.c * g.T @ a, weight)
                    close(layer.bias - path.rate * layer.c_b * g.sum(0), bias)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_adapted_forward_pass_is_the_meta_output_of_every_task(problem):
    net, params, some, inner = unpacked(problem)
    for stack in stack_tasks(some):
        path = factor_path(net, params, stack.support_x, stack.support_y, inner)
        output = adapted_pass(path, stack.query_x).output
        for place, i in enumerate(stack.index):
            close(output[place].reshape(-1), meta_output(net.model, params, some[i], inner))


def test_the_rows_of_one_step_are_the_factors_of_the_next():
    net = FullyConnected(3, 5, 2, 2, "tanh")

    (stack,) = stack_tasks([task(0, i, 2, 3, 3, 2) for i in range(2)])
    path = factor_path(net, start(net), stack.support_x, stack.support_y, InnerLoop(0.3, 3))
    for s, p in ((0, 0), (1, 1), (2, 2)):
        factors = path.fast[s + 1][p]
        if p == path.first:
            assert torch.equal(factors.flowing, sum(path.flowing[r][p] for r in range(s + 1)))
            continue
        assert torch.equal(factors.entering, torch.cat([path.steps[r].entering[p] for r in range(s + 1)], 1))
        assert torch.equal(factors.flowing, torch.cat([path.flowing[r][p] for r in range(s + 1)], 1))


@pytest.mark.parametrize("depth", [1, 3])
def test_anil_has_factors_of_the_head_alone(depth):

    net = FullyConnected(3, 5, depth, 1)
    (stack,) = stack_tasks([task(0, 0, 2, 3, 3, 1)])
    path = factor_path(net, start(net), stack.support_x, stack.support_y, InnerLoop(0.3, 2, "anil"))
    assert [factors is None for factors in path.fast[-1]] == [True] * depth + [False]
