"""How many statements of every section have which verdict, as bars."""

from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from tests.ledger.ledger import COLOURS, VERDICTS, Statement


def counts_by_section(
    statements: Sequence[Statement], verdicts: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    """Number of statements by section and verdict, sections in the paper's order and verdicts worst first."""
    found: dict[str, Counter[str]] = {}
    for one in statements:
        found.setdefault(one.where, Counter())[verdicts[one.id]] += 1
    return {where: {name: n for name in VERDICTS if (n := counts[name])} for where, counts in found.items()}


def draw_bars(axes: Axes, counts: Mapping[str, Mapping[str, int]]) -> None:
    """One bar a section, the first on top, with the number of statements in every part."""
    sections = list(counts)
    *checked, unchecked = VERDICTS
    order = (*reversed(checked), unchecked)
    present = [name for name in order if any(name in each for each in counts.values())]
    left = dict.fromkeys(sections, 0)
    for name in present:
        widths = [counts[where].get(name, 0) for where in sections]
        starts = list(left.values())
        axes.barh(sections, widths, left=starts, color=COLOURS[name], edgecolor="white", label=name)
        for where, start, width in zip(sections, starts, widths, strict=True):
            left[where] += width
            if width:
                colour = "white" if COLOURS[name] == "#000000" else "black"
                axes.text(
                    start + width / 2, where, str(width), ha="center", va="center", fontsize=6.5, color=colour
                )
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("statements")
    axes.legend(loc="lower right", fontsize=7.5)
