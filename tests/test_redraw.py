"""New weights of a network: every random parameter is drawn, what cannot be drawn is named, and lost weights too."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mamltheory as mt
from mamltheory.errors import ConfigurationError, UnsupportedModelError
from mamltheory.redraw import check_drawable, redrawn

MODULES = {
    "linear": lambda: nn.Linear(6, 4),
    "one output": lambda: nn.Linear(6, 1),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 3, 3), nn.Conv1d(3, 4, 1)
    ),
    "attention": lambda: nn.MultiheadAttention(16, 2, add_bias_kv=True),
    "attention, other sizes": lambda: nn.MultiheadAttention(16, 2, kdim=4, vdim=5),
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    "transformer": lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
    "recurrent": lambda: nn.LSTM(8, 8, 2),
    "embedding": lambda: nn.Embedding(20, 8, padding_idx=0),
    "small embedding": lambda: nn.Embedding(4, 4),
    "clipped embedding": lambda: nn.Embedding(20, 8, max_norm=0.1),
    "bilinear": lambda: nn.Bilinear(5, 6, 7),
    "norms": lambda: nn.Sequential(
        nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.RMSNorm(8), nn.BatchNorm2d(8).eval()
    ),
    "activation": lambda: nn.PReLU(8),
    "adaptive softmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 20, [5, 10]),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 8, 3)),
    "half precision": lambda: nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16)).bfloat16(),
}
CONSTANT = nn.GroupNorm | nn.LayerNorm | nn.RMSNorm | nn.BatchNorm2d | nn.PReLU
X = torch.zeros(1, 6)


def draws(*seeds):
    return [mt.generator(seed, "test draws") for seed in seeds]


def constant_names(network):
    """Parameters that torch gives the same values always: those of norms, and the biases of attention."""
    owners = {name: part for name, part in network.named_modules()}
    return {
        name
        for name, _ in network.named_parameters()
        if isinstance(owners[name.rpartition(".")[0]], CONSTANT)
        or name.endswith(("in_proj_bias", "out_proj.bias"))
    }


@pytest.mark.parametrize("name", MODULES)
def test_two_draws_differ_in_every_parameter_that_is_random_by_default_and_none_is_warned_of(name):
    build, before = MODULES[name], torch.get_rng_state()
    for seed in range(20):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = build().eval()
        given = copy.deepcopy(network.state_dict())
        (one, fixed), (two, _) = (redrawn(network, each) for each in draws(seed, seed + 100))
        first, second = dict(one.named_parameters()), dict(two.named_parameters())
        assert fixed == frozenset()
        assert {key for key in first if torch.equal(first[key], second[key])} == constant_names(network)
        assert not any(value.isnan().any() for value in first.values())
        check_drawable(network, X, draws(seed, seed + 100), 2)
        assert all(torch.equal(value, given[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "name", ["attention", "transformer", "recurrent", "weight norm", "clipped embedding"]
)
def test_a_draw_is_distributed_as_the_weights_of_a_new_network(name):
    """The root mean squares over many draws agree: a part drawn in another order would have another distribution."""
    sizes = {"new": {}, "drawn": {}}
    for seed in range(30):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = MODULES[name]()
        for kind, part in (("new", network), ("drawn", redrawn(network, draws(seed)[0])[0])):
            for key, value in part.named_parameters():
                sizes[kind][key] = sizes[kind].get(key, 0.0) + value.double().square().mean().item()
    for key, size in sizes["new"].items():
        assert sizes["drawn"][key] == pytest.approx(size, rel=0.2), key


class Tokens(nn.Module):
    """A network with a class token that no layer can draw."""

    def __init__(self, used=True):
        super().__init__()
        self.layer, self.token, self.used = nn.Linear(6, 2), nn.Parameter(torch.randn(6)), used

    def forward(self, x):
        return self.layer(x + self.token if self.used else x)


def tied():
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    network[2].weight = network[0].weight
    return network


def with_parametrisation(function):
    network = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    function(network[0])
    return network


class NoInverse(nn.Module):
    def forward(self, weight):
        return weight.tanh()


class Fails(nn.Linear):
    def reset_parameters(self, scale):
        self.weight.fill_(scale)

    def __init__(self):
        nn.Module.__init__(self)
        self.weight, self.bias = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(2))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (Tokens, "no layer of the network can draw 'token'"),
        (lambda: with_parametrisation(parametrizations.spectral_norm), "weight.original'"),
        (lambda: with_parametrisation(parametrizations.orthogonal), "weight.original'"),
        (
            lambda: with_parametrisation(
                lambda part: nn.utils.parametrize.register_parametrization(part, "weight", NoInverse())
            ),
            "can draw '0.parametrizations.weight.original'",
        ),
        (lambda: with_parametrisation(nn.utils.weight_norm), "cannot be copied"),
        (Fails, "Fails '' fails to draw weights, TypeError"),
    ],
)
def test_parameters_that_no_layer_draws_are_refused_with_their_names_and_the_way_out(build, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        check_drawable(build(), X, draws(0, 1), 2)
    assert "mt.score(lambda seed: build(), tasks)" in str(raised.value)


def test_unused_and_frozen_parameters_keep_their_values_and_tied_ones_stay_tied():
    frozen = Tokens()
    frozen.token.requires_grad_(False)
    for network in (Tokens(used=False), frozen):
        check_drawable(network, X, draws(0, 1), 2)
        drawn, fixed = redrawn(network, draws(0)[0])
        assert fixed == {"token"}
        assert torch.equal(drawn.token, network.token)
    layer = nn.Linear(6, 2)
    layer.weight.requires_grad_(False)
    assert torch.equal(redrawn(layer, draws(0)[0])[0].weight, layer.weight)
    assert not torch.equal(redrawn(layer, draws(0)[0])[0].bias, layer.bias)
    network = tied()
    check_drawable(network, X, draws(0, 1), 2)
    drawn, fixed = redrawn(network, draws(0)[0])
    assert fixed == frozenset()
    assert drawn[2].weight is drawn[0].weight


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda network: network[0].weight.mul_(100), "0.weight"),
        (lambda network: network[0].weight.mul_(0.02), "0.weight"),
        (lambda network: nn.init.kaiming_normal_(network[0].weight), "0.weight"),
        (lambda network: network[0].bias.zero_(), "0.bias"),
        (lambda network: network[1].weight.mul_(0.9), "1.weight"),
        (lambda network: network[1].bias.add_(1), "1.bias"),
        (lambda network: network[1].running_mean.add_(1), "1.running_mean"),
    ],
)
def test_weights_that_are_no_default_draw_are_named_in_a_warning(change, name):
    network = nn.Sequential(nn.Linear(6, 64), nn.BatchNorm1d(64)).eval()
    with torch.no_grad():
        change(network)
    with pytest.warns(
        UserWarning, match=rf"no default draw, in '{name}': .* mt.score\(lambda seed: build\(\), tasks\)"
    ):
        check_drawable(network, X, draws(0, 1), 2)


def test_lazy_networks_are_refused_until_they_have_run_once():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(UnsupportedModelError, match="run the"):
        check_drawable(network, X, draws(0, 1), 2)
    network(X)
    check_drawable(network, X, draws(0, 1), 2)
