"""The theorems for your own network, from networks of several widths: measured, fitted and judged.

Every measurement is in the units of the standard parameterisation, whatever that of the network: with kernels divided
by s(l), parameters count √(s/l) times their length, and the rate of change of the Jacobian √(l/s) times. Then paths and
drifts are to fall as l^(−1/2) and K is to stay, and the bounds of Theorem 3 apply as they stand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mamltheory.dynamics import GradientDescent, is_number
from mamltheory.errors import ConfigurationError, SingularKernelError, ValueRangeError
from mamltheory.finite_width.asymptotics import fit_power_law
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.finite_width.lipschitz import lipschitz_constant
from mamltheory.finite_width.verdicts import NOTHING, RULE, Verdict, verdicts_of
from mamltheory.inner_loop import InnerLoop, algorithm_of
from mamltheory.kernels.empirical import empirical_last_layer_ntk, empirical_ntk
from mamltheory.kernels.meta import joint_inputs, meta_ntk
from mamltheory.maml import TrainingRecord, train
from mamltheory.modules import guarded_forward
from mamltheory.networks import Model, from_module
from mamltheory.predictors import kernel_regression
from mamltheory.rng import generator
from mamltheory.tasks import Parameters, Task, check_tasks, query_labels

Build = Callable[[int], nn.Module]
TOLERANCE = 1e-2
"""Relative tolerance of K; the scatter between seeds is ten times larger."""


@dataclass(frozen=True)
class Verification:
    """All measurements and verdicts of :func:`verify`.

    Args:
        widths: the widths.
        scales: s of every width, by which kernels and rates are divided.
        inner: the inner loop.
        eta0: η0 of the outer loop.
        sigma_min: the least eigenvalue of the limit's MetaNTK, estimated at the largest width.
        values: the measurements by name, each widths × seeds; the residuals widths × seeds × steps.
        verdicts: one for every statement.
    """

    widths: tuple[int, ...]
    scales: tuple[float, ...]
    inner: InnerLoop
    eta0: float
    sigma_min: float
    values: dict[str, np.ndarray]
    verdicts: tuple[Verdict, ...]

    def __str__(self) -> str:
        """A line for every verdict, and the rule by which slopes are judged."""
        size = max(len(one.statement) for one in self.verdicts)
        return "\n".join([*(f"{one.statement:{size}}  {one.text}" for one in self.verdicts), RULE])


def verify(
    build: Build, widths: Sequence[int], tasks: Sequence[Task], inner: InnerLoop, *, test_tasks: Sequence[Task],
    eta0: float | None = None, steps: int = 30, seeds: int = 3, scale: Callable[[int], float] | None = None,
    lipschitz: bool = True, seed: int = 0, after: Callable[[int, int], object] | None = None,
) -> Verification:  # fmt: skip
    """Theorems 2 and 3, Lemmas 1 and 3 for your own network: trained at several widths, measured and judged.

    Every network is trained by full-batch MAML or ANIL in float64. A slope is judged by its 95 % interval.
    Where l^(−1/2) is expected, a statement holds if the interval lies below −0.25, and does not hold if it lies above,
    or excludes −0.5 and reaches zero. Where no growth is expected, it holds if the interval lies below 0.25, and does
    not hold if it lies above. Otherwise it is undecided. A diverging training is a ValueRangeError, a
    singular MetaNTK a SingularKernelError; errors on networks are those of :func:`mamltheory.maml.train`.

    Args:
        build: a function from the width l to a network with new random weights. It may draw them from torch's global
            generator, which is seeded for each network and then put back.
        widths: at least two, increasing.
        tasks: the training tasks.
        inner: the inner loop; λ0 must suit kernels that are divided by the scale, see :func:`stable_inner_loop`.
        test_tasks: held-out tasks, on which trained networks are compared with the kernel regression.
        eta0: η0; None for 1/(σ_max + σ_min) of the MetaNTK at the largest width, half of what Theorem 3 allows.
        steps: meta-training steps.
        seeds: initialisations for every width, at least 2.
        scale: s(l), by which kernels and both rates are divided; None to find it as the power of l by which the NTK
            grows: l in the usual parameterisation, 1 in NTK parameterisation, 1/l for a mean-field network.
        lipschitz: whether to evaluate K of Lemma 1 and the bounds (29) and (30), which takes most of the time.
        seed: of all random draws.
        after: called with (width, index) after every network.

    Returns:
        Measurements and verdicts; ``print`` shows a line for every verdict. ConfigurationError is raised for arguments
        that do not fit, and a kernel that grows as no whole power of the width.

    Example:
        >>> import torch, mamltheory as mt
        >>> from torch.nn import Linear, Sequential, Tanh
        >>> x, y = torch.eye(4), torch.tensor([[1.0], [-1.0]])
        >>> tasks, held_out = [mt.Task(x[:2], y, x[2:], y)], [mt.Task(x[2:], y, x[:2], y)]
        >>> build = lambda width: Sequential(Linear(4, width), Tanh(), Linear(width, 1))
        >>> options = {"test_tasks": held_out, "steps": 3, "seeds": 2, "lipschitz": False}
        >>> found = mt.verify(build, (32, 512), tasks, mt.InnerLoop(0.1), **options)
        >>> found.scales, found.verdicts[0].text
        ((32.0, 512.0), 'holds at all widths from 32')
    """
    widths, setting = _checked(widths, tasks, test_tasks, inner, (steps, seeds, eta0, seed), lipschitz, after)
    scales = _scales(build, widths, setting.tasks, seeds, scale, seed)
    starts = [drawn(build, widths[-1], scales[-1], seed, i) for i in range(seeds)]
    low, high = _limit_spectrum(starts, setting, widths[-1])
    setting = replace(setting, eta0=setting.eta0 or 1 / (low + high))
    rows, kernels = [], []
    for width, s, i in ((width, s, i) for width, s in zip(widths, scales, strict=True) for i in range(seeds)):
        row, kernel = _measured(setting, *drawn(build, width, s, seed, i), (width, i))
        rows.append(row)
        kernels.append(kernel)
        if after is not None:
            guarded_forward("after", after, width, i)
    values = _by_width(rows, kernels, len(widths))
    verdicts = verdicts_of(widths, values, setting.eta0, low)
    return Verification(widths, scales, inner, setting.eta0, low, values, verdicts)


@dataclass(frozen=True)
class _Setting:
    """What all networks share."""

    tasks: tuple[Task, ...]
    test_tasks: tuple[Task, ...]
    inner: InnerLoop
    eta0: float
    steps: int
    lipschitz: bool
    seed: int


def _measured(
    setting: _Setting, model: Model, params: Parameters, pair: tuple[int, int]
) -> tuple[dict[str, Any], Tensor]:
    """All measurements of the network of one (width, index), and Φ̂_0."""
    steps, parts = setting.steps, (setting.tasks, setting.inner)
    every = range(0, steps + 1, max(1, steps // 5))
    record = train(
        model, params, *parts, setting.eta0, steps, setting.test_tasks, kernel_steps=(*every, steps)
    )
    start, labels = record.kernels[0], query_labels(setting.tasks)
    units = (model.scale / pair[0]) ** 0.5
    row = {
        "residuals": [float((seen.outputs - labels).norm()) for seen in record.observations],
        "path": units * record.observations[-1].path_length,
        "drift": max(record.kernel_drift().values()) / float(start.norm()),
        "kernel_norm": float(start.norm()),
        "deviation": _deviation(setting, model, params, record),
    }
    if setting.lipschitz:
        random = generator(setting.seed, "verify start vector", *pair)
        rate = lipschitz_constant(model, params, *parts, random, TOLERANCE) / units
        row["K"] = max(1.0, float(start.trace()) ** 0.5, rate)
    return row, start


def _deviation(setting: _Setting, model: Model, params: Parameters, record: TrainingRecord) -> float:
    """‖trained − kernel regression‖/‖trained‖ on the held-out tasks, with the network's initial kernel and outputs."""
    x = joint_inputs((*setting.tasks, *setting.test_tasks))
    anil = setting.inner.algorithm == "anil"
    predicted = kernel_regression(
        empirical_ntk(model, x, params=params),
        setting.tasks,
        setting.test_tasks,
        setting.inner.dynamics,
        GradientDescent(setting.eta0, setting.steps),
        empirical_last_layer_ntk(model, x, params=params) if anil else None,
        model(params, x).detach().reshape(-1),
    )
    trained = cast(Tensor, record.observations[-1].test_outputs)
    return float((predicted.test - trained).norm() / trained.norm())


