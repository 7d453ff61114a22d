"""A score and a search space of one's own on the command line: from the search to the evaluation, and mistakes."""

import dataclasses
import json

import pytest

from experiments import __main__ as shell
from experiments.config import read_config, settings_from
from experiments.examples import own_score
from experiments.examples.own_space import space
from experiments.genotypes import read_genotype
from experiments.named import space_of
from experiments.pages.results import read_results
from experiments.pages.searches import search_account
from experiments.search import search
from experiments.search.settings import Search
from experiments.training.trained import read_training
from mamltheory import nas
from mamltheory.errors import CheckpointError
from mamltheory.fewshot import load
from mamltheory.nas.space import Space
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import SIZE, files, search_settings

pytestmark = pytest.mark.usefixtures("few_images")
SPACE, SCORE = "experiments.examples.own_space:space", "experiments.examples.own_score:score"
ONE_NODE = Space(space.operations, nodes=1, reduce=("max_pool_3x3BN", "conv_7x7"))
HERE = f"{__name__}:ONE_NODE"


def flags(**settings):
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def result(folder):
    return [(folder / name).read_bytes() for name in ("genotype.json", "search.json")]


@pytest.fixture(scope="module")
def searched_own(tmp_path_factory, few_images):  # noqa: ARG001
    """The folder of a search in an own space by an own score."""
    folder = tmp_path_factory.mktemp("own") / "search"
    few = {"ways": 2, "tasks": 1, "repeats": 1}
    assert shell.main(["search", *flags(space=HERE, score=SCORE, out=folder, **SIZE | few)]) == 0
    return folder


def test_the_run_records_both_and_continues_from_the_record(searched_own, tmp_path, capsys):
    config = read_run(searched_own)["config"]
    assert (config["space"], config["score"], config["regions"]) == (HERE, SCORE, False)
    assert json.loads((searched_own / "genotype.json").read_text())["space"] == HERE
    assert read_genotype(searched_own / "genotype.json").space == ONE_NODE
    title = json.loads((searched_own / "cells.json").read_text())["data"]
    assert len(title["scores"]) == 4
    assert {"trace.png", "cells.png"} <= files(searched_own)
    finished = settings_from(Search, read_config(searched_own, "search"))
    assert search.search_cells(finished) == read_genotype(searched_own / "genotype.json")
    assert "already finished" in capsys.readouterr().out

    settings = dataclasses.replace(finished, out=tmp_path)
    with ctrl_c_during(search, "score_chunk", 2):
        search.search_cells(settings)
    with counted(search, "score_chunk") as calls:
        search.search_cells(settings)
    assert calls
    assert result(tmp_path) == result(searched_own)


def test_the_found_cell_is_trained_evaluated_and_loaded_in_its_space(searched_own, tmp_path, capsys):
    cell, trained = searched_own / "genotype.json", tmp_path / "train"
    short = {"genotype": cell, "epochs": 1, "batch_size": 16, "milestones": "", "out": trained}
    line = flags(**SIZE | short)
    line.remove("")
    assert shell.main(["train", *line]) == 0
    few = {"ways": 3, "queries": 2, "tasks": 3, "shots": 1, "device": "cpu"}
    assert shell.main(["evaluate", *flags(checkpoint=trained, out=tmp_path / "evaluate", **few)]) == 0
    assert "accuracy" in read_run(tmp_path / "evaluate")["results"]
    genotype = read_training(trained).genotype
    assert genotype == read_genotype(cell) == load(trained, space=ONE_NODE).genotype
    with pytest.raises(CheckpointError, match="give that space as well"):
        load(trained)
    capsys.readouterr()


