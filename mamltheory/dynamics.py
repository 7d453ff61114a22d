"""How, and for how long, a loop runs: what its closed forms depend on besides the kernel.

:mod:`mamltheory.linalg` turns each of these into the operators T and ρ of a kernel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from numbers import Integral
from typing import Any, SupportsFloat

from mamltheory.errors import ConfigurationError, ShapeError, ValueRangeError


@dataclass(frozen=True)
class GradientFlow:
    """Continuous time: the paper's e^{−λ0 Θ τ}.

    Args:
        time: the product λ0 τ, or η0 t; at least 0.

    Example:
        >>> import torch, mamltheory as mt
        >>> round(mt.residual_operator(torch.tensor([[2.0]]), mt.GradientFlow(time=0.5)).item(), 4)  # e^{-0.5 · 2}
        0.3679
    """

    time: float

    def __post_init__(self) -> None:
        _check_nonnegative("time", self.time, "use Converged(ridge) for infinite time")

    @property
    def horizon(self) -> float:
        """The time."""
        return self.time


@dataclass(frozen=True)
class GradientDescent:
    """Steps of gradient descent: (I − λ0 Θ)^τ.

    Args:
        rate: λ0 or η0, the learning rate times the width; at least 0.
        steps: their number τ or t; a whole number of at least 0.

    Example:
        >>> import torch, mamltheory as mt
        >>> mt.residual_operator(torch.tensor([[2.0]]), mt.GradientDescent(rate=0.25, steps=3)).item()
        0.125
    """

    rate: float
    steps: int

    def __post_init__(self) -> None:
        _check_nonnegative("rate", self.rate, "use Converged(ridge) for infinite time")
        if not (is_number(self.steps) and self.steps >= 0 and self.steps == int(self.steps)):
            raise ValueRangeError(f"steps is {self.steps}: expected a whole number of at least 0")

    @property
    def horizon(self) -> float:
        """λ0 τ, the time of the same length."""
        return self.rate * self.steps


@dataclass(frozen=True)
class Converged:
    """Infinite time: T(M) = (M + rI)⁻¹.

    Args:
        ridge: r, at least 0. A kernel that is singular needs one above its rounding errors.

    Example:
        >>> import torch, mamltheory as mt
        >>> mt.time_operator(torch.tensor([[0.0]]), mt.Converged(ridge=0.5)).item()
        2.0
    """

    ridge: float = 0.0

    def __post_init__(self) -> None:
        _check_nonnegative("ridge", self.ridge, "choose a small positive number such as 1e-3")

    @property
    def horizon(self) -> float:
        """Infinite."""
        return math.inf


@dataclass(frozen=True)
class ScheduledDescent:
    """Steps of gradient descent with a rate each, and momentum: v ← μ v + ∇, θ ← θ − λ_t v.

    Args:
        rates: λ_0, λ_1, …, times the width; at least 0.
        momentum: μ of heavy-ball momentum, as of torch's SGD; at least 0 and below 1.

    Example:
        >>> import torch, mamltheory as mt
        >>> falling = mt.ScheduledDescent(rates=(0.5, 0.25))  # (1 - 0.5 · 1) (1 - 0.25 · 1)
        >>> mt.residual_operator(torch.tensor([[1.0]]), falling).item()
        0.375
        >>> heavy = mt.ScheduledDescent(rates=(0.5, 0.5), momentum=0.5)  # 1 → 0.5 → 0.5 - 0.5 (0.5 + 0.5 · 1)
        >>> mt.residual_operator(torch.tensor([[1.0]]), heavy).item()
        0.0
    """

    rates: tuple[float, ...]
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.rates, Sequence) or isinstance(self.rates, str):
            raise ValueRangeError(f"rates is {self.rates!r}: expected a tuple with a number for each step")
        object.__setattr__(self, "rates", tuple(self.rates))
        for rate in self.rates:
            _check_nonnegative("a rate", rate, "give one rate for each step")
        check_momentum(self.momentum)

    @property
    def horizon(self) -> float:
        """The time of the same length without momentum, over 1 − μ."""
        return sum(self.rates) / (1 - self.momentum)


@dataclass(frozen=True)
class SampledDescent:
    """Steps of gradient descent on the loss of some tasks each (SGD): θ ← θ − η v, v ← μ v + Σ_{i in batch} ∇ℓ_i.

    The residual is multiplied by I − η Φ[:, B_t] at every step, which has no common eigenvectors: operators are
    products and not functions of a spectrum. The loss of a batch is a sum, like that of all tasks.

    Args:
        rate: η0; at least 0.
        batches: for every step the numbers of its tasks, from 0 on; a task twice in a batch counts twice.
        rows: the number of rows of a task in the kernel, n·k, or one number for each task where they differ; 1 for
            batches of rows.
        momentum: μ; at least 0 and below 1.

    Example:
        >>> import torch, mamltheory as mt
        >>> kernel = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
        >>> mt.residual_operator(kernel, mt.SampledDescent(rate=1.0, batches=((0,),))).tolist()
        [[0.0, 0.0], [-0.5, 1.0]]
    """

    rate: float
    batches: tuple[tuple[int, ...], ...]
    rows: int | tuple[int, ...] = 1
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_nonnegative("rate", self.rate, "give a smaller positive number")
        object.__setattr__(self, "batches", checked_batches(self.batches))
        given: Any = self.rows
        sizes = given if isinstance(given, Sequence) else (given,)
        if not sizes or not all(_is_index(size) and size for size in sizes):
            raise ValueRangeError(
                f"rows is {self.rows!r}: expected the number of rows of every task, one number or a tuple"
            )
        whole = tuple(int(size) for size in sizes)
        object.__setattr__(self, "rows", whole if isinstance(given, Sequence) else whole[0])
        check_momentum(self.momentum)

    @property
    def horizon(self) -> float:
        """The rate times the steps over 1 − μ."""
        return self.rate * len(self.batches) / (1 - self.momentum)

    def row_indices(self, size: int) -> Iterator[list[int]]:
        """The rows of a kernel of ``size`` rows that every step sees.

        Yields:
            The indices of a step's rows.

        Raises:
            ShapeError: the tasks' rows are not those of the kernel.
        """
        rows = self.rows
        sizes = [rows] * (size // rows) if isinstance(rows, int) else list(rows)
        if sum(sizes) != size or any(i >= len(sizes) for batch in self.batches for i in batch):
            raise ShapeError(
                f"the kernel has {size} rows, tasks of {rows} rows each, and batches with tasks up to "
                f"{max((i for batch in self.batches for i in batch), default=0)}: they do not fit together"
            )
        ends = list(accumulate(sizes))
        for batch in self.batches:
            yield [row for i in batch for row in range(ends[i] - sizes[i], ends[i])]


SpectralDynamics = GradientFlow | GradientDescent | Converged | ScheduledDescent
"""Those whose operators are functions of the kernel's spectrum."""

