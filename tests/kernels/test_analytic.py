import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    FullyConnected,
    analytic_last_layer_ntk,
    analytic_ntk,
    empirical_last_layer_ntk,
    empirical_ntk,
    generator,
    nngp,
)
from mamltheory.errors import ShapeError, ValueRangeError
from mamltheory.kernels.analytic import expand_outputs
from mamltheory.kernels.moments import moments_of
from tests.paper.cases import relative, sphere
from tests.reference import analytic_pairs, quadrature
from tests.strategies import as_users_run_it, networks, seeds

ACTIVATIONS = ("relu", "erf", "tanh")
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def as_tensors(*numbers):
    return [torch.tensor([number], dtype=torch.float64) for number in numbers]


def worst_error(activation, k11, k22, correlations):
    """Largest relative error of both moments against nested panels."""
    worst = 0.0
    for rho in correlations:
        k12 = rho * math.sqrt(k11 * k22)
        expected = quadrature.moments(activation, k11, k12, k22)
        for got, exact in zip(moments_of(activation)(*as_tensors(k11, k12, k22)), expected, strict=True):
            worst = max(worst, abs(float(got) - exact) / max(abs(exact), 1e-2))
    return worst


@pytest.mark.parametrize("activation", ["relu", "erf"])
@pytest.mark.parametrize(("k11", "k22"), [(0.01, 0.01), (1.3, 0.6), (10.0, 7.0), (1.0, 30.0)])
def test_closed_forms_agree_with_integration_in_two_dimensions(activation, k11, k22):
    assert worst_error(activation, k11, k22, (-0.9, 0.0, 0.4, 0.99)) < 1e-13


@every_activation
def test_coincident_and_antipodal_points_are_exact(activation):
    """There the root of k11 k22 − k12² is zero, and arccos would lose half of the digits."""
    for k in (0.3, 1.0, 2.7):
        value, slope = moments_of(activation)(*as_tensors(k, k, k))
        exact = quadrature.moments(activation, k, k, k)
        assert float(value) == pytest.approx(exact[0], rel=1e-13)
        assert float(slope) == pytest.approx(exact[1], rel=1e-13)
        value, slope = moments_of(activation)(*as_tensors(k, -k, k))
        exact = quadrature.moments(activation, k, -k, k)
        assert float(value) == pytest.approx(exact[0], rel=1e-13, abs=1e-15)
        assert float(slope) == pytest.approx(exact[1], rel=1e-13, abs=1e-15)


@every_activation
def test_moments_do_not_care_which_point_is_first_nor_how_many_there_are(activation):
    g = generator(0, "pairs")
    k11, k22 = (torch.rand(300, generator=g, dtype=torch.float64) * 3 + 0.1 for _ in range(2))
    k12 = (torch.rand(300, generator=g, dtype=torch.float64) * 2 - 1) * (k11 * k22).sqrt()
    forwards, backwards = moments_of(activation)(k11, k12, k22), moments_of(activation)(k22, k12, k11)
    single = [moments_of(activation)(k11[i : i + 1], k12[i : i + 1], k22[i : i + 1]) for i in (0, 150, 299)]
    for part in (0, 1):
        assert relative(forwards[part], backwards[part]) < 1e-12
        alone = torch.cat([moments[part] for moments in single])
        assert relative(alone, forwards[part][[0, 150, 299]]) < 1e-14


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_the_slope_moment_is_the_derivative_of_the_value_moment_in_the_covariance(activation):
    """Price's theorem: ∂E[σ(u)σ(v)]/∂k12 = E[σ'(u)σ'(v)]."""
    h = 1e-5
    for k11, k12, k22 in ((1.0, 0.3, 2.0), (0.5, -0.4, 0.6)):
        up, down = (moments_of(activation)(*as_tensors(k11, k12 + d, k22))[0] for d in (h, -h))
        slope = moments_of(activation)(*as_tensors(k11, k12, k22))[1]
        assert float((up - down) / (2 * h)) == pytest.approx(float(slope), rel=1e-8)


def samples(net, n, seed=0):
    return sphere(generator(seed, "x"), n, net.input_dim)


def every_kernel(net):
    return [
        lambda *x: analytic_ntk(net, *x),
        lambda *x: analytic_ntk(net, *x, finite_width=True),
        lambda *x: analytic_last_layer_ntk(net, *x),
        lambda *x: analytic_last_layer_ntk(net, *x, finite_width=True),
        lambda *x: nngp(net, *x),
    ]


