"""Search on tiny networks: resumable score by score, and every mistake one clear error."""

import dataclasses
import json

import pytest

from experiments.cells import common, search, train
from mamltheory.errors import ConfigurationError, DataError
from mamltheory.nas.genotype import Edge
from mamltheory.runtime.checkpoint import load
from mamltheory.runtime.runlog import read_metrics, read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import (
    GENOTYPE,
    begun,
    files,
    nearly_done,
    search_settings,
    train_settings,
)

pytestmark = pytest.mark.usefixtures("few_images")
USUAL_DATA = common.cached_data


def test_a_search_leaves_its_genotype_the_drawing_and_the_record(searched):
    assert files(searched.out) - {name for name in files(searched.out) if name.startswith("state/")} == {
        "genotype.json",
        "run.json",
        "metrics.jsonl",
        "cells.png",
        "cells.pdf",
        "cells.json",
    }
    genotype = common.read_genotype(searched.out / "genotype.json")
    record = read_run(searched.out)
    assert record["status"] == "finished"
    assert record["results"]["genotype"] == genotype.to_json()
    assert json.loads((searched.out / "cells.json").read_text())["data"]["genotype"] == genotype.to_json()
    alive = nearly_done().candidates
    for kind in ("normal", "reduce"):
        for source, vertex, operation in genotype.edges()[kind]:
            assert operation in alive.on(kind, Edge(vertex - 2, source))
    assert [row["operators"] for row in read_metrics(searched.out)] == [19, 18]


@pytest.mark.parametrize("call", [1, 5, 9])
def test_an_interrupted_search_goes_on_with_what_it_lacks_to_the_same_end(searched, tmp_path, call):
    settings = begun(tmp_path / "a b")
    with ctrl_c_during(search, "score_job", call) as stopped:
        search.search(settings)
    assert stopped.value.continue_with.endswith(f"search --config '{settings.out}'")
    assert read_run(settings.out)["status"] == "interrupted"
    with counted(search, "score_job") as scored:
        genotype = search.search(settings)
    # eight scores in the first round (seven operators and all of them), then three
    assert len(scored) == 8 + 3 - call
    assert genotype == common.read_genotype(searched.out / "genotype.json")
    states = [load(each.out / "state", print).state for each in (settings, searched)]
    assert states[0]["trace"] == states[1]["trace"]
    assert states[0]["candidates"] == states[1]["candidates"]


def test_a_finished_search_scores_nothing_again(searched):
    before = (searched.out / "genotype.json").read_bytes()
    with counted(search, "score_job") as scored:
        search.run(searched)
    assert scored == []
    assert (searched.out / "genotype.json").read_bytes() == before


def test_scores_do_not_depend_on_their_order(tmp_path):
    def backwards(function, items):
        return ((item, function(item)) for item in reversed(items))

    settings = begun(tmp_path)
    scorer, rules = search.scorer_of(settings, "cpu"), search.rules_of(settings)
    state = search.finish_round(nearly_done(), rules, scorer, settings, backwards)
    usual = search.search(begun(tmp_path / "usual"))
    while not search.is_finished(state, rules):
        state = search.finish_round(state, rules, scorer, settings, backwards)
    assert state.candidates.genotype() == usual
    assert (
        search.plain(search.state_to_json(state))["trace"]
        == load(tmp_path / "usual/state", print).state["trace"]
    )


@pytest.mark.slow
def test_two_processes_search_as_one(tmp_path, monkeypatch):
    # Worker processes draw the usual images, so this one has to as well.
    for module in (common, search):
        monkeypatch.setattr(module, "cached_data", USUAL_DATA)
    states = []
    for jobs in (1, 2):
        settings = begun(tmp_path / str(jobs), jobs=jobs)
        search.search(settings)
        states.append(load(settings.out / "state", print).state)
    assert states[0] == states[1]


def test_other_settings_in_the_same_folder_are_one_error_and_change_nothing(searched):
    before = read_run(searched.out)
    with pytest.raises(ConfigurationError, match=r"ways \(2 there, 3 now\); choose another --out"):
        search.run(dataclasses.replace(searched, ways=3))
    assert read_run(searched.out) == before
    search.run(dataclasses.replace(searched, jobs=1))


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
        search.run(search_settings(tmp_path / "run", **others))
    common.write_genotype(tmp_path / "cell.json", GENOTYPE)
    with pytest.raises(error, match=message):
        train.run(train_settings(tmp_path / "run", genotype=tmp_path / "cell.json", **others))
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_counts_does_not_occupy_the_run_folder(tmp_path):
    with pytest.raises(ConfigurationError, match="ways"):
        search.run(search_settings(tmp_path / "run", ways=50))
    common.write_genotype(tmp_path / "cell.json", GENOTYPE)
    with pytest.raises(ConfigurationError, match="batch_size 9999 exceeds"):
        train.run(train_settings(tmp_path / "run", genotype=tmp_path / "cell.json", batch_size=9999))
    assert not (tmp_path / "run").exists()


def test_a_finite_inner_time_and_infinity_give_their_dynamics(tmp_path):
    assert search.dynamics_of(search_settings(tmp_path, ridge=0.5)).ridge == 0.5
    assert search.dynamics_of(search_settings(tmp_path, inner_time=2.0)).time == 2.0
