"""The committed figures, drawn again from their numbers: what a reader needs is there, and nothing hides anything."""

import functools
import itertools
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from experiments.search.figures import score_scale
from experiments.search.settings import Search
from tests.experiments import redrawn

QUICK = {
    "drift_sphere",
    "bounds_sphere",
    "glyph-5/stability",
    "glyph-5/cells",
    "table_pictures_differences",
    "front_page",
}
"""Figures of the fast tests: they had the defects, or cost little."""


README_PIXELS = 820
"""Width of the text of a README."""


def name_of(path):
    return path.relative_to(redrawn.FIGURES).with_suffix("").as_posix()


@functools.cache
def drawing_of(path):
    """The figure of these numbers, laid out but not written."""
    drawn = []
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
        redrawn.redraw(path, Path(folder))
    assert len(drawn) == 2  # as picture and as PDF
    FigureCanvasAgg(drawn[0])
    drawn[0].draw_without_rendering()
    return drawn[0]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(path, id=name_of(path), marks=() if name_of(path) in QUICK else pytest.mark.slow)
        for path in redrawn.committed()
    ],
)
def drawing(request):
    return drawing_of(request.param)


def panels(drawing):
    """The axes that have scales."""
    return [axes for axes in drawing.axes if axes.axison and axes.get_lines()]


def legends(drawing):
    inner = [part for one in (drawing, *drawing.subfigs) for part in (one, *one.subfigs)]
    found = [each for part in inner for each in part.legends] + [axes.get_legend() for axes in drawing.axes]
    return {id(each): each for each in found if each is not None}.values()


def box(artist):
    return artist.get_window_extent(artist.get_figure(root=True).canvas.get_renderer())


def test_every_axis_says_what_it_is_of(drawing):
    for axes in panels(drawing):
        for name in "xy":
            alike = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
            alike += [each for each in panels(drawing) if name == "y" and in_one_row(each, axes)]
            labels = [getattr(each, f"get_{name}label")() for each in alike]
            ticks = [text.get_text() for each in alike for text in getattr(each, f"get_{name}ticklabels")()]
            assert any(labels) or any(word[:1].isalpha() for word in ticks), (axes.get_title(), name)


def in_one_row(first, second):
    rows = [axes.get_subplotspec().rowspan for axes in (first, second)]
    return rows[0] == rows[1] and first.get_gridspec() is second.get_gridspec()


def test_the_title_says_of_what_data_and_seed_the_figure_is(drawing):
    title = drawing.get_suptitle()
    words = ("seed", "thread")  # a benchmark has a machine and no seed
    assert any(word in title for word in words), title
    assert any(word in title for word in ("glyph", "sphere", "pictures", "float32")), title


def test_no_legend_lies_on_a_panel(drawing):
    found = legends(drawing)
    assert all(not box(legend).overlaps(axes.bbox) for legend in found for axes in panels(drawing))
    for first, second in itertools.combinations(found, 2):
        assert not box(first).overlaps(box(second))


def test_no_two_entries_of_a_legend_look_alike(drawing):
    for legend in legends(drawing):
        looks = [
            (line.get_color(), line.get_marker(), line.get_linestyle(), line._dash_pattern,
             line.get_markerfacecolor(), line.get_linewidth())
            for line in legend.get_lines()
        ]  # fmt: skip
        assert len(set(map(str, looks))) == len(looks)


def test_all_words_are_on_the_page(drawing):
    page, seen = drawing.bbox, 0
    for text in drawing.findobj(Text):
        if text.get_text() and text.get_visible() and not hidden_tick(text, drawing):
            seen += 1
            corners = box(text).get_points()
            assert (page.min <= corners).all(), text.get_text()
            assert (corners <= page.max).all(), text.get_text()
    assert seen > 5


def hidden_tick(text, drawing):
    """Whether a text is a label of a tick beyond the limits of its axis, which is not drawn."""
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = {id(label) for tick in (*axis.majorTicks, *axis.minorTicks)
                      for label in (tick.label1, tick.label2)}  # fmt: skip
            if id(text) in labels:
                drawn = axis._update_ticks() if axes.axison else ()
                return id(text) not in {id(label) for tick in drawn for label in (tick.label1, tick.label2)}
    return False


