"""One case measured: rounds over all methods, and results against the reference.

In every round each method has its turn in a fresh process. It does its problem once at tiny sizes, so that what
libraries load is loaded; the next call, the first at full size, gives the peak memory (that of the first round is
reported), and further ones give the time. Short calls are repeated until they take a tenth of a second, and a method
that has used up its seconds sits out.
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

from experiments.benchmarks.clock import Answer
from experiments.benchmarks.kernel import STRIDES
from experiments.benchmarks.problems import Case, Group, Method, Sizes
from experiments.benchmarks.processes import Ask
from mamltheory.asymptotics import fit_power_law
from mamltheory.errors import MamlTheoryError
from mamltheory.runtime.folders import BENCHMARK_LOG

Request = Mapping[str, Any]
Record = dict[str, Any]


class MeasurementError(MamlTheoryError):
    """One of the package's own methods failed."""


@dataclass(frozen=True)
class Plan:
    """How to measure: rounds, CPU seconds after which a method sits out, tiny sizes, and the seed of all draws."""

    rounds: int
    seconds: float
    quick: bool
    seed: int
    folder: Path

    def sizes(self, group: Group, sizes: Sizes) -> Sizes:
        """The sizes to use: tiny ones where the plan is quick."""
        return {**sizes, **group.quick} if self.quick else sizes

    def request(self, group: Group, method: Method, sizes: Sizes, dtype: str = "float32") -> Request:
        """The request to time a method on one problem; see :func:`experiments.benchmarks.clock.measure_method`."""
        same = {"group": group.name, "method": method.name, "dtype": dtype, "seed": self.seed}
        return {
            "warm_up": {**same, "sizes": {**sizes, **group.quick}},
            "job": {**same, "sizes": dict(sizes)},
            "save": None,
            "quick": self.quick,
        }


def measure_case(case: Case, plan: Plan, ask: Ask, absent: Sequence[str]) -> Record:
    """All that the report says of a case; ``absent`` names the methods whose package is not there."""
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
    """A case, how to measure it, who answers, and the folder for arrays that go from one process to another."""

    case: Case
    plan: Plan
    ask: Ask
    folder: Path

    def request(self, method: Method, sizes: Sizes, dtype: str = "float32") -> Request:
        """The request to time a method; another Python gets the problem as a file."""
        group = self.case.group
        request = self.plan.request(group, method, sizes, dtype)
        if method.interpreter is None:
            return request
        return request | {key: _exported(group, request[key], self.folder) for key in ("warm_up", "job")}

    def answer(self, method: Method, request: Request) -> Answer:
        """The answer; an error of the package's own methods is raised, a peer's is an answer."""
        answer = self.ask(method, request)
        if "error" in answer and (method.ours or method == self.case.group.reference):
            raise failure(f"{method.name} failed on {self.case.name}", answer)
        return answer


def failure(what: str, answer: Answer) -> MeasurementError:
    """The error to raise for an answer that holds one."""
    return MeasurementError(f"{what}: {answer['error']}; see {BENCHMARK_LOG} in the folder of the runs")


def _exported(group: Group, job: Request, folder: Path) -> Request:
    """The job with its weights and samples in a file, for a Python without this package's requirements."""
    sizes = job["sizes"]
    problem = group.build(sizes, getattr(torch, job["dtype"]), torch.device("cpu"), job["seed"])
    handle, file = tempfile.mkstemp(".npz", dir=folder)
    os.close(handle)
    np.savez(file, **group.export(problem))
    return {**job, "file": file, "strides": list(STRIDES) if "channels" in sizes else []}


def _measure_rounds(work: _Work, sizes: Sizes, records: Mapping[str, Record]) -> None:
    """Write into the records the first round's peak, and the seconds of every round and the product rate with them."""
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
    """Write into the records how far the results at these sizes lie from those of the reference in float64."""
    group = work.case.group
    reference = _result(work, group.reference, sizes, "float64", {})
    for name, record in records.items():
        method = group.method(name)
        agreements = {"agreement": "float32"} | ({"agreement_float64": "float64"} if method.ours else {})
        for key, dtype in agreements.items():
            if record["status"] == "measured":
                result = _result(work, method, sizes, dtype, record)
                if result is not None:
                    record[key] = relative_difference(result, reference)


def _result(work: _Work, method: Method, sizes: Sizes, dtype: str, record: Record) -> list[np.ndarray] | None:
    """The result of one call; None where a peer fails, which is written into the record."""
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
    """The sizes with one of them changed; "samples" of a task are its queries and supports."""
    both = axis == "samples" and "samples" not in sizes
    return {**sizes, **(dict.fromkeys(("queries", "supports"), value) if both else {axis: value})}


def measure_scaling(group: Group, plan: Plan, ask: Ask) -> dict[str, Any]:
    """Median seconds over the values of every size of the group, with the exponents of cost and floor."""
    base = plan.sizes(group, group.scaling_base)
    method = next(method for method in group.methods if method.ours)
    sizes = {}
    for axis, values in group.scaling.items():
        for value in QUICK_VALUES if plan.quick else values:
            sizes[axis, value] = resized(base, axis, value)
    seconds = {point: [] for point in sizes}
    for _ in range(plan.rounds):
        for (axis, value), each in sizes.items():
            answer = ask(method, plan.request(group, method, each))
            if "error" in answer:
                raise failure(f"{axis} {value}", answer)
            seconds[axis, value].append(answer["seconds"])
    medians = {point: statistics.median(times) for point, times in seconds.items()}
    return {
        "base": dict(base),
        "axes": {axis: _fits(group, axis, medians, sizes) for axis in group.scaling},
    }


def _fits(group: Group, axis: str, medians: dict, sizes: dict) -> dict[str, Any]:
    points = [point for point in sizes if point[0] == axis]
    values, times = [value for _, value in points], [medians[point] for point in points]
    floors = [group.floor(sizes[point]) for point in points]
    return {
        "symbol": SYMBOLS[axis],
        "values": values,
        "seconds": times,
        "floor": floors,
        "exponent": dataclasses.asdict(fit_power_law(values, np.array(times))),
        "floor_exponent": fit_power_law(values, np.array(floors)).slope,
    }
