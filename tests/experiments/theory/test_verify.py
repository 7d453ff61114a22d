"""``verify`` on the command line: a network by its name, tasks, a report with a verdict for every statement."""

import json

import pytest
import torch

from experiments import __main__ as shell
from experiments.theory import verify as command
from experiments.theory.settings import Verify
from mamltheory import Task
from mamltheory.errors import ConfigurationError
from tests.html_pages import Elements, fetched_by

NETWORK = "experiments.theory.example_networks:one_hidden_layer"
SMALL = {"network": NETWORK, "widths": (32, 256), "seeds": 2, "steps": 3, "shape": (4,), "lipschitz": False}


def two_tasks():
    """Tasks of one's own."""
    x, y = torch.eye(4), torch.tensor([[1.0], [-1.0]])
    return [Task(x[:2], y, x[2:], y)], [Task(x[2:], y, x[:2], y)]


def test_the_report_and_the_figure_say_what_is_printed(tmp_path, capsys):
    settings = Verify(**SMALL, out=tmp_path)
    assert command.verify_network(settings) == 0
    printed = capsys.readouterr().out
    report = (tmp_path / "verification.md").read_text()
    data = json.loads((tmp_path / "verification.json").read_text())["data"]
    assert (tmp_path / "verification.png").stat().st_size > 0
    assert data["scales"] == [32.0, 256.0]
    assert len(data["verdicts"]) == 5
    for verdict in data["verdicts"]:
        mark = command.MARKS[verdict["holds"]]
        assert verdict["text"].startswith(mark)
        line = next(line for line in report.splitlines() if line.startswith(f"| {verdict['statement']} |"))
        assert line == f"| {verdict['statement']} | **{mark}**{verdict['text'].removeprefix(mark)} |"
        assert verdict["text"] in printed
    assert "divided by l," in report
    assert shell.main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = " ".join(Elements(page).words)
    held = sum(verdict["holds"] is True for verdict in data["verdicts"])
    assert f"{held} of 5 statements hold" in words
    for verdict in data["verdicts"]:
        numbers = verdict["text"].removeprefix(command.MARKS[verdict["holds"]]).strip(" ,:")
        assert words.count(numbers) == 1, "the page says every verdict once"
        assert (f"{verdict['statement']}." in words or f"{verdict['statement']};" in words) is (
            verdict["holds"] is not True
        )
    assert page.count("data:image/png;base64") == 1
    assert fetched_by(page) == []


def test_tasks_of_ones_own_take_the_place_of_random_points():
    settings = Verify(**SMALL, tasks=f"{__name__}:two_tasks")
    build = command.function_of(NETWORK)
    tasks, held_out = command.tasks_of(settings, build)
    assert torch.equal(tasks[0].query_x, torch.eye(4)[:2])
    assert len(held_out) == 1
    random, others = command.tasks_of(Verify(**SMALL), build)
    assert (len(random), len(others)) == (2, 2)
    every = torch.cat([one.query_x for one in (*random, *others)])
    assert torch.allclose(every.norm(dim=1), torch.ones(8).double())


@pytest.mark.parametrize(
    "name", ["nothing", "no.such.module:build", f"{NETWORK}_", f"{NETWORK.split(':')[0]}:GROUPS"]
)
def test_a_name_that_is_no_function_is_refused(name):
    with pytest.raises(ConfigurationError, match=r"(?i)function"):
        command.function_of(name)