def test_no_curve_lies_on_another(drawing):
    """Within half a point all along, where not even different dashes tell them apart."""
    for axes in panels(drawing):
        curves = [line for line in axes.get_lines() if len(np.unique(line.get_xdata())) > 2]
        for first, second in itertools.combinations(curves, 2):
            if joined(first) == joined(second):
                assert distance(places(first), places(second)) > 0.5, (first.get_label(), second.get_label())


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of heights where both curves have points on their way; ∞ where they hardly meet."""
    one, other = (each[np.isfinite(each).all(axis=1)] for each in (one, other))
    one, other = (each[np.argsort(each[:, 0])] for each in (one, other))
    low, high = max(one[0, 0], other[0, 0]), min(one[-1, 0], other[-1, 0])
    if high - low < 0.5 * min(np.ptp(one[:, 0]), np.ptp(other[:, 0])):
        return math.inf
    x = np.linspace(low, high, 50)
    return float(np.abs(np.interp(x, *one.T) - np.interp(x, *other.T)).max())


def joined(line: Line2D) -> bool:
    """Whether a line is drawn between the points; the points of a measurement may lie on its own fit."""
    return line.get_linestyle() != "None"


def places(line: Line2D) -> np.ndarray:
    return line.get_transform().transform(line.get_xydata()) * 72 / line.get_figure(root=True).dpi


def drawn_values(axes, names, data):
    """Which of these measurements a panel draws."""
    lines = [np.asarray(line.get_ydata()) for line in axes.get_lines()]
    return {
        name for name in names for line in lines
        if line.shape == np.shape(data[name]) and np.array_equal(line, data[name])
    }  # fmt: skip


def test_a_panel_of_the_drift_has_measurements_of_one_unit():
    path = redrawn.FIGURES / "drift_sphere.json"
    data = json.loads(path.read_text())["data"]
    found = {name: each["rms"] for name, each in data.items() if "widths" not in name}
    per_panel = [drawn_values(axes, found, found) for axes in panels(drawing_of(path))]
    assert sorted(map(sorted, per_panel)) == [
        ["bound (29)", "movement", "path_length"], ["bound (30)", "kernel_drift"], ["kernel_deviation"],
    ]  # fmt: skip


def test_a_panel_of_the_bounds_has_the_path_or_the_drift_with_its_bound():
    path = redrawn.FIGURES / "bounds_sphere.json"
    columns = json.loads(path.read_text())["data"]
    found = {
        (depth, name, kind): data[name][kind]
        for depth, data in columns.items() for name in ("path_length", "kernel_drift") for kind in ("rms", "bound_rms")
    }  # fmt: skip
    per_panel = [drawn_values(axes, found, found) for axes in panels(drawing_of(path))]
    assert sorted(len(each) for each in per_panel) == [0] * 6 + [2] * 6
    assert all(len({one[:2] for one in each}) == 1 for each in per_panel if each)


def test_the_front_page_is_read_at_the_width_of_a_readme():
    drawing = drawing_of(redrawn.FIGURES / "front_page.json")
    with Image.open(redrawn.FIGURES / "front_page.png") as picture:
        assert picture.width == 1600
    words = [each for each in drawing.findobj(lambda one: hasattr(one, "get_fontsize")) if each.get_text()]
    pixels = [each.get_fontsize() * README_PIXELS / 72 / drawing.get_figwidth() for each in words]
    assert len(words) > 20
    assert min(pixels) >= 13
    first, second = (axes.get_position() for axes in panels(drawing))
    assert (first.y0, first.y1) == pytest.approx((second.y0, second.y1))


def test_a_found_cell_says_which_scores_are_good():
    title = drawing_of(redrawn.FIGURES / "glyph-5" / "cells.json").get_suptitle()
    assert "on 4 new draws; lower is better, 0 is perfect conditioning" in title


@pytest.mark.slow
def test_the_committed_pictures_are_what_the_code_draws(drawing_bytes):
    drawn, committed = drawing_bytes
    assert drawn == committed


@pytest.fixture(params=redrawn.committed(), ids=name_of)
def drawing_bytes(request, tmp_path):
    """The picture of these numbers, as drawn now and as committed; equal fonts and libraries give equal bytes."""
    redrawn.redraw(request.param, tmp_path)
    picture = request.param.with_suffix(".png")
    return (tmp_path / picture.name).read_bytes(), picture.read_bytes()


@pytest.mark.parametrize(
    ("method", "words"),
    [("regions", "higher is better"), ("te-nas", "lower is better, 0 is perfect conditioning")],
)
def test_which_scores_are_good_depends_on_the_criteria(method, words):
    assert score_scale(Search(method=method).resolved()) == words
