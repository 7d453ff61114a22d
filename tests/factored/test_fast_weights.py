import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    FullyConnected,
    InnerLoop,
    centred,
    from_module,
    generator,
    linearised,
    meta_gradient,
    meta_method,
    meta_output,
    meta_outputs,
    train,
)
from mamltheory.errors import ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.factored.fast_weights import adapted_pass, factor_path, slope_and_curvature, stack_tasks
from mamltheory.factored.meta_gradient import factored_meta_gradient
from mamltheory.inner_loop import inner_path
from mamltheory.maml import distance
from tests.paper.cases import relative
from tests.reference import maml_loop
from tests.strategies import as_users_run_it, networks, seeds, task


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
                    a, g = factors.activations[place], factors.cotangents[place]
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
            assert torch.equal(factors.cotangents, sum(path.cotangents[r][p] for r in range(s + 1)))
            continue
        assert torch.equal(
            factors.activations, torch.cat([path.steps[r].activations[p] for r in range(s + 1)], 1)
        )
        assert torch.equal(factors.cotangents, torch.cat([path.cotangents[r][p] for r in range(s + 1)], 1))


@pytest.mark.parametrize("depth", [1, 3])
def test_anil_has_factors_of_the_head_alone(depth):

    net = FullyConnected(3, 5, depth, 1)
    (stack,) = stack_tasks([task(0, 0, 2, 3, 3, 1)])
    path = factor_path(net, start(net), stack.support_x, stack.support_y, InnerLoop(0.3, 2, "anil"))
    assert [factors is None for factors in path.fast[-1]] == [True] * depth + [False]


def agree(got, expected, tolerance):
    """Every parameter's gradient, relative to the largest of all."""
    size = max(float(value.norm()) for value in expected.values())
    return all(float((got[name] - value).norm()) <= tolerance * size for name, value in expected.items())


@settings(max_examples=60, deadline=None)
@given(problems(steps=4), st.booleans(), st.sampled_from([None, 1, 2]))
def test_the_factored_meta_gradient_is_that_of_the_plain_loop_and_of_the_generic_method(
    problem, centre, chunk
):
    net, params, some, inner = unpacked(problem)
    origin = start(net, 7) if centre else None
    model = centred(net.model, origin) if centre else net.model
    expected, outputs = maml_loop.meta_gradient(net, params, some, inner, origin)
    for method in ("factored", "generic"):
        gradient, seen = meta_gradient(model, params, some, inner, method, chunk)
        assert list(gradient) == list(params)
        assert agree(gradient, expected, 1e-12), method
        close(seen, outputs)
        close(meta_outputs(model, params, some, inner, method), outputs)


@settings(max_examples=30, deadline=None)
@given(problems(steps=3))
def test_in_single_precision_the_two_methods_agree_to_its_rounding(problem):
    net, params, some, inner = unpacked(problem, torch.float32)
    factored, _ = meta_gradient(net.model, params, some, inner, "factored")
    generic, _ = meta_gradient(net.model, params, some, inner, "generic")
    assert all(value.dtype == torch.float32 for value in factored.values())
    if net.activation != "relu":  # a kink that falls on the other side is no rounding error
        assert agree(factored, generic, 3e-4)


@settings(max_examples=30, deadline=None)
@given(problems(steps=3))
def test_the_fused_step_is_the_step_along_the_gradient_and_knows_its_length(problem):
    net, params, some, inner = unpacked(problem)
    gradient, _ = factored_meta_gradient(net, params, stack_tasks(some), inner)
    moved = {name: value.clone() for name, value in params.items()}
    length = gradient.step_(moved, 0.3)
    dense = gradient.dense()
    assert agree(moved, {name: value - 0.3 * dense[name] for name, value in params.items()}, 1e-14)
    zero = {name: torch.zeros_like(value) for name, value in params.items()}
    assert length == pytest.approx(0.3 * distance(dense, zero), rel=1e-12)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_sixty_steps_of_training_are_the_same_by_both_methods(activation):
    net = FullyConnected(4, 40, 2, 2, activation)
    params, some = start(net), [task(0, i, 2 + i % 2, 3, 4, 2) for i in range(3)]
    factored, generic = (
        train(net.model, params, some, InnerLoop(0.2, 2), 0.05, 60, method=method)
        for method in ("factored", "generic")
    )
    assert (factored.method, generic.method) == ("factored", "generic")
    assert relative(factored.losses(), generic.losses()) < 1e-12
    assert distance(factored.params, generic.params) < 1e-10 * distance(generic.params, params)
    last = (factored.observations[-1], generic.observations[-1])
    assert last[0].path_length == pytest.approx(last[1].path_length, rel=1e-11)
    assert last[0].movement == pytest.approx(last[1].movement, rel=1e-11)


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_the_factored_outputs_differentiate_to_the_factored_gradient(algorithm, first_order):
    """They are an ordinary function of the parameters: autograd through them is the handwritten reverse pass, and
    that through the outputs of the generic method.
    """
    net = FullyConnected(4, 7, 3, 2, "tanh", sigma_b=0.4, parameterisation="ntk")
    some, inner = [task(0, i, 2, 3, 4, 2) for i in range(2)], InnerLoop(0.3, 3, algorithm, first_order)
    params = {name: value.requires_grad_() for name, value in start(net).items()}
    labels = torch.cat([one.query_y.reshape(-1) for one in some])
    gradient, _ = meta_gradient(net.model, params, some, inner, "factored")
    for method in ("factored", "generic"):
        loss = (meta_outputs(net.model, params, some, inner, method) - labels).square().sum() / 2
        expected = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        assert agree(gradient, expected, 1e-13), method
    assert not any(value.requires_grad for value in gradient.values())


