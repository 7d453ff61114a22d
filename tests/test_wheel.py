"""The wheel, built without a network and unpacked elsewhere: one top-level name, and its commands from any folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.version import Version

from tests.oldest_versions import oldest_versions

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("mamltheory", "experiments", "pyproject.toml", "README.md", "LICENSE")


def run_in(folder, unpacked, *arguments):
    """Run a Python command line in ``folder``, with the unpacked wheel on the path and no other copy of the package."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(unpacked), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The file of a wheel that is built from a copy of the sources."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    flags = "--no-deps --no-build-isolation --no-index --disable-pip-version-check -q -w built"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", *flags.split()], cwd=copy, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (built,) = (copy / "built").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """The folder into which the wheel is unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """A user's folder with a package ``experiments`` that has nothing to do with this one."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").write_text("raise RuntimeError('the wrong package')\n")
    return tmp_path


def test_the_wheel_claims_one_name_and_holds_what_a_user_needs(wheel):
    import mamltheory

    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
        (entry,) = (archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    info = f"mamltheory-{mamltheory.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"mamltheory", info}
    assert {"mamltheory/py.typed", f"{info}/licenses/LICENSE"} <= set(names)
    assert not [name for name in names if "test" in name.lower() or "ledger" in name]
    sources = [path for folder in ("mamltheory", "experiments") for path in (ROOT / folder).rglob("*.py")]
    assert len([name for name in names if name.endswith(".py")]) == len(sources)
    assert f"\nVersion: {mamltheory.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "mamltheory = mamltheory.experiments.__main__:run_program" in entry


def test_the_installed_command_answers_from_any_folder(unpacked, elsewhere):
    script = "import sys; from mamltheory.experiments.__main__ import run_program; sys.exit(run_program())"
    for command in (("-c", script), ("-m", "mamltheory")):
        done = run_in(elsewhere, unpacked, *command, "serch")
        assert (done.returncode, done.stderr) == (
            2,
            "error: unknown command 'serch': did you mean 'search'?\n",
        )
        done = run_in(elsewhere, unpacked, *command, "search", "--preset", "nope")
        assert done.returncode == 2
        assert done.stderr.startswith("error: unknown preset 'nope' for search: expected ")
    shown = run_in(elsewhere, unpacked, "-m", "mamltheory", "--help").stdout
    assert shown.startswith("usage: mamltheory COMMAND [flags]")
    assert "experiments" not in shown


def test_the_oldest_versions_have_every_dependency_and_are_not_newer_than_the_tested_ones():
    oldest = {name: Version(version) for name, version in oldest_versions().items()}
    assert {"torch", "filelock", "pytest"} <= set(oldest)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, tested = line.partition("==")
        if name in oldest:
            assert oldest[name] <= Version(tested), name


def test_every_command_of_the_wheel_can_be_loaded(unpacked, elsewhere):
    script = (
        "from mamltheory.experiments.commands import COMMANDS; [c.load() for c in COMMANDS.values()]; import sys; "
        f"assert sys.modules['mamltheory'].__file__.startswith({str(unpacked)!r}); assert 'experiments' not in "
        "sys.modules; print(len(COMMANDS))"
    )
    done = run_in(elsewhere, unpacked, "-c", script)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 15


def test_the_wheel_searches_trains_evaluates_and_predicts_from_another_folder(unpacked, elsewhere):
    cell = ["--genotype", "runs/search/genotype.json"]
    smoke = ["--preset", "glyph-smoke"]
    lines = [
        ["search", *smoke, "--method", "random", "--jobs", "2", "--out", "runs/search"],
        ["train", *smoke, *cell, "--epochs", "1", "--milestones", "--out", "runs/train"],
        ["evaluate", "--checkpoint", "runs/train", "--tasks", "5", "--out", "runs/evaluate"],
        ["convergence", "--widths", "32", "64", "--steps", "5", "--seeds", "2", "--out", "runs/convergence"],
    ]
    for line in lines:
        done = run_in(elsewhere, unpacked, "-m", "mamltheory", *line)
        assert done.returncode == 0, done.stderr
        assert "python -m experiments" not in done.stdout
    assert (elsewhere / "runs" / "convergence" / "convergence_sphere.png").exists()
