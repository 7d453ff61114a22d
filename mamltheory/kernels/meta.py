"""The MetaNTK as a composite of the NTK: Eqs. (11), (92), (106) for MAML and (112) for ANIL.

Linear in the parameters, the inner loop maps the outputs to f(X) − C (f(X') − Y') with

    C_i = Θ(X_i, X'_i) T(Θ(X'_i, X'_i)),    so    ∇F_i = ∇f(X_i) − C_i ∇f(X'_i) = A_i ∇f(X_i ∪ X'_i),  A_i = [I, −C_i]

and therefore  Φ = A Θ Aᵀ  over the queries and supports of all tasks: the four terms of Eq. (106) at once, and
positive semi-definite by construction. For ANIL the inner loop moves the last layer only: 𝒦 in place of Θ inside
C_i, and nowhere else.
"""

from collections.abc import Collection, Sequence
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ShapeError, ValueRangeError
from mamltheory.guard import check_labels
from mamltheory.inner_loop import Algorithm
from mamltheory.kernels.analytic import analytic_last_layer_ntk, analytic_ntk
from mamltheory.kernels.empirical import checked_network, kernels_of
from mamltheory.kernels.layers.jacobian import Outputs
from mamltheory.kernels.layers.options import KernelOptions, Method
from mamltheory.linalg import Converged, Dynamics, symmetrised, time_operator
from mamltheory.modules import plain_numerics
from mamltheory.networks import FullyConnected, Model
from mamltheory.tasks import Parameters, Select, Task, check_array, check_tasks

Sizes = Sequence[tuple[int, int]]
"""Rows of (query, support) of every task in a joint kernel: (n·k, m·k), or (n, m) for one output."""


def joint_inputs(tasks: Sequence[Task]) -> Tensor:
    """X_1, X'_1, X_2, X'_2, …: queries and supports of all tasks, in the order of every joint kernel.

    Returns:
        The samples along the first axis. Errors are raised as by :func:`mamltheory.tasks.check_tasks`.

    Example:
        >>> import torch, mamltheory as mt
        >>> label = torch.zeros(1, 1)
        >>> task = mt.Task(torch.tensor([[1.0]]), label, torch.tensor([[2.0]]), label)
        >>> mt.joint_inputs([task, task]).flatten().tolist()
        [1.0, 2.0, 1.0, 2.0]
    """
    return torch.cat([part for task in check_tasks(tasks) for part in (task.query_x, task.support_x)])


def joint_sizes(kernel: Float[Tensor, "p p"], tasks: Sequence[Task]) -> tuple[tuple[int, int], ...]:
    """Rows of (query, support) of every task in a joint kernel over :func:`joint_inputs`.

    Returns:
        One pair for each task; the number of outputs is read off the kernel (1 for outputs="sum").

    Raises:
        ShapeError: the kernel has not the same number of rows for every sample.
    """
    samples = sum(len(task.query_x) + len(task.support_x) for task in tasks)
    k, rest = divmod(len(kernel), samples)
    if rest or k == 0:
        raise ShapeError(
            f"the kernel has {len(kernel)} rows and the tasks {samples} samples: not a whole number each"
        )
    return tuple((k * len(task.query_x), k * len(task.support_x)) for task in tasks)


def joint_slices(sizes: Sizes) -> list[tuple[slice, slice]]:
    """Where the query and the support rows of every task lie in the joint kernel."""
    slices, start = [], 0
    for query, support in sizes:
        slices.append((slice(start, start + query), slice(start + query, start + query + support)))
        start += query + support
    return slices


def adaptation_matrix(
    query_support: Float[Tensor, "q s"], support_support: Float[Tensor, "s s"], dynamics: Dynamics
) -> Float[Tensor, "q s"]:
    """C = Θ(X, X') T(Θ(X', X')): how the support residual reaches the query outputs, Eqs. (13) and (58); float64."""
    return query_support.double() @ time_operator(support_support, dynamics)


