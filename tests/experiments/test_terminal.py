"""Whatever a command is started in: a reader who leaves, an encoding without letters, a notebook's backend."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import __main__ as shell
from experiments.commands import COMMANDS, Command
from experiments.settings import Doctor
from experiments.terminal import for_terminal, one_line, reader_has_left

ROOT = Path(__file__).resolve().parents[2]


def started(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        pytest.param(["search", "--help"], marks=pytest.mark.slow),
        pytest.param(["cell"], marks=pytest.mark.slow),
    ],
)
def test_a_reader_who_has_left_ends_a_command_quietly(arguments):
    with started(*arguments) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_no_output_or_no_room_for_it_is_no_traceback():
    with Path("/dev/full").open("wb") as full:
        line = [sys.executable, "-m", "experiments", "--help"]
        done = subprocess.run(line, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr
    closed = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m experiments --help >&-"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.parametrize(
    ("backend", "encoding", "arguments"),
    [
        ("module://matplotlib_inline.backend_inline", "ascii", ["cell"]),
        pytest.param(
            "nonsense", "cp1252", ["cell", "mini-8-2", "--out", "/dev/null"], marks=pytest.mark.slow
        ),
        pytest.param("", "cp1252", ["search", "--help"], marks=pytest.mark.slow),
    ],
)
def test_any_backend_and_any_encoding_are_taken(backend, encoding, arguments):
    environment = {"MPLBACKEND": backend, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    with started(*arguments, **environment) as process:
        output, error = process.communicate(timeout=60)
    refused = "/dev/null" in arguments  # a device is no place for a file: nothing takes its place
    assert (process.returncode, error.count(b"\n")) == ((2, 1) if refused else (0, 0))
    assert refused or output.decode(encoding)


@pytest.fixture
def planted(monkeypatch):
    """A command "planted" that runs the given function."""

    def plant(function):
        monkeypatch.setattr(Command, "load", lambda _: function)
        monkeypatch.setitem(COMMANDS, "planted", Command(Doctor, "nowhere:at_all", "Tests"))

    return plant


def test_what_an_encoding_lacks_is_written_as_an_escape(planted, monkeypatch):
    for encoding in ("ascii", "cp1252", "utf-8"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        planted(lambda _: sys.stdout.write("λτ ≤ ∞, a name \udcff, ± 1") and None)
        assert shell.main(["planted"]) == 0
        sys.stdout.flush()
        text = written.getvalue().decode(encoding)
        assert r"\udcff" in text
        assert ("λτ ≤ ∞" in text) == (encoding == "utf-8")


def test_the_backend_of_the_caller_is_his_own_again(planted, monkeypatch):
    seen = []
    planted(lambda _: seen.append(os.environ["MPLBACKEND"]))
    monkeypatch.setenv("MPLBACKEND", "inline")
    assert shell.main(["planted"]) == 0
    assert (seen, os.environ["MPLBACKEND"]) == (["agg"], "inline")
    monkeypatch.delenv("MPLBACKEND")
    assert shell.main(["planted"]) == 0
    assert "MPLBACKEND" not in os.environ


def test_another_broken_pipe_is_an_error_of_the_system(planted, capsys):
    def breaks(_):
        raise BrokenPipeError(32, "Broken pipe")

    planted(breaks)
    assert not reader_has_left()
    assert shell.main(["planted"]) == 2
    assert capsys.readouterr().err.startswith("error: Broken pipe")


def test_messages_are_one_line_whatever_names_they_hold():
    assert one_line("a\nb\x1b[31m\udcff é λ") == r"a\nb\x1b[31m\udcff é λ"


DRAWS = [name for name, command in COMMANDS.items() if command.results]


@pytest.mark.parametrize("name", DRAWS)
def test_a_command_that_draws_refuses_a_folder_with_other_files_before_its_work(
    name, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Command, "load", lambda _: lambda _: pytest.fail("work was begun"))
    (tmp_path / "genotype.json").write_text("mine")
    assert shell.main([name, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "holds 'genotype.json'" in error
    assert [path.name for path in tmp_path.iterdir()] == ["genotype.json"]


def test_commands_that_draw_share_a_folder_and_find_their_own_results_there_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["glyphs", "--classes", "1", "--samples", "1"]
    for more in ([], ["--out", "runs/glyphs"], ["--split", "test"]):
        assert shell.main([*line, *more]) == 0
    assert {path.name for path in Path("runs").iterdir()} == {"glyphs"}
    assert json.loads(Path("runs/glyphs/glyphs_test.json").read_text())["figure"] == "glyphs_test"


def test_a_search_refuses_a_folder_with_other_files(tmp_path, few_images, capsys):  # noqa: ARG001
    (tmp_path / "genotype.json").write_text("mine")
    size = "--image-size 16 --channels 4 --cells 3 --stem-stride 4 --device cpu --ways 2 --tasks 1"
    assert shell.main(["search", *size.split(), "--out", str(tmp_path)]) == 2
    assert "holds 'genotype.json'" in capsys.readouterr().err
    assert (tmp_path / "genotype.json").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["genotype.json"]


TABLE = """# Title

| score | 1-shot | less that of **parameters** |
|---|---|---|
| log\\*2 | 0.20 [-0.04, 0.43] | - |
| b | 0.3 | 0.1 |

A sentence of eight words that is wrapped.
"""


def test_a_table_is_aligned_where_it_fits_and_told_row_by_row_where_it_does_not():
    assert for_terminal(TABLE, 60).splitlines()[2:6] == [
        "score  1-shot              less that of parameters",
        "─────  ──────────────────  ───────────────────────",
        "log*2  0.20 [-0.04, 0.43]  -",
        "b      0.3                 0.1",
    ]
    narrow = for_terminal(TABLE, 30).splitlines()
    assert narrow[2:5] == ["log*2", "    1-shot 0.20 [-0.04, 0.43];", "    less that of parameters -"]
    assert narrow[-2:] == ["A sentence of eight words that", "is wrapped."]
    assert max(map(len, narrow)) <= 30


def test_what_goes_into_a_file_stays_markdown():
    assert for_terminal(TABLE) == TABLE
