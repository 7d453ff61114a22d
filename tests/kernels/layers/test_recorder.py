"""The calls that one pass records, against the same pass written out; and the calls that no formula covers."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from mamltheory.kernels.layers.convolutions import Geometry
from mamltheory.kernels.layers.recorder import (
    LayerCall,
    NotCovered,
    Recorder,
    batched_output_gradients,
    layers_of,
    output_gradients,
    own_parameters,
    stacked,
)
from mamltheory.kernels.layers.tiles import Budget
from tests.own_networks import Own, draw, made

X = draw(3, 4)


def recorder_of(network, x=X, values=None, **options):
    params = dict(network.named_parameters()) if values is None else values
    return Recorder(network, params, params, Budget(2**40, len(x)), own_parameters(network), **options)


def forked():
    """One layer feeds the other, which is called twice; the outputs depend on different calls."""

    def forward(s, x):
        hidden = torch.tanh(s.a(x))
        first, second = s.b(hidden), s.b(x)
        return torch.stack([first[:, 0] ** 2, second[:, 1] * first[:, 2], hidden[:, 0]], 1)

    return Own(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 3))


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_pass_records_every_call_with_its_inputs_bytes_and_cotangents(differentiable, trusted):
    network = made(forked)
    values = (
        None
        if trusted
        else {name: (2 * value.detach()).requires_grad_() for name, value in network.named_parameters()}
    )
    recorder = recorder_of(network, values=values, trusted=trusted)
    logits = recorder.run(X)
    given = values or dict(network.named_parameters())
    a = (X @ given["a.weight"].T + given["a.bias"]).detach().requires_grad_()
    hidden = torch.tanh(a)
    first, second = (z @ given["b.weight"].T + given["b.bias"] for z in (hidden, X))
    columns = [first[:, 0] ** 2, second[:, 1] * first[:, 2], hidden[:, 0]]
    torch.testing.assert_close(logits, torch.stack(columns, 1))
    assert [call.layer.name for call in recorder.calls] == ["a", "b", "b"]
    for call, inputs in zip(recorder.calls, (X, hidden, X), strict=True):
        torch.testing.assert_close(call.inputs[0], inputs)
        assert not call.inputs[0].requires_grad
        assert call.kept_output is None
    assert [call.cotangent_bytes for call in recorder.calls] == [8 * 12, 8 * 9, 8 * 9]
    assert recorder.budget.used == 2 * 8 * (12 + 9 + 9) + 8 * (12 + 12)  # x once, and the hidden numbers
    found = output_gradients(list(logits.unbind(1)), recorder, differentiable)
    for i, column in enumerate(columns):
        exact = torch.autograd.grad(
            column.sum(), [a, first, second], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for call, right in zip(found, exact, strict=True):
            torch.testing.assert_close(call[i], right)
    assert found[0][0].requires_grad == differentiable
    assert not network.a._forward_hooks
    assert not network.a._forward_pre_hooks
    again = recorder_of(network, values=values, trusted=trusted)
    (whole,) = zip(*output_gradients([again.run(X).sum(1)], again), strict=True)
    for one, each in zip(whole, found, strict=True):
        torch.testing.assert_close(one, sum(each))


def test_a_call_gives_the_gradients_of_all_its_parameters_or_of_some():
    recorder = recorder_of(made(forked))
    recorder.run(X)
    call, cotangents = recorder.calls[0], draw(3, 2, 4, seed=1)
    rows = call.gradients(cotangents)
    assert set(rows) == {"weight", "bias"}
    torch.testing.assert_close(rows["weight"], torch.einsum("nko,nj->nkoj", cotangents, X).reshape(6, 16))
    assert torch.equal(call.gradients(cotangents, ["bias"])["bias"], cotangents.flatten(0, 1))
    assert set(call.gradients(cotangents, ["bias"])) == {"bias"}


def test_a_call_of_a_convolution_with_its_own_geometry_has_the_gradients_of_that():
    layer = made(lambda: nn.Conv2d(2, 3, 2, stride=2, bias=False))
    x, geometry = draw(2, 2, 4, 5), Geometry((1, 1), (1, 0), (1, 1), 1)
    (known,) = layers_of(layer, ["weight"])
    call = LayerCall(known, (x,), layer(x), geometry)
    output = nn.functional.conv2d(x, layer.weight, None, 1, (1, 0))
    cotangents = draw(2, 1, *output.shape[1:], seed=1)
    exact = [
        torch.autograd.grad(nn.functional.conv2d(a[None], layer.weight, None, 1, (1, 0)), layer.weight, g)[0]
        for a, g in zip(x, cotangents, strict=True)
    ]
    torch.testing.assert_close(call.gradients(cotangents)["weight"], torch.stack(exact).flatten(1))


def test_parameters_that_do_not_move_have_the_values_that_are_given():
    network = made(forked)
    values = {name: 2 * value.detach() for name, value in network.named_parameters()}
    moving = ["a.weight", "a.bias"]
    recorder = Recorder(network, values, moving, Budget(2**40, 3), own_parameters(network))
    torch.testing.assert_close(recorder.run(X), functional_call(network, values, (X,)))
    assert [call.layer.name for call in recorder.calls] == ["a"]


def test_one_vectorised_pass_gives_the_same_cotangents():
    network = made(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)))
    recorder = recorder_of(network)
    logits = recorder.run(X)
    fast = batched_output_gradients(logits, recorder)
    slow = output_gradients(list(logits.unbind(1)), recorder)
    for one, other in zip(fast, slow, strict=True):
        assert stacked(one).shape[:2] == (3, 2)
        torch.testing.assert_close(stacked(one), stacked(other))
        assert torch.equal(stacked(other[:1]), other[0][:, None])


def test_what_no_output_depends_on_has_no_cotangent():
    network = made(lambda: Own(lambda s, x: (s.a(x), s.b(x))[0], a=nn.Linear(4, 2), b=nn.Linear(4, 2)))
    recorder = recorder_of(network)
    used, unused = output_gradients(list(recorder.run(X).unbind(1)), recorder)
    assert unused is None
    assert torch.equal(used[1], torch.tensor([0.0, 1.0]).expand(3, 2))
    constant = made(lambda: Own(lambda s, x: x + s.a(x).detach(), a=nn.Linear(4, 4)))
    recorder = recorder_of(constant)
    assert output_gradients(list(recorder.run(X).unbind(1)), recorder) == [None]
    bare = recorder_of(nn.Tanh())
    assert output_gradients(list(bare.run(X).unbind(1)), bare) == []


def test_calls_without_gradients_are_not_recorded():
    def forward(s, x):
        with torch.no_grad():
            x = s.a(x)
        return s.b(x) + s.count(x)[:, None]

    count = Own(lambda s, x: (x * s.scale > 0).sum(1), scale=nn.Parameter(torch.ones(())))
    recorder = recorder_of(made(lambda: Own(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2), count=count)))
    recorder.run(X)
    assert [call.layer.name for call in recorder.calls] == ["b"]


def test_a_module_without_a_formula_keeps_its_output_and_a_view_of_it_is_copied():
    constant = []

    def forward(s, x):
        constant.append(not s.w.requires_grad)
        return (x * s.w).view(3, 4)

    scale = Own(forward, w=nn.Parameter(torch.ones(4)))
    network = made(lambda: Own(lambda s, x: s.scale(s.scale(x)).mul_(3), scale=scale))
    recorder = recorder_of(network)
    logits = recorder.run(X)
    _, call = recorder.calls
    assert constant == [True, True]
    assert torch.equal(call.kept_output, X)
    assert torch.equal(logits, 3 * X)
    for (cotangent,) in output_gradients([logits.sum(1)], recorder):
        assert torch.equal(cotangent, torch.full_like(X, 3.0))


def test_watched_parts_are_kept_with_their_arguments_before_the_call():
    inner = Own(lambda _, x: torch.relu_(x) + 1)
    inner.register_forward_hook(lambda *call: call[2] * 2)
    network = made(lambda: Own(lambda s, x: s.part(s.a(x)) + s.named(x=x), a=nn.Linear(4, 4)))
    network.part, network.named = inner, Keyed()
    recorder = recorder_of(network, watched={"part": inner, "named": network.named}, detached=False)
    logits = recorder.run(X)
    part, named = recorder.parts
    assert (part.name, part.part, named.name, named.args) == ("part", inner, "named", ())
    assert part.versions == [0]
    assert part.args[0]._version == 1
    assert not part.args[0].requires_grad
    torch.testing.assert_close(2 * part.output, logits)  # before the part's own hooks
    assert torch.equal(named.output, 0 * X)
    assert torch.equal(recorder.calls[0].inputs[0], X)


class Keyed(nn.Module):
    def forward(self, x):
        return 0 * x


class Again(nn.Module):
    """A layer that calls itself."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4))

    def forward(self, x, deep=True):
        return self(x, False) * self.w if deep else x * self.w


