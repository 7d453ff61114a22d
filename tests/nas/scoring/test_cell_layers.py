import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.nas.network import initialise
from mamltheory.nas.operations import Convolution, FactorizedReduce
from mamltheory.nas.scoring.cell_layers import Entering, convolved, run
from mamltheory.nas.scoring.sample_gradients import gradient_rows
from mamltheory.nas.scoring.tape import pulled_back
from mamltheory.rng import generator

SIZES = {"1x1": (1, 1), "3x3": (3, 3), "1x5": (1, 5), "5x1": (5, 1)}


def layer_of(size, stride, dilation, groups, channels=4):
    padding = tuple(dilation * (s - 1) // 2 for s in SIZES[size])
    layer = Convolution(channels, channels, SIZES[size], stride, padding, dilation, groups, bias=False)
    initialise(layer, 0)
    return layer.double()


def images(seed, *space, channels=4):
    return torch.randn(3, channels, *space, generator=generator(seed, "images"), dtype=torch.float64)


CASES = st.tuples(
    st.sampled_from(["1x1", "3x3", "1x5", "5x1"]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 4]),
)
SPACE = st.tuples(st.integers(5, 11), st.integers(5, 11))


@given(case=CASES, space=SPACE, outputs=st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_a_layer_as_it_is_run_has_the_values_and_derivatives_of_its_module(case, space, outputs):
    layer, x = layer_of(*case), images(sum(space), *space).requires_grad_()
    calls = []
    found = run(layer, x, lambda *call: calls.append(call))
    expected = layer(x)
    torch.testing.assert_close(found, expected)
    flow = torch.randn(3, outputs, *expected.shape[1:], generator=generator(1, "flow"), dtype=torch.float64)
    back = [torch.autograd.grad(y, x, flow[:, 0], retain_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*back)
    [(noted, entering, leaving, gridded)] = calls
    assert noted is layer
    assert leaving is found
    rows = torch.cat(gradient_rows(layer, ["weight"], entering.detach(), flow, gridded), 2)
    gram = torch.einsum("aid,bjd->aibj", rows, rows)
    exact = torch.stack(
        [
            torch.stack(
                [
                    torch.autograd.grad(layer(x[i : i + 1]), layer.weight, flow[i, o][None])[0].flatten()
                    for o in range(outputs)
                ]
            )
            for i in range(3)
        ]
    )
    torch.testing.assert_close(gram, torch.einsum("aid,bjd->aibj", exact, exact))


def check_second_derivatives(layer, space):
    """By what enters and by weights inside and outside."""
    x = images(sum(space), *space, channels=layer.in_channels).requires_grad_()
    weights = torch.tensor([0.4, 0.7], dtype=torch.float64, requires_grad=True)

    def slope(function):
        inner = function(weights[0] * x).pow(2)
        (by_x,) = torch.autograd.grad(weights[1] * inner.sum(), x, create_graph=True)
        return torch.autograd.grad(by_x.pow(2).sum(), [x, weights])

    for mine, plain in zip(slope(lambda y: convolved(layer, y)), slope(layer), strict=True):
        torch.testing.assert_close(mine, plain)


@given(case=CASES, space=SPACE)
@settings(max_examples=20, deadline=None)
def test_a_convolution_has_the_second_derivatives_of_its_module(case, space):
    check_second_derivatives(layer_of(*case), space)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("entering", "leaving", "groups", "padding"),
    [(4, 4, 2, 1), (4, 6, 2, 1), (6, 4, 2, 1), (2, 4, 2, 1), (1, 3, 1, 1), (4, 4, 4, 3)],
)
def test_so_has_a_grouped_convolution_with_other_channels_or_more_padding_than_kernel(
    entering, leaving, groups, padding, stride
):
    layer = Convolution(entering, leaving, 3, stride, padding, groups=groups, bias=False)
    initialise(layer, 0)
    check_second_derivatives(layer.double(), (6, 7))


@pytest.mark.parametrize("space", [(8, 8), (7, 10), (5, 5)])
def test_a_factorized_reduction_shares_the_grids_of_what_enters(space):
    first, second = (FactorizedReduce(4, 6, "group") for _ in range(2))
    for seed, module in enumerate((first, second)):
        initialise(module, seed)
        module.double()
    x = images(0, *space)
    entering, calls = Entering(x), []
    for module in (first, second):
        torch.testing.assert_close(run(module, entering, lambda *call: calls.append(call)), module(x))
    grids = [call[1] for call in calls if call[3]]
    assert len(grids) == 4
    assert grids[0] is grids[2]
    assert grids[1] is grids[3]


@pytest.mark.parametrize("padding_mode", ["circular", "reflect", "zeros"])
@pytest.mark.parametrize("groups", [1, 4])
def test_rows_and_their_way_back_know_how_a_layer_is_padded(padding_mode, groups):
    layer = torch.nn.Conv2d(4, 4, 3, padding=1, groups=groups, bias=False, padding_mode=padding_mode).double()
    x, flow = images(0, 6, 6), images(1, 6, 6)
    rows = torch.cat(gradient_rows(layer, ["weight"], x, flow[:, None]), 2)[:, 0]
    pairs = zip(x, flow, strict=True)
    exact = [torch.autograd.grad(layer(a[None]), layer.weight, g[None])[0].flatten() for a, g in pairs]
    exact = torch.stack(exact)
    torch.testing.assert_close(rows @ rows.T, exact @ exact.T)  # columns may come in another order
    weights = torch.randn(rows.shape, generator=generator(2, "weights"), dtype=torch.float64)
    by_x, by_flow = pulled_back(torch.nn.Conv2d, layer, x, flow[:, None], {"weight": weights})
    # ⟨rows, weights⟩ is linear in both, and equals either factor's product with its derivative.
    total = (exact * weights).sum()
    torch.testing.assert_close((by_x * x).sum(), total)
    torch.testing.assert_close((by_flow.view_as(flow) * flow).sum(), total)
