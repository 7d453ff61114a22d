"""Networks that keep what they compute, batches of one exact size, layers of size zero, tensors that are not dense."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import mamltheory as mt
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError
from tests.own_networks import Own, draw
from tests.reference.kernels_autograd import ntk

INNER = mt.InnerLoop(0.001, 1)
METHODS = pytest.mark.parametrize("method", ["auto", "layerwise", "generic"])


class Product(nn.Module):
    """x (B A)ᵀ, whose product of weights is computed once and kept: in an attribute, a dict or a list."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(draw(6, 4, seed=1)), nn.Parameter(draw(2, 6, seed=2))
        self.where, self.kept, self.by_name, self.stack = where, None, {}, []

    def forward(self, x):
        if self.where == "dict":
            return x @ self.by_name.setdefault("product", self.b @ self.a).T
        if self.where == "list":
            self.stack = self.stack if self.stack else [self.b @ self.a]
            return x @ self.stack[0].T
        if self.kept is None:
            self.kept = self.b @ self.a
        return x @ self.kept.T


def plain(network):
    return Own(lambda m, x: x @ (m.b @ m.a).T, a=network.a, b=network.b)


def tasks(outputs=2, support=3):
    x, y = draw(5, 4), draw(5, outputs, seed=3)
    return [mt.Task(x, y, draw(support, 4, seed=4), draw(support, outputs, seed=5))]


@METHODS
@pytest.mark.parametrize("where", ["attribute", "dict", "list"])
def test_what_a_network_keeps_in_attributes_never_serves_other_weights(where, method):
    network, x = Product(where), draw(5, 4)
    expected = ntk(plain(network), x, x)
    torch.testing.assert_close(mt.empirical_ntk(network, x, method=method), expected, rtol=1e-12, atol=0)
    assert network.kept is None
    assert not network.by_name
    assert not network.stack


@pytest.mark.parametrize("where", ["attribute", "dict", "list"])
def test_training_a_network_that_keeps_a_product_of_weights_is_training_one_that_does_not(where):
    network = Product(where)
    trained = mt.train(network, None, tasks(), INNER, 1e-5, 3)
    expected = mt.train(plain(network), None, tasks(), INNER, 1e-5, 3)
    for name, value in expected.params.items():
        torch.testing.assert_close(trained.params[name], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize("where", ["attribute", "dict", "list"])
def test_a_cache_that_an_earlier_call_has_filled_is_refused(where):
    network, x = Product(where), draw(5, 4)
    network(x)
    with pytest.raises(UnsupportedModelError, match="earlier call of it has stored in an attribute"):
        mt.empirical_ntk(network, x)
    with pytest.raises(UnsupportedModelError, match="earlier call of it has stored in an attribute"):
        mt.meta_gradient(network, None, tasks(), INNER)


def test_a_tensor_that_is_kept_but_not_computed_with_does_no_harm():
    network = Own(lambda m, x: m.a(x), a=nn.Linear(4, 2).double())
    network.last = network(draw(5, 4))
    torch.testing.assert_close(mt.empirical_ntk(network, draw(5, 4)), ntk(network, draw(5, 4), draw(5, 4)))


def test_weights_that_torch_caches_are_refused():
    network, x = parametrizations.orthogonal(nn.Linear(4, 4)).double(), draw(5, 4)
    with parametrize.cached(), pytest.raises(ConfigurationError, match=r"parametrize\.cached\(\) keeps"):
        mt.empirical_ntk(network, x)
    torch.testing.assert_close(mt.empirical_ntk(network, x), ntk(network, x, x))


def crossed(m, x):
    """A product over the axis of length 3, which is that of the batch where three samples come."""
    left, right = m.a(x), m.b(x)
    axis = next(i for i, size in enumerate(left.shape) if size == 3)
    return torch.linalg.cross(left, right, dim=axis)


@pytest.mark.parametrize(
    "call",
    [
        lambda network: mt.meta_gradient(network, None, tasks(3), INNER),
        lambda network: mt.meta_loss(network, None, tasks(3), INNER),
        lambda network: mt.train(network, None, tasks(3), INNER, 0.01, 1),
        lambda network: mt.empirical_meta_ntk(network, tasks(3), inner=INNER),
        lambda network: mt.empirical_ntk(network, draw(3, 4)),
    ],
    ids=["meta_gradient", "meta_loss", "train", "empirical_meta_ntk", "empirical_ntk"],
)
def test_samples_that_mix_in_batches_of_one_size_alone_are_seen_in_a_batch_of_that_size(call):
    network = Own(crossed, a=nn.Linear(4, 3).double(), b=nn.Linear(4, 3).double())
    with pytest.raises(UnsupportedModelError, match="mixes samples"):
        call(network)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("which", "method"),
    [
        *(
            (which, "layerwise") for which in ("hidden layer of size 0", "input of size 0")
        ),  # parameters of layers
        *(
            (which, method)
            for which in ("hidden layer of size 0", "input of size 0", "empty parameter")
            for method in ("auto", "generic")
        ),
    ],
)
def test_weights_without_entries_add_nothing_to_a_kernel(which, method):
    network = {
        "hidden layer of size 0": lambda: nn.Sequential(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 2)),
        "input of size 0": lambda: Own(
            lambda m, x: m.a(x) + m.b(x[:, :0]), a=nn.Linear(4, 2), b=nn.Linear(0, 2)
        ),
        "empty parameter": lambda: Own(
            lambda m, x: m.a(x) + m.p.sum(), a=nn.Linear(4, 2), p=nn.Parameter(torch.zeros(0))
        ),
    }[which]().double()
    x = draw(5, 4)
    torch.testing.assert_close(mt.empirical_ntk(network, x, method=method), ntk(network, x, x))


@METHODS
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_network_without_outputs_is_refused(method):
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 0)).double()
    with pytest.raises(ShapeError, match="at least one"):
        mt.empirical_ntk(network, draw(5, 4), method=method)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_csr(),
        lambda x: torch.nested.nested_tensor(list(x)),
        lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    ],
    ids=["sparse", "compressed rows", "nested", "jagged"],
)
def test_tensors_that_are_not_dense_are_refused_by_kernels_and_tasks(change):
    x = draw(5, 4)
    with pytest.raises(ShapeError, match="expected a dense one"):
        mt.empirical_ntk(nn.Linear(4, 2).double(), change(x))
    with pytest.raises(ShapeError, match=r"query_x: .*expected a dense one"):
        mt.Task(change(x), draw(5, 2), x, draw(5, 2))