def test_the_method_is_chosen_by_the_network_and_the_number_of_rows():
    inner, some = InnerLoop(0.2, 2), [task(0, 0, 5, 10, 4, 1)]
    net, narrow = FullyConnected(4, 512, 2), FullyConnected(4, 20, 2)
    params = start(narrow)
    assert meta_method(net.model, some, inner) == "factored"
    assert meta_method(net.model, some, InnerLoop(0.2, 60)) == "generic"
    assert meta_method(narrow.model, some, inner) == "factored"
    assert meta_method(centred(narrow.model, params), some, inner) == "factored"
    assert meta_method(linearised(narrow.model, params), some, inner) == "generic"
    with torch.random.fork_rng():
        model, own = from_module(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)).double())
    assert meta_method(model, some, inner) == "generic"
    assert train(model, own, some, inner, 0.01, 1).method == "generic"
    with pytest.raises(UnsupportedModelError, match="'generic'"):
        meta_gradient(model, own, some, inner, "factored")


def without(params, name):
    return {other: value for other, value in params.items() if other != name}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda p: without(p, "bias2"), ShapeError, "expected.*'bias2'"),
        (
            lambda p: {**p, "weight2": p["weight2"][:2]},
            ShapeError,
            r"'weight2' has shape \(2, 3\), expected \(3, 3",
        ),
        (lambda p: {**p, "bias1": p["bias1"].float()}, ShapeError, "'bias1' is torch.float32.*Task.to"),
        (lambda p: {**p, "bias1": p["bias1"].int()}, ShapeError, "'bias1' is torch.int32"),
        (lambda p: {**p, "bias1": p["bias1"] / 0}, ValueRangeError, "'bias1' has NaN or infinite"),
    ],
)
def test_parameters_that_are_not_the_networks_are_refused_by_name(change, error, message):
    net = FullyConnected(4, 3, 2)
    with as_users_run_it(), pytest.raises(error, match=message):
        meta_gradient(net.model, change(start(net)), [task(0, 0, 2, 3, 4, 1)], InnerLoop(0.2), "factored")


def test_tasks_methods_and_chunks_that_do_not_fit_are_refused():
    net = FullyConnected(4, 3, 2)
    params, inner = start(net), InnerLoop(0.2)
    with as_users_run_it():
        with pytest.raises(ShapeError, match="samples of 5 numbers, expected 4"):
            meta_gradient(net.model, params, [task(0, 0, 2, 3, 5, 1)], inner)
        with pytest.raises(ShapeError, match="labels of 2 numbers, expected 1"):
            meta_gradient(net.model, params, [task(0, 0, 2, 3, 4, 2)], inner)
        with pytest.raises(ValueRangeError, match="'fast': expected 'auto'"):
            meta_gradient(net.model, params, [task(0, 0, 2, 3, 4, 1)], inner, "fast")
        with pytest.raises(ValueRangeError, match="chunk is 0"):
            meta_gradient(net.model, params, [task(0, 0, 2, 3, 4, 1)], inner, chunk=0)


@pytest.mark.usefixtures("card")
def test_on_a_cuda_device_the_gradient_is_that_of_the_cpu():
    net = FullyConnected(4, 40, 2, 2, "erf", sigma_b=0.3)
    params, inner, some = start(net), InnerLoop(0.2, 3), [task(0, i, 2, 3, 4, 2) for i in range(3)]
    there = {name: value.cuda() for name, value in params.items()}
    gradient, _ = meta_gradient(net.model, there, [one.to("cuda") for one in some], inner, "factored")
    expected, _ = meta_gradient(net.model, params, some, inner, "factored")
    assert agree({name: value.cpu() for name, value in gradient.items()}, expected, 1e-11)


def test_a_relu_that_is_exactly_zero_has_no_slope_as_in_torch():
    h = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    (expected,) = torch.autograd.grad(torch.relu(h).sum(), h)
    slope, curvature = slope_and_curvature("relu", h.detach(), torch.relu(h.detach()))
    assert torch.equal(slope, expected)
    assert curvature is None
