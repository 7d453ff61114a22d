"""Shards for job arrays, and the ranks of torchrun: the search is the same, whoever computes its scores."""

import dataclasses
import json

import pytest

from experiments import __main__ as shell
from experiments.cells import search, sharding
from experiments.settings import Merge, Search
from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.runtime.checkpoint import load
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.tiny import SIZE, nearly_done
from tests.runtime.ranks import run_ranks


def settings_in(folder, **others):
    """A search that has come to :func:`nearly_done`, whose repeats are divided into pieces of four scores."""
    settings = Search(
        **SIZE
        | {"ways": 2, "tasks": 1, "repeats": 2, "regions": False, "outputs": "sum", "out": folder}
        | others
    )
    search.write_state(settings, search.Saved(nearly_done()))
    return settings


def shard(settings, which):
    return sharding.run(dataclasses.replace(settings, shard=which))


def state_in(folder):
    state = load(folder / "state", print).state
    return {**state, "cpu_seconds": None}


def shard_files(settings):
    return sorted(path.name for path in (settings.out / "shards").iterdir())


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(search, "CHUNK", 4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, few_images):  # noqa: ARG001
    """Settings of the search, done by one process without shards."""
    settings = settings_in(tmp_path_factory.mktemp("alone") / "search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CHUNK", 4)
        search.search(settings)
    return settings


@pytest.mark.usefixtures("few_images")
def test_shards_and_merges_come_to_the_search_of_one_process(alone, tmp_path, capsys):
    settings = settings_in(tmp_path / "a b")
    assert shard(settings, "1/2") == 0
    assert sharding.merge(Merge(settings.out)) == 1
    assert "lacks 8 scores: run search with --shard 2/2" in capsys.readouterr().out
    assert not (settings.out / "run.json").exists()
    assert shard(settings, "2/2") == 0
    assert f"merge '{settings.out}'" in capsys.readouterr().out
    assert shell.main(["merge", str(settings.out)]) == 0
    assert shard_files(settings) == []
    assert "19 operators are left: run the shards again, for round 2" in capsys.readouterr().out
    assert read_run(settings.out)["status"] == "interrupted"
    for which in ("2/3", "1/3", "3/3"):  # another number of shards, in another order
        shard(settings, which)
    assert sharding.merge(Merge(settings.out)) == 0
    assert read_run(settings.out)["status"] == "finished"
    assert state_in(settings.out) == state_in(alone.out)
    genotypes = [(s.out / "genotype.json").read_text() for s in (settings, alone)]
    assert genotypes[0] == genotypes[1]
    shard(settings, "1/3")
    assert "nothing to compute" in capsys.readouterr().out


@pytest.mark.usefixtures("few_images")
def test_a_stopped_shard_goes_on_with_what_it_lacks_and_the_search_may_take_over(alone, tmp_path):
    settings = settings_in(tmp_path)
    with ctrl_c_during(search, "score_chunk", 1) as stopped:
        shard(settings, "1/1")
    assert stopped.value.continue_with == "the same command"
    with counted(search, "score_chunk") as computed:
        shard(settings, "1/1")
    assert len(computed) == 3  # of two repeats of eight scores
    sharding.merge(Merge(settings.out))
    search.search(settings)
    assert state_in(settings.out)["search"] == state_in(alone.out)["search"]


@pytest.mark.usefixtures("few_images")
def test_shards_of_other_settings_or_another_round_are_refused_with_the_difference(tmp_path):
    settings = settings_in(tmp_path)
    shard(settings, "1/2")
    with pytest.raises(ConfigurationError, match=r"tasks \(1 there, 2 now\)"):
        shard(dataclasses.replace(settings, tasks=2), "1/2")
    [file] = (tmp_path / "shards").iterdir()
    content = json.loads(file.read_text())
    del content["sha256"]
    for change, message in (
        ({"config": {**content["config"], "tasks": 3}}, r"other settings: tasks \(3 there, 1 now\); remove"),
        ({"state": {**content["state"], "round": 4}}, "is of round 5, the search in round 1: remove"),
    ):
        (tmp_path / "shards" / "zz.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(ConfigurationError, match=message):
            sharding.merge(Merge(tmp_path))
    for text in ("", "[]", "{}", json.dumps({**content, "state": 3})):
        (tmp_path / "shards" / "zz.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"zz\.json is no shard"):
            sharding.merge(Merge(tmp_path))


def test_nothing_to_merge_and_impossible_shards_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="there are no shards"):
        sharding.merge(Merge(tmp_path))
    for wrong in ("3/2", "0/2", "1", "a/b", "1/2/3", ""):
        with pytest.raises(ConfigurationError, match="expected the form 2/8"):
            Search(shard=wrong)


@pytest.mark.slow
def test_the_search_is_the_same_in_one_process_and_in_two_ranks_of_torchrun(tmp_path):
    states, logs = [], []
    for size in (1, 2):
        for how in ({}, {"protocol": "stable", "repeats": 4}):
            settings = settings_in(tmp_path / f"{size}{len(how)}", **how)
            flags = ["--out", str(settings.out), "--ways", "2", "--tasks", "1", "--device", "cpu"]
            flags += ["--repeats", str(settings.repeats), "--protocol", settings.protocol]
            flags += ["--regions", "False", "--outputs", "sum"]
            flags += ["--channels", "4", "--cells", "3", "--stem-stride", "4", "--image-size", "16"]
            ends = run_ranks(size, ["-m", "experiments", "search", *flags], timeout=500)
            assert [code for code, _, _ in ends] == [0] * size, ends
            assert all(not out for _, out, _ in ends[1:])
            states.append(state_in(settings.out))
            logs.append((settings.out / "genotype.json").read_text())
    assert states[:2] == states[2:]
    assert logs[:2] == logs[2:]
