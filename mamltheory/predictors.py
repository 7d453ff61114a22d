"""Closed forms: what a trained network outputs at any time, without training it.

Inner loop, Eqs. (13), (58), (88), (104), (109), (110):   G = f_0(X) + Θ(X, X') T(Θ(X', X')) (Y' − f_0(X'))
Outer loop, Eqs. (8), (12), (96), (102), (103), (111):    F_t = F_0 + Φ(·, 𝒳) T(Φ) (𝒴 − F_0(𝒳))
On the training tasks, Eqs. (95), (101):                  F_t = (I − ρ(Φ)) 𝒴 + ρ(Φ) F_0

T and ρ come from :mod:`mamltheory.linalg`, so that each form exists for gradient flow (as the paper prints it), for
discrete steps (what is exact for gradient descent) and for infinite time. Time is λ0 τ and η0 t: the paper's λ and η
stand for λ0 and η0 there, the kernels carrying 1/l.

f_0: Theorem 2 drops it by Assumption 5. It does not vanish with the width, so that either it is kept (pass it) or
the centred network f_θ − f_{θ0} is meant (leave it out, f_0 = 0 exactly).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ShapeError
from mamltheory.kernels.meta import (
    adaptation_matrix,
    composite_kernel,
    composition,
    joint_sizes,
    joint_slices,
)
from mamltheory.linalg import Dynamics, residual_operator, time_operator
from mamltheory.tasks import Task, check_tasks, query_labels


def adapted_output(
    query_support: Float[Tensor, "q s"],
    support_support: Float[Tensor, "s s"],
    support_y: Float[Tensor, " s"],
    inner: Dynamics,
    query_f0: Float[Tensor, " q"] | None = None,
    support_f0: Float[Tensor, " s"] | None = None,
) -> Float[Tensor, " q"]:
    """Output after the inner loop: G of Eqs. (13), (104), (110); with f_0 it is Eqs. (58), (88), (109).

    query_support, support_support: Θ (MAML) or 𝒦 (ANIL). Labels and f_0 are flattened sample-major.
    Raises ShapeError when only one of the two f_0 is given.
    """
    if (query_f0 is None) != (support_f0 is None):
        raise ShapeError(
            "give f_0 on both the query and the support samples, or on neither (centred network)"
        )
    matrix = adaptation_matrix(query_support, support_support, inner)
    if query_f0 is None or support_f0 is None:
        return matrix @ support_y.double()
    return query_f0.double() + matrix @ (support_y - support_f0).double()


def trained_output(
    phi_test_train: Float[Tensor, "p q"],
    phi_train: Float[Tensor, "q q"],
    test_start: Float[Tensor, " p"],
    train_start: Float[Tensor, " q"],
    labels: Float[Tensor, " q"],
    outer: Dynamics,
) -> Float[Tensor, " p"]:
    """Meta-output on any task after training: F_0 + Φ(·, 𝒳) T(Φ) (𝒴 − F_0(𝒳)), Eqs. (8), (12), (96), (111).

    test_start, train_start: F_0 on the task and on the training tasks (or G of Eq. (13)). The result is float64.
    """
    residual = labels.double() - train_start.double()
    return test_start.double() + phi_test_train.double() @ (time_operator(phi_train, outer) @ residual)


def trained_output_on_training_tasks(
    phi_train: Float[Tensor, "q q"],
    train_start: Float[Tensor, " q"],
    labels: Float[Tensor, " q"],
    outer: Dynamics,
) -> Float[Tensor, " q"]:
    """Meta-output on the training tasks: (I − e^{−η0 Φ t}) 𝒴 + e^{−η0 Φ t} F_0, Eqs. (95) and (101)."""
    labels = labels.double()
    return labels + residual_operator(phi_train, outer) @ (train_start.double() - labels)


@dataclass(frozen=True)
class KernelPrediction:
    """Outputs of the kernel regression on the training tasks and the test tasks, flattened like the labels."""

    train: Float[Tensor, " q"]
    test: Float[Tensor, " p"]


def kernel_regression(
    theta: Float[Tensor, "a a"],
    tasks: Sequence[Task],
    test_tasks: Sequence[Task],
    inner: Dynamics,
    outer: Dynamics,
    adaptation: Float[Tensor, "a a"] | None = None,
    f0: Float[Tensor, " a"] | None = None,
) -> KernelPrediction:
    """MAML as kernel regression, Theorem 2: Eqs. (12)–(13) from the NTK alone; ANIL with ``adaptation`` = 𝒦.

    theta: the NTK (analytic or empirical) over ``joint_inputs((*tasks, *test_tasks))``.
    f0: the untrained network's outputs on the same samples, flattened; None for a centred network.
    The labels of the test queries are not used.
    Raises ShapeError when the kernel, f0 and the tasks' labels do not fit together, and as
    :func:`mamltheory.linalg.time_operator`.
    """
    tasks = check_tasks(tasks)
    every = check_tasks((*tasks, *test_tasks))
    sizes = joint_sizes(theta, every)
    _check_outputs(theta, every, sizes, f0)
    rows = composition(theta if adaptation is None else adaptation, sizes, inner)
    phi = composite_kernel(rows, theta)
    start = _adapted_start(rows, every, sizes, f0)
    trained = sum(query for query, _ in sizes[: len(tasks)])
    labels, phi_train = query_labels(tasks), phi[:trained, :trained]
    return KernelPrediction(
        train=trained_output_on_training_tasks(phi_train, start[:trained], labels, outer),
        test=trained_output(
            phi[trained:, :trained], phi_train, start[trained:], start[:trained], labels, outer
        ),
    )


def _check_outputs(
    theta: Tensor, tasks: tuple[Task, ...], sizes: Sequence[tuple[int, int]], f0: Tensor | None
) -> None:
    """One row of the kernel for every label, and one f_0 for every row."""
    if sizes[0][1] != tasks[0].support_y.numel():
        raise ShapeError(
            f"the first task has {tasks[0].support_y.numel()} support labels and the kernel {sizes[0][1]} support "
            'rows: both need the same number of outputs (outputs="full")'
        )
    if f0 is not None and f0.shape != (len(theta),):
        raise ShapeError(
            f"f0 has shape {tuple(f0.shape)}, expected ({len(theta)},): flatten it with .reshape(-1)"
        )


def _adapted_start(
    rows: Tensor, tasks: tuple[Task, ...], sizes: Sequence[tuple[int, int]], f0: Tensor | None
) -> Tensor:
    """F_0 of every task by Eq. (109), from the rows A_i = [I, −C_i]: f_0(X) − C f_0(X') + C Y'."""
    start = (
        torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        if f0 is None
        else f0.double().clone()
    )
    for task, (_, support) in zip(tasks, joint_slices(sizes), strict=True):
        start[support] -= task.support_y.reshape(-1).double()
    return rows @ start
