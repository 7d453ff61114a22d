"""Scores of a network at initialisation: condition number C_N of its MetaNTK, Eq. (14), and R_N, Eq. (15).

The MetaNTK is built from the empirical NTK by Eq. (11), from first derivatives alone. Gradients are float32,
the algebra on kernels is float64. What is drawn for a score, and when, is up to :mod:`mamltheory.nas.scorer`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.errors import ConfigurationError, ShapeError, SingularKernelError, UnsupportedModelError
from mamltheory.kernels.empirical import Outputs
from mamltheory.kernels.layerwise import layerwise_kernels
from mamltheory.kernels.meta import joint_inputs, joint_sizes, meta_ntk_from_ntk
from mamltheory.linalg import Converged, Dynamics, rounding_level, symmetrised
from mamltheory.nas.batched import candidate_kernels
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network
from mamltheory.types import Task, check_tasks

Weights = Literal["weights", "all"]
"""Which parameters a kernel differentiates by: convolutions and head matrix, or norms and bias as well."""

RIDGE = Converged(ridge=1e-3)


@dataclass(frozen=True)
class ScoreSettings:
    """Which kernel is built and what is read off it.

    kernel: "maml" (Eq. 11), "anil" (Eq. 112: the last layer as the inner loop's kernel), or "ntk" (no inner
        loop: the score of TE-NAS, on queries and supports together).
    outputs: "full" for the paper's kn × kn blocks, "sum" for the kernel of the summed outputs, which the
        paper's released code uses and which is about four times cheaper.
    weights: "weights" for convolutions and head matrix, as released (the paper does not say), or "all", with
        the scales and shifts of the norms and the bias of the head.
    measure: "condition" for σ_max/σ_min of Eq. (14), or "harmonic" for tr Φ · tr Φ⁻¹ / n², which averages
        over the spectrum instead of taking its ends: it ranks alike and is less noisy.
    dynamics: the inner loop in kernel time; the default is λτ = ∞ with the ridge 1e-3 of the support inverse.
    """

    kernel: Literal["maml", "anil", "ntk"] = "maml"
    outputs: Outputs = "full"
    weights: Weights = "weights"
    measure: Literal["condition", "harmonic"] = "condition"
    dynamics: Dynamics = RIDGE

    def __post_init__(self) -> None:
        known = {
            "kernel": ("maml", "anil", "ntk"),
            "outputs": ("full", "sum"),
            "weights": ("weights", "all"),
            "measure": ("condition", "harmonic"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}: expected one of {values}")


Failure = Literal["not finite", "no gradient", "singular"]
"""Why a network has no condition number: overflow on the way, an output that no weight moves, a singular kernel."""


@dataclass(frozen=True)
class Score:
    """C_N (lower is better, +inf for a network that cannot be scored) and R_N (higher is better) of one network.

    failure: why C_N is +inf, where it was found out; equality of scores does not look at it.
    halvings: how often the batch of this score, of which it is the first, had to be halved for want of memory.
    """

    condition: float
    regions: float
    failure: Failure | None = field(default=None, compare=False)
    halvings: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if math.isnan(self.condition) or not math.isfinite(self.regions):
            raise ConfigurationError(
                f"got {self}: a score must be a number (C may be +inf, R must be finite); NaN cannot be "
                "ranked"
            )


def failures(scores: Iterable[Score]) -> dict[str, int]:
    """How many of the scores are +inf, by reason ("unknown" where none was recorded)."""
    return dict(Counter(s.failure or "unknown" for s in scores if math.isinf(s.condition)))


def halvings(scores: Iterable[Score]) -> int:
    """How often a batch of candidates did not fit the memory and was halved, while these were scored."""
    return sum(score.halvings for score in scores)


def network_kernels(
    network: Network, x: Float[Tensor, "n c h w"], outputs: Outputs = "full", weights: Weights = "weights"
) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p p"]]:
    """(Θ̂, 𝒦̂): the empirical NTK of a network of cells and its last-layer part; float64.

    outputs: "full" for n·k rows, "sum" for the n rows of the sum of the outputs.
    weights: see ``Weights``. Raises UnsupportedModelError for batch statistics, whether they are used or stored.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            raise UnsupportedModelError(
                f"module {name!r} uses batch statistics, with which no kernel of single samples exists: "
                "build the network with NetworkSettings(norm='group'), as supernet() does"
            )
    params = {name: value.detach() for name, value in network.named_parameters()}
    chosen = {name for name, value in params.items() if weights == "all" or value.dim() > 1}
    head = {name for name in chosen if name.startswith("classifier.")}
    theta, last = layerwise_kernels(network, x, None, [chosen, head], params, outputs, trusted=True)
    return theta, last


def score_kernel(network: Network, tasks: Sequence[Task], settings: ScoreSettings) -> Float[Tensor, "p p"]:
    """The kernel whose condition number is C_N: the MetaNTK Φ̂ of all tasks jointly, or the NTK; float64.

    tasks: images n × 3 × H × W; their labels are not used. The network must not use batch statistics.
    Raises ShapeError when the network's head does not fit the tasks, UnsupportedModelError for BatchNorm.
    """
    tasks = _checked(network, tasks)
    theta, head = network_kernels(network, _images(network, tasks), settings.outputs, settings.weights)
    return _composed(theta, head, tasks, settings)


def score_kernels(
    network: Network, candidates: Sequence[Candidates], tasks: Sequence[Task], settings: ScoreSettings
) -> Iterator[Float[Tensor, "p p"]]:
    """:func:`score_kernel` of every candidate in turn, in batches: the same up to rounding.

    network: one with all their operations.  Errors as for :func:`score_kernel`.
    """
    tasks = _checked(network, tasks)
    x = _images(network, tasks)
    kernels = candidate_kernels(network, candidates, x, settings.outputs, settings.weights)
    for theta, head in kernels:
        yield _composed(theta, head, tasks, settings)


