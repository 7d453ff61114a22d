"""Formulas of single layers against autograd, sample by sample and output by output."""

import pytest
import torch
from torch import nn

from mamltheory.errors import UnsupportedModelError
from mamltheory.kernels.layers.rules import (
    fits,
    gradient_cotangents,
    kind_of,
    layer_gradients,
    module_gradients,
)
from mamltheory.rng import generator

LAYERS = {
    "linear": (nn.Linear(4, 3), (4,)),
    "linear-positions": (nn.Linear(4, 3), (5, 4)),
    "convolution": (nn.Conv2d(4, 3, 2), (4, 3, 3)),
    "circular-convolution": (nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), (4, 3, 3)),
    "convolution-along-one-axis": (nn.Conv1d(4, 3, 2), (4, 5)),
    "group-norm": (nn.GroupNorm(2, 4, eps=0.1), (4, 3, 3)),
    "group-norm-flat": (nn.GroupNorm(2, 4), (4,)),
    "layer-norm": (nn.LayerNorm(4, eps=0.1), (3, 4)),
    "layer-norm-of-two-axes": (nn.LayerNorm((3, 4)), (3, 4)),
    "batch-norm": (nn.BatchNorm2d(4, eps=0.1).eval(), (4, 3, 3)),
}


def random(*shape, purpose="x"):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, purpose))


def drawn(name, n=3, k=2):
    layer, shape = LAYERS[name]
    layer = layer.double()
    with torch.no_grad():
        for i, value in enumerate(layer.parameters()):
            value.copy_(random(*value.shape, purpose=f"weights {i}"))
        for name, value in layer.named_buffers():
            if value.is_floating_point():
                value.copy_(random(*value.shape, purpose=name).abs())
    inputs = random(n, *shape)
    return layer, inputs, random(n, k, *layer(inputs).shape[1:], purpose="cotangents")


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_a_layer_are_those_of_autograd_for_every_sample_and_output(name):
    layer, inputs, cotangents = drawn(name)
    names = [key for key, _ in layer.named_parameters()]
    rows = layer_gradients(kind_of(layer, names), layer, inputs, cotangents, names)
    assert set(rows) == {"weight", "bias"}
    for key, value in layer.named_parameters():
        expected = [
            torch.autograd.grad((layer(x[None])[0] * each).sum(), value)[0].flatten()
            for x, of_sample in zip(inputs, cotangents, strict=True)
            for each in of_sample
        ]
        torch.testing.assert_close(rows[key].flatten(1), torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("chosen", [("weight",), ("bias",), ("weight", "bias")], ids="+".join)
def test_cotangents_of_both_factors_are_those_of_autograd_and_zero_where_nothing_depends_on_them(
    name, chosen
):
    layer, inputs, cotangents = drawn(name)
    kind = kind_of(layer, ("weight", "bias"))
    rows = layer_gradients(kind, layer, inputs, cotangents, chosen)
    back = {key: random(*value.shape, purpose=key) for key, value in rows.items()}
    leaves = [inputs.clone().requires_grad_(), cotangents.clone().requires_grad_()]
    total = sum((layer_gradients(kind, layer, *leaves, [key])[key] * back[key]).sum() for key in chosen)
    expected = torch.autograd.grad(total, leaves, materialize_grads=True)
    found = gradient_cotangents(kind, layer, inputs, cotangents, back)
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-11, atol=1e-11)
    assert chosen != ("bias",) or not found[0].any()


