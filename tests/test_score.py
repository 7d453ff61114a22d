"""The score of a network: repeatable, leaves the network alone, and agrees with the kernel by hand."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory import network_score
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


class Attention(nn.Module):
    """A small transformer, whose attention torch draws by another name than reset_parameters."""

    def __init__(self, token=False):
        super().__init__()
        self.enter = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.leave = nn.Linear(8, 2)
        if token:
            self.token = nn.Parameter(torch.zeros(1, 1, 8))

    def forward(self, x):
        return self.leave(self.layer(self.enter(x.unflatten(1, (2, 3)))).mean(1))


def test_all_weights_are_drawn_as_a_new_network_has_them():
    first, second = (dict(network_score._drawn(Attention(), 0, i).named_parameters()) for i in range(2))
    torch.manual_seed(0)
    for name, new in Attention().named_parameters():
        if new.unique().numel() == 1:
            assert torch.equal(first[name], new)
        else:
            assert not torch.equal(first[name], second[name])
            assert new.numel() < 16 or 0.5 < float((first[name].norm() / new.norm()).detach()) < 2


def test_an_initialisation_of_a_parent_is_not_overwritten_by_its_layers():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 2)
            self.reset_parameters()

        def reset_parameters(self):
            nn.init.normal_(self.layer.weight, std=50.0)

        def forward(self, x):
            return self.layer(x)

    assert float(network_score._drawn(Wide(), 0, 1).layer.weight.detach().std()) > 20


def test_weights_that_no_layer_draws_are_refused_and_a_function_draws_them():
    for network, name in (
        (Attention(token=True), "token"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)), "original0"),
    ):
        with pytest.raises(ConfigurationError, match=rf"{name}.*lambda seed"):
            mt.score(network, TASKS, repeats=3)
    found = [mt.score(lambda _: Attention().double(), TASKS, repeats=3, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_frozen_weights_stay_and_own_weights_are_warned_of():
    network = small()
    network[0].weight.data.mul_(100)
    with pytest.warns(UserWarning, match=r"0\.weight were initialised in another way"):
        mt.score(network, TASKS, repeats=3)
    network[0].weight.requires_grad_(False)
    assert torch.equal(network_score._drawn(network, 0, 0)[0].weight, network[0].weight)
    scaled = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 2)).double()
    scaled[1].weight.data.fill_(2.0)
    with pytest.warns(UserWarning, match=r"1\.weight were"):
        mt.score(scaled, TASKS, repeats=3)


@pytest.mark.parametrize("seed", range(5))
def test_new_networks_of_torch_are_not_warned_of(seed):
    torch.manual_seed(seed)
    layers = (
        nn.Linear(16, 1), nn.Conv2d(1, 4, 2), nn.GroupNorm(2, 4), nn.PReLU(), nn.Embedding(4, 4), nn.LSTM(2, 4),
        nn.MultiheadAttention(8, 2), nn.Transformer(8, 2, 1, 1, 16, batch_first=True), nn.Bilinear(2, 3, 4),
        nn.ConvTranspose2d(2, 3, 3), nn.LayerNorm(16), nn.BatchNorm2d(3), nn.GRUCell(3, 4), nn.RMSNorm(8),
    )  # fmt: skip
    network_score._drawn(nn.ModuleList(layers), seed, 0)


def test_queries_among_the_supports_are_warned_of():
    task = mt.Task(TASKS[0].support_x, LABELS, TASKS[0].support_x, LABELS)
    with pytest.warns(UserWarning, match=r"tasks\[1\] has a query sample among its support samples"):
        mt.score(small(), [TASKS[0], task], repeats=2)


def test_tasks_that_do_not_divide_among_the_repeats_and_singular_kernels_are_refused():
    with pytest.raises(ShapeError, match="6 tasks for 4 repeats"):
        mt.score(small(), TASKS, repeats=4)
    with pytest.raises(SingularKernelError, match="repeat 0 is singular"):
        mt.score(small(), [TASKS[0]] * 6, repeats=3)
    with pytest.raises(ConfigurationError, match="made a int"):
        mt.score(lambda seed: seed, TASKS, repeats=3)