@settings(max_examples=12)
@given(networks(), seeds)
def test_kernels_are_symmetric_positive_semi_definite_and_consistent_between_sets(net, seed):
    x = samples(net, 5, seed)
    x[4] = x[0]
    for kernel in every_kernel(net):
        whole = kernel(x)
        assert whole.shape == (5 * net.output_dim,) * 2
        assert whole.dtype == torch.float64
        assert float((whole - whole.T).abs().max()) <= 1e-13 * float(whole.abs().max())
        assert float(torch.linalg.eigvalsh(whole)[0]) > -1e-12 * float(whole.trace())
        assert torch.equal(kernel(x, x), whole)
        k = net.output_dim
        assert relative(kernel(x[:2], x[2:]), whole[: 2 * k, 2 * k :]) < 1e-13
        assert (
            relative(kernel(x[:2], x[2:4]), whole[: 2 * k, 2 * k : 4 * k]) < 1e-13
        )  # as many columns as rows
        assert relative(whole[:k], whole[4 * k :]) < 1e-14  # the same sample twice


@pytest.mark.parametrize(
    "shape", [{}, {"residual": True}, {"layer_norm": True}, {"residual": True, "layer_norm": True}]
)
@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_every_kernel_is_that_of_the_recursion_pair_by_pair(activation, parameterisation, shape):
    """Two outputs; samples of unequal lengths, one on both sides and one that shares a number with another."""
    net = FullyConnected(2, 7, 3, 2, activation, 1.3, 0.6, parameterisation, **shape)
    x1, x2 = [[0.6, -1.7], [2.0, 0.4], [0.1, 0.2]], [[-0.9, -1.7], [2.0, 0.4]]
    one, two = (torch.tensor(x, dtype=torch.float64) for x in (x1, x2))
    for finite_width in (False, True):
        pairs = [analytic_pairs.kernels(net, *pair, finite_width) for pair in itertools.product(x1, x2)]
        exact = torch.tensor(pairs, dtype=torch.float64).T.reshape(3, 3, 2)
        found = (
            analytic_ntk(net, one, two, finite_width),
            analytic_last_layer_ntk(net, one, two, finite_width),
            nngp(net, one, two),
        )
        for kernel, expected in zip(found, exact, strict=True):
            torch.testing.assert_close(kernel, torch.kron(expected, torch.eye(2)), rtol=1e-12, atol=0)


@settings(max_examples=20)
@given(networks(output_dim=3), st.booleans())
def test_outputs_are_independent_and_alike(net, finite_width):
    x = samples(net, 3)
    single = FullyConnected(**{**vars(net), "output_dim": 1})
    expected = torch.kron(analytic_ntk(single, x, finite_width=finite_width), torch.eye(3).double())
    assert torch.equal(analytic_ntk(net, x, finite_width=finite_width), expected)


@every_activation
def test_with_one_hidden_layer_only_the_last_one_learns_in_the_limit(activation):
    """Standard parameterisation: Θ = 𝒦 for L = 1, and the 1/l terms make the difference; for L = 2 Θ ≠ 𝒦."""
    shallow, deep = FullyConnected(4, 50, 1, 1, activation), FullyConnected(4, 50, 2, 1, activation)
    x = samples(shallow, 4)
    assert torch.equal(analytic_ntk(shallow, x), analytic_last_layer_ntk(shallow, x))
    corrected = analytic_ntk(shallow, x, finite_width=True)
    assert relative(analytic_last_layer_ntk(shallow, x, finite_width=True), corrected) > 1e-3
    assert relative(analytic_last_layer_ntk(deep, x), analytic_ntk(deep, x)) > 0.1


@every_activation
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_terms_of_finite_width_vanish_as_one_over_the_width(activation, depth):
    x = samples(FullyConnected(4, 1, 1), 4)

    def gap(width):
        net = FullyConnected(4, width, depth, 1, activation)
        return width * (analytic_ntk(net, x, finite_width=True) - analytic_ntk(net, x))

    assert relative(gap(10), gap(10000)) < 1e-9
    assert float(gap(10).diagonal().min()) > 0


def gap_of_the_mean(net, analytic, empirical, count):
    """(‖mean − expected‖, root mean square of a single deviation)/‖expected‖ over ``count`` seeds."""
    x = samples(net, 3)
    expected = analytic(net, x)
    draws = torch.stack([empirical(net, net.initialise(generator(seed, "init")), x) for seed in range(count)])
    scatter = float((draws - expected).square().sum((1, 2)).mean().sqrt() / expected.norm())
    return relative(draws.mean(0), expected), scatter


