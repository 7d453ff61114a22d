"""The command line: help at once, presets < file < flags, mistakes in one line before any computation."""

import dataclasses
import importlib.util
import json
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as shell
from experiments.commands import COMMANDS, Command
from experiments.config import settings_from
from experiments.inputs import check_inputs
from experiments.search.settings import SEARCH, Search
from experiments.settings import Doctor
from experiments.studies.settings import Correlation
from experiments.theory.settings import Drift
from experiments.training.settings import EVALUATE, TRAIN, Evaluate, Train
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.fewshot.glyphs import GLYPH_SETS
from mamltheory.fewshot.pictures import PICTURE_SETS
from mamltheory.fewshot.places import EMBEDDED
from mamltheory.runtime.interrupt import Interrupted, check_interrupted
from mamltheory.runtime.runlog import open_run

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "matplotlib", "rich")
SMALL = "--image-size 16 --search-batch-size 8"
MISSING = (
    ["search", "--data", "no/such/folder", "--out", "no/run"],
    ["search", "--parameters", "no/cell.json", "--out", "no/run", "--image-size", "16"],
    f"search --method halving --parameters 1:2 --warm-start no/table.json --out no/run {SMALL}".split(),
    ["data", "check", "no/such/folder"],
    ["train", "--genotype", "no/cell.json", "--out", "no/run"],
    ["evaluate", "--checkpoint", "no/run", "--out", "no/evaluation"],
    ["predict", "--images", "no/images", "--checkpoint", ".", "--out", "no/run"],
    ["correlation", "--table", "no/table.json", "--out", "no/run", "--runs", "no/run"],
    ["report", "no/run"],
    ["search", "--out", "/proc/foo"],
)
"""Command lines that name a folder or a file that is not there; the last one cannot be written to."""


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "words", ["search --method halving", "train", "meta-train", "evaluate", "tabulate", "drift"]
)
def test_a_folder_of_other_files_is_refused_before_torch_and_images_are_loaded(tmp_path, words):
    (tmp_path / "mine.txt").touch()
    code = (
        "import sys; from experiments.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *words.split(), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 2, found.stderr
    assert "holds 'mine.txt', which is no result of" in found.stderr


@pytest.fixture
def planted(monkeypatch):
    """A command "planted" that runs the given function on search settings."""

    def plant(function):
        command = Command(Search, "nowhere:at_all", "Tests", SEARCH)
        monkeypatch.setattr(Command, "load", lambda _: function)
        monkeypatch.setitem(COMMANDS, "planted", command)

    return plant


def cpu_seconds_of(*arguments):
    """A command line and the least CPU seconds that three processes took for it."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return done, min(times)


def test_a_mistake_is_answered_before_torch_is_loaded():
    done, seconds = cpu_seconds_of("search", "--preset", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: unknown preset 'nope' for search: expected glyph-smoke")
    assert seconds < 0.3
    mistakes = (["serch"], ["train", "--epochs", "0"], ["search", "--config", "none.json"], *MISSING)
    code = f"""
import sys, experiments.__main__ as m
codes = [m.main(line) for line in {mistakes!r}]
sys.exit(set(codes) != {{2}} or any(name in sys.modules for name in {HEAVY!r}))"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


def test_a_missing_folder_is_answered_within_half_a_second():
    done, seconds = cpu_seconds_of("search", "--data", "no/such/folder", "--out", "no/run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no folder no/such/folder: give the path")
    assert seconds < 0.5


@pytest.mark.parametrize("line", MISSING[:-1], ids=" ".join)
@pytest.mark.usefixtures("few_images")
def test_what_is_missing_is_named_in_the_words_of_the_code_that_reads_it(line, capsys, monkeypatch):
    assert shell.main(line) == 2
    early = capsys.readouterr().err.split(": expected")[0]
    monkeypatch.setattr(shell, "check_inputs", lambda _: None)
    assert shell.main(line) == 2
    assert capsys.readouterr().err.split(": expected")[0].removesuffix("/support") == early


def test_a_run_that_has_begun_and_a_study_that_reads_no_images_may_lack_their_data(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        check_inputs(Search(data="no/such/folder", out=tmp_path))
    check_inputs(Correlation(data="no/such/folder", table="glyphs", out=tmp_path, runs=tmp_path))
    (tmp_path / "run.json").touch()
    check_inputs(Search(data="no/such/folder", out=tmp_path))


def test_the_names_of_embedded_data_are_those_that_are_drawn():
    assert set(EMBEDDED) == {*GLYPH_SETS, *PICTURE_SETS}


def test_the_settings_of_a_command_are_printed_as_its_configuration_takes_them(tmp_path, capsys):
    line = ["search", "--preset", "mini-5", "--protocol", "stable", "--seed", "3", "--out", "/sys/x"]
    assert shell.main([*line, "--print-config"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["repeats"] == 16
    (tmp_path / "mine.json").write_text(text)
    same = shell.resolve("search", ["--config", str(tmp_path / "mine.json")])
    assert same == shell.resolve("search", line[1:]).resolved()
    for name, command in COMMANDS.items():
        assert shell.main([name, "--print-config"]) == 0
        assert settings_from(command.settings, json.loads(capsys.readouterr().out)) is not None


def test_help_answers_within_half_a_second_and_loads_nothing_heavy():
    done, seconds = cpu_seconds_of("--help")
    assert seconds < 0.5
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert command.summary in done.stdout
    code = "import sys, experiments.__main__ as m; m.main(['--help']); "
    code += f"sys.exit(any(name in sys.modules for name in {HEAVY}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_shows_every_setting_with_its_meaning(name):
    done = run(name, "--help")
    assert done.returncode == 0
    for field in dataclasses.fields(COMMANDS[name].settings):
        assert f"--{field.name.replace('_', '-')}" in done.stdout
    assert ("--preset" in done.stdout) == bool(COMMANDS[name].presets)
    assert done.stdout.count("Seed of") <= 1


def test_examples_of_the_overview_are_command_lines_that_parse():
    for example, _ in shell.EXAMPLES:
        name, *flags = example.split()
        if "--help" not in flags and "--config" not in flags:
            assert isinstance(shell.resolve(name, flags), COMMANDS[name].settings)


def test_flags_override_the_file_and_the_file_overrides_the_preset(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"tasks": 7, "shots": 9, "inner_time": "inf"}))
    resolved = shell.resolve("search", ["--preset", "mini-8", "--config", str(file), "--shots", "2"])
    assert (resolved.cells, resolved.kernel, resolved.ridge) == (8, "anil", 1e-5)
    assert (resolved.tasks, resolved.inner_time, resolved.shots) == (7, math.inf, 2)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_record_of_a_run_gives_back_the_same_settings(tmp_path, name):
    for number, original in enumerate([COMMANDS[name].settings(), *COMMANDS[name].presets.values()]):
        folder = tmp_path / str(number)
        open_run(folder, name, original, seed=0, environment={})
        assert shell.resolve(name, ["--config", str(folder / "run.json")]) == original
        assert shell.resolve(name, ["--config", str(folder)]) == original


def test_the_record_of_another_command_is_refused(tmp_path):
    open_run(tmp_path, "train", Train(), seed=0, environment={})
    with pytest.raises(ConfigurationError, match="run of 'train', not of 'search'"):
        shell.resolve("search", ["--config", str(tmp_path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"shot": 3}, "did you mean 'shots'"),
        ({"zzz": 3}, "expected one of data"),
        ({"shots": "3"}, "expected int"),
        ({"shots": True}, "expected int"),
        ({"shots": 1.5}, "expected int"),
        ({"ridge": "much"}, "expected float"),
        ({"ridge": True}, "expected float"),
        ({"kernel": "svm"}, "expected one of"),
        ({"out": 3}, "expected Path"),
        ({"two_inputs": 1}, "expected bool"),
        ({"shots": 0}, "expected at least 1"),
        ([], "expected a JSON object"),
        ({"command": "search"}, "'config'"),
    ],
)
def test_a_wrong_configuration_file_is_refused_with_a_hint(tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=message):
        shell.resolve("search", ["--config", str(file)])


@pytest.mark.parametrize(("name", "only"), Search.RETIRED.items())
def test_a_retired_setting_is_read_with_its_only_value_and_refused_with_others(tmp_path, name, only):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"shots": 3, name: only}))
    assert shell.resolve("search", ["--config", str(file)]).shots == 3
    file.write_text(json.dumps({"shots": 3, name: "other"}))
    with pytest.raises(
        ConfigurationError, match=f"'{name}' is 'other', but this version lacks it and always"
    ):
        shell.resolve("search", ["--config", str(file)])
    with pytest.raises(ConfigurationError, match="unknown setting"):
        settings_from(Evaluate, {"heads": 1})


