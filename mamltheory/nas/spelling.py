"""How text, figures and reports spell operations, edges and contests; genotypes keep the published names as data."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

OPERATION_WORDS = {
    "sep_conv_3x3": "sep conv 3×3",
    "dil_conv_3x3": "dil conv 3×3",
    "conv_3x3": "conv 3×3",
    "conv_1x5_5x1": "conv 1×5, 5×1",
    "max_pool_3x3BN": "max pool 3×3",
    "avg_pool_3x3BN": "avg pool 3×3",
    "skip_connect": "skip",
}
_EARLIER = re.compile(r"(\w+) (\d+)←(\d+)")


def operation_words(name: str) -> str:
    """The spelling of an operation; a user's operation keeps its name."""
    return OPERATION_WORDS.get(name, name)


def source_words(source: int, typeset: bool = False) -> str:
    """The spelling of a source, an input of the cell or a node; typeset as mathematics for the text of a figure."""
    if source > 1:
        return str(source - 2)
    return ("$c_{k-2}$", "$c_{k-1}$")[source] if typeset else ("cₖ₋₂", "cₖ₋₁")[source]


def edge_words(node: int, source: int, typeset: bool = False) -> str:
    """The spelling of the edge from a source to a node: "cₖ₋₂ → 0"."""
    return f"{source_words(source, typeset)} → {node}"


def cells_in_words(
    cells: Mapping[Any, Sequence[tuple[int, int, str]]],
) -> dict[str, dict[str, str]]:
    """Cells as text and figures spell them, for records that people read as well as programs.

    Args:
        cells: for every name of a cell its edges: source, vertex and operation; node i is the vertex i + 2.

    Returns:
        For every cell the operation of each edge: ``{"normal": {"cₖ₋₂ → 0": "sep conv 3×3", …}, …}``.
    """
    return {
        str(name): {
            edge_words(vertex - 2, source): operation_words(operation) for source, vertex, operation in edges
        }
        for name, edges in cells.items()
    }


def contest_words(cell: str, node: int, source: int | None = None) -> str:
    """The name of a contest: of the operations on an edge, or without a source of the inputs of a node."""
    return f"{cell} node {node}" if source is None else f"{cell} {edge_words(node, source)}"


def contest_respelt(name: str) -> str:
    """The name of a contest as today, from a run of an earlier version: "normal 0←0" is "normal cₖ₋₂ → 0"."""
    match = _EARLIER.fullmatch(name)
    return name if match is None else contest_words(match[1], int(match[2]), int(match[3]))
