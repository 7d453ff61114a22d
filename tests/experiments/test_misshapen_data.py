"""Folders and modules that cannot be read are named before torch is loaded, as by the code that reads them."""

import subprocess
import sys
from pathlib import Path

from experiments import __main__ as shell

ROOT = Path(__file__).resolve().parents[2]
MISSHAPEN = {
    "notes": ("holds notes.txt", ["train", "--network", "resnet12", "--data"]),
    "loose": ("holds images: sort them into a folder for each class", ["search", "--data"]),
    "bare": ("looks like splits without classes", ["search", "--data"]),
    "flat": ("looks like classes without splits (3 folders)", ["meta-train", "--split", "val", "--data"]),
    "checked": ("looks like classes without splits (3 folders)", ["data", "check"]),
    "two": ("2 classes cannot be split into three parts", ["search", "--split", "60/20/20", "--data"]),
    "splits": ("is split already: leave out --split 60/20/20", ["search", "--split", "60/20/20", "--data"]),
    "unfinished": ("of which test is missing", ["search", "--data"]),
    "hollow": ("holds no images, and 1 .txt", ["search", "--data"]),
}
"""Folders with files of names alone: the mistake, and a command that reads the folder."""
FILES = {
    "notes": ("notes.txt",),
    "loose": ("1.png",),
    "bare": ("train/1.png", "val/1.png"),
    "flat": ("a/1.png", "b/1.png", "c/1.png"),
    "checked": ("a/1.png", "b/1.png", "c/1.png"),
    "two": ("a/1.png", "b/1.png"),
    "splits": ("train/a/1.png", "val/b/1.png", "test/c/1.png"),
    "unfinished": ("train/a/1.png", "val/b/1.png"),
    "hollow": ("train/a/notes.txt", "val/b/1.png", "test/c/deep/1.png"),
}
ELSEWHERE = (
    ["search", "--score", "no_such_module:score"],
    ["search", "--space", "experiments.examples.no_such_module:space"],
    ["search", "--space", "experiments.program.no_such_module:space"],
    ["search", "--mirrors"],
    ["search", "--split", "60/20/20"],
    ["meta-train", "--class-split", "60/20/20"],
    ["data", "pictures", "--no-mirrors"],
)


def misshapen_lines(folder):
    """The command lines on the folders, which are made."""
    for name, files in FILES.items():
        for file in files:
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).touch()
    lines = [[*line, str(folder / name)] for name, (_, line) in MISSHAPEN.items()]
    return [[*line, "--out", str(folder / "out")] for line in (*lines, *ELSEWHERE)]


def test_misshapen_data_and_modules_that_are_not_there_are_named_before_torch_is_loaded(tmp_path):
    lines = misshapen_lines(tmp_path)
    code = f"""
import sys, experiments.__main__ as m
codes = [m.main(line) for line in {lines!r}]
sys.exit(set(codes) != {{2}} or "torch" in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    told = done.stderr.splitlines()
    assert len(told) == len(lines)
    for (words, _), text in zip(MISSHAPEN.values(), told, strict=False):
        assert words in text


def test_misshapen_data_and_absent_modules_have_the_message_of_the_code_that_reads_them(
    tmp_path, capsys, monkeypatch
):
    early, late = [], []
    lines = misshapen_lines(tmp_path)
    for told in (early, late):
        for line in lines:
            assert shell.main(line) == 2
            told.append(capsys.readouterr().err.splitlines()[-1])
        monkeypatch.setattr(shell, "check_inputs", lambda _: None)
    # The code that reads also names the images that it cannot read.
    assert [each.startswith(first) for first, each in zip(early, late, strict=True)] == [True] * len(lines)