Dynamics = SpectralDynamics | SampledDescent
"""How, and for how long, a loop ran."""


def check_dynamics(dynamics: Dynamics) -> None:
    """Raises ConfigurationError for something else than a Dynamics."""
    if not isinstance(dynamics, Dynamics):
        raise ConfigurationError(
            f"dynamics is {dynamics!r}: expected Converged(ridge), GradientDescent(rate, steps), GradientFlow(time), "
            "ScheduledDescent(rates, momentum) or SampledDescent(rate, batches, rows)"
        )


def is_number(value: object) -> bool:
    """Whether a value is a finite real number."""
    try:
        return isinstance(value, SupportsFloat) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _check_nonnegative(name: str, value: float, advice: str) -> None:
    if not (is_number(value) and value >= 0):
        raise ValueRangeError(f"{name} is {value!r}: expected a finite number of at least 0; {advice}")


def check_momentum(momentum: float) -> None:
    """Raises ValueRangeError unless μ is a number of at least 0 and below 1."""
    if not (is_number(momentum) and 0 <= momentum < 1):
        raise ValueRangeError(f"momentum is {momentum!r}: expected a number of at least 0 and below 1")


def checked_batches(batches: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The batches as tuples; a ValueRangeError unless they are sequences of whole numbers, none of them empty."""
    if (
        not isinstance(batches, Sequence)
        or not all(isinstance(batch, Sequence) and batch for batch in batches)
        or not all(_is_index(i) for batch in batches for i in batch)
    ):
        raise ValueRangeError(
            f"batches is {batches!r}: expected for every step the numbers of its tasks, such as ((0, 1), (2, 3))"
        )
    return tuple(tuple(int(i) for i in batch) for batch in batches)


def _is_index(value: object) -> bool:
    return isinstance(value, Integral) and 0 <= int(value) < 2**31
