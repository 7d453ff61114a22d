import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from mamltheory import FullyConnected, centred, empirical_ntk, from_module, generator, linearised
from mamltheory.errors import ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.networks import output_of
from tests.paper.cases import relative
from tests.reference.dense import forward
from tests.strategies import as_users_run_it, networks, seeds


def samples(net, n=3, seed=0):
    return torch.randn(n, net.input_dim, generator=generator(seed, "x"), dtype=torch.float64)


def start(net, seed=0):
    return net.initialise(generator(seed, "init"))


@pytest.mark.paper("Eq. (16)", "Sec. 3: network")
@settings(max_examples=40)
@given(networks(), seeds)
def test_the_network_is_equation_16_layer_by_layer(net, seed):
    params, x = start(net, seed), samples(net)
    assert relative(net.model(params, x), forward(net, params, x)) < 1e-13
    assert net.model(params, x).shape == (3, net.output_dim)
    for i, (fan_in, fan_out) in enumerate(pairwise(net.sizes), start=1):
        assert params[f"weight{i}"].shape == (fan_out, fan_in)
        assert params[f"bias{i}"].shape == (fan_out,)
    assert len(params) == 2 * (net.depth + 1)
    assert net.model.head == {f"weight{net.depth + 1}", f"bias{net.depth + 1}"}
    assert net.model.scale == (net.width if net.parameterisation == "standard" else 1)


@pytest.mark.paper("Eq. (16)")
def test_both_parameterisations_are_the_same_function_at_initialisation():
    standard = FullyConnected(3, 7, 2, 2, "relu")
    ntk = FullyConnected(3, 7, 2, 2, "relu", parameterisation="ntk")
    x = samples(standard)
    assert relative(standard.model(start(standard), x), ntk.model(start(ntk), x)) < 1e-14


@pytest.mark.paper("Eq. (16)", "Sec. 3: network")
@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
def test_parameters_are_gaussian_with_the_fan_in_variance(parameterisation):
    """Relative standard error of a variance of n normals: √(2/n) ≤ 0.016 for n ≥ 8000; windows of 5 of them."""
    net = FullyConnected(400, 100, 2, 80, sigma_w=1.5, sigma_b=0.3, parameterisation=parameterisation)
    params = start(net)
    for i, fan_in in ((1, 400), (2, 100), (3, 100)):
        weight = params[f"weight{i}"]
        expected = 1.5**2 / fan_in if parameterisation == "standard" else 1.0
        assert float(weight.var()) == pytest.approx(expected, rel=5 * (2 / weight.numel()) ** 0.5)
        assert abs(float(weight.mean())) < 5 * (expected / weight.numel()) ** 0.5
        kurtosis = float(((weight - weight.mean()) ** 4).mean() / weight.var() ** 2)
        assert kurtosis == pytest.approx(3, abs=5 * (24 / weight.numel()) ** 0.5)
    biases = torch.cat([start(net, seed)["bias1"] for seed in range(80)])
    expected = 0.3**2 if parameterisation == "standard" else 1.0
    assert float(biases.var()) == pytest.approx(expected, rel=5 * (2 / biases.numel()) ** 0.5)


def size_of_outputs(width, fan_out):
    """Root mean square of f_0 over 30 seeds, with the variance index of Eq. (16) read as fan-in or fan-out."""
    net, total = FullyConnected(4, width, 1, activation="erf", sigma_b=0.5), 0.0
    x = torch.eye(4).double()
    for seed in range(30):
        params = start(net, seed)
        if fan_out:
            for i, (before, after) in enumerate(pairwise(net.sizes), start=1):
                params[f"weight{i}"] = params[f"weight{i}"] * (before / after) ** 0.5
        total += float(net.model(params, x).square().mean())
    return (total / 30) ** 0.5


@pytest.mark.paper("Eq. (16)")
def test_with_the_printed_fan_out_the_output_grows_with_the_root_of_the_width():
    assert size_of_outputs(4096, fan_out=False) / size_of_outputs(64, fan_out=False) == pytest.approx(
        1, rel=0.4
    )
    growth = size_of_outputs(4096, fan_out=True) / size_of_outputs(64, fan_out=True)
    assert 4 < growth < 12  # √64 = 8


