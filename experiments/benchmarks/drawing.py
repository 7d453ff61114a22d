"""Time and peak memory against width, ours and the peers, and the parameters' own size."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.plotting import curve, ticks_at

STYLES = {
    "ours": 0,
    "ours, fused step": 6,
    "ours, float64 sums": 6,
    "PyTorch loop": 1,
    "autograd rows": 1,
    "torch.func": 2,
    "torch.func jacrev": 2,
    "higher": 3,
    "opacus": 3,
    "TorchOpt": 4,
    "nngeometry": 4,
    "learn2learn": 5,
    "neural-tangents": 5,
}
"""A method looks the same in all panels, and two that look alike share none; also the order of the legend."""


def panels(cases: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, list[tuple[int, Mapping]]]]:
    """By group, by method: (width, record) for every case with a width and the group's usual other sizes."""
    found: dict[str, dict[str, list[tuple[int, Mapping]]]] = {}
    for record in cases.values():
        sizes = record["sizes"]
        if "width" not in sizes or sizes.get("tau", 1) != 1:
            continue
        for name, each in record["methods"].items():
            if each["status"] == "measured":
                curves = found.setdefault(record["group"], {})
                curves.setdefault(name, []).append(
                    (sizes["width"], {**each, "parameters": record["parameters"]})
                )
    return found


def draw(drawing: Figure, axes: Mapping, found: Mapping[str, Mapping[str, list]], clock: str) -> None:
    """A column of panels a group: time above, memory below."""
    for column, (group, curves) in enumerate(found.items()):
        time, memory = axes[0][column], axes[1][column]
        for name in sorted(curves, key=_position):
            points = curves[name]
            _line(time, name, [(width, each["median_seconds"]) for width, each in points])
            _line(memory, name, [(w, each["peak_bytes"] / 1e6) for w, each in points if each["peak_bytes"]])
        sizes = {width: 4e-6 * each["parameters"] for points in curves.values() for width, each in points}
        widths = sorted(sizes)
        memory.loglog(widths, [sizes[w] for w in widths], color="0.5", linewidth=0.8, label="the parameters")
        time.set_title(group)
        for panel in (time, memory):
            ticks_at(panel.xaxis, widths)
        memory.set_xlabel("width $l$")
    axes[0][0].set_ylabel(f"{clock} seconds a call")
    axes[1][0].set_ylabel("peak memory, MB")
    legend(drawing, axes)


def legend(drawing: Figure, axes: Mapping) -> None:
    """One legend for all panels, below them."""
    labelled = {}
    for row in axes:
        for panel in row:
            labelled |= {label: line for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    names = sorted(labelled, key=_position)
    drawing.legend([labelled[name] for name in names], names, loc="outside lower center", ncols=5)


def _position(name: str) -> int:
    return list(STYLES).index(name) if name in STYLES else len(STYLES)


def _line(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    ours = name.startswith("ours")
    style = curve(STYLES[name]) | {"linewidth": 2 if ours else 1, "markersize": 5 if ours else 3.5}
    axes.loglog(*zip(*sorted(points), strict=True), **style, zorder=3 if ours else 2, label=name)
