"""Kernels, meta-gradients and training of the theory on a CUDA device: the CPU's values, computed there."""

import copy

import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory.errors import ConfigurationError

pytestmark = pytest.mark.usefixtures("card")

NET = mt.FullyConnected(3, 8, 2, 2, "erf", sigma_b=0.3)
PARAMS = NET.initialise(mt.generator(0, "init"))
TIME = mt.GradientDescent(0.2, 2)
STREAM = mt.generator(0, "tasks")


def points(count, size):
    return nn.functional.normalize(torch.randn(count, size, generator=STREAM, dtype=torch.float64), dim=-1)


def point_task():
    return mt.Task(points(2, 3), points(2, 2), points(3, 3), points(3, 2))


def image_task():
    query, support = (torch.randn(2, 3, 6, 6, generator=STREAM) for _ in range(2))
    return mt.Task(query, torch.eye(2), support, torch.eye(2))


X, TASKS, HELD_OUT, IMAGES = points(4, 3), [point_task(), point_task()], [point_task()], [image_task()]


def module():
    layers = [
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 2),
    ]
    network = nn.Sequential(*layers)
    for index, parameter in enumerate(network.parameters()):
        stream = mt.generator(0, "module", index)
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=stream)
    return network


def moved(value, device):
    """Tasks, tensors, modules, and lists and dictionaries of them, on a device."""
    if isinstance(value, dict):
        return {name: each.to(device) for name, each in value.items()}
    if isinstance(value, list):
        return [each.to(device) for each in value]
    return copy.deepcopy(value).to(device) if isinstance(value, nn.Module) else value.to(device)


def agree(compute, rtol=1e-9):
    """Whether the results, tensors in a list, are on the device and are those of the CPU."""
    there, here = compute("cuda"), compute("cpu")
    for one, other in zip(there, here, strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), other, rtol=rtol, atol=rtol * float(other.abs().max()))


def fully_connected(function, *args, **kwargs):
    """What a kernel of the network with structure does on a device."""
    return lambda d: [function(NET.model, *moved(list(args), d), params=moved(PARAMS, d), **kwargs)]


KERNELS = {
    "ntk": fully_connected(mt.empirical_ntk, X),
    "ntk of two lists, in chunks": fully_connected(mt.empirical_ntk, X, X[:2], chunk=1),
    "ntk of sums": fully_connected(mt.empirical_ntk, X, outputs="sum"),
    "last layer": fully_connected(mt.empirical_last_layer_ntk, X),
    "meta-ntk": lambda d: [mt.meta_ntk(NET.model, moved(TASKS, d), dynamics=TIME, params=moved(PARAMS, d))],
    "meta-ntk of anil": lambda d: [
        mt.meta_ntk(NET.model, moved(TASKS, d), "anil", dynamics=TIME, params=moved(PARAMS, d))
    ],
    **{
        f"empirical meta-ntk, {algorithm}, {method}": lambda d, algorithm=algorithm, method=method: [
            mt.empirical_meta_ntk(
                NET.model,
                moved(TASKS, d),
                mt.InnerLoop(0.2, 2, algorithm),
                params=moved(PARAMS, d),
                method=method,
            )
        ]
        for algorithm in ("maml", "anil")
        for method in ("factored", "generic")
    },
    "analytic": lambda d: [
        function(NET, moved(X, d)) for function in (mt.analytic_ntk, mt.nngp, mt.analytic_last_layer_ntk)
    ],
    "analytic meta-ntk": lambda d: [mt.analytic_meta_ntk(NET, moved(TASKS, d), "maml", TIME)],
    "tanh": lambda d: [mt.analytic_ntk(mt.FullyConnected(3, 8, 1, 1, "tanh"), moved(X, d))],
    "relu": lambda d: [mt.analytic_ntk(mt.FullyConnected(3, 8, 1, 1, "relu"), moved(X, d))],
    "operators": lambda d: [
        function(moved(X @ X.T + torch.eye(4), d), TIME)
        for function in (mt.time_operator, mt.residual_operator)
    ],
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_those_of_the_cpu(name):
    agree(KERNELS[name])


@pytest.mark.parametrize("outputs", ["full", "sum"])
@pytest.mark.parametrize("method", ["layerwise", "generic"])
def test_kernels_of_modules_are_those_of_the_cpu(method, outputs):
    x = torch.cat([IMAGES[0].query_x, IMAGES[0].support_x])
    agree(lambda d: [mt.empirical_ntk(moved(module(), d), moved(x, d), outputs=outputs, method=method)], 1e-5)


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_meta_kernels_of_modules_are_those_of_the_cpu(algorithm):
    time, inner = mt.Converged(ridge=1e-3), mt.InnerLoop(0.1, 1, algorithm)
    agree(
        lambda d: [
            mt.meta_ntk(moved(module(), d), moved(IMAGES, d), algorithm, dynamics=time),
            mt.empirical_meta_ntk(moved(module(), d), moved(IMAGES, d), inner),
        ],
        1e-4,
    )


def test_closed_forms_are_those_of_the_cpu():
    def predicted(d):
        tasks, other, params = moved(TASKS, d), moved(HELD_OUT, d), moved(PARAMS, d)
        samples = mt.joint_inputs([*tasks, *other])
        f0 = NET.model(params, samples).flatten()
        theta = mt.empirical_ntk(NET.model, samples, params=params)
        found = mt.kernel_regression(theta, tasks, other, inner=TIME, outer=mt.GradientDescent(0.1, 5), f0=f0)
        return [found.train, found.test]

    agree(predicted)
    number = mt.condition_number(mt.empirical_ntk(NET.model, X.to("cuda"), params=moved(PARAMS, "cuda")))
    assert number == pytest.approx(mt.condition_number(mt.empirical_ntk(NET.model, X, params=PARAMS)))


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize("method", ["factored", "generic"])
def test_meta_gradients_are_those_of_the_cpu(method, algorithm):
    def gradient(d):
        inner = mt.InnerLoop(0.2, 3, algorithm)
        found, outputs = mt.meta_gradient(NET.model, moved(PARAMS, d), moved(TASKS, d), inner, method)
        return [*found.values(), outputs]

    agree(gradient)


@pytest.mark.parametrize("method", ["factored", "generic"])
def test_training_is_that_of_the_cpu(method):
    def trained(d):
        inner, other = mt.InnerLoop(0.2, 2), moved(HELD_OUT, d)
        record = mt.train(
            NET.model,
            moved(PARAMS, d),
            moved(TASKS, d),
            inner,
            0.1,
            2,
            other,
            kernel_steps=(1,),
            method=method,
        )
        last = record.observations[-1]
        return [*record.params.values(), last.outputs, last.test_outputs, record.kernels[1]]

    agree(trained)


def test_a_modules_meta_gradient_and_adaptation_are_those_of_the_cpu():
    def gradient(d):
        network, tasks, inner = moved(module(), d), moved(IMAGES, d), mt.InnerLoop(0.1, 2)
        found, outputs = mt.meta_gradient(network, None, tasks, inner)
        return [*found.values(), outputs, mt.meta_outputs(network, None, tasks, inner)]

    agree(gradient, 1e-4)


@pytest.mark.parametrize("call", [mt.empirical_ntk, mt.empirical_last_layer_ntk])
def test_samples_that_are_not_with_the_network_are_refused(call):
    with pytest.raises(ConfigurationError, match="samples are on cpu and the parameters on cuda:0"):
        call(moved(module(), "cuda"), IMAGES[0].query_x)
