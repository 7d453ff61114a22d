"""The report on a table finds what was planted in it, and says it; halves are kept apart."""

import dataclasses
import json
from functools import lru_cache

import numpy as np
import pytest

from experiments.genotypes import network_size
from experiments.studies import correlation, table_findings, table_replays, table_report
from experiments.studies.settings import Correlation, Tabulate
from mamltheory.errors import ConfigurationError
from mamltheory.fewshot.glyphs import glyph_data
from mamltheory.nas.algorithms import halving
from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.sizes import genotype_parameters
from mamltheory.nas.table import Table, table_from
from mamltheory.rng import generator
from mamltheory.runtime.records import plain, to_json
from tests.experiments.studies.planted_tables import USELESS, planted_content, planted_table

DRAWS = 40


@pytest.fixture(autouse=True)
def _few_resampled_tables(monkeypatch):
    monkeypatch.setattr(table_replays, "BOOTSTRAPS", 5)


@lru_cache
def planted():
    return planted_table(cells=72)


@lru_cache
def findings():
    return table_findings.table_findings(planted(), 200, 0)


def rows():
    return {(row.group, row.name): row for row in findings().predictors}


def test_a_planted_score_is_found_beyond_all_that_were_tried_and_useless_ones_are_not():
    found = rows()
    free = [row for row in found.values() if row.group == "training-free"]
    assert len(free) == len(USELESS) + 4
    known = {row.name for row in free if row.adjusted < 0.05}
    assert known == {"regions", "paper", "te-nas"}
    regions = found["training-free", "regions"]
    assert regions.mean.tau.value > regions.network.tau.value > 0.6
    assert regions.reliability == pytest.approx(1)
    for name in USELESS:
        row = found["training-free", name]
        assert row.adjusted >= row.mean.tau_p
        assert row.seconds == 1.5
    assert (
        found["size", "parameters"].network.tau.interval[0]
        < 0
        < found["size", "parameters"].mean.tau.value + 1
    )


def test_early_training_knows_its_own_run_better_than_another_and_more_with_every_epoch():
    found = rows()
    for group in ("accuracy", "loss"):
        late, early = found[group, "12"], found[group, "1"]
        assert late.network.tau.value > early.network.tau.value > 0
        assert late.network.tau.value > late.mean.tau.value > late.other.tau.value > 0.3
        assert (early.seconds, late.seconds) == (2, 24)


def test_the_noise_of_a_training_and_the_spread_of_the_cells_are_those_that_were_planted():
    found = table_findings.table_findings(planted_table(cells=100, doubled=0, scored=0), 2, 0)
    assert found.noise.deviation == pytest.approx(0.01, rel=0.25)
    assert found.between == pytest.approx(0.03, rel=0.3)
    assert found.kernels == []
    assert found.scale == {}


def test_kernels_in_training_are_chosen_on_even_cells_and_adjusted_for_all_that_was_tried():
    found = findings()
    assert len(found.kernels) == 3 * (len(USELESS) + 1)
    last = next(row for row in found.kernels if (row.epoch, row.name) == (4, "regression accuracy"))
    assert last.tau_adjusted < 1e-3
    assert last.every.tau.value < found.few_shot[4].tau.value
    for row in found.kernels:
        assert row.tau_adjusted >= row.every.tau_p
        if row.name in USELESS:
            assert row.tau_adjusted > 0.05
    best = table_findings.chosen_kernel(found.kernels)
    assert abs(best.even.partial.value) == max(abs(row.even.partial.value) for row in found.kernels)
    other = Table(planted().settings, planted().cells[1:])  # now what was odd is even
    shifted, _ = table_findings.kernel_scores(other, 20, 0)
    same = {(row.epoch, row.name): row.odd.tau.value for row in found.kernels}
    assert {(row.epoch, row.name): row.even.tau.value for row in shifted} == pytest.approx(same)


def test_the_ranking_of_another_scale_is_that_of_the_cells():
    scale = findings().scale
    assert scale["mean"].tau.value > 0.5
    assert scale["val 12"].tau.value > 0
    assert findings().scale_cells == 24


def test_searches_gain_what_was_planted_and_what_is_confirmed_took_no_part_in_the_choice():
    found = table_replays.replays(planted(), DRAWS, 0)
    gains = {each.label: each.found for each in found.all}
    assert gains["random cell"].seconds == 24
    assert gains["best of 16 by C_N"].kept.low < 0 < gains["best of 16 by C_N"].kept.high
    for score in ("C_N", "C_N + R_N"):  # both scores of the sum are paid once
        assert gains[f"best of 16 by {score}"].seconds == 16 * 1.5 + 24
    assert 1 < gains["best of 16 by C_N + R_N"].retrained.mean < 6
    halved = next(each for each in found.all if each.label.startswith("halving 32"))
    assert halved.found.kept.low > 0
    assert halved.found.kept.mean > halved.found.retrained.mean > 2
    assert halved.trainings == pytest.approx(112 / 12)
    assert {each.cells for each in found.examined} == {"even"}
    assert {each.cells for each in found.confirmed} == {"odd"}
    # 64 candidates are more than half of the cells.
    assert len(found.examined) == 4 * 3 - 4 + 4 * 2
    best = max(found.examined, key=lambda each: each.found.kept.mean + each.found.retrained.mean)
    assert best.label == found.chosen
    assert [each.group for each in found.confirmed][:2] == ["training", "warm start"]


