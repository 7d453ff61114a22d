"""The constants K and R0 of Lemma 1 and Theorem 3, measured on the networks of the sweep.

K = max{1, ‖J(θ_0)‖_F/√l, the worst rate of change of J/√l at θ_0} is the least value that Eq. (25) allows at θ_0;
Theorem 3 needs K ≥ 1. R0 = ‖g(θ_0)‖, the residual at the start.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mamltheory import generator
from mamltheory.finite_width.bounds import theorem3_drift_bound, theorem3_path_bound
from mamltheory.finite_width.lipschitz import jacobian_size, lipschitz_constant

from .settings import Theory, Widths
from .sweep import Measurement, Problem, Sweep, initialised, run_sweep

TOLERANCE = 1e-2
"""Relative tolerance of the rate of change; the scatter between seeds is ten times larger."""

WIDEST = 1024
"""Widest network whose constants are measured: the search for the rate of change needs rows of all D parameters."""


def sweep_settings(settings: Widths, **changes: Any) -> Theory:
    """The settings of a sweep among those of a figure, with some changes."""
    names = {field.name for field in dataclasses.fields(Theory)}
    own = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name in names}
    return Theory(**own | changes)


def measure_constants(settings: Theory, problem: Problem, pair: tuple[int, int]) -> dict[str, Any]:
    """Both lines of Eq. (25) at θ_0: the rate of change of J/√l in the worst direction, and its size."""
    net, params = initialised(settings, pair)
    parts = (net.model, params, problem.tasks, problem.inner)
    start_vector = generator(settings.seed, "lipschitz start vector", *pair)
    return {
        "width": pair[0],
        "seed": pair[1],
        "rate_of_change": lipschitz_constant(*parts, start_vector, TOLERANCE),
        "jacobian_size": jacobian_size(*parts),
    }


def constants(settings: Theory) -> Sweep:
    """The constants of every network of a sweep up to ``WIDEST``; they do not depend on how long it is trained."""
    count = max(2, sum(width <= WIDEST for width in settings.widths))
    return run_sweep(
        sweep_settings(settings, widths=settings.widths[:count]),
        "Lipschitz constants",
        Measurement("constants", measure_constants, free_of=("steps",)),
    )


def lemma1_constant(measured: Sweep) -> np.ndarray:
    """K as widths × seeds."""
    both = np.maximum(measured.values("rate_of_change"), measured.values("jacobian_size"))
    return np.maximum(1.0, both)


def path_bounds(result: Sweep, measured: Sweep) -> np.ndarray:
    """The bound (29) of every network whose constants are measured, widths × seeds."""
    return _bounds(theorem3_path_bound, result, measured)


def drift_bounds(result: Sweep, measured: Sweep) -> np.ndarray:
    """The bound (30) of every network whose constants are measured, widths × seeds."""
    return _bounds(theorem3_drift_bound, result, measured)


def _bounds(bound: Callable[[float, float, float, int], float], result: Sweep, measured: Sweep) -> np.ndarray:
    lipschitz, start = lemma1_constant(measured), result.values("residuals")[..., 0]
    widths, sigma_min = measured.settings.widths, result.problem.sigma_min
    start = start[: len(widths)]
    return np.array(
        [
            [bound(float(k), float(r), sigma_min, width) for k, r in zip(*row, strict=True)]
            for width, *row in zip(widths, lipschitz, start, strict=True)
        ]
    )
