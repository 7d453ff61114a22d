import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mamltheory import Task, condition_number, empirical_ntk, generator, meta_ntk
from mamltheory.errors import ConfigurationError
from mamltheory.kernels.empirical import checked_network, kernels_of
from mamltheory.kernels.layers import layerwise
from mamltheory.kernels.layers.layerwise import parameter_routes
from mamltheory.kernels.layers.options import KernelOptions
from tests.own_networks import Own, made
from tests.paper.cases import relative
from tests.reference.kernels_autograd import ntk


@pytest.fixture(autouse=True)
def _layers_may_draw_their_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "inputs"), dtype=torch.float64)


def headed(layer, axes):
    """The layer, a nonlinearity, the mean over space and a linear head: images to three outputs."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(x)).flatten(2).mean(2) if axes else self.layer(x))

    return Net().double()


def both_ways(module, x1, x2=None, **options):
    generic = empirical_ntk(module, x1, x2, method="generic", **options)
    return relative(empirical_ntk(module, x1, x2, **options), generic)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's, once in a process
@given(
    axes=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    padding=st.sampled_from([0, 1, 2, "same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    outputs=st.sampled_from(["full", "sum"]),
)
@settings(max_examples=25, deadline=None)
def test_every_convolution_has_the_kernel_of_its_jacobian(
    axes, groups, kernel, stride, dilation, padding, mode, bias, outputs
):
    stride = 1 if padding == "same" else stride
    mode = "zeros" if axes == 3 and mode == "reflect" else mode
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    options = {"groups": groups, "stride": stride, "dilation": dilation, "bias": bias, "padding_mode": mode}
    module = headed(kind(4, 4, kernel, padding=padding, **options), axes)
    size = (6, 7, 5)[:axes]
    assert both_ways(module, draw(3, 4, *size), draw(2, 4, *size, seed=1), outputs=outputs) < 1e-12
    assert set(routes(module, draw(1, 4, *size)).values()) == {"formula", "factors"}


def routes(module, x):
    params = dict(module.named_parameters())
    return parameter_routes(module, x, params, params)


LAYERS = {
    "group-norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 3), "formula"),
    "layer-norm": (lambda: nn.LayerNorm((3, 3)), (4, 3, 3), "formula"),
    "layer-norm-without-bias": (lambda: nn.LayerNorm((3, 3), bias=False), (4, 3, 3), "formula"),
    "tokens": (lambda: nn.Linear(5, 6), (4, 3, 5), "factors"),
    "few-tokens": (lambda: nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 9)), (4, 40), "factors"),
    "transposed-convolution": (lambda: nn.ConvTranspose2d(4, 4, 3, stride=2), (4, 3, 3), "module"),
    "prelu": (lambda: nn.PReLU(4), (4, 3, 3), "module"),
    "instance-norm": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 3), "module"),
    "rms-norm": (lambda: nn.RMSNorm(3), (4, 3, 3), "module"),
    "weight-norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), (4, 4, 4), "general"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_other_layers_have_the_kernel_of_their_jacobian_by_formula_or_differentiated_alone(name):
    make, shape, route = LAYERS[name]
    module, x1, x2 = headed(make(), 2), draw(3, *shape), draw(2, *shape, seed=1)
    expected = ntk(module, x1, x2)
    assert relative(empirical_ntk(module, x1, x2), expected) < 1e-12
    summed = expected.reshape(3, 3, 2, 3).sum((1, 3))
    assert relative(empirical_ntk(module, x1, x2, outputs="sum"), summed) < 1e-12
    assert set(routes(module, x1).values()) == {"factors", route}


class Custom(nn.Module):
    """A leaf with a parameter of its own that looks at values, as no batching rule allows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, -1.0, 2.0, 0.1]))

    def forward(self, x):
        return (
            x * self.scale[:, None, None]
            if float(self.scale.detach()[0]) > 0 and x.detach().abs().max().item() > 0
            else x
        )


