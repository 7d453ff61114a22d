"""The outer gradient of MAML through factored fast weights, gathered as factor pairs and applied in one product.

Every use of a task's weight W_i in :mod:`mamltheory.factored.fast_weights` is a bilinear form u W_i vᵀ: in a forward
pass with (u, v) = (h̄, z), in a backward pass with (u, v) = (g, z̄'), where a bar is the adjoint ∂𝓛/∂. From
W_i = W − λ c Σ Gᵀ A each use contributes

    to the shared weight         ∂𝓛/∂W += c uᵀ v
    to the earlier steps' rows   Ḡ −= λ (c² v Aᵀ + c_b²)ᵀ u,    Ā −= λ c² (u Gᵀ)ᵀ v    (c_b² in forward passes alone)

The pairs (u, v) of all tasks and uses are stacked to U, V; ∂𝓛/∂W = c Uᵀ V is one product, with which a step of
descent can be fused. The Hessian term of Eq. (3) is complete: it is the derivative through A and G.

Cost: 3(2τ + 1) products of N·m × l × l for every hidden-hidden layer (n = m), forward pass included, and
O(τ² N m² l). Memory: O(τ L N m l), and for a fused step one block of rows of the weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.factored.fast_weights import (
    AffineLayer,
    FactorPath,
    ForwardPass,
    TaskStack,
    WeightChange,
    activation_overlap,
    adapted_pass,
    backward,
    factor_path,
    forward,
)
from mamltheory.inner_loop import InnerLoop
from mamltheory.networks import FullyConnected
from mamltheory.products import matmul
from mamltheory.tasks import Parameters

BLOCK = 2**21
"""Entries of a weight that a fused step changes in one product."""


@dataclass(frozen=True, eq=False)
class FactoredGradient:
    """∇𝓛 with the gradients of the weights as c Uᵀ V, of N(2τm + n) rows for N tasks, (τm + n) for the head.

    Args:
        pairs: (U, V, c) by the name of the weight; U: rows × fan_out, V: rows × fan_in.
        biases: the gradients of the biases by name.
    """

    pairs: dict[str, tuple[Tensor, Tensor, float]]
    biases: Parameters

    def dense(self) -> Parameters:
        """∇𝓛 by name, the gradient of every weight multiplied out."""
        weights = {name: _times(matmul(u.T, v), c) for name, (u, v, c) in self.pairs.items()}
        return weights | self.biases

    def step_(self, params: Parameters, rate: float) -> float:
        """θ ← θ − rate · ∇𝓛, *in place*, and ‖rate · ∇𝓛‖; no buffer of the weights' size is ever made."""
        square = 0.0
        for name, (u, v, c) in self.pairs.items():
            rows = max(1, BLOCK // v.shape[1])
            for part, weight in zip(u.T.split(rows), params[name].split(rows), strict=True):
                change = matmul(part, v)
                square += (rate * c) ** 2 * _square(change)
                weight.sub_(change, alpha=rate * c)
        for name, value in self.biases.items():
            square += rate**2 * _square(value)
            params[name].sub_(value, alpha=rate)
        return square**0.5


def _square(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1 else x.mul_(factor)


class _LayerUses:
    """The uses of one layer in the order of the reverse pass, and what each contributes to the earlier steps' rows.

    u (N × R × fan_out) and v (N × R × fan_in) are filled row by row. ``activation_overlaps`` are
    −λ (c² v Aᵀ + c_b²), ``cotangent_overlaps`` −λ c² u Gᵀ, both N × R × r; a use at θ_s fills the columns of the steps
    before s alone.
    """

    def __init__(self, layer: AffineLayer, change: WeightChange | None, tasks: int, rows: int) -> None:
        past = change.cotangents.shape[1] if change else 0
        self.u, self.v, self.activation_overlaps, self.cotangent_overlaps = (
            layer.weight.new_empty(tasks, rows, size) for size in (*layer.weight.shape, past, past)
        )
        self.bias, self.rows = torch.zeros_like(layer.bias), 0


class _ReversePass:
    """The factor pairs gathered so far, layer by layer; the adjoints Ḡ_s and Ā_s follow from those of later steps."""

    def __init__(self, path: FactorPath, query: ForwardPass, second_order: bool) -> None:
        self.path, self.second_order, (tasks, self.queries, _) = path, second_order, query.output.shape
        self.m = path.steps[0].output.shape[1] if path.steps else 0
        self.uses = [
            _LayerUses(layer, change, tasks, self._rows_after(p, -1) if second_order else self.queries)
            for p, (layer, change) in enumerate(zip(path.layers, path.fast[-1], strict=True))
        ]

    def _rows_after(self, p: int, s: int) -> int:
        """The number of rows of layer p's uses at steps after s: the queries, and m or 2m for every step."""
        if p < self.path.first:
            return self.queries + self.m
        each = self.m if p == self.path.first else 2 * self.m
        return self.queries + each * (len(self.path.steps) - 1 - s)

    def use(self, p: int, u: Tensor, v: Tensor, activation_overlap: Tensor | None = None,
            cotangent_overlap: Tensor | None = None, affine: bool = True) -> None:  # fmt: skip
        """Adds one use (u, v) of layer p, with its overlaps with the earlier A and G; ``affine``: with the bias."""
        uses, layer, rate = self.uses[p], self.path.layers[p], self.path.rate
        rows = slice(uses.rows, uses.rows + u.shape[1])
        uses.rows = rows.stop
        uses.u[:, rows], uses.v[:, rows] = u, v
        if affine:
            uses.bias.add_(u.sum((0, 1)), alpha=layer.c_b)
        if self.second_order and activation_overlap is not None:
            columns = slice(0, activation_overlap.shape[2])
            torch.mul(activation_overlap, -rate, out=uses.activation_overlaps[:, rows, columns])
        if self.second_order and cotangent_overlap is not None:
            columns = slice(0, cotangent_overlap.shape[2])
            torch.mul(cotangent_overlap, -rate * layer.c**2, out=uses.cotangent_overlaps[:, rows, columns])

    def cotangent_overlap(self, p: int, u: Tensor, s: int) -> Tensor | None:
        """The overlap u Gᵀ; None where no earlier activations depend on θ: in the first layer they are the samples."""
        change = self.path.fast[s][p]
        return None if change is None or p == 0 else u @ change.cotangents.mT

    def backward(self, p: int, u: Tensor, s: int, overlap: Tensor | None) -> Tensor:
        """The adjoint c u W_i of the input of layer p at θ_s; ``overlap`` is u Gᵀ."""
        return backward(self.path.layers[p], u, self.path.fast[s][p], self.path.rate, overlap)

    def cotangent_adjoint(self, p: int, s: int, onto: Tensor | None = None) -> Tensor:
        """Adds Ḡ_s of layer p to ``onto``, in place; Ḡ_s alone for None."""
        rows, uses = slice(0, self._rows_after(p, s)), self.uses[p]
        overlaps, u = uses.activation_overlaps[:, rows, self._columns(p, s)].mT, uses.u[:, rows]
        return torch.bmm(overlaps, u) if onto is None else onto.baddbmm_(overlaps, u)

    def add_activation_adjoint(self, p: int, s: int, onto: Tensor) -> Tensor:
        """Adds Ā_s of layer p to ``onto``, in place."""
        rows, uses = slice(0, self._rows_after(p, s)), self.uses[p]
        return onto.baddbmm_(uses.cotangent_overlaps[:, rows, self._columns(p, s)].mT, uses.v[:, rows])

    def _columns(self, p: int, s: int) -> slice:
        return slice(0, self.m) if p == self.path.first else slice(s * self.m, (s + 1) * self.m)


def _reverse_query(reverse: _ReversePass, query: ForwardPass, residual: Tensor) -> None:
    """From ∂𝓛/∂F down the adapted network."""
    path, u = reverse.path, residual
    for p in range(len(path.layers) - 1, -1, -1):
        overlap = reverse.cotangent_overlap(p, u, -1)
        reverse.use(p, u, query.activations[p], query.overlaps[p], overlap)
        if p > 0:
            u = reverse.backward(p, u, -1, overlap).mul_(query.slopes[p - 1])


def _reverse_backward(reverse: _ReversePass, s: int) -> dict[int, Tensor]:
    """Through the backward pass of step s; returns its contributions to h̄_p of the step's forward pass, by layer."""
    path, seen, g = reverse.path, reverse.path.steps[s], reverse.path.cotangents[s]
    onto_h: dict[int, Tensor] = {}
    onto_g = reverse.cotangent_adjoint(path.first, s)
    for p in range(path.first + 1, len(path.layers)):
        curvature, layer, change = seen.curvatures[p - 1], path.layers[p], path.fast[s][p]
        if curvature is not None:
            onto_h[p - 1] = (onto_g * g[p - 1]).mul_(curvature)
        onto_z = onto_g.mul_(seen.slopes[p - 1])
        overlap = None if change is None else activation_overlap(layer, onto_z, change, bias=False)
        reverse.use(p, g[p], onto_z, overlap, path.overlaps[s].get(p), affine=False)
        onto_g = reverse.cotangent_adjoint(p, s, forward(layer, onto_z, change, path.rate, False, overlap))
    onto_h[len(path.layers) - 1] = onto_g
    return onto_h


def _reverse_forward(reverse: _ReversePass, s: int, onto_h: dict[int, Tensor]) -> Tensor:
    """Through the forward pass of step s; returns h̄ of the first layer that adapts."""
    path, seen, last = reverse.path, reverse.path.steps[s], len(reverse.path.layers) - 1
    u = onto_h[last]
    for p in range(last, path.first - 1, -1):
        overlap = reverse.cotangent_overlap(p, u, s)
        reverse.use(p, u, seen.activations[p], seen.overlaps[p], overlap)
        if p > path.first:
            onto_z = reverse.add_activation_adjoint(p, s, reverse.backward(p, u, s, overlap))
            u = onto_z.mul_(seen.slopes[p - 1])
            if p - 1 in onto_h:
                u.add_(onto_h[p - 1])
    return u


def _reverse_below(reverse: _ReversePass, onto_z: Tensor) -> None:
    """Through the layers that do not adapt, on the support samples (ANIL)."""
    seen = reverse.path.steps[0]
    for p in range(reverse.path.first - 1, -1, -1):
        u = onto_z * seen.slopes[p]
        reverse.use(p, u, seen.activations[p])
        onto_z = reverse.backward(p, u, 0, None) if p else onto_z


def _reversed(path: FactorPath, query: ForwardPass, residual: Tensor, first_order: bool) -> _ReversePass:
    """The whole reverse pass from ∂𝓛/∂F = ``residual`` (N × n × k), tasks stacked."""
    reverse, first = _ReversePass(path, query, second_order=not first_order), path.first
    _reverse_query(reverse, query, residual)
    if first_order or not path.steps:
        return reverse
    onto_features = residual.new_zeros(())
    for s in range(len(path.steps) - 1, -1, -1):
        u = _reverse_forward(reverse, s, _reverse_backward(reverse, s))
        if first:
            overlap = reverse.cotangent_overlap(first, u, s)
            onto_features = onto_features + reverse.backward(first, u, s, overlap)
    if first:
        _reverse_below(reverse, reverse.add_activation_adjoint(first, 0, onto_features))
    return reverse


@torch.no_grad()
def factored_meta_gradient(
    net: FullyConnected, params: Parameters, stacks: Sequence[TaskStack], inner: InnerLoop
) -> tuple[FactoredGradient, tuple[Float[Tensor, "N n k"], ...]]:
    """∇𝓛(θ) of Eq. (3) in factored form, second order through all τ steps; never differentiated itself.

    Args:
        net: the network.
        params: θ; a ShapeError says which of them are not the network's.
        stacks: the tasks.
        inner: the inner loop.

    Returns:
        The gradient, and the meta-outputs of each stack.
    """
    passes, outputs = [], []
    for stack in stacks:
        path = factor_path(net, params, stack.support_x, stack.support_y, inner)
        query = adapted_pass(path, stack.query_x)
        passes.append(_reversed(path, query, query.output - stack.query_y, inner.first_order))
        outputs.append(query.output)
    return _gathered(path.layers, passes), tuple(outputs)


def _gathered(layers: Sequence[AffineLayer], passes: Sequence[_ReversePass]) -> FactoredGradient:
    pairs, biases = {}, {}
    for p, layer in enumerate(layers):
        uses = [reverse.uses[p] for reverse in passes]
        u = _joined([some.u.flatten(0, 1) for some in uses])
        v = _joined([some.v.flatten(0, 1) for some in uses])
        pairs[f"weight{p + 1}"] = (u, v, layer.c)
        biases[f"bias{p + 1}"] = sum((some.bias for some in uses[1:]), uses[0].bias)
    return FactoredGradient(pairs, biases)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
