"""ANIL's head is the linear map whose output is the network's, whatever the order of definition."""

import pytest
import torch
from torch import nn

from mamltheory import (
    Converged,
    InnerLoop,
    adapt,
    condition_number,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    from_module,
    meta_ntk,
    meta_ntk_from_ntk,
)
from mamltheory.errors import ConfigurationError, MamlTheoryError, UnsupportedModelError
from mamltheory.guard import as_model
from mamltheory.head import find_head
from mamltheory.kernels.meta import joint_inputs, joint_sizes
from tests.own_networks import IMAGES, TOKENS, VECTORS, Own, made, tasks_of
from tests.paper.cases import relative
from tests.reference.kernels_autograd import ntk
from tests.strategies import as_users_run_it


class Dense(nn.Module):
    """A linear layer that a user wrote."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.matrix


def gated(head):
    """Squeeze and excite: linear layers as gates, and a convolution that classifies."""

    def forward(s, x):
        h = torch.tanh(s.first(x))
        return s.classify(h * torch.sigmoid(s.gate(h.mean((2, 3))))[:, :, None, None])

    return Own(forward, classify=head, first=nn.Conv2d(3, 4, 3), gate=nn.Linear(4, 4))


def both_heads(s, x):
    h = torch.tanh(s.body(x))
    s.auxiliary(h)
    return s.head(h)


weight_norm = nn.utils.parametrizations.weight_norm
HEADS = {  # name -> (network, samples, the head's parameters)
    "linear": (lambda: nn.Linear(4, 5), VECTORS, {"weight", "bias"}),
    "sequential": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)),
        VECTORS,
        {"2.weight", "2.bias"},
    ),
    "nested": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5, bias=False))),
        VECTORS,
        {"1.1.weight"},
    ),
    "defined first": (
        lambda: Own(lambda s, x: s.head(torch.tanh(s.body(x))), head=nn.Linear(6, 5), body=nn.Linear(4, 6)),
        VECTORS,
        {"head.weight", "head.bias"},
    ),
    "with an unused one": (
        lambda: Own(both_heads, body=nn.Linear(4, 6), head=nn.Linear(6, 5), auxiliary=nn.Linear(6, 5)),
        VECTORS,
        {"head.weight", "head.bias"},
    ),
    "never called": (
        lambda: Own(
            lambda s, x: s.head(torch.tanh(s.body(x))),
            body=nn.Linear(4, 6),
            head=nn.Linear(6, 5),
            other=nn.Linear(6, 9),
        ),
        VECTORS,
        {"head.weight", "head.bias"},
    ),
    "convolution": (
        lambda: gated(nn.Sequential(nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        IMAGES,
        {"classify.0.weight", "classify.0.bias"},
    ),
    "scaled by a constant": (
        lambda: Own(lambda s, x: 0.1 * s.b(torch.tanh(s.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 5)),
        VECTORS,
        {"b.weight", "b.bias"},
    ),
    "a user's layer": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), Dense(6, 5)),
        VECTORS,
        {"2.matrix"},
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), weight_norm(nn.Linear(6, 5))),
        VECTORS,
        {"2.bias", "2.parametrizations.weight.original0", "2.parametrizations.weight.original1"},
    ),
    "called by keyword": (
        lambda: Own(lambda s, x: s.b(input=torch.tanh(s.a(input=x))), a=nn.Linear(4, 6), b=nn.Linear(6, 5)),
        VECTORS,
        {"b.weight", "b.bias"},
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Tanh(), nn.Linear(12, 5)),
        TOKENS,
        {"3.weight", "3.bias"},
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_the_linear_map_whose_output_is_the_networks(name):
    make, x, expected = HEADS[name]
    module = made(make)
    assert find_head(*as_model(module), x) == expected
    kernel = ntk(module, x, x, expected)
    assert relative(empirical_last_layer_ntk(module, x), kernel) < 1e-13
    assert relative(empirical_last_layer_ntk(module, x, method="generic"), kernel) < 1e-13
    model, params = from_module(module)
    assert relative(empirical_last_layer_ntk(model, x, params=params), kernel) < 1e-13


@pytest.mark.parametrize("name", HEADS)
def test_anil_adapts_that_head_and_nothing_else(name):
    make, x, expected = HEADS[name]
    module, tasks = made(make), tasks_of(x)
    moved = adapt(module, None, tasks[0], InnerLoop(0.1, 1, "anil"))
    before = dict(module.named_parameters())
    assert {key for key, value in moved.items() if not torch.equal(value, before[key])} == expected
    samples = joint_inputs(tasks)
    theta, last = ntk(module, samples, samples), ntk(module, samples, samples, expected)
    composed = meta_ntk_from_ntk(theta, joint_sizes(theta, tasks), Converged(1e-3), last)
    assert relative(meta_ntk(module, tasks, "anil", Converged(1e-3)), composed) < 1e-9
    assert condition_number(empirical_meta_ntk(module, tasks, InnerLoop(0.01, 1, "anil"))) > 1


def tied():
    embedding = nn.Embedding(5, 4)
    return Own(lambda s, x: torch.tanh(s.e(x).mean(1)) @ s.e.weight.T, e=embedding)


def tied_layers():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    return module


NO_HEAD = {
    "softmax": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Softmax(1)), VECTORS),
    "activation": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU()), VECTORS),
    "temperature": (
        lambda: Own(lambda s, x: s.t * s.a(x), a=nn.Linear(4, 5), t=nn.Parameter(torch.tensor(0.5))),
        VECTORS,
    ),
    "cosine": (
        lambda: Own(
            lambda s, x: nn.functional.normalize(s.a(x)) @ nn.functional.normalize(s.w).T,
            a=nn.Linear(4, 6),
            w=nn.Parameter(torch.randn(5, 6)),
        ),
        VECTORS,
    ),
    "two heads": (
        lambda: Own(lambda s, x: s.a(x) + s.b(torch.tanh(x)), a=nn.Linear(4, 5), b=nn.Linear(4, 5)),
        VECTORS,
    ),
    "residual": (
        lambda: Own(
            lambda s, x: torch.tanh(x) + s.b(s.a(x).tanh()) * x, a=nn.Linear(4, 4), b=nn.Linear(4, 4)
        ),
        VECTORS,
    ),
    "tied to an embedding": (tied, TOKENS % 5),
    "tied to a layer": (tied_layers, VECTORS),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)), VECTORS),
}


@pytest.mark.parametrize("name", NO_HEAD)
def test_where_no_layers_output_is_the_networks_the_head_must_be_named(name):
    make, x = NO_HEAD[name]
    module = made(make)
    with pytest.raises(UnsupportedModelError, match=r"head=\[\.\.\.\]"):
        empirical_last_layer_ntk(module, x)
    named = sorted(dict(module.named_parameters()))[:1]
    expected = ntk(module, x, x, named)
    assert relative(empirical_last_layer_ntk(module, x, head=named), expected) < 1e-12
    model, params = from_module(module, head=named)
    assert relative(empirical_last_layer_ntk(model, x, params=params), expected) < 1e-12


@pytest.mark.parametrize("head", [[], "2.weight", ["3.weight"], [1]])
def test_heads_that_name_no_parameter_are_refused(head):
    module = made(HEADS["sequential"][0])
    with as_users_run_it(), pytest.raises(ConfigurationError, match=r"names of parameters, of \['0.bias'"):
        empirical_last_layer_ntk(module, VECTORS, head=head)
    with as_users_run_it(), pytest.raises(ConfigurationError, match="expected names of parameters"):
        from_module(module, head=head)


def test_a_frozen_head_is_not_adapted_in_silence():
    module = made(HEADS["sequential"][0])
    module[2].requires_grad_(False)
    with pytest.raises(MamlTheoryError, match="frozen"):
        adapt(module, None, tasks_of(VECTORS)[0], InnerLoop(0.1, 1, "anil"))
    with pytest.raises(ConfigurationError, match="no parameter"):
        empirical_last_layer_ntk(module, VECTORS)


@pytest.mark.parametrize(("frozen", "moving"), [("2.bias", "2.weight"), ("2.weight", "2.bias")])
def test_of_a_head_that_is_frozen_in_part_the_rest_is_adapted(frozen, moving):
    module, (one, *_) = made(HEADS["sequential"][0]), tasks_of(VECTORS)
    module.get_parameter(frozen).requires_grad_(False)
    adapted, own = adapt(module, None, one, InnerLoop(0.1, 1, "anil")), dict(module.named_parameters())
    assert {name for name in own if not torch.equal(adapted[name], own[name])} == {moving}
    expected = ntk(module, VECTORS, VECTORS, [moving])
    assert relative(empirical_last_layer_ntk(module, VECTORS), expected) < 1e-12