def _by_width(rows: list[dict[str, Any]], kernels: list[Tensor], widths: int) -> dict[str, np.ndarray]:
    """The measurements as widths × seeds, with the relative distance of every Φ̂_0 from the mean over its width."""
    values = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    values = {name: value.reshape(widths, -1, *value.shape[1:]) for name, value in values.items()}
    stacked = torch.stack(kernels).reshape(widths, -1, *kernels[0].shape)
    mean = stacked.mean(1, keepdim=True)
    values["scatter"] = ((stacked - mean).norm(dim=(2, 3)) / mean.norm(dim=(2, 3))).numpy()
    return values


def _limit_spectrum(
    starts: list[tuple[Model, Parameters]], setting: _Setting, width: int
) -> tuple[float, float]:
    """(σ_min, σ_max) of the mean MetaNTK of the networks of the largest ``width``, the estimate of the limit's."""
    inner = setting.inner
    kernels = [
        meta_ntk(model, setting.tasks, inner.algorithm, inner.dynamics, params=params)
        for model, params in starts
    ]
    low, high = extreme_eigenvalues(torch.stack(kernels).mean(0))
    if low <= NOTHING * high:
        raise SingularKernelError(
            f"the MetaNTK at width {width} has eigenvalues in [{low:.3g}, {high:.3g}]: the theorems need a positive "
            "definite one; take other samples, fewer tasks or wider networks"
        )
    return low, high


