"""Per-sample gradients of a depthwise convolution, one score of the search, and the scores of a batch of candidates.

The first two are bound by memory and by many small calls, so that no number of FLOP is set against them. The batch is
one repetition of a round: its tasks, weights and patches, and some of its candidates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mamltheory import generator, joint_inputs, meta_ntk_from_ntk
from mamltheory.kernels.layers.rules import layer_gradients
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import Network, NetworkSettings, supernet
from mamltheory.nas.scoring.condition_number import (
    candidate_conditions,
    condition_score,
    conditioning,
    score_kernel,
)
from mamltheory.nas.scoring.linear_regions import activation_patterns, region_counts, thin_network
from mamltheory.nas.scoring.score import RIDGE, ScoreSettings
from mamltheory.nas.sizes import multiply_accumulates
from mamltheory.tasks import Task

from .problems import Case, Group, Method, Result, Sizes

OURS, FUNC, OPACUS, BACKWARDS = "ours", "torch.func", "opacus", "one backward a sample"
SINGLE = "one by one"
SETTINGS = ScoreSettings(outputs="sum")


@dataclass(frozen=True)
class LayerProblem:
    """A layer, its input, and the cotangent of its output."""

    layer: nn.Conv2d
    inputs: Tensor
    cotangent: Tensor


def build_layer_problem(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> LayerProblem:
    """A depthwise 3 × 3 convolution of ``sizes`` in ``dtype`` on ``device``, with normal draws from ``seed``."""
    random, channels = generator(seed, "benchmark depthwise"), sizes["channels"]
    shape = (sizes["samples"], channels, sizes["image"], sizes["image"])
    layer = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
    inputs, cotangent = (torch.randn(*shape, generator=random, dtype=torch.float64) for _ in range(2))
    return LayerProblem(layer.to(device, dtype), inputs.to(device, dtype), cotangent.to(device, dtype))


def our_layer_gradients(problem: LayerProblem) -> Callable[[], Tensor]:
    """The package's rule for the layer."""
    cotangent = problem.cotangent[:, None]

    def call() -> Tensor:
        gradients = layer_gradients(nn.Conv2d, problem.layer, problem.inputs, cotangent, ["weight"])
        return gradients["weight"].flatten(1)

    return call


def layer_gradients_by_opacus(problem: LayerProblem) -> Callable[[], Tensor]:
    """The rule of opacus for the layer, from the same two tensors."""
    from opacus.grad_sample.conv import compute_conv_grad_sample

    layer = problem.layer

    def call() -> Tensor:
        return compute_conv_grad_sample(layer, [problem.inputs], problem.cotangent)[layer.weight].flatten(1)

    return call