def test_sampled_cells_of_one_size_are_ranked_by_an_own_score_as_from_python(tmp_path, few_images):
    settings = search_settings(tmp_path, space=SPACE, score=SCORE, parameters="3000:8000", samples=3)
    search.search_cells(settings)
    found = json.loads((tmp_path / "search.json").read_text())
    rows = found["cells"]
    assert found["cell"] == max(range(3), key=lambda i: rows[i]["score"])
    assert {row["regions"] for row in rows} == {None}
    page = str(search_account(read_results(tmp_path), "search"))
    assert all(word in page for word in ("own score", "the least sum of ranks is the best"))
    assert found["genotype"]["space"] == SPACE
    assert read_genotype(tmp_path / "genotype.json").space == space
    size = nas.NetworkSettings(SIZE["channels"], SIZE["cells"], stem_stride=SIZE["stem_stride"])
    few = {"ways": 2, "tasks": 1, "repeats": 1, "parameters": (3000, 8000), "samples": 3}
    same = nas.search(few_images, score=own_score.score, space=space, size=size, **few)
    assert [cell.score for cell in same.sampled] == sorted((row["score"] for row in rows), reverse=True)
    assert same.genotype == read_genotype(tmp_path / "genotype.json")
    assert all(isinstance(value, float) for value in same.scores)


MODULE = """
from torch import nn
from mamltheory.nas import OwnScore, Space
calls = []
def fails(network, tasks): raise RuntimeError("of mine")
def nan(network, tasks): return float("nan")
def rows(network, tasks): return network(tasks[0].query_x)
def too_large(channels, stride, norm): return nn.Conv2d(channels, channels, 3)
shrinking = Space({"too_large": too_large})
class Residual(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1, stride)
    def forward(self, x): return self.layer(x) * 2
def residual(channels, stride, norm): return Residual(channels, stride)
residuals = Space({"residual": residual})
number = 3
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"score": "mine"}, "score is 'mine': expected MODULE:NAME"),
        ({"space": "mine:"}, "space is 'mine:': expected MODULE:NAME"),
        ({"score": "no_such_module:score"}, "cannot find 'no_such_module:score' (ModuleNotFoundError"),
        ({"score": "own_parts:nothing"}, "cannot find 'own_parts:nothing' (AttributeError"),
        ({"score": "own_parts:number"}, "'own_parts:number' is a int: expected a function"),
        ({"score": "own_parts:OwnScore"}, "'own_parts:OwnScore' is a type: expected a function"),
        ({"space": "own_parts:fails"}, "'own_parts:fails' is a function: expected a mamltheory.nas.Space"),
        ({"space": "own_parts:shrinking"}, "the operation 'too_large' with stride 1 makes (3, 8, 6, 6)"),
        ({"space": "own_parts:residuals", "protocol": "stable"}, "or take estimator='leave-one-out'"),
        ({"score": "broken_parts:score"}, "cannot find 'broken_parts:score' ("),
        ({"score": "own_parts:fails"}, "the score fails fails: RuntimeError: of mine"),
        ({"score": "own_parts:nan"}, "the score nan returns nan"),
        ({"score": "own_parts:rows"}, "the score rows returns a Tensor of shape (2, 2)"),
        ({"score": SCORE, "method": "te-nas"}, "method te-nas takes no --score"),
        (
            {"score": SCORE, "estimator": "gradient"},
            "estimator is gradient: with --score it is leave-one-out",
        ),
        ({"space": SPACE, "method": "halving", "warm_start": "glyphs"}, "leave it out with --space"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(tmp_path, monkeypatch, capsys, line, message):
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "broken_parts.py").write_text("def score(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    assert shell.main(["search", *flags(out=out, ways=2, tasks=1, **SIZE | line)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert message in shown
    assert shown.count("\n") == 1
    assert not out.exists() or not files(out)


def test_a_genotype_whose_space_is_gone_says_so(tmp_path, capsys):
    cell = tmp_path / "cell.json"
    content = {"space": "no_such_module:space", "normal": [], "reduce": []}
    cell.write_text(json.dumps(content))
    assert shell.main(["train", *flags(genotype=cell, out=tmp_path / "train", **SIZE)]) == 2
    shown = capsys.readouterr().err
    assert "cannot find 'no_such_module:space'" in shown
    assert "in the folder that the search ran in" in shown
    assert space_of(SPACE) == space
