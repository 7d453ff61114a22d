"""The results of the study of scores against accuracy: a forest plot, two scatter plots, the numbers, and a table."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from scipy.stats import rankdata

from mamltheory.nas.statistics.rank_correlation import (
    Ceiling,
    Estimate,
    ScoreReliability,
    Validity,
    finite_scores,
    noise_ceiling,
    score_reliability,
    score_validity,
    score_values,
)
from mamltheory.rng import numpy_generator
from mamltheory.runtime.records import replace_file

from ..plotting import COLOURS, figure, save_figure, tall_left, ticks_at
from ..runs import without_paths
from ..terminal import for_terminal
from .measurements import Record, check_networks
from .settings import Correlation, Stability

BARS = ("parameters", "macs")
"""Properties of a network that need no score; scores are compared with them."""
COMPONENTS = {
    "parameters": ("parameters",),
    "macs": ("macs",),
    "maml condition": ("maml condition",),
    "anil condition": ("anil condition",),
    "ntk condition": ("ntk condition",),
    "maml harmonic": ("maml harmonic",),
    "anil harmonic": ("anil harmonic",),
    "ntk harmonic": ("ntk harmonic",),
    "regions": ("regions",),
    "paper": ("maml condition", "regions"),
    "te-nas": ("ntk condition", "regions"),
    "regression loss": ("regression loss",),
    "regression accuracy": ("regression accuracy",),
}
LABELS = {
    "parameters": "log parameters",
    "macs": "log MACs",
    "maml condition": "−log C, MetaNTK (MAML)",
    "anil condition": "−log C, MetaNTK (ANIL)",
    "ntk condition": "−log C, NTK",
    "maml harmonic": "−log harmonic, MetaNTK (MAML)",
    "anil harmonic": "−log harmonic, MetaNTK (ANIL)",
    "ntk harmonic": "−log harmonic, NTK",
    "regions": "linear regions R",
    "paper": "rank sum C (MAML) + R (the paper's)",
    "te-nas": "rank sum C (NTK) + R (TE-NAS)",
    "regression loss": "−loss of NTK regression*",
    "regression accuracy": "accuracy of NTK regression*",
}
SHOTS = ("1", "5")
HARMONIC = "harmonic: $\\mathrm{tr}\\,K\\;\\mathrm{tr}\\,K^{-1}/n^2$ of the kernel K"
KERNEL_MEASURES = f"C: condition number, {HARMONIC}; *: experimental, the first term of Theorem 2"
THOUSANDS = [first * 10**power for power in range(5) for first in (1, 2, 5)]


@dataclass(frozen=True, eq=False)
class CorrelationFindings:
    """The numbers of the study, by number of shots or by score."""

    networks: list[Record]
    accuracy: Mapping[str, np.ndarray]
    components: Mapping[str, list[np.ndarray]]
    singular: Mapping[str, int]
    validity: Mapping[str, Mapping[str, Validity]]
    reliability: Mapping[str, ScoreReliability]
    ceiling: Mapping[str, Ceiling]
    seconds: Mapping[str, float]


def report_correlation(settings: Correlation, records: Mapping[str, Record]) -> None:
    """Write ``correlation.{png,pdf,json,md}`` and print the table."""
    scores = {part for parts in COMPONENTS.values() for part in parts} - {*BARS}
    check_networks(records, settings.runs, SHOTS, scores, (settings.pools, settings.initialisations))
    found = correlation_findings(settings, list(records.values()))
    text = correlation_table(settings, found)
    draw_correlation(settings, found)
    replace_file(settings.out / "correlation.md", text.encode())
    print(f"{for_terminal(text)}wrote {settings.out / 'correlation.md'}")


def correlation_findings(settings: Correlation, records: list[Record]) -> CorrelationFindings:
    """The statistics of all records; networks are those of the first training."""
    networks = sorted((r for r in records if r["training"] == 0), key=lambda r: r["network"])
    again = sorted((r for r in records if r["training"] == 1), key=lambda r: r["network"])
    rows = np.array([r["network"] for r in again])
    components, singular = components_of(networks)
    accuracy = {k: np.array([r["accuracy"][k] for r in networks]) for k in SHOTS}
    random = numpy_generator(settings.seed, "study bootstrap")
    size = components["parameters"][0][:, 0, 0]
    return CorrelationFindings(
        networks=networks,
        accuracy=accuracy,
        components=components,
        singular=singular,
        validity={k: score_validity(components, accuracy[k], size, random, settings.draws) for k in SHOTS},
        reliability={
            name: score_reliability(_single_draws(parts))
            for name, parts in components.items()
            if name not in BARS
        },
        ceiling={
            k: noise_ceiling(accuracy[k], np.array([r["accuracy"][k] for r in again]), rows) for k in SHOTS
        },
        seconds={
            "training and evaluation": _mean(r["cpu_seconds"] - r["scoring_cpu_seconds"] for r in networks),
            "scoring": _mean(r["scoring_cpu_seconds"] for r in networks),
            "all": float(sum(r["cpu_seconds"] for r in records)),
        },
    )


def components_of(networks: list[Record]) -> tuple[dict[str, list[np.ndarray]], dict[str, int]]:
    """The parts of every score (networks × pools × initialisations), and how many kernels of each were singular."""
    arrays = {name: np.array([r["scores"][name] for r in networks], float) for name in networks[0]["scores"]}
    singular = {name: int(np.isinf(values).sum()) for name, values in arrays.items()}
    arrays = {name: finite_scores(values) for name, values in arrays.items()}
    shape = next(iter(arrays.values())).shape
    for name in BARS:
        sizes = np.log([r[name] for r in networks])
        arrays[name] = np.broadcast_to(sizes[:, None, None], shape)
    return {name: [arrays[part] for part in parts] for name, parts in COMPONENTS.items()}, singular


def _single_draws(parts: list[np.ndarray]) -> np.ndarray:
    """The score of every single pool and initialisation; a score with several parts is a sum of ranks."""
    return parts[0] if len(parts) == 1 else np.sum([rankdata(each, axis=0) for each in parts], 0)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def draw_correlation(settings: Correlation, found: CorrelationFindings) -> None:
    """Draw the forest plot, and the paper's score and the parameters against accuracy."""
    with figure("page", 5.2, rows=2, columns=2, width_ratios=(1.7, 1)) as (drawing, axes):
        forest, above, under = tall_left(axes)
        draw_forest(forest, found)
        below = {
            "loc": "outside lower center",
            "ncols": 3,
            "fontsize": 7,
            "title": KERNEL_MEASURES,
            "title_fontsize": 7,
        }
        drawing.legend(*forest.get_legend_handles_labels(), frameon=False, **below)
        draw_scatter(above, found, "paper", "the paper's rank sum")
        draw_scatter(under, found, "parameters", "thousand parameters")
        s = settings
        drawing.suptitle(
            f"Scores at initialisation against accuracy after training: {len(found.networks)} random networks\n"
            f"{s.cells} cells of {s.channels} channels, {s.data} of {s.image_size} × {s.image_size} pixels, "
            f"{s.epochs} epochs, seed {s.seed}"
        )
        paths = save_figure(
            drawing,
            "correlation",
            correlation_numbers(found),
            settings.out,
            figure_settings(settings),
            settings.seed,
        )
    print(f"wrote {paths[0]} (and .pdf, .json)")


