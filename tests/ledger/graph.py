"""The paper as a map: statements in its order, section by section, what rests on what, coloured by verdict."""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from tests.ledger.ledger import VERDICTS, Statement

COLOURS = dict(
    zip(
        VERDICTS,
        ("#000000", "#000000", "#D55E00", "#E69F00", "#F0E442", "#009E73", "#56B4E9", "#D9D9D9"),
        strict=True,
    )
)
PER_LINE = 13
"""Statements on a line; a longer section goes on in the next."""


def positions(statements: Sequence[Statement]) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """(place of every statement, height of every section's first line); a section begins a new line."""
    places: dict[str, tuple[float, float]] = {}
    sections: dict[str, float] = {}
    line = 0.0
    for where, group in groupby(statements, key=lambda one: one.where):
        members = list(group)
        sections.setdefault(where, -line)
        for i, one in enumerate(members):
            places[one.id] = (float(i % PER_LINE), -line - i // PER_LINE)
        line += (len(members) - 1) // PER_LINE + 1.2
    return places, sections


def draw_verdicts(axes: Axes, statements: Sequence[Statement], verdicts: Mapping[str, str]) -> None:
    """Draw the map; it needs about a full page. An arrow leads from a statement to what it rests on."""
    places, sections = positions(statements)
    for one in statements:
        for used in one.uses:
            arrow = FancyArrowPatch(
                places[one.id], places[used], connectionstyle="arc3,rad=0.12", arrowstyle="-|>",
                mutation_scale=4, linewidth=0.4, color="0.55", alpha=0.5, shrinkA=4, shrinkB=4, zorder=1,
            )  # fmt: skip
            axes.add_patch(arrow)
    for one in statements:
        x, y = places[one.id]
        axes.plot(x, y, "o", markersize=6, color=COLOURS[verdicts[one.id]], markeredgecolor="0.2",
                  markeredgewidth=0.4, zorder=2)  # fmt: skip
        axes.annotate(
            short(one.id), (x, y), (0, -5), textcoords="offset points", ha="center", va="top", fontsize=4.2
        )
    for where, y in sections.items():
        axes.text(-0.7, y, where, ha="right", va="center", fontsize=6)
    present = [name for name in VERDICTS if name in verdicts.values()]
    marks = [
        Line2D([], [], linestyle="None", marker="o", color=COLOURS[name], markeredgecolor="0.2")
        for name in present
    ]
    axes.legend(marks, present, loc="upper center", bbox_to_anchor=(0.4, -0.01), ncols=3, fontsize=6)
    low = min(y for _, y in places.values())
    axes.set(xlim=(-3.6, PER_LINE - 0.4), ylim=(low - 0.8, 0.6))
    axes.set_axis_off()


def short(name: str) -> str:
    """A statement's id without what its row says already, on lines that fit beside the next one's."""
    return textwrap.fill(name.removeprefix("Eq. ").rpartition(": ")[2], 11, break_long_words=False)
