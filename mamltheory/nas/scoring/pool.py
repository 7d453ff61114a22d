"""All scores of a network from one kernel: the NTK of a pool of images, of which every task's kernel is a block.

One pass over a pool of a few hundred images therefore serves many tasks, and a score becomes a mean over many tasks at
the price of one. No image occurs twice in a batch of tasks: a repeated image would make the NTK singular.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mamltheory.errors import ShapeError, ValueRangeError
from mamltheory.kernels.empirical import Outputs
from mamltheory.kernels.layers.layerwise import layerwise_kernels
from mamltheory.kernels.layers.options import KernelOptions
from mamltheory.kernels.meta import meta_ntk_from_ntk
from mamltheory.linalg import Dynamics, Measure, conditioning
from mamltheory.nas.network import Network
from mamltheory.nas.operations import Head
from mamltheory.nas.scoring.condition_number import network_kernels
from mamltheory.nas.scoring.score import RIDGE
from mamltheory.nas.weights import initialise_layer
from mamltheory.rng import generator

KERNELS = ("maml", "anil", "ntk")
MEASURES: tuple[Measure, Measure] = ("condition", "harmonic")
RELATIVE_RIDGE = 1e-3
"""Ridge of the kernel regression, relative to the mean diagonal entry of the support kernel."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Tasks with a joint MetaNTK.

    Attributes:
        query: numbers of the query images in the pool, task by task.
        support: numbers of the support images.

    Raises:
        ValueRangeError: when an image occurs twice.
    """

    query: Int[Tensor, "t q"]
    support: Int[Tensor, "t s"]

    def __post_init__(self) -> None:
        rows = self.rows
        if len(rows.unique()) != len(rows):
            raise ValueRangeError("an image occurs twice in a batch of tasks, which makes the NTK singular")

    @property
    def rows(self) -> Int[Tensor, " p"]:
        """Queries and supports of the first task, of the second, …: the order of every joint kernel."""
        return torch.cat([self.query, self.support], 1).flatten()


@dataclass(frozen=True, eq=False)
class PoolTasks:
    """The tasks of a pool.

    Attributes:
        batches: for the condition numbers.
        query: for the kernel regression, numbers of images as tasks × ways × images; those of a way are of one class.
        support: likewise.
    """

    batches: Sequence[Batch]
    query: Int[Tensor, "b w q"]
    support: Int[Tensor, "b w s"]


@dataclass(frozen=True)
class PoolSettings:
    """How kernels are read; see :class:`mamltheory.nas.scoring.score.ScoreSettings` for outputs and dynamics."""

    outputs: Outputs = "sum"
    dynamics: Dynamics = field(default=RIDGE)


def pooled_scores(
    network: Network, pool: Float[Tensor, "n c h w"], tasks: PoolTasks, settings: PoolSettings
) -> dict[str, float]:
    """All kernel scores of a network at initialisation, from one kernel of the pool.

    Args:
        network: an initialised network.
        pool: the images.
        tasks: whose kernels are blocks of the pool's.
        settings: how kernels are read.

    Returns:
        Scores by name, larger is better. "KERNEL MEASURE" for maml, anil, ntk and condition, harmonic: minus the mean
        logarithm over the batches, −∞ if one of them is singular. "regression loss" and "regression accuracy": of NTK
        regression on every task, the first term of Theorem 2 (the second only adds noise, of mean zero over the orders
        of labels).
    """
    like = network.classifier.weight
    theta, head = network_kernels(network, pool.to(like.device, like.dtype), settings.outputs)
    return _scores(theta.cpu(), head.cpu(), len(pool), tasks, settings, like.dtype)


class _NewHead(nn.Module):
    """The features of a network under a new linear classifier."""

    def __init__(self, network: Network, ways: int, seed: int) -> None:
        super().__init__()
        self.network, self.classifier = network, Head(network.classifier.in_features, ways)
        initialise_layer(self.classifier, "kaiming", generator(seed, "weights classifier"))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.classifier(self.network.features(x))


def trained_scores(
    network: Network,
    pool: Float[Tensor, "n c h w"],
    tasks: PoolTasks,
    settings: PoolSettings,
    seed: int,
) -> dict[str, float]:
    """The same scores of a network in training: of its features, with fixed norms, under a new classifier.

    In evaluation mode a batch norm is an affine map, so that every sample has its own kernel.

    Args:
        network: a derived network after some steps; it is left in its mode.
        pool: the images.
        tasks: whose kernels are blocks of the pool's.
        settings: how kernels are read.
        seed: seed of the classifier, which has one output per class of a task.

    Returns:
        Scores by name, as :func:`pooled_scores`.
    """
    like, mode = network.classifier.weight, network.training
    whole = _NewHead(network, tasks.query.shape[1], seed).to(like.device, like.dtype).eval()
    params = {name: value.detach() for name, value in whole.named_parameters()}
    chosen = {
        name for name in params if params[name].dim() > 1 and not name.startswith("network.classifier.")
    }
    selections = [chosen, {"classifier.weight"}]
    x = pool.to(like.device, like.dtype)
    try:
        options = KernelOptions(settings.outputs)
        theta, head = layerwise_kernels(whole, x, None, selections, params, options, trusted=True)
    finally:
        network.train(mode)
    return _scores(theta.cpu(), head.cpu(), len(pool), tasks, settings, like.dtype)


def _scores(
    theta: Tensor, head: Tensor, samples: int, tasks: PoolTasks, settings: PoolSettings, dtype: torch.dtype
) -> dict[str, float]:
    loss, accuracy = regression_scores(theta, samples, tasks.query, tasks.support)
    scores = conditioning_scores(theta, head, samples, tasks.batches, settings.dynamics, dtype)
    return {**scores, "regression loss": -loss, "regression accuracy": accuracy}


def block(
    kernel: Float[Tensor, "p p"], samples: int, left: Int[Tensor, "*b r"], right: Int[Tensor, "*b c"]
) -> Float[Tensor, "*b rk ck"]:
    """A block of the kernel of a pool.

    Args:
        kernel: with k rows per image.
        samples: number of images in the pool.
        left: the images of the rows.
        right: the images of the columns.

    Returns:
        The block, with k rows and columns per image.

    Raises:
        ShapeError: when the number of rows is not a multiple of the number of images.
    """
    outputs, rest = divmod(len(kernel), samples)
    if rest or outputs == 0:
        raise ShapeError(f"the kernel has {len(kernel)} rows for {samples} images: not a whole number each")
    rows, columns = (_output_rows(each.to(kernel.device), outputs) for each in (left, right))
    return kernel[rows[..., :, None], columns[..., None, :]]


def _output_rows(rows: Int[Tensor, "*b r"], outputs: int) -> Int[Tensor, "*b rk"]:
    return (rows[..., None] * outputs + torch.arange(outputs, device=rows.device)).flatten(-2)


def conditioning_scores(
    theta: Float[Tensor, "p p"],
    head: Float[Tensor, "p p"],
    samples: int,
    batches: Sequence[Batch],
    dynamics: Dynamics,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Minus the mean logarithm of the condition numbers, for MAML's and ANIL's MetaNTK and the NTK.

    Args:
        theta: the NTK of the pool.
        head: its last-layer part.
        samples: number of images in the pool.
        batches: the tasks.
        dynamics: of the inner loop.
        dtype: of the gradients that the kernels were built from.

    Returns:
        The scores by "KERNEL MEASURE".
    """
    totals = {f"{kernel} {measure}": 0.0 for kernel in KERNELS for measure in MEASURES}
    outputs = len(theta) // samples
    for batch in batches:
        ntk, last = (block(each, samples, batch.rows, batch.rows) for each in (theta, head))
        sizes = [(outputs * batch.query.shape[1], outputs * batch.support.shape[1])] * len(batch.query)
        kernels = {
            "maml": meta_ntk_from_ntk(ntk, sizes, dynamics),
            "anil": meta_ntk_from_ntk(ntk, sizes, dynamics, last),
            "ntk": ntk,
        }
        for name, kernel in kernels.items():
            for measure in MEASURES:
                totals[f"{name} {measure}"] -= math.log(conditioning(kernel, measure, dtype)) / len(batches)
    return totals