class Tokens(nn.Module):
    """Attention, a class token and positions: parameters used outside any layer's call."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(4, 4))
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Twice(nn.Module):
    """One convolution and one norm called twice, the weight of a third layer tied to it, and used as a function."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.norm, self.head, self.back = nn.GroupNorm(2, 4), nn.Linear(4, 3), nn.Linear(4, 3, bias=False)
        self.other.weight, self.back.weight = self.one.weight, self.head.weight

    def forward(self, x):
        x = torch.tanh(self.norm(self.one(x)))
        x = torch.tanh(self.norm(self.other(self.one(x)))).mean((2, 3))
        return self.head(torch.tanh(self.back(x) @ self.head.weight)) + self.back(x * x)


class Dead(nn.Module):
    """A branch that no output depends on, one without a graph, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.live, self.dead, self.cut, self.idle = (nn.Linear(4, 3) for _ in range(4))

    def forward(self, x):
        self.dead(x)
        with torch.no_grad():
            constant = self.cut(x)
        return torch.tanh(self.live(x)) + constant + self.cut(x).detach()


ODD = {
    "custom": lambda: (headed(Custom(), 2), (4, 3, 3)),
    "tokens": lambda: (Tokens().double(), (3, 4)),
    "twice": lambda: (Twice().double(), (4, 4, 4)),
    "dead": lambda: (Dead().double(), (4,)),
}


@pytest.mark.parametrize("outputs", ["full", "sum"])
@pytest.mark.parametrize("name", ODD)
def test_parameters_shared_or_used_outside_their_layer_enter_with_their_whole_gradient(name, outputs):
    module, shape = ODD[name]()
    x1, x2 = draw(4, *shape), draw(2, *shape, seed=1)
    expected = ntk(module, x1, x2)
    if outputs == "sum":
        expected = expected.reshape(4, 3, 2, 3).sum((1, 3))
    kernel = empirical_ntk(module, x1, x2, outputs=outputs)
    assert relative(kernel, expected) < 1e-12
    assert relative(empirical_ntk(module, x1, x2, outputs=outputs, chunk=1), expected) < 1e-12


def test_routes_name_what_happens_to_every_parameter():
    assert routes(ODD["custom"]()[0], draw(1, 4, 3, 3))["layer.scale"] == "module"
    found = routes(Tokens().double(), draw(1, 3, 4))
    assert found["token"] == found["attention.in_proj_weight"] == "general"
    assert found["head.weight"] == "factors"
    found = routes(Twice().double(), draw(1, 4, 4, 4))
    assert found["one.weight"] == found["norm.bias"] == "formula"
    assert found["head.weight"] == "general"
    found = routes(Dead().double(), draw(1, 4))
    assert found["live.bias"] == "factors"
    assert found["idle.bias"] == found["cut.weight"] == "unused"


def test_frozen_parameters_are_left_out_unless_they_are_selected():
    module, x = headed(nn.Conv2d(4, 4, 3), 2), draw(3, 4, 4, 4)
    whole = empirical_ntk(module, x)
    module.layer.requires_grad_(False)
    head = empirical_ntk(module, x, select=lambda name: name.startswith("head"))
    assert torch.equal(empirical_ntk(module, x), head)
    assert relative(empirical_ntk(module, x, method="generic"), head) < 1e-13
    rest = empirical_ntk(module, x, select=["layer.weight", "layer.bias"])
    assert relative(head + rest, whole) < 1e-14
    assert both_ways(module, x, select=["layer.bias", "head.weight"]) < 1e-13


def test_several_sets_of_parameters_share_one_pass():
    module, x = headed(nn.Conv2d(4, 4, 3), 2), draw(3, 4, 4, 4)
    selects = [None, ["head.weight"], ["head.weight", "head.bias"], ["layer.bias"]]
    network = checked_network(module, None, [x], KernelOptions())
    kernels = kernels_of(network, x, None, [network.names(select) for select in selects])
    for kernel, select in zip(kernels, selects, strict=True):
        assert relative(kernel, empirical_ntk(module, x, select=select, method="generic")) < 1e-13


@pytest.mark.parametrize("name", ["twice", "tokens"])
def test_tiles_of_any_budget_give_the_same_kernel(name):
    module, shape = ODD[name]()
    x1, x2 = draw(7, *shape), draw(4, *shape, seed=1)
    whole, cross = empirical_ntk(module, x1), empirical_ntk(module, x1, x2)
    for options in ({"memory": 60_000}, {"memory": 150_000}, {"chunk": 3}, {"chunk": 1}):
        tiled = empirical_ntk(module, x1, **options)
        assert relative(tiled, whole) < 1e-14
        assert torch.equal(tiled, tiled.T)
        assert relative(empirical_ntk(module, x1, x2, **options), cross) < 1e-14


def test_the_budget_is_kept():
    """No pass books more than the budget, and a smaller budget makes smaller tiles."""
    module, x, tiles = headed(nn.Conv2d(4, 4, 3), 2), draw(16, 4, 6, 6), []
    module.register_forward_pre_hook(lambda _, args: tiles.append(len(args[0])))
    for memory in (10**9, 10**5, 2 * 10**4):
        empirical_ntk(module, x, memory=memory)
        tiles.append(0)
    sizes = [int(part) for part in tiles]
    first = sizes[: sizes.index(0)]
    assert max(first) == 16
    assert sizes[-2] < 8


def residual_net():
    """A small ResNet with GroupNorm."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.convolution = nn.Conv2d(width, width, 3, padding=1)
            self.norm = nn.GroupNorm(2, width)

        def forward(self, x):
            return x + torch.relu(self.norm(self.convolution(x)))

    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), Block(8), Block(8), pool, nn.Linear(8, 3))


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_a_small_resnet_is_scored_in_five_lines(algorithm):
    labels = torch.eye(3)
    tasks = [Task(draw(3, 3, 9, 9).float(), labels, draw(3, 3, 9, 9, seed=1).float(), labels)]
    network = residual_net()
    score = condition_number(meta_ntk(network, tasks, algorithm))
    assert 1 < score < math.inf
    oracle = condition_number(
        meta_ntk(network.double(), [t.to(torch.float64) for t in tasks], algorithm, method="generic")
    )
    assert score == pytest.approx(oracle, rel=1e-2)


