"""The verdicts of figures and tables, from the numbers that they were drawn from."""

from collections.abc import Callable, Mapping
from typing import Any

from ..gpu_check.report import WELL, faults_of
from ..theory import bounds, convergence, drift, ensemble, equivalence, laziness, lipschitz, plateau
from .blocks import PageVerdict, Tone

Content = Mapping[str, Any]


def verdict_of(name: str, content: Content) -> PageVerdict | None:
    """The verdict of the result NAME with this record; None where its kind has none."""
    kinds = [kind for kind in VERDICTS if name == kind or name.startswith(f"{kind}_")]
    return VERDICTS[max(kinds, key=len)](content) if kinds else None


def _if(holds: bool, headline: str, lines: list[str]) -> PageVerdict:
    tone: Tone = "clear" if holds else "weak"
    return PageVerdict(headline, tone, tuple(f"{line[:1].upper()}{line[1:]}." for line in lines))


def _convergence(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*convergence.convergence_verdict(data), [convergence.convergence_result(data)])


def _bounds(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*bounds.bounds_verdict(data), bounds.bounds_result(data))


def _drift(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*drift.drift_verdict(data), drift.drift_result(data))


def _equivalence(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*equivalence.equivalence_verdict(data), equivalence.equivalence_result(data))


def _plateau(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*plateau.plateau_verdict(data), plateau.plateau_result(data))


def _lipschitz(content: Content) -> PageVerdict:
    data, widths = content["data"], content["config"]["widths"]
    return _if(*lipschitz.lipschitz_verdict(data), lipschitz.lipschitz_result(data, widths))


def _ensemble(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*ensemble.ensemble_verdict(data), [ensemble.ensemble_result(data)])


def _laziness(content: Content) -> PageVerdict:
    data = content["data"]
    return _if(*laziness.laziness_verdict(data), laziness.laziness_result(data))


def _verification(content: Content) -> PageVerdict:
    found = content["data"]["verdicts"]
    counts = {value: sum(one["holds"] is value for one in found) for value in (True, False, None)}
    parts = [f"{counts[True]} of {len(found)} statements hold"]
    parts += [f"{counts[False]} do{'es' * (counts[False] == 1)} not"] if counts[False] else []
    parts += [f"{counts[None]} {'is' if counts[None] == 1 else 'are'} undecided"] if counts[None] else []
    tone: Tone = "fails" if counts[False] else "weak" if counts[None] else "clear"
    # The numbers are in the table of verification.md, which the page shows below.
    named = {"Does not hold": False, "Undecided": None}
    lists = {
        word: [one["statement"] for one in found if one["holds"] is value] for word, value in named.items()
    }
    return PageVerdict(
        ", ".join(parts), tone, tuple(f"{word}: {'; '.join(some)}." for word, some in lists.items() if some)
    )


def _correlation(content: Content) -> PageVerdict:
    rows = content["data"]["validity"]
    networks = len(content["data"]["networks"])
    beyond = {
        shots: sum(one["ahead"]["interval"][0] > 0 for name, one in scores.items() if name != "parameters")
        for shots, scores in rows.items()
    }
    size = ", ".join(f"{scores['parameters']['tau']['value']:.2f} ({k}-shot)" for k, scores in rows.items())
    lines = [f"{networks} networks; Kendall's τ of the number of parameters with accuracy is {size}"]
    return _if(
        any(beyond.values()),
        f"{'Some scores predict' if any(beyond.values()) else 'No score predicts'} accuracy better than the number of "
        "parameters",
        lines,
    )


def _stability(content: Content) -> PageVerdict:
    found = content["data"]["stability"]
    best = max(found, key=lambda name: found[name]["single"])
    low, high = found[best]["interval"]
    return PageVerdict(
        f"The most reliable score is {best.replace(' ', ', ')}: r₁ {found[best]['single']:.2f} [{low:.2f}, {high:.2f}]",
        "plain",
        (
            f"{len(found)} scores; r₁ is the reliability of one repeat. Named are estimator, tasks and measure.",
        ),
    )


def _protocols(content: Content) -> PageVerdict | None:
    if "protocols" not in content:
        return None  # the figure, whose numbers are those of the table
    parts = [
        f"{name} {found['summary']['final']:.1f}" for name, found in content["protocols"].items()
        if found["summary"].get("final") is not None
    ]  # fmt: skip
    chance = f"Chance alone gives {content['chance']:.1f}."
    return PageVerdict(f"Equal operators of two searches, of 18: {', '.join(parts)}", "plain", (chance,))


def _table(content: Content) -> PageVerdict | None:
    if "comparisons" not in content:
        return None  # a figure of the table
    found = [one for one in content["comparisons"] if one["result"] is not None]
    clear = [
        one
        for one in found
        if abs(one["result"]["interval"]["mean"]) > one["result"]["interval"]["half_width"]
    ]
    lines = [
        f"{one['of']} − {one['minus']}, {one['experiment']}, {one['shots']}-shot: "
        f"{100 * one['result']['interval']['mean']:+.1f} ± {100 * one['result']['interval']['half_width']:.1f} points"
        for one in found
    ]
    headline = f"{len(clear)} of {len(found)} differences between methods are clear of zero"
    return PageVerdict(headline if found else f"{len(content['means'])} results", "plain", tuple(lines))


def _demo_table(content: Content) -> PageVerdict:
    lines = [
        f"{row['cell']}: {100 * one['mean']:+.1f} ± {100 * one['half_width']:.1f} points from random cells as large, "
        f"{shots}"
        for row in content["rows"]
        for shots, one in row.get("gain", {}).items()
    ]
    found = [one for row in content["rows"] for one in row.get("gain", {}).values()]
    clear = sum(abs(one["mean"]) > one["half_width"] for one in found)
    return PageVerdict(
        f"{clear} of {len(found)} gains over random cells are clear of zero", "plain", tuple(lines)
    )


def _equal_size(content: Content) -> PageVerdict:
    found = content["data"]["findings"]
    return PageVerdict(f"{found['cells']} random cells of one size: what predicts their accuracy")


def _benchmark(content: Content) -> PageVerdict:
    cases = content["data"]["cases"]
    machine = content["data"]["machine"]
    return PageVerdict(f"{len(cases)} cases on {machine['processor']}", "plain")


def _gpu(content: Content) -> PageVerdict:
    data, stages = content["data"], content["data"]["stages"]
    faults, count = sum(map(faults_of, stages.values())), len(stages)
    ended = {name: stage["ended"] for name, stage in stages.items() if stage["ended"] != WELL}
    found = f"{faults or 'No'} fault{'s' * (faults > 1)} in {count} stage{'s' * (count != 1)}"
    found += f", {len(ended)} of which did not end well," if ended else ""
    named = [f"{name}: {how}" for name, how in ended.items()]
    named += [
        f"{name}: {line['what']} is not as it should be"
        for name, stage in stages.items()
        for line in stage["lines"]
        if line["good"] is False
    ]
    if data["rehearsal"]:
        return PageVerdict(
            f"A rehearsal on the CPU: {found[0].lower()}{found[1:].rstrip(',')}", "open", tuple(named)
        )
    return PageVerdict(f"{found} on {data['name']}", "fails" if faults or ended else "clear", tuple(named))


VERDICTS: Mapping[str, Callable[[Content], PageVerdict | None]] = {
    "convergence": _convergence,
    "bounds": _bounds,
    "drift": _drift,
    "equivalence": _equivalence,
    "plateau": _plateau,
    "lipschitz": _lipschitz,
    "ensemble": _ensemble,
    "laziness": _laziness,
    "verification": _verification,
    "correlation": _correlation,
    "stability": _stability,
    "protocols": _protocols,
    "table": _table,
    "demo_table": _demo_table,
    "equal_size": _equal_size,
    "benchmark": _benchmark,
    "scoring": _benchmark,
    "gpu": _gpu,
}