@pytest.mark.paper("Lemma 3", "Eq. (9)")
@every_activation
@pytest.mark.parametrize("width", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_one_hidden_layer_has_the_finite_width_kernel_as_its_exact_mean(activation, width):
    """For L = 1 the preactivations are exactly Gaussian: no bias at any width, 5 standard errors allowed."""
    net, count = FullyConnected(3, width, 1, 1, activation), 300

    def empirical(net, params, x):
        return empirical_ntk(net.model, x, params=params)

    gap, scatter = gap_of_the_mean(net, lambda n, x: analytic_ntk(n, x, finite_width=True), empirical, count)
    assert gap < 5 * scatter / count**0.5
    if width == 8:  # the limit kernel would not pass
        x = samples(net, 3)
        bias = relative(analytic_ntk(net, x), analytic_ntk(net, x, finite_width=True))
        assert bias > 8 * scatter / count**0.5

    def last(net, params, x):
        return empirical_last_layer_ntk(net.model, x, params=params)

    gap, scatter = gap_of_the_mean(
        net, lambda n, x: analytic_last_layer_ntk(n, x, finite_width=True), last, count
    )
    assert gap < 5 * scatter / count**0.5


@pytest.mark.paper("Lemma 3", "Eq. (9)")
@pytest.mark.parametrize(
    ("activation", "depth", "parameterisation"),
    [
        ("relu", 2, "standard"),
        ("erf", 3, "standard"),
        ("tanh", 2, "standard"),
        ("relu", 2, "ntk"),
        ("erf", 1, "ntk"),
    ],
)
def test_deeper_wide_networks_have_the_analytic_kernels_as_their_mean(activation, depth, parameterisation):
    """40 seeds of width 256: the mean deviates by 6 standard errors plus a bias of order 1/l at most."""
    net, count = FullyConnected(3, 256, depth, 2, activation, parameterisation=parameterisation), 40

    def empirical(net, params, x):
        return empirical_ntk(net.model, x, params=params)

    gap, scatter = gap_of_the_mean(net, lambda n, x: analytic_ntk(n, x, finite_width=True), empirical, count)
    assert gap < 6 * scatter / count**0.5 + 3 / net.width
    assert scatter < 0.5


@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_large_biases_are_part_of_every_kernel(activation, parameterisation):
    """σ_b = 0.9: a lost σ_b² moves every kernel by far more than the scatter, which σ_b² = 0.01 would not do."""
    net = FullyConnected(3, 64, 1, 1, activation, 1.3, 0.9, parameterisation)
    x, count = samples(net, 3), 60
    starts = [net.initialise(generator(seed, "init")) for seed in range(count)]
    whole, last = (
        torch.stack([kernel(net.model, x, params=params) for params in starts])
        for kernel in (empirical_ntk, empirical_last_layer_ntk)
    )
    pairs = [
        (whole, analytic_ntk(net, x, finite_width=True)),
        (last, analytic_last_layer_ntk(net, x, finite_width=True)),
    ]
    # The last layer's kernel is the covariance of the outputs given the hidden layer, but for the factor 1/l.
    if parameterisation == "ntk":
        pairs.append((last, nngp(net, x)))
    else:
        pairs.append((net.sigma_w**2 * (last - 1 / net.width) + net.sigma_b**2, nngp(net, x)))
    for drawn, expected in pairs:
        scatter = float((drawn - expected).square().sum((1, 2)).mean().sqrt() / expected.norm())
        assert 5 * scatter / count**0.5 < 0.2  # without σ_b² the second moments are less than half
        assert relative(drawn.mean(0), expected) < 5 * scatter / count**0.5


@pytest.mark.parametrize("parameterisation", ["standard", "ntk"])
def test_the_nngp_is_the_covariance_of_the_outputs(parameterisation):
    net, count = FullyConnected(3, 100, 2, 1, "erf", parameterisation=parameterisation), 1000
    x = samples(net, 3)
    outputs = torch.cat([net.model(net.initialise(generator(s, "init")), x).T for s in range(count)])
    covariance = outputs.T @ outputs / count
    assert relative(covariance, nngp(net, x)) < 6 * (2 / count) ** 0.5 + 3 / net.width


NET = FullyConnected(4, 5, 1)


@pytest.mark.parametrize("kernel", [analytic_ntk, analytic_last_layer_ntk, nngp])
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 5), ShapeError, r"\(any × 4\)"),
        (torch.zeros(4), ShapeError, r"\(any × 4\)"),
        (torch.zeros(0, 4), ShapeError, "at least one"),
        (torch.full((2, 4), math.nan), ValueRangeError, "NaN"),
        (torch.full((2, 4), math.inf), ValueRangeError, "infinite"),
    ],
    ids=["dimension", "vector", "empty", "nan", "infinite"],
)
def test_samples_that_do_not_fit_are_refused_on_both_sides(kernel, x, error, message):
    with as_users_run_it():
        with pytest.raises(error, match=message):
            kernel(NET, x)
        with pytest.raises(error, match=message):
            kernel(NET, torch.ones(1, 4), x)


def test_the_zero_sample_without_biases_has_a_finite_kernel():
    for activation in ACTIVATIONS:
        net = FullyConnected(4, 5, 2, 1, activation, sigma_b=0.0)
        assert torch.isfinite(analytic_ntk(net, torch.zeros(2, 4))).all()
        assert torch.isfinite(analytic_ntk(net, torch.zeros(1, 4), torch.ones(2, 4))).all()


def test_outputs_are_expanded_sample_major():
    kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()
    expanded = expand_outputs(kernel, 3).reshape(2, 3, 2, 3)
    for c in range(3):
        for other in range(3):
            assert torch.equal(expanded[:, c, :, other], kernel * (c == other))
