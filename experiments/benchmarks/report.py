"""The benchmark's tables in Markdown, and the figure of time and memory against width."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ..plotting import curve, legend_below, ticks_at

HEAD = (
    "| method | {clock} s | ratio | ratio, tuned allocator | peak MB | ratio | difference to float64 | "
    "of product rate |"
)


def benchmark_tables(data: Mapping[str, Any]) -> str:
    """Machine, exponents, and a table for every case."""
    parts = ["# Ours against the alternatives"]
    parts += (
        ["**Tiny sizes, to show that everything runs: the numbers mean nothing.**"] if data["quick"] else []
    )
    parts += [machine_lines(data["machine"], data["peers"])]
    parts += [how_measured(data)]
    if data["scaling"]:
        parts += ["## How cost grows", exponent_table(data["scaling"])]
    for name, record in data["cases"].items():
        parts += [f"## {record['title']}", case_table(record, data["tuned"].get(name), data["device"])]
    return "\n\n".join(parts) + "\n"


def machine_lines(about: Mapping[str, Any], peers: Mapping[str, str | None]) -> str:
    """The machine and the versions in two sentences."""
    found = ", ".join(f"{name} {number}" for name, number in peers.items() if number)
    missing = ", ".join(name for name, number in peers.items() if not number)
    lines = [
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}, "
        f"{about['c_library']}, load average {about['load_average']}; device {about['device']}; "
        f"torch {about['torch']} ({about['blas']}, {about['cpu_capability']}), Python {about['python']}; "
        f"commit {about['commit']}.",
        f"Peers: {found or 'none beyond torch'}." + (f" Not installed: {missing}." if missing else ""),
    ]
    return "\n".join(lines)


def how_measured(data: Mapping[str, Any]) -> str:
    """How the numbers were taken."""
    clock = "CPU time of one thread" if data["device"] == "cpu" else "time on the device between events"
    return (
        f"Float32; {clock}, medians of up to {data['rounds']} rounds in which every method has its turn in a "
        "fresh process. Ratios are to the first row. Peak memory is the rise in the first call at full size "
        "(parameters and samples are not included, nor a few MB of free memory). "
        "Differences are "
        "relative to the largest entry of each tensor. "
        "Methods with a copy of the weights per task spend part of their time on fresh pages of the system: the "
        "tuned column has glibc's allocator keep freed memory (MALLOC_MMAP_THRESHOLD_=33554432 "
        "MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456), which is fairer to them. Ours asks for "
        "up to 62 MiB of that, once per process. "
        "Our NTK is float32 throughout, as those of the peers; the row with float64 sums is what "
        "``empirical_ntk`` does by default, because condition numbers need it."
    )


def exponent_table(scaling: Mapping[str, Mapping[str, Any]]) -> str:
    """Exponents of time in every size with their intervals, and the floor's over the same values."""
    rows = []
    for group, record in scaling.items():
        for axis in record["axes"].values():
            fit, values = axis["exponent"], ", ".join(map(str, axis["values"]))
            rows.append(
                f"| {group} | {axis['symbol']} | {values} | {fit['slope']:.2f} [{fit['low']:.2f}, "
                f"{fit['high']:.2f}] | {axis['floor_exponent']:.2f} |"
            )
    return "\n".join(["| work | in | values | time grows as power | floor |", "|---|---|---|---|---|", *rows])


def case_table(record: Mapping[str, Any], tuned: Mapping[str, Any] | None, device: str) -> str:
    """The table of one case; rows are methods."""
    rows = [HEAD.format(clock="CPU" if device == "cpu" else "device"), "|---|" + "---|" * 7]
    methods = record["methods"]
    first = next(iter(methods.values()))
    for name, each in methods.items():
        if each["status"] != "measured":
            rows.append(f"| {name} | {each['status']} | | | | | | |")
            continue
        cells = [
            f"{each['median_seconds']:.3g}",
            _ratio(each, first, "median_seconds"),
            _tuned_ratio(name, tuned),
            "–" if each["peak_bytes"] is None else f"{each['peak_bytes'] / 1e6:.0f}",
            _ratio(each, first, "peak_bytes"),
            f"{float(each['agreement']):.1e}",
            f"{each['fraction']:.0%}" if "fraction" in each else "–",
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*rows, "", _notes(record)])


