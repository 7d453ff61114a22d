"""One case measured: first calls in fresh processes, rounds over all methods, results against the reference.

A method's process does its problem once at tiny sizes, so that what libraries load is loaded; the next call, the
first at full size, gives the peak memory. Then every round lets each method's process have its turn. A round
repeats short calls until they take a tenth of a second, and a method that has used up its seconds sits out.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from experiments.benchmarks.cases import Case, Group, Method, Sizes
from experiments.benchmarks.kernel import STRIDES
from experiments.benchmarks.processes import Workers
from mamltheory.errors import MamlTheoryError
from mamltheory.runtime.interrupt import check_interrupted

LEAST_SECONDS = 0.1
"""CPU seconds of a round's calls, at least."""


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


def measure_case(case: Case, plan: Plan, workers: Workers, absent: Sequence[str]) -> dict[str, object]:
    """All that the report says of a case; ``absent`` names the methods whose package is not there."""
    sizes, checked = (plan.sizes(case.group, each) for each in (case.sizes, case.checked_sizes))
    records = {name: {"status": "not installed" if name in absent else "measured"} for name in case.methods}
    present = [case.group.method(name) for name in case.methods if name not in absent]
    session = Session(case, plan, workers)
    for method in present:
        records[method.name] |= session.first(method, sizes, save=sizes == checked)
    session.rounds(present, records)
    for method in present:  # only now: from here on the processes hold other problems
        if sizes != checked:
            session.result(method, checked, "float32", records[method.name])
        if method.ours:
            session.result(method, checked, "float64", records[method.name])
        session.workers.close(method.name)
    reference = session.reference(checked)
    for name, record in records.items():
        session.compare(name, record, reference)
        session.discard(name)
    session.discard(case.group.reference.name)
    return {
        "title": case.title,
        "group": case.group.name,
        "sizes": dict(sizes),
        "checked_sizes": dict(checked),
        "floor": case.group.floor and case.group.floor(sizes),
        "parameters": case.group.parameters and case.group.parameters(sizes),
        "methods": {name: _summary(record, case, sizes) for name, record in records.items()},
    }


class Session:
    """The processes of one case, and the files in which their results lie."""

    def __init__(self, case: Case, plan: Plan, workers: Workers):
        self.case, self.plan, self.workers = case, plan, workers

    def ask(self, method: Method, **request: object) -> dict[str, object]:
        """A request to the method's process; an error of ours is raised, a peer's is an answer."""
        answer = self.workers.get(method.name, method.interpreter).ask(name=method.name, **request)
        check_interrupted()
        if "error" in answer and (method.ours or method == self.case.group.reference):
            raise MeasurementError(
                f"{method.name} failed on {self.case.name}: {answer['error']}; see workers.log beside the results"
            )
        return answer

    def prepare(self, method: Method, sizes: Sizes, dtype: str) -> dict[str, object]:
        """Have the method's process build the problem."""
        job = {
            "group": self.case.group.name,
            "method": method.name,
            "sizes": dict(sizes),
            "dtype": dtype,
            "seed": self.plan.seed,
        }
        if method.interpreter is not None:
            build, export = self.case.group.build, self.case.group.export
            problem = build(sizes, getattr(torch, dtype), torch.device("cpu"), self.plan.seed)
            file = self.plan.folder / "problem.npz"
            np.savez(file, **export(problem))
            job |= {"file": str(file.resolve()), "strides": list(STRIDES) if "channels" in sizes else []}
        return self.ask(method, do="prepare", job=job)

    def first(self, method: Method, sizes: Sizes, save: bool) -> dict[str, object]:
        """Status, seconds and peak of the first call at full size, after one at tiny sizes."""
        tiny = {**sizes, **self.case.group.quick}
        path = str(self.file(method.name, "float32")) if save else None
        for use, name in ((tiny, None), (sizes, path)):
            answer = self.prepare(method, use, "float32")
            if "error" not in answer:
                answer = self.ask(method, do="first", save=name)
            if "error" in answer:
                return {"status": f"failed: {answer['error']}"}
        return {"first_seconds": answer["seconds"], "peak_bytes": answer["peak"]}

    def rounds(self, methods: Sequence[Method], records: Mapping[str, dict[str, object]]) -> None:
        """Seconds of every round, and the rate of matrix products beside them."""
        for _ in range(self.plan.rounds):
            for method in methods:
                record = records[method.name]
                if record["status"] != "measured" or sum(record.get("used", ())) > self.plan.seconds:
                    continue
                rate = self.ask(method, do="rate", dtype="float32").get("rate")
                number = max(1, min(50, round(LEAST_SECONDS / max(record["first_seconds"], 1e-5))))
                number = 1 if self.plan.quick else number
                answer = self.ask(method, do="seconds", number=number)
                if "error" in answer:
                    record["status"] = f"failed: {answer['error']}"
                    continue
                record.setdefault("seconds", []).append(answer["seconds"])
                record.setdefault("used", []).append(answer["seconds"] * number)
                if rate:
                    record.setdefault("rates", []).append(rate)

    def result(self, method: Method, sizes: Sizes, dtype: str, record: dict[str, object]) -> None:
        """One more call for its result alone, at other sizes or in another dtype."""
        if record["status"] != "measured":
            return
        answer = self.prepare(method, sizes, dtype)
        if "error" not in answer:
            answer = self.ask(method, do="first", save=str(self.file(method.name, dtype)))
        if "error" in answer:
            record["status"] = f"failed: {answer['error']}"

    def reference(self, sizes: Sizes) -> list[np.ndarray]:
        """The reference's result, float64."""
        method = self.case.group.reference
        self.prepare(method, sizes, "float64")
        self.ask(method, do="first", save=str(self.file(method.name, "float64")))
        self.workers.close(method.name)
        return _load(self.file(method.name, "float64"))

    def compare(self, name: str, record: dict[str, object], reference: Sequence[np.ndarray]) -> None:
        """Write into the record how far the results lie from the reference's."""
        for dtype, key in (("float32", "agreement"), ("float64", "agreement_float64")):
            file = self.file(name, dtype)
            if record["status"] == "measured" and file.exists():
                record[key] = relative_difference(_load(file), reference)

    def file(self, name: str, dtype: str) -> Path:
        """Where a result lies until it has been compared."""
        return self.plan.folder / f"{self.case.name}_{name.replace(' ', '-')}_{dtype}.npz"

    def discard(self, name: str) -> None:
        """Remove a method's results."""
        for dtype in ("float32", "float64"):
            self.file(name, dtype).unlink(missing_ok=True)


def relative_difference(result: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """The largest difference of an entry, in units of the largest entry of its tensor; the worst tensor."""
    pairs = list(zip(result, reference, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def _load(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


def _summary(record: dict[str, object], case: Case, sizes: Sizes) -> dict[str, object]:
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
