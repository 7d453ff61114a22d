import pytest
import torch
from torch import nn

from mamltheory import empirical_ntk, generator
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError, ValueRangeError
from tests.paper.cases import relative
from tests.reference.kernels_autograd import ntk
from tests.strategies import as_users_run_it


@pytest.fixture(autouse=True)
def _layers_may_draw_their_weights():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "inputs"), dtype=torch.float64)


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Centre(nn.Module):
    """Batch statistics in a layer of one's own."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return x - x.mean(0) + self.shift


class SequenceFirst(nn.Module):
    """A layer whose leading axis is as long as the batch, and is not the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return torch.tanh(self.layer(x.transpose(0, 1))).mean(0)


def test_an_axis_as_long_as_the_batch_is_not_taken_for_it():
    module, x = SequenceFirst().double(), draw(3, 3, 4)
    assert relative(empirical_ntk(module, x), ntk(module, x, x)) < 1e-13


X, IMAGES = torch.ones(3, 4) + torch.eye(3, 4), torch.ones(3, 4, 5, 5)
REFUSED = {
    "mixing": (Mixing, X, {}, UnsupportedModelError, "mixes samples"),
    "centred": (
        lambda: nn.Sequential(nn.Linear(4, 4), Centre(), nn.Linear(4, 3)),
        X,
        {},
        UnsupportedModelError,
        "single|mixes",
    ),
    "batch-norm": (
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        X,
        {},
        UnsupportedModelError,
        "'1'.*batch statistics",
    ),
    "strict": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
        X,
        {"method": "layerwise"},
        UnsupportedModelError,
        "method='auto'",
    ),
    "pure": (
        lambda: nn.Linear(4, 3),
        X,
        {"method": "fast"},
        ValueRangeError,
        "'generic'",
    ),
    "budget": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(54, 3)),
        IMAGES,
        {"memory": 1000},
        ConfigurationError,
        "module '0'.*memory=",
    ),
    "no-budget": (lambda: nn.Linear(4, 3), X, {"memory": 0}, ConfigurationError, "memory is 0"),
    "no-chunk": (lambda: nn.Linear(4, 3), X, {"chunk": 0}, ConfigurationError, "chunk is 0"),
    "integers": (lambda: nn.Linear(4, 3), X.long(), {}, ShapeError, "int64"),
    "tuple": (lambda: nn.LSTM(4, 3), X, {}, ShapeError, "× outputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_kernel_is_refused_with_the_module_and_the_remedy(case):
    make, x, options, error, message = REFUSED[case]
    with as_users_run_it(), pytest.raises(error, match=message):
        empirical_ntk(make(), x, **options)


def test_an_error_inside_the_network_leaves_it_as_it_was():
    class Failing(nn.Sequential):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("on purpose")

    module = Failing(nn.Linear(4, 3))
    before = dict(module.named_parameters())
    with pytest.raises(RuntimeError, match="on purpose"):
        empirical_ntk(module, X)
    assert all(before[name] is value for name, value in module.named_parameters())
    assert not module[0]._forward_hooks
