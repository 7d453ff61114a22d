"""All operators of a supernet scored at once: the gradient of log C_N by the weights with which edges mix operations.

An edge with n live operations computes Σ_o w_o o(x) at w_o = w = 1/n. Taking o out and renormalising moves
w_o by −1/n and each of the others by 1/(n − 1) − 1/n = w/(n − 1). With g = ∂f/∂w, f = log C_N, to first order

    f(𝒩 without o) − f(𝒩) ≈ −w g_o + w/(n − 1) Σ_{o′≠o} g_o′
    Δ_o = f(𝒩) − f(𝒩 without o) ≈ w g_o − w/(n − 1) Σ_{o′≠o} g_o′

which is line 4 of Algorithm 1 in logarithms. For an operation that is alone on its edge, Δ_o = g_o: the edge is empty.

One forward pass, one backward pass, the layers' Gram matrices and one pass back through both give g for all
operators, for about the time of five kernels (48 channels, five cells); the exact differences need a kernel each.
Memory grows with the samples, by about 0.3 GB a task at that size, in addition to the graph of one chunk of them.
The kernel of a ReLU network jumps where a ReLU flips, and the search needs the slope of its mean over draws:
:mod:`mamltheory.nas.scoring.tape` replaces ReLU″ by a bump, and nothing else. The differences are those of one repeat;
they are averaged over repeats like exact ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.accelerator import float32_products, memory_budget, out_of_memory, uploaded
from mamltheory.errors import (
    ConfigurationError,
    SingularKernelError,
    UnsupportedModelError,
    ValueRangeError,
)
from mamltheory.kernels.meta import Sizes, joint_inputs, joint_sizes
from mamltheory.linalg import conditioning
from mamltheory.nas.genotype import Candidates, Operator
from mamltheory.nas.network import Network, supernet
from mamltheory.nas.scoring.candidate_batch import on_cpu
from mamltheory.nas.scoring.cell_layers import runs_layer_by_layer
from mamltheory.nas.scoring.condition_number import scored_kernel, scored_parameters
from mamltheory.nas.scoring.score import Failure, Job, Score, ScoreSettings, jobs_by_repeat
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.scoring.tape import SampleGradients, Tape, record_tape
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task, check_tasks

GRAPH = 2 << 30
"""Bytes of the graph of a chunk of samples on a CPU, by default."""
TENSORS = 350
"""Tensors of the size of the stem's output that the graph of a full supernet holds for each cell, about."""


@dataclass(frozen=True)
class OperatorGradients:
    """Log of the score of a supernet and its slopes.

    Args:
        value: log C_N.
        gradients: g_o = ∂ log C_N/∂w_o of each live operator, at equal weights.
    """

    value: float
    gradients: Mapping[Operator, float]


