"""Initial weights, number by number from the generators of their layers."""

import copy

import pytest
import torch
from torch import nn

from mamltheory.nas.weights import draw_weights, initialise, initialise_layer
from mamltheory.rng import generator


@pytest.mark.parametrize(
    "module", [nn.Conv2d(6, 4, (1, 3), groups=2), nn.Linear(5, 3), nn.Linear(5, 3, bias=False)]
)
def test_the_weights_of_a_layer_are_scaled_draws_of_its_stream(module):
    fan_in = {nn.Conv2d: 9, nn.Linear: 5}[type(module)]
    gain = {nn.Conv2d: 2.0, nn.Linear: 1.0}[type(module)]
    initialise_layer(module, "kaiming", generator(1, "layer"))
    normal = torch.randn(module.weight.shape, generator=generator(1, "layer"))
    torch.testing.assert_close(module.weight.detach(), normal * (gain / fan_in) ** 0.5)
    assert module.bias is None or not module.bias.any()
    stream = generator(2, "layer")
    draw_weights("x", module, 3, "default")
    initialise_layer(module, "default", generator(2, "layer"))
    for parameter in module.parameters():
        uniform = (2 * torch.rand(parameter.shape, generator=stream) - 1) / fan_in**0.5
        torch.testing.assert_close(parameter.detach(), uniform)


def test_every_layer_has_the_stream_of_its_name_and_norms_begin_at_one_and_zero():
    own = nn.ConvTranspose2d(2, 2, 1)
    network = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.GroupNorm(1, 2), nn.BatchNorm2d(2), own, nn.Bilinear(2, 2, 1)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7.0)
    expected = copy.deepcopy(network)
    before = torch.get_rng_state()
    initialise(network, 5)
    assert torch.equal(torch.get_rng_state(), before)
    initialise_layer(expected[0], "kaiming", generator(5, "weights 0"))
    for place in (1, 2):
        nn.init.ones_(expected[place].weight)
        nn.init.zeros_(expected[place].bias)
    for place in (3, 4):
        torch.set_rng_state(generator(5, f"weights {place}").get_state())
        expected[place].reset_parameters()
    for found, value in zip(network.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(found, value)


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((2,), 3.0))


def test_a_layer_that_cannot_be_drawn_again_stays_as_it_is():
    module = Fixed()
    draw_weights("fixed", module, 0, "kaiming")
    assert module.scale.tolist() == [3.0, 3.0]


class Parent(nn.Module):
    """It has no parameters but those of its part."""

    def __init__(self):
        super().__init__()
        self.part = Fixed()

    def reset_parameters(self):
        raise AssertionError("the part is drawn on its own")


def test_a_module_is_drawn_for_its_own_parameters_alone():
    initialise(Parent(), 0)