def test_float32_gradients_cost_a_millionth_of_the_kernel():
    module, x = residual_net(), draw(6, 3, 9, 9)
    narrow = empirical_ntk(module, x.float())
    assert relative(narrow, empirical_ntk(module.double(), x)) < 2e-6


@pytest.mark.parametrize("k", [1, 3])
def test_the_least_memory_is_that_of_one_sample(k):
    """64 inputs, 64 hidden numbers and k outputs; cotangents 2 + k times, and the factors of the larger gradient."""
    network, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, k)).double(), draw(2, 64)
    held = 8 * ((64 + 2 * 64) + (64 + 2 * k) + k * (64 + k) + (64 + 64 * k))
    assert empirical_ntk(network, x[:1], memory=held).shape == (k, k)
    with pytest.raises(ConfigurationError, match=f"at least {held} bytes"):
        empirical_ntk(network, x[:1], memory=held - 1)


def own(forward, **parts):
    return made(lambda: Own(forward, **parts))


def two_layers(**options):
    return {"a": nn.Linear(4, 5), "b": nn.Linear(5, 3, **options)}


COVERED = {  # networks whose parameters all have formulas
    "part": lambda: own(lambda s, x: s.b(torch.tanh(s.a(x))), **two_layers()),
    "without-parameters": lambda: nn.Sequential(
        nn.Linear(4, 5), Own(lambda _, h: torch.sin(h)), nn.Linear(5, 3)
    ).double(),
    "zero": lambda: own(lambda s, x: 0 * s.b(s.a(x)), **two_layers()),
    "sizes": lambda: own(
        lambda s, x: s.b(torch.tanh(1e-9 * s.a(x))) + 1e9 * s.c(x), c=nn.Linear(4, 3), **two_layers()
    ),
    "twice": lambda: own(
        lambda s, x: s.b(torch.tanh(s.c(torch.tanh(s.c(s.a(x)))))), c=nn.Linear(5, 5), **two_layers()
    ),
    "shared-weight": lambda: tied(
        own(lambda s, x: s.c(torch.tanh(s.a(x))), a=nn.Linear(4, 4), c=nn.Linear(4, 4))
    ),
    "hooked": lambda: hooked(own(lambda s, x: s.b(s.a(x)), **two_layers())),
    "bare": lambda: own(lambda s, x: s.b(torch.tanh(s.a(x))), **two_layers(bias=False)),
    "one-output": lambda: own(lambda s, x: s.b(torch.tanh(s.a(x)))[:, 1:2], **two_layers()),
    "looking": lambda: own(
        lambda s, x: s.b(torch.tanh(s.a(x)) if float(x.sum()) < 1e9 else s.a(x)), **two_layers()
    ),
}


