"""Settings from a TOML file: the values, checks and messages of JSON."""

import json
import math

import pytest

from experiments import __main__ as shell
from mamltheory.errors import ConfigurationError


def test_a_toml_file_gives_the_settings_of_the_same_json(tmp_path):
    content = {
        "tasks": 7,
        "inner_time": "inf",
        "kernel": "anil",
        "two_inputs": True,
        "out": "runs/x",
        "ridge": 1e-5,
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    lines = [
        "# mine",
        "tasks = 7",
        "inner_time = inf",
        "kernel = 'anil'",
        "two_inputs = true",
        "out = 'runs/x'",
    ]
    (tmp_path / "a.toml").write_text("\n".join([*lines, "ridge = 1e-5", ""]))
    json_file, toml_file = (
        shell.resolve("search", ["--preset", "mini-8", "--config", str(tmp_path / name), "--shots", "2"])
        for name in ("a.json", "a.toml")
    )
    assert toml_file == json_file
    assert (toml_file.tasks, toml_file.inner_time, toml_file.cells) == (7, math.inf, 8)
    (tmp_path / "b.toml").write_text("widths = [32, 64]\n")
    assert shell.resolve("drift", ["--config", str(tmp_path / "b.toml")]).widths == (32, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shot = 3", "did you mean 'shots'"),
        ("shots = '3'", "expected int"),
        ("shots = inf", "expected int"),
        ("shots = 2026-01-01", "expected int"),
        ("[search]\nshots = 3", "unknown setting 'search'"),
        ("shots = 0", "expected at least 1"),
        ("shots: 3", r"cannot read the configuration .*mine.toml: it is not TOML \(Expected '='.* line 1"),
        ("shots = 3\nshots = 4", "is not TOML .*overwrite"),
        ("shots = " + "[" * 9999, "is nested too deep|is not TOML"),
        ("command = 'train'", "run of 'train', not of 'search'"),
    ],
)
def test_a_wrong_toml_file_is_refused_as_json_is(tmp_path, text, message):
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        shell.resolve("search", ["--config", str(file)])