def test_a_formula_applies_to_one_tensor_with_a_row_for_every_sample():
    layer, x = nn.Linear(4, 3), torch.ones(2, 4)
    assert fits(nn.Linear, layer, (x,), 2)
    assert not fits(nn.Linear, layer, (x,), 3)
    assert not fits(nn.Linear, layer, (x[0],), 4)
    assert not fits(nn.Linear, layer, (torch.tensor(1.0), x), 2)
    assert not fits(nn.Linear, layer, (x, x), 2)
    assert not fits(nn.Linear, layer, (), 2)
    assert fits(None, layer, (x, torch.tensor(1.0)), 2)
    assert fits(nn.Conv2d, nn.Conv2d(1, 1, 1), (torch.ones(2, 1, 3, 3),), 2)
    assert not fits(nn.Conv2d, nn.Conv2d(1, 1, 1), (torch.ones(2, 3, 3),), 2)
    assert not fits(nn.LayerNorm, nn.LayerNorm((3, 4)), (torch.ones(4, 4),), 4)
    assert not fits(nn.Conv2d, nn.Conv2d(1, 1, 1), (torch.ones(2, 1, 3, 3), x), 2)
    assert fits(None, nn.Conv2d(1, 1, 1), (torch.ones(2, 3, 3), x), 2)
    assert fits(nn.LayerNorm, nn.LayerNorm((3, 4)), (torch.ones(2, 3, 4),), 2)
    assert fits(None, nn.LayerNorm((3, 4)), (torch.ones(2), x), 2)
    assert fits(None, layer, ("text", x), 2)


class Inheriting(nn.Linear):
    pass


class Overriding(nn.Linear):
    def forward(self, x):
        return super().forward(x) ** 2


def test_a_formula_is_that_of_the_class_whose_forward_a_layer_inherits():
    assert kind_of(nn.Linear(4, 3), ["weight", "bias"]) is kind_of(Inheriting(4, 3), ["weight"]) is nn.Linear
    assert kind_of(nn.Conv1d(4, 3, 2), ["bias", "weight"]) is nn.Conv1d
    assert kind_of(nn.BatchNorm3d(4), ["weight", "bias"]) is nn.BatchNorm3d
    layer = nn.Linear(4, 3)
    layer.weight = nn.Parameter(torch.empty(0, 4))
    for other, own in (
        (Overriding(4, 3), ["weight", "bias"]),
        (nn.Linear(4, 3), ["bias"]),
        (nn.Linear(4, 3), ["weight", "scale"]),
        (nn.Linear(4, 3), ["weight", "bias", "scale"]),
        (layer, ["weight", "bias"]),
        (nn.PReLU(4), ["weight"]),
    ):
        assert kind_of(other, own) is None
    convolution, x = nn.Conv2d(1, 1, 1, bias=False), torch.ones(2, 1, 3, 3)
    with pytest.raises(UnsupportedModelError, match="Conv2d"):
        gradient_cotangents(None, convolution, x, x[:, None], {"weight": torch.ones(2, 1)})
    with pytest.raises(UnsupportedModelError, match="PReLU"):
        layer_gradients(None, nn.PReLU(4), torch.ones(2, 4), torch.ones(2, 1, 4), ["weight"])


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.shift = (nn.Parameter(random(4, purpose=purpose)) for purpose in ("scale", "shift"))

    def forward(self, x, y):
        y = y[:, None] if isinstance(y, torch.Tensor) and y.shape == x.shape[:1] else y
        return torch.tanh(x * self.scale + y * self.shift**2)


@pytest.mark.parametrize("other", [random(3, 4), random(3), random(4), torch.tensor(0.7), 0.7])
def test_a_module_of_ones_own_is_differentiated_sample_by_sample_with_its_other_arguments(other):
    """One argument has a row a sample; another has a row or a number too, or is the same for all."""
    module, x = Mixed(), random(3, 4, purpose="x of one's own")
    cotangents, scale, shift = random(3, 2, 4), module.scale.detach(), random(4, purpose="values")
    column = other[:, None] if isinstance(other, torch.Tensor) and other.shape == (3,) else other
    output = torch.tanh(x * scale + column * shift**2)

    def rows(output):
        values, constants = {"scale": scale}, {"shift": shift}
        return module_gradients(module, "mixed", (x, other), output, cotangents, values, constants)["scale"]

    expected = (cotangents * ((1 - output**2) * x)[:, None]).flatten(0, 1)
    torch.testing.assert_close(rows(output), expected)
    torch.testing.assert_close(rows(output + 1e-13), expected)  # rounding of its largest numbers
    wrong = output.clone()
    wrong[0, 0] += 1e-9
    for changed in (wrong, -output):
        with pytest.raises(UnsupportedModelError, match=r"'mixed'.*alone"):
            rows(changed)
