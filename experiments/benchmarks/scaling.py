"""How the cost of ours grows with each size, beside how its floor grows: fitted exponents."""

import dataclasses
import statistics

import numpy as np

from experiments.benchmarks.cases import Group, Sizes
from experiments.benchmarks.measure import Plan, failure
from experiments.benchmarks.processes import Ask
from mamltheory.asymptotics import fit_power_law

SYMBOLS = {"width": "l", "tasks": "N", "samples": "n", "outputs": "k", "tau": "τ"}
QUICK_VALUES = (2, 4, 8)


def resized(sizes: Sizes, axis: str, value: int) -> Sizes:
    """The sizes with one of them changed; "samples" of a task are its queries and supports."""
    both = axis == "samples" and "samples" not in sizes
    return {**sizes, **(dict.fromkeys(("queries", "supports"), value) if both else {axis: value})}


def measure_scaling(group: Group, plan: Plan, ask: Ask) -> dict[str, object]:
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
