"""Kernels of other inner loops than that of MAML and ANIL: what stands inside A, and first-order gradients.

An inner loop that moves the parameters S with the factors Λ of its rate moves the outputs by

    𝒦 = (1/l) ∇_S f Λ ∇_S fᵀ,      so that  C_i = 𝒦(X_i, X'_i) T(𝒦(X'_i, X'_i))  and  Φ = A Θ Aᵀ,  A_i = [I, −C_i]

BOIL, CAVIA, the last k layers and ANIL choose S, Meta-SGD chooses Λ. Implicit MAML minimises ℓ/l + r‖θ' − θ‖²/2, whose
T is (𝒦 + rI)⁻¹: ``Converged(ridge=r)``. First-order MAML follows J_FO = ∇f_{θ'}(X) in place of J = ∇F, and its residual
J J_FOᵀ/l, which in kernels is A Θ(·, 𝒳): a matrix that is neither symmetric nor, in general, positive.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ShapeError
from mamltheory.guard import as_model, check_independent, checked_samples, with_head
from mamltheory.inner_loop import InnerLoop, adapted_names, algorithm_of
from mamltheory.kernels.layers.jacobian import gram, jacobian
from mamltheory.kernels.meta import Sizes, are_sizes, composition, joint_slices
from mamltheory.linalg import Dynamics
from mamltheory.modules import plain_numerics
from mamltheory.networks import Model
from mamltheory.tasks import Parameters, check_array


@plain_numerics()
def adaptation_ntk(
    model: Model | nn.Module,
    inner: InnerLoop,
    x1: Tensor,
    x2: Tensor | None = None,
    *,
    params: Parameters | None = None,
    chunk: int | None = None,
) -> Float[Tensor, "p q"]:
    """𝒦 = (1/l) ∇_S f(x1) Λ ∇_S f(x2)ᵀ, the kernel in which an inner loop moves the outputs.

    It is what ``adaptation=`` of :func:`mamltheory.kernels.meta.meta_ntk_from_ntk` and of
    :func:`mamltheory.predictors.kernel_regression` expects, with ``inner.dynamics``. It holds n·k × D numbers. Errors
    are those of :func:`mamltheory.kernels.empirical.empirical_ntk` and of the inner loop.

    Args:
        model: a ``torch.nn.Module`` (then 1/l is left out), or a pure Model with ``params``.
        inner: the inner loop; S is ``algorithm`` and ``select``, Λ is ``factors``.
        x1: samples of the rows.
        x2: samples of the columns; None for those of the rows.
        params: values of the parameters; None for a module's own.
        chunk: most samples differentiated together; None for all.

    Returns:
        The kernel in float64, sample-major and class-minor.

    Example:
        >>> import torch, mamltheory as mt
        >>> network = torch.nn.Linear(2, 1)  # f(x) = w · x + b
        >>> inner = mt.InnerLoop(0.1, select=["weight"], factors={"weight": torch.tensor([[1.0, 3.0]])})
        >>> mt.adaptation_ntk(network, inner, torch.tensor([[1.0, 0.0], [2.0, 3.0]])).tolist()
        [[1.0, 2.0], [2.0, 31.0]]
    """
    algorithm = algorithm_of(inner)
    pure, params = as_model(model, params)
    for x in [x1] if x2 is None else [x1, x2]:
        checked_samples(pure, params, x)
        check_independent(pure, params, x, chunk)
    if algorithm == "anil":
        pure = with_head(pure, params, x1)
    names = adapted_names(pure, params, inner)
    rows = jacobian(pure, params, x1, select=names, chunk=chunk)
    columns = rows if x2 is None else jacobian(pure, params, x2, select=names, chunk=chunk)
    return gram(inner.scaled(rows), columns, torch.float64) / pure.scale


def first_order_meta_ntk(
    theta: Float[Tensor, "p p"],
    sizes: Sizes,
    dynamics: Dynamics,
    adaptation: Float[Tensor, "p p"] | None = None,
) -> Float[Tensor, "q q"]:
    """J J_FOᵀ/l = A Θ(·, 𝒳): what multiplies the residual in a step of first-order MAML, e ← (I − η0 J J_FOᵀ/l) e.

    It is not symmetric between tasks, and may have eigenvalues with a negative real part: then first-order MAML moves
    away from zero loss at every rate. With one task and one converged inner loop it is the MetaNTK itself.

    Args:
        theta: the NTK over X_1, X'_1, X_2, X'_2, ….
        sizes: rows of (query, support) of every task in it.
        dynamics: the inner loop in kernel time.
        adaptation: the kernel in which the inner loop moves; None for ``theta``.

    Returns:
        The matrix over the queries, in float64.

    Raises:
        ShapeError: the sizes or the two kernels do not fit together.

    Example:
        >>> import torch, mamltheory as mt
        >>> theta = torch.tensor([[2.0, 1.0], [1.0, 2.0]])  # one query, one support sample
        >>> mt.first_order_meta_ntk(theta, [(1, 1)], mt.Converged()).item()  # 2 - 1 · 1/2 · 1
        1.5
    """
    check_array("theta", theta, None, None)
    if adaptation is not None:
        check_array("adaptation", adaptation, *theta.shape)
    if not are_sizes(sizes):
        raise ShapeError(f"sizes is {sizes!r}: expected (query rows, support rows) of every task")
    rows = composition(theta if adaptation is None else adaptation, sizes, dynamics)
    queries = torch.cat([torch.arange(query.start, query.stop) for query, _ in joint_slices(sizes)])
    return rows @ theta.double()[:, queries.to(theta.device)]
