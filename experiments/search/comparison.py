"""``protocols``: searches by every protocol under independent seeds, their agreement and their cost."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypedDict

from mamltheory.nas.algorithms.state import RoundReport, SearchState
from mamltheory.nas.genotype import CELL_TYPES, EDGES
from mamltheory.nas.operations import OPERATIONS
from mamltheory.nas.protocols import PROTOCOLS
from mamltheory.nas.statistics.reliability import mean_reliability, repeats_for
from mamltheory.runtime.records import plain, replace_file, to_json
from mamltheory.runtime.runlog import RUN_FILE, check_complete, read_metrics, read_run

from ..benchmarks.machine import describe_machine
from ..data.counts import protocols_shortage, refuse_shortage
from ..data.loading import data_of
from ..runs import continued_by
from ..terminal import for_terminal
from .closing import record_of_finished
from .comparison_report import comparison_table, draw_comparison
from .search import saved_search, search_cells
from .settings import Protocols, Search

OPERATORS, ROUNDS = len(CELL_TYPES) * len(EDGES), len(OPERATIONS) - 1


class SearchLine(TypedDict):
    """The keys of a line of a search's ``metrics.jsonl`` that are read."""

    round: int
    cpu_seconds: float


def compare_protocols(settings: Protocols) -> int:
    """Run the missing searches, and write ``protocols`` as table, numbers and figure; returns 0."""
    listed = [each for searches in settings.searches().values() for each in searches if settings.measure]
    missing = [each for each in listed if record_of_finished(each) is None]
    if missing:  # otherwise the last protocol might find after hours that the data are too small for it
        refuse_shortage(protocols_shortage(settings, data_of(missing[0])))
    with continued_by("the same command; every search continues in its run folder"):
        for name, searches in settings.searches().items():
            for each in searches if settings.measure else ():
                print(f"protocol {name}, seed {each.seed}: {each.out}")
                search_cells(each)
    found = compare_searches(settings)
    replace_file(settings.out / "protocols.json", to_json(found).encode())
    replace_file(settings.out / "protocols.md", comparison_table(found).encode())
    draw_comparison(found, settings)
    print(for_terminal(comparison_table(found)))
    return 0


def compare_searches(settings: Protocols) -> dict[str, Any]:
    """The numbers of every search, of every pair of searches with one protocol, and of every protocol."""
    protocols = {}
    for name, listed in settings.searches().items():
        states = {each.seed: saved_search(each).state for each in listed}
        states = {seed: state for seed, state in states.items() if state.reports}
        searches = [each for each in listed if each.seed in states]
        if not searches:
            continue
        each = {seed: search_numbers(s, states[seed]) for s, seed in zip(searches, states, strict=True)}
        pairs = [
            {"seeds": [a, b], **search_agreement(states[a], states[b])}
            for a, b in itertools.combinations(states, 2)
        ]
        protocols[name] = {
            "settings": recorded_settings(searches[0]),
            "searches": each,
            "pairs": pairs,
            "summary": protocol_summary(list(each.values()), pairs),
        }
    chance = OPERATORS / 7
    size = {name: getattr(settings, name) for name in ("channels", "cells", "image_size", "stem_stride")}
    missing = [name for name in PROTOCOLS if name not in protocols]
    numbers: Any = plain(
        {
            "machine": describe_machine("cpu"),
            "size": size,
            "chance": chance,
            "not_run": missing,
            "protocols": protocols,
        }
    )
    return numbers


def recorded_settings(settings: Search) -> dict[str, Any]:
    """The settings of a search from its record, or those of a new one."""
    record = settings.out / RUN_FILE
    config: Any = read_run(settings.out)["config"] if record.exists() else plain(settings.resolved())
    return {key: config.get(key) for key in ("tasks", "repeats", "least_repeats", "stopping", "outputs")}


