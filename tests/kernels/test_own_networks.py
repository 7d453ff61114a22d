"""Kernels of the networks that users bring, on every route, against one plain backward pass a row."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import nn

from mamltheory import InnerLoop, empirical_meta_ntk, empirical_ntk, from_module, meta_gradient
from mamltheory.errors import UnsupportedModelError
from mamltheory.kernels.layers import jacobian
from tests.own_networks import MIXING, RIGHT, VECTORS, N, Own, checkpointed, draw, made, tasks_of
from tests.paper.cases import relative
from tests.reference import meta_autograd
from tests.reference.kernels_autograd import ntk


def every_route(module, x):
    """The kernel of a module with its samples, by every way to it."""
    model, params = from_module(module)
    return {
        "auto": empirical_ntk(module, x),
        "chunks": empirical_ntk(module, x, chunk=2),
        "one by one": empirical_ntk(module, x, chunk=1),
        "generic": empirical_ntk(module, x, method="generic"),
        "model": empirical_ntk(model, x, params=params),
        "columns": empirical_ntk(module, x, x),
    }


@pytest.mark.parametrize("name", RIGHT)
def test_every_route_gives_the_kernel_of_plain_autograd(name):
    make, x = RIGHT[name]
    module, x = made(make), x.clone()
    expected, before = ntk(module, x.clone(), x.clone()), x.clone()
    for route, kernel in every_route(module, x).items():
        assert relative(kernel, expected) < 1e-12, route
    assert torch.equal(x, before)
    summed = expected.reshape(N, 5, N, 5).sum((1, 3))
    assert relative(empirical_ntk(module, x, outputs="sum"), summed) < 1e-12


@pytest.mark.parametrize("name", RIGHT)
def test_the_metantk_and_the_meta_gradient_are_those_of_plain_autograd(name):
    make, x = RIGHT[name]
    module, tasks = made(make), tasks_of(x)
    inner = InnerLoop(0.05, 2)
    assert (
        relative(empirical_meta_ntk(module, tasks, inner), meta_autograd.meta_ntk(module, tasks, 0.05, 2))
        < 1e-11
    )
    gradient, _ = meta_gradient(module, None, tasks, inner)
    for key, expected in meta_autograd.meta_gradient(module, tasks, 0.05, 2).items():
        assert relative(gradient[key], expected) < 1e-11 or float(expected.abs().max()) < 1e-12


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize(
    "options", [{}, {"method": "generic"}, {"chunk": 2}, {"chunk": 1}, {"select": "last"}]
)
def test_samples_that_a_network_mixes_are_refused_on_every_route(name, options):
    make, x = MIXING[name]
    module = made(make)
    if options == {"select": "last"}:
        options = {"select": list(dict(module.named_parameters()))[-1:]}
    with pytest.raises(UnsupportedModelError, match="mixes samples"):
        empirical_ntk(module, x, **options)
    model, params = from_module(module)
    with pytest.raises(UnsupportedModelError, match="mixes samples"):
        empirical_ntk(model, x, params=params, **({} if options.get("method") else options))


@pytest.mark.parametrize("change", ["network", "layer", "part with parameters"])
def test_gradients_that_mix_samples_behind_equal_outputs_are_refused(change):
    def straight_through(h):
        return h + (h.mean(0) - h.mean(0).detach())

    def own():
        if change == "part with parameters":  # beside one without any
            part = Own(lambda s, x: straight_through(s.layer(x)), layer=nn.Linear(4, 5))
            return nn.Sequential(part, Own(lambda _, h: torch.tanh(h)), nn.Linear(5, 5))
        inner = Own(lambda _, h: straight_through(h))
        layers = nn.Sequential(nn.Linear(4, 5), inner, nn.Tanh(), nn.Linear(5, 5))
        return layers if change == "layer" else Own(lambda s, x: s.layers(x), layers=layers)

    for options in ({}, {"method": "generic"}):
        with pytest.raises(UnsupportedModelError, match="mixes"):
            empirical_ntk(made(own), VECTORS, **options)


def test_a_pass_that_cannot_be_vectorised_leaves_the_graph_to_one_pass_an_output():
    class Looking(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # noqa: ARG004
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):  # noqa: ARG004
            return 2 * gradient if gradient.abs().max().item() > 0 else 0 * gradient

    module = made(lambda: nn.Sequential(nn.Linear(4, 5), Own(lambda _, x: Looking.apply(x)), nn.Linear(5, 3)))
    kernel = empirical_ntk(module, VECTORS, method="layerwise")
    assert relative(kernel, ntk(module, VECTORS, VECTORS)) < 1e-12


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_checkpointed_activations_are_refused_with_the_remedy(reentrant, first):
    module = made(lambda: checkpointed(reentrant, first))
    for options in ({}, {"method": "generic"}):
        with pytest.raises(UnsupportedModelError, match=r"checkpoints activations.*turn it off"):
            empirical_ntk(module, VECTORS, **options)
    with pytest.raises(UnsupportedModelError, match="checkpoints activations"):
        empirical_meta_ntk(module, tasks_of(VECTORS), InnerLoop(0.1, 1))


def test_the_way_out_is_said_once(caplog):
    module = made(lambda: nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 5)))
    model, params = from_module(module)
    jacobian._said.clear()
    for _ in range(2):
        empirical_ntk(model, VECTORS, params=params)
    (said,) = caplog.records
    assert "plain autograd, one at a time" in said.getMessage()


# networks drawn at random: layers in any order, some of them shared, odd heads and numbers without axes


def scaled():
    return Own(lambda s, x: s.scale.exp() * x, scale=nn.Parameter(torch.tensor(0.2)))


LAYERS = {
    "linear": lambda: nn.Linear(4, 4),
    "bare": lambda: nn.Linear(4, 4, bias=False),
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
    "slopes": lambda: nn.PReLU(4),
    "norm": lambda: nn.LayerNorm(4),
    "groups": lambda: nn.GroupNorm(2, 4),
    "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    "scale": scaled,
    "residual": lambda: Own(lambda s, x: x + s.inner(torch.tanh(x)), inner=nn.Linear(4, 4)),
    "gate": lambda: Own(lambda s, x: x * torch.sigmoid(s.gate(x)), gate=nn.Linear(4, 4)),
    "mean": lambda: Own(lambda s, x: s.outer(x - x.mean(1, keepdim=True)), outer=nn.Linear(4, 4)),
    "sorted": lambda: Own(lambda _, x: torch.sort(x, 1)[0]),
}


@st.composite
def networks(draw_from):
    names = draw_from(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=5))
    again = draw_from(st.lists(st.integers(0, len(names) - 1), max_size=2))
    outputs = draw_from(st.integers(1, 4))
    head = draw_from(st.sampled_from(["linear", "scaled", "distances", "first"]))
    seed = draw_from(st.integers(0, 2**16))

    def make():
        last = nn.Linear(4, outputs)
        layers = [LAYERS[name]() for name in names]
        body = nn.Sequential(*layers, *[layers[i] for i in again])
        if head == "linear":
            return nn.Sequential(body, last)
        if head == "scaled":
            return nn.Sequential(body, last, scaled())
        if head == "first":
            return Own(lambda s, x: s.head(s.body(x)), head=last, body=body)
        return Own(
            lambda s, x: -torch.cdist(s.body(x), s.centres, compute_mode="use_mm_for_euclid_dist"),
            body=body,
            centres=nn.Parameter(torch.randn(outputs, 4)),
        )

    return make, outputs, seed


@hypothesis.settings(max_examples=15)
@hypothesis.given(networks(), st.integers(1, 4), st.permutations(range(4)))
def test_random_networks_have_the_kernels_of_plain_autograd(network, n, order):
    make, k, seed = network
    module, x = made(make, seed), draw(n, 4, seed=seed)
    expected = ntk(module, x, x)
    size = float(expected.abs().max())
    hypothesis.assume(1e-6 < size < 1e6)
    for route, kernel in every_route(module, x).items():
        assert float((kernel - expected).abs().max()) < 1e-11 * size, route
    places = [place for place in order if place < n]
    moved = empirical_ntk(module, x[places]).reshape(n, k, n, k)
    unmoved = expected.reshape(n, k, n, k)[places][:, :, places]
    assert float((moved - unmoved).abs().max()) < 1e-11 * size


@hypothesis.settings(max_examples=6)
@hypothesis.given(networks(), st.integers(1, 2))
def test_random_networks_have_the_metantk_of_plain_autograd(network, steps):
    make, k, seed = network
    module, x = made(make, seed), draw(5, 4, seed=seed)
    tasks = [
        type(task)(task.query_x, task.query_y[:, :k], task.support_x, task.support_y[:, :k])
        for task in tasks_of(x)
    ]
    expected = meta_autograd.meta_ntk(module, tasks, 0.01, steps)
    size = float(expected.abs().max())
    hypothesis.assume(1e-6 < size < 1e6)
    got = empirical_meta_ntk(module, tasks, InnerLoop(0.01, steps))
    assert float((got - expected).abs().max()) < 1e-10 * size
