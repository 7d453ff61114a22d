"""Search on tiny networks: protocols, resumable chunk by chunk, and every mistake one clear error."""

import dataclasses
import json

import pytest
import torch

from experiments import __main__ as shell
from experiments import genotypes, runs
from experiments.data import loading
from experiments.search import report, search
from experiments.training import train
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.linalg import Converged, GradientFlow
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.rounds import Round
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.genotype import Edge
from mamltheory.nas.scoring.operator_gradient import GradientScorer
from mamltheory.nas.scoring.score import Job, Score
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.runtime.checkpoint import load_state
from mamltheory.runtime.device import Device, environment
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import (
    GENOTYPE,
    begun,
    files,
    nearly_done,
    recorded_search,
    search_settings,
    train_settings,
)
from tests.reference.nas_toy import THREE, network_by_network, noisy_scorer

pytestmark = pytest.mark.usefixtures("few_images")
USUAL_DATA = loading.cached_data


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three scores: eight in the first round (seven operators and all of them) make three."""
    monkeypatch.setattr(search, "CHUNK", 3)


def state_of(settings):
    return load_state(settings.out / "state", print).state["search"]


def test_a_search_leaves_its_genotype_its_course_the_drawings_and_the_record(searched):
    drawn = {f"{name}.{ending}" for name in ("cells", "trace") for ending in ("png", "pdf", "json")}
    left = {name for name in files(searched.out) if not name.startswith("state/")}
    assert left == {"genotype.json", "search.json", "run.json", "metrics.jsonl", *drawn}
    genotype = genotypes.read_genotype(searched.out / "genotype.json")
    record = read_run(searched.out)
    assert record["status"] == "finished"
    assert record["results"]["genotype"] == genotype.to_json()
    assert record["config"]["estimator"] == "leave-one-out"
    alive = nearly_done().candidates
    for kind in ("normal", "reduce"):
        for source, vertex, operation in genotype.edges()[kind]:
            assert operation in alive.on(kind, Edge(vertex - 2, source))
    assert [row["repeats"] for row in read_metrics(searched.out)] == [1, 1]


def test_the_course_of_a_search_has_every_decision_and_every_rounds_report(searched):
    course = json.loads((searched.out / "search.json").read_text())
    assert len(course["trace"]) == 7 + 2
    assert sum(row[5] for row in course["trace"]) == 4
    assert [report["stopped"] for report in course["rounds"]] == ["fixed", "fixed"]
    assert course["undecided"] == {"0": [], "1": []}
    assert course["failures"] == {}


@pytest.mark.slow
@pytest.mark.usefixtures("small_chunks")
def test_a_search_stopped_twice_goes_on_with_what_it_lacks_to_the_same_end(tmp_path):
    whole, settings = begun(tmp_path / "whole"), begun(tmp_path / "a b")
    search.search_cells(whole)
    with ctrl_c_during(search, "score_chunk", 2) as stopped:
        search.search_cells(settings)
    assert stopped.value.continue_with.endswith(f"search --config '{settings.out}'")
    assert read_run(settings.out)["status"] == "interrupted"
    assert len(state_of(settings)["scores"]) == 6
    with ctrl_c_during(search, "score_chunk", 1):
        search.search_cells(settings)
    with counted(search, "score_chunk") as scored:
        search.search_cells(settings)
    assert len(scored) == 1
    assert state_of(settings) == state_of(whole)
    assert (settings.out / "genotype.json").read_bytes() == (whole.out / "genotype.json").read_bytes()


def test_every_score_of_a_search_on_a_gpu_is_computed_deterministically(tmp_path, monkeypatch):
    """Without a GPU: the scorers run on the CPU, and the search believes that they run on a GPU."""
    settings, seen = begun(tmp_path), []
    scores, real = CellScorer.scores, search.scorer_of
    monkeypatch.setattr(search, "scorer_of", lambda *args: dataclasses.replace(real(*args), device="cuda"))
    monkeypatch.setattr(search, "memory_budget", lambda *_: 1 << 30)

    def noting(scorer, *arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return scores(dataclasses.replace(scorer, device="cpu"), *arguments)

    monkeypatch.setattr(CellScorer, "scores", noting)
    chosen = search.choose_device
    torch.use_deterministic_algorithms(False)
    try:
        monkeypatch.setattr(search, "choose_device", lambda _: Device(torch.device("cuda:0"), "asked for"))
        monkeypatch.setattr(runs, "environment", lambda _, *rest: environment("cpu", *rest))
        search.search_cells(settings)
        found = read_run(settings.out)["environment"]["deterministic"]
        search.scores_of_found(search.saved_search(settings).state, settings.resolved())
        assert seen
        assert all(seen)
        assert found is True
        assert not torch.are_deterministic_algorithms_enabled()
        seen.clear()
        monkeypatch.setattr(search, "scorer_of", real)
        monkeypatch.setattr(search, "choose_device", chosen)
        search.search_cells(begun(tmp_path / "cpu"))
        assert not any(seen)
        assert read_run(tmp_path / "cpu")["environment"]["deterministic"] is False
    finally:
        torch.use_deterministic_algorithms(True)


def test_a_finished_search_scores_nothing_again(searched):
    before = (searched.out / "genotype.json").read_bytes()
    with counted(search, "score_chunk") as scored:
        search.search_cells(searched)
    assert scored == []
    assert (searched.out / "genotype.json").read_bytes() == before


def test_neither_the_order_of_chunks_nor_their_size_matters(searched, tmp_path, monkeypatch):
    def backwards(function, items):
        return ((item, function(item)) for item in reversed(items))

    monkeypatch.setattr(search, "CHUNK", 3)
    settings = begun(tmp_path)
    scorer, rules = search.scorer_of(settings, "cpu"), search.rules_of(settings)
    saved = search.saved_search(settings)
    while not Round.of(saved.state, rules).is_finished:
        saved = search.finish_round(saved, rules, scorer, settings, backwards)
    expected = search.saved_search(searched).state
    assert saved.state.candidates == expected.candidates
    for mine, theirs in zip(saved.state.trace, expected.trace, strict=True):
        assert mine.delta_condition == pytest.approx(theirs.delta_condition, rel=0.02, abs=0.02)
        assert mine.pruned == theirs.pruned


@pytest.mark.parametrize("protocol", ["released", "stable"])
def test_every_protocol_searches_to_the_end_and_is_recorded(tmp_path, protocol, capsys):
    few = {"tasks": 2, "repeats": 2, "two_inputs": False, "regions": False}
    settings = search_settings(tmp_path, protocol=protocol, verbose=True, **few)
    recorded_search(settings.resolved(), "interrupted")
    search.write_state(settings, search.SavedSearch(nearly_done()))
    search.search_cells(settings)
    config = read_run(tmp_path)["config"]
    assert {config[name] for name in ("metric", "estimator")} == {
        "released": {"condition", "leave-one-out"},
        "stable": {"harmonic", "gradient"},
    }[protocol]
    said = capsys.readouterr().out
    first, *codes = said.splitlines()[2:5]
    assert first.startswith("round 1 of 2: ")
    assert codes[0].startswith("round 1: 7 operators, 2 repeats")
    assert "halves: tau" in codes[0]
    assert "same operator" in codes[0]
    assert codes[1].startswith("  normal ")


def test_a_protocol_gives_the_values_that_are_not_given(tmp_path):
    assert search.rules_of(search_settings(tmp_path, protocol="paper", repeats=None)).repeats == 3
    stable = search_settings(tmp_path, protocol="stable", repeats=None, shrinkage=False)
    rules = search.rules_of(stable)
    assert (rules.estimator, rules.stopping, rules.shrinkage) == ("gradient", True, False)
    with pytest.raises(ConfigurationError, match="--no-regions"):
        search_settings(tmp_path, estimator="gradient")
    with pytest.raises(ConfigurationError, match="give --common-random-numbers with"):
        search_settings(tmp_path, protocol="stable", common_random_numbers=False)


@pytest.mark.slow
def test_two_processes_search_as_one(tmp_path, monkeypatch):
    # Worker processes draw the usual images, so this one has to as well.
    for module in (loading, search):
        monkeypatch.setattr(module, "cached_data", USUAL_DATA)
    states = []
    for jobs in (1, 2):
        settings = begun(tmp_path / str(jobs), jobs=jobs)
        search.search_cells(settings)
        states.append(state_of(settings))
    assert states[0] == states[1]


def test_other_settings_in_the_same_folder_are_one_error_and_change_nothing(searched):
    before = read_run(searched.out)
    with pytest.raises(ConfigurationError, match=r"ways \(2 there, 3 now\); choose another --out"):
        search.search_and_draw(dataclasses.replace(searched, ways=3))
    assert read_run(searched.out) == before
    with pytest.raises(ConfigurationError, match=r"repeats \(1 there, 2 now\)"):
        search.search_cells(dataclasses.replace(searched, repeats=2))
    search.search_cells(dataclasses.replace(searched, jobs=1))


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"data": "no/such/folder"}, DataError, "there is no folder no/such/folder"),
        ({"device": "cuda:99"}, ConfigurationError, "choose another, or auto"),
        ({"device": "tpu"}, ConfigurationError, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_wrong_data_and_devices_are_refused_before_anything_is_written(tmp_path, others, error, message):
    with pytest.raises(error, match=message):
        search.search_and_draw(search_settings(tmp_path / "run", **others))
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    with pytest.raises(error, match=message):
        train.train_and_draw(train_settings(tmp_path / "run", genotype=tmp_path / "cell.json", **others))
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_counts_does_not_occupy_the_run_folder(tmp_path):
    with pytest.raises(ConfigurationError, match="ways"):
        search.search_and_draw(search_settings(tmp_path / "run", ways=50))
    genotypes.write_genotype(tmp_path / "cell.json", GENOTYPE)
    with pytest.raises(
        ConfigurationError,
        match=r"batch_size is 9999, .* 48 training images; .* --batch-size 48",
    ):
        train.train_and_draw(
            train_settings(tmp_path / "run", genotype=tmp_path / "cell.json", batch_size=9999)
        )
    assert not (tmp_path / "run").exists()


def test_a_finite_inner_time_and_infinity_give_their_dynamics(tmp_path):
    def dynamics(**given):
        return search.scorer_of(search_settings(tmp_path, **given), "cpu").settings.dynamics

    assert dynamics(ridge=0.5) == Converged(0.5)
    assert dynamics(inner_time=2.0) == GradientFlow(2.0)


def test_a_batch_that_did_not_fit_the_memory_is_said_once(capsys):
    job = Job(0, 0, None)
    first = search.SavedSearch(nearly_done()).with_scores({job: Score(2.0, 1.0, halvings=2)}, 1.0)
    assert capsys.readouterr().out.count("did not fit") == 1
    again = first.with_scores({job._replace(repeat=1): Score(2.0, 1.0, halvings=1)}, 1.0)
    assert (again.halvings, again.cpu_seconds, capsys.readouterr().out) == (3, 2.0, "")


def test_a_search_says_a_line_a_round_and_at_the_end_what_it_found(tmp_path, capsys):
    settings = begun(tmp_path / "search")
    assert search.search_and_draw(settings) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0).startswith("round 1 of 2 begins: 22 operations, 1 repeats")
    assert [line.split(":")[0] for line in lines[:2]] == ["round 1 of 2", "round 2 of 2"]
    assert "19 operations stay; how sure is not known" in lines[0]
    assert lines[0].endswith(" to go")
    labels = [line[:14].strip() for line in lines[3:] if line[:14].strip()]
    assert labels == [
        *("found by", "normal cell", "reduce cell", "size", "score", "verdict", "figures", "train it"),
    ]
    text = "\n".join(lines)
    assert "MetaNTK-NAS on glyphs, seed 0" in text
    assert "sep3" not in text
    assert "sep_conv" not in text
    parameters = json.loads((settings.out / "cells.json").read_text())["data"]["parameters"]
    assert f"size           {parameters:,} parameters, 3 cells of 4 channels\n" in text
    assert "score          log C_N = " in text
    command = lines[-1].removeprefix("train it").split()
    resolved = shell.resolve("train", command[4:])
    assert resolved.genotype == settings.out / "genotype.json"
    assert (resolved.channels, resolved.cells, resolved.image_size) == (4, 3, 16)


def test_a_finished_search_says_the_same_again_and_neither_scores_nor_draws(searched, capsys, monkeypatch):
    for name in ("draw_cells", "draw_trace", "scores_of_found", "score_chunk", "data_of"):
        monkeypatch.setattr(search, name, None)
    assert search.search_and_draw(searched) == 0
    first, _, *summary = capsys.readouterr().out.splitlines()
    assert first == f"already finished in {searched.out}: nothing is searched again"
    assert summary[-1].startswith("train it ")
    assert any(line.startswith("score          log C_N = ") for line in summary)


def test_a_drawing_that_is_gone_or_of_other_cells_is_made_again(tmp_path):
    settings = begun(tmp_path / "search")
    search.search_and_draw(settings)
    wanted = {name: (settings.out / name).read_bytes() for name in ("trace.png", "cells.json")}
    (settings.out / "trace.png").unlink()
    content = json.loads(wanted["cells.json"])
    content["data"]["genotype"] = GENOTYPE.to_json()
    (settings.out / "cells.json").write_text(json.dumps(content))
    search.search_and_draw(settings)
    assert {name: (settings.out / name).read_bytes() for name in wanted} == wanted


def test_a_search_ends_with_what_its_scores_could_not_decide():
    scored, once = SearchSettings(repeats=2), SearchSettings(repeats=1)
    drawn = run_search(None, SearchSettings(criteria=()), THREE)
    assert report.closing_lines(drawn) == ["nothing was scored: every choice was drawn at random"]
    alone = report.closing_lines(run_search(noisy_scorer, once, THREE))
    assert alone == ["rounds in which no two repeats could be compared: 1, 2"]
    equal = report.closing_lines(run_search(network_by_network(lambda *_: Score(1.0, 1.0)), scored, THREE))
    assert [line.split(":")[0] for line in equal] == [
        "undecided edges in round 1",
        "undecided edges in round 2",
        "rounds in which no two repeats could be compared",
    ]


@pytest.mark.parametrize(
    ("protocol", "kind"), [("paper", CellScorer), ("stable", GradientScorer), ("released", IndependentDraws)]
)
def test_the_protocol_chooses_the_scorer(tmp_path, protocol, kind):
    settings = search_settings(tmp_path, protocol=protocol).resolved()
    assert type(search.scorer_by(search.rules_of(settings), search.scorer_of(settings, "cpu"))) is kind
