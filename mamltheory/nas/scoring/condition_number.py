"""The condition number C_N of a network's MetaNTK at initialisation, Eq. (14), for one network or for many.

The MetaNTK is built from the empirical NTK by Eq. (11), from first derivatives alone. Gradients are float32,
the algebra on kernels is float64. :mod:`mamltheory.nas.scoring.scorers` draws weights and tasks.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mamltheory.accelerator import uploaded
from mamltheory.errors import ShapeError, SingularKernelError, UnsupportedModelError
from mamltheory.kernels.empirical import Outputs
from mamltheory.kernels.layers.layerwise import layerwise_kernels
from mamltheory.kernels.layers.options import KernelOptions
from mamltheory.kernels.meta import Sizes, joint_inputs, joint_sizes, meta_ntk_from_ntk
from mamltheory.linalg import conditioning
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network
from mamltheory.nas.scoring.candidate_batch import candidate_kernels, on_cpu
from mamltheory.nas.scoring.cell_layers import runs_layer_by_layer
from mamltheory.nas.scoring.score import Failure, ScoreSettings, Weights
from mamltheory.tasks import Task, check_tasks


def network_kernels(
    network: Network, x: Float[Tensor, "n c h w"], outputs: Outputs = "full", weights: Weights = "weights"
) -> tuple[Float[Tensor, "p p"], Float[Tensor, "p p"]]:
    """(Θ̂, 𝒦̂): the empirical NTK of a network of cells and its last-layer part.

    Args:
        network: without batch statistics.
        x: images.
        outputs: "full" for n·k rows, "sum" for the n rows of the sum of the outputs.
        weights: which parameters the gradients are taken by.

    Returns:
        Both kernels, in float64.

    Raises:
        UnsupportedModelError: batch statistics, whether they are used or stored.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            raise UnsupportedModelError(
                f"module {name!r} uses batch statistics, with which no kernel of single samples exists: "
                "build the network with NetworkSettings(norm='group'), as supernet() does"
            )
    params = {name: value.detach() for name, value in network.named_parameters()}
    selections = scored_parameters(network, weights)
    trusted = all(map(runs_layer_by_layer, network.own_operations()))
    theta, head = layerwise_kernels(network, x, None, selections, params, KernelOptions(outputs), trusted)
    return theta, head


def scored_parameters(network: Network, weights: Weights) -> list[set[str]]:
    """Names of the ``weights`` of a network by which Θ̂ differentiates, and of those by which 𝒦̂ does."""
    chosen = {name for name, value in network.named_parameters() if weights == "all" or value.dim() > 1}
    return [chosen, {name for name in chosen if name.startswith("classifier.")}]


def score_kernel(network: Network, tasks: Sequence[Task], settings: ScoreSettings) -> Float[Tensor, "p p"]:
    """The kernel whose condition number is C_N: the MetaNTK Φ̂ of all tasks jointly, or the NTK.

    Args:
        network: without batch statistics.
        tasks: images n × 3 × H × W; their labels do not matter.
        settings: which kernel is scored.

    Returns:
        The kernel in float64 on the CPU. ShapeError is raised where the network's head does not fit the tasks, and
        UnsupportedModelError for BatchNorm.
    """
    tasks = _checked(network, tasks)
    theta, head = on_cpu(
        *network_kernels(network, _images(network, tasks), settings.outputs, settings.weights)
    )
    return scored_kernel(theta, head, joint_sizes(theta, tasks), settings)


def score_kernels(
    network: Network, candidates: Sequence[Candidates], tasks: Sequence[Task], settings: ScoreSettings
) -> Iterator[Float[Tensor, "p p"]]:
    """:func:`score_kernel` of every candidate in turn, in batches: the same up to rounding.

    Args:
        network: one with all operations of the candidates.
        candidates: the networks that are scored.
        tasks: as for :func:`score_kernel`.
        settings: which kernel is scored.

    Yields:
        One kernel for each candidate. Errors are raised as by :func:`score_kernel`.
    """
    tasks = _checked(network, tasks)
    x = _images(network, tasks)
    for theta, head in _kernels(network, candidates, x, settings, None, None):
        yield scored_kernel(theta, head, joint_sizes(theta, tasks), settings)