def draw_forest(axes: Axes, found: CorrelationFindings) -> None:
    """Draw τ of every score with its intervals; parameters and MACs are on top."""
    names = list(COMPONENTS)
    axes.axhspan(-0.5, len(BARS) - 0.5, color="0.92", zorder=0, label="sizes, which are no scores")
    for k, colour, marker, shift in zip(SHOTS, COLOURS, "os", (-0.14, 0.14), strict=False):
        for row, name in enumerate(names):
            tau, y = found.validity[k][name].tau, row + shift
            axes.plot(tau.interval, (y, y), color=colour, linewidth=0.9)
            axes.plot(tau.networks_alone, (y, y), color=colour, linewidth=2.2, alpha=0.45)
            label = f"5-way {k}-shot" if row == 0 else None
            axes.plot(tau.value, y, marker=marker, color=colour, linestyle="None", label=label)
    axes.plot([], [], color="0.4", linewidth=0.9, label="95 %, networks and class pools")
    axes.plot([], [], color="0.4", linewidth=2.2, alpha=0.45, label="95 %, networks alone")
    axes.fill_between([], [], [], color="0.6", alpha=0.35, linewidth=0, label="between 1-shot and 5-shot")
    _span_of_shots(axes, [found.validity[k]["parameters"].tau.value for k in SHOTS], "--", "the parameters")
    tops = [found.ceiling[k] for k in SHOTS]
    low, high = (number(each) for each in tops[0].highest_tau_interval)
    ceiling = f"highest τ to be expected of a score,\nfrom {low} to {high} for 1-shot (95 %)"
    _span_of_shots(axes, [each.highest_tau for each in tops], ":", ceiling)
    axes.axvline(0, color="0.3", linewidth=0.7)
    axes.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("Kendall's $\\tau$ with accuracy")


