"""Section 3: networks, their initialisation, numbers of inner steps and samples, and what the Hessian costs."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mamltheory import (
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    linearised,
    meta_gradient,
    meta_ntk,
)
from mamltheory.fewshot.episodes import sample_episode
from mamltheory.finite_width.bounds import extreme_eigenvalues
from tests.paper.cases import EXACT, make_tasks, relative, start
from tests.reference.dense import flatten


@pytest.mark.paper("Sec. 3: network")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_network_of_l_hidden_layers_has_d_parameters(depth):
    net = FullyConnected(3, 5, depth, 2)
    assert len(flatten(start(net))) == 4 * 5 + (depth - 1) * 6 * 5 + 6 * 2


@pytest.mark.paper("fn. 3")
def test_kaiming_initialisation_is_the_gaussian_one_with_weights_of_variance_two_without_biases():
    net = FullyConnected(16, 32, 2, 4, "relu", sigma_w=2**0.5, sigma_b=0.0)
    g, params = generator(0, "init"), start(net)
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(net.sizes), 1):
        weight = nn.init.kaiming_normal_(torch.empty(fan_out, fan_in, dtype=torch.float64), generator=g)
        torch.testing.assert_close(params[f"weight{i}"], weight, rtol=1e-12, atol=0)
        torch.randn(fan_out, generator=g, dtype=torch.float64)  # where the other form draws its biases
        assert not params[f"bias{i}"].any()


@pytest.mark.paper("Sec. 3", "Assumption 2", corrected=True)
@pytest.mark.erratum("E31")
@pytest.mark.parametrize(("shots", "queries"), [(1, 15), (5, 15), (5, 2)])
def test_shots_count_the_support_of_a_class_and_n_counts_all_queries(shots, queries, measured):
    """ "n-shot": n is the number of queries, k · queries; the support, of training tasks too, has m = k · shots."""
    ways = 5
    classes = [np.arange(20 * i, 20 * (i + 1)) for i in range(8)]
    episode = sample_episode(classes, ways, shots, queries, seed=0, index=0)
    n, m = episode.query.size, episode.support.size
    assert (n, m) == (ways * queries, ways * shots)
    measured("n over the number of shots", n / shots, above=1.5)
    measured("m over k · shots", m / (ways * shots), below=1 + 1e-12)
    assert not set(episode.query.ravel()) & set(episode.support.ravel())


@pytest.mark.paper("Sec. 3: inner steps", corrected=True)
@pytest.mark.erratum("E11")
def test_for_every_number_of_inner_steps_the_metantk_is_that_of_discrete_time(measured):
    """The printed exponentials are off by O(1/τ): by far for one step, not at all for infinitely many."""
    net = FullyConnected(4, 20, 1, 1, "erf")
    params, tasks, taus = start(net), make_tasks(net, 2), (1, 2, 5, 20)
    top = max(extreme_eigenvalues(empirical_ntk(net.model, t.support_x, params=params))[1] for t in tasks)
    flow, model = (
        meta_ntk(net.model, tasks, "maml", GradientFlow(1 / top), params=params),
        linearised(net.model, params),
    )
    errors = []
    for tau in taus:
        lam0 = 1 / top / tau
        real = empirical_meta_ntk(model, tasks, InnerLoop(lam0, tau), params=params)
        discrete = meta_ntk(net.model, tasks, "maml", GradientDescent(lam0, tau), params=params)
        measured("error in discrete time", relative(discrete, real), below=EXACT)
        errors.append(relative(flow, real))
    measured("error of the exponential at τ = 1", errors[0], above=0.01)
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] * 20 == pytest.approx(errors[2] * 5, rel=0.2)


def flops(function, *arguments, **named):
    with FlopCounterMode(display=False) as counter:
        function(*arguments, **named)
    return counter.get_total_flops()


def resnet12_parameters():
    total, before = 0, 3
    for width in (64, 160, 320, 640):
        convolutions = 9 * before * width + 2 * 9 * width**2 + before * width
        total, before = total + convolutions + 4 * 2 * width, width
    return total + before * 64 + 64


@pytest.mark.paper("Sec. 3: cost of the Hessian", "Sec. 5: first-order cost")
def test_second_order_terms_cost_more_and_a_hessian_of_resnet_12_would_not_fit_anywhere(measured):
    net = FullyConnected(16, 128, 3, 1, "tanh")
    params, tasks = start(net), make_tasks(net, 2)
    costs = [
        flops(meta_gradient, net.model, params, tasks, InnerLoop(0.1, 3, first_order=first))
        for first in (False, True)
    ]
    measured("operations of second against first order", costs[0] / costs[1], above=1.3)
    composite = flops(meta_ntk, net.model, tasks, "maml", GradientFlow(1.0), params=params)
    real = flops(empirical_meta_ntk, net.model, tasks, InnerLoop(0.1, 3), params=params)
    measured("operations of Eq. (4) against Eq. (11)", real / composite, above=1.5)
    measured("parameters of ResNet-12", resnet12_parameters(), above=1e7)
    assert 4 * resnet12_parameters() ** 2 > 6e14  # bytes of a Hessian