def layer_gradients_by_torch_func(problem: LayerProblem) -> Callable[[], Tensor]:
    """``vmap(grad)`` of the product of output and cotangent."""
    layer = problem.layer

    def product(weight: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
        return (nn.functional.conv2d(x[None], weight, padding=1, groups=layer.groups)[0] * cotangent).sum()

    rows = torch.func.vmap(torch.func.grad(product), (None, 0, 0))
    return lambda: rows(layer.weight.detach(), problem.inputs, problem.cotangent).flatten(1)


def layer_gradients_by_backward_passes(problem: LayerProblem) -> Callable[[], Tensor]:
    """A backward pass for each sample."""
    layer = problem.layer

    def call() -> Tensor:
        pairs = zip(problem.inputs, problem.cotangent, strict=True)
        grads = [torch.autograd.grad(layer(x[None]), layer.weight, c[None])[0] for x, c in pairs]
        return torch.stack(grads).flatten(1)

    return call


@dataclass(frozen=True)
class ScoreProblem:
    """A supernet and the tasks of one score."""

    network: Network
    tasks: tuple[Task, ...]

    def score(self, theta: Tensor) -> Tensor:
        """The MetaNTK from an NTK of the summed outputs; its condition number is computed as well."""
        sizes = [(len(task.query_x), len(task.support_x)) for task in self.tasks]
        theta = theta.double()
        kernel = meta_ntk_from_ntk((theta + theta.T) / 2, sizes, RIDGE)
        conditioning(kernel, "condition", self.network.classifier.weight.dtype)
        return kernel


def build_score_problem(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> ScoreProblem:
    """The supernet and tasks of random images of ``sizes``, in ``dtype`` on ``device``, with draws from ``seed``."""
    ways, side = sizes["ways"], sizes["image"]
    settings = NetworkSettings(channels=sizes["channels"], cells=sizes["cells"]).for_search(ways)
    random = generator(seed, "benchmark score")
    labels = torch.eye(ways, dtype=torch.float64)

    def images() -> Tensor:
        return torch.randn(ways, 3, side, side, generator=random, dtype=torch.float64)

    tasks = tuple(Task(images(), labels, images(), labels) for _ in range(sizes["tasks"]))
    network = supernet(Candidates(), settings, seed).to(device, dtype)
    return ScoreProblem(network, tuple(task.to(device=device, dtype=dtype) for task in tasks))


def our_score(problem: ScoreProblem) -> Callable[[], Tensor]:
    """The package's score of one supernet, as the search computes it."""
    settings = ScoreSettings(outputs="sum")

    def call() -> Tensor:
        kernel = score_kernel(problem.network, problem.tasks, settings)
        conditioning(kernel, settings.measure, problem.network.classifier.weight.dtype)
        return kernel

    return call


def _kernel_parameters(network: nn.Module) -> list[Tensor]:
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [layer.weight for layer in layers]


def score_by_backward_passes(problem: ScoreProblem) -> Callable[[], Tensor]:
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


def score_by_opacus(problem: ScoreProblem) -> Callable[[], Tensor]:
    """Per-sample gradients of opacus on the sum of the outputs, as the paper's released code does."""
    from opacus import GradSampleModule

    module = GradSampleModule(problem.network, loss_reduction="sum", strict=False)
    params = _kernel_parameters(problem.network)
    inputs = joint_inputs(problem.tasks)

    def call() -> Tensor:
        module.zero_grad()
        module(inputs).sum().backward()
        gradients = [getattr(value, "grad_sample", None) for value in params]
        rows = [gradient.flatten(1) for gradient in gradients if gradient is not None]
        jacobian = torch.cat(rows, dim=1)
        module.zero_grad()
        return problem.score(jacobian @ jacobian.T)

    return call


DEPTHWISE = Group(
    "depthwise convolution",
    build_layer_problem,
    (
        Method(OURS, our_layer_gradients, ours=True),
        Method(FUNC, layer_gradients_by_torch_func),
        Method(OPACUS, layer_gradients_by_opacus, "opacus"),
        Method(BACKWARDS, layer_gradients_by_backward_passes),
    ),
    Method("one backward a sample, float64", layer_gradients_by_backward_passes),
    quick={"channels": 4, "image": 6, "samples": 3},
)
SCORE = Group(
    "supernet score",
    build_score_problem,
    (
        Method(OURS, our_score, ours=True),
        Method(OPACUS, score_by_opacus, "opacus"),
        Method(BACKWARDS, score_by_backward_passes),
    ),
    Method("one backward an image, float64", score_by_backward_passes),
    quick={"channels": 2, "image": 8, "ways": 2, "tasks": 1, "cells": 3},
)


@dataclass(frozen=True)
class ScoringProblem:
    """The network and tasks of one repeat, its patches, and the candidates to score, the supernet first."""

    repeat: ScoreProblem
    patches: Tensor
    candidates: tuple[Candidates, ...]
    seed: int


def _candidates(count: int) -> tuple[Candidates, ...]:
    """The supernet and candidates of a first round, spread over its 126 operators."""
    operators = Candidates().operators()
    places = [(2 * i + 1) * len(operators) // (2 * max(count - 1, 1)) for i in range(count - 1)]
    return (Candidates(), *(Candidates().without(operators[place]) for place in places))


def scoring_flop(sizes: Sizes) -> float:
    """FLOP of the matrix products of a score: Σ over candidates of 6 n M + n² P."""
    # n images with M multiply-accumulates each: one forward pass, one backward pass, the gradients of the P weights,
    # and half of the n² inner products of these. Work that candidates share and gradients of the images count too.
    size = NetworkSettings(channels=sizes["channels"], cells=sizes["cells"]).for_search(sizes["ways"])
    image = torch.zeros(1, size.input_channels, sizes["image"], sizes["image"])
    count, total = 2 * sizes["ways"] * sizes["tasks"], 0
    for candidates in _candidates(sizes["candidates"]):
        network = supernet(candidates, size, 0)
        weights = sum(value.numel() for value in network.parameters() if value.dim() > 1)
        total += 6 * count * multiply_accumulates(network, image) + count**2 * weights
    return float(total)


def build_scoring_problem(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> ScoringProblem:
    """Supernet, tasks and candidates of ``sizes`` in ``dtype`` on ``device``, and patches; draws are from ``seed``."""
    repeat, candidates = build_score_problem(sizes, dtype, device, seed), _candidates(sizes["candidates"])
    patches = torch.randn(sizes["patches"], 1, 3, 3, generator=generator(seed, "benchmark patches"))
    return ScoringProblem(repeat, patches.to(device), candidates, seed)


def our_scores(problem: ScoringProblem) -> Callable[[], Result]:
    """Conditions and regions of the batch, as the search computes them."""
    repeat = problem.repeat

    def call() -> Result:
        conditions = candidate_conditions(repeat.network, problem.candidates, repeat.tasks, SETTINGS)
        regions = region_counts(problem.candidates, problem.patches, problem.seed)
        return _scores([value for value, _ in conditions], regions)

    return call


def scores_one_by_one(problem: ScoringProblem) -> Callable[[], Result]:
    """One network after the other: its kernel, and the distinct activation patterns of the thin network."""
    repeat = problem.repeat

    def regions(candidates: Candidates) -> int:
        thin = thin_network(candidates, problem.seed).to(problem.patches.device)
        return len(torch.unique(activation_patterns(thin, problem.patches, thin.feature_map), dim=0))

    def call() -> Result:
        conditions = [
            condition_score(repeat.network.restrict(each), repeat.tasks, SETTINGS)
            for each in problem.candidates
        ]
        return _scores(conditions, [regions(each) for each in problem.candidates])

    return call


def _scores(conditions: list[float], regions: list[int]) -> Result:
    """One tensor per number, so that each difference is relative to that number."""
    return tuple(torch.tensor(value, dtype=torch.float64) for value in (*conditions, *regions))


SCORING = Group(
    "candidate scores",
    build_scoring_problem,
    (
        Method(OURS, our_scores, ours=True),
        Method(SINGLE, scores_one_by_one),
    ),
    Method("one by one, float64", scores_one_by_one),
    floor=scoring_flop,
    quick={
        "channels": 2, "image": 8, "ways": 2, "tasks": 1, "cells": 3, "candidates": 2, "patches": 50
    },
)  # fmt: skip
_SIZES = {"image": 32, "ways": 5, "tasks": 3, "patches": 3000}
_CHECK = {"channels": 16, "image": 16, "cells": 3, "patches": 300}


def _case(channels: int, cells: int, candidates: int, methods: tuple[str, ...]) -> Case:
    title = (
        f"scores of {candidates} candidate{'s' if candidates > 1 else ''}, {channels} channels, {cells} cells"
    )
    return Case(
        f"scoring-{channels}-{candidates}",
        title,
        SCORING,
        {"channels": channels, "cells": cells, "candidates": candidates, **_SIZES},
        methods,
        _CHECK,
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
    _case(16, 3, 1, (OURS, SINGLE)),
    _case(16, 3, 6, (OURS, SINGLE)),
    # Ours alone, for it takes long enough; that results agree is checked on a small network in any case.
    _case(48, 5, 1, (OURS,)),
    _case(48, 5, 6, (OURS,)),
)
