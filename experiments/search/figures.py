"""The figures of a search: which operator left which edge in which round, and the cells that it found."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mamltheory.nas.algorithms.ranking import contests
from mamltheory.nas.algorithms.state import Decision, RoundReport, SearchState
from mamltheory.nas.algorithms.stopping import SEPARATED
from mamltheory.nas.genotype import CELL_TYPES, Genotype, Operator
from mamltheory.nas.scoring.score import Score
from mamltheory.nas.sizes import genotype_parameters
from mamltheory.nas.space import PAPER, Space
from mamltheory.nas.spelling import edge_words, operation_words

from ..data.loading import data_of
from ..genotypes import genotype_from, network_size
from ..named import score_of
from ..plotting import draw_genotype, figure, save_figure
from ..runs import without_paths
from .settings import Search

FIELD = 0.3
"""Height of a field in inches: the operation stands above its score."""
LINE = 0.13
"""Height of a line below the colours in inches."""
ROW, GAP, HEAD, LEFT = 1.0, 0.3, 1.75, 1.0
"""Heights of a field, of the space between nodes and of the rounds' heads, and the width of the labels, in fields."""
WARNING = "#D55E00"
UNKNOWN = "#EDEDED"
RULES = {"operators": "by scores", "types": "by types", "parameters": "by size", None: ""}
RULES_IN_WORDS = {
    "operators": "by scores: the scores of the operators of an edge decide",
    "types": "by types: mean scores of (cell type × operation) decide, where single scores are noise",
    "parameters": "by size: the smaller operator goes, where all scores are noise",
}
"""What the words under the number of a round mean."""
# As dark as black numbers can be read on.
SURE = LinearSegmentedColormap.from_list("sure", colormaps["Blues"]([0.02, 0.15, 0.3, 0.5]))


def draw_trace(
    state: SearchState, name: str, directory: Path, settings: Mapping[str, Any], seed: int
) -> tuple[Path, Path, Path]:
    """Draw a finished search.

    Args:
        state: The search.
        name: Name of the files.
        directory: Folder of the files.
        settings: Settings of the search, for the JSON.
        seed: Seed of the search, for the JSON.

    Returns:
        The paths of PNG, PDF and numbers.
    """
    return trace_figure(trace_data(state), state.candidates.space, name, directory, settings, seed)


def trace_figure(
    data: dict[str, list], space: Space, name: str, directory: Path, settings: Mapping[str, Any], seed: int
) -> tuple[Path, Path, Path]:
    """The figure of these numbers of :func:`trace_data`; the arguments are those of :func:`draw_trace`."""
    height = FIELD * (len(rows(space)) + 6 * GAP + HEAD) + 0.85 + LINE * len(_rules(data))
    with figure("page", height) as (drawing, axes):
        drawing.suptitle(_title(settings, seed))
        _draw(drawing, axes[0, 0], data, space)
        return save_figure(drawing, name, data, directory, settings, seed)


def _title(settings: Mapping[str, Any], seed: int) -> str:
    where = f"{Path(settings['data']).name}, {settings['cells']} cells of {settings['channels']} channels"
    return f"What each round of {criterion_name(settings)} took out\n{where}, seed {seed}"


def trace_data(state: SearchState) -> dict[str, list]:
    """The numbers of the figure: ``rounds``, ``fields`` (pruned operators) and ``survivors``."""
    rounds, fields = [], []
    for k, report in enumerate(state.reports):
        decisions = [d for d in state.trace if d.round_index == k]
        rounds.append(_round(k, decisions, report))
        sure = certainties(decisions, report)
        place = {o: name for name, members in _contests(decisions).items() for o in members}
        fields += [_field(d, sure.get(place[d.operator])) for d in decisions if d.pruned]
    kept = [_place(o) | {"operation": o.operation} for o in state.candidates.operators()]
    return {"rounds": rounds, "fields": fields, "survivors": kept}


def certainties(decisions: Sequence[Decision], report: RoundReport) -> dict[str, float]:
    """Probability that the same operator is pruned, for every competition in a round; empty if the size decides."""
    if report.reliability is None or report.reliability.basis == "parameters":
        return {}
    known = report.reliability.certainty.by_edge
    # Operators with infinite scores were not compared; some competitions have no others.
    finite = [d for d in decisions if abs(d.delta_condition) < float("inf")]
    for compared in (decisions, finite):
        names = list(_contests(compared))
        if len(names) == len(known):
            return dict(zip(names, known, strict=True))
    return {}


def rows(space: Space = PAPER) -> list[tuple[str, int, int]]:
    """(cell, node, source) from top to bottom."""
    return [(cell, edge.node, edge.source) for cell in CELL_TYPES for edge in space.edges]


def _contests(decisions: Sequence[Decision]) -> dict[str, list]:
    return contests([d.operator for d in decisions])


def _round(index: int, decisions: Sequence[Decision], report: RoundReport) -> dict[str, Any]:
    found = report.reliability
    return {
        "round": index + 1,
        "second_stage": all(" node " in name for name in _contests(decisions)),
        "operators": len(decisions),
        "repeats": report.repeats,
        "stopped": report.stopped,
        "basis": found.basis if found else None,
        "reliability": found.single if found else None,
        "tied": found.tied if found else None,
    }


