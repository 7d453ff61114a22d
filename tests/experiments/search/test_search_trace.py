"""The figure of a search's course shows what the state holds, readably."""

import itertools
import json

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments.search import figures
from experiments.search.figures import certainties, draw_trace, trace_data
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.ranking import contests
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.operations import OPERATIONS
from tests.experiments.search.scattered import SETTINGS, scored
from tests.experiments.tiny import nearly_done

DRAWN = {"data": "glyphs", "method": "metantk-nas", "cells": 3, "channels": 4}


@pytest.fixture(scope="module")
def state():
    return run_search(scored, SETTINGS)


def test_the_numbers_drawn_are_the_decisions_of_the_search(state):
    data = trace_data(state)
    pruned = [d for d in state.trace if d.pruned]
    assert [(f["round"] - 1, f["operation"], f["score"]) for f in data["fields"]] == [
        (d.round_index, d.operator.operation, d.delta_condition) for d in pruned
    ]
    for row in figures.rows():
        gone = [f for f in data["fields"] if (f["cell"], f["node"], f["source"]) == row]
        left = [s for s in data["survivors"] if (s["cell"], s["node"], s["source"]) == row]
        assert len(gone) + len(left) == len(OPERATIONS)
        assert {f["operation"] for f in gone} | {s["operation"] for s in left} == set(OPERATIONS)
        assert [f["round"] for f in gone][:6] == [1, 2, 3, 4, 5, 6]
    assert [r["second_stage"] for r in data["rounds"]] == [False] * 6 + [True] * 4
    assert len(data["survivors"]) == 12
    assert json.loads(json.dumps(data)) == data


def test_how_surely_is_the_probability_of_the_edge_even_where_a_score_is_infinite(state):
    for k, report in enumerate(state.reports):
        decisions = [d for d in state.trace if d.round_index == k]
        sure = certainties(decisions, report)
        assert list(sure) == list(contests([d.operator for d in decisions]))
        assert tuple(sure.values()) == report.reliability.certainty.by_edge
        assert {name for name, p in sure.items() if p < figures.SEPARATED} == set(report.undecided)
    whole = {(f["round"], f["undecided"]) for f in trace_data(state)["fields"] if f["probability"] < 0.9}
    assert all(undecided for _, undecided in whole)


def test_a_search_at_random_has_neither_scores_nor_certainty():
    found = run_search(None, SearchSettings(criteria=()), nearly_done())
    fields = trace_data(found)["fields"]
    assert len(fields) == 4
    assert {(f["score"], f["probability"], f["undecided"]) for f in fields} == {(None, None, False)}
    assert {r["repeats"] for r in trace_data(found)["rounds"]} == {0}


def test_nothing_in_the_figure_overlaps(state, tmp_path, monkeypatch):
    drawn, save = [], figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda *a: (drawn.append(a[0]), save(*a))[1])
    paths = draw_trace(state, "trace", tmp_path, DRAWN, 0)
    assert json.loads(paths[2].read_text())["data"] == trace_data(state)
    [drawing] = drawn
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()
    texts = [text for axes in drawing.axes[:1] for text in axes.texts if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts]
    assert len(boxes) > 2 * 108
    page = drawing.bbox
    for text, box in boxes:
        assert page.x0 <= box.x0 <= box.x1 <= page.x1, text
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (a, b)
