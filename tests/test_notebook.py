"""In a notebook, long work shows a bar; elsewhere it shows nothing. No kernel runs here: IPython is a stand-in."""

import io
import sys
import types
from io import StringIO

import pytest
import torch

import mamltheory as mt
from experiments import __main__ as shell
from mamltheory import fewshot, nas, notebook
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas import searches
from mamltheory.runtime.progress import stage
from tests.experiments.tiny import nearly_done

DATA = glyph_data(16, 5, 2, 2, samples_per_class=4)
SMALL = nas.NetworkSettings(channels=2, cells=3, stem_stride=4)


class Shown(list):
    """What a front end was told to show, as text and as HTML: one entry a display or update."""

    def display(self, content, raw, display_id):
        assert raw
        assert display_id is True
        self.append(content)
        return types.SimpleNamespace(update=lambda content, **_: self.append(content))


@pytest.fixture
def kernel(monkeypatch):
    """A process that looks like the kernel of a notebook; bars appear at once, and follow every step."""
    shown = Shown()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = shown.display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook, "SECONDS_BETWEEN_UPDATES", 0.0)
    monkeypatch.setattr(notebook, "PATIENCE", 0.0)
    monkeypatch.setattr(notebook, "time", types.SimpleNamespace(monotonic=lambda: 0.0))
    return shown


def texts(shown):
    return [content["text/plain"] for content in shown]


def test_a_bar_counts_says_what_is_left_and_ends():
    content = notebook._content("train", 3, 12, 6.0, "loss <1", "")
    assert content["text/plain"] == "train: 3/12, 0:06, 0:18 left  loss <1"
    assert 'value="3" max="12"' in content["text/html"]
    assert "loss &lt;1" in content["text/html"]
    assert "value" not in notebook._content("train", 3, None, 6.0, "", "")["text/html"]
    assert (
        notebook._content("train", 12, 12, 7200.0, "", "done")["text/plain"] == "train: done, 12/12, 2:00:00"
    )


def test_short_work_shows_no_bar_and_long_work_one(kernel):
    now = [0.0]
    for seconds, count in ((0.1, 0), (2.0, 4)):
        with notebook.notebook_bar("work", 3, 1.0, lambda: now[0]) as advance:
            for _ in range(3):
                now[0] += seconds
                advance()
        assert len(kernel) == count
    assert texts(kernel)[0] == "work: 1/3, 0:02, 0:04 left"
    assert texts(kernel)[-1] == "work: done, 3/3, 0:06"


def test_a_failure_ends_the_bar(kernel):
    def fails_in_the_second_step():
        with notebook.notebook_bar("work", 3) as advance:
            advance()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails_in_the_second_step()
    assert texts(kernel)[-1] == "work: stopped, 1/3, 0:00"


def test_the_search_shows_a_bar(kernel, monkeypatch):
    monkeypatch.setattr(searches, "SearchState", lambda _: nearly_done())
    monkeypatch.setattr(searches, "_rounds", lambda *_: 2)
    nas.search(DATA, "random", size=SMALL)
    assert texts(kernel)[1] == "search: 1/2, 0:00, 0:00 left  round 1: 3 operators left, 19 stay"
    assert texts(kernel)[-1] == "search: done, 2/2, 0:00  round 2: 1 operators left, 18 stay"


def test_training_and_evaluation_show_bars(kernel):
    genotype = nas.published_genotypes()[0].genotype
    config = fewshot.TrainConfig(epochs=2, milestones=(1,), batch_size=10, flip=False)
    network = fewshot.train(DATA, genotype, config, size=SMALL)
    assert texts(kernel)[1].startswith("train, epochs: 1/2, 0:00, 0:00 left  loss ")
    assert texts(kernel)[-1].startswith("train, epochs: done, 2/2")
    kernel.clear()
    fewshot.evaluate(network, DATA, ways=2, queries=2, tasks=3)
    assert texts(kernel)[-1] == "evaluate, batches of images: done, 2/2, 0:00"


def test_meta_training_shows_a_bar_with_the_loss(kernel):
    line = mt.Model(lambda params, x: x @ params["w"])
    x, y = torch.ones(1, 1), torch.full((1, 1), 2.0)
    mt.train(line, {"w": torch.zeros(1, 1)}, [mt.Task(x, y, x, y)], mt.InnerLoop(0.5), eta0=1.0, steps=2)
    assert texts(kernel)[1] == "train: 1/3, 0:00, 0:00 left  loss 0.5"
    assert texts(kernel)[-1].startswith("train: done, 3/3")


def test_the_stages_of_commands_show_bars_and_no_lines(kernel, capsys, monkeypatch):
    command = shell.COMMANDS["doctor"]

    def work(_):
        with stage("some work", 2) as advance:
            advance(note="half")
            advance()

    monkeypatch.setattr(type(command), "load", lambda _: work)
    assert shell.main(["doctor"]) == 0
    assert texts(kernel)[0] == "some work: 0/2, 0:00"
    assert texts(kernel)[-1] == "some work: done, 2/2, 0:00"
    assert capsys.readouterr().err == ""
    stream = io.StringIO()
    with stage("some work", 2, stream) as advance:
        advance(2)
    assert stream.getvalue().startswith("some work: 0/2\n")


@pytest.mark.parametrize("loaded", [True, False])
def test_outside_a_notebook_nothing_is_shown(monkeypatch, capsys, loaded):
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    if loaded:  # IPython in a terminal: there is a shell, and no kernel
        ipython = types.ModuleType("IPython")
        ipython.get_ipython = types.SimpleNamespace
        monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not notebook.in_notebook()
    with notebook.notebook_bar("work", 3, 0.0) as advance:
        advance(3, "note")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("terminal", "quiet"), [(True, False), (True, True), (False, False)])
def test_long_work_shows_lines_on_a_terminal_unless_the_caller_does(monkeypatch, terminal, quiet):
    stream, now = StringIO(), [0.0]
    stream.isatty = lambda: terminal
    monkeypatch.setattr(notebook.sys, "stderr", stream)
    monkeypatch.setattr(notebook.time, "monotonic", lambda: now[0])
    for seconds in (0.1, 1.5):
        with notebook.shown_progress("work", 3, quiet=quiet) as advance:
            for i in range(3):
                now[0] += seconds
                advance(note=f"part {i}")
    lines = ["work: 2/3, 0:03, 0:02 left  part 1", "work: 3/3, 0:04  part 2"]
    assert stream.getvalue().splitlines() == (lines if terminal and not quiet else [])