def _checked(network: Network, tasks: Sequence[Task]) -> tuple[Task, ...]:
    tasks = check_tasks(tasks)
    ways = tasks[0].query_y.shape[1]
    if network.settings.classes != ways:
        raise ShapeError(
            f"the network has {network.settings.classes} outputs and the tasks {ways} ways: "
            "build it with NetworkSettings(classes=ways)"
        )
    return tasks


def _images(network: Network, tasks: Sequence[Task]) -> Tensor:
    like = network.classifier.weight
    return joint_inputs(tasks).to(device=like.device, dtype=like.dtype)


def _composed(theta: Tensor, head: Tensor, tasks: Sequence[Task], settings: ScoreSettings) -> Tensor:
    """The kernel that is scored, from the NTK and its last-layer part."""
    if settings.kernel == "ntk":
        return theta
    adaptation = head if settings.kernel == "anil" else None
    return meta_ntk_from_ntk(theta, joint_sizes(theta, tasks), settings.dynamics, adaptation)


def conditioning(
    kernel: Float[Tensor, "p p"], measure: Literal["condition", "harmonic"], dtype: torch.dtype
) -> float:
    """σ_max/σ_min, or tr Φ · tr Φ⁻¹ / n²; +inf for a kernel that is singular up to the rounding of ``dtype``.

    dtype: precision of the gradients that the kernel was built from. A kernel that is not finite is +inf, too.
    """
    return _conditioning(kernel, measure, dtype)[0]


def _conditioning(
    kernel: Tensor, measure: Literal["condition", "harmonic"], dtype: torch.dtype
) -> tuple[float, Failure | None]:
    if not bool(torch.isfinite(kernel).all()):
        return math.inf, "not finite"
    eigenvalues = torch.linalg.eigvalsh(symmetrised(kernel))
    if float(eigenvalues[0]) <= rounding_level(eigenvalues, dtype):
        return math.inf, "singular" if bool(eigenvalues.any()) else "no gradient"
    if measure == "harmonic":
        value = float(eigenvalues.mean() * (1 / eigenvalues).mean())
    else:
        value = float(eigenvalues[-1] / eigenvalues[0])
    return (value, None) if math.isfinite(value) else (math.inf, "not finite")


def candidate_conditions(
    network: Network,
    candidates: Sequence[Candidates],
    tasks: Sequence[Task],
    settings: ScoreSettings,
    memory: int | None = None,
    halved: Callable[[], None] | None = None,
) -> list[tuple[float, Failure | None]]:
    """C_N of every candidate on the same tasks and weights, and why it is +inf where it is.

    network: one with all their operations.  memory, halved: see :func:`mamltheory.nas.batched.candidate_kernels`.
    Values agree with :func:`condition_score` one by one up to rounding. Errors as for :func:`score_kernel`.
    """
    tasks = _checked(network, tasks)
    kernels = candidate_kernels(
        network,
        candidates,
        _images(network, tasks),
        settings.outputs,
        settings.weights,
        memory,
        halved,
    )
    return [
        _measured(theta, head, tasks, settings, network.classifier.weight.dtype) for theta, head in kernels
    ]


def own_conditions(
    network: Network,
    candidates: Sequence[Candidates],
    tasks: Sequence[Sequence[Task]],
    heads: Sequence[nn.Linear],
    settings: ScoreSettings,
    memory: int | None = None,
    halved: Callable[[], None] | None = None,
) -> list[tuple[float, Failure | None]]:
    """C_N of every candidate on tasks of its own and with a head of its own, and why it is +inf where it is.

    tasks: of every candidate as many images as of the others, of the same size, or ShapeError.  Otherwise as
    :func:`candidate_conditions`.
    """
    tasks = [_checked(network, each) for each in tasks]
    images = [_images(network, each) for each in tasks]
    if len(shapes := {tuple(each.shape): None for each in images}) > 1:
        raise ShapeError(
            f"the candidates' images have shapes {', '.join(map(str, shapes))}: expected as many of one size for "
            "every candidate; draw tasks of equal numbers and sizes"
        )
    kernels = candidate_kernels(
        network,
        candidates,
        torch.stack(images),
        settings.outputs,
        settings.weights,
        memory,
        halved,
        heads,
    )
    dtype = network.classifier.weight.dtype
    return [_measured(*pair, each, settings, dtype) for pair, each in zip(kernels, tasks, strict=True)]


def _measured(
    theta: Tensor, head: Tensor, tasks: Sequence[Task], settings: ScoreSettings, dtype: torch.dtype
) -> tuple[float, Failure | None]:
    if not bool(torch.isfinite(theta).all()):
        return math.inf, "not finite"
    if not bool(theta.any()):
        return math.inf, "no gradient"
    try:
        kernel = _composed(theta, head, tasks, settings)
    except SingularKernelError:
        return math.inf, "singular"
    return _conditioning(kernel, settings.measure, dtype)


def condition_score(network: Network, tasks: Sequence[Task], settings: ScoreSettings) -> float:
    """C_N, Eq. (14), of a network on a batch of tasks; +inf for a network that cannot be scored, never NaN."""
    tasks = _checked(network, tasks)
    kernels = network_kernels(network, _images(network, tasks), settings.outputs, settings.weights)
    return _measured(*kernels, tasks, settings, network.classifier.weight.dtype)[0]
