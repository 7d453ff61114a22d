"""Cells as a picture for a notebook: SVG text, without any library.

The vertices of a cell stand in a row: the two inputs, then the nodes. An edge is an arc whose height grows
with its length, and its operation stands at the top. No two arcs have the same ends, so that no labels overlap.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mamltheory.nas.spelling import operation_words, source_words

STEP, TOP, RISE = 150, 30, 40
"""Distance of the vertices, place of the highest arc, and height of an arc by vertex that it passes, in pixels."""
INPUT, NODE = "#B7DFB0", "#AFD3EE"


def cells_as_html(cells: Mapping[Any, Sequence[tuple[int, int, str]]]) -> str:
    """Drawings of cells, one below the other.

    Args:
        cells: for every name of a cell its edges: source, vertex and operation; 0 and 1 are the inputs.

    Returns:
        A piece of HTML.
    """
    return "".join(
        f"<div><b>{escape(name)} cell</b><br>{_drawing(edges)}</div>" for name, edges in cells.items()
    )


def _drawing(edges: Sequence[tuple[int, int, str]]) -> str:
    vertices = tuple(map(source_words, range(max(vertex for _, vertex, _ in edges) + 1)))
    width, base = STEP * len(vertices), TOP + RISE * (len(vertices) - 1)
    parts = [_arc(base, *edge) for edge in edges]
    parts += [_vertex(base, i, label) for i, label in enumerate(vertices)]
    size = f'width="{width}" height="{base + 30}" viewBox="0 0 {width} {base + 30}"'
    style = 'font-family="sans-serif" font-size="12" text-anchor="middle"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>'


def _arc(base: int, source: int, vertex: int, operation: str) -> str:
    start, end, top = _place(source), _place(vertex), base - RISE * (vertex - source)
    path = f"M{start},{base} Q{(start + end) // 2},{2 * top - base} {end},{base}"
    line = f'<path d="{path}" fill="none" stroke="#555"/>'
    halo = 'stroke="white" stroke-width="4" paint-order="stroke"'
    return f'{line}<text x="{(start + end) // 2}" y="{top + 4}" {halo}>{escape(operation_words(operation))}</text>'


def _vertex(base: int, number: int, label: str) -> str:
    fill, x = INPUT if number < 2 else NODE, _place(number)
    box = f'<rect x="{x - 24}" y="{base - 11}" width="48" height="22" rx="4" fill="{fill}" stroke="#555"/>'
    return f'{box}<text x="{x}" y="{base + 4}">{label}</text>'


def _place(vertex: int) -> int:
    return STEP * vertex + STEP // 2