def composition(kernel: Float[Tensor, "p p"], sizes: Sizes, dynamics: Dynamics) -> Float[Tensor, "q p"]:
    """The block matrix A with A_i = [I, −C_i] on the diagonal; differentiable.

    Args:
        kernel: the kernel in which the inner loop moves, over queries and supports of all tasks.
        sizes: rows of (query, support) of every task in it.
        dynamics: the inner loop in kernel time.

    Returns:
        A, in float64.

    Raises:
        ShapeError: the sizes do not add up to the kernel's rows.
    """
    slices = joint_slices(sizes)
    if not slices or slices[-1][1].stop != len(kernel):
        raise ShapeError(f"the sizes {list(sizes)} do not add up to the kernel's {len(kernel)} rows")
    blocks = []
    for query, support in slices:
        adapted = -adaptation_matrix(kernel[query, support], kernel[support, support], dynamics)
        one = torch.eye(len(adapted), dtype=adapted.dtype, device=adapted.device)
        blocks.append(torch.cat([one, adapted], 1))
    return torch.block_diag(*blocks)


def composite_kernel(rows: Float[Tensor, "q p"], theta: Float[Tensor, "p p"]) -> Float[Tensor, "q q"]:
    """Φ = A Θ Aᵀ, exactly symmetric, from A = ``rows`` of :func:`composition`; float64 and differentiable."""
    theta = symmetrised(theta)
    phi = rows @ theta @ rows.T
    return (phi + phi.T) / 2


def meta_ntk_from_ntk(
    theta: Float[Tensor, "p p"],
    sizes: Sizes,
    dynamics: Dynamics,
    adaptation: Float[Tensor, "p p"] | None = None,
) -> Float[Tensor, "q q"]:
    """MetaNTK Φ = A Θ Aᵀ of all tasks jointly, Eqs. (11), (92), (106); (112) with ``adaptation`` = 𝒦.

    Autograd differentiates it by both kernels, also where eigenvalues coincide.

    Args:
        theta: the NTK over X_1, X'_1, X_2, X'_2, ….
        sizes: rows of (query, support) of every task in it.
        dynamics: the inner loop in kernel time: GradientDescent(λ0, τ), GradientFlow(λ0 τ) or Converged(ridge). The
            ridge acts inside T alone.
        adaptation: the kernel in which the inner loop moves, of the shape of ``theta``; None for ``theta``.

    Returns:
        Φ over the queries, in float64. SingularKernelError is raised for a singular support kernel at infinite time
        without ridge.

    Raises:
        ShapeError: the sizes or the two kernels do not fit together.

    Example:
        >>> import torch, mamltheory as mt
        >>> theta = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # one query, one support sample
        >>> mt.meta_ntk_from_ntk(theta, [(1, 1)], mt.Converged()).item()  # 2 - 1 · 1/2 · 1
        1.5
    """
    check_array("theta", theta, None, None)
    if adaptation is not None:
        check_array("adaptation", adaptation, *theta.shape)
    if not are_sizes(sizes):
        raise ShapeError(
            f"sizes is {sizes!r}: expected whole numbers (query rows, support rows) of every task, as joint_sizes "
            "returns them"
        )
    rows = composition(theta if adaptation is None else adaptation, sizes, dynamics)
    return composite_kernel(rows, theta)