@float32_products()
def operator_gradients(
    network: Network,
    candidates: Candidates,
    tasks: Sequence[Task],
    settings: ScoreSettings,
    width: float = 1.0,
    chunk: int | None = None,
) -> OperatorGradients:
    """Log C_N, as :func:`mamltheory.nas.scoring.condition_number.condition_score`, and its gradient by mixing weights.

    Args:
        network: built with these candidates at least. Afterwards it runs them alone, and the mean of each edge.
        candidates: the live operators.
        tasks: images; their labels do not matter.
        settings: which kernel is scored, and how.
        width: of the bump that stands for ReLU″, in units of a ReLU's input (1 after a norm).
        chunk: most samples in a graph; None for as many as :func:`fitting_samples` finds. With several chunks both
            passes run twice, and the result is the same up to rounding.

    Returns:
        The value and the gradient. SingularKernelError is raised where the score is infinite.

    Raises:
        ConfigurationError: ``chunk`` is below 1.
    """
    check_known_operations(network)
    if chunk is not None and chunk < 1:
        raise ConfigurationError(f"chunk is {chunk}: expected at least 1 sample")
    like, tasks = network.classifier.weight, check_tasks(tasks)
    x = uploaded(joint_inputs(tasks).to(like.dtype), like.device)
    selections = scored_parameters(network, settings.weights)
    operators = candidates.operators()
    shares = [1 / len(candidates.on(o.cell, o.edge)) for o in operators]
    mixing = uploaded(torch.tensor(shares, dtype=like.dtype), like.device).requires_grad_()
    network.restrict(candidates).mix(dict(zip(operators, mixing.unbind(), strict=True)))
    parts = x.split(chunk or fitting_samples(network, operators, x))

    def tape(part: Tensor, differentiable: bool) -> Tape:
        return record_tape(network, part, selections[0], settings.outputs == "full", width, differentiable)

    gradients, graph = SampleGradients(), None
    try:
        for part in parts:
            graph = tape(part, len(parts) == 1)
            gradients.add(graph)
        theta, last = on_cpu(*gradients.grams(selections))
        value, slopes = log_score_slopes(theta, last, joint_sizes(theta, tasks), settings, like.dtype)
        gradients.turn(selections, uploaded(torch.stack(slopes), like.device).unbind())
        total = torch.zeros_like(mixing)
        for i, part in enumerate(parts):
            if graph is None or len(parts) > 1:
                graph = None  # frees its memory before the next graph is made
                graph = tape(part, True)
            total += graph.pulled_to(mixing, *gradients.cotangents(i, graph))
    finally:
        network.mix(None)
    return OperatorGradients(value, dict(zip(operators, total.tolist(), strict=True)))


def check_known_operations(network: Network) -> None:
    """Raise UnsupportedModelError for an operation of a user that is more than a sequence of known layers."""
    if not all(map(runs_layer_by_layer, network.own_operations())):
        raise UnsupportedModelError(
            "the gradient of a score knows operations that are nn.Sequential of convolutions, linear layers and norms, "
            "and modules without parameters: build the operations of the space so, or take "
            "estimator='leave-one-out' (--estimator leave-one-out), which knows any"
        )


def fitting_samples(
    network: Network, operators: Sequence[Operator], x: Tensor, memory: int | None = None
) -> int:
    """How many samples have a graph, of both passes, of about so many bytes.

    Args:
        network: the network.
        operators: its live operators.
        x: the samples.
        memory: the bytes; None for GRAPH on a CPU, and on CUDA for what is free.

    Returns:
        Their number, at least 1 and at most that of ``x``.
    """
    memory = memory_budget(network.classifier.weight.device, GRAPH) if memory is None else memory
    size, share = network.settings, len(operators) / len(Candidates().operators())
    place = size.channels * x[0, 0].numel() / size.stem_stride**2 * x.element_size()
    return max(1, min(len(x), int(memory / (TENSORS * share * size.cells * place))))


def first_order_differences(
    candidates: Candidates, gradients: Mapping[Operator, float]
) -> dict[Operator, float]:
    """Δ_o = w g_o − w/(n − 1) Σ_{o′≠o} g_o′ of every live operator; larger when taking it out helps more."""
    result = {}
    for operator in candidates.operators():
        others = [
            gradients[operator._replace(operation=name)]
            for name in candidates.on(operator.cell, operator.edge)
            if name != operator.operation
        ]
        mean = sum(others) / len(others) if others else 0.0
        result[operator] = (gradients[operator] - mean) / (1 + len(others))
    return result


