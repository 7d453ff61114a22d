"""Exact identities as lines on the screen: the claim, its error, and the error of a wrong formula."""

import dataclasses
from typing import Any

from torch import Tensor

from mamltheory import (
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Task,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    linearised,
    meta_ntk,
    meta_output,
    train,
)
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.predictors import adapted_output
from mamltheory.rates import largest_rate

from .settings import Theory
from .tasks import sphere_tasks

TOLERANCE = 1e-10


@dataclasses.dataclass(frozen=True)
class Check:
    """One identity: the relative errors of the right formula and of a wrong one, which must be large."""

    statement: str
    error: float
    wrong_formula: str
    wrong_error: float

    @property
    def holds(self) -> bool:
        """Whether the identity holds to rounding, and the wrong formula does not."""
        return self.error < TOLERANCE < 1e-4 < self.wrong_error


def print_checks(seed: int) -> None:
    """Run the checks and print one line for each; raises AssertionError if one fails."""
    for check in run_checks(seed):
        mark = "holds" if check.holds else "FAILS"
        wrong = f"{check.wrong_formula}: {check.wrong_error:.0e}"
        print(f"   {mark}  {check.statement}: error {check.error:.0e} ({wrong})")
        if not check.holds:
            raise AssertionError(f"{check.statement}: relative error {check.error:.3e}")


def run_checks(seed: int) -> list[Check]:
    """Zero-residual identity for MAML and ANIL, the linearised network's training, ANIL's exact output."""
    net = FullyConnected(Theory.dimension, 64, 2, activation="relu")
    params = net.initialise(generator(seed, "check init"))
    tasks = sphere_tasks(4, Theory.dimension, seed)
    top = max(extreme_eigenvalues(empirical_ntk(net.model, t.support_x, params=params))[1] for t in tasks)
    loops = {name: InnerLoop(0.5 / top, 3, name) for name in ("maml", "anil")}
    parts = (net, params, tasks)
    return [
        *(zero_residual(*parts, inner) for inner in loops.values()),
        anil_output(*parts, loops["anil"]),
        *(linear_training(*parts, loops["maml"], steps) for steps in (1, 7, 40)),
    ]


def relative(got: Tensor, expected: Tensor) -> float:
    """Error relative to the norm of the expected tensor."""
    return float((got - expected).norm() / expected.norm())


def zero_residual(net: FullyConnected, params: dict, tasks: tuple[Task, ...], inner: InnerLoop) -> Check:
    """With Y' = f(X') for ``tasks``, the MetaNTK of ``inner`` at ``net``'s ``params`` is the composite kernel."""
    silent = [Task(t.query_x, t.query_y, t.support_x, net.model(params, t.support_x)) for t in tasks]
    real = empirical_meta_ntk(net.model, silent, inner, params=params)
    flow = GradientFlow(inner.lam0 * inner.tau)
    composed, printed = (
        meta_ntk(net.model, silent, inner.algorithm, dynamics, params=params)
        for dynamics in (inner.dynamics, flow)
    )
    equation = {"maml": "(106), MAML", "anil": "(112), ANIL"}[inner.algorithm]
    return Check(
        f"MetaNTK of {equation}",
        relative(composed, real),
        "with the printed exponential",
        relative(printed, real),
    )


def anil_output(net: FullyConnected, params: dict, tasks: tuple[Task, ...], inner: InnerLoop) -> Check:
    """ANIL's output on the first of ``tasks`` (``net``, ``params``, ``inner``) is Eq. (58), not (84)."""
    task, model = tasks[0], net.model
    kernels = (
        empirical_last_layer_ntk(model, task.query_x, task.support_x, params=params),
        empirical_last_layer_ntk(model, task.support_x, params=params),
    )
    f_query, f_support = (model(params, x).reshape(-1) for x in (task.query_x, task.support_x))
    y = task.support_y.reshape(-1)
    right = adapted_output(*kernels, y, inner.dynamics, f_query, f_support)
    real = meta_output(model, params, task, inner)
    return Check(
        "ANIL's output (58)", relative(right, real), "sign of (84)", relative(2 * f_query - right, real)
    )


def linear_training(
    net: FullyConnected, params: dict, tasks: tuple[Task, ...], inner: InnerLoop, steps: int
) -> Check:
    """After ``steps`` on two ``tasks`` with ``inner``, the linearisation of ``net`` at ``params`` is the form (96)."""
    model, seen, held_out = net.model, tasks[:2], tasks[2:]
    x = joint_inputs(tasks)
    theta, f0 = empirical_ntk(model, x, params=params), model(params, x).reshape(-1)
    eta0 = 0.9 * largest_rate(meta_ntk(model, seen, "maml", inner.dynamics, params=params))
    trained = train(linearised(model, params), params, seen, inner, eta0, steps, held_out)
    real: Any = trained.observations[-1].test_outputs
    right, printed = (
        kernel_regression(theta, seen, held_out, inner.dynamics, outer, f0=f0).test
        for outer in (GradientDescent(eta0, steps), GradientFlow(eta0 * steps))
    )
    wrong = "f_0 dropped, as in (12)"
    dropped = kernel_regression(theta, seen, held_out, inner.dynamics, GradientDescent(eta0, steps)).test
    if steps == 1:
        wrong, dropped = "with the printed exponential", printed
    return Check(f"output (96) after t = {steps}", relative(right, real), wrong, relative(dropped, real))