@pytest.mark.paper("Assumption 5")
@settings(max_examples=25)
@given(networks(), seeds)
def test_the_centred_network_starts_at_exactly_zero_with_the_same_kernel(net, seed):
    params, x = start(net, seed), samples(net)
    model = centred(net.model, params)
    assert torch.equal(model(params, x), torch.zeros(3, net.output_dim).double())
    assert (
        relative(empirical_ntk(model, x, params=params), empirical_ntk(net.model, x, params=params)) < 1e-13
    )
    assert (model.scale, model.head) == (net.model.scale, net.model.head)


@settings(max_examples=25)
@given(networks(), seeds)
def test_the_linearised_network_is_affine_and_touches_the_network_to_first_order(net, seed):
    params, moved, x = start(net, seed), start(net, seed + 1), samples(net)
    model = linearised(net.model, params)
    assert torch.equal(model(params, x), net.model(params, x))
    assert (
        relative(empirical_ntk(model, x, params=params), empirical_ntk(net.model, x, params=params)) < 1e-13
    )

    def along(t):
        return {name: params[name] + t * (moved[name] - params[name]) for name in params}

    change = model(along(1.0), x) - model(params, x)
    assert float((model(along(-3.0), x) - model(params, x) + 3 * change).norm()) < 1e-12 * (
        1 + float(change.norm())
    )
    h = 1e-6
    difference = (net.model(along(h), x) - net.model(along(-h), x)) / (2 * h)
    assert float((difference - change).norm()) < 1e-5 * (1 + float(change.norm()))
    assert relative(empirical_ntk(model, x, params=moved), empirical_ntk(model, x, params=params)) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"depth": 0}, "depth is 0"),
        ({"input_dim": -1}, "input_dim is -1"),
        ({"output_dim": 0}, "output_dim is 0"),
        ({"sigma_w": 0.0}, "sigma_w is 0"),
        ({"sigma_w": math.inf}, "finite"),
        ({"sigma_w": math.nan}, "sigma_w is nan"),
        ({"sigma_b": -0.1}, "sigma_b is -0.1"),
        ({"sigma_b": math.inf}, "finite"),
        ({"activation": "swish"}, "expected one of"),
        ({"parameterisation": "mup"}, "'standard' or 'ntk'"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, message):
    with as_users_run_it(), pytest.raises(ValueRangeError, match=message):
        FullyConnected(**{"input_dim": 3, "width": 4, "depth": 1, **change})


def test_samples_of_another_dimension_are_refused():
    net = FullyConnected(3, 4, 1)
    with pytest.raises(ShapeError, match="expected samples × 3"):
        net.model(start(net), torch.zeros(2, 5).double())


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
        self.classifier = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3, bias=False))

    def forward(self, x):
        return self.classifier(self.body(x))


@pytest.fixture(autouse=True)
def _layers_may_draw_their_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_a_module_as_a_pure_function_follows_the_given_parameters_and_stays_as_it_was():
    module = Nested()
    model, params = from_module(module)
    x = torch.randn(5, 4)
    assert torch.equal(model(params, x), module(x))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    doubled = {name: 2 * value for name, value in params.items()}
    assert not torch.equal(model(doubled, x), module(x))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(3), nn.SyncBatchNorm(3), nn.BatchNorm2d(3, track_running_stats=False)]
)
def test_batch_statistics_are_refused_by_the_name_of_the_layer(layer):
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(layer))
    with pytest.raises(UnsupportedModelError, match=r"'1\.0'.*GroupNorm"):
        from_module(module)
    if layer.track_running_stats:
        assert from_module(module.eval())[1]
    else:
        with pytest.raises(UnsupportedModelError):
            from_module(module.eval())


def test_active_dropout_is_refused_and_inactive_dropout_is_not():
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    with pytest.raises(UnsupportedModelError, match="Dropout that is active"):
        from_module(module)
    assert from_module(module.eval())[1]
    assert from_module(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)))[1]


@pytest.mark.parametrize("module", [nn.Flatten(0), nn.Conv1d(4, 4, 1)])
def test_a_network_that_does_not_map_samples_to_rows_of_outputs_is_refused(module):
    model, params = from_module(module)
    with pytest.raises(ShapeError, match="expected 2 × outputs"):
        output_of(model, params, torch.zeros(2, 4, 1))