def hooked(network):
    """A hook of the user's changes what a layer gives."""
    network.a.register_forward_hook(lambda *call: torch.tanh(call[2]))
    return network


def tied(network):
    network.c.weight = network.a.weight
    return network


@pytest.mark.parametrize("name", COVERED)
def test_layers_with_formulas_need_no_other_way_for_any_samples_selection_and_tile(name):
    module = COVERED[name]()
    x1, x2 = draw(5, 4), draw(3, 4, seed=1)
    names = list(dict(module.named_parameters()))
    for select, right, outputs, chunk in (
        (None, None, "full", None),
        (None, x2, "sum", 2),
        (names[:1], None, "sum", 2),
        (names[1:], x2, "full", None),
    ):
        other = x1 if right is None else right
        expected = ntk(module, x1, other, names if select is None else select)
        if outputs == "sum":
            k = len(expected) // 5
            expected = expected.reshape(5, k, len(other), k).sum((1, 3))
        options = {"outputs": outputs, "chunk": chunk, "select": select, "method": "layerwise"}
        kernel = empirical_ntk(module, x1, right, **options)
        assert float((kernel - expected).abs().max()) <= 1e-12 * float(expected.abs().max()), options


@pytest.mark.parametrize("parameters", [False, True])
def test_a_part_is_tested_once_for_every_tile(monkeypatch, parameters):
    tested, compared = [], []
    for function, seen in (("keeps_samples_apart", tested), ("added_up", compared)):
        usual = getattr(layerwise, function)
        monkeypatch.setattr(
            layerwise, function, lambda *args, seen=seen, usual=usual: seen.append(args) or usual(*args)
        )
    part = (
        Own(lambda s, x: torch.tanh(s.a(x)), a=nn.Linear(4, 5)) if parameters else Own(lambda _, x: x.sin())
    )
    network = nn.Sequential(nn.Linear(4, 4), part, nn.Linear(5 if parameters else 4, 3)).double()
    empirical_ntk(network, draw(6, 4), chunk=2)
    assert [len(args[2]) for args in tested] == [2, 2, 2]
    assert len(compared) == (9 if parameters else 0)  # three layers of three tiles


def test_a_gradient_that_no_formula_gives_is_left_to_the_general_way():
    """A layer whose output a hook of the network changes by a factor that its formula does not know."""

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(x, weight):
            return x @ weight.T

        @staticmethod
        def setup_context(ctx, inputs, output):  # noqa: ARG004
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient):
            x, weight = ctx.saved_tensors
            return gradient @ weight, 0.5 * gradient.T @ x

    class Strange(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.function = lambda x: Halved.apply(x, self.weight) + self.bias

    layer = Strange().double()
    layer.register_forward_hook(lambda module, args, _: module.function(args[0]))
    network, x = nn.Sequential(layer, nn.Tanh()), draw(5, 4)
    assert relative(empirical_ntk(network, x), ntk(network, x, x)) < 1e-12
