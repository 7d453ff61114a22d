import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mamltheory.kernels.layers.convolutions import weight_gradients
from mamltheory.nas.network import initialise
from mamltheory.nas.operations import Convolution, FactorizedReduce
from mamltheory.nas.scoring.cell_layers import Activation, run_layer, runs_layer_by_layer
from mamltheory.rng import generator


def images(seed, *space, channels=4):
    return torch.randn(3, channels, *space, generator=generator(seed, "images"), dtype=torch.float64)


@given(
    size=st.sampled_from([(1, 1), (3, 3), (1, 5), (5, 1)]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 4]),
    space=st.tuples(st.integers(5, 11), st.integers(5, 11)),
)
@settings(max_examples=40, deadline=None)
def test_a_layer_as_it_runs_has_the_values_and_derivatives_of_its_module(
    size, stride, dilation, groups, space
):
    padding = tuple(dilation * (s - 1) // 2 for s in size)
    layer = Convolution(4, 4, size, stride, padding, dilation, groups, bias=False)
    initialise(layer, 0)
    x, calls = images(sum(space), *space).requires_grad_(), []
    layer = layer.double()
    found, expected = run_layer(layer, x, lambda *call: calls.append(call)), layer(x)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(expected.shape, generator=generator(1, "cotangent"), dtype=torch.float64)
    back = [torch.autograd.grad(y, x, cotangent, retain_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*back)
    [(recorded, inputs, output, geometry)] = calls
    assert recorded is layer
    assert output is found
    assert geometry.stride == (1, 1) or stride == 2
    rows = weight_gradients(inputs.detach(), cotangent[:, None], layer.weight.shape, geometry)
    exact = [
        torch.autograd.grad(layer(a[None]), layer.weight, g[None])[0].flatten()
        for a, g in zip(x, cotangent, strict=True)
    ]
    torch.testing.assert_close(rows, torch.stack(exact))


@pytest.mark.parametrize("space", [(8, 8), (7, 10), (5, 5)])
def test_factorized_reductions_share_the_grids_of_their_input(space):
    first, second = (FactorizedReduce(4, 6, "group") for _ in range(2))
    for seed, module in enumerate((first, second)):
        initialise(module, seed)
        module.double()
    x = images(0, *space)
    state, calls = Activation(x), []
    for module in (first, second):
        torch.testing.assert_close(run_layer(module, state, lambda *call: calls.append(call)), module(x))
    grids = [call[1] for call in calls if isinstance(call[0], nn.Conv2d)]
    assert len(grids) == 4
    assert grids[0] is grids[2]
    assert grids[1] is grids[3]


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def test_layers_are_known_one_by_one_unless_one_is_shared_or_of_another_class():
    layer, norm = nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4)
    assert runs_layer_by_layer(
        nn.Sequential(nn.ReLU(), layer, nn.Dropout(), norm, FactorizedReduce(4, 4, "group"))
    )
    assert runs_layer_by_layer(nn.Identity())
    assert not runs_layer_by_layer(nn.Sequential(layer, nn.ReLU(), layer))
    assert not runs_layer_by_layer(nn.Sequential(layer, Scaled()))
    assert not runs_layer_by_layer(Scaled())
