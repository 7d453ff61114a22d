"""The hook to TensorBoard: numbers of every line as scalars, with a writer of our own in place of the package."""

import math
import sys
from types import SimpleNamespace

import pytest

from experiments.runs import opened_run
from experiments.search.settings import Search
from experiments.training.settings import Train
from mamltheory.errors import ConfigurationError
from mamltheory.runtime.runlog import read_metrics


class Writer:
    """Notes what it is given."""

    made = ()

    def __init__(self, folder):
        self.folder, self.scalars, self.flushed, self.closed = folder, [], 0, False
        Writer.made = (*Writer.made, self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


@pytest.fixture
def tensorboard(monkeypatch):
    """A package in the place of torch.utils.tensorboard."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    monkeypatch.setattr(Writer, "made", ())


@pytest.mark.usefixtures("tensorboard")
def test_every_number_of_a_line_is_a_scalar_at_its_step(tmp_path):
    settings = Train(out=tmp_path / "run", tensorboard=True)
    with opened_run("train", settings) as log:
        log.log(epoch=3, loss=0.5, accuracy=math.inf, names=["a"], note="b", good=True)
        log.log(
            round=1, reliability={"single": 0.25, "null": [0, 1], "agreement": {"tau": 0.75}}, failures={}
        )
        log.close()
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path / "run" / "tensorboard")
    assert writer.scalars == [
        ("loss", 0.5, 3),
        ("accuracy", math.inf, 3),
        ("reliability/single", 0.25, 1),
        ("reliability/agreement/tau", 0.75, 1),
    ]
    assert (writer.flushed, writer.closed) == (2, True)
    assert [line["loss"] for line in read_metrics(settings.out) if "loss" in line] == [0.5]


@pytest.mark.usefixtures("tensorboard")
def test_a_run_may_go_on_with_the_flag_and_without(tmp_path):
    for flag in (False, True, False):
        with opened_run("train", Train(out=tmp_path / "run", tensorboard=flag)) as log:
            log.log(epoch=1, loss=0.5)
            log.close()
    assert [len(writer.scalars) for writer in Writer.made] == [1]


def test_without_the_package_the_error_says_what_to_install_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(ConfigurationError, match=r"pip install 'mamltheory\[tensorboard\]'"),
        opened_run("train", Train(out=tmp_path / "run", tensorboard=True)),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_rounds_refuses_the_flag():
    assert Search(tensorboard=True).tensorboard
    with pytest.raises(ConfigurationError, match="has no rounds to log"):
        Search(method="halving", parameters="36000:42000", tensorboard=True)
