"""Moments of Gaussian pairs by closed forms and quadrature, and the analytic kernels that need them."""

import math

import pytest
import torch

from mamltheory import FullyConnected, analytic_ntk, empirical_last_layer_ntk, empirical_ntk, generator, nngp
from mamltheory.errors import ValueRangeError
from mamltheory.kernels import moments
from mamltheory.kernels.analytic import analytic_last_layer_ntk
from mamltheory.kernels.moments import ERROR, moments_of, quadrature_moments
from tests.paper.cases import relative, sphere
from tests.reference import quadrature
from tests.reference.relu_mpmath import relu_ntk
from tests.strategies import as_users_run_it

SMOOTH = ("gelu", "silu", "softplus", "sin", "tanh")


def pair(k11, rho, k22):
    return [torch.tensor([k], dtype=torch.float64) for k in (k11, rho * math.sqrt(k11 * k22), k22)]


def errors(activation, k11, rho, k22, exact):
    """Errors of both moments, relative to the most that they can be."""
    got = quadrature_moments(activation, *pair(k11, rho, k22))
    square = [[float(m) for m in quadrature_moments(activation, *pair(k, 1.0, k))] for k in (k11, k22)]
    sizes = [math.sqrt(one * two) for one, two in zip(*square, strict=True)]
    return [abs(float(g) - e) / size for g, e, size in zip(got, exact, sizes, strict=True)]


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize(("k11", "rho", "k22"), [(0.01, 0.4, 0.01), (1.3, -0.9, 0.6), (60.0, 0.99, 42.0)])
def test_quadrature_is_as_exact_as_it_says_for_every_smooth_activation(activation, k11, rho, k22):
    exact = quadrature.moments(activation, k11, rho * math.sqrt(k11 * k22), k22)
    assert max(errors(activation, k11, rho, k22, exact)) < ERROR


@pytest.mark.parametrize(("k11", "k22"), [(1.0, 1.0), (60.0, 30.0), (1000.0, 700.0), (1000.0, 0.1)])
@pytest.mark.parametrize("rho", [-1.0, 0.0, 0.4, 0.999, 1.0])
def test_quadrature_agrees_with_the_closed_form_of_sin_at_any_variance(k11, k22, rho):
    """E sin u sin v = e^{−(k11 + k22)/2} sinh k12, and cosh for the slopes; too coarse a grid would see a slow wave."""
    apart, together = (math.exp(-(k11 + k22) / 2 + sign * rho * math.sqrt(k11 * k22)) / 2 for sign in (1, -1))
    got = quadrature_moments("sin", *pair(k11, rho, k22))
    assert float(got[0]) == pytest.approx(apart - together, abs=ERROR)
    assert float(got[1]) == pytest.approx(apart + together, abs=ERROR)


@pytest.mark.parametrize(("variance", "most"), [(1.0, 129), (60.0, 1025)])
def test_tanh_takes_as_many_nodes_as_the_function_says(monkeypatch, variance, most):
    """From the first odd number 2ⁱ · 64 + 1 on whose step is at most 1 in u; pairs that are sure do not come again."""
    seen, rule = [], moments._trapezium

    def noting(function, nodes, *pairs):
        seen.append((nodes, len(pairs[0])))
        return rule(function, nodes, *pairs)

    monkeypatch.setattr(moments, "_trapezium", noting)
    quadrature_moments("tanh", *pair(variance, 0.5, variance))
    first = 65 if variance == 1 else 257  # 1 + 17 √60 = 132.7
    assert seen == [(nodes, 1) for nodes in (65, 129, 257, 513, 1025) if first <= nodes <= most]
    seen.clear()
    quadrature_moments("tanh", *pair(10.0, 0.5, 10.0))
    # Against the rule with every other node; the distance from one with every third would ask for 513.
    assert [nodes for nodes, _ in seen] == [65, 129, 257]
    seen.clear()
    three = [
        torch.cat(parts) for parts in zip(pair(0.01, 0.5, 0.01), *[pair(1.0, 0.5, 1.0)] * 2, strict=True)
    ]
    monkeypatch.setattr(moments, "ENTRIES_IN_A_BLOCK", 2 * 65**2)
    quadrature_moments("tanh", *three)
    assert seen == [(65, 2), (65, 1), (129, 1), (129, 1)]
    seen.clear()
    for k11, k22, nodes in (
        (56.6, 1.0, 129),
        (1.0, 56.6, 129),
        (1.0, 57.0, 257),
    ):  # 1 + 17 √k is 128.9 and 129.3
        found = quadrature_moments(lambda h: 2 * h, *pair(k11, 0.5, k22))
        assert seen.pop() == (nodes, 1)
        assert float(found[0]) == pytest.approx(2 * math.sqrt(k11 * k22), rel=1e-12)
        assert float(found[1]) == pytest.approx(4, rel=1e-12)
        assert not seen
    nothing = torch.zeros(0, dtype=torch.float64)
    assert [len(each) for each in quadrature_moments("tanh", nothing, nothing, nothing)] == [0, 0]


def test_a_constant_function_has_no_slope():
    h = torch.tensor([1.0, -2.0]).double()
    value, slope = moments.value_and_slope(torch.ones_like, h)
    assert value.tolist() == [1.0, 1.0]
    assert slope.tolist() == [0.0, 0.0]
    assert moments.value_and_slope(torch.square, h)[1].tolist() == [2.0, -4.0]


def test_quadrature_of_tanh_tends_to_the_sign_function_at_large_variance():
    """E sign u sign v = (2/π) asin ρ; the correction is of order 1/k."""
    gaps = [
        float(quadrature_moments("tanh", *pair(k, 0.4, k))[0]) - 2 / math.pi * math.asin(0.4)
        for k in (100.0, 400.0)
    ]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.02)