def changed_in_place(s, x):
    x = x + 0
    y = s.a(x)
    x.mul_(2)
    return y


def scaled(change):
    return Own(lambda s, x: change(x * s.w), w=nn.Parameter(torch.ones(4)))


REFUSED = {
    "keyword": (lambda s, x: s.a(input=x), nn.Linear(4, 2), "not called with one row a sample"),
    "turned": (lambda s, x: s.a(x.repeat(2, 1))[:3], nn.Linear(4, 2), "not called with one row a sample"),
    "itself": (lambda s, x: s.a(x), Again(), "not called with one row a sample"),
    "in place": (changed_in_place, nn.Linear(4, 2), "input of module 'a' is changed in place"),
    "other values": (
        lambda s, x: functional_call(s.a, {"weight": 2 * s.a.weight}, (x,)),
        nn.Linear(4, 2, bias=False),
        "called with other values",
    ),
    "number": (lambda s, x: x + s.a(x), scaled(torch.sum), "does not return one row a sample"),
    "two rows": (lambda s, x: x + s.a(x), scaled(lambda x: x[:1]), "does not return one row a sample"),
    "tuple": (lambda s, x: s.a(x)[0], scaled(lambda x: (x, x)), "does not return one row a sample"),
    "narrow": (lambda s, x: s.a(x).double(), scaled(torch.Tensor.float), "computes in torch.float32"),
    "outside": (lambda s, x: s.a(x) @ s.a.weight, nn.Linear(4, 2), "used outside a call"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_that_no_formula_covers_is_refused_with_its_parameters(name):
    forward, layer, reason = REFUSED[name]
    network = made(lambda: Own(forward, a=layer, b=nn.Linear(4, 2)))
    before = dict(network.named_parameters())
    recorder = recorder_of(network)
    with pytest.raises(NotCovered, match=reason) as refused:
        output_gradients([recorder.run(X).sum(1)], recorder)
    expected = {"a.weight"} if name == "outside" else {key for key in before if key.startswith("a.")}
    assert refused.value.names == expected
    assert all(before[key] is value for key, value in network.named_parameters())


def test_layers_are_named_once_with_the_parameters_that_move():
    network = made(lambda: nn.Sequential(nn.Linear(4, 4), nn.PReLU(4), nn.Linear(4, 4, bias=False)))
    network.add_module("again", network[0])
    network[2].weight = network[0].weight
    assert own_parameters(network)["2"] == {"weight": "0.weight"}
    first, second, third = layers_of(network, ["0.weight", "0.bias", "1.weight"])
    assert (first.name, first.kind, first.names, first.numbers) == (
        "0",
        nn.Linear,
        {"weight": "0.weight", "bias": "0.bias"},
        20,
    )
    assert (second.name, second.kind, second.numbers) == ("1", None, 4)
    assert (third.name, third.names, third.numbers) == ("2", {"weight": "0.weight"}, 16)
    assert [layer.name for layer in layers_of(network, ["0.bias"], own_parameters(network))] == ["0"]
