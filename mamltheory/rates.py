"""The largest learning rates of the outer and the inner loop, from the kernels that they act on.

One mode of eigenvalue σ moves as e_{t+1} = (1 + μ − ησ) e_t − μ e_{t−1}, with heavy-ball momentum μ. The larger root r
of r² − (1 + μ − ησ) r + μ = 0 is the factor of a step. It rises with |1 + μ − ησ|, is √μ where the roots are complex,
and reaches 1 at ησ = 2 (1 + μ). So η (σ_max + σ_min) = 2 (1 + μ), where both ends have the same |1 + μ − ησ|, is the
rate at which the slowest mode is fastest, and below it every mode contracts if σ_min > 0. μ = 0 is Theorem 3's rate.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.dynamics import check_momentum
from mamltheory.errors import SingularKernelError
from mamltheory.inner_loop import InnerLoop
from mamltheory.kernels.adaptation import adaptation_ntk
from mamltheory.linalg import spectrum
from mamltheory.networks import Model
from mamltheory.tasks import Parameters, Task, check_tasks


def largest_rate(kernel: Float[Tensor, "p p"], momentum: float = 0.0) -> float:
    """2 (1 + μ)/(σ_max + σ_min): η0 must stay below it in Theorem 3 (μ = 0), and at it the slowest mode is fastest.

    Without momentum ‖I − η0 Φ‖ is smallest there. Descent is stable a little further, below 2 (1 + μ)/σ_max.

    Args:
        kernel: Φ for η0 of the outer loop, or the NTK of the support samples for λ0 of the inner loop; it carries 1/l.
        momentum: μ of heavy-ball momentum, at least 0 and below 1.

    Returns:
        The rate times the width: η0 or λ0.

    Raises:
        SingularKernelError: the kernel has no positive eigenvalues, and bounds no rate.

    Example:
        >>> import torch, mamltheory as mt
        >>> mt.largest_rate(torch.diag(torch.tensor([1.0, 3.0])))
        0.5
        >>> mt.largest_rate(torch.diag(torch.tensor([1.0, 3.0])), momentum=0.5)
        0.75
    """
    check_momentum(momentum)
    eigenvalues = spectrum(kernel)
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    if high + low <= 0:
        raise SingularKernelError(
            f"the kernel's eigenvalues lie in [{low:.3g}, {high:.3g}]: expected a positive semi-definite kernel "
            "that is not zero"
        )
    return 2 * (1 + momentum) / (high + low)


def largest_inner_rate(
    model: Model | nn.Module, tasks: Sequence[Task], inner: InnerLoop, *, params: Parameters | None = None
) -> float:
    """The least over tasks of 2/(σ_max + σ_min) of the support kernel 𝒦(X'_i, X'_i): λ0 must stay below it.

    The inner loop of every task then contracts its support residual, I − λ0 𝒦, as far as the network is linear in its
    parameters. The MetaNTK depends on λ0: choose λ0 first, and then η0 by :func:`largest_rate`.

    Args:
        model: a ``torch.nn.Module`` (whose 1/l is left out), or a pure Model with ``params``.
        tasks: of their samples the support matters.
        inner: which parameters move and with which factors (MAML, ANIL, BOIL, Meta-SGD); its rate does not matter.
        params: values of the parameters; None for a module's own.

    Returns:
        The largest λ0. Errors are raised as by :func:`mamltheory.adaptation_ntk` and by :func:`largest_rate`.

    Example:
        >>> import torch, mamltheory as mt
        >>> x, label = torch.tensor([[2.0]]), torch.zeros(1, 1)
        >>> task = mt.Task(x, label, x, label)
        >>> mt.largest_inner_rate(torch.nn.Linear(1, 1), [task], mt.InnerLoop(lam0=0.1))  # 2/(5 + 5), 𝒦 = x x' + 1
        0.2
    """
    return min(
        largest_rate(adaptation_ntk(model, inner, task.support_x, params=params))
        for task in check_tasks(tasks)
    )
