"""All operators of a supernet scored at once: the gradient of log C_N by the weights with which edges mix operations.

An edge with n live operations computes Σ_o w_o o(x) at w_o = w = 1/n. Taking o out and renormalising moves
w_o by −1/n and each of the others by 1/(n − 1) − 1/n = w/(n − 1). With g = ∂f/∂w, f = log C_N, to first order

    f(𝒩 without o) − f(𝒩) ≈ −w g_o + w/(n − 1) Σ_{o′≠o} g_o′
    Δ_o = f(𝒩) − f(𝒩 without o) ≈ w g_o − w/(n − 1) Σ_{o′≠o} g_o′

which is line 4 of Algorithm 1 in logarithms. An operation that is alone on its edge leaves it empty: Δ_o = g_o.

One forward pass, one backward pass, the layers' Gram matrices and one pass back through both give g for all
operators, for about the time of five kernels (48 channels, five cells); the exact differences need a kernel each.
What is held grows with the samples, by about 0.3 GB a task at that size, beside the graph of one chunk of them. The
kernel of a ReLU network jumps where a ReLU flips, and what is wanted is the slope of its mean over draws:
:mod:`mamltheory.nas.scoring.tape` replaces ReLU″ by a bump, and nothing else. The differences are those of one repeat;
they are averaged over repeats like exact ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.errors import ConfigurationError, SingularKernelError, ValueRangeError
from mamltheory.kernels.meta import Sizes, joint_inputs, joint_sizes, joint_slices
from mamltheory.linalg import (
    Converged,
    Dynamics,
    GradientFlow,
    learnt_values,
    rounding_level,
    symmetrised,
    time_operator,
)
from mamltheory.nas.genotype import Candidates, Operator
from mamltheory.nas.network import Network, supernet
from mamltheory.nas.scoring.score import Score, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.nas.scoring.tape import SampleGradients, Tape, record_tape
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task, check_tasks

CLOSE = 1e-5
"""Relative distance of eigenvalues below which a divided difference is taken around their mean."""


GRAPH = 2 << 30
"""Bytes of the graph of a chunk of samples, by default."""
TENSORS = 350
"""Tensors of the size of the stem's output, a cell, that the graph of a full supernet holds, about."""


@dataclass(frozen=True)
class OperatorGradients:
    """log C_N of a supernet, and g_o = ∂ log C_N/∂w_o for each of its live operators, at equal weights."""

    value: float
    gradients: Mapping[Operator, float]


def operator_gradients(
    network: Network,
    candidates: Candidates,
    tasks: Sequence[Task],
    settings: ScoreSettings,
    width: float = 1.0,
    chunk: int | None = None,
) -> OperatorGradients:
    """Log of the score of :func:`mamltheory.nas.scoring.condition_number.condition_score`, and its gradient by all
    mixing weights.

    network: built with these candidates at least; it runs them alone, and the mean of each edge, afterwards.
    width: of the bump that stands for ReLU″, in units of what enters a ReLU (1 after a norm).
    chunk: most samples in a graph, by default as many as fit into about GRAPH bytes. With fewer than there are, both
        passes run twice; the result is the same up to rounding.
    Raises SingularKernelError where the score is infinite, and as ``condition_score``.
    """
    if chunk is not None and chunk < 1:
        raise ConfigurationError(f"chunk is {chunk}: expected at least 1 sample")
    like, tasks = network.classifier.weight, check_tasks(tasks)
    x = joint_inputs(tasks).to(device=like.device, dtype=like.dtype)
    params = {name: value.dim() for name, value in network.named_parameters()}
    chosen = {name for name, axes in params.items() if settings.weights == "all" or axes > 1}
    selections = [chosen, {name for name in chosen if name.startswith("classifier.")}]
    operators = candidates.operators()
    shares = [1 / len(candidates.on(o.cell, o.edge)) for o in operators]
    mixing = torch.tensor(shares, dtype=like.dtype, device=like.device, requires_grad=True)
    network.restrict(candidates).mix(dict(zip(operators, mixing.unbind(), strict=True)))
    parts = x.split(chunk or fitting_samples(network, operators, x))

    def tape(part: Tensor, differentiable: bool) -> Tape:
        return record_tape(network, part, chosen, settings.outputs == "full", width, differentiable)

    try:
        gradients, graph = SampleGradients(), None
        for part in parts:
            graph = tape(part, len(parts) == 1)
            gradients.add(graph)
        kernels = gradients.grams(selections)
        value, weights = log_score_slopes(*kernels, joint_sizes(kernels[0], tasks), settings, like.dtype)
        gradients.turn(selections, weights)
        total = torch.zeros_like(mixing)
        for i, part in enumerate(parts):
            if len(parts) > 1:
                graph = None  # before the next is made
                graph = tape(part, True)
            total += graph.pulled_to(mixing, *gradients.cotangents(i, graph))
    finally:
        network.mix(None)
    return OperatorGradients(value, dict(zip(operators, total.tolist(), strict=True)))


