"""Closed forms: what a trained network outputs at any time, without training it.

Inner loop, Eqs. (13), (58), (88), (104), (109), (110):   G = f_0(X) + Θ(X, X') T(Θ(X', X')) (Y' − f_0(X'))
Outer loop, Eqs. (8), (12), (96), (102), (103), (111):    F_t = F_0 + Φ(·, 𝒳) T(Φ) (𝒴 − F_0(𝒳))
On the training tasks, Eqs. (95), (101):                  F_t = (I − ρ(Φ)) 𝒴 + ρ(Φ) F_0

T and ρ come from :mod:`mamltheory.linalg`, so that each form exists for gradient flow (as the paper prints it), for
discrete steps (exact for gradient descent) and for infinite time. Time is λ0 τ and η0 t: the paper's λ and η stand
for λ0 and η0 there, because the kernels carry 1/l.

f_0: Theorem 2 drops it by Assumption 5. It does not vanish with the width: either pass it, or omit it for the centred
network f_θ − f_{θ0}, where f_0 = 0 exactly.

Ensembles: F_t is affine in f_0, F_t = F̄_t + Γ f_0 over the joint samples, with

    Γ = A(·) − Φ(·, 𝒳) T(Φ) A(𝒳),   on the training tasks Γ = ρ(Φ) A(𝒳),   A_i = [I, −C_i].

In the limit f_0 is Gaussian with mean 0 and the NNGP kernel K as its covariance, and Θ is constant. Over
initialisations the trained outputs are then Gaussian: their mean is F̄_t, which is Eq. (12), their covariance Γ K Γᵀ.
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
from mamltheory.tasks import Task, check_array, check_tasks, query_labels


def adapted_output(
    query_support: Float[Tensor, "q s"],
    support_support: Float[Tensor, "s s"],
    support_y: Float[Tensor, " s"],
    inner: Dynamics,
    query_f0: Float[Tensor, " q"] | None = None,
    support_f0: Float[Tensor, " s"] | None = None,
) -> Float[Tensor, " q"]:
    """Output after the inner loop: G of Eqs. (13), (104), (110); with f_0 it is Eqs. (58), (88), (109).

    Args:
        query_support: Θ(X, X') for MAML, 𝒦(X, X') for ANIL.
        support_support: Θ(X', X') or 𝒦(X', X').
        support_y: Y', flattened sample-major.
        inner: how long the inner loop runs.
        query_f0: f_0(X), flattened; None for a centred network.
        support_f0: f_0(X'), likewise.

    Returns:
        The adapted outputs on the queries, in float64.

    Raises:
        ShapeError: only one of the two f_0 is given.

    Example:
        >>> import torch
        >>> from mamltheory import Converged, adapted_output
        >>> query_support, support_support = torch.tensor([[1.0, 0.5]]), 2 * torch.eye(2)
        >>> adapted_output(query_support, support_support, torch.tensor([4.0, -4.0]), Converged())
        tensor([1.], dtype=torch.float64)
    """
    if (query_f0 is None) != (support_f0 is None):
        raise ShapeError(
            "give f_0 on both the query and the support samples, or on neither (centred network)"
        )
    check_array("support_support", support_support, None, None)
    support = len(support_support)
    check_array("query_support", query_support, None, support)
    check_array("support_y", support_y, support)
    if query_f0 is not None:
        check_array("query_f0", query_f0, len(query_support))
        check_array("support_f0", support_f0, support)
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

    Args:
        phi_test_train: Φ between the task and the training tasks.
        phi_train: Φ of the training tasks.
        test_start: F_0 on the task, or G of Eq. (13).
        train_start: F_0 on the training tasks, or G.
        labels: 𝒴 of the training tasks.
        outer: how long the outer loop runs.

    Returns:
        The meta-output on the task, in float64.

    Example:
        >>> import torch
        >>> from mamltheory import Converged, trained_output
        >>> phi, zero = 2 * torch.eye(2), torch.zeros(2)
        >>> trained_output(torch.tensor([[1.0, 1.0]]), phi, zero[:1], zero, torch.tensor([1.0, 2.0]), Converged())
        tensor([1.5000], dtype=torch.float64)
    """
    check_array("phi_train", phi_train, None, None)
    trained = len(phi_train)
    check_array("phi_test_train", phi_test_train, None, trained)
    check_array("test_start", test_start, len(phi_test_train))
    check_array("train_start", train_start, trained)
    check_array("labels", labels, trained)
    residual = labels.double() - train_start.double()
    return test_start.double() + phi_test_train.double() @ (time_operator(phi_train, outer) @ residual)


def trained_output_on_training_tasks(
    phi_train: Float[Tensor, "q q"],
    train_start: Float[Tensor, " q"],
    labels: Float[Tensor, " q"],
    outer: Dynamics,
) -> Float[Tensor, " q"]:
    """Meta-output on the training tasks: (I − e^{−η0 Φ t}) 𝒴 + e^{−η0 Φ t} F_0, Eqs. (95) and (101).

    Args:
        phi_train: Φ of the training tasks.
        train_start: F_0 on them, or G of Eq. (13).
        labels: 𝒴.
        outer: how long the outer loop runs.

    Returns:
        The meta-output, in float64.

    Example:
        >>> import torch
        >>> from mamltheory import GradientDescent, trained_output_on_training_tasks
        >>> phi, start, labels = torch.eye(2), torch.zeros(2), torch.tensor([1.0, 2.0])
        >>> trained_output_on_training_tasks(phi, start, labels, GradientDescent(0.5, 1))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    check_array("phi_train", phi_train, None, None)
    check_array("train_start", train_start, len(phi_train))
    check_array("labels", labels, len(phi_train))
    labels = labels.double()
    return labels + residual_operator(phi_train, outer) @ (train_start.double() - labels)


@dataclass(frozen=True)
class KernelPrediction:
    """Outputs of the kernel regression, flattened like the labels; covariances over initialisations if asked for.

    Args:
        train: the outputs on the training tasks, their mean for an ensemble.
        test: those on the test tasks.
        train_covariance: the covariance of the outputs on the training tasks; None without ``nngp``.
        test_covariance: that on the test tasks.
    """

    train: Float[Tensor, " q"]
    test: Float[Tensor, " p"]
    train_covariance: Float[Tensor, "q q"] | None = None
    test_covariance: Float[Tensor, "p p"] | None = None


def kernel_regression(
    theta: Float[Tensor, "a a"],
    tasks: Sequence[Task],
    test_tasks: Sequence[Task],
    inner: Dynamics,
    outer: Dynamics,
    adaptation: Float[Tensor, "a a"] | None = None,
    f0: Float[Tensor, " a"] | None = None,
    nngp: Float[Tensor, "a a"] | None = None,
) -> KernelPrediction:
    """MAML as kernel regression, Theorem 2: Eqs. (12)–(13) from the NTK alone; ANIL with ``adaptation`` = 𝒦.

    With ``nngp`` it is the ensemble of networks that are trained from independent initialisations: their mean, which
    is Eq. (12), and their covariance Γ K Γᵀ.

    A ShapeError says which of the kernels, ``f0`` and the labels do not fit together; other errors are those of
    :func:`mamltheory.linalg.time_operator`.

    Args:
        theta: the NTK (analytic or empirical) over ``joint_inputs((*tasks, *test_tasks))``.
        tasks: the training tasks.
        test_tasks: the test tasks; the labels of their queries are not used.
        inner: how long the inner loop runs.
        outer: how long the outer loop runs.
        adaptation: 𝒦 over the same samples, for ANIL; None for MAML.
        f0: the untrained network's outputs on the same samples, flattened; None for a centred network. With ``nngp``
            the mean of these outputs over initialisations, None for 0.
        nngp: K over the same samples, the covariance of the untrained outputs over initialisations; None for a single
            network.

    Returns:
        The outputs on the training and test tasks; with ``nngp`` their means and covariances.

    Example:
        >>> import torch
        >>> from mamltheory import Converged, FullyConnected, GradientDescent, Task
        >>> from mamltheory import analytic_ntk, joint_inputs, kernel_regression, nngp
        >>> x, y = torch.eye(4), torch.tensor([[1.0], [-1.0]])
        >>> tasks, test_tasks = [Task(x[:2], y, x[2:], y)], [Task(x[2:], y, x[:2], y)]
        >>> net, samples = FullyConnected(4, width=8, depth=1), joint_inputs(tasks + test_tasks)
        >>> theta, inner = analytic_ntk(net, samples), GradientDescent(0.1, 1)
        >>> kernel_regression(theta, tasks, test_tasks, inner, Converged()).train.round()
        tensor([ 1., -1.], dtype=torch.float64)
        >>> ensemble = kernel_regression(theta, tasks, test_tasks, inner, Converged(), nngp=nngp(net, samples))
        >>> bool((ensemble.test_covariance.diagonal() > 0).all())  # networks differ on tasks that are new to them
        True
    """
    tasks = check_tasks(tasks)
    every = _checked_together(theta, tasks, test_tasks, {"adaptation": adaptation, "nngp": nngp}, f0)
    sizes = joint_sizes(theta, every)
    rows = composition(theta if adaptation is None else adaptation, sizes, inner)
    phi = composite_kernel(rows, theta)
    start = _adapted_start(rows, every, sizes, f0)
    trained = sum(query for query, _ in sizes[: len(tasks)])
    labels, phi_train = query_labels(tasks), phi[:trained, :trained]
    return KernelPrediction(
        trained_output_on_training_tasks(phi_train, start[:trained], labels, outer),
        trained_output(phi[trained:, :trained], phi_train, start[trained:], start[:trained], labels, outer),
        *(() if nngp is None else _covariances(rows, phi, trained, outer, nngp)),
    )


def _checked_together(
    theta: Tensor, tasks: tuple[Task, ...], test_tasks: Sequence[Task], others: dict[str, Tensor | None],
    f0: Tensor | None,
) -> tuple[Task, ...]:  # fmt: skip
    """All tasks, after a check that they, the NTK, the ``others`` of its size and ``f0`` fit together."""
    if not isinstance(test_tasks, Sequence) or test_tasks:
        test_tasks = check_tasks(test_tasks)
    every = check_tasks((*tasks, *test_tasks))
    check_array("theta", theta, None, None)
    for name, matrix in {"theta": theta, **others}.items():
        if matrix is not None:
            check_array(name, matrix, len(theta), len(theta))
    if f0 is not None:
        check_array("f0 (flattened by .reshape(-1))", f0, len(theta))
    _check_outputs(every, joint_sizes(theta, every))
    return every


def _covariances(
    rows: Tensor, phi: Tensor, trained: int, outer: Dynamics, nngp: Tensor
) -> tuple[Tensor, Tensor]:
    """Γ K Γᵀ on the ``trained`` rows of the training tasks and on the others; K = ``nngp``, A = ``rows``."""
    phi_train, seen = phi[:trained, :trained], rows[:trained]
    on_training = residual_operator(phi_train, outer) @ seen
    on_test = rows[trained:] - phi[trained:, :trained] @ (time_operator(phi_train, outer) @ seen)
    return composite_kernel(on_training, nngp), composite_kernel(on_test, nngp)


def _check_outputs(tasks: tuple[Task, ...], sizes: Sequence[tuple[int, int]]) -> None:
    """One row of the kernel for every label."""
    if sizes[0][1] != tasks[0].support_y.numel():
        raise ShapeError(
            f"the first task has {tasks[0].support_y.numel()} support labels and the kernel {sizes[0][1]} support "
            'rows: both need the same number of outputs (outputs="full")'
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