def regression_scores(
    theta: Float[Tensor, "p p"],
    samples: int,
    query: Int[Tensor, "b w q"],
    support: Int[Tensor, "b w s"],
    ridge: float = RELATIVE_RIDGE,
) -> tuple[float, float]:
    """Kernel regression Θ(X, X')(Θ(X', X') + rI)⁻¹ Y' on centred one-hot labels, over all tasks.

    Args:
        theta: the NTK of the pool.
        samples: number of images in the pool.
        query: tasks × ways × images.
        support: tasks × ways × images.
        ridge: r, relative to the mean diagonal entry of the task's Θ(X', X').

    Returns:
        (mean squared error, accuracy); the error of predicting 0 is (w − 1)/w².
    """
    ways = query.shape[1]
    asked, known = query.flatten(1), support.flatten(1)
    among, across = block(theta, samples, known, known), block(theta, samples, asked, known)
    diagonal = among.diagonal(dim1=-2, dim2=-1)
    lift = torch.diag_embed(torch.full_like(diagonal, ridge) * diagonal.mean(-1, keepdim=True))
    labels = (torch.eye(ways, dtype=among.dtype, device=among.device) - 1 / ways).repeat_interleave(
        support.shape[2], 0
    )
    # One output is one function for all classes' columns, k outputs are one column of k entries per image.
    columns = labels.reshape(among.shape[-1], -1).expand(len(among), -1, -1)
    outputs = (across @ torch.linalg.solve(among + lift, columns)).reshape(len(among), -1, ways)
    truth = torch.arange(ways, device=outputs.device).repeat_interleave(query.shape[2])
    target = torch.eye(ways, dtype=outputs.dtype, device=outputs.device)[truth] - 1 / ways
    return float(((outputs - target) ** 2).mean()), float((outputs.argmax(-1) == truth).double().mean())