def _ratio(each: Mapping[str, Any], first: Mapping[str, Any], key: str) -> str:
    if first["status"] != "measured" or not each[key] or not first[key]:
        return "–"
    return f"{each[key] / first[key]:.2f}"


def _tuned_ratio(name: str, tuned: Mapping[str, Any] | None) -> str:
    if tuned is None or tuned["methods"].get(name, {"status": ""})["status"] != "measured":
        return "–"
    return _ratio(tuned["methods"][name], next(iter(tuned["methods"].values())), "median_seconds")


def _notes(record: Mapping[str, Any]) -> str:
    own = {n: float(m["agreement_float64"]) for n, m in record["methods"].items() if "agreement_float64" in m}
    notes = [f"Float64 {name} against the reference: {value:.1e}" for name, value in own.items()]
    taken = {n: len(m["seconds"]) for n, m in record["methods"].items() if m["status"] == "measured"}
    fewer = [f"{name} {rounds}" for name, rounds in taken.items() if rounds < max(taken.values())]
    if fewer:
        notes.append(f"rounds: {max(taken.values())}, but " + ", ".join(fewer))
    if record["checked_sizes"] != record["sizes"]:
        other = {k: v for k, v in record["checked_sizes"].items() if record["sizes"][k] != v}
        notes.append("compared at " + ", ".join(f"{k} = {v}" for k, v in other.items()))
    if record["floor"]:
        notes.append(f"floor {record['floor'] / 1e9:.3g} GFLOP")
    return "; ".join(notes) + "."


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
"""A method has one style in all panels, and no panel has two equal styles; also the order of the legends."""
UNRESOLVED = 4
"""Megabytes of free memory that a call may take without a rise that is seen; smaller peaks are drawn here."""


def points_by_group(
    cases: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, list[tuple[int, Mapping]]]]:
    """(width, record) by group and method, for cases with a width and τ = 1."""
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


def draw_panels(axes: np.ndarray, found: Mapping[str, Mapping[str, list]], clock: str) -> None:
    """Draw a column of panels per group: time above, memory below, and under them the methods of this group.

    Args:
        axes: Two rows of axes.
        found: Records by group, method and width, as :func:`points_by_group` returns them.
        clock: What the seconds are of: "CPU" or "device".
    """
    for column, (group, curves) in enumerate(found.items()):
        time, memory = axes[0][column], axes[1][column]
        for name in sorted(curves, key=_position):
            points = curves[name]
            _line(time, name, [(width, each["median_seconds"]) for width, each in points])
            peaks = [(w, each["peak_bytes"] / 1e6) for w, each in points if each["peak_bytes"] is not None]
            _line(memory, name, [(w, max(peak, UNRESOLVED)) for w, peak in peaks])
        sizes = {width: 4e-6 * each["parameters"] for points in curves.values() for width, each in points}
        widths = sorted(sizes)
        memory.loglog(widths, [sizes[w] for w in widths], color="0.5", linewidth=0.8, label="the parameters")
        time.set_title(group)
        for panel in (time, memory):
            ticks_at(panel.xaxis, widths)
        memory.axhspan(0, UNRESOLVED, color="0.9", zorder=0, label=f"{UNRESOLVED} MB or less: not resolved")
        memory.set_ylim(bottom=0.6 * UNRESOLVED)
        memory.set_xlabel("width $l$")
        legend_below(memory)
    axes[0][0].set_ylabel(f"{clock} seconds a call")
    axes[1][0].set_ylabel("peak memory, MB")


def _position(name: str) -> int:
    return list(STYLES).index(name) if name in STYLES else len(STYLES)


def _line(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    if not points:
        return
    ours = name.startswith("ours")
    style = curve(STYLES[name]) | {"linewidth": 2 if ours else 1, "markersize": 5 if ours else 3.5}
    axes.loglog(*zip(*sorted(points), strict=True), **style, zorder=2 if ours else 3, label=name)
