"""Every test runs with one thread, deterministic algorithms, and examples drawn from a fixed seed."""

import os
import random

import hypothesis
import pytest
import torch

from tests.fake_cuda import fake_cuda
from tests.ledger import plugin as ledger_plugin
from tests.ledger.plugin import (  # noqa: F401 - hooks and a fixture
    measured,
    pytest_configure,
    pytest_runtest_setup,
    pytest_sessionfinish,
)

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("exploring", deadline=None)
hypothesis.settings.register_profile(  # of a failing test nothing is asked but that it fails
    "mutants", deadline=None, derandomize=True, phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate)
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser):
    ledger_plugin.pytest_addoption(parser)
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run modules, and the tests of each, in random order"
    )


def pytest_collection_modifyitems(config, items):
    """The order depends on the seed alone, so that all worker processes agree on it."""
    seed = config.getoption("--shuffle")
    if seed is not None:
        rng = random.Random(seed)
        files = sorted({item.path for item in items})
        place = {path: rng.random() for path in files}
        items.sort(key=lambda item: (place[item.path], rng.random()))


@pytest.fixture(autouse=True, scope="session")
def _one_deterministic_thread():
    """Bits depend on the number of threads, so there is one; nothing without a deterministic form may run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def _global_state_stays_as_it_was():
    """Tests cannot reach each other through torch's global generator or the default dtype."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # torch's layers draw their first weights from it, whoever replaces them later
        yield
    assert torch.get_default_dtype() == torch.float32, "the default dtype was changed"


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.cuda)])
def card(request):
    """A CUDA device: one that computes on the CPU, or that of the machine for tests marked ``cuda``."""
    if request.param == "fake":
        with fake_cuda() as fake:
            yield fake
    elif torch.cuda.is_available():
        yield None
    else:
        pytest.skip("this machine has no CUDA device")
