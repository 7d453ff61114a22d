"""How the cost of ours grows with each size, beside how its floor grows: fitted exponents."""

import dataclasses
import statistics

import numpy as np

from experiments.benchmarks.cases import Group, Sizes
from experiments.benchmarks.measure import LEAST_SECONDS, MeasurementError, Plan
from experiments.benchmarks.processes import Worker, Workers
from mamltheory.asymptotics import fit_power_law
from mamltheory.runtime.interrupt import check_interrupted

SYMBOLS = {"width": "l", "tasks": "N", "samples": "n", "outputs": "k", "tau": "τ"}
QUICK_VALUES = (2, 4, 8)


def resized(sizes: Sizes, axis: str, value: int) -> Sizes:
    """The sizes with one of them changed; "samples" of a task are its queries and supports."""
    both = axis == "samples" and "samples" not in sizes
    return {**sizes, **(dict.fromkeys(("queries", "supports"), value) if both else {axis: value})}


def measure_scaling(group: Group, plan: Plan, workers: Workers) -> dict[str, object]:
    """Median seconds over the values of every size of the group, with the exponents of cost and floor."""
    base = plan.sizes(group, group.scaling_base)
    method = next(method for method in group.methods if method.ours)
    worker = workers.get("scaling")
    sizes = {}
    for axis, values in group.scaling.items():
        for value in QUICK_VALUES if plan.quick else values:
            sizes[axis, value] = resized(base, axis, value)
    numbers = {}
    for (axis, value), each in sizes.items():
        job = {"group": group.name, "method": method.name, "sizes": each, "dtype": "float32"}
        _answer(worker, do="prepare", name=f"{axis} {value}", job=job | {"seed": plan.seed})
        first = _answer(worker, do="first", name=f"{axis} {value}")["seconds"]
        numbers[axis, value] = 1 if plan.quick else max(1, min(50, round(LEAST_SECONDS / max(first, 1e-5))))
    seconds = {point: [] for point in sizes}
    for _ in range(plan.rounds):
        for (axis, value), number in numbers.items():
            answer = _answer(worker, do="seconds", name=f"{axis} {value}", number=number)
            seconds[axis, value].append(answer["seconds"])
    workers.close("scaling")
    medians = {point: statistics.median(times) for point, times in seconds.items()}
    return {
        "base": dict(base),
        "axes": {axis: _fits(group, axis, medians, sizes) for axis in group.scaling},
    }


def _fits(group: Group, axis: str, medians: dict, sizes: dict) -> dict[str, object]:
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


def _answer(worker: Worker, **request: object) -> dict[str, object]:
    answer = worker.ask(**request)
    check_interrupted()
    if "error" in answer:
        raise MeasurementError(f"{request['name']}: {answer['error']}; see workers.log beside the results")
    return answer