def test_a_function_of_ones_own_has_the_kernels_of_its_name():
    def own(h):
        return h * torch.sigmoid(h)

    x = sphere(generator(0, "x"), 3, 4)
    nets = [FullyConnected(4, 8, 2, 1, activation) for activation in (own, "silu")]
    assert relative(*(analytic_ntk(net, x) for net in nets)) < ERROR
    params = nets[0].initialise(generator(0, "init"))
    assert relative(*(empirical_ntk(net.model, x, params=params) for net in nets)) < 1e-12


def test_activations_with_kinks_are_refused_with_the_accuracy_that_was_asked_for():
    with pytest.raises(ValueRangeError, match=r"error of 1e-12 .* without kinks"):
        quadrature_moments(torch.abs, *pair(1.0, 0.5, 1.0))


@pytest.mark.parametrize(
    "activation",
    ["swish", 3, lambda h: h[:1], lambda h: h - h.mean(), lambda h: h.log(), lambda _: None],
    ids=["name", "number", "shape", "mixes", "not finite", "nothing"],
)
def test_what_is_no_pointwise_function_is_refused(activation):
    with as_users_run_it(), pytest.raises(ValueRangeError, match="expected one of"):
        FullyConnected(4, 8, 1, activation=activation)


SHAPES = [{}, {"residual": True}, {"layer_norm": True}, {"residual": True, "layer_norm": True}]


def named(shape):
    return "+".join(shape) or "plain"


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("sigma_b", [0.0, 0.5])
@pytest.mark.parametrize("turn", [0.0, 1e-12, 1e-8, 1e-3, 0.7, 3.0, math.pi])
def test_the_kernel_of_relu_keeps_its_digits_for_samples_that_are_nearly_parallel(shape, sigma_b, turn):
    """By arccos of a cosine, half of them are lost: 1e-8 instead of 1e-15."""
    net = FullyConnected(2, 8, 3, 1, "relu", 1.4, sigma_b, "ntk", **shape)
    x = torch.tensor([[0.6, 0.8], [1.7 * math.cos(turn + 0.9), 1.7 * math.sin(turn + 0.9)]]).double()
    x[1] = torch.tensor([1.7 * c for c in (0.6, 0.8)]).double() if turn == 0 else x[1]
    x[0] = torch.tensor([math.cos(0.9), math.sin(0.9)]).double() if turn else x[0]
    exact = relu_ntk(net, x[0].tolist(), x[1].tolist())
    assert float(abs(analytic_ntk(net, x[:1], x[1:]).item() - exact) / exact) < 1e-14


@pytest.mark.parametrize("shape", SHAPES[1:], ids=named)
@pytest.mark.parametrize(("activation", "parameterisation"), [("gelu", "standard"), ("relu", "ntk")])
def test_wide_residual_and_normalised_networks_have_the_analytic_kernels_as_their_mean(
    shape, activation, parameterisation
):
    """16 seeds of width 128: the mean deviates by 3.5 standard errors plus a bias of order 1/l at most."""
    net = FullyConnected(3, 128, 3, 1, activation, 1.3, 0.4, parameterisation, **shape)
    x, count = 3.0 * sphere(generator(0, "x"), 3, 3), 16
    starts = [net.initialise(generator(seed, "init")) for seed in range(count)]
    for analytic, empirical in (
        (analytic_ntk, empirical_ntk),
        (analytic_last_layer_ntk, empirical_last_layer_ntk),
    ):
        drawn = torch.stack([empirical(net.model, x, params=params) for params in starts])
        expected = analytic(net, x, finite_width=True)
        scatter = float((drawn - expected).square().sum((1, 2)).mean().sqrt() / expected.norm())
        allowed = 3.5 * scatter / count**0.5 + 4 / net.width
        assert relative(drawn.mean(0), expected) < allowed
        plain = FullyConnected(3, 128, 3, 1, activation, 1.3, 0.4, parameterisation)
        assert relative(analytic(plain, x, finite_width=True), drawn.mean(0)) > 1.5 * allowed


def test_the_nngp_of_a_residual_network_is_the_covariance_of_its_outputs():
    net, count = FullyConnected(3, 64, 3, 1, "silu", residual=True, layer_norm=True), 600
    x = sphere(generator(0, "x"), 2, 3)
    outputs = torch.cat([net.model(net.initialise(generator(s, "init")), x).T for s in range(count)])
    assert relative(outputs.T @ outputs / count, nngp(net, x)) < 6 * (2 / count) ** 0.5


def test_a_depth_of_one_has_no_residual():
    x = sphere(generator(0, "x"), 3, 4)
    plain, residual = (FullyConnected(4, 8, 1, 1, "relu", residual=flag) for flag in (False, True))
    params = plain.initialise(generator(0, "init"))
    assert torch.equal(plain.model(params, x), residual.model(params, x))
    assert torch.equal(analytic_ntk(plain, x), analytic_ntk(residual, x))
    assert moments_of("relu")(*pair(2.0, 1.0, 2.0))[0].item() == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize("factor", [1e-3, 1e4])
def test_the_error_of_quadrature_is_relative_to_the_size_of_the_activation(factor):
    """No factor makes a smooth activation refused, or one with a kink accepted."""
    scaled = quadrature_moments(lambda h: factor * torch.nn.functional.gelu(h), *pair(1.5, 0.5, 0.7))
    for got, plain in zip(scaled, quadrature_moments("gelu", *pair(1.5, 0.5, 0.7)), strict=True):
        torch.testing.assert_close(got, factor**2 * plain, rtol=1e-11, atol=0)
    with pytest.raises(ValueRangeError, match="without kinks"):
        quadrature_moments(lambda h: factor * h.abs(), *pair(1.0, 0.5, 1.0))
