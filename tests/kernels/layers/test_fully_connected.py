"""Gradients of networks of Eq. (16) in closed form, and what a pass of them holds."""

import pytest
import torch

from mamltheory import FullyConnected, empirical_ntk, generator
from mamltheory.errors import ShapeError
from mamltheory.kernels.layers.fully_connected import fully_connected_gradients
from mamltheory.kernels.layers.gram import rows_pay
from mamltheory.kernels.layers.options import KernelOptions
from mamltheory.kernels.layers.tiles import Budget, OverBudget, tiled_kernels
from tests.paper.cases import relative
from tests.strategies import as_users_run_it


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "inputs"), dtype=torch.float64)


@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
@pytest.mark.parametrize("activation", ["erf", "tanh", "relu"])
@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_the_closed_form_of_a_fully_connected_network_is_its_generic_kernel(
    parameterisation, activation, outputs
):
    net = FullyConnected(4, 6, 3, 2, activation, 1.3, 0.4, parameterisation)
    params, x1, x2 = net.initialise(generator(0, "init")), draw(5, 4), draw(3, 4, seed=1)
    every, exact = frozenset(params), {}

    def generic(select, columns):
        key = select, columns is None
        if key not in exact:
            options = {"params": params, "outputs": outputs, "select": select, "method": "generic"}
            exact[key] = net.model.scale * empirical_ntk(net.model, x1, columns, **options)
        return exact[key]

    for one, other in (
        (every, every),
        ({"bias2", "weight3"}, every),
        ({"weight4"}, every),
        ({"bias1"}, every),
        ({"weight2", "bias3"}, {"bias2", "weight3"}),
    ):
        selections = [frozenset(one), frozenset(other)]

        def differentiate(x, budget, selections=selections):
            return fully_connected_gradients(net, params, x, outputs, selections, budget)

        for columns in (None, x2):
            kernels = tiled_kernels(differentiate, x1, columns, selections, KernelOptions())
            for kernel, select in zip(kernels, selections, strict=True):
                assert relative(kernel, generic(select, columns)) < 1e-13


@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_biases_of_any_size_have_their_share_where_rows_are_cheaper_than_factors(outputs):
    """Inputs of one number and more samples than 2kl: the first layer is contracted as rows."""
    net, x = FullyConnected(1, 3, 2, 2, "erf", 1.3, 0.4, "ntk"), draw(14, 1)
    assert rows_pay(1, 1, net.width, net.output_dim, len(x))
    params = net.initialise(generator(0, "init"))
    kernels = [
        empirical_ntk(net.model, x, params=params, outputs=outputs, method=method)
        for method in ("auto", "generic")
    ]
    assert relative(*kernels) < 1e-13


@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_a_pass_of_the_closed_form_books_what_its_hidden_layers_hold(outputs):
    """Activations of every layer, and slopes and cotangents of two layers for every output."""
    net = FullyConnected(4, 6, 3, 2)
    params, x = net.initialise(generator(0, "init")), draw(5, 4)
    held = 8 * 5 * (4 + 6 + 6 + 6 + 2 + 2 * (2 if outputs == "full" else 1) * 6)
    budget = Budget(held, 5)
    fully_connected_gradients(net, params, x, outputs, [frozenset(params)], budget)
    assert budget.used == held
    with pytest.raises(OverBudget):
        fully_connected_gradients(net, params, x, outputs, [frozenset(params)], Budget(held - 1, 5))


def test_samples_that_do_not_fit_are_refused():
    net = FullyConnected(4, 6, 3, 2)
    params = net.initialise(generator(0, "init"))
    with as_users_run_it(), pytest.raises(ShapeError, match="expected samples × 4"):
        fully_connected_gradients(net, params, draw(5, 3), "full", [frozenset(params)], Budget(10**9, 5))
