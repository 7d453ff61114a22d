"""The outer gradient of MAML through factored fast weights, gathered as factor pairs and applied in one product.

Every use of a task's weight W_i in :mod:`mamltheory.factored.fast_weights` is a bilinear form u W_i vᵀ: forth with (u,
v) = (h̄, z), back with (u, v) = (g, z̄'), where a bar is ∂𝓛/∂. From W_i = W − λ c Σ Gᵀ A each use gives

    to the shared weight      ∂𝓛/∂W += c uᵀ v
    to the rows of the past   Ḡ −= λ (c² v Aᵀ + c_b²)ᵀ u,      Ā −= λ c² (u Gᵀ)ᵀ v      (c_b² for forth alone)

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
    FactorPath,
    Factors,
    Layer,
    Pass,
    TaskStack,
    adapted_pass,
    back,
    factor_path,
    forth,
    overlap,
)
from mamltheory.inner_loop import InnerLoop
from mamltheory.networks import FullyConnected
from mamltheory.tasks import Parameters

BLOCK = 2**21
"""Entries of a weight that a fused step changes at a time."""


@dataclass(frozen=True, eq=False)
class FactoredGradient:
    """∇𝓛 with the weights' parts as c Uᵀ V: ``pairs`` holds (U, V, c) by name, ``biases`` the rest.

    U: rows × fan_out, V: rows × fan_in; N(2τm + n) rows for N tasks, (τm + n) for the head.
    """

    pairs: dict[str, tuple[Tensor, Tensor, float]]
    biases: Parameters

    def dense(self) -> Parameters:
        """∇𝓛 by name, every weight's part materialised."""
        weights = {name: _times(u.T @ v, c) for name, (u, v, c) in self.pairs.items()}
        return weights | self.biases

    def step_(self, params: Parameters, rate: float) -> float:
        """θ ← θ − rate · ∇𝓛, *in place*, and ‖rate · ∇𝓛‖; no buffer of the weights' size is ever made."""
        square = 0.0
        for name, (u, v, c) in self.pairs.items():
            rows = max(1, BLOCK // v.shape[1])
            for part, weight in zip(u.T.split(rows), params[name].split(rows), strict=True):
                change = part @ v
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


class _Uses:
    """The uses of one layer in the order of the reverse pass, and what each tells the rows of the past.

    u: N × R × fan_out, v: N × R × fan_in, filled row by row.  told: −λ (c² v Aᵀ + c_b²) and inside: −λ c² u Gᵀ,
    N × R × r; a use at θ_s fills the columns of the steps before s alone.
    """

    def __init__(self, layer: Layer, factors: Factors | None, tasks: int, rows: int) -> None:
        past = factors.flowing.shape[1] if factors else 0
        sizes = (*layer.weight.shape, past, past)
        self.u, self.v, self.told, self.inside = (layer.weight.new_empty(tasks, rows, size) for size in sizes)
        self.bias, self.rows = torch.zeros_like(layer.bias), 0


class _Reverse:
    """The factor pairs gathered so far, layer by layer; the adjoints Ḡ_s and Ā_s follow from those of later steps."""

    def __init__(self, path: FactorPath, query: Pass, through: bool) -> None:
        self.path, self.through, (tasks, self.queries, _) = path, through, query.output.shape
        self.m = path.steps[0].output.shape[1] if path.steps else 0
        rows = [self._later(p, -1) if through else self.queries for p in range(len(path.layers))]
        self.uses = [
            _Uses(*some, tasks, r) for *some, r in zip(path.layers, path.fast[-1], rows, strict=True)
        ]

    def _later(self, p: int, s: int) -> int:
        """How many rows the uses of layer p at steps after s have: the query's, and one or two times m a step."""
        if p < self.path.first:
            return self.queries + self.m
        each = self.m if p == self.path.first else 2 * self.m
        return self.queries + each * (len(self.path.steps) - 1 - s)

    def use(self, p: int, u: Tensor, v: Tensor, told: Tensor | None = None, inside: Tensor | None = None,
            affine: bool = True) -> None:  # fmt: skip
        """One use of layer p, with what it tells the rows A and G before its step; ``affine``: with the bias."""
        uses, layer, rate = self.uses[p], self.path.layers[p], self.path.rate
        rows = slice(uses.rows, uses.rows + u.shape[1])
        uses.rows = rows.stop
        uses.u[:, rows], uses.v[:, rows] = u, v
        if affine:
            uses.bias.add_(u.sum((0, 1)), alpha=layer.c_b)
        if self.through and told is not None:
            torch.mul(told, -rate, out=uses.told[:, rows, : told.shape[2]])
        if self.through and inside is not None:
            torch.mul(inside, -rate * layer.c**2, out=uses.inside[:, rows, : inside.shape[2]])

    def inside(self, p: int, u: Tensor, s: int) -> Tensor | None:
        """Overlaps u Gᵀ, None where no rows of the past enter: in the first layer they are the samples."""
        factors = self.path.fast[s][p]
        return None if factors is None or p == 0 else u @ factors.flowing.mT

    def back(self, p: int, u: Tensor, s: int, inside: Tensor | None) -> Tensor:
        return back(self.path.layers[p], u, self.path.fast[s][p], self.path.rate, inside)

    def onto_flowing(self, p: int, s: int, onto: Tensor | None = None) -> Tensor:
        """Adds Ḡ_s to ``onto``, in place; Ḡ_s alone for None."""
        rows, uses = slice(0, self._later(p, s)), self.uses[p]
        told, u = uses.told[:, rows, self._columns(p, s)].mT, uses.u[:, rows]
        return torch.bmm(told, u) if onto is None else onto.baddbmm_(told, u)

    def onto_entering(self, p: int, s: int, onto: Tensor) -> Tensor:
        """Adds Ā_s to ``onto``, in place."""
        rows, uses = slice(0, self._later(p, s)), self.uses[p]
        return onto.baddbmm_(uses.inside[:, rows, self._columns(p, s)].mT, uses.v[:, rows])

    def _columns(self, p: int, s: int) -> slice:
        return slice(0, self.m) if p == self.path.first else slice(s * self.m, (s + 1) * self.m)


def _reverse_query(reverse: _Reverse, query: Pass, residual: Tensor) -> None:
    """From ∂𝓛/∂F down the adapted network."""
    path, u = reverse.path, residual
    for p in range(len(path.layers) - 1, -1, -1):
        inside = reverse.inside(p, u, -1)
        reverse.use(p, u, query.entering[p], query.told[p], inside)
        if p > 0:
            u = reverse.back(p, u, -1, inside).mul_(query.slopes[p - 1])


def _reverse_flow(reverse: _Reverse, s: int) -> list[Tensor | None]:
    """Back through the flow of step s: what reaches the pre-activations h_p of its forward pass."""
    path, seen, g = reverse.path, reverse.path.steps[s], reverse.path.flowing[s]
    reaches: list[Tensor | None] = [None] * len(path.layers)
    onto_g = reverse.onto_flowing(path.first, s)
    for p in range(path.first + 1, len(path.layers)):
        bend, layer, factors = seen.bends[p - 1], path.layers[p], path.fast[s][p]
        if bend is not None:
            reaches[p - 1] = (onto_g * g[p - 1]).mul_(bend)
        onto_z = onto_g.mul_(seen.slopes[p - 1])
        told = None if factors is None else overlap(layer, onto_z, factors, bias=False)
        reverse.use(p, g[p], onto_z, told, path.inside[s][p], affine=False)
        onto_g = reverse.onto_flowing(p, s, forth(layer, onto_z, factors, path.rate, False, told))
    reaches[-1] = onto_g
    return reaches


def _reverse_forward(reverse: _Reverse, s: int, reaches: list[Tensor | None]) -> Tensor:
    """Back through the forward pass of step s; returns what reaches the first adapting layer's h."""
    path, seen = reverse.path, reverse.path.steps[s]
    u = reaches[-1]
    for p in range(len(path.layers) - 1, path.first - 1, -1):
        inside = reverse.inside(p, u, s)
        reverse.use(p, u, seen.entering[p], seen.told[p], inside)
        if p > path.first:
            u = reverse.onto_entering(p, s, reverse.back(p, u, s, inside)).mul_(seen.slopes[p - 1])
            if reaches[p - 1] is not None:
                u.add_(reaches[p - 1])
    return u


def _reverse_below(reverse: _Reverse, onto_z: Tensor) -> None:
    """Back through the layers that do not adapt, on the support samples (ANIL)."""
    seen = reverse.path.steps[0]
    for p in range(reverse.path.first - 1, -1, -1):
        u = onto_z * seen.slopes[p]
        reverse.use(p, u, seen.entering[p])
        onto_z = reverse.back(p, u, 0, None) if p else onto_z


def reverse(path: FactorPath, query: Pass, residual: Tensor, first_order: bool = False) -> _Reverse:
    """The whole reverse pass from ∂𝓛/∂F = ``residual`` (N × n × k), tasks stacked."""
    adjoint, first = _Reverse(path, query, through=not first_order), path.first
    _reverse_query(adjoint, query, residual)
    if first_order or not path.steps:
        return adjoint
    onto_features = 0
    for s in range(len(path.steps) - 1, -1, -1):
        u = _reverse_forward(adjoint, s, _reverse_flow(adjoint, s))
        if first:
            onto_features = onto_features + adjoint.back(first, u, s, adjoint.inside(first, u, s))
    if first:
        _reverse_below(adjoint, adjoint.onto_entering(first, 0, onto_features))
    return adjoint


@torch.no_grad()
def factored_meta_gradient(
    net: FullyConnected, params: Parameters, stacks: Sequence[TaskStack], inner: InnerLoop
) -> tuple[FactoredGradient, tuple[Float[Tensor, "N n k"], ...]]:
    """∇𝓛(θ) of Eq. (3) in factored form, second order through all τ steps, and the meta-outputs of each stack.

    Never differentiated itself. Raises ShapeError for parameters that are not the network's.
    """
    adjoints, outputs = [], []
    for stack in stacks:
        path = factor_path(net, params, stack.support_x, stack.support_y, inner)
        query = adapted_pass(path, stack.query_x)
        adjoints.append(reverse(path, query, query.output - stack.query_y, inner.first_order))
        outputs.append(query.output)
    return _gathered(path, adjoints), tuple(outputs)


def _gathered(path: FactorPath, adjoints: Sequence[_Reverse]) -> FactoredGradient:
    pairs, biases = {}, {}
    for p, layer in enumerate(path.layers):
        uses = [adjoint.uses[p] for adjoint in adjoints]
        u, v = (_joined([getattr(some, name).flatten(0, 1) for some in uses]) for name in "uv")
        pairs[f"weight{p + 1}"] = (u, v, layer.c)
        biases[f"bias{p + 1}"] = sum(some.bias for some in uses)
    return FactoredGradient(pairs, biases)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
