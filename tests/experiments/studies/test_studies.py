"""Studies of scores: resumable measurement by measurement, common draws, and reports that read what was planted."""

import dataclasses
import json
import math
from functools import lru_cache, partial

import numpy as np
import pytest

from experiments.data import loading
from experiments.studies import correlation, correlation_report, measurements, stability, stability_report
from experiments.studies.settings import CORRELATION, STABILITY, Correlation, Stability
from mamltheory.errors import CheckpointError, ConfigurationError
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas.genotype import Candidates, random_genotype
from mamltheory.nas.scoring.pool import Batch
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.rng import generator
from mamltheory.runtime.runlog import read_run
from tests.experiments.stops import counted, ctrl_c_during
from tests.experiments.studies.cases import (
    correlation_scores,
    correlation_settings,
    planted_records,
    planted_repeats,
    stability_settings,
)


@lru_cache
def few_images():
    return glyph_data(16, 12, 6, 6, samples_per_class=20)


@pytest.fixture(autouse=True)
def _few_images(monkeypatch):
    for module in (loading, correlation):
        monkeypatch.setattr(module, "cached_data", lambda *_: few_images())
    monkeypatch.setattr("experiments.search.search.cached_data", lambda *_: few_images())
    correlation.draw_pool.cache_clear()


def test_the_report_finds_the_planted_relations_and_says_them(tmp_path):
    settings = correlation_settings(tmp_path, networks=12, repeated=4, draws=60)
    correlation_report.report_correlation(settings, planted_records())
    data = json.loads((settings.out / "correlation.json").read_text())["data"]
    one = data["validity"]["1"]
    assert one["regions"]["tau"]["value"] == pytest.approx(1)
    assert one["regions"]["partial"]["value"] == pytest.approx(1)
    assert one["maml condition"]["tau"]["value"] == one["parameters"]["tau"]["value"]
    assert one["maml condition"]["ahead"]["interval"] == [0, 0]
    assert one["maml condition"]["partial"]["value"] == "nan"
    assert data["noise_ceiling"]["1"]["deviation"] == pytest.approx(0, abs=1e-9)
    assert data["noise_ceiling"]["1"]["highest_tau"] == pytest.approx(1)
    assert data["reliability"]["regions"]["pools"] > 0.99 > data["reliability"]["regression loss"]["pools"]
    assert len(data["networks"]) == 12
    text = (settings.out / "correlation.md").read_text()
    rows = [line for line in text.split("\n") if line.startswith("| ")]
    assert len(rows) == 1 + len(correlation_report.COMPONENTS)
    assert "beyond chance for linear regions R" in text
    assert (settings.out / "correlation.png").stat().st_size > 10_000


def test_a_singular_kernel_ranks_its_network_last_and_is_reported(tmp_path):
    records = planted_records()
    records["3-0"]["scores"]["regions"][0][0] = "-inf"
    found = correlation_report.correlation_findings(
        correlation_settings(tmp_path, draws=10), list(records.values())
    )
    assert found.singular["regions"] == 1
    values = found.components["regions"][0][:, 0, 0]
    assert values[3] == values.min()


def test_networks_are_measured_once_and_a_stopped_study_goes_on(tmp_path, monkeypatch):
    made = []

    def record(settings, device, item):
        made.append(item)
        return {"item": list(item), "seed": settings.seed, "device": device}

    reported = []
    monkeypatch.setattr(correlation, "report_correlation", lambda _, records: reported.append(records))
    monkeypatch.setattr(correlation, "measure_network", record)
    settings = correlation_settings(tmp_path)
    with ctrl_c_during(measurements, "to_json", 3) as stopped:
        correlation.study_correlation(settings)
    assert "the same command" in stopped.value.continue_with
    assert read_run(settings.runs)["status"] == "interrupted"
    first = list(made)
    assert 0 < len(first) < 7
    correlation.study_correlation(settings)
    assert sorted(made) == sorted([(i, 0) for i in range(4)] + [(i, 1) for i in range(3)])
    assert set(first).isdisjoint(made[len(first) :])
    correlation.study_correlation(dataclasses.replace(settings, networks=5, draws=20))
    assert made[7:] == [(4, 0)]
    assert [record["item"] for record in reported[-1].values()] == [
        list(item) for item in correlation.trainings_of(dataclasses.replace(settings, networks=5)).values()
    ]
    with pytest.raises(ConfigurationError, match=r"epochs \(1 there, 2 now\)"):
        correlation.study_correlation(dataclasses.replace(settings, epochs=2))
    (settings.runs / "measurements" / "network-000-training-0.json").write_text("{")
    with pytest.raises(CheckpointError, match="remove it, and it is measured again"):
        correlation.study_correlation(settings)