def test_a_rung_is_ranked_by_its_own_quantity():
    rungs = table_replays.with_rankings(((8, 1), (4, 2), (2, 12)), "accuracy", "loss")
    assert [rung.by for rung in rungs] == ["accuracy", "accuracy", "loss"]
    assert table_replays.in_words(rungs) == "8 → 4 → 2 at 1/2/12 by accuracy, last by loss"
    assert table_replays.in_words(halving.DEFAULT_RUNGS).startswith("32 → 8 → 4 at 2/4/12")


def test_a_diverged_training_and_a_singular_kernel_rank_last():
    content = planted_content(cells=20, doubled=0, scored=0)
    first = content["cells"][0]
    first["trainings"][0] |= {"diverged": True} | {
        name: first["trainings"][0][name][:2] for name in ("epoch", "loss", "train_accuracy", "cpu_seconds")
    }
    for name in ("val", "test"):
        first["trainings"][0][name] = {k: v[:2] for k, v in first["trainings"][0][name].items()}
    del first["trainings"][0]["accuracy"]
    content["cells"][1]["scores"]["maml condition"][0] = None
    table = table_from(plain(content))
    assert table_findings.accuracies(table.cells)[0] == 0
    assert table_findings.during(table.cells, 4, "loss")[0] == -np.inf
    assert table_findings.pool_scores(table.cells)["maml condition"][1, 0] == -np.inf
    found = table_findings.table_findings(table, 20, 0)
    assert found.diverged == 1
    assert found.noise.pairs == 19
    assert all(np.isfinite(row.network.tau.value) for row in found.predictors)


def test_the_report_of_a_file_is_written_by_correlation_and_says_the_answers(tmp_path, capsys):
    path = tmp_path / "table.json"
    path.write_text(to_json(planted_content(cells=36, doubled=16, scored=20)))
    out = tmp_path / "out"
    assert correlation.study_correlation(Correlation(table=str(path), out=out, draws=20)) == 0
    text = (out / "equal_size.md").read_text()
    assert text in capsys.readouterr().out
    assert "linear regions R_N" in text.split("can be told from chance")[0]
    assert "better cell at equal size? By this table, no" in text
    numbers = json.loads((out / "equal_size.json").read_text())["data"]
    assert len(numbers["findings"]["predictors"]) == 2 + len(USELESS) + 4 + 14
    assert numbers["searches"]["chosen"] in text
    assert "With a surrogate, fitted on the even cells" in text
    assert (out / "equal_size.png").stat().st_size > 10_000


def test_the_answer_on_the_condition_number_follows_its_sign_and_significance():
    row = rows()["training-free", "regions"]
    assert "By this table, yes" in table_report.condition_answer(row, ())
    worse = dataclasses.replace(
        row, mean=dataclasses.replace(row.mean, tau=dataclasses.replace(row.mean.tau, value=-0.4))
    )
    assert "no, rather a worse one" in table_report.condition_answer(worse, ())
    assert "cannot be told" in table_report.condition_answer(dataclasses.replace(row, adjusted=0.2), ())


def test_a_table_of_few_cells_is_told_to_be_too_small(tmp_path, capsys):
    table_report.report_table(planted_table(cells=15, doubled=0, scored=0), tmp_path, DRAWS, 0)
    assert "15 cells were trained twice, a report needs 16" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_networks_of_a_band_lie_in_it_and_others_are_the_former_ones(monkeypatch):
    data = glyph_data(16, 5, 5, 5, samples_per_class=2)
    monkeypatch.setattr(correlation, "data_of", lambda _: data)
    within = Correlation(parameters="36000:42000", channels=8)
    size = network_size(within, 5)
    for index in range(2):
        genotype = correlation.genotype_of(within, index)
        assert 36000 <= genotype_parameters(genotype, size) <= 42000
        free = correlation.genotype_of(dataclasses.replace(within, parameters=None), index)
        assert free == random_genotype(generator(0, "study genotype", index))


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigurationError, match="leave one out"):
        Correlation(parameters="36000:42000", table="glyphs")
    with pytest.raises(ConfigurationError, match="as in 36000:42000"):
        Correlation(parameters="some")
    with pytest.raises(ConfigurationError, match="draws"):
        Tabulate(draws=0)
