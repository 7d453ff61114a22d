"""Per-sample gradients of a depthwise convolution, the layer that DARTS cells are made of; and a whole score.

Both are bound by memory and by many small calls, so that no number of FLOP is set against them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from experiments.benchmarks.cases import Case, Group, Method, Sizes
from mamltheory import generator, joint_inputs, meta_ntk_from_ntk
from mamltheory.kernels.layers.rules import layer_gradients
from mamltheory.linalg import conditioning
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, supernet
from mamltheory.nas.scoring.condition_number import score_kernel
from mamltheory.nas.scoring.score import RIDGE, ScoreSettings
from mamltheory.tasks import Task

OURS, FUNC, OPACUS, BACKWARDS = "ours", "torch.func", "opacus", "one backward a sample"


@dataclass(frozen=True)
class LayerProblem:
    """A layer, what enters it, and what flows back to what leaves it."""

    layer: nn.Conv2d
    entering: Tensor
    flow: Tensor


def build_layer(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> LayerProblem:
    """A depthwise 3 × 3 convolution with normal inputs and flows."""
    random, channels = generator(seed, "benchmark depthwise"), sizes["channels"]
    shape = (sizes["samples"], channels, sizes["image"], sizes["image"])
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    entering, flow = (torch.randn(*shape, generator=random, dtype=torch.float64) for _ in range(2))
    placed = {"device": device, "dtype": dtype}
    return LayerProblem(layer.to(**placed), entering.to(**placed), flow.to(**placed))


def ours_layer(problem: LayerProblem) -> Callable[[], Tensor]:
    """The package's rule for the layer."""
    flow = problem.flow[:, None]

    def call() -> Tensor:
        return layer_gradients(nn.Conv2d, problem.layer, problem.entering, flow, ["weight"])[
            "weight"
        ].flatten(1)

    return call


def opacus_layer(problem: LayerProblem) -> Callable[[], Tensor]:
    """The rule of opacus for the layer, from the same two tensors."""
    from opacus.grad_sample.conv import compute_conv_grad_sample

    layer = problem.layer

    def call() -> Tensor:
        return compute_conv_grad_sample(layer, [problem.entering], problem.flow)[layer.weight].flatten(1)

    return call


def torch_func_layer(problem: LayerProblem) -> Callable[[], Tensor]:
    """``vmap(grad)`` of the product of what leaves with what flows back."""
    layer = problem.layer

    def product(weight: Tensor, x: Tensor, flow: Tensor) -> Tensor:
        return (nn.functional.conv2d(x[None], weight, padding=1, groups=layer.groups)[0] * flow).sum()

    rows = torch.func.vmap(torch.func.grad(product), (None, 0, 0))
    return lambda: rows(layer.weight.detach(), problem.entering, problem.flow).flatten(1)


def backwards_layer(problem: LayerProblem) -> Callable[[], Tensor]:
    """A backward pass for each sample."""
    layer = problem.layer

    def call() -> Tensor:
        pairs = zip(problem.entering, problem.flow, strict=True)
        grads = [torch.autograd.grad(layer(x[None]), layer.weight, flow[None])[0] for x, flow in pairs]
        return torch.stack(grads).flatten(1)

    return call


@dataclass(frozen=True)
class ScoreProblem:
    """A supernet and the tasks of one score."""

    network: Network
    tasks: tuple[Task, ...]

    def score(self, theta: Tensor) -> Tensor:
        """The MetaNTK that an NTK of the summed outputs gives; its condition number is taken on the way."""
        sizes = [(len(task.query_x), len(task.support_x)) for task in self.tasks]
        theta = theta.double()
        kernel = meta_ntk_from_ntk((theta + theta.T) / 2, sizes, RIDGE)
        conditioning(kernel, "condition", self.network.classifier.weight.dtype)
        return kernel