def _scored(decisions: Sequence[Decision]) -> bool:
    return any(d.delta_condition or d.delta_regions or d.rank for d in decisions)


def _field(decision: Decision, probability: float | None) -> dict[str, Any]:
    # The score is ΔC, or ΔR for regions alone. The probability is that of the same choice in bootstrap draws.
    score = decision.delta_condition or decision.delta_regions
    return _place(decision.operator) | {
        "round": decision.round_index + 1,
        "operation": decision.operator.operation,
        "score": score if _scored([decision]) else None,
        "rank": decision.rank,
        "probability": probability,
        "undecided": decision.undecided,
        "tied": decision.tied,
    }


def _place(operator: Operator) -> dict[str, Any]:
    return {"cell": operator.cell, "node": operator.edge.node, "source": operator.edge.source}


def _draw(drawing: Figure, axes: Axes, data: dict[str, list], space: Space) -> None:
    first = [r["round"] for r in data["rounds"] if not r["second_stage"]]
    column = {number: i for i, number in enumerate(first)}
    columns = len(first) + (len(first) < len(data["rounds"]))
    heights = _heights(space)
    _row_labels(axes, heights)
    for each in data["rounds"]:
        if each["round"] in column:
            _head(axes, column[each["round"]], f"round {each['round']}", _remark(each))
    if columns > len(first):
        _head(axes, len(first), "two inputs", "edges\nremoved")
    for each in data["fields"]:
        at = column.get(each["round"], len(first)), heights[each["cell"], each["node"], each["source"]]
        _draw_field(axes, at, each)
    _head(axes, columns, "survivor", "")
    for each in data["survivors"]:
        y = heights[each["cell"], each["node"], each["source"]]
        name = operation_words(each["operation"])
        axes.text(columns + 0.5, y + 0.5, name, weight="bold", **_middle(min(6.5, 90 / len(name))))
    axes.set(xlim=(-LEFT, columns + 1), ylim=(max(heights.values()) + ROW + 0.1, -HEAD))
    axes.set_axis_off()
    _legend(drawing, axes, data)


def _heights(space: Space) -> dict[tuple[str, int, int], float]:
    """The top of every row, with a gap before each node and a wider one before each cell."""
    heights, y, before = {}, 0.0, None
    for row in rows(space):
        if before is not None and row[:2] != before[:2]:
            y += GAP if row[0] == before[0] else 2 * GAP
        heights[row] = y
        y, before = y + ROW, row
    return heights


def _row_labels(axes: Axes, heights: Mapping[tuple[str, int, int], float]) -> None:
    for (_, node, source), y in heights.items():
        words = edge_words(node, source, typeset=True)
        axes.text(-0.08, y + 0.5, words, ha="right", va="center", fontsize=7.5)
    for cell in CELL_TYPES:
        tops = [y for row, y in heights.items() if row[0] == cell]
        middle = (min(tops) + max(tops) + ROW) / 2
        axes.text(-LEFT + 0.1, middle, f"{cell} cell", rotation=90, weight="bold", **_middle(8.5))


def _head(axes: Axes, column: int, title: str, remark: str) -> None:
    axes.text(column + 0.5, -1.1, title, ha="center", va="bottom", fontsize=8, weight="bold")
    axes.text(column + 0.5, -1.03, remark, ha="center", va="top", fontsize=6.5, color="0.35", linespacing=1.1)


def _remark(found: Mapping[str, Any]) -> str:
    if not found["repeats"]:
        return "at random"
    rule = RULES[found["basis"]]
    return f"{found['repeats']} repeats\n{rule}"


def _draw_field(axes: Axes, at: tuple[float, float], found: Mapping[str, Any]) -> None:
    (x, y), sure = at, found["probability"]
    colour = UNKNOWN if sure is None else SURE(sure)
    axes.add_patch(Rectangle((x + 0.02, y + 0.05), 0.96, 0.9, facecolor=colour, edgecolor="none"))
    if found["undecided"]:
        frame: dict[str, Any] = {"edgecolor": WARNING, "linewidth": 1.0, "linestyle": (0, (2.5, 1.2))}
        axes.add_patch(Rectangle((x + 0.035, y + 0.08), 0.93, 0.84, fill=False, **frame))
    name = operation_words(found["operation"]) + (" =" if found["tied"] else "")
    size = min(6.5, 90 / len(name))  # a user's operation may have a long name
    if found["score"] is None:
        axes.text(x + 0.5, y + 0.5, name, **_middle(size))
        return
    axes.text(x + 0.07, y + 0.36, name, ha="left", va="center", fontsize=size)
    axes.text(x + 0.93, y + 0.69, _number(found["score"]), ha="right", va="center", fontsize=6.5)


def _number(score: float) -> str:
    """At most three decimals, with a sign of constant width."""
    if abs(score) == float("inf"):
        return "+∞" if score > 0 else "−∞"
    digits = 3 if abs(score) < 0.9995 else 2 if abs(score) < 9.995 else 1 if abs(score) < 99.95 else 0
    return f"{score:+.{digits}f}".replace("-", "−")


