"""Measures one case: rounds over all methods, results against the reference, and the growth of cost with each size.

Each method runs in a fresh process in every round. A call at tiny sizes loads the libraries; the first call at full
size gives the peak memory (the report has that of the first round), and further calls give the time. Short calls are
repeated until they take a tenth of a second. A method that has used its seconds skips the remaining rounds.
"""

import dataclasses
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mamltheory.errors import MamlTheoryError
from mamltheory.finite_width.asymptotics import fit_power_law
from mamltheory.runtime.folders import BENCHMARK_LOG

from .clock import Answer
from .kernel import STRIDES
from .problems import Case, Group, Method, Sizes
from .processes import Ask

Request = Mapping[str, Any]
Record = dict[str, Any]


class MeasurementError(MamlTheoryError):
    """One of the package's own methods failed."""


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        rounds: Rounds over all methods.
        seconds: CPU seconds after which a method skips the remaining rounds.
        quick: Whether sizes are tiny.
        seed: Seed of all draws.
        folder: Folder of temporary files.
    """

    rounds: int
    seconds: float
    quick: bool
    seed: int
    folder: Path

    def sizes(self, group: Group, sizes: Sizes) -> Sizes:
        """The sizes, or tiny ones for a quick plan."""
        return {**sizes, **group.quick} if self.quick else sizes

    def request(self, group: Group, method: Method, sizes: Sizes, dtype: str = "float32") -> Request:
        """The request to time a method on one problem; see :func:`experiments.benchmarks.clock.measure_method`.

        Args:
            group: The group of the problem.
            method: The method to time.
            sizes: Sizes of the problem.
            dtype: Name of the dtype.

        Returns:
            The request.
        """
        same = {"group": group.name, "method": method.name, "dtype": dtype, "seed": self.seed}
        return {
            "warm_up": {**same, "sizes": {**sizes, **group.quick}},
            "job": {**same, "sizes": dict(sizes)},
            "save": None,
            "quick": self.quick,
        }


def measure_case(case: Case, plan: Plan, ask: Ask, absent: Sequence[str]) -> Record:
    """The measurements of a case, as the report needs them.

    Args:
        case: The case.
        plan: How to measure.
        ask: Measures a method, for example in a process.
        absent: Names of the methods whose package is not installed.

    Returns:
        The record of the case.
    """
    sizes, checked = (plan.sizes(case.group, each) for each in (case.sizes, case.checked_sizes))
    records = {name: {"status": "not installed" if name in absent else "measured"} for name in case.methods}
    with tempfile.TemporaryDirectory(dir=plan.folder) as folder:
        work = _Work(case, plan, ask, Path(folder).resolve())
        _measure_rounds(work, sizes, records)
        _compare(work, checked, records)
    return {
        "title": case.title,
        "group": case.group.name,
        "sizes": dict(sizes),
        "checked_sizes": dict(checked),
        "floor": case.group.floor and case.group.floor(sizes),
        "parameters": case.group.parameters and case.group.parameters(sizes),
        "methods": {name: _summary(record, case, sizes) for name, record in records.items()},
    }


@dataclass(frozen=True)
class _Work:
    """A case, its plan, the function that measures, and the folder for arrays that processes exchange."""

    case: Case
    plan: Plan
    ask: Ask
    folder: Path

    def request(self, method: Method, sizes: Sizes, dtype: str = "float32") -> Request:
        """The request to time a method; for another Python it names a file with the problem."""
        group = self.case.group
        request = self.plan.request(group, method, sizes, dtype)
        if method.interpreter is None:
            return request
        return {**request, **{key: _exported(group, request[key], self.folder) for key in ("warm_up", "job")}}

    def answer(self, method: Method, request: Request) -> Answer:
        """The answer of a method; raises MeasurementError for an error of this package."""
        answer = self.ask(method, request)
        if "error" in answer and (method.ours or method == self.case.group.reference):
            raise failure(f"{method.name} failed on {self.case.name}", answer)
        return answer


def failure(what: str, answer: Answer) -> MeasurementError:
    """The error to raise for an answer that holds one."""
    return MeasurementError(f"{what}: {answer['error']}; see {BENCHMARK_LOG} in the folder of the runs")


def _exported(group: Group, job: Request, folder: Path) -> Request:
    """The job with its weights and samples in a file, for another Python."""
    assert group.export is not None, f"{group.name} has no export"
    sizes = job["sizes"]
    problem = group.build(sizes, getattr(torch, job["dtype"]), torch.device("cpu"), job["seed"])
    handle, file = tempfile.mkstemp(".npz", dir=folder)
    os.close(handle)
    np.savez(file, **group.export(problem))
    return {**job, "file": file, "strides": list(STRIDES) if "channels" in sizes else []}


def _measure_rounds(work: _Work, sizes: Sizes, records: Mapping[str, Record]) -> None:
    """Add the peak of the first round, and seconds and product rate of every round, to the records."""
    methods = [work.case.group.method(name) for name, each in records.items() if each["status"] == "measured"]
    requests = {method.name: work.request(method, sizes) for method in methods}
    for _ in range(work.plan.rounds):
        for method in methods:
            record = records[method.name]
            if record["status"] != "measured" or sum(record.get("used", ())) > work.plan.seconds:
                continue
            answer = work.answer(method, requests[method.name])
            if "error" in answer:
                record["status"] = f"failed: {answer['error']}"
                continue
            for key in ("first_seconds", "peak_bytes"):
                record.setdefault(key, answer[key])
            record.setdefault("seconds", []).append(answer["seconds"])
            record.setdefault("used", []).append(answer["seconds"] * answer["calls"])
            if "rate" in answer:
                record.setdefault("rates", []).append(answer["rate"])


def _compare(work: _Work, sizes: Sizes, records: Mapping[str, Record]) -> None:
    """Add the difference from the reference in float64 at these sizes to the records."""
    group = work.case.group
    reference = _result(work, group.reference, sizes, "float64", {})
    assert reference is not None, "an error of the reference is raised"
    for name, record in records.items():
        method = group.method(name)
        agreements = {"agreement": "float32"} | ({"agreement_float64": "float64"} if method.ours else {})
        for key, dtype in agreements.items():
            if record["status"] == "measured":
                result = _result(work, method, sizes, dtype, record)
                if result is not None:
                    record[key] = relative_difference(result, reference)


def _result(work: _Work, method: Method, sizes: Sizes, dtype: str, record: Record) -> list[np.ndarray] | None:
    """The result of one call; None if a peer fails, which is added to the record."""
    file = work.folder / "result.npz"
    answer = work.answer(method, {**work.request(method, sizes, dtype), "save": str(file)})
    if "error" in answer:
        record["status"] = f"failed: {answer['error']}"
        return None
    with np.load(file) as arrays:
        result = [arrays[name] for name in arrays.files]
    file.unlink()
    return result


def relative_difference(result: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """The largest difference of an entry, in units of the largest entry of its tensor; the worst tensor."""
    pairs = list(zip(result, reference, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _summary(record: Record, case: Case, sizes: Sizes) -> Record:
    """The record with its median, and its fraction of the rate of matrix products."""
    record = {key: value for key, value in record.items() if key != "used"}
    if record["status"] != "measured":
        return {"status": record["status"]}
    record["median_seconds"] = statistics.median(record["seconds"])
    if case.group.floor and record.get("rates"):
        rate = statistics.median(record["rates"])
        record |= {
            "product_rate": rate,
            "fraction": case.group.floor(sizes) / record["median_seconds"] / rate,
        }
    return record


SYMBOLS = {"width": "l", "tasks": "N", "samples": "n", "outputs": "k", "tau": "τ"}
QUICK_VALUES = (2, 4, 8)


def resized(sizes: Sizes, axis: str, value: int) -> Sizes:
    """The sizes with another value for ``axis``; "samples" of a task are its queries and supports."""
    both = axis == "samples" and "samples" not in sizes
    return {**sizes, **(dict.fromkeys(("queries", "supports"), value) if both else {axis: value})}


def measure_scaling(group: Group, plan: Plan, ask: Ask) -> dict[str, Any]:
    """Median seconds for each value of each size of the group, with the fitted exponents of cost and floor."""
    base = plan.sizes(group, group.scaling_base)
    method = next(method for method in group.methods if method.ours)
    sizes = {}
    for axis, values in group.scaling.items():
        for value in QUICK_VALUES if plan.quick else values:
            sizes[axis, value] = resized(base, axis, value)
    seconds: dict[tuple[str, int], list[float]] = {point: [] for point in sizes}
    for _ in range(plan.rounds):
        for (axis, value), each in sizes.items():
            answer = ask(method, plan.request(group, method, each))
            if "error" in answer:
                raise failure(f"{axis} {value}", answer)
            seconds[axis, value].append(answer["seconds"])
    medians = {point: statistics.median(times) for point, times in seconds.items()}
    return {"base": dict(base), "axes": {axis: _fits(group, axis, medians, sizes) for axis in group.scaling}}


def _fits(group: Group, axis: str, medians: dict, sizes: dict) -> dict[str, Any]:
    points = [point for point in sizes if point[0] == axis]
    values, times = [value for _, value in points], [medians[point] for point in points]
    assert group.floor is not None, f"{group.name} has no floor"
    floors = [group.floor(sizes[point]) for point in points]
    return {
        "symbol": SYMBOLS[axis],
        "values": values,
        "seconds": times,
        "floor": floors,
        "exponent": dataclasses.asdict(fit_power_law(values, np.array(times))),
        "floor_exponent": fit_power_law(values, np.array(floors)).slope,
    }
