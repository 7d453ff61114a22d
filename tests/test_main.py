"""``python -m mamltheory`` without an installation: the commands of the clone, or one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def started(where, folder):
    """``python -m mamltheory --help`` with the package of ``where`` alone, without the editable installs."""
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]; "
    code += "import runpy; sys.argv[1:] = ['--help']; runpy.run_module('mamltheory', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(where)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_clone_that_is_not_installed_has_its_commands(tmp_path):
    done = started(ROOT, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m experiments COMMAND")


def test_a_package_without_commands_says_what_to_type_in_one_line(tmp_path):
    shutil.copytree(
        ROOT / "mamltheory", tmp_path / "mamltheory", ignore=shutil.ignore_patterns("__pycache__")
    )
    done = started(tmp_path, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: this copy of mamltheory has no commands: type pip install .")
    assert done.stderr.count("\n") == 1
