"""What a result is read from and does not fit is one line with the file's name and exit code 2, never a result."""

import dataclasses
import json
import shutil

import pytest
import safetensors.torch

from experiments import __main__ as shell
from experiments import genotypes
from experiments.search import comparison, search
from experiments.training import evaluate, meta_train, train
from experiments.training.trained import read_training
from mamltheory.nas.algorithms.state import RoundReport
from mamltheory.runtime import checkpoint
from mamltheory.runtime.records import to_json
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.refusals import refused
from tests.experiments.tiny import evaluate_settings, meta_train_settings

pytestmark = pytest.mark.usefixtures("few_images")
DEEP = "[" * 100_000


def another_digit(text, start=0):
    """The text with its last digit behind ``start`` changed."""
    position = max(i for i, c in enumerate(text) if c.isdigit() and i >= start)
    return text[:position] + str((int(text[position]) + 1) % 10) + text[position + 1 :]


@pytest.fixture
def own(trained, tmp_path):
    """The settings of a finished training with a copy of its folder, to be spoilt."""
    shutil.copytree(trained.out, tmp_path / "train")
    return dataclasses.replace(trained, out=tmp_path / "train")


@pytest.fixture
def found(searched, tmp_path):
    """The same of a finished search."""
    shutil.copytree(searched.out, tmp_path / "search")
    return dataclasses.replace(searched, out=tmp_path / "search")


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"epochs": ' + DEEP,
        "{",
        "[]",
        '{"epochs": 1' + "0" * 5000 + "}",
        '{"epochs": 1, "epochs": 2}',
        "\xff",
    ],
    ids=["deep", "deep inside", "cut off", "a list", "huge", "twice", "no UTF-8"],
)
@pytest.mark.parametrize("flag", ["--config", "--genotype"])
def test_files_of_another_form_are_one_line_and_exit_code_2(tmp_path, capsys, flag, text):
    (tmp_path / "file.json").write_bytes(text.encode("latin1"))
    assert shell.main(["train", flag, str(tmp_path / "file.json"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert "file.json" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "value", [1e400, 10**400, 2**70, -(2**70), [[]], {"a": {"b": []}}, None, "x" * 10**6]
)
@pytest.mark.parametrize("name", ["epochs", "learning_rate", "milestones", "out", "network"])
def test_settings_of_another_type_are_one_line(tmp_path, capsys, name, value):
    (tmp_path / "file.json").write_text(json.dumps({name: value}))
    if (name, type(value)) in (("out", str), ("learning_rate", int)):
        return  # a path, and a number that is another matter
    assert shell.main(["train", "--config", str(tmp_path / "file.json"), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 1000


def test_a_changed_digit_of_a_record_is_no_configuration(own, tmp_path, capsys):
    copy = tmp_path / "copy.json"
    copy.write_text(another_digit((own.out / "run.json").read_text()))
    assert shell.main(["train", "--config", str(copy)]) == 2
    assert "take out its last entry" in capsys.readouterr().err


def test_curves_are_not_redrawn_from_damaged_measurements(own):
    file = own.out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for damaged in (
        [*lines[:1], another_digit(lines[1]), lines[2]],
        [lines[0], lines[2]],
        lines[1:],
        [lines[0], lines[1].replace("0.", "1.", 1), lines[2]],
    ):
        file.write_text("".join(damaged))
        refused(train.train_and_draw, own, match=r"line \d of .*metrics\.jsonl")
    for damaged in (lines[:2], lines[:1], []):
        file.write_text("".join(damaged))
        refused(train.train_and_draw, own, match=r"metrics\.jsonl has no line for epoch")
    file.unlink()
    refused(train.train_and_draw, own, match=r"metrics\.jsonl has no line for epoch 1, 2, 3")


def test_a_training_of_an_earlier_version_still_opens(own):
    rows = read_metrics(own.out)
    (own.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (own.out / "run.json").write_text(to_json(read_run(own.out)))
    assert train.train_and_draw(own) == 0
    assert read_metrics(own.out) == rows
    assert read_training(own.out).settings == own


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epoch", value) for value in ("1", None, 1.5, [], True, 0, -1, "missing")],
        *[("loss", value) for value in ("low", None, [], {}, "missing")],
        *[("accuracy", value) for value in ("high", None, "missing")],
        *[("learning_rate", value) for value in ("x", [], "missing")],
        *[("val_accuracy", value) for value in ("x", [])],
    ],
)
def test_measurements_of_another_type_are_refused(own, name, value):
    rows = [{**row, name: value} for row in read_metrics(own.out)]
    if value == "missing":
        rows = [{key: each for key, each in row.items() if key != name} for row in rows]
    (own.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused(train.draw_learning_curves, own, match=r"line 1 of .*metrics\.jsonl")


def every_third(cases):
    """The cases, of which one in three is not slow."""
    slow = pytest.mark.slow
    return [case if i % 3 == 0 else pytest.param(*case, marks=slow) for i, case in enumerate(cases)]


def with_state(folder, change):
    """Change what the states of a folder hold, with digests that fit."""
    for path in (folder / "state").iterdir():
        content = {name: (path / name).read_bytes() for name in (checkpoint.TENSORS, checkpoint.STATE)}
        content[checkpoint.STATE] = json.dumps(change(json.loads(content[checkpoint.STATE]))).encode()
        (path / checkpoint.STATE).write_bytes(content[checkpoint.STATE])
        (path / checkpoint.DIGESTS).write_bytes(checkpoint._digests(content))


OTHER_TYPES = [
    (name, value)
    for name in ("epoch", "step", "totals", "config", "data", "genotype", "inputs")
    for value in ("1", None, 1.5, [], {}, True, -1, 2**80, "missing")
    if (name, value) not in (("totals", []), ("genotype", None), ("config", {}), ("config", "missing"))
]
"""What a field of a saved training may not be; what is left out the tests of its readers have."""


@pytest.mark.parametrize(("name", "value"), every_third(OTHER_TYPES))
def test_a_saved_training_of_another_type_is_refused(own, name, value):
    with_state(own.out, lambda state: {k: v for k, v in {**state, name: value}.items() if v != "missing"})
    if name in ("epoch", "step", "genotype", "inputs") and value != "missing":
        refused(read_training, own.out, match=r".")
    if name != "inputs":
        cell = genotypes.read_genotype(own.genotype)
        refused(train.train_network, own, cell, match=".")


FITS = {"scores": [[]], "reports": [[]], "history": [[]], "trace": [[]], "cpu_seconds": [1.5, -1, "missing"]}
"""Values that the fields of a saved search may have."""
OTHER_FIELDS = [
    (name, value)
    for name in ("round", "candidates", "scores", "trace", "reports", "history", "cpu_seconds")
    for value in ("1", None, 1.5, [], {}, True, -1, [[]], [3], "missing")
    if not any(value == each and type(value) is type(each) for each in FITS.get(name, ()))
]


@pytest.mark.parametrize(("name", "value"), every_third(OTHER_FIELDS))
def test_a_saved_search_of_another_type_is_refused(found, name, value):
    def change(state):
        inner = state if name == "cpu_seconds" else state["search"]
        inner[name] = value
        if value == "missing":
            del inner[name]
        return state

    with_state(found.out, change)
    message = refused(search.saved_search, found, match="state")
    assert str(found.out) in message


def test_numbers_inside_a_saved_search_are_looked_at(found):
    state = search.saved_search(found).state
    assert state.trace
    for place in range(8):
        shutil.rmtree(found.out / "state")
        search.write_state(found, search.SavedSearch(state))

        def change(content, place=place):
            content["search"]["trace"][0][place] = {"a": []}
            return content

        with_state(found.out, change)
        refused(search.saved_search, found, match=r"trace")


def test_a_state_with_weights_of_another_type_is_refused_in_one_line(own):
    for path in (own.out / "state").iterdir():
        tensors = safetensors.torch.load((path / checkpoint.TENSORS).read_bytes())
        name = next(
            name for name in tensors if name.startswith("network/") and tensors[name].is_floating_point()
        )
        for spoilt in (
            {**tensors, name: tensors[name].double()},
            {**tensors, name: tensors[name].reshape(-1)[:1]},
        ):
            content = {checkpoint.TENSORS: safetensors.torch.save(spoilt)}
            content[checkpoint.STATE] = (path / checkpoint.STATE).read_bytes()
            (path / checkpoint.TENSORS).write_bytes(content[checkpoint.TENSORS])
            (path / checkpoint.DIGESTS).write_bytes(checkpoint._digests(content))
            refused(read_training, own.out, match="do not fit this network")


def test_the_genotype_of_a_search_is_the_one_that_it_recorded(found, capsys):
    file = found.out / "genotype.json"
    content = json.loads(file.read_text())
    content["normal"][0][0][0] = (
        "skip_connect" if content["normal"][0][0][0] != "skip_connect" else "conv_3x3"
    )
    file.write_text(json.dumps(content))
    flags = ["--genotype", str(file), "--out", str(found.out.parent / "other")]
    assert shell.main(["train", *flags]) == 2
    said = capsys.readouterr().err
    assert "is not the genotype that the search in its folder found" in said
    assert said.count("\n") == 1
    file.rename(found.out.parent / "mine.json")
    assert genotypes.read_genotype(found.out.parent / "mine.json").to_json() == content


def test_rounds_that_are_not_logged_have_no_invented_seconds(found):
    state = search.saved_search(found).state
    assert len(comparison.search_numbers(found, state)["rounds"]) == len(state.reports)
    lines = (found.out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (found.out / "metrics.jsonl").write_text(lines[0])
    refused(comparison.search_numbers, found, state, match=r"metrics\.jsonl has no line for round 2")


def test_a_round_is_logged_before_its_state_counts(found, monkeypatch):
    shutil.rmtree(found.out / "state")
    logged = len(read_metrics(found.out))

    def dies(*_):
        raise OSError("no space")

    state = search.SearchState(
        search.Candidates(**{k: (("conv_3x3", "skip_connect"),) * 9 for k in ("normal", "reduce")})
    )
    monkeypatch.setattr(search.Round, "chunks", lambda *_: ())
    monkeypatch.setattr(
        search, "prune", lambda *_: dataclasses.replace(state, reports=(RoundReport(1, "fixed"),))
    )
    monkeypatch.setattr(search, "write_state", dies)
    with pytest.raises(OSError, match="no space"), search.opened_search(found.resolved(), "cpu") as log:
        search.finish_round(
            search.SavedSearch(state),
            search.rules_of(found),
            search.scorer_of(found, "cpu"),
            found,
            lambda *_: (),
            log,
        )
    assert len(read_metrics(found.out)) == logged + 1


def test_results_of_an_evaluation_are_looked_at(own, tmp_path):
    settings = evaluate_settings(own, tmp_path / "evaluate")
    evaluate.print_evaluation(settings)
    results = read_run(settings.out)["results"]
    evaluate.check_results(settings.out, results)
    before = results | {"correct": " ".join(map(str, results["correct"]))}  # as earlier versions wrote it
    evaluate.check_results(settings.out, before)
    assert (evaluate.accuracies_of(before) == evaluate.accuracies_of(results)).all()
    wrong = {
        "accuracy": ["high", None, results["accuracy"] + 0.01, "nan"],
        "parameters": ["1", 0, 1.5],
        "tasks_digest": [3, None],
        "queries_per_task": [0, "6", 2.5],
        "correct": [3, "", "a b", "1,2", [1, 2], [], [-1] * 4, ["a"] * 4],
        "training": [None, 3],
        "half_width": [[], "x"],
    }
    for name, values in wrong.items():
        for value in values:
            refused(evaluate.check_results, settings.out, {**results, name: value}, match=r"run\.json")
        lacking = {key: value for key, value in results.items() if key != name}
        refused(evaluate.check_results, settings.out, lacking, match=r"run\.json")
    refused(evaluate.check_results, settings.out, None, match=r"run\.json")


def test_points_of_a_meta_training_are_all_there(tmp_path):
    settings = meta_train_settings(tmp_path, steps=4, report_every=2)
    common_fields = {"loss": 0.5, "accuracy": 0.2, "val_accuracy": 0.2, "val_half_width": 0.1}
    tmp_path.mkdir(exist_ok=True)
    (settings.out).mkdir(parents=True, exist_ok=True)
    (settings.out / "metrics.jsonl").write_text(json.dumps({"step": 2, **common_fields}) + "\n")
    assert list(meta_train.curve_points(settings, 3)) == [2]
    refused(meta_train.curve_points, settings, 4, match=r"metrics\.jsonl has no line for step 4")