def _span_of_shots(axes: Axes, values: list[float], style: str, label: str) -> None:
    """Draw one line for both numbers of shots, as wide as their values differ."""
    axes.axvspan(min(values), max(values), color="0.6", alpha=0.35, linewidth=0, zorder=0.5)
    axes.axvline(sum(values) / len(values), color="0.35", linestyle=style, linewidth=1, label=label)


def draw_scatter(axes: Axes, found: CorrelationFindings, name: str, label: str) -> None:
    """Draw one quantity against 1-shot accuracy.

    Args:
        axes: The panel.
        found: The results.
        name: Name of the quantity.
        label: Label of the axis.
    """
    values = score_values(found.components[name])
    values = np.exp(values) / 1000 if name in BARS else values
    axes.plot(values, 100 * found.accuracy["1"], linestyle="None", marker="o", color=COLOURS[0], alpha=0.7)
    if name in BARS:
        axes.set_xscale("log")
        ticks_at(axes.xaxis, [t for t in THOUSANDS if values.min() / 2 < t < 2 * values.max()])
    tau = found.validity["1"][name].tau
    axes.set_title(f"$\\tau$ = {number(tau.value)} {span(tau.interval)}")
    axes.set_xlabel(label)
    axes.set_ylabel("1-shot accuracy (%)")


def figure_settings(settings: Correlation | Stability) -> dict[str, Any]:
    """The settings that decide the numbers."""
    return {key: value for key, value in without_paths(settings).items() if key != "runs"}


def correlation_numbers(found: CorrelationFindings) -> dict[str, Any]:
    """The numbers for the JSON."""
    return {
        "validity": found.validity,
        "reliability": found.reliability,
        "noise_ceiling": found.ceiling,
        "accuracy": {k: spread_of(values) for k, values in found.accuracy.items()},
        "singular_kernels": found.singular,
        "cpu_seconds": found.seconds,
        "networks": found.networks,
    }