def test_a_study_cut_short_has_some_second_trainings():
    items = list(correlation.trainings_of(CORRELATION["glyph"]).values())
    assert sorted(items) == sorted({*items})
    assert 3 <= sum(training for _, training in items[:20]) <= 6


def test_a_network_is_trained_and_scored_on_draws_that_it_shares_with_all_others(tmp_path):
    settings = correlation_settings(tmp_path)
    record = correlation.measure_network(settings, "cpu", (0, 0))
    assert set(record["scores"]) == set(correlation_scores())
    for values in record["scores"].values():
        assert values.shape == (2, 2)
        assert not np.isnan(values).any()
        assert not np.isposinf(values).any()
    assert len({*record["scores"]["regression loss"].flatten()}) == 4
    assert set(record["accuracy"]) == {"1", "5"}
    assert record["parameters"] > 0 < record["macs"]
    again = correlation.score_network(settings, "cpu", random_genotype(generator(0, "study genotype", 0)))
    for name, values in record["scores"].items():
        np.testing.assert_array_equal(values, again["scores"][name])


def test_pools_share_no_class_and_batches_no_image(tmp_path):
    settings = correlation_settings(tmp_path, batches=4, regression_tasks=5)
    pools = [correlation.draw_pool(settings, pool)[0] for pool in range(2)]
    assert all(pool.shape == (18, 3, 16, 16) for pool in pools)
    assert not any((image == other).all() for image in pools[0] for other in pools[1])
    drawn = correlation.draw_pool_tasks(settings, 6, 0, 0)
    assert all(isinstance(batch, Batch) for batch in drawn.batches)
    assert drawn.query.shape == (5, 5, 2)
    assert drawn.support.shape == (5, 5, 1)
    # The images of a way are of one class, those of two ways are not.
    classes = drawn.support[..., 0] // settings.pool_images
    assert (drawn.query // settings.pool_images == classes[..., None]).all()
    assert all(len(row.unique()) == 5 for row in classes)
    others = correlation.draw_pool_tasks(settings, 6, 0, 1)
    assert not bool((drawn.query == others.query).all())


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"pools": 3}, "pools is 3, and there are 12 training classes, 5 for each pool; .* --pools 2"),
        (
            {"pool_images": 30},
            "pool_images is 30, and there are 20 images in a training class; .* --pool-images 20",
        ),
    ],
)
def test_pools_that_the_data_cannot_fill_are_refused_before_anything_is_written(tmp_path, others, message):
    with pytest.raises(ConfigurationError, match=message):
        correlation.study_correlation(correlation_settings(tmp_path, **others))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Correlation, {"networks": 3}, "networks is 3"),
        (Correlation, {"repeated": 41}, "at most the 40 networks"),
        (Correlation, {"learning_rate": math.nan}, "learning_rate is nan"),
        (Correlation, {"milestones": (3, 1)}, "increasing order"),
        (Stability, {"gradient_tasks": (6, 3)}, "increasing order"),
        (Stability, {"gradient_tasks": ()}, "gradient_tasks"),
        (Stability, {"exact_repeats": 3}, "exact_repeats is 3"),
        (Stability, {"region_repeats": 2}, "region_repeats is 2"),
    ],
)
def test_settings_that_cannot_run_are_refused(kind, wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(**wrong)


def test_presets_write_to_folders_of_their_own():
    every = [*CORRELATION.values(), *STABILITY.values()]
    assert len({each.runs for each in every}) == len(every)
    assert all(each.out == each.runs for each in every)


def thinned(count):
    """The supernet and the supernets without one of its first operators."""
    whole = Candidates()
    return [whole, *(whole.without(operator) for operator in whole.operators()[:count])]


@pytest.mark.slow
def test_operators_taken_out_one_by_one_change_the_score_as_the_search_sees_it(tmp_path, monkeypatch):
    monkeypatch.setattr(stability, "without_each", partial(thinned, 2))
    settings = stability_settings(tmp_path)
    found = stability.measure_repeat(settings, "cpu", ("exact", 1, 3))["differences"]
    for measure, values in found.items():
        scorer = stability.repeat_scorer(settings, "cpu", 1, measure)
        assert isinstance(scorer, CellScorer)
        logs = [math.log(scorer.scores([each], 0, 3)[0].condition) for each in thinned(2)]
        # Gradients are rounded to float32, which moves the least eigenvalue by that times the condition number.
        rounding = 1e-3 + 1e-6 * math.exp(max(logs))
        assert rounding < 0.1
        assert values == pytest.approx([logs[0] - each for each in logs[1:]], abs=rounding)
    regions = stability.measure_repeat(settings, "cpu", ("regions", 0, 3))["differences"]["regions"]
    scorer = stability.repeat_scorer(settings, "cpu", 0)
    logs = [math.log(scorer.scores([each], 0, 3)[0].regions) for each in thinned(2)]
    assert regions == pytest.approx([each - logs[0] for each in logs[1:]])


def test_the_report_of_repeats_finds_the_planted_reliability(tmp_path):
    settings = stability_settings(tmp_path, gradient_repeats=12, exact_repeats=6, draws=40)
    stability_report.report_stability(settings, planted_repeats(settings))
    data = json.loads((settings.out / "stability.json").read_text())["data"]
    row = data["stability"]["gradient 1 harmonic"]
    assert row["interval"][0] < 0.5 < row["interval"][1]
    assert row["null"][1] < row["single"]
    assert row["halves"]["6"] == pytest.approx(6 / 7, abs=0.06)
    noise = data["stability"]["regions 0 regions"]
    assert noise["interval"][0] < 0 < noise["interval"][1]
    assert data["correlation_with_one_by_one"]["condition"] == pytest.approx(1)
    assert data["gradient_in_evaluations"] == {"1": 4.0, "2": 4.0}
    text = (settings.out / "stability.md").read_text()
    assert "4.0 at T = 1, 4.0 at T = 2" in text
    assert "harmonic number has a higher r₁ than the condition number: gradient, T = 1: not resolved" in text
    assert (settings.out / "stability.png").stat().st_size > 10_000


def test_a_repeat_that_is_infinite_is_left_out_and_counted(tmp_path):
    settings = stability_settings(tmp_path, gradient_repeats=6, draws=10)
    records = planted_repeats(settings)
    records["gradient-T1-000"]["differences"]["condition"][3] = "inf"
    found = stability_report.stability_findings(settings, list(records.values()))
    assert found.infinite == 1
    assert found.scores["gradient", 1, "condition"].shape == (126, 5)
    assert found.scores["gradient", 1, "harmonic"].shape == (126, 6)


def test_a_stability_study_measures_one_of_every_kind_first(tmp_path):
    items = list(stability.repeats_of(stability_settings(tmp_path)).values())
    assert [item[:2] for item in items[:4]] == [
        ("gradient", 1),
        ("gradient", 2),
        ("exact", 1),
        ("regions", 0),
    ]
    assert {item[2] for item in items[:4]} == {0}


@pytest.mark.slow
def test_gradient_repeats_are_timed_beside_one_evaluation(tmp_path):
    with counted(stability, "gradient_differences") as calls:
        record = stability.measure_repeat(stability_settings(tmp_path), "cpu", ("gradient", 1, 0))
    assert len(calls) == 2
    assert {len(values) for values in record["differences"].values()} == {126}
    assert record["evaluation_seconds"] > 0
    assert all(seconds > 0 for seconds in record["cpu_seconds"].values())


def test_a_stability_study_may_leave_out_what_is_taken_out_one_by_one(tmp_path):
    settings = stability_settings(tmp_path, exact_repeats=0, region_repeats=0)
    assert {kind for kind, _, _ in stability.repeats_of(settings).values()} == {"gradient"}
