"""A folder is written to when it is empty or holds what this program left there, and to no other."""

import json

import numpy as np
import pytest

from experiments.plotting import figure, save_figure
from mamltheory.errors import ConfigurationError
from mamltheory.runtime.checkpoint import save_state
from mamltheory.runtime.folders import check_results_folder, check_run_folder, check_writable
from mamltheory.runtime.runlog import open_run


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["notes.txt", "genotype.json", "metrics.jsonl", "cells.png", "shards", "results.json", "a/b"]
)
@pytest.mark.parametrize("text", ["", "{}", '{"command": 3}', '{"data": 1}', "[[[["])
def test_a_run_never_begins_among_other_files_and_leaves_them_as_they_are(tmp_path, name, text):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    before = content(tmp_path)
    refused = pytest.raises(ConfigurationError, match=f"holds '{name.split('/')[0]}'.* choose another --out")
    with refused:
        open_run(tmp_path, "search", {"width": 3}, 0, {})
    with refused:
        check_results_folder(tmp_path, "drift")
    assert content(tmp_path) == before


def test_a_run_of_another_command_is_no_place_for_results_and_its_own_is(tmp_path):
    open_run(tmp_path, "correlation", {"width": 3}, 0, {}).close()
    (tmp_path / "measurements").mkdir()
    check_results_folder(tmp_path, "correlation")
    for check in (check_results_folder, check_run_folder):
        with pytest.raises(ConfigurationError, match="a run of 'correlation', not of 'drift'"):
            check(tmp_path, "drift")


def test_hidden_files_inputs_named_by_the_settings_and_what_a_crash_left_are_no_strangers(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.7.tmp").touch()
    (tmp_path / "cell.json").write_text("{}")
    save_state(tmp_path / "state", {}, {})
    with pytest.raises(ConfigurationError, match=r"cell\.json"):
        open_run(tmp_path, "train", {"genotype": tmp_path / "other.json"}, 0, {})
    open_run(tmp_path, "train", {"genotype": tmp_path / "cell.json"}, 0, {}).close()


def draw(folder, name):
    with figure() as (drawing, axes):
        axes[0, 0].plot(np.arange(3))
        return save_figure(drawing, name, {"x": [1]}, folder)


def test_figures_and_tables_share_a_folder_and_no_file_beside_them_is_overwritten(tmp_path):
    draw(tmp_path, "drift_sphere")
    (tmp_path / "drift_sphere.md").touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "demo_table.json").write_text(json.dumps({"seed": 0, "rows": []}))
    check_results_folder(tmp_path, "bounds")
    with pytest.raises(ConfigurationError, match="holds"):
        check_run_folder(tmp_path, "search")
    (tmp_path / "drift_sphere.json").rename(tmp_path / "bounds_sphere.json")
    with pytest.raises(ConfigurationError, match=r"(bounds|drift)_sphere"):
        check_results_folder(tmp_path, "bounds")


def test_looking_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []
