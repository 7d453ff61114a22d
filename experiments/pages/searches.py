"""The account of a search: can it be told from noise, what was found, and what happened in every round."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from markupsafe import Markup

from mamltheory.errors import ConfigurationError, GenotypeError
from mamltheory.nas.algorithms.state import RoundReport
from mamltheory.nas.genotype import Genotype
from mamltheory.nas.spelling import edge_words, operation_words

from ..genotypes import genotype_from
from ..search.halving import MEASUREMENTS
from ..search.words import p_in_words, task_words
from ..theory.report import signed
from .blocks import (
    Account,
    DataTable,
    Drawing,
    Fragment,
    PageVerdict,
    Section,
    Sentences,
    Tone,
    in_figures,
    in_percent,
    signed_points,
    time_in_words,
)
from .charts import cell_drawings, line_chart, noise_chart
from .results import Folder

METHODS = {"metantk-nas": "MetaNTK-NAS", "te-nas": "TE-NAS", "regions": "linear regions alone"}
BEST_SAMPLED = 10
"""Sampled cells in a table."""


def search_account(run: Folder, name: str) -> Account:
    """The account of a search by any method."""
    record, method = run.object("search"), str(run.config.get("method", "search"))
    if method == "halving":
        return _halving_account(run, name, record)
    if "cells" in record or run.config.get("parameters"):
        return _sampled_account(run, name, record)
    return _pruning_account(run, name, record, method)


def found_genotype(run: Folder) -> Genotype | None:
    """The cell that a search found; None where there is none yet."""
    found = run.object("genotype") or run.object("search").get("genotype")
    try:
        return genotype_from(found) if isinstance(found, dict) and found else None
    except (GenotypeError, ConfigurationError):  # also where a user's space is not to be found
        return None


def cell_section(genotype: Genotype | None) -> list[Section]:
    """The drawn cells; nothing where there are none."""
    if genotype is None:
        return []
    drawings = [Drawing(picture, f"{kind} cell", "paper") for kind, picture in cell_drawings(genotype)]
    return [Section("The cell", tuple(drawings))]


def cpu_seconds_of(run: Folder) -> float | None:
    """CPU seconds of a run so far."""
    lines = [line["cpu_seconds"] for line in run.metrics if isinstance(line.get("cpu_seconds"), float)]
    found = run.results.get("cpu_seconds", lines[-1] if lines else None)
    return float(found) if isinstance(found, int | float) else None


def cpu_time(run: Folder) -> list[tuple[str, str]]:
    """The fact of the CPU time, of all processes of a search and of one of a training; empty where none is recorded."""
    seconds, environment = cpu_seconds_of(run), (run.record or {}).get("environment") or {}
    one = " of one process" * (run.command == "train" and environment.get("processes", 1) > 1)
    return [] if seconds is None else [(f"CPU time{one}", time_in_words(seconds))]


def _facts(
    run: Folder, parameters: object, more: Sequence[tuple[str, str]] = ()
) -> tuple[tuple[str, str], ...]:
    found = [("parameters", in_figures(parameters))] if parameters else []
    return (*found, *more, *cpu_time(run))


def _pruning_account(run: Folder, name: str, record: Mapping[str, Any], method: str) -> Account:
    reports = _reports(run, record)
    score = _score(run)
    parameters = run.figure_data("cells").get("parameters")
    sections = cell_section(found_genotype(run))
    if reports:
        sections.append(Section("The course of the search", tuple(_course(run, reports))))
    if record.get("trace"):
        removed = Fragment(_removed(record["trace"], found_genotype(run)))
        sections.append(Section("What each round removed", (removed,)))
    verdict = _pruning_verdict(run, reports)
    shown = f"{verdict.headline}" if reports else "–"
    return Account(
        name,
        f"search by {METHODS.get(method, method)}",
        verdict,
        _facts(run, parameters, score),
        tuple(sections),
        key={"result": shown, "parameters": in_figures(parameters), **dict(score)},
    )


def _reports(run: Folder, record: Mapping[str, Any]) -> list[RoundReport]:
    rows = record.get("rounds") or list({line.get("round"): line for line in run.metrics}.values())
    found = []
    for row in rows:
        try:
            found.append(RoundReport.from_json(row))
        except (KeyError, TypeError, ValueError):
            return found
    return found


def _score(run: Folder) -> list[tuple[str, str]]:
    """The score of the found network over draws, if it was drawn."""
    scores = run.figure_data("cells").get("scores") or []
    if run.config.get("method") == "regions":
        label, values = "linear regions R", [float(each["regions"]) for each in scores]
    else:
        harmonic = " (harmonic)" * (run.config.get("metric") == "harmonic")
        label = f"score log C{harmonic}"
        values = [math.log(float(each["condition"])) for each in scores]
    if not values:
        return []
    error = f" ± {stdev(values) / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""
    return [(label, f"{in_figures(fmean(values))}{error}")]


def _pruning_verdict(run: Folder, reports: Sequence[RoundReport]) -> PageVerdict:
    known = [each.reliability for each in reports if each.reliability is not None]
    tied, count = sum(each.tied for each in known), len(reports)
    if run.status != "finished":
        headline = f"Not finished: {count} rounds are done" if count else "Not finished: no round is done"
        noise = f"{tied} of {len(known)} rounds so far cannot be told from noise."
        return PageVerdict(headline, "open", (noise,) if known else ())
    if not any(each.repeats for each in reports):
        return PageVerdict("Nothing was scored: the cell was drawn at random", "weak")
    if not known:
        why = "Two repeats are needed to compare them: give --repeats 2 or more."
        return PageVerdict("Whether the scores are more than noise is not known", "weak", (why,))
    undecided = len(reports[-1].undecided)
    edges = (
        f"In the last round {undecided} edges stayed undecided; another search may choose otherwise there."
    )
    if not tied:
        clear = f"All {len(known)} rounds can be told from noise"
        return PageVerdict(clear, "clear", (edges,) if undecided else ())
    return PageVerdict(
        f"{tied} of {len(known)} rounds cannot be told from noise",
        "weak" if tied < len(known) else "fails",
        (
            "In those rounds independent repeats rank the operators no more alike than operators that change places "
            "at random: another search, with another seed, would remove others.",
            *([edges] if undecided else []),
        ),
    )


def _course(run: Folder, reports: Sequence[RoundReport]) -> Iterator[Drawing | DataTable]:
    scored = [(k, each.reliability) for k, each in enumerate(reports, 1) if each.reliability is not None]
    if scored:
        noise = np.array([each.null for _, each in scored])
        picture = noise_chart([k for k, _ in scored], [each.single for _, each in scored], noise)
        yield Drawing(picture, "A round within the band cannot be told from noise.")
        agreement = [100 * each.agreement.same for _, each in scored]
        chance = [100 * each.agreement.chance for _, each in scored]
        rounds = [k for k, _ in scored]
        curves = {"two halves of the repeats": (rounds, agreement), "chance": (rounds, chance)}
        picture = line_chart(curves, ("round", "edges that agree (%)"))
        yield Drawing(picture, "How often two independent halves remove the same operator.")
    lines = {line.get("round"): line for line in run.metrics}
    rows = []
    for k, each in enumerate(reports, 1):
        found, seconds = each.reliability, lines.get(k, {}).get("cpu_seconds")
        reliability = ("–", "–", "–", "–")
        if found is not None:
            reliability = (
                signed(found.single),
                f"{signed(found.null[0])} to {signed(found.null[1])}",
                in_percent(found.agreement.same, 0),
                "noise" if found.tied else "more than noise",
            )
        cost = time_in_words(seconds) if isinstance(seconds, float) else "–"
        rows.append((k, each.repeats, *reliability, len(each.undecided), cost))
    head = (
        "round",
        "repeats",
        "r₁",
        "noise alone",
        "halves agree",
        "verdict",
        "undecided edges",
        "CPU time so far",
    )
    failed = sum(sum(each.failures.values()) for each in reports)
    infinite = f" {failed} scores were infinite; these networks ranked as the worst choice." if failed else ""
    yield DataTable(head, tuple(rows), f"r₁: reliability of one repeat.{infinite}", ("verdict",))


def _removed(trace: Sequence[Sequence[Any]], genotype: Genotype | None) -> Markup:
    """A table of edges by rounds with the operators that each lost; undecided ones are marked."""
    rounds = sorted({row[0] for row in trace})
    fields: dict[tuple[str, int, int, int], list[tuple[str, bool]]] = {}
    for k, (cell, (node, source), operation), *_, pruned, _, undecided in trace:
        if pruned:
            fields.setdefault((cell, node, source, k), []).append((operation, undecided))
    kept: dict[tuple[str, int, int], str] = {}
    for cell, edges in ({} if genotype is None else genotype.edges()).items():
        kept |= {(cell, target - 2, source): name for source, target, name in edges}
    head = Markup("").join(Markup("<th>round {}</th>").format(k + 1) for k in rounds)
    body, cell = Markup(""), ""
    for cell_, node, source in dict.fromkeys((row[1][0], *row[1][1]) for row in trace):
        if cell_ != cell:
            cell = cell_
            body += Markup('<tr class="group"><th colspan="{}">{} cell</th></tr>').format(
                len(rounds) + 2, cell
            )
        found = Markup("").join(_field(fields.get((cell, node, source, k), [])) for k in rounds)
        last = kept.get((cell, node, source), "–")
        body += Markup('<tr><th scope="row">{}</th>{}<td class="kept">{}</td></tr>').format(
            edge_words(node, source), found, operation_words(last)
        )
    note = "Framed by dashes: undecided, so that other draws of the scores may remove another operator."
    return Markup(
        '<div class="scroll"><table class="removed"><caption>{}</caption><thead><tr><th>edge</th>{}<th>kept</th></tr>'
        "</thead><tbody>{}</tbody></table></div>"
    ).format(note, head, body)


def _field(removed: Sequence[tuple[str, bool]]) -> Markup:
    words = Markup("<br>").join(
        Markup('<span class="{}">{}</span>').format("unsure" if undecided else "sure", operation_words(name))
        for name, undecided in removed
    )
    return Markup("<td>{}</td>").format(words)


def _sampled_account(run: Folder, name: str, record: Mapping[str, Any]) -> Account:
    cells, best = record.get("cells") or [], record.get("cell")
    parameters = record.get("parameters")
    verdict = PageVerdict("Not finished: no cell is chosen", "open")
    sections = cell_section(found_genotype(run))
    if cells:
        verdict = PageVerdict(
            f"Cell {best} of {len(cells)} has the best scores without training",
            "plain",
            (
                "Such scores hardly predict accuracy among cells of one size: compare the trained network with random "
                "cells of the same size (the command table).",
            ),
        )
        ordered = sorted(enumerate(cells), key=lambda each: each[1]["rank"])[:BEST_SAMPLED]
        rows = [
            (
                i,
                in_figures(c["parameters"]),
                in_figures(c.get("log condition", c.get("score"))),
                in_figures(c["regions"] if len(record.get("places", (0, 0))) > 1 else None),
                c["rank"],
            )
            for i, c in ordered
        ]
        own = "score" in cells[0]
        head = ("cell", "parameters", "own score" if own else "log C", "linear regions R", "sum of ranks")
        caption = f"The best {len(rows)} of {len(cells)} sampled cells; " + (
            "the least sum of ranks is the best." if own else "less is better but for R."
        )
        sections.append(Section("The best sampled cells", (DataTable(head, tuple(rows), caption),)))
    what = f"search among sampled cells of {run.config.get('parameters')} parameters"
    key = {"result": verdict.headline, "parameters": in_figures(parameters)}
    return Account(name, what, verdict, _facts(run, parameters), tuple(sections), key=key)


def _halving_account(run: Folder, name: str, record: Mapping[str, Any]) -> Account:
    parameters = record.get("parameters")
    sections = cell_section(found_genotype(run))
    more = []
    if record:
        sections.append(Section("The course of the search", tuple(_rungs(record))))
        cost = record["cost"]
        more = [
            ("cost in full trainings", in_figures(cost["full trainings"], 3)),
            ("epochs", str(cost["epochs"])),
        ]
    measured = len(list((run.path / MEASUREMENTS).glob("*.json")))
    verdict = PageVerdict(f"Not finished: {measured} short trainings are measured", "open")
    if record:
        verdict = _halving_verdict(record)
    key = {"result": verdict.headline, "parameters": in_figures(parameters)}
    facts = _facts(run, parameters, more)
    return Account(name, "search by successive halving", verdict, facts, tuple(sections), key=key)


def _halving_verdict(record: Mapping[str, Any]) -> PageVerdict:
    control, cells = record["control"], len(record["rungs"][0]["cells"])
    gain = 100 * (control["found"] - control["random cells"])
    at = f"epoch {control['epochs']}"
    sentences = [
        f"At {at} its accuracy on validation classes was {in_percent(control['found'])}, the mean of all cells "
        f"{in_percent(control['random cells'])}; later rungs chose it among the best of them.",
    ]
    room = record.get("headroom")
    if room:
        # A p-value of earlier versions took tasks that share images for independent.
        units = room.get("units")
        sure = f"the noise of {units} ({p_in_words(room['p_value'])})" if units else "the noise of the tasks"
        differ = f"cells of this size differ by {100 * room['deviation']:.1f} points beyond {sure}"
        if units and room["p_value"] > 0.05:
            differ = f"{units} cannot tell whether cells of this size differ ({p_in_words(room['p_value'])})"
        sentences.append(f"At {at} {differ}.")
    if record.get("diverged"):
        sentences.append(f"Trainings that diverged: cells {', '.join(map(str, record['diverged']))}.")
    confirmed = record.get("confirmed")
    tone: Tone = "plain"
    headline = f"Cell {record['cell']} of {cells}, {signed_points(gain)} from their mean at {at}"
    if confirmed and confirmed["gain of the cells"] is not None:
        won, half = confirmed["gain of the cells"], confirmed["half-width of the cells"]
        width = "" if half is None else f" ± {100 * half:.1f}"
        headline = f"Trained again, its best cells are {signed_points(100 * won, width)} from random cells"
        tone = "clear" if half is not None and won > half else "weak"
    else:
        sentences.append("The gain is not confirmed by second trainings: --confirm 3 measures it.")
    return PageVerdict(headline, tone, tuple(sentences))


def _rungs(record: Mapping[str, Any]) -> Iterator[Drawing | DataTable | Sentences]:
    best, tasks = record["cell"], task_words(record.get("tasks"))
    ladder: dict[int, list[tuple[int, float]]] = {}
    for rung in record["rungs"]:
        for cell in rung["cells"]:
            if not cell["diverged"]:
                ladder.setdefault(cell["cell"], []).append((rung["epochs"], 100 * cell["accuracy"]))
    means = [
        (rung["epochs"], 100 * fmean(c["accuracy"] for c in rung["cells"] if not c["diverged"]))
        for rung in record["rungs"]
    ]
    tops = [
        (rung["epochs"], 100 * max(c["accuracy"] for c in rung["cells"] if not c["diverged"]))
        for rung in record["rungs"]
    ]
    named = {"found cell": ladder[best], "mean of the rung": means, "best of the rung": tops}
    curves = {name: ([x for x, _ in points], [y for _, y in points]) for name, points in named.items()}
    yield Drawing(
        line_chart(curves, ("epochs of training", "accuracy, validation (%)")),
        f"{tasks.capitalize()}, of the cells that are left in each rung.",
    )
    rows = []
    for rung in record["rungs"]:
        good = [cell["accuracy"] for cell in rung["cells"] if not cell["diverged"]]
        ours = next((cell for cell in rung["cells"] if cell["cell"] == best), None)
        place = [cell["cell"] for cell in rung["cells"]].index(best) + 1 if ours else "–"
        rows.append(
            (
                len(rung["cells"]),
                rung["epochs"],
                rung["by"],
                in_percent(fmean(good)),
                in_percent(max(good)),
                in_percent(ours["accuracy"]) if ours else "–",
                place,
            )
        )
    head = ("cells", "epochs", "ranked by", "mean", "best", "found cell", "its place")
    yield DataTable(head, tuple(rows), words=("ranked by",), aside=True)