def stable_inner_loop(
    build: Build,
    width: int,
    scale: float,
    tasks: Sequence[Task],
    inner: InnerLoop,
    seed: int = 0,
) -> InnerLoop:
    """The ``inner`` loop with λ0 = 1/(2 σ_max), of the NTK of the support samples of any task; it is stable.

    Args:
        build: as for :func:`verify`.
        width: the largest width.
        scale: s of that width, see :func:`found_scale`.
        tasks: all tasks, held-out ones among them.
        inner: the number of steps and the algorithm.
        seed: of the random draw.

    Returns:
        The inner loop.
    """
    model, params = drawn(build, width, scale, seed, 0)
    kernel = empirical_last_layer_ntk if inner.algorithm == "anil" else empirical_ntk
    supports = [task.to(torch.float64).support_x for task in tasks]
    top = max(extreme_eigenvalues(kernel(model, x, params=params))[1] for x in supports)
    return InnerLoop(0.5 / top, inner.tau, inner.algorithm, inner.first_order)


def drawn(build: Build, width: int, scale: float, seed: int, index: int) -> tuple[Model, Parameters]:
    """The ``index``-th network of a width in float64, with kernels divided by ``scale``; ``build`` as for verify."""
    if not callable(build):
        raise ConfigurationError(
            f"build is a {type(build).__name__}: expected a function from the width to a torch.nn.Module"
        )
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(seed, "verify", width, index).get_state())
        network = guarded_forward(f"build({width})", build, width)
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"build({width}) gives a {type(network).__name__}: expected a torch.nn.Module with new random weights"
        )
    return from_module(network.double(), scale)


