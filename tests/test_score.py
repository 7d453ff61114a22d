"""The score of a network: repeatable, leaves the network alone, and agrees with the kernel by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory.errors import ConfigurationError, ShapeError, SingularKernelError
from mamltheory.intervals import mean_interval
from tests.own_networks import draw

LABELS = torch.eye(2, dtype=torch.float64).repeat(2, 1)
TASKS = [mt.Task(draw(4, 6, seed=2 * i), LABELS, draw(4, 6, seed=2 * i + 1), LABELS) for i in range(6)]


def small(width=8):
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2)).double()


def test_the_score_depends_on_the_seed_and_not_on_the_weights_or_the_global_generator():
    network, before = small(), torch.get_rng_state()
    weights = [each.clone() for each in network.parameters()]
    found = mt.score(network, TASKS, repeats=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, network.parameters(), weights))
    torch.rand(5)
    assert mt.score(small(), TASKS, repeats=3, seed=1) == found
    assert mt.score(network, TASKS, repeats=3, seed=2) != found


def test_the_score_of_a_function_is_the_interval_of_the_logarithms_of_its_condition_numbers():
    seeds = []

    def made(seed):
        seeds.append(seed)
        network, random = small(), torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64)
        return network

    found = mt.score(made, TASKS, repeats=3)
    used = list(seeds)
    assert len(set(used)) == 3
    by_hand = [
        math.log10(mt.condition_number(mt.meta_ntk(made(seed), TASKS[repeat::3])))
        for repeat, seed in enumerate(used)
    ]
    assert found == mean_interval(np.array(by_hand))


def test_a_function_that_draws_from_torchs_generator_is_scored_repeatably_and_leaves_it_alone():
    before = torch.get_rng_state()
    found = mt.score(lambda _: small(), TASKS, repeats=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert mt.score(lambda _: small(), TASKS, repeats=3) == found


def test_own_weights_are_warned_of_and_have_no_influence():
    network = small()
    with torch.no_grad():
        network[0].weight.mul_(100)
    with pytest.warns(UserWarning, match="no default draw, in '0.weight'"):
        assert mt.score(network, TASKS, repeats=3) == mt.score(small(), TASKS, repeats=3)


def test_a_class_token_is_refused_and_the_function_form_draws_it():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.token = small(), nn.Parameter(torch.randn(6).double())

        def forward(self, x):
            return self.layers(x + self.token)

    with pytest.raises(ConfigurationError, match="no layer of the network can draw 'token'"):
        mt.score(Tokens(), TASKS, repeats=3)
    assert mt.score(lambda _: Tokens(), TASKS, repeats=3).half_width > 0


def test_queries_among_the_support_samples_are_warned_of_unless_the_inner_loop_is_short():
    shared = [mt.Task(task.query_x, LABELS, task.query_x.flip(0), LABELS) for task in TASKS]
    with pytest.warns(UserWarning, match=r"6 of 6 tasks, tasks\[0\] the first, have queries that are"):
        mt.score(small(64), shared, repeats=3)
    with pytest.warns(UserWarning, match="1 of 6 tasks, tasks"):
        mt.score(small(64), [*TASKS[:5], shared[5]], repeats=3)
    mt.score(small(64), shared, repeats=3, dynamics=mt.GradientFlow(1e-3))


def test_tasks_that_do_not_divide_among_the_repeats_and_singular_kernels_are_refused():
    with pytest.raises(ShapeError, match="6 tasks for 4 repeats"):
        mt.score(small(), TASKS, repeats=4)
    with pytest.raises(SingularKernelError, match="repeat 0 is singular"):
        mt.score(small(), [TASKS[0]] * 6, repeats=3)
    with pytest.raises(ConfigurationError, match="made a int"):
        mt.score(lambda seed: seed, TASKS, repeats=3)