def fitting_samples(network: Network, operators: Sequence[Operator], x: Tensor) -> int:
    """Samples whose graph, of both passes, takes about GRAPH bytes."""
    size, share = network.settings, len(operators) / len(Candidates().operators())
    place = size.channels * x[0, 0].numel() / size.stem_stride**2 * x.element_size()
    return max(1, min(len(x), int(GRAPH / (TENSORS * share * size.cells * place))))


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
    """(candidates, round, repeat) -> the scores of the supernet (None) and, to first order, of it without each
    operator: log C(𝒩 without o) = log C(𝒩) − Δ_o.

    scorer: its network, tasks and settings, and its draws: the same repeat is the same network on the same tasks.
    Linear regions are not scored (R = 1). An infinite C of the supernet makes all of them infinite, so that their
    differences say nothing. width, chunk: as for :func:`operator_gradients`; where a graph does not fit the device,
    half as many samples at a time, and the score of the supernet says how often.
    """

    scorer: CellScorer
    width: float = 1.0
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.scorer.tasks is None:
            raise ConfigurationError("the gradient needs tasks: give CellScorer a sampler of them")

    def __call__(self, candidates: Candidates, round_index: int, repeat: int) -> dict[Operator | None, Score]:
        """All scores of one repeat."""
        scorer, index = self.scorer, (round_index, repeat)
        seed = derived_seed(scorer.seed, "score-weights", *index)
        network = supernet(candidates, scorer.network, seed)
        tasks = scorer.tasks(generator(scorer.seed, "score-tasks", *index))
        try:
            found, halvings = self._gradients(network.to(scorer.device), candidates, tasks)
        except (SingularKernelError, ValueRangeError) as error:
            why = "singular" if isinstance(error, SingularKernelError) else "not finite"
            return dict.fromkeys((None, *candidates.operators()), Score(math.inf, 1.0, why))
        deltas = first_order_differences(candidates, found.gradients)
        logs = {o: found.value - delta for o, delta in deltas.items()}
        whole = replace(_score(found.value), halvings=halvings)
        return {None: whole, **{o: _score(value) for o, value in logs.items()}}

    def _gradients(
        self, network: Network, candidates: Candidates, tasks: Sequence[Task]
    ) -> tuple[OperatorGradients, int]:
        """The gradients, and how often the samples of a graph had to be halved for want of memory."""
        x, settings, halvings = joint_inputs(tasks), self.scorer.settings, 0
        chunk = min(self.chunk or fitting_samples(network, candidates.operators(), x), len(x))
        while True:
            try:
                return operator_gradients(network, candidates, tasks, settings, self.width, chunk), halvings
            except torch.OutOfMemoryError:
                if chunk == 1:
                    raise
                chunk, halvings = chunk // 2, halvings + 1


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
    """Log C_N, and its derivatives by the NTK and by its last-layer part, symmetric; float64.

    dtype: precision of the gradients that the kernels were built from. Raises SingularKernelError for C_N = ∞.
    """
    theta, head = theta.detach().requires_grad_(), head.detach().requires_grad_()
    with torch.enable_grad():
        kernel = theta
        if settings.kernel != "ntk":
            inner = head if settings.kernel == "anil" else theta
            kernel = differentiable_meta_ntk(theta, inner, sizes, settings.dynamics)
        value = log_conditioning(kernel, settings.measure, dtype)
    slopes = torch.autograd.grad(value, [theta, head], materialize_grads=True)
    return float(value.detach()), [(slope + slope.T) / 2 for slope in slopes]