def found_scale(
    build: Build, widths: Sequence[int], tasks: Sequence[Task], seeds: int = 2, seed: int = 0
) -> int:
    """The whole power p of the width l by which the NTK grows, so that the scale is l^p.

    Terms that do not grow hide the power at small widths, so that the two largest decide.

    Args:
        build: as for :func:`verify`.
        widths: at least two, increasing.
        tasks: the samples of the first are used.
        seeds: networks for every width.
        seed: of the random draws.

    Returns:
        p: 1 in the usual parameterisation, 0 in NTK parameterisation, −1 for a mean-field network.

    Raises:
        ConfigurationError: the kernel grows as no whole power of the width.
    """
    x = check_tasks(tasks)[0].to(torch.float64).support_x
    largest = widths[-2:]
    traces = [[_trace(*drawn(build, width, 1.0, seed, i), x) for i in range(seeds)] for width in largest]
    slope = fit_power_law(largest, np.array(traces)).slope
    if abs(slope - round(slope)) > 0.35:
        raise ConfigurationError(
            f"the NTK grows as width^{slope:.2f}: expected a whole power; take wider networks, or give "
            "the scale, scale=lambda width: ..."
        )
    return round(slope)


def _trace(model: Model, params: Parameters, x: Tensor) -> float:
    trace = float(empirical_ntk(model, x, params=params).trace())
    if trace <= 0:
        raise SingularKernelError("the NTK is zero: no parameter reaches the outputs on these samples")
    return trace


def _scales(
    build: Build,
    widths: tuple[int, ...],
    tasks: Sequence[Task],
    seeds: int,
    scale: Callable[[int], float] | None,
    seed: int,
) -> tuple[float, ...]:
    if scale is None:
        power = found_scale(build, widths, tasks, seeds, seed)
        return tuple(float(width) ** power for width in widths)
    if not callable(scale):
        raise ConfigurationError(f"scale is {scale!r}: expected a function of the width, lambda width: width")
    scales = tuple(guarded_forward("scale", scale, width) for width in widths)
    if not all(is_number(one) and one > 0 for one in scales):
        raise ValueRangeError(f"scale gives {list(scales)}: expected positive numbers")
    return tuple(float(one) for one in scales)


def _checked(
    widths: Sequence[int], tasks: Sequence[Task], test_tasks: Sequence[Task], inner: InnerLoop,
    numbers: tuple[int, int, float | None, int], lipschitz: bool, after: object,
) -> tuple[tuple[int, ...], _Setting]:  # fmt: skip
    """The widths, and what all networks share; η0 is 0 where it is to be found."""
    good = isinstance(widths, Sequence) and all(
        isinstance(one, Integral) and not isinstance(one, bool) and 1 <= int(one) < 2**31 for one in widths
    )
    if not good or len(widths) < 2 or sorted(set(widths)) != list(widths):
        raise ConfigurationError(f"widths is {widths!r}: expected two or more whole numbers, increasing")
    steps, seeds, eta0, seed = numbers
    for name, value, least in (("steps", steps, 1), ("seeds", seeds, 2)):
        if not (isinstance(value, Integral) and least <= int(value) < 2**31):
            raise ValueRangeError(f"{name} is {value!r}: expected a whole number of at least {least}")
    if eta0 is not None and not (is_number(eta0) and eta0 > 0):
        raise ValueRangeError(f"eta0 is {eta0!r}: expected a positive number, or None to choose it")
    if after is not None and not callable(after):
        raise ConfigurationError(f"after is {after!r}: expected a function of width and index, or None")
    if not isinstance(lipschitz, bool):
        raise ConfigurationError(f"lipschitz is {lipschitz!r}: expected True or False")
    algorithm_of(inner)
    train_tasks, held_out = (
        tuple(one.to(torch.float64) for one in check_tasks(some)) for some in (tasks, test_tasks)
    )
    check_tasks((*train_tasks, *held_out))
    rate = 0.0 if eta0 is None else float(eta0)
    setting = _Setting(train_tasks, held_out, inner, rate, int(steps), lipschitz, seed)
    return tuple(int(one) for one in widths), setting