@plain_numerics()
def meta_ntk(
    model: Model | nn.Module,
    tasks: Sequence[Task],
    algorithm: Algorithm = "maml",
    dynamics: Dynamics = Converged(ridge=1e-3),  # noqa: B008 - frozen
    *,
    params: Parameters | None = None,
    outputs: Outputs = "full",
    select: Select = None,
    chunk: int | None = None,
    memory: int | None = None,
    method: Method = "auto",
    dtype: torch.dtype | None = None,
    head: Collection[str] | None = None,
) -> Float[Tensor, "q q"]:
    """MetaNTK of a finite network built from its empirical NTK by Eq. (11), as Section 5 does.

    No second derivative is taken, and both kernels of ANIL come from one pass.

    Args:
        model: any network, as for :func:`mamltheory.kernels.empirical.empirical_ntk`.
        tasks: of their labels only the number of columns matters.
        algorithm: "maml", or "anil" whose inner loop moves the selected parameters of the last layer alone.
        dynamics: the inner loop in kernel time, as for :func:`meta_ntk_from_ntk`.
        params: values of the parameters; None for a module's own.
        outputs: "full" for Nnk rows, "sum" for the kernel of the summed outputs.
        select: names of parameters, or a predicate on names; None for all that require a gradient.
        chunk: most samples differentiated together; None for all.
        memory: bytes of temporary tensors; None for 2 GiB on a CPU, and on CUDA for what is free.
        method: how the NTK is computed.
        dtype: of the NTK and of the result, float64 for None. The steps in between are float64, and take the NTK at
            its own dtype's rounding.
        head: names of the last layer's parameters for "anil"; None finds the linear map whose output is the network's.

    Returns:
        Φ̂ over the queries of all tasks. Errors are raised as by :func:`mamltheory.kernels.empirical.empirical_ntk`.

    Example:
        >>> import torch, mamltheory as mt
        >>> label = torch.zeros(1, 1)
        >>> task = mt.Task(torch.tensor([[1.0]]), label, torch.tensor([[0.0]]), label)
        >>> mt.meta_ntk(torch.nn.Linear(1, 1), [task], dynamics=mt.Converged()).item()  # kernel x x' + 1: 2 - 1
        1.0
    """
    _check_algorithm(algorithm)
    x = joint_inputs(tasks)
    network = checked_network(
        model, params, [x], KernelOptions(outputs, select, chunk, memory, method, dtype)
    )
    selections = [network.names(select)]
    if algorithm == "anil":
        selections.append(network.head(x, head))
    theta, *last = kernels_of(network, x, None, selections)
    sizes = joint_sizes(theta, tasks)
    if outputs == "full":
        check_labels(tasks[0], sizes[0][1] // len(tasks[0].support_x))
    return meta_ntk_from_ntk(theta, sizes, dynamics, *last).to(theta.dtype)


def analytic_meta_ntk(
    net: FullyConnected,
    tasks: Sequence[Task],
    algorithm: Algorithm,
    dynamics: Dynamics,
    finite_width: bool = False,
) -> Float[Tensor, "q q"]:
    """MetaNTK in the infinite-width limit, Eqs. (10), (11) and (112), from the analytic NTK.

    Args:
        net: the network.
        tasks: their samples alone matter.
        algorithm: "maml", or "anil" whose inner loop moves the last layer alone.
        dynamics: the inner loop in kernel time, as for :func:`meta_ntk_from_ntk`.
        finite_width: add the terms of order 1/l, as in :func:`mamltheory.kernels.analytic.analytic_ntk`.

    Returns:
        Φ over the queries of all tasks, Nnk × Nnk, in float64.

    Example:
        >>> import torch, mamltheory as mt
        >>> net = mt.FullyConnected(input_dim=2, width=64, depth=2, activation="relu", sigma_w=1.0, sigma_b=0.0)
        >>> x, label = torch.tensor([[1.0, 1.0]]), torch.zeros(1, 1)
        >>> mt.analytic_meta_ntk(net, [mt.Task(x, label, x, label)], "maml", mt.GradientFlow(0.0)).item()
        0.5
    """
    _check_algorithm(algorithm)
    x = joint_inputs(tasks)
    theta = analytic_ntk(net, x, finite_width=finite_width)
    last = analytic_last_layer_ntk(net, x, finite_width=finite_width) if algorithm == "anil" else None
    return meta_ntk_from_ntk(theta, joint_sizes(theta, tasks), dynamics, last)


def are_sizes(sizes: object) -> bool:
    """Whether it is a sequence of pairs of whole numbers."""
    return isinstance(sizes, Sequence) and all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(rows, Integral) for rows in pair)
        for pair in sizes
    )


def _check_algorithm(algorithm: str) -> None:
    if not isinstance(algorithm, str) or algorithm not in ("maml", "anil"):
        raise ValueRangeError(f"algorithm is {algorithm!r}: expected 'maml' or 'anil'")