def log_conditioning(
    kernel: Float[Tensor, "p p"], measure: Literal["condition", "harmonic"], dtype: torch.dtype
) -> Float[Tensor, ""]:
    """Log of :func:`mamltheory.nas.scoring.condition_number.conditioning`, differentiable, also where eigenvalues
    coincide.

    Raises SingularKernelError where that is infinite.
    """
    symmetrised(kernel.detach())  # for what it refuses
    eigenvalues = torch.linalg.eigvalsh((kernel + kernel.T) / 2)
    numbers = eigenvalues.detach()
    if float(numbers[0]) <= rounding_level(numbers, dtype):
        raise SingularKernelError(
            f"the score's kernel has least eigenvalue {float(numbers[0]):.3g} (largest "
            f"{float(numbers[-1]):.3g}): its condition number is infinite and has no gradient; "
            "draw tasks without repeated images"
        )
    if measure == "harmonic":
        return torch.log(eigenvalues.mean() * (1 / eigenvalues).mean())
    return torch.log(eigenvalues[-1]) - torch.log(eigenvalues[0])


def differentiable_meta_ntk(
    theta: Float[Tensor, "p p"], adaptation: Float[Tensor, "p p"], sizes: Sizes, dynamics: Dynamics
) -> Float[Tensor, "q q"]:
    """Φ = A Θ Aᵀ of :func:`mamltheory.kernels.meta.meta_ntk_from_ntk`, with T differentiable everywhere; float64."""
    blocks = []
    for query, support in joint_slices(sizes):
        operator = _TimeOperator.apply(adaptation[support, support], dynamics)
        adapted = -adaptation[query, support].double() @ operator
        one = torch.eye(len(adapted), dtype=adapted.dtype, device=adapted.device)
        blocks.append(torch.cat([one, adapted], 1))
    rows = torch.block_diag(*blocks)
    symmetrised(theta.detach())  # for what it refuses
    phi = rows @ (theta + theta.T) @ rows.T / 2
    return (phi + phi.T) / 2


class _TimeOperator(torch.autograd.Function):
    """T(M) with dT = V (Γ ∘ Vᵀ dM V) Vᵀ, Γ_ij = (T(s_i) − T(s_j))/(s_i − s_j); for (M + rI)⁻¹, Γ_ij = −T_i T_j.

    The derivative of eigenvectors would divide by differences of eigenvalues, which vanish: the last-layer kernel
    of k outputs has each of its eigenvalues k times.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, dynamics: Dynamics) -> Tensor:
        result = time_operator(matrix, dynamics)
        ctx.save_for_backward(matrix, result)
        ctx.dynamics = dynamics
        return result

    @staticmethod
    def backward(ctx, back: Tensor) -> tuple[Tensor, None]:
        matrix, result = ctx.saved_tensors
        back = (back + back.T) / 2
        if isinstance(ctx.dynamics, Converged):
            return (-result @ back @ result).to(matrix.dtype), None
        s, vectors = torch.linalg.eigh(symmetrised(matrix))
        quotients = divided_differences(s, ctx.dynamics)
        return (vectors @ (quotients * (vectors.T @ back @ vectors)) @ vectors.T).to(matrix.dtype), None


def divided_differences(s: Float[Tensor, " p"], dynamics: Dynamics) -> Float[Tensor, "p p"]:
    """(T(s_i) − T(s_j))/(s_i − s_j) for a finite time; around the mean of two values that are close.

    T changes on the scale of s or of one over the time, whichever is larger: a step of CLOSE of it leaves both the
    truncation and the cancellation near 1e-10.
    """
    match dynamics:
        case GradientFlow(time):
            horizon = time
        case _:
            horizon = dynamics.rate * dynamics.steps
    if horizon == 0:
        return torch.zeros(len(s), len(s), dtype=s.dtype, device=s.device)
    mean, gap = (s[:, None] + s) / 2, s[:, None] - s
    step = torch.maximum(gap.abs() / 2, CLOSE * (mean.abs() + 1 / horizon))
    ends = [learnt_values((mean + sign * step).flatten(), dynamics) for sign in (1, -1)]
    return ((ends[0] - ends[1]) / (2 * step.flatten())).view_as(gap)
