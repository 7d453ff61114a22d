"""The paper's scores among random cells of one size: deterministic, by rank, and robust against singular kernels."""

import json
import math
from operator import itemgetter

import pytest

from experiments.genotypes import read_genotype
from experiments.search import sampling, search
from mamltheory import nas
from mamltheory.nas import search_scorer
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.sizes import genotype_parameters
from mamltheory.runtime.runlog import read_run
from tests.experiments.search.halving_cases import backwards
from tests.experiments.stops import ctrl_c_during
from tests.experiments.tiny import files, search_settings

pytestmark = pytest.mark.usefixtures("few_images")
SIZE = NetworkSettings(4, 3, 6, 4)
FROM_PYTHON = {"parameters": (5000, 8000), "samples": 4, "repeats": 2, "size": SIZE, "ways": 2, "tasks": 1}
"""The settings below, as the function takes them."""


def settings_of(folder, **others):
    return search_settings(folder, **{"parameters": "5000:8000", "samples": 4, "repeats": 2} | others)


def result(settings):
    return [(settings.out / name).read_bytes() for name in ("genotype.json", "search.json")]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory, few_images):  # noqa: ARG001
    """Settings of a search that has finished in its folder."""
    settings = settings_of(tmp_path_factory.mktemp("sampled") / "search")
    assert search.search_and_draw(settings) == 0
    return settings


def test_the_best_of_random_cells_in_the_band_has_the_least_sum_of_ranks(sampled):
    found = json.loads((sampled.out / "search.json").read_text())
    rows = found["cells"]
    assert len(rows) == 4
    for row in rows:
        better = sum(other["log condition"] < row["log condition"] for other in rows)
        richer = sum(other["regions"] > row["regions"] for other in rows)
        assert row["rank"] == better + richer + 2
        assert 5000 <= row["parameters"] <= 8000
    best = rows[found["cell"]]
    assert best["rank"] == min(row["rank"] for row in rows)
    genotype = read_genotype(sampled.out / "genotype.json")
    assert genotype.to_json() == best["genotype"] == found["genotype"]
    assert genotype_parameters(genotype, SIZE) == found["parameters"]
    assert read_run(sampled.out)["results"]["cpu_seconds"] > 0
    drawn = {f"cells.{ending}" for ending in ("png", "pdf", "json")}
    assert files(sampled.out) == {"genotype.json", "search.json", "run.json", *drawn}


def test_from_python_the_same_cells_are_drawn_and_the_same_one_is_chosen(sampled, few_images, monkeypatch):
    monkeypatch.setattr(search_scorer, "FINAL_DRAWS", 2)
    lines: list[str] = []
    found = nas.search(few_images, **FROM_PYTHON, progress=lines.append)
    told = json.loads((sampled.out / "search.json").read_text())
    rows = sorted(told["cells"], key=itemgetter("rank"))
    parts = ("genotype", "parameters", "log condition", "regions", "rank")
    assert [[row[name] for name in parts] for row in rows] == [
        [cell.genotype.to_json(), cell.parameters, cell.score, cell.regions, cell.rank]
        for cell in found.sampled
    ]
    assert found.genotype.to_json() == told["genotype"]
    assert found.network.candidates.genotype() == found.genotype
    assert lines == ["repeat 1: 4 cells scored", "repeat 2: 4 cells scored"]
    assert repr(found).endswith("2 scores, 4 cells)")
    assert len({score.condition for score in found.scores}) == 2


def test_a_finished_search_says_what_it_found_and_scores_nothing_again(sampled, monkeypatch, capsys):
    for module, name in ((sampling, "score_sampled"), (search, "draw_cells"), (search, "sampled_cells")):
        monkeypatch.setattr(module, name, None)
    before, seconds = result(sampled), read_run(sampled.out)["results"]["cpu_seconds"]
    assert search.search_and_draw(sampled) == 0
    assert result(sampled) == before
    assert read_run(sampled.out)["results"]["cpu_seconds"] == seconds
    said, found = capsys.readouterr().out, json.loads(before[1])
    first, second = found["places"].values()
    assert f"{first}. by condition number, {second}. by linear regions of 4 random cells\n" in said
    assert f"{found['agreeing']} of 2 repeats alone take this cell\n" in said


def test_a_stop_and_the_order_of_repeats_change_nothing(sampled, tmp_path, monkeypatch):
    settings = settings_of(tmp_path)
    with ctrl_c_during(sampling, "score_sampled", 1):
        search.search_cells(settings)
    assert read_run(tmp_path)["status"] == "interrupted"
    monkeypatch.setattr(sampling, "spread_over", backwards)
    search.search_cells(settings)
    assert result(settings) == result(sampled)


@pytest.mark.parametrize(("regions", "expected"), [(True, 0), (False, 1)])
def test_the_criteria_decide_and_a_singular_kernel_is_last(tmp_path, monkeypatch, regions, expected):
    # Cell 1 has the least condition number, and cell 0 the least sum of ranks.
    conditions = (2.0, 1.0, math.inf, 3.0)

    def scores(scorer, cells, repeat):
        del scorer, repeat
        return [Score(c, r) for c, r in zip(conditions[: len(cells)], (9.0, 2.0, 1.0, 3.0), strict=True)], 1.0

    monkeypatch.setattr(sampling, "score_sampled", scores)
    settings = settings_of(tmp_path, regions=regions)
    search.search_cells(settings)
    found = json.loads((tmp_path / "search.json").read_text())
    assert found["cell"] == expected
    assert found["cells"][2]["log condition"] == "inf"
    assert max(row["rank"] for row in found["cells"]) == found["cells"][2]["rank"]
