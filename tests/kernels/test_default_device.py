"""Tensors are made where the network and the samples are, wherever new ones are made by default."""

import pytest
import torch
from torch import nn
from torch.func import vmap

import mamltheory as mt
from mamltheory.kernels.analytic import expand_outputs
from mamltheory.kernels.layers.gram import LayerFactors, add_contraction, add_grams
from mamltheory.kernels.layers.jacobian import jacobian
from tests.own_networks import made
from tests.strategies import task


def draw(*shape):
    return torch.randn(*shape, generator=mt.generator(0, "x"), dtype=torch.float64, device="cpu")


X, IMAGES = draw(4, 3), draw(3, 2, 8, 9)
NET = mt.FullyConnected(3, 6, 2, 2, "tanh")
PARAMS = NET.initialise(mt.generator(0, "init"))
DENSE = made(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)))
CONVOLUTIONS = made(
    lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(80, 2)
    )
)
TASKS = [task(0, i, 2, 3, 3, 2) for i in range(2)]
INNER = mt.InnerLoop(0.1, 2)
KERNEL = mt.empirical_ntk(DENSE, mt.joint_inputs(TASKS))


def contracted(positions, dtype):
    factors = [LayerFactors(draw(n, positions, 3), draw(n, 2, positions, 4)) for n in (3, 2)]
    factors = [LayerFactors(each.inputs.to(dtype), each.cotangents.to(dtype)) for each in factors]
    total = torch.zeros(6, 4, dtype=torch.float64, device="cpu")
    add_contraction([total], *factors)
    return total


def grams():
    totals = torch.zeros(2, 4, 4, dtype=torch.float64, device="cpu")
    add_grams(totals, X, (1,))
    return totals


CALLS = {
    "outputs": lambda: expand_outputs(KERNEL, 2),
    "analytic": lambda: mt.analytic_ntk(NET, X),
    "standard": lambda: mt.analytic_ntk(mt.FullyConnected(3, 6, 2, 2, "relu"), X, X[:2], finite_width=True),
    "vectors": lambda: contracted(1, torch.float32),
    "positions": lambda: contracted(2, torch.float64),
    "groups": grams,
    "dense": lambda: mt.empirical_ntk(DENSE, X, X[:2]),
    "tiles": lambda: mt.empirical_ntk(DENSE, X, chunk=3),
    "convolutions": lambda: mt.empirical_ntk(CONVOLUTIONS, IMAGES),
    "closed form": lambda: mt.empirical_ntk(NET.model, X, params=PARAMS),
    "rows": lambda: vmap(lambda b: jacobian(NET.model, {**PARAMS, "bias3": b}, X)["weight1"])(
        PARAMS["bias3"][None]
    ),
    "meta": lambda: mt.meta_ntk(DENSE, TASKS),
    "gradient": lambda: mt.meta_gradient(NET.model, PARAMS, TASKS, INNER)[0]["weight1"],
    "generic gradient": lambda: mt.meta_gradient(NET.model, PARAMS, TASKS, INNER, "generic")[0]["weight1"],
    "training": lambda: mt.train(NET.model, PARAMS, TASKS, INNER, 0.1, 2).observations[-1].outputs,
    "no time": lambda: mt.time_operator(KERNEL, mt.GradientDescent(0.0, 3)),
    "sampled": lambda: mt.time_operator(KERNEL, mt.SampledDescent(0.01, ((0,), (1, 2)))),
    "regression": lambda: (
        mt.kernel_regression(KERNEL, TASKS[:1], TASKS[1:], INNER.dynamics, INNER.dynamics).test
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_tensor_is_made_on_the_default_device(name):
    expected = CALLS[name]()
    with torch.device("meta"):
        found = CALLS[name]()
    assert torch.equal(found, expected)