@dataclass(frozen=True)
class GradientScorer:
    """Scores to first order: log C(𝒩 without o) = log C(𝒩) − Δ_o, from one gradient per repeat.

    Linear regions are not scored (R = 1). An infinite C of the supernet makes all scores infinite, so that their
    differences say nothing.

    Args:
        scorer: its network, tasks, settings and draws. The same repeat is the same network on the same tasks.
        width: as for :func:`operator_gradients`.
        chunk: as for :func:`operator_gradients`. Where a graph does not fit the device, half as many samples are
            taken, and the score of the supernet says how often.
    """

    scorer: CellScorer
    width: float = 1.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        self._sampler()

    def _sampler(self) -> Callable[[torch.Generator], Sequence[Task]]:
        """The sampler of tasks; raises ConfigurationError when there is none."""
        if self.scorer.tasks is None:
            raise ConfigurationError("the gradient needs tasks: give CellScorer a sampler of them")
        return self.scorer.tasks

    def __call__(self, candidates: Candidates, jobs: Sequence[Job]) -> dict[Job, Score]:
        """The scores of jobs; see :class:`mamltheory.nas.scoring.score.Scorer`. Every repeat takes one gradient."""
        found: dict[Job, Score] = {}
        for index, asked in jobs_by_repeat(jobs).items():
            scores = self.scores(candidates, *index)
            found |= {job: scores[job.removed] for job in asked}
        return found

    def scores(self, candidates: Candidates, round_index: int, repeat: int) -> dict[Operator | None, Score]:
        """The scores of one repeat: of the supernet (None), and of it without each of its operators."""
        scorer, index = self.scorer, (round_index, repeat)
        seed = derived_seed(scorer.seed, "score-weights", *index)
        network = supernet(candidates, scorer.network, seed)
        tasks = self._sampler()(generator(scorer.seed, "score-tasks", *index))
        try:
            network = network.to(scorer.device, non_blocking=True)
            found, halvings = self._gradients(network, candidates, tasks)
        except (SingularKernelError, ValueRangeError) as error:
            why: Failure = "singular" if isinstance(error, SingularKernelError) else "not finite"
            return dict.fromkeys((None, *candidates.operators()), Score(math.inf, 1.0, why))
        deltas = first_order_differences(candidates, found.gradients)
        logs = {o: found.value - delta for o, delta in deltas.items()}
        whole = replace(_score(found.value), halvings=halvings)
        return {None: whole, **{o: _score(value) for o, value in logs.items()}}

    def _gradients(
        self, network: Network, candidates: Candidates, tasks: Sequence[Task]
    ) -> tuple[OperatorGradients, int]:
        """The gradients, and how often the samples of a graph were halved because memory ran out."""
        x, settings, halvings = joint_inputs(tasks), self.scorer.settings, 0
        memory, operators = self.scorer.memory, candidates.operators()
        chunk = min(self.chunk or fitting_samples(network, operators, x, memory), len(x))
        while True:
            try:
                return operator_gradients(network, candidates, tasks, settings, self.width, chunk), halvings
            except RuntimeError as error:
                if chunk == 1 or not out_of_memory(error):
                    raise
                chunk, halvings = chunk // 2, halvings + 1
            torch.cuda.empty_cache()  # cuBLAS and cuDNN allocate outside of torch's cache


def _score(log: float) -> Score:
    """e^log, kept inside the positive finite numbers, in which first-order scores of any size are compared."""
    if math.isnan(log):
        return Score(math.inf, 1.0, "not finite")
    return Score(math.exp(min(max(log, -700.0), 700.0)), 1.0)


def log_score_slopes(
    theta: Float[Tensor, "p p"],
    head: Float[Tensor, "p p"],
    sizes: Sizes,
    settings: ScoreSettings,
    dtype: torch.dtype,
) -> tuple[float, list[Float[Tensor, "p p"]]]:
    """Log C_N, and its derivatives by the NTK and by its last-layer part.

    Args:
        theta: the NTK over the queries and supports of all tasks.
        head: its last-layer part.
        sizes: rows of (query, support) of every task in both.
        settings: which kernel is scored, and how.
        dtype: the precision of the gradients that the kernels were built from.

    Returns:
        The value, and two symmetric matrices in float64.

    Raises:
        SingularKernelError: C_N is infinite.
    """
    theta, head = theta.detach().requires_grad_(), head.detach().requires_grad_()
    with torch.enable_grad():
        kernel = scored_kernel(theta, head, sizes, settings)
        value = conditioning(kernel, settings.measure, dtype).log()
    if bool(value.isinf()):
        raise SingularKernelError(
            f"C_N is infinite and has no gradient: the score's kernel of {len(kernel)} rows is singular up to the "
            f"rounding of {dtype}; draw tasks without repeated images"
        )
    slopes = torch.autograd.grad(value, [theta, head], materialize_grads=True)
    return float(value.detach()), [(slope + slope.T) / 2 for slope in slopes]