def build_score(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> ScoreProblem:
    """The supernet of all operations, and tasks of random images (one support and one query a class)."""
    ways, side = sizes["ways"], sizes["image"]
    settings = NetworkSettings(channels=sizes["channels"], cells=sizes["cells"]).for_search(ways)
    random = generator(seed, "benchmark score")
    labels = torch.eye(ways, dtype=torch.float64)

    def images() -> Tensor:
        return torch.randn(ways, 3, side, side, generator=random, dtype=torch.float64)

    tasks = tuple(Task(images(), labels, images(), labels) for _ in range(sizes["tasks"]))
    placed = {"device": device, "dtype": dtype}
    return ScoreProblem(
        supernet(Candidates(), settings, seed).to(**placed), tuple(task.to(**placed) for task in tasks)
    )


def ours_score(problem: ScoreProblem) -> Callable[[], Tensor]:
    """The package's score of one supernet, as the search computes it."""
    settings = ScoreSettings(outputs="sum")

    def call() -> Tensor:
        kernel = score_kernel(problem.network, problem.tasks, settings)
        conditioning(kernel, settings.measure, problem.network.classifier.weight.dtype)
        return kernel

    return call


def _kernel_parameters(network: nn.Module) -> list[nn.Parameter]:
    kinds = nn.Conv2d | nn.Linear
    return [module.weight for module in network.modules() if isinstance(module, kinds)]


def backwards_score(problem: ScoreProblem) -> Callable[[], Tensor]:
    """A backward pass for each image, as TE-NAS takes its rows."""
    params = _kernel_parameters(problem.network)
    inputs = joint_inputs(problem.tasks)

    def call() -> Tensor:
        rows = []
        for x in inputs:
            grads = torch.autograd.grad(problem.network(x[None]).sum(), params, allow_unused=True)
            rows.append(_row(grads, params))
        jacobian = torch.stack(rows)
        return problem.score(jacobian @ jacobian.T)

    return call


def _row(grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> Tensor:
    pairs = zip(grads, params, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])


def opacus_score(problem: ScoreProblem) -> Callable[[], Tensor]:
    """Per-sample gradients of opacus on the sum of the outputs, as the paper's released code does."""
    from opacus import GradSampleModule

    module = GradSampleModule(problem.network, loss_reduction="sum", strict=False)
    params = _kernel_parameters(problem.network)
    inputs = joint_inputs(problem.tasks)

    def call() -> Tensor:
        module.zero_grad()
        module(inputs).sum().backward()
        rows = [
            value.grad_sample.flatten(1)
            for value in params
            if getattr(value, "grad_sample", None) is not None
        ]
        jacobian = torch.cat(rows, dim=1)
        module.zero_grad()
        return problem.score(jacobian @ jacobian.T)

    return call


DEPTHWISE = Group(
    "depthwise convolution",
    build_layer,
    (
        Method(OURS, ours_layer, ours=True),
        Method(FUNC, torch_func_layer),
        Method(OPACUS, opacus_layer, "opacus"),
        Method(BACKWARDS, backwards_layer),
    ),
    Method("one backward a sample, float64", backwards_layer),
    quick={"channels": 4, "image": 6, "samples": 3},
)
SCORE = Group(
    "supernet score",
    build_score,
    (
        Method(OURS, ours_score, ours=True),
        Method(OPACUS, opacus_score, "opacus"),
        Method(BACKWARDS, backwards_score),
    ),
    Method("one backward an image, float64", backwards_score),
    quick={"channels": 2, "image": 8, "ways": 2, "tasks": 1, "cells": 3},
)
CASES = (
    Case(
        "depthwise",
        "per-sample gradients, depthwise 3 × 3, 48 channels, 32 × 32, n = 25",
        DEPTHWISE,
        {"channels": 48, "image": 32, "samples": 25},
        (OURS, FUNC, OPACUS, BACKWARDS),
    ),
    Case(
        "supernet-score",
        "one score of the search: supernet, 16 channels, 32 × 32, 5-way 1-shot",
        SCORE,
        {"channels": 16, "image": 32, "ways": 5, "tasks": 3, "cells": 5},
        (OURS, OPACUS, BACKWARDS),
    ),
)