def spread_of(values: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and range over the networks."""
    return {
        "mean": values.mean(),
        "deviation": values.std(ddof=1),
        "least": values.min(),
        "most": values.max(),
    }


def number(value: float) -> str:
    """Two decimals, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def span(interval: tuple[float, float]) -> str:
    """An interval in brackets."""
    return "" if math.isnan(interval[0]) else f"[{number(interval[0])}, {number(interval[1])}]"


def correlation_table(settings: Correlation, found: CorrelationFindings) -> str:
    """The table with notes and conclusions."""
    pools = settings.pools
    lines = [
        "| score | τ 1-shot | less τ of parameters | ρ 1-shot | ρ given log parameters | τ 5-shot | "
        f"τ 1-shot, {pools} pools alone | α initialisations | α pools |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in COMPONENTS:
        one, five = (found.validity[k][name] for k in SHOTS)
        partial = "–" if math.isnan(one.partial.value) else cell(one.partial)
        ahead = "–" if name == "parameters" else cell(one.ahead)
        by_pool = "–" if name in BARS else " ".join(map(number, one.tau_by_pool))
        alphas = found.reliability.get(name, ScoreReliability(1.0, 1.0))
        cells = (
            LABELS[name].replace("*", "\\*"),
            cell(one.tau),
            ahead,
            cell(one.rho),
            partial,
            cell(five.tau),
        )
        ends = (by_pool, number(alphas.initialisations), number(alphas.pools))
        lines.append(f"| {' | '.join((*cells, *ends))} |")
    return "\n".join([*lines, "", *correlation_notes(settings, found), "", *conclusions(found)]) + "\n"


def cell(estimate: Estimate) -> str:
    """A value with its interval over networks and pools."""
    return f"{number(estimate.value)} {span(estimate.interval)}".strip()


def correlation_notes(settings: Correlation, found: CorrelationFindings) -> list[str]:
    """Notes on the networks, the data, the noise ceiling and the cost."""
    ceilings = "; ".join(
        f"{k}-shot: {number(c.tau)} between two trainings of {c.pairs} networks, deviation of a training "
        f"{100 * c.deviation:.1f} points, reliability {number(c.reliability)}, highest τ to be expected "
        f"{number(c.highest_tau)} {span(c.highest_tau_interval)}"
        for k, c in found.ceiling.items()
    )
    spread = "; ".join(
        f"{k}-shot {100 * v.mean():.1f} % (standard deviation {100 * v.std(ddof=1):.1f}, "
        f"{100 * v.min():.1f} to {100 * v.max():.1f})"
        for k, v in found.accuracy.items()
    )
    s, seconds = settings, found.seconds
    singular = sum(count for name, count in found.singular.items() if not name.endswith("harmonic"))
    return [
        f"{len(found.networks)} random networks of {s.cells} cells and {s.channels} channels on {s.data} of "
        f"{s.image_size} × {s.image_size} pixels, "
        f"{s.epochs} epochs; accuracy: {spread}, on {s.test_tasks} tasks common to all networks. Brackets: 95 % "
        "bootstrap intervals over networks and class pools together, on draws common to all scores. Scores are "
        f"means over {s.pools} disjoint pools of base classes × {s.initialisations} initialisations, from one "
        f"kernel each ({s.batches} batches of {s.joint_tasks} tasks; {s.regression_tasks} regression tasks); "
        f"{singular} kernels were singular and rank last. α: Cronbach's reliability over initialisations within a "
        "pool, and over pools. \\* Experimental: kernel regression on every task, the first term of Theorem 2.",
        "",
        f"Noise ceiling, τ: {ceilings}.",
        "",
        f"CPU seconds: {seconds['training and evaluation']:.0f} to train and evaluate a network, "
        f"{seconds['scoring']:.1f} for all of its scores, {seconds['all']:.0f} in all.",
    ]


def conclusions(found: CorrelationFindings) -> list[str]:
    """Sentences on the intervals that exclude zero."""
    scores = [name for name in COMPONENTS if name not in BARS]
    lines = []
    for k in SHOTS:
        rows = found.validity[k]
        beyond = [n for n in scores if rows[n].ahead.interval[0] > 0]
        behind = [n for n in scores if rows[n].ahead.interval[1] < 0]
        adds = [n for n in scores if rows[n].partial.interval[0] > 0]
        none = [n for n in scores if rows[n].tau.interval[0] <= 0 <= rows[n].tau.interval[1]]
        lines += [
            f"- {k}-shot: τ exceeds that of the parameters beyond chance for {listed(beyond)}, and falls short "
            f"of it for {listed(behind)}; given the parameters, {listed(adds)} still correlate"
            f"{'s' if len(adds) <= 1 else ''}; no correlation can be told from zero for {listed(none)}."
        ]
    return lines


def listed(names: list[str]) -> str:
    """Labels in a row, or "no score"."""
    return ", ".join(LABELS[name].rstrip("*") for name in names) or "no score"
