"""``benchmark``: measure what is not yet measured, then write the table, the figure and their numbers."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from mamltheory.errors import CheckpointError
from mamltheory.runtime.device import choose_device
from mamltheory.runtime.progress import stage
from mamltheory.runtime.records import plain, read_record, replace_file, to_json
from mamltheory.strict_json import sealed

from ..plotting import figure, save_figure
from ..runs import continued_by
from . import report
from .catalogue import GROUPS, chosen_cases
from .machine import describe_machine, missing_peers, peer_versions
from .measure import Plan, measure_case, measure_scaling
from .problems import Case, Group
from .processes import Ask, ask_process
from .settings import Benchmark

Record = dict[str, Any]


class _Content(TypedDict):
    """The file of a piece."""

    identity: object
    record: dict[str, object]


def run_benchmark(settings: Benchmark) -> int:
    """Measure and report; returns 0."""
    choose_device(settings.device)
    cases = chosen_cases(settings.cases)
    # The peer in the other Python runs on the CPU alone.
    versions = peer_versions(settings.neural_tangents_python if settings.device == "cpu" else None)
    with continued_by(f"the same command; finished cases lie in {settings.runs}"):
        measured = measure_pieces(settings, cases, versions)
    write_report(settings, versions, measured)
    return 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of the work with a file: a case, or the growth of a group's cost.

    Attributes:
        place: ("cases" | "tuned" | "scaling", name).
        allocator: Settings of the allocator.
        identity: Settings that must equal those in the file for the file to count.
        job: Measures the part.
    """

    place: tuple[str, str]
    allocator: str
    identity: Record
    job: Callable[[Ask], Record]


def pieces(settings: Benchmark, cases: Sequence[Case], versions: dict[str, str | None]) -> Iterator[Piece]:
    """All parts of the work, in their order."""
    plan = Plan(settings.rounds, settings.seconds, settings.quick, settings.seed, settings.runs)
    common = {name: getattr(settings, name) for name in ("rounds", "seconds", "quick", "seed")}
    allocators = {"both": ("default", "tuned")}.get(settings.allocator, (settings.allocator,))
    for allocator in allocators:
        kind = "cases" if allocator == allocators[0] else "tuned"
        for case in cases:
            if kind == "cases" or case.tuned:
                used = {name: versions[name] for name in case.methods if name in versions}
                identity = common | {
                    "sizes": case.sizes,
                    "check": case.check,
                    "methods": case.methods,
                    "peers": used,
                }
                yield Piece(
                    (kind, case.name), allocator, identity, _case_job(case, plan, missing_peers(versions))
                )
    for group in GROUPS.values():
        if group.scaling and any(case.group == group for case in cases):
            identity = common | {"sizes": group.scaling_base, "values": group.scaling}
            yield Piece(("scaling", group.name), allocators[0], identity, _scaling_job(group, plan))


def _case_job(case: Case, plan: Plan, missing: Sequence[str]) -> Callable[[Ask], Record]:
    return lambda ask: measure_case(case, plan, ask, missing)


def _scaling_job(group: Group, plan: Plan) -> Callable[[Ask], Record]:
    return lambda ask: measure_scaling(group, plan, ask)


def measure_pieces(
    settings: Benchmark, cases: Sequence[Case], versions: dict[str, str | None]
) -> dict[str, dict[str, Record]]:
    """Records of all pieces by place; those in the run folder are not measured again."""
    settings.runs.mkdir(parents=True, exist_ok=True)
    work = list(pieces(settings, cases, versions))
    found: dict[str, dict[str, Record]] = {"cases": {}, "tuned": {}, "scaling": {}}
    with stage("benchmark", len(work)) as advance:
        for piece in work:
            kind, name = piece.place
            path = settings.runs / f"{kind}-{name}-{settings.device}-{piece.allocator}.json".replace(" ", "-")
            record = None if settings.again else finished_record(path, piece.identity)
            if record is None:
                record = _plain(piece.job(partial(ask_process, settings, piece.allocator)))
                replace_file(path, sealed(to_json({"identity": piece.identity, "record": record})))
            found[kind][name] = record
            advance(note=name)
    return found


def finished_record(path: Path, identity: Record) -> Record | None:
    """The record in the file if it has the same identity; None otherwise."""
    if not path.exists():
        return None
    try:
        content = read_record(path, _Content, "it is measured again")
    except CheckpointError as error:
        print(error)
        return None
    return _plain(content["record"]) if content["identity"] == plain(identity) else None


def _plain(record: object) -> Any:
    return plain(record)


def write_report(
    settings: Benchmark, versions: dict[str, str | None], measured: dict[str, dict[str, Record]]
) -> None:
    """Write the figure, its numbers and the tables, and print their names."""
    data = measured | {
        "machine": describe_machine(settings.device),
        "peers": versions,
        "device": settings.device,
        "rounds": settings.rounds,
        "quick": settings.quick,
    }
    name = f"{settings.name}_{settings.device}" + ("_quick" if settings.quick else "")
    table = settings.out / f"{name}.md"
    replace_file(table, report.benchmark_tables(_plain(data)).encode())
    if report.points_by_group(measured["cases"]):
        path = benchmark_figure(name, data, settings)
        print(f"wrote {path} (and .pdf, .json) and {table}")
    else:
        numbers = settings.out / f"{name}.json"
        replace_file(numbers, to_json({"data": plain(data), "config": plain(_kept(settings))}).encode())
        print(f"wrote {table} and {numbers}; no case grows with the width, so there is no figure")


def _kept(settings: Benchmark) -> dict[str, Any]:
    """The settings that decide the numbers."""
    return {name: getattr(settings, name) for name in ("cases", "rounds", "seconds", "quick")}


def benchmark_figure(name: str, data: Mapping[str, Any], settings: Benchmark) -> Path:
    """Draw the cases that grow with the width; returns the path of the picture."""
    found, machine = report.points_by_group(data["cases"]), data["machine"]
    with figure("page", 5.2, rows=2, columns=len(found), sharex="col") as (sheet, axes):
        threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        sheet.suptitle(f"Time and memory of a call in float32: {machine['processor']}, {threads}")
        report.draw_panels(axes, found, "CPU" if settings.device == "cpu" else "device")
        return save_figure(sheet, name, data, settings.out, _kept(settings), settings.seed)[0]
