"""The check of a GPU: rehearsed on the fake device, with stages that fail and hang, and without any device."""

import importlib
import json
import math
import re
import tomllib
from functools import partial
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from experiments import __main__ as shell
from experiments.gpu_check import check, process, settings
from experiments.gpu_check.agreement import compared
from experiments.gpu_check.machine import Machine
from experiments.gpu_check.settings import STAGES, CheckStage
from mamltheory.runtime.folders import check_results_folder
from tests.experiments.gpu_check import planted

CHEAP = ("device", "batches", "convolutions", "search")
CUDA = torch.device("cuda", 0)


def lines_of(name, card):
    """The lines of a stage on the fake device, in this process."""
    module, function = STAGES[name].function.split(":")
    return list(getattr(importlib.import_module(module), function)(Machine(CUDA, card, 30.0)))


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.parametrize("card", ["fake"], indirect=True)
def test_a_stage_runs_on_the_fake_device_and_claims_no_speed(name, card):
    lines = lines_of(name, card)
    assert lines
    assert [line for line in lines if line.good is False] == []
    timed = [line.value for line in lines if re.search(r"^(ms|s,|images|GiB|%)", line.unit)]
    assert all(value is None for value in timed)
    assert timed or name in ("device", "convolutions")


def test_every_stage_has_its_function_and_all_together_have_ten_minutes():
    for stage in STAGES.values():
        module, function = stage.function.split(":")
        assert callable(getattr(importlib.import_module(module), function))
    assert sum(stage.share for stage in STAGES.values()) == 600


@pytest.mark.parametrize("card", ["fake"], indirect=True)
def test_differences_errors_and_results_that_stayed_on_the_cpu_are_faults(card):
    def cases(device):
        near = {"right": 1.0, "wrong": 1.5, "not a number": math.nan}
        values = near if device == "cuda:0" else dict.fromkeys(near, 1.0)
        found = {name: partial(torch.full, (2,), value, device=device) for name, value in values.items()}
        return {**found, "on the CPU": partial(torch.ones, 1), "fails": lambda: 1 / 0}

    found = {line.what: line for line in compared(Machine(CUDA, card), cases, 0.1)}
    assert {name: line.good for name, line in found.items()} == {name: name == "right" for name in found}
    assert len(found) == 5
    assert found["wrong"].value == pytest.approx(0.5)
    assert found["fails"].value == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("card", ["fake"], indirect=True)
def test_little_memory_is_rehearsed(card):
    machine = Machine(CUDA, card)
    make = lambda: torch.ones(100, device="cuda", dtype=torch.uint8)  # noqa: E731
    assert machine.peak(make) == 100
    with machine.only(60), pytest.raises(torch.OutOfMemoryError):
        make()
    with machine.only(100):
        make()


def plant(monkeypatch, **functions):
    """Stages in the place of all others, with seconds of ten minutes."""
    stages = {
        name: CheckStage(name, f"{planted.__name__}:{function}", share)
        for name, (function, share) in functions.items()
    }
    for module in (settings, check):
        monkeypatch.setattr(module, "STAGES", stages)


@pytest.mark.slow
def test_stages_that_fail_and_hang_are_named_and_the_others_go_on(monkeypatch, tmp_path, capsys):
    plant(monkeypatch, broken=("fails", 400.0), stuck=("hangs", 1.0), sound=("passes", 199.0))
    assert shell.main(["gpu-check", "--device", "fake", "--out", str(tmp_path)]) == 1
    record = json.loads((tmp_path / "gpu_fake.json").read_text())["data"]
    broken, stuck, sound = record["stages"].values()
    assert broken["ended"] == "failed with status 1: RuntimeError: this is planted"
    assert [line["what"] for line in broken["lines"]] == ["a line before the end"]
    assert stuck["ended"].startswith("killed after its")
    assert stuck["limit"] < 10 < broken["limit"] < sound["limit"] < 600
    assert (sound["ended"], len(sound["lines"]), record["rehearsal"]) == ("well", 1, True)
    assert "Traceback" in (tmp_path / "gpu_fake.log").read_text()
    check_results_folder(tmp_path, "gpu-check")
    text = (tmp_path / "gpu_fake.md").read_text()
    assert "nothing here is a figure of a GPU" in text
    assert text.count("RuntimeError: this is planted") == 1
    told = capsys.readouterr().out
    assert "broken" in told
    assert "killed after" in told
    assert "a rehearsal" in told


def test_without_a_card_one_line_names_the_rehearsal(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert shell.main(["gpu-check", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "--device fake" in told
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(process, "ROOT", tmp_path)
    assert shell.main(["gpu-check", "--device", "fake", "--out", str(tmp_path / "out")]) == 2
    assert "run the command in a checkout" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["--stages nothing", "--device cpu", "--minutes 0"])
def test_wrong_settings_are_refused(line, capsys):
    assert shell.main(["gpu-check", *line.split()]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_wheels_are_the_installed_versions_of_all_dependencies(tmp_path, capsys):
    assert shell.main(["gpu-check", "--wheels", "--out", str(tmp_path / "out")]) == 0
    rows = [row for row in capsys.readouterr().out.splitlines() if not row.startswith("#")]
    found = dict(row.split("==") for row in rows)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    needed = {re.match(r"[\w-]+", each).group() for each in project["dependencies"]}
    assert needed < found.keys()
    assert {"sympy", "contourpy"} <= found.keys()  # of torch and matplotlib
    assert not {"pytest", "mamltheory"} & found.keys()
    assert found["numpy"] == version("numpy")
    assert found["torch"] == version("torch").partition("+")[0]


@pytest.mark.slow
def test_the_whole_check_is_rehearsed(tmp_path):
    status = shell.main(["gpu-check", "--device", "fake", "--minutes", "60", "--out", str(tmp_path)])
    stages = json.loads((tmp_path / "gpu_fake.json").read_text())["data"]["stages"]
    assert {name: stage["ended"] for name, stage in stages.items()} == dict.fromkeys(STAGES, "well")
    assert [line for stage in stages.values() for line in stage["lines"] if line["good"] is False] == []
    assert status == 0