def search_numbers(settings: Search, state: SearchState) -> dict[str, Any]:
    """One search: its cell, its CPU seconds, and every round's repeats, reliability and open questions."""
    lines: Sequence[Mapping[str, Any]] = read_metrics(settings.out, SearchLine)
    check_complete(settings.out, lines, "round", range(1, len(state.reports) + 1))
    ends = {row["round"]: float(row["cpu_seconds"]) for row in lines}
    rounds, begun = [], 0.0
    for k, report in enumerate(state.reports, 1):
        seconds, begun = ends[k] - begun, ends[k]
        rounds.append({"cpu_seconds": seconds, **_reliability(report, seconds)})
    finished = state.candidates.is_single_path()
    return {
        "genotype": state.candidates.genotype().to_json() if finished else None,
        "operations": operation_counts(state) if finished else None,
        "cpu_seconds": begun if finished else None,
        "rounds": rounds,
    }


def operation_counts(state: SearchState) -> dict[str, dict[str, int]]:
    """The number of each operation in the found cells."""
    live = state.candidates.operators()
    return {kind: dict(Counter(o.operation for o in live if o.cell == kind)) for kind in CELL_TYPES}


def _reliability(report: RoundReport, seconds: float) -> dict[str, Any]:
    """The reliability of a round, its undecided edges, and the CPU time for a reliability of 0.9."""
    numbers: dict[str, Any] = {
        "repeats": report.repeats,
        "stopped": report.stopped,
        "undecided": len(report.undecided),
        "failures": dict(report.failures),
    }
    found = report.reliability
    if found is None:
        return numbers
    repeats = repeats_for(found.single)
    return numbers | {
        "single": found.single,
        "null": found.null,
        "reliability": mean_reliability(found.single, found.repeats),
        "seconds_to_0.9": repeats * seconds / report.repeats if math.isfinite(repeats) else math.inf,
        "tied": found.tied,
        "basis": found.basis,
        "halves": {"tau": found.agreement.tau, "same": found.agreement.same},
    }


def search_agreement(a: SearchState, b: SearchState) -> dict[str, Any]:
    """The number of equal final operators, and by common round the share of edges with the same pruned operator."""
    rounds = []
    for k in range(min(len(a.reports), len(b.reports))):
        lost = [{d.operator for d in s.trace if d.pruned and d.round_index == k} for s in (a, b)]
        rounds.append(len(lost[0] & lost[1]) / OPERATORS)
    finished = a.candidates.is_single_path() and b.candidates.is_single_path()
    final = len(set(a.candidates.operators()) & set(b.candidates.operators())) if finished else None
    return {
        "final": final,
        "rounds": rounds,
        "first_two": mean_or_none(rounds[:2]) if len(rounds) > 1 else None,
    }


def protocol_summary(searches: Sequence[Mapping], pairs: Sequence[Mapping]) -> dict[str, Any]:
    """Means over the searches and pairs with one protocol; None for the mean of nothing."""
    finals = [pair["final"] for pair in pairs if pair["final"] is not None]
    seconds = mean_or_none(each["cpu_seconds"] for each in searches if each["cpu_seconds"] is not None)
    early = mean_or_none(r.get("reliability", 0.0) for each in searches for r in each["rounds"][:2])
    each_round = [[s["rounds"][k] for s in searches if len(s["rounds"]) > k] for k in range(ROUNDS)]
    return {
        "cpu_seconds": seconds,
        "final": mean_or_none(finals),
        "final_range": [min(finals), max(finals)] if finals else None,
        "first_two": mean_or_none(p["first_two"] for p in pairs if p["first_two"] is not None),
        "rounds": [
            mean_or_none(p["rounds"][k] for p in pairs if len(p["rounds"]) > k) for k in range(ROUNDS)
        ],
        "reliability_early": early,
        "reliability_late": mean_or_none(
            r.get("reliability", 0.0) for each in searches for r in each["rounds"][2:]
        ),
        "reliability_per_minute": 60 * early / seconds if seconds and early is not None else None,
        "undecided": [mean_or_none(r["undecided"] for r in rounds) for rounds in each_round],
        "ties": [sum(r.get("tied", False) for r in rounds) for rounds in each_round],
        "searches": [len(rounds) for rounds in each_round],
    }


def mean_or_none(values: Iterable[float]) -> float | None:
    """The mean, or None of nothing."""
    values = list(values)
    return fmean(values) if values else None
