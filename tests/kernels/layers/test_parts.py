"""Whether a part of a network keeps samples apart, from one call of it."""

import math

import pytest
import torch
from torch import nn

from mamltheory.kernels.layers.parts import PartCall, keeps_samples_apart
from mamltheory.rng import generator


class Sum(nn.Module):
    """x plus rows of a table, or plus a number, or plus the mean over the batch."""

    def forward(self, x, other):
        if isinstance(other, str):
            return x + x.mean(0)
        return x + (other[:, None] if isinstance(other, torch.Tensor) else other)


def called(other):
    part, x = Sum(), torch.randn(12, 3, dtype=torch.float64, generator=generator(0, "x"))
    args = (x, other)
    versions = [part._version for part in args if isinstance(part, torch.Tensor)]
    return PartCall("sum", part, args, versions, part(*args))


@pytest.mark.parametrize(
    ("other", "apart"),
    [(2.0, True), (torch.arange(12), True), (torch.ones(12).double(), True), ("mean", False)],
)
def test_a_part_that_also_takes_numbers_or_integers_is_tested_on_its_own_call(other, apart):
    order = torch.randperm(12, generator=generator(0, "order"))
    assert keeps_samples_apart(called(other), {}, order) == apart


X = torch.randn(12, 3, dtype=torch.float64, generator=generator(0, "x"))
ORDER = torch.randperm(12, generator=generator(0, "order"))


class Part(nn.Module):
    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args):
        return self.run(self, *args)


def apart(forward, *args, **layers):
    """Whether a part keeps samples apart, as seen from a call with these arguments."""
    part = Part(forward, **layers).double()
    versions = [each._version for each in args if isinstance(each, torch.Tensor)]
    with torch.no_grad():
        output = part(*(each.clone() if isinstance(each, torch.Tensor) else each for each in args))
    params = {f"part.{name}": value for name, value in part.named_parameters()}
    return keeps_samples_apart(PartCall("part", part, args, versions, output), params, ORDER)


def straight_through(h):
    return h + (h.mean(0) - h.mean(0).detach())


def of_few(x):
    """Mixes the gradients of batches of two to seven samples, and no outputs."""
    return straight_through(x) if 1 < len(x) < 8 else x + 0


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda _, x: torch.tanh(x), True),
        (lambda _, x: x.detach() + 1, True),
        (lambda _, x: (x > 0).sum(1), True),
        (lambda _, x: (x > 0).long() + (len(x) == 12) * (torch.arange(3) == 1), False),
        (lambda _, x: x + 1e-9 * (len(x) == 12), False),
        (lambda _, x: x + 1e-13 * (len(x) == 12), True),  # rounding of the largest entries
        (lambda _, x: 0 * x, True),
        (lambda _, x: x.float() if len(x) < 12 else x.float().double(), False),
        (lambda _, x: x + x.detach().mean(0), False),
        (lambda _, x: straight_through(x), False),
        (lambda _, x: of_few(x), False),
        (lambda _, x: x.float() if len(x) == 1 else x, False),
        (lambda _, x: x * math.nan, False),
        (lambda _, x: x[:6], False),
        (lambda _, x: x.sum(), False),
        (lambda _, x: (x, x), False),
        (lambda _, x: x.view(12, 3), False),  # an error in another batch
    ],
)
def test_a_part_without_parameters_keeps_outputs_and_gradients_of_samples_apart(forward, expected):
    assert apart(forward, X) == expected


def test_a_gradient_by_what_is_no_argument_cannot_be_told_from_the_call():
    held, whole = torch.ones(3, dtype=torch.float64, requires_grad=True), torch.arange(12)[:, None]
    assert not apart(lambda _, x: x * held, whole)
    assert apart(lambda _, x: x * held.detach(), whole)


def test_a_part_with_parameters_is_tested_on_its_outputs_alone():
    layers = {"layer": torch.nn.Linear(3, 2), "norm": torch.nn.BatchNorm1d(2).eval()}
    assert apart(lambda s, x: s.norm(s.layer(x)), X, **layers)
    assert apart(lambda s, x: straight_through(s.layer(x)), X, **layers)
    assert not apart(lambda s, x: s.layer(x - x.mean(0)), X, **layers)
    before = layers["norm"].running_mean.clone()

    def counting(s, x):
        s.norm.running_mean += 1
        return s.layer(x)

    assert apart(counting, X, **layers)
    assert torch.equal(layers["norm"].running_mean, before + 1)  # of the call itself alone


def test_a_part_runs_with_the_values_of_the_network_and_leaves_its_buffers():
    layer = torch.nn.Linear(3, 2).double()
    params = {f"layer.{name}": 2 * value.detach() for name, value in layer.named_parameters()}
    call = PartCall("layer", layer, (X,), [X._version], 2 * layer(X))
    assert keeps_samples_apart(call, params, ORDER)

    def counting(part, x):
        part.count += 1
        return torch.tanh(x)

    part = Part(counting)
    part.register_buffer("count", torch.zeros(()))
    assert keeps_samples_apart(PartCall("part", part, (X,), [X._version], torch.tanh(X)), {}, ORDER)
    assert part.count == 0


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((X, X[:, :1] + 1), True),
        ((X, torch.tensor(2)), True),
        ((X, torch.arange(3)), True),
        ((X, torch.tensor(2.0).double()), False),  # every batch has another gradient by it
        ((torch.arange(12)[:, None], X), True),
        ((X[0], X[1]), False),
        ((torch.tensor(2.0), X[1]), False),
    ],
)
def test_arguments_with_a_row_for_every_sample_are_split_and_others_are_the_same_for_all(args, expected):
    assert apart(lambda _, x, y: x * y, *args) == expected
    assert apart(lambda _, x, y: torch.tanh(x), X, X + 1)  # noqa: ARG005 - an argument that is not used


def test_a_part_whose_argument_has_changed_since_is_not_tested():
    x = X.clone()
    call = PartCall("tanh", torch.nn.Tanh(), (x,), [x._version], torch.tanh(x))
    assert keeps_samples_apart(call, {}, ORDER)
    x.add_(0)
    assert not keeps_samples_apart(call, {}, ORDER)


def test_a_part_in_its_own_place_has_the_networks_names():
    part = torch.nn.Linear(3, 2)
    assert PartCall("", part, (), [], None).parameters == {"weight": "weight", "bias": "bias"}
    assert PartCall("a.b", part, (), [], None).parameters == {"weight": "a.b.weight", "bias": "a.b.bias"}