def _rules(data: Mapping[str, list]) -> list[str]:
    """What decided the rounds, a line for each rule."""
    found = {each["basis"] for each in data["rounds"]}
    return [words for rule, words in RULES_IN_WORDS.items() if rule in found]


def _legend(drawing: Figure, axes: Axes, data: Mapping[str, list]) -> None:
    bar = drawing.colorbar(
        ScalarMappable(Normalize(0, 1), SURE), ax=axes, orientation="horizontal", fraction=0.025, pad=0.01
    )
    bar.set_ticks([0, 0.25, 0.5, 0.75, SEPARATED])
    bar.ax.tick_params(labelsize=7, length=2)
    bar.ax.grid(False)
    bar.outline.set_linewidth(0.5)
    colour = "probability that other draws of the round's repeats take out the same operator"
    if any(each["probability"] is None for each in data["fields"]):
        colour += (
            "\n(grey: unknown, for the round was random or by size, or the edge had no two finite scores)"
        )
    tied = any(each["tied"] for each in data["fields"])
    marks = f"dashed frame: undecided, below {SEPARATED:g} or by size" + "; =: equal sums of ranks" * tied
    words = [colour, f"number: score of the operator; {marks}", *_rules(data)]
    bar.set_label("\n".join(words), fontsize=7)


def _middle(size: float) -> dict[str, Any]:
    return {"ha": "center", "va": "center", "fontsize": size}


NAMES = {
    "metantk-nas": "MetaNTK-NAS",
    "halving": "successive halving",
    "te-nas": "TE-NAS",
    "regions": "linear regions alone",
    "random": "random cell",
}


def criterion_name(settings: Mapping[str, Any]) -> str:
    """What a figure calls the search of these settings: its own score, or its method."""
    return f"the score {settings['score']}" if settings.get("score") else NAMES[settings["method"]]


def draw_cells(
    genotype: Genotype,
    settings: Search,
    name: str = "cells",
    directory: Path | None = None,
    scores: Sequence[Score] = (),
) -> tuple[Path, Path, Path]:
    """Draw the two cells with method, number of parameters and scores as the title.

    Args:
        genotype: The cells.
        settings: Settings of the search.
        name: Name of the files.
        directory: Folder of the files; None for the run folder.
        scores: Scores on new draws.

    Returns:
        The paths of PNG, PDF and numbers.
    """
    settings = settings.resolved()
    size = network_size(settings, len(data_of(settings).train.class_names))
    data = {
        "genotype": genotype.to_json(),
        "parameters": genotype_parameters(genotype, size),
        "scores": [{"condition": score.condition, "regions": score.regions} for score in scores],
    }
    return cells_figure(data, settings, name, directory or settings.out)


def cells_figure(
    data: Mapping[str, Any], settings: Search, name: str, directory: Path
) -> tuple[Path, Path, Path]:
    """The figure of these numbers of :func:`draw_cells`, of which the arguments are."""
    scores = [Score(float(each["condition"]), float(each["regions"])) for each in data["scores"]]
    edges = genotype_from(data["genotype"]).edges()
    lines = [f"{criterion_name(vars(settings))}, {data['parameters']:,} parameters"]
    if words := score_words(settings, scores):
        lines.append(f"{words[0]} on {len(scores)} new draws; {score_scale(settings)}")
    where = f"{Path(settings.data).name}, {settings.cells} cells of {settings.channels} channels, seed {settings.seed}"
    with figure("page", 5.4, rows=2) as (drawing, axes):
        drawing.suptitle("\n".join([*lines, where]))
        for panel, kind in zip(axes[:, 0], CELL_TYPES, strict=True):
            draw_genotype(panel, edges[kind], f"{kind} cell")
        return save_figure(drawing, name, data, directory, without_paths(settings), settings.seed)


def score_words(settings: Search, scores: Sequence[Score]) -> list[str]:
    """Mean ± standard error over the draws of log C_N, or of R_N if that alone decides; empty without criteria."""
    if not scores or not settings.criteria:
        return []
    if own := score_of(settings.score):
        name, values = own.name, [own.ranked(score.condition) for score in scores]
    elif settings.criteria == ("regions",):
        name, values = "$R_{\\mathcal{N}}$", [score.regions for score in scores]
    else:
        name, values = "$\\log C_{\\mathcal{N}}$", [math.log(score.condition) for score in scores]
        name += " (harmonic)" if settings.metric == "harmonic" else ""
    if not all(map(math.isfinite, values)):
        return [f"{name} = ∞"]
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""
    return [f"{name} = {fmean(values):.4g}{error}"]


def score_scale(settings: Search) -> str:
    """Which values of the score of :func:`score_words` are good."""
    if own := score_of(settings.score):
        return "higher is better" if own.largest_is_best else "lower is better"
    if settings.criteria == ("regions",):
        return "higher is better"
    return "lower is better, 0 is perfect conditioning"
