import math

import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory import (
    FullyConnected,
    InnerLoop,
    Model,
    Task,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    meta_ntk,
)
from mamltheory.errors import (
    ConfigurationError,
    NetworkError,
    ShapeError,
    UnsupportedModelError,
    ValueRangeError,
)
from mamltheory.kernels import empirical
from mamltheory.kernels.empirical import checked_network
from mamltheory.kernels.layers import jacobian as torch_jacobian
from mamltheory.kernels.layers.options import KernelOptions
from tests.own_networks import draw
from tests.paper.cases import relative
from tests.reference.kernels_autograd import ntk
from tests.strategies import as_users_run_it, task


@pytest.fixture(autouse=True)
def _layers_may_draw_their_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class TwiceUsed(nn.Module):
    """One layer called twice, and a skip connection."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(48, 48), nn.Linear(48, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(x + torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


def trained_batch_norm():
    norm = nn.BatchNorm2d(4)
    norm.running_mean += 0.3
    norm.running_var *= 2
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()


def convolutional(*layers):
    """Layers that lead from 3 × 4 × 4 images to 16 features, and a linear head."""
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 3))


def dense(*layers):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), *layers, nn.Linear(8, 3))


MODULES = {
    "mlp": lambda: dense(nn.GELU()),
    "relu-in-place": lambda: dense(nn.ReLU(inplace=True)),
    "layernorm": lambda: dense(nn.LayerNorm(8), nn.Tanh()),
    "groupnorm": lambda: convolutional(
        nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(), nn.AvgPool2d(2)
    ),
    "grouped": lambda: convolutional(
        nn.Conv2d(3, 6, 3, groups=3, padding=1),
        nn.SiLU(),
        nn.Conv2d(6, 6, 3, groups=6, dilation=2, padding=2),  # depthwise
        nn.SiLU(),
        nn.Conv2d(6, 4, 1, stride=2, bias=False),
    ),
    "max-pool": lambda: convolutional(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()),
    "batchnorm-eval": trained_batch_norm,
    "twice-used": TwiceUsed,
    "tied": Tied,
}
every_module = pytest.mark.parametrize("name", MODULES)


def images(n=3, seed=0):
    return torch.randn(n, 3, 4, 4, generator=generator(seed, "images"), dtype=torch.float64)


@pytest.mark.paper("Def. 1")
@every_module
def test_the_kernel_of_any_network_agrees_with_one_backward_pass_a_row(name):
    module, x1, x2 = MODULES[name]().double(), images(3), images(2, seed=1)
    kernel = empirical_ntk(module, x1, x2)
    assert kernel.shape == (9, 6)
    assert relative(kernel, ntk(module, x1, x2)) < 1e-13
    symmetric = empirical_ntk(module, x1)
    assert relative(symmetric, ntk(module, x1, x1)) < 1e-13
    assert relative(symmetric, empirical_ntk(module, x1, x1)) < 1e-14
    assert torch.equal(symmetric, symmetric.T)


@pytest.mark.parametrize("method", ["auto", "generic"])
def test_as_many_columns_as_rows_are_other_samples_all_the_same(method):
    module, x1, x2 = MODULES["groupnorm"]().double(), images(3), images(3, seed=1)
    assert relative(empirical_ntk(module, x1, x2, method=method), ntk(module, x1, x2)) < 1e-13
    head = [key for key, _ in module.named_parameters()][-2:]
    last = empirical_last_layer_ntk(module, x1, x2, method=method)
    assert relative(last, ntk(module, x1, x2, head)) < 1e-13
    net, vectors = FullyConnected(48, 5, 2, 2), [x.flatten(1) for x in (x1, x2)]
    params = net.initialise(generator(0, "init"))
    whole = empirical_ntk(net.model, torch.cat(vectors), params=params)
    part = empirical_ntk(net.model, *vectors, params=params, method=method)
    assert relative(part, whole[:6, 6:]) < 1e-13


@pytest.mark.parametrize("name", ["mlp", "groupnorm", "twice-used"])
def test_the_last_layers_kernel_is_the_kernel_of_the_last_layers_parameters(name):
    module, x1, x2 = MODULES[name]().double(), images(3), images(2, seed=1)
    head = [key for key, _ in module.named_parameters()][-2:]
    expected = ntk(module, x1, x2, head)
    assert relative(empirical_last_layer_ntk(module, x1, x2), expected) < 1e-13
    assert relative(empirical_ntk(module, x1, x2, select=head), expected) < 1e-13
    assert relative(empirical_ntk(module, x1, x2, select=lambda key: key in head), expected) < 1e-13


def test_the_kernel_is_the_sum_of_the_kernels_of_its_parameters():
    module, x = MODULES["groupnorm"]().double(), images()
    parts = [empirical_ntk(module, x, select=[name]) for name, _ in module.named_parameters()]
    assert relative(sum(parts), empirical_ntk(module, x)) < 1e-13


@every_module
def test_the_kernel_of_the_summed_outputs_is_the_sum_over_the_blocks(name):
    module, x1, x2 = MODULES[name]().double(), images(3), images(2, seed=1)
    full = empirical_ntk(module, x1, x2).reshape(3, 3, 2, 3).sum((1, 3))
    assert relative(empirical_ntk(module, x1, x2, outputs="sum"), full) < 1e-12
    last = empirical_last_layer_ntk(module, x1, x2).reshape(3, 3, 2, 3).sum((1, 3))
    assert relative(empirical_last_layer_ntk(module, x1, x2, outputs="sum"), last) < 1e-12


@pytest.mark.parametrize("outputs", ["full", "sum"])
@pytest.mark.parametrize("name", ["mlp", "groupnorm", "batchnorm-eval"])
def test_the_samples_held_at_a_time_do_not_change_the_numbers(name, outputs):
    module, x = MODULES[name]().double(), images(5)
    whole = empirical_ntk(module, x, outputs=outputs)
    for chunk in (1, 2, 5, 100):
        assert relative(empirical_ntk(module, x, outputs=outputs, chunk=chunk), whole) < 1e-14


def test_a_meta_kernel_does_not_depend_on_the_chunk():
    net = FullyConnected(4, 5, 2, 2)
    params = net.initialise(generator(0, "init"))
    tasks = (task(0, 0, k=2), task(0, 1, n=1, m=2, k=2))
    whole = empirical_meta_ntk(net.model, tasks, InnerLoop(0.3, 2), params=params)
    chunked = empirical_meta_ntk(net.model, tasks, InnerLoop(0.3, 2), params=params, chunk=1)
    assert relative(chunked, whole) < 1e-14
    columns = empirical_meta_ntk(net.model, tasks, InnerLoop(0.3, 2), tasks[1:], params=params)
    assert relative(columns, whole[:, 4:]) < 1e-14


@every_module
def test_float32_networks_have_float64_kernels_close_to_the_float64_networks(name):
    module, x = MODULES[name](), images()
    narrow = empirical_ntk(module, x.float())
    assert narrow.dtype == torch.float64
    assert relative(narrow, empirical_ntk(module.double(), x)) < 1e-4
    assert float(torch.linalg.eigvalsh(narrow)[0]) > -1e-12 * float(
        narrow.trace()
    )  # a Gram matrix in float64


def test_scale_divides_and_parameters_given_replace_the_modules_own():
    net = FullyConnected(48, 8, 1, 3, "tanh")
    params, x = net.initialise(generator(0, "init")), images().flatten(1)
    module = nn.Sequential(nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    same = {"0.weight": params["weight1"], "0.bias": params["bias1"]}
    same |= {"2.weight": params["weight2"], "2.bias": params["bias2"]}
    kernel = empirical_ntk(net.model, x, params=params)
    assert relative(empirical_ntk(module, x, params=same) / 8, kernel) < 1e-13
    last = empirical_last_layer_ntk(net.model, x, params=params)
    assert relative(empirical_last_layer_ntk(module, x, params=same) / 8, last) < 1e-13


def test_the_network_and_the_global_random_state_stay_as_they_were():
    module, state = MODULES["batchnorm-eval"]().double(), torch.get_rng_state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    empirical_ntk(module, images())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def broken():
    module = nn.Linear(4, 2)
    module.weight.data[1, 2] = math.nan
    return module


NET = FullyConnected(4, 3, 1)
X = torch.zeros(2, 4)
REFUSED = {
    "no-parameters": (nn.Flatten, X, {}, ConfigurationError, "no parameter"),
    "nan-weights": (broken, X, {}, ValueRangeError, "'weight' has NaN"),
    "batch-statistics": (lambda: nn.BatchNorm1d(4), X, {}, UnsupportedModelError, "batch statistics"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Dropout()), X, {}, UnsupportedModelError, "eval"),
    "no-params": (lambda: NET.model, X, {}, ConfigurationError, "params="),
    "no-rows": (lambda: nn.Conv1d(4, 2, 1), X[:, :, None], {}, ShapeError, "× outputs"),
    "integers": (lambda: nn.Linear(4, 2), X.long(), {}, ShapeError, "int64"),
    "vector": (lambda: nn.Linear(4, 2), X[0], {}, ShapeError, "samples × dimensions"),
    "empty": (lambda: nn.Linear(4, 2), X[:0], {}, ShapeError, "samples × dimensions"),
    "nan-samples": (lambda: nn.Linear(4, 2), X / 0, {}, ValueRangeError, "NaN"),
    "dtype": (
        lambda: nn.Linear(4, 2),
        X.double(),
        {},
        ShapeError,
        "float64 and the parameters torch.float32",
    ),
    "unknown-name": (lambda: nn.Linear(4, 2), X, {"select": ["bais"]}, ConfigurationError, "bais"),
    "one-string": (lambda: nn.Linear(4, 2), X, {"select": "bias"}, ConfigurationError, "select"),
    "nothing-selected": (lambda: nn.Linear(4, 2), X, {"select": []}, ConfigurationError, "no parameter"),
    "outputs": (lambda: nn.Linear(4, 2), X, {"outputs": "trace"}, ValueRangeError, "'sum'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_kernels_that_are_not_defined_are_refused(case):
    make, x, options, error, message = REFUSED[case]
    with as_users_run_it(), pytest.raises(error, match=message):
        empirical_ntk(make(), x, **options)


def test_anil_without_a_linear_layer_is_refused_everywhere():
    module = nn.LayerNorm(4).double()
    for call in (
        lambda: empirical_last_layer_ntk(module, X.double()),
        lambda: meta_ntk(module, [task(k=4)], "anil"),
        lambda: empirical_meta_ntk(module, [task(k=4)], InnerLoop(0.1, 1, "anil")),
    ):
        with pytest.raises(UnsupportedModelError, match=r"linear layer|Linear"):
            call()
    with as_users_run_it(), pytest.raises(ValueRangeError, match="'maml' or 'anil'"):
        meta_ntk(module, [task(k=4)], "reptile")


def test_the_real_metantk_of_a_module_is_that_of_the_same_pure_network():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    one = task(k=2)
    inner = InnerLoop(0.05, 2)
    kernel = empirical_meta_ntk(module, [one], inner)
    values = dict(module.named_parameters())
    rows = []
    for output in range(one.query_y.numel()):  # plain autograd through a hand-written inner loop
        theta = dict(values)
        for _ in range(inner.tau):
            residual = torch.func.functional_call(module, theta, (one.support_x,)) - one.support_y
            gradient = torch.autograd.grad(
                residual.square().sum() / 2, list(theta.values()), create_graph=True
            )
            theta = {n: t - inner.lam0 * g for (n, t), g in zip(theta.items(), gradient, strict=True)}
        value = torch.func.functional_call(module, theta, (one.query_x,)).reshape(-1)[output]
        rows.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(values.values()))]))
    rows = torch.stack(rows)
    assert relative(kernel, rows @ rows.T) < 1e-13


def test_images_go_through_the_metantk_of_a_convolutional_network():
    module = MODULES["groupnorm"]().double()
    labels = torch.eye(3).double()
    one = Task(images(3), labels, images(3, seed=1), labels)
    phi = meta_ntk(module, [one])
    assert phi.shape == (9, 9)
    assert float(torch.linalg.eigvalsh(phi)[0]) > -1e-12 * float(phi.trace())


def test_the_closed_form_is_taken_for_networks_of_equation_16_unless_the_generic_method_is_asked_for(
    monkeypatch,
):
    net = mt.FullyConnected(3, 8, 2, 2)
    params, x = net.initialise(mt.generator(0, "init")), torch.ones(2, 3, dtype=torch.float64)
    calls = []
    closed = empirical.fully_connected_gradients
    monkeypatch.setattr(empirical, "fully_connected_gradients", lambda *a: calls.append(a) or closed(*a))
    generic = mt.empirical_ntk(net.model, x, params=params, method="generic")
    assert not calls
    assert relative(mt.empirical_ntk(net.model, x, params=params), generic) < 1e-12
    assert len(calls) == 1


def test_no_more_samples_than_a_chunk_are_differentiated_together(monkeypatch):
    sizes, plain = [], torch_jacobian.vmap
    monkeypatch.setattr(
        torch_jacobian, "vmap", lambda *a, **b: sizes.append(b.get("chunk_size")) or plain(*a, **b)
    )
    network, x = nn.Linear(3, 2).double(), torch.ones(5, 3, dtype=torch.float64)
    model, params = mt.from_module(network)
    empirical.jacobian(model, params, x, chunk=2)
    assert sizes[0] == 2


def test_empty_parameters_are_left_out_unless_there_are_no_others():
    network = Model(lambda p, x: x @ p["w"] + p["none"].sum())
    params = {"w": draw(4, 2), "none": torch.zeros(0, dtype=torch.float64)}
    checked = checked_network(network, params, [draw(3, 4)], KernelOptions())
    assert checked.names(None) == {"w"}
    assert checked.names(["w", "none"]) == {"w"}
    assert checked.names(["none"]) == {"none"}


def test_images_of_two_sizes_are_tested_apart():
    def network(params, x):
        return (x.mean((2, 3)) @ params["w"]).tanh()

    params, one, two = {"w": draw(3, 2)}, draw(4, 3, 5, 6), draw(2, 3, 4, 4)
    kernel = empirical_ntk(Model(network), one, two, params=params)
    slopes = [1 - network(params, x) ** 2 for x in (one, two)]
    inputs = one.mean((2, 3)) @ two.mean((2, 3)).T
    exact = torch.einsum("nk,mk,nm->nkm", *slopes, inputs)[..., None] * torch.eye(2)[:, None]
    torch.testing.assert_close(kernel, exact.reshape(8, 4))
    summed = empirical_ntk(Model(network), one, two, params=params, outputs="sum")
    torch.testing.assert_close(summed, exact.sum((1, 3)))


def test_a_norm_without_parameters_that_takes_the_batch_for_an_axis_is_refused():
    norm = nn.LayerNorm((3, 4), elementwise_affine=False)
    module = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)).double()
    assert module(draw(3, 4)).shape == (3, 2)
    with pytest.raises(NetworkError, match="fails on these samples"):
        empirical_ntk(module, draw(3, 4))


def test_layers_are_looked_at_for_modules_alone_and_not_by_the_generic_method(monkeypatch):
    module, x = nn.Linear(4, 2).double(), draw(3, 4)
    expected = empirical_ntk(module, x)

    def fail(*_):
        raise AssertionError("the layers are looked at")

    monkeypatch.setattr(empirical, "layerwise_kernels", fail)
    model, params = mt.from_module(module)
    assert relative(empirical_ntk(module, x, method="generic"), expected) < 1e-13
    assert relative(empirical_ntk(model, x, params=params), expected) < 1e-13
    with pytest.raises(AssertionError, match="looked at"):
        empirical_ntk(module, x)
