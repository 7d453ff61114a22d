"""The table and the figure of the comparison of protocols."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from matplotlib.lines import Line2D

from mamltheory.nas.genotype import CELL_TYPES
from mamltheory.nas.protocols import PROTOCOLS
from mamltheory.nas.space import PAPER
from mamltheory.nas.spelling import operation_words

from ..plotting import curve, figure, save_figure
from .settings import Protocols

ROUNDS = range(1, 7)
CHANCE = {"marker": "_", "markersize": 14, "markeredgewidth": 1.6, "linestyle": "none", "color": "0.4"}
"""The mark of what random prunings of a protocol would share."""


def comparison_table(found: Mapping) -> str:
    """Markdown tables of agreement and cost, of every round and of the cells, with notes."""
    lines = ["# Do independent searches find the same cell?", "", *_agreement(found), "", *_rounds(found)]
    return "\n".join([*lines, "", *_cells(found), "", *_notes(found), ""])


def _agreement(found: Mapping) -> list[str]:
    lines = [
        "| protocol | searches, pairs | equal final operators of 18 (range) | prunings of rounds 1 and 2 equal | CPU s "
        "a search | reliability, rounds 1–2 | rounds 3–6 | reliability (1–2) per CPU minute |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in found["protocols"].items():
        s = each["summary"]
        finals = "{}–{}".format(*s["final_range"]) if s["final_range"] else "unfinished"
        cells = [
            f"{len(each['searches'])}, {len(each['pairs'])}",
            f"{or_dash(s['final'], '.1f')} ({finals})",
            f"{or_dash(s['first_two'], '.0%')}",
            or_dash(s["cpu_seconds"], ".0f"),
            or_dash(s["reliability_early"], ".2f"),
            or_dash(s["reliability_late"], ".2f"),
            or_dash(s["reliability_per_minute"], ".2f"),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _rounds(found: Mapping) -> list[str]:
    lines = [
        "| protocol | | " + " | ".join(f"round {k}" for k in ROUNDS) + " |",
        "|---|---|" + "---|" * len(ROUNDS),
    ]
    for name, each in found["protocols"].items():
        searches = each["searches"].values()
        rounds = [[s["rounds"][k - 1] for s in searches if len(s["rounds"]) >= k] for k in ROUNDS]
        ties = zip(each["summary"]["ties"], each["summary"]["searches"], strict=True)
        rows = {
            "same operator pruned": [or_dash(v, ".0%") for v in each["summary"]["rounds"]],
            "r₁ of one repeat": [_mean(r, "single", ".2f") for r in rounds],
            "noise up to": [
                or_dash(_average([x["null"][1] for x in r if "null" in x]), ".2f") for r in rounds
            ],
            "reliability": [_mean(r, "reliability", ".2f") for r in rounds],
            "repeats": [_mean(r, "repeats", ".1f") for r in rounds],
            "undecided edges": [or_dash(v, ".1f") for v in each["summary"]["undecided"]],
            "ties, of searches": [f"{count} of {of}" if of else "–" for count, of in ties],
        }
        lines += [f"| {name} | {title} | " + " | ".join(cells) + " |" for title, cells in rows.items()]
    return lines


def _cells(found: Mapping) -> list[str]:
    """The operations of the found cells; one frequent operation explains much agreement."""
    lines = ["| search | normal cell | reduction cell |", "|---|---|---|"]
    for name, each in found["protocols"].items():
        for seed, one in each["searches"].items():
            if one["operations"] is not None:
                cells = (
                    "; ".join(f"{count} {operation_words(o)}" for o, count in sorted(counts.items()))
                    for counts in one["operations"].values()
                )
                lines.append(f"| {name}, seed {seed} | " + " | ".join(cells) + " |")
    return lines


def or_dash(value: float | None, form: str) -> str:
    """The number, or a dash for None."""
    return "–" if value is None else format(value, form)


def _notes(found: Mapping) -> list[str]:
    machine = found["machine"]
    absent = f" Not run here: {', '.join(found['not_run'])}." if found["not_run"] else ""
    size = found["size"]
    kinds = "; ".join(f"{name}: {_budget(each['settings'])}" for name, each in found["protocols"].items())
    return [
        f"{size['channels']} channels, {size['cells']} cells, {size['image_size']} × {size['image_size']} pixels, stem "
        f"stride {size['stem_stride']}; {kinds}. Kernels of summed outputs throughout: for paper that is a quarter of "
        "the cost of the full kernel. All searches of a protocol differ in their seed alone." + absent,
        f"Chance for the final operators is {found['chance']:.1f} of 18; released keeps two inputs a node and so 12 "
        f"operators, of which chance would share about {chance_of_equals('released'):.1f}. r₁ is the reliability of "
        "one repeat of what decides, within edges; noise: upper end of its permutation null (95 %). The reliability of "
        "a round is that of "
        "the mean of its repeats, R r₁/(1 + (R − 1) r₁). A round is a tie when r₁ lies inside the null: stable then "
        "decides by the means of (cell type × operation) over this and earlier rounds, or by size where those say "
        "nothing either; on an undecided edge of any round it goes by those means. The others go by their scores all "
        "the same. Late rounds of stable agree as far as they do because those means carry over, and not because their "
        "own repeats say which operator of an edge should go: see their undecided edges. Where a cell has one "
        "operation on nearly all edges, its equal operators are one choice and not nine.",
        f"CPU seconds of one thread, scores only; {machine['processor']}, {machine['cores']} cores shared with other "
        f"work (load average {machine['load_average']}), torch {machine.get('torch', '')}.",
    ]


def _budget(settings: Mapping) -> str:
    tasks, most = f"{settings['tasks']} tasks a kernel", f"{settings['repeats']} repeats"
    return (
        f"{tasks}, {settings['least_repeats'] or 4} to {most}" if settings["stopping"] else f"{tasks}, {most}"
    )


def _mean(rounds: list[Mapping], key: str, form: str) -> str:
    return or_dash(_average([each[key] for each in rounds if key in each]), form)


def _average(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def chance_of_equals(protocol: str) -> float:
    """The expected number of equal final operators of two searches that prune at random.

    Args:
        protocol: Name of the protocol, which keeps all edges or two a node.

    Returns:
        The sum over the edges of both cells of the probability that both searches keep the edge, with one operation.
    """
    sources = Counter(edge.node for edge in PAPER.edges)
    two = PROTOCOLS[protocol]["two_inputs"]
    kept = [2 / sources[edge.node] if two else 1.0 for edge in PAPER.edges]
    return len(CELL_TYPES) * sum(share**2 for share in kept) / len(PAPER.operations)


def draw_comparison(found: Mapping, settings: Protocols) -> None:
    """Draw the share of equal prunings by round, and equal final operators against the cost."""
    where = f"{Path(settings.data).name}, {settings.cells} cells of {settings.channels} channels"
    with figure("page", 3.1, columns=2) as (drawing, axes):
        question = "Do independent searches find the same cell? Pairs of searches by protocol"
        drawing.suptitle(f"{question}\n{where}, seeds from {settings.seed}")
        left, right = axes[0]
        for i, (name, each) in enumerate(found["protocols"].items()):
            style, same = curve(i), [v for v in each["summary"]["rounds"] if v is not None]
            left.plot(list(ROUNDS)[: len(same)], [100 * v for v in same], label=name, **style)
            finals = [pair["final"] for pair in each["pairs"] if pair["final"] is not None]
            cost = each["summary"]["cpu_seconds"]
            right.plot([cost] * len(finals), finals, **{**style, "linestyle": "none"})
            if cost is not None:
                right.plot(cost, chance_of_equals(name), **CHANCE | {"color": style["color"]})
        left.plot(
            list(ROUNDS),
            [100 / (8 - k) for k in ROUNDS],
            color="0.6",
            linestyle=":",
            label="chance in a round",
        )
        left.set(xlabel="round", ylabel="same operator pruned (%)", ylim=(0, 103))
        right.set(xlabel="CPU seconds a search", ylabel="equal final operators of 18", ylim=(0, 18.5))
        right.set_yticks(range(0, 19, 3))
        right.set_xlim(0, 1.1 * max(right.dataLim.x1, 1))
        marks = [*left.get_lines(), Line2D([], [], **CHANCE, label="chance, in the colour of the protocol")]
        drawing.legend(handles=marks, loc="outside lower center", ncols=5, frameon=False, fontsize=7)
        numbers = {
            name: each["summary"] | {"chance": chance_of_equals(name)}
            for name, each in found["protocols"].items()
        }
        save_figure(drawing, "protocols_figure", numbers, settings.out, {}, settings.seed)
