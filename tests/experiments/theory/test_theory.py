"""The theory commands: one sweep for three figures, resumable, the same in every order; and the checks."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.theory import checks, constants, convergence, drift, equivalence, sweep
from experiments.theory.settings import Convergence, Drift, Equivalence, Theory
from experiments.theory.tasks import SAMPLES, theory_tasks
from mamltheory.errors import ConfigurationError
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.stops import counted, ctrl_c_during

SMALL = {"widths": (8, 16, 32), "seeds": 2, "steps": 6, "dimension": 4, "task_count": 2, "jobs": 1}
COMMANDS = {
    "convergence": (convergence.plot_convergence, convergence.draw_convergence),
    "drift": (drift.plot_drift, drift.draw_drift),
    "equivalence": (equivalence.plot_equivalence, equivalence.draw_equivalence),
}


def small(folder, kind=Theory, **others):
    return kind(**SMALL | {"out": folder / "figures", "runs": folder / "runs"} | others)


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    calls = {}
    for name, kind in {"convergence": Convergence, "drift": Drift, "equivalence": Equivalence}.items():
        with counted(sweep, "measure_training") as measured:
            assert COMMANDS[name][0](small(folder, kind)) == 0
        calls[name] = len(measured)
    rows = sweep.run_sweep(small(folder), "drift").rows
    return folder, calls, rows


def figure_json(folder, name, tasks="sphere"):
    return json.loads((folder / "figures" / f"{name}_{tasks}.json").read_text())["data"]


def test_the_three_commands_train_every_network_once(swept):
    assert swept[1] == {"convergence": 6, "drift": 0, "equivalence": 0}


def test_every_command_leaves_its_figure_in_three_formats_and_writes_nowhere_else(swept):
    folder = swept[0]
    figures = {
        folder / "figures" / f"{name}_sphere.{end}" for name in COMMANDS for end in ("png", "pdf", "json")
    }
    run = sweep.sweep_folder(small(folder))
    runs = [run, run.parent / (run.name.replace("-t6", "") + "-constants")]
    assert files(folder) == figures | {one / name for one in runs for name in ("run.json", "metrics.jsonl")}
    assert all(path.stat().st_size > 0 for path in figures)
    assert [read_run(one)["status"] for one in runs] == ["finished", "finished"]
    for one in runs:
        spent = [line["cpu_seconds"] for line in read_metrics(one)]
        assert read_run(one)["results"] == {"runs": 6, "cpu_seconds": pytest.approx(sum(spent))}
        assert min(spent) > 0


def test_the_residuals_drawn_are_those_measured_and_lie_below_the_bound(swept):
    folder = swept[0]
    data = figure_json(folder, "convergence")
    rows = read_metrics(sweep.sweep_folder(small(folder)))
    for width, median, largest in zip(
        data["widths"], data["median_relative_residual"], data["largest_relative_residual"], strict=True
    ):
        residuals = np.array([row["residuals"] for row in rows if row["width"] == width])
        relative = residuals / residuals[:, :1]
        np.testing.assert_array_equal(median, np.median(relative, axis=0))
        np.testing.assert_array_equal(largest, relative.max(axis=0))
    bound = np.array(data["bound"])
    assert bound.shape == (7,)
    assert bound[0] == 1
    assert (np.array(data["median_relative_residual"]) <= bound * (1 + 1e-12)).all()
    assert 0 < data["limit_rate"] < data["bound_rate"] < 1
    np.testing.assert_allclose(bound[1:] / bound[:-1], data["bound_rate"])
    assert np.array(data["share_below_bound"]).shape == (3,)


def test_drift_and_equivalence_record_every_value_with_its_slope(swept):
    folder = swept[0]
    rows = {(row["width"], row["seed"]): row for row in read_metrics(sweep.sweep_folder(small(folder)))}
    pairs = [[(width, seed) for seed in range(2)] for width in SMALL["widths"]]
    data = figure_json(folder, "drift")
    assert set(data) == {
        "widths",
        "bound widths",
        *drift.MOVEMENTS,
        *drift.DRIFT,
        *drift.DEVIATION,
        "bound (29)",
        "bound (30)",
    }
    for name in (*drift.MOVEMENTS, *drift.DRIFT, *drift.DEVIATION):
        assert data[name]["values"] == [[rows[pair][name] for pair in line] for line in pairs]
        assert data[name]["low"] <= data[name]["slope"] <= data[name]["high"]
    assert (np.array(data["path_length"]["values"]) >= np.array(data["movement"]["values"])).all()
    data = figure_json(folder, "equivalence")
    assert set(data) == {"widths", *sweep.CLOSED_FORMS}
    for name in sweep.CLOSED_FORMS:
        assert data[name]["values"] == [
            [rows[pair]["test_deviations"][name] for pair in line] for line in pairs
        ]
    own, without = (np.array(data[name]["rms"]) for name in ("empirical kernel", "limit kernel, no f_0"))
    assert (own < without).all()


def test_the_verdict_comes_first_and_the_names_are_those_of_the_legend(swept, capsys):
    record = sweep.sweep_folder(small(swept[0])) / "run.json"
    before = record.read_bytes()
    assert equivalence.plot_equivalence(small(swept[0], Equivalence)) == 0
    assert record.read_bytes() == before
    verdict, *details = [line for line in capsys.readouterr().out.splitlines() if "wrote" not in line]
    data = figure_json(swept[0], "equivalence")
    falls = data["empirical kernel"]["high"] < 0 and data["limit kernel"]["high"] < 0
    assert equivalence.equivalence_verdict(data) == (falls, verdict.removesuffix(":"))
    names = [label.replace("$", "") for label in equivalence.LABELS.values()]
    assert [line.strip().startswith(f"{name}: ") for name, line in zip(names, details, strict=True)] == [
        True
    ] * 4


def test_a_figure_records_what_decides_its_numbers_and_not_where_they_lie(swept):
    folder = swept[0]
    config = json.loads((folder / "figures" / "drift_sphere.json").read_text())["config"]
    assert set(config) == {field.name for field in dataclasses.fields(Theory)} - {"out", "runs", "jobs"}
    assert config["widths"] == [8, 16, 32]


@pytest.mark.parametrize("call", [1, 4])
def test_an_interrupted_sweep_goes_on_and_equals_the_uninterrupted_one(swept, tmp_path, call):
    settings = small(tmp_path)
    with ctrl_c_during(sweep, "measure_training", call) as stopped:
        sweep.run_sweep(settings, "drift")
    folder = sweep.sweep_folder(settings)
    assert str(folder) in stopped.value.continue_with
    assert read_run(folder)["status"] == "interrupted"
    assert len(read_metrics(folder)) == call, "the run in which the signal came is kept"
    with counted(sweep, "measure_training") as measured:
        again = sweep.run_sweep(settings, "drift")
    assert len(measured) == 6 - call
    assert again.rows == swept[2]
    assert read_run(folder)["status"] == "finished"


def test_a_line_cut_short_by_a_crash_is_measured_again(swept, tmp_path):
    settings = small(tmp_path, widths=(8, 16))
    first = sweep.run_sweep(settings, "drift").rows
    file = sweep.sweep_folder(settings) / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    with counted(sweep, "measure_training") as measured:
        assert sweep.run_sweep(settings, "drift").rows == first
    assert len(measured) == 1
    assert first == swept[2][:4]


def test_more_seeds_and_widths_add_to_a_sweep_and_change_none_of_it(swept, tmp_path):
    narrow = sweep.run_sweep(small(tmp_path, widths=(16, 32)), "drift").rows
    with counted(sweep, "measure_training") as measured:
        rows = sweep.run_sweep(small(tmp_path, widths=(8, 16, 32)), "drift").rows
    assert len(measured) == 2
    assert rows == swept[2]
    assert rows[2:] == narrow


def test_a_failed_run_is_recorded_as_failed(tmp_path, monkeypatch):
    settings = small(tmp_path)
    monkeypatch.setattr(sweep, "measure_training", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep.run_sweep(settings, "drift")
    assert read_run(sweep.sweep_folder(settings))["status"] == "failed"


def test_settings_that_give_other_numbers_have_another_run_folder():
    other = {
        "depth": 3,
        "activation": "relu",
        "steps": 7,
        "tau": 3,
        "algorithm": "anil",
        "tasks": "glyphs",
        "task_count": 4,
        "dimension": 9,
        "seed": 1,
    }
    same = {"widths": (8, 9), "seeds": 3, "jobs": 7, "out": Theory().runs}
    assert set(other) | set(same) | {"runs"} == {field.name for field in dataclasses.fields(Theory)}
    folders = [
        sweep.sweep_folder(dataclasses.replace(Theory(), **{key: value})) for key, value in other.items()
    ]
    assert len({*folders, sweep.sweep_folder(Theory())}) == len(other) + 1
    for key, value in same.items():
        assert sweep.sweep_folder(dataclasses.replace(Theory(), **{key: value})) == sweep.sweep_folder(
            Theory()
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "others",
    [{"tasks": "glyphs"}, pytest.param({"algorithm": "anil", "activation": "relu"}, marks=pytest.mark.slow)],
)
def test_glyph_tasks_and_anil_are_measured_and_drawn(tmp_path, others):
    settings = small(tmp_path, widths=(8, 16), steps=3, **others)
    result = sweep.run_sweep(settings, "drift")
    for _, draw in COMMANDS.values():
        draw(result)
    assert len(list((tmp_path / "figures").glob(f"*_{settings.tasks}.png"))) == 3
    data = convergence.convergence_numbers(result)
    assert (data["median_relative_residual"][:, 1:] < 1).all()
    drifts = drift.drift_numbers(result, constants.constants(settings))
    assert (drifts["kernel_drift"]["rms"] > 0).all()
    assert (drifts["kernel_drift"]["values"] < drifts["bound (30)"]["values"]).all()


@pytest.mark.paper("Assumption 1")
@pytest.mark.parametrize("kind", ["sphere", "glyphs"])
def test_tasks_lie_on_the_sphere_and_held_out_ones_share_no_input(kind):
    settings = Theory(tasks=kind, task_count=2, dimension=5)
    seen, held_out = theory_tasks(settings)
    assert (len(seen), len(held_out)) == (2, 2)
    inputs = [x for task in (*seen, *held_out) for x in (*task.query_x, *task.support_x)]
    assert len(inputs) == 4 * 2 * SAMPLES
    assert all(abs(float(x.norm()) - 1) < 1e-12 for x in inputs)
    assert len({tuple(x.tolist()) for x in inputs}) == len(inputs)
    again = theory_tasks(settings)
    assert all((a.query_x == b.query_x).all() for a, b in zip(seen, again[0], strict=True))


def test_a_run_folder_with_another_kind_of_run_is_refused(swept, tmp_path):
    settings = small(tmp_path)
    folder = sweep.sweep_folder(settings)
    folder.mkdir(parents=True)
    record = read_run(sweep.sweep_folder(small(swept[0])))
    (folder / "run.json").write_text(json.dumps(record | {"command": "search"}))
    with pytest.raises(ConfigurationError, match="run of 'search'"):
        sweep.run_sweep(settings, "drift")


@pytest.mark.slow
def test_two_processes_measure_the_same_bits_as_one(swept, tmp_path):
    rows = sweep.run_sweep(small(tmp_path, jobs=2), "drift").rows
    assert rows == swept[2]


@pytest.fixture(scope="module")
def identities():
    return checks.run_checks(0)


def test_every_identity_holds_to_rounding_and_its_wrong_form_does_not(identities):
    assert len({check.statement for check in identities}) == len(identities) == 6
    for check in identities:
        assert check.error < checks.TOLERANCE, check
        assert check.wrong_error > 1e-4, check
        assert check.holds


def test_the_report_has_a_line_for_every_identity(identities, monkeypatch, capsys):
    monkeypatch.setattr(checks, "run_checks", lambda _: identities)
    checks.print_checks(0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(identities)
    assert all("holds" in line for line in lines)


def test_a_check_without_an_error_or_without_a_telling_wrong_formula_does_not_hold():
    good = checks.Check("s", 1e-14, "w", 1e-2)
    assert good.holds
    for error, wrong in ((1e-9, 1e-2), (float("nan"), 1e-2), (1e-14, 1e-5), (1e-14, float("nan"))):
        assert not dataclasses.replace(good, error=error, wrong_error=wrong).holds


@pytest.mark.parametrize(("name", "statement"), [("meta_ntk", "MAML"), ("adapted_output", "ANIL's output")])
def test_a_sabotaged_formula_fails_the_report(monkeypatch, capsys, name, statement):
    right = getattr(checks, name)
    training = checks.Check("the linearised network's training", 0.0, "nothing", 1.0)  # what takes longest
    monkeypatch.setattr(checks, "linear_training", lambda *_: training)
    monkeypatch.setattr(checks, name, lambda *a, **k: right(*a, **k) * (1 + 1e-6))
    with pytest.raises(AssertionError, match=statement):
        checks.print_checks(0)
    assert "FAILS" in capsys.readouterr().out