def test_lists_and_absent_values_are_checked_item_by_item():
    assert settings_from(Drift, {"widths": [3, 5]}).widths == (3, 5)
    assert settings_from(Doctor, {"data": None}).data is None
    assert settings_from(Doctor, {"data": "x"}).data == Path("x")
    for content in ({"widths": 3}, {"widths": [3, "5"]}, {"widths": [5, 3]}, {"widths": []}):
        with pytest.raises(ConfigurationError, match="widths"):
            settings_from(Drift, content)


@pytest.mark.parametrize(
    "line",
    [
        "search --kernel ntk --ridge 0.1",
        "search --inner-time nan",
        "search --ways 1",
        "search --stem-stride 3",
        "train --epochs 10",
        "train --milestones 20 10",
        "train --learning-rate 0",
        "evaluate --C -1",
        "demo --budget 0",
        "drift --widths 8 8",
        "search --preset mini",
        "demo --preset mini-5",
        "search --config absent.json",
    ],
)
def test_wrong_settings_are_one_line_and_code_2(line, capsys):
    assert shell.main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_unknown_commands_and_flags_are_answered_with_the_nearest():
    done = run("serch")
    assert (done.returncode, done.stderr) == (2, "error: unknown command 'serch': did you mean 'search'?\n")
    done = run("search", "--kernal", "maml")
    assert done.returncode == 2
    assert "--kernel" in done.stderr


def test_errors_of_a_command_are_one_line_and_a_traceback_only_on_request(planted, capsys):
    def fails(_):
        raise DataError("there is no data")

    planted(fails)
    assert shell.main(["planted"]) == 2
    assert capsys.readouterr().err == "error: there is no data\n"
    with pytest.raises(DataError):
        shell.main(["planted", "--debug"])


def test_a_mistake_in_the_program_is_never_hidden(planted):
    planted(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shell.main(["planted"])


def test_the_commands_result_is_the_exit_code_and_it_gets_the_resolved_settings(planted):
    seen = []
    planted(seen.append)
    assert shell.main(["planted", "--seed", "5"]) == 0
    assert seen == [Search(seed=5)]
    planted(lambda _: 3)
    assert shell.main(["planted"]) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_says_how_to_go_on(planted, capsys, number, code):
    def stopped(_):
        signal.raise_signal(number)
        try:
            check_interrupted()
        except Interrupted as stop:
            raise stop.saved("python -m experiments planted") from None

    planted(stopped)
    assert shell.main(["planted"]) == code
    assert "saved; continue with: python -m experiments planted" in capsys.readouterr().err


def test_a_stopped_command_without_a_saved_state_says_so(planted, capsys):
    def stopped(_):
        signal.raise_signal(signal.SIGINT)
        check_interrupted()

    planted(stopped)
    assert shell.main(["planted", "--seed", "3"]) == 130
    error = capsys.readouterr().err
    assert "start again with: python -m experiments planted --seed 3" in error
    assert "saved;" not in error


def test_doctor_reports_versions_device_and_data(tmp_path):
    (tmp_path / "train_images.npz").touch()
    done = run("doctor", "--device", "cpu", "--data", str(tmp_path))
    assert done.returncode == 0
    for word in ("python", "torch", "device", "asked for", "glyphs", "pictures", "train_images.npz"):
        assert word in done.stdout
    missing = run("doctor", "--data", str(tmp_path / "absent"))
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: there is no data folder")


def _exists(command):
    module = command.function.split(":")[0]
    parent = ROOT / Path(*module.split(".")).parent
    return parent.is_dir() and importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if _exists(command)])
def test_the_function_of_a_command_is_there(name):
    assert callable(COMMANDS[name].load())


@pytest.mark.paper(
    "Sec. 6.1: kernels of the search", "Sec. 6.1: optimisation", "App. E: batch size", "App. E: inner time"
)
def test_the_papers_presets_hold_the_papers_numbers():
    rows = {name: (s.kernel, s.inner_time, s.ridge, s.cells) for name, s in SEARCH.items()}
    assert rows["mini-5"] == ("maml", math.inf, 1e-3, 5)
    assert rows["mini-8"] == ("anil", 1.0, 1e-5, 8)
    assert rows["tiered-5"] == ("maml", math.inf, 1e-3, 5)
    assert rows["tiered-8"] == ("anil", math.inf, 1e-3, 8)
    rows = {name: (t.batch_size, t.learning_rate, t.epochs, t.milestones) for name, t in TRAIN.items()}
    assert rows["mini-5"] == (64, 0.02, 100, (60, 80))
    assert rows["mini-8"] == (40, 0.02, 100, (60, 80))
    assert rows["tiered-5"] == (64, 0.01, 60, (30, 40, 50))
    assert rows["tiered-8"] == (56, 0.01, 60, (30, 40, 50))


def test_the_presets_of_one_experiment_follow_on_each_other():
    for name, train in TRAIN.items():
        search = SEARCH[name]
        assert train.genotype == search.out / "genotype.json"
        assert (train.data, train.cells) == (search.data, search.cells)
    for name, evaluate in EVALUATE.items():
        train = TRAIN[name.removesuffix(f"-{evaluate.shots}-shot")]
        assert (evaluate.checkpoint, evaluate.data) == (train.out, None), "the data are those of the training"
