"""What titles, marks and axes of figures say is what their numbers say."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.benchmarks import report
from experiments.search.comparison_report import chance_of_equals
from experiments.studies.table_figure import forest_rows
from experiments.studies.table_findings import TableFindings
from experiments.studies.table_words import LABELS
from experiments.tables.figure import size_axis
from experiments.theory import bounds, front_page, laziness
from experiments.theory.laziness import MEASURES, RATES
from mamltheory.errors import ConfigurationError
from tests.experiments.redrawn import FIGURES, rebuilt


def numbers(name):
    return json.loads((FIGURES / f"{name}.json").read_text())["data"]


def test_the_front_page_has_the_numbers_of_the_two_figures_that_it_names():
    data, shown = numbers("front_page"), numbers("convergence_sphere")
    assert {name: shown[name] for name in data["convergence"]} == data["convergence"]
    shown = numbers("drift_sphere")
    assert {name: shown[name] for name in data["drift"]} == data["drift"]


def test_the_front_page_needs_both_figures_with_equal_settings(tmp_path):
    with pytest.raises(ConfigurationError, match=r"convergence_sphere\.json is missing"):
        front_page.front_page_numbers(tmp_path)
    for name in front_page.SOURCES.values():
        record = json.loads((FIGURES / f"{name}.json").read_text())
        record["config"]["steps"] += len(name)
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    with pytest.raises(ConfigurationError, match="differ in steps"):
        front_page.front_page_numbers(tmp_path)


def test_the_title_of_laziness_is_true_of_every_panel():
    data = numbers("laziness_sphere")
    assert laziness.claim(data).startswith("In mean field and beyond the critical rate the kernel moves")
    data["measures"]["drift"]["sigma_w"][-1][0][0] = 2.0
    assert laziness.claim(data).endswith("?")
    for found in (numbers("laziness_sphere")["measures"][measure] for measure in MEASURES):
        by_control = {
            name: np.sqrt((np.array(found[name]) ** 2).mean(axis=1))
            for name in ("multiplier", "rate", "sigma_w")
        }
        beyond = np.array(RATES) > 1
        assert min(found["mean field"]["rms"]) > 0.1
        assert by_control["rate"][:, beyond].min() > 0.05
        falling = [by_control["multiplier"], by_control["rate"][:, ~beyond], by_control["sigma_w"]]
        falling += [np.array(found[name]["rms"])[:, None] for name in ("standard", "ntk")]
        assert all((each[-1] < 0.4 * each[0]).all() for each in falling)


def test_the_title_of_bounds_is_true():
    columns = numbers("bounds_sphere")
    assert "from $l$ = 32 on is within" in bounds.claim(columns)
    assert "at most 13 % of" in bounds.claim(columns)
    columns["L = 2"]["residual"]["share_below_bound"][-1] = 0.9
    columns["L = 3"]["path_length"]["values"][0][0] = 2 * columns["L = 3"]["path_length"]["bound"][0][0]
    assert "Not every network, at any width" in bounds.claim(columns)
    assert "at most 2e+02 %" in bounds.claim(columns)


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_chance_is_what_random_prunings_share(protocol):
    draws, shared, random = 20_000, 0.0, np.random.default_rng(0)
    for sources in (2, 3, 4):
        kept = [
            random.random((draws, sources)).argsort(axis=1) < (2 if protocol == "released" else 4)
            for _ in range(2)
        ]
        same = random.integers(7, size=(draws, sources)) == random.integers(7, size=(draws, sources))
        shared += 2 * (kept[0] & kept[1] & same).sum(axis=1).mean()
    assert chance_of_equals(protocol) == pytest.approx(shared, abs=0.05)


def test_equal_size_shows_every_score_at_initialisation():
    found = rebuilt(TableFindings, numbers("equal_size")["findings"])
    scores = {LABELS[row.name] for row in found.predictors if row.group == "training-free"}
    rows = [label for group, label, *_ in forest_rows(found) if group == "at initialisation"]
    assert len(rows) == len(set(rows)) == 11
    assert set(rows) == scores


@pytest.mark.parametrize(
    ("sizes", "broken"), [([20, 30, 40, 50, 70, 135], True), ([20, 30, 45, 65, 95, 135], False)]
)
def test_the_axis_of_sizes_is_broken_at_a_wide_gap_alone(sizes, broken):
    panel = Figure().subplots()
    panel.plot(sizes, np.ones(len(sizes)), "o")
    size_axis(panel, sizes)
    places = panel.transAxes.inverted().transform(panel.transData.transform([(each, 1.0) for each in sizes]))[
        :, 0
    ]
    assert (np.diff(places) > 0).all()
    assert np.diff(places).max() < 0.35
    assert [text.get_text() for text in panel.texts] == ["//"] * broken
    low, high = panel.get_xlim()
    ticks = [tick for tick in panel.get_xticks() if low <= tick <= high]
    assert not broken or (ticks[-1] == 135 and 100 not in ticks)


def test_no_memory_is_drawn_below_what_is_resolved():
    points = [(64, 1e5), (128, 0), (256, 9e6), (512, None)]
    curves = {"ours": [(w, {"median_seconds": 1.0, "peak_bytes": b, "parameters": w}) for w, b in points]}
    axes = Figure().subplots(2, 1, squeeze=False)
    report.draw_panels(axes, {"NTK": curves}, "CPU")
    line = next(each for each in axes[1][0].get_lines() if each.get_label() == "ours")
    assert list(zip(*line.get_data(), strict=True)) == [
        (64, report.UNRESOLVED),
        (128, report.UNRESOLVED),
        (256, 9.0),
    ]
    assert axes[1][0].get_ylim()[0] < report.UNRESOLVED