def _kernels(
    network: Network,
    candidates: Sequence[Candidates],
    x: Float[Tensor, "*own n c h w"],
    settings: ScoreSettings,
    memory: int | None,
    halved: Callable[[], None] | None,
    heads: Sequence[nn.Linear] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(Θ̂, 𝒦̂) of every candidate: in batches, or one after the other where a batch does not know an operation."""
    if all(map(runs_layer_by_layer, network.own_operations())):
        outputs, weights = settings.outputs, settings.weights
        yield from candidate_kernels(network, candidates, x, outputs, weights, memory, halved, heads)
        return
    usual = network.classifier
    try:
        for place, each in enumerate(candidates):
            if heads:
                network.add_module("classifier", heads[place].to(x.device))
            images = x[place] if x.dim() == 5 else x
            yield on_cpu(*network_kernels(network.restrict(each), images, settings.outputs, settings.weights))
    finally:
        network.restrict(network.candidates).classifier = usual


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
    return _placed(network, joint_inputs(tasks))


def _placed(network: Network, images: Tensor) -> Tensor:
    """The images where the network is, and in its dtype."""
    like = network.classifier.weight
    return uploaded(images.to(like.dtype), like.device)


def scored_kernel(
    theta: Float[Tensor, "p p"], head: Float[Tensor, "p p"], sizes: Sizes, settings: ScoreSettings
) -> Float[Tensor, "q q"]:
    """The kernel whose condition number is C_N: the MetaNTK Φ̂ of all tasks jointly, or the NTK; differentiable.

    Args:
        theta: the NTK over the queries and supports of all tasks.
        head: its last-layer part, in which ANIL's inner loop moves.
        sizes: rows of (query, support) of every task in both.
        settings: which kernel is scored.

    Returns:
        Φ̂ over the queries, or ``theta`` itself for the score of the NTK.
    """
    if settings.kernel == "ntk":
        return theta
    return meta_ntk_from_ntk(theta, sizes, settings.dynamics, head if settings.kernel == "anil" else None)


def candidate_conditions(
    network: Network,
    candidates: Sequence[Candidates],
    tasks: Sequence[Task],
    settings: ScoreSettings,
    memory: int | None = None,
    halved: Callable[[], None] | None = None,
) -> list[tuple[float, Failure | None]]:
    """C_N of every candidate on the same tasks and weights: :func:`condition_score` up to rounding.

    Args:
        network: one with all operations of the candidates.
        candidates: the networks that are scored.
        tasks: as for :func:`score_kernel`.
        settings: which kernel is scored, and how.
        memory: bytes that a batch of candidates may hold; None as for
            :func:`mamltheory.nas.scoring.candidate_batch.candidate_kernels`.
        halved: called whenever a batch does not fit and half as many candidates are taken.

    Returns:
        C_N of each candidate, and why it is +inf where it is. Errors are raised as by :func:`score_kernel`.
    """
    tasks = _checked(network, tasks)
    kernels = _kernels(network, candidates, _images(network, tasks), settings, memory, halved)
    dtype = network.classifier.weight.dtype
    return [_measured(*pair, tasks, settings, dtype) for pair in kernels]


def own_conditions(
    network: Network,
    candidates: Sequence[Candidates],
    tasks: Sequence[Sequence[Task]],
    heads: Sequence[nn.Linear],
    settings: ScoreSettings,
    memory: int | None = None,
    halved: Callable[[], None] | None = None,
) -> list[tuple[float, Failure | None]]:
    """C_N of every candidate, each on its own tasks and with its own head.

    ``tasks`` and ``heads`` hold the tasks and the last layer of each candidate; all candidates have equal numbers and
    sizes of images. The arguments network, candidates, settings, memory and halved are those of
    :func:`candidate_conditions`.

    Returns:
        C_N of each candidate, and why it is +inf where it is. Other errors are raised as by :func:`score_kernel`.

    Raises:
        ShapeError: the numbers or sizes of images differ.
    """
    checked = [_checked(network, each) for each in tasks]
    images = [joint_inputs(each) for each in checked]
    if len(shapes := {tuple(each.shape): None for each in images}) > 1:
        raise ShapeError(
            f"the candidates' images have shapes {', '.join(map(str, shapes))}: expected as many of one size for "
            "every candidate; draw tasks of equal numbers and sizes"
        )
    x = _placed(network, torch.stack(images))
    kernels = _kernels(network, candidates, x, settings, memory, halved, heads)
    dtype = network.classifier.weight.dtype
    return [_measured(*pair, each, settings, dtype) for pair, each in zip(kernels, checked, strict=True)]


def _measured(
    theta: Tensor, head: Tensor, tasks: Sequence[Task], settings: ScoreSettings, dtype: torch.dtype
) -> tuple[float, Failure | None]:
    if not bool(torch.isfinite(theta).all()):
        return math.inf, "not finite"
    if not bool(theta.any()):
        return math.inf, "no gradient"
    try:
        kernel = scored_kernel(theta, head, joint_sizes(theta, tasks), settings)
    except SingularKernelError:
        return math.inf, "singular"
    if not bool(torch.isfinite(kernel).all()):
        return math.inf, "not finite"
    value = float(conditioning(kernel, settings.measure, dtype))
    if math.isfinite(value):
        return value, None
    return math.inf, "singular" if bool(kernel.any()) else "no gradient"


def condition_score(network: Network, tasks: Sequence[Task], settings: ScoreSettings) -> float:
    """C_N, Eq. (14), of a network on a batch of tasks; +inf for a network that cannot be scored, never NaN."""
    tasks = _checked(network, tasks)
    kernels = network_kernels(network, _images(network, tasks), settings.outputs, settings.weights)
    return _measured(*on_cpu(*kernels), tasks, settings, network.classifier.weight.dtype)[0]
