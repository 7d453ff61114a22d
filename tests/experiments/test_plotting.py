"""Figures repeat byte by byte, carry their numbers, and cells are drawn without overlapping labels."""

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from experiments import plotting
from experiments.cell_drawing import _lanes
from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.nas.operations import OPERATIONS as SEARCHED
from mamltheory.nas.spelling import OPERATION_WORDS

OPERATIONS = ("sep_conv_3x3", "conv_1x5_5x1", "max_pool_3x3", "skip_connect")
FULL = [(s, t, OPERATIONS[(s + t) % 4]) for t in (2, 3, 4) for s in range(t)]
WRITER = """
import sys
from tests.experiments.test_plotting import write
write(sys.argv[1])
"""


def write(directory):
    with plotting.figure("page", height=2.4, columns=2) as (drawing, axes):
        widths = [64, 128, 256]
        for i in range(3):
            axes[0, 0].loglog(
                widths, [w ** -(i / 2) for w in widths], label=f"$l^{{-{i}/2}}$", **plotting.curve(i)
            )
        plotting.ticks_at(axes[0, 0].xaxis, widths)
        axes[0, 0].legend()
        plotting.draw_genotype(axes[0, 1], FULL, "Normal cell")
        config = {"out": Path("/somewhere/figures"), "data": "data/mini"}
        return plotting.save_figure(
            drawing, "both", {"widths": torch.tensor(widths)}, directory, config=config, seed=3
        )


def digests(paths):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes_in_another_process(tmp_path):
    here = write(tmp_path / "here")
    root = Path(__file__).resolve().parents[2]
    # Another hash seed shakes the order of sets; the later start shows that no time gets in.
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path / "there")], check=True, cwd=tmp_path, env=environment
    )
    assert digests(here) == digests([tmp_path / "there" / path.name for path in here])


def test_the_numbers_lie_beside_the_figure_without_absolute_paths(tmp_path):
    png, pdf, numbers = write(tmp_path)
    record = json.loads(numbers.read_text())
    assert record["data"] == {"widths": [64, 128, 256]}
    assert record["config"] == {"out": "figures", "data": "data/mini"}
    assert record["seed"] == 3
    assert record["versions"]["torch"]
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert pdf.read_bytes()[:4] == b"%PDF"
    assert b"CreationDate" not in pdf.read_bytes()


def test_the_readers_own_style_neither_changes_nor_matters(tmp_path):
    plain = digests(write(tmp_path / "plain"))
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        before = dict(matplotlib.rcParams)
        assert digests(write(tmp_path / "styled")) == plain
        assert dict(matplotlib.rcParams) == before


def test_plotting_leaves_pyplot_alone():
    code = "import sys, experiments.plotting; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_curves_differ_by_more_than_colour():
    styles = [plotting.curve(i) for i in range(len(plotting.COLOURS))]
    for key in ("color", "marker", "linestyle"):
        assert len({str(style[key]) for style in styles}) == len(styles)


@pytest.mark.parametrize("name", ["", "a/b", "../a"])
def test_a_name_with_a_folder_is_refused(tmp_path, name):
    with plotting.figure() as (drawing, _), pytest.raises(ConfigurationError, match="plain file name"):
        plotting.save_figure(drawing, name, {"a": 1}, tmp_path)


def test_a_figure_without_numbers_or_of_unknown_width_is_refused(tmp_path):
    with plotting.figure() as (drawing, _), pytest.raises(ConfigurationError, match="without data"):
        plotting.save_figure(drawing, "a", {}, tmp_path)
    with pytest.raises(ConfigurationError, match="page"):
        plotting.figure("wide").__enter__()


def drawn_texts(edges):
    """Bounding boxes in pixels of all texts of a drawn cell, as a page-wide figure shows them."""
    with plotting.figure("page", height=3.6) as (drawing, axes):
        plotting.draw_genotype(axes[0, 0], edges)
        canvas = FigureCanvasAgg(drawing)
        canvas.draw()
        renderer = canvas.get_renderer()
        return {
            (text.get_text(), i): text.get_window_extent(renderer) for i, text in enumerate(axes[0, 0].texts)
        }


genotypes = st.tuples(*[st.sets(st.integers(0, t - 1), min_size=1) for t in (2, 3, 4, 5)]).map(
    lambda sources: [
        (s, t, OPERATIONS[s % 4]) for t, each in enumerate(sources, start=2) for s in sorted(each)
    ]
)


@settings(max_examples=8)
@given(edges=genotypes)
def test_no_two_labels_of_a_cell_overlap(edges):
    boxes = drawn_texts(edges)
    assert len(boxes) == len(edges) + 7
    for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
        assert not first.overlaps(second), (a, b)


@settings(max_examples=50)
@given(edges=genotypes)
def test_no_two_edges_share_a_piece_of_a_lane(edges):
    lanes = _lanes([(s, t) for s, t, _ in edges], last=5)
    assert set(lanes) == {(s, t) for s, t, _ in edges} | {(s, 6) for s in (2, 3, 4)}
    for (first, a), (second, b) in itertools.combinations(lanes.items(), 2):
        if first[1] == second[1] == 6:  # what goes to the output runs together
            assert a == b
            continue
        apart = first[1] - 1 <= max(second[0], 1) - 1 or second[1] - 1 <= max(first[0], 1) - 1
        assert a != b or apart, (first, second)


def crossings(lanes):
    """Pairs of edges on one side, neither an output, of which one begins inside the other and ends outside."""
    spans = [((max(s, 1), t), lane) for (s, t), lane in lanes.items() if t < 5]
    return sum(
        a * b > 0 and p[0] < q[0] < p[1] < q[1] for (p, a), (q, b) in itertools.product(spans, repeat=2)
    )


def test_edges_cross_only_where_every_drawing_from_left_to_right_has_a_crossing():
    full = _lanes([(s, t) for s, t, _ in FULL], last=4)
    assert crossings(full) == 1  # node 1 lies between c_{k−2} above, c_{k−1} below, and the edge from 0 to 2
    for missing in ((0, 3), (1, 3), (2, 4)):
        assert crossings(_lanes([(s, t) for s, t, _ in FULL if (s, t) != missing], last=4)) == 0


def test_operations_are_drawn_in_their_one_spelling():
    names = [text for text, _ in drawn_texts([(0, i, name) for i, name in enumerate(SEARCHED, start=2)])]
    assert set(OPERATION_WORDS.values()) < set(names)


def test_several_operations_on_one_edge_share_a_label():
    texts = [text for text, _ in drawn_texts([(0, 2, "a"), (0, 2, "b"), (1, 2, "c")])]
    assert "a\nb" in texts
    assert "c" in texts


@pytest.mark.parametrize("edge", [(2, 2, "a"), (3, 2, "a"), (0, 1, "a"), (-1, 2, "a")])
def test_an_edge_that_cannot_exist_is_refused(edge):
    with plotting.figure() as (_, axes), pytest.raises(GenotypeError, match="cannot exist"):
        plotting.draw_genotype(axes[0, 0], [edge])


def test_a_cell_without_edges_is_refused():
    with plotting.figure() as (_, axes), pytest.raises(GenotypeError, match="no edges"):
        plotting.draw_genotype(axes[0, 0], [])
