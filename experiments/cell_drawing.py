"""A searched cell as a graph in the manner of Figure 2: one column per node, one lane per edge.

Every intermediate node has its own column on the centre line. An edge to the next column is straight; every
other edge runs along a horizontal lane and carries its operation in the last gap before its target. Edges from
c_{k−2} run above, those from c_{k−1} below; the others, and what goes to the output, run on whichever side crosses
fewer edges. No two edges share a piece of a lane, so labels cannot overlap, whatever the genotype. A cell with all
nine edges cannot be drawn from left to right without a crossing: there the later edge bridges the earlier one.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.patheffects import Normal, Stroke

from mamltheory.errors import GenotypeError
from mamltheory.nas.spelling import operation_words, source_words

Point = tuple[float, float]
INPUT, INTERMEDIATE, OUTPUT = "#B7DFB0", "#AFD3EE", "#F9E79F"
HALF_WIDTH, HALF_HEIGHT = 0.15, 0.36
MOST_TRIED = 6
"""Edges whose sides are chosen for few crossings: all of them in cells of up to five nodes."""
TURN = 0.24  # where a lane begins and ends, in columns from the node's centre


def draw_genotype(axes: Axes, edges: Sequence[tuple[int, int, str]], title: str | None = None) -> None:
    """Draw a cell as in Figure 2: inputs green, intermediate nodes blue, output yellow, operations on edges.

    Args:
        axes: Axes of about the full page's width and 0.3 inch of height per lane.
        edges: (source, target, operation). Nodes 0 and 1 are the inputs c_{k−2} and c_{k−1}; 2, 3, ... are the
            intermediate nodes, labelled 0, 1, ..., which the output c_k concatenates. Several operations on one
            edge share one label.
        title: Title of the axes.
    """
    operations = _operations(edges)
    last = max(target for _, target in operations)
    lanes = _lanes(list(operations), last)
    centres = _centres(last)
    for node in range(2, last + 1):
        lane = 0 if node == last else lanes[node, last + 1]
        _edge(axes, centres[node], centres[last + 1], lane, "")
    for (source, target), labels in sorted(operations.items(), key=lambda each: -abs(lanes[each[0]])):
        _edge(axes, centres[source], centres[target], lanes[source, target], "\n".join(labels))
    for node, centre in centres.items():
        _node(axes, centre, *_appearance(node, last))
    reach = max(last - 1, *map(abs, lanes.values()))  # the same for all cells of so many nodes
    axes.set(xlim=(-0.2, centres[last + 1][0] + 0.2), ylim=(-reach - 0.5, reach + 0.5))
    axes.set_axis_off()
    if title is not None:
        axes.set_title(title)


def _operations(edges: Sequence[tuple[int, int, str]]) -> dict[tuple[int, int], list[str]]:
    operations = defaultdict(list)
    for source, target, operation in edges:
        if not (0 <= source < target and target >= 2):
            raise GenotypeError(
                f"edge {source} → {target} cannot exist: expected a source before its target, "
                "and a target of at least 2 (0 and 1 are the cell's inputs)"
            )
        operations[source, target].append(operation_words(operation))
    if not operations:
        raise GenotypeError("got no edges: a cell to draw needs at least one")
    return dict(operations)


def _lanes(edges: list[tuple[int, int]], last: int) -> dict[tuple[int, int], int]:
    """The signed lane of every edge, including those to the output; 0 is the centre line."""
    # The sides have the fewest crossings of operations, then of all edges, then the fewest lanes; otherwise edges
    # between nodes run above and those to the output below.
    lanes = {edge: 0 for edge in edges if edge[0] >= 2 and edge[1] == edge[0] + 1}
    fixed = {edge: -1 if edge[0] == 1 else 1 for edge in edges if edge[0] < 2}
    free = [edge for edge in edges if edge[0] >= 2 and edge not in lanes]
    outputs = [(node, last + 1) for node in range(2, last)]
    best: tuple[tuple[int, int, int], dict[tuple[int, int], int]] | None = None
    tried, rest = free[:MOST_TRIED], {edge: (-1) ** i for i, edge in enumerate(free[MOST_TRIED:])}
    for *sides, down in itertools.product((1, -1), repeat=len(tried) + 1):
        chosen = fixed | rest | dict(zip(tried, sides, strict=True)) | dict.fromkeys(outputs, -down)
        found = _one_layout(chosen, set(outputs))
        between = {edge: lane for edge, lane in found.items() if edge not in outputs}
        cost = (_crossings(between), _crossings(found), max(map(abs, found.values()), default=0))
        if best is None or cost < best[0]:
            best = cost, found
    assert best is not None  # the loop has at least two passes
    return lanes | best[1]


def _one_layout(
    sides: dict[tuple[int, int], int], outputs: set[tuple[int, int]]
) -> dict[tuple[int, int], int]:
    """Short edges first, each on the innermost free lane of its side; the edges to the output share one."""
    taken: dict[int, dict[int, list[tuple[int, int]]]] = {+1: defaultdict(list), -1: defaultdict(list)}
    lanes = {}
    for edge in sorted(sides, key=lambda edge: (edge not in outputs, edge[1] - max(edge[0], 1), edge)):
        side, span, lane = sides[edge], (max(edge[0], 1), edge[1]), 1
        while edge not in outputs and any(span[0] < b and a < span[1] for a, b in taken[side][lane]):
            lane += 1
        taken[side][lane].append(span)
        lanes[edge] = side * lane
    return lanes


def _crossings(lanes: dict[tuple[int, int], int]) -> int:
    """How often the way of an edge to and from its lane meets another lane further in."""
    count = 0
    for (edge, outer), (other, inner) in itertools.permutations(lanes.items(), 2):
        if outer * inner > 0 and abs(outer) > abs(inner):
            count += sum(max(other[0], 1) < end < other[1] for end in edge)
    return count


def _centres(last: int) -> dict[int, Point]:
    inputs = {0: (0.0, 1.0), 1: (0.0, -1.0)}
    intermediate = {node: (float(node - 1), 0.0) for node in range(2, last + 1)}
    return inputs | intermediate | {last + 1: (last - 0.4, 0.0)}


def _edge(axes: Axes, source: Point, target: Point, lane: int, label: str) -> None:
    """One arrow with its label; it leaves a node at the side that faces its lane, and arrives likewise."""
    x0, (x1, y1) = source[0], target
    begin, begin_bend = _attachment(source, lane, +1)
    end, end_bend = _attachment(target, lane, -1)
    points = [begin, begin_bend, (begin[0], lane), (x0 + TURN, lane)]
    points += [(x1 - TURN, lane), (end[0] if lane != y1 else x1 - TURN, lane), end_bend, end]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3]
    colour, width, above = ("0.2", 1.0, 2) if label else ("0.62", 0.9, 1)
    look: dict[str, Any] = {
        "arrowstyle": "-|>",
        "mutation_scale": 8,
        "lw": width,
        "color": colour,
        "zorder": above,
    }
    if label:  # a white rim lets the edge drawn later pass over the earlier one like a bridge
        look["path_effects"] = [Stroke(linewidth=width + 3, foreground="white"), Normal()]
    axes.add_patch(FancyArrowPatch(path=Path(points, codes), **look))
    if label:
        box: dict[str, Any] = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        axes.text(x1 - 0.5, lane, label, bbox=box, ha="center", va="center", fontsize=8.5, zorder=3)


def _attachment(centre: Point, lane: int, direction: int) -> tuple[Point, Point]:
    """Where an edge of this lane touches the node (direction +1 leaving, -1 arriving), and its bend."""
    x, y = centre
    if lane == y:
        return (x + direction * HALF_WIDTH, y), (x + direction * TURN, y)
    towards = 1 if lane > y else -1
    # Lanes further out attach nearer to the middle of the node, so that arrows do not run into each other.
    x += direction * HALF_WIDTH * 0.9 / abs(lane - y) ** 0.5
    return (x, y + towards * HALF_HEIGHT), (x, y + (lane - y) * 0.75)


def _node(axes: Axes, centre: Point, label: str, colour: str) -> None:
    x, y = centre
    corner, size = (x - HALF_WIDTH, y - HALF_HEIGHT), (2 * HALF_WIDTH, 2 * HALF_HEIGHT)
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(corner, *size, boxstyle=style, facecolor=colour, edgecolor="0.2", lw=0.8, zorder=4)
    )
    axes.text(x, y, label, ha="center", va="center", fontsize=9, zorder=5)


def _appearance(node: int, last: int) -> tuple[str, str]:
    if node < 2:
        return source_words(node, typeset=True), INPUT
    return ("$c_k$", OUTPUT) if node > last else (str(node - 2), INTERMEDIATE)
