"""The outer gradient of MAML through factored fast weights, gathered as factor pairs and applied in one product.

Every use of a task's weight W_i in :mod:`mamltheory.fast_weights` is a bilinear form u W_i vᵀ: forth with (u, v) =
(h̄, z), back with (u, v) = (g, z̄'), where a bar is ∂𝓛/∂. From W_i = W − λ c Σ Gᵀ A each use gives

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

from mamltheory.fast_weights import (
    FactorPath,
    Pass,
    TaskStack,
    adapted_pass,
    back,
    factor_path,
    forth,
    overlap,
)
from mamltheory.inner import InnerLoop
from mamltheory.networks import FullyConnected
from mamltheory.types import Parameters

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


class _Reverse:
    """The adjoints of a path's rows, and the factor pairs gathered so far, layer by layer."""

    def __init__(self, path: FactorPath) -> None:
        self.path, last = path, path.fast[-1]
        self.u: list[list[Tensor]] = [[] for _ in path.layers]
        self.v: list[list[Tensor]] = [[] for _ in path.layers]
        self.bias = [torch.zeros_like(layer.bias) for layer in path.layers]
        self.entering = [f and torch.zeros_like(f.entering) for f in last]
        self.flowing = [f and torch.zeros_like(f.flowing) for f in last]

    def use(self, p: int, u: Tensor, v: Tensor, s: int, affine: bool = True, through: bool = True) -> None:
        """One use of layer p at θ_s; ``affine``: with the bias; ``through``: also to the rows of the past."""
        path, layer, factors = self.path, self.path.layers[p], self.path.fast[s][p]
        self.u[p].append(u.flatten(0, 1))
        self.v[p].append(v.flatten(0, 1))
        if affine:
            self.bias[p].add_(u.sum((0, 1)), alpha=layer.c_b)
        if factors is None or not through:
            return
        past = slice(0, factors.flowing.shape[1])
        told = overlap(layer, v, factors, affine)
        self.flowing[p][:, past].baddbmm_(told.mT, u, alpha=-path.rate)
        if p > 0:  # the rows that enter the first layer are the samples
            inside = factors.flowing @ u.mT
            self.entering[p][:, past].baddbmm_(inside, v, alpha=-path.rate * layer.c**2)

    def back(self, p: int, u: Tensor, s: int) -> Tensor:
        return back(self.path.layers[p], u, self.path.fast[s][p], self.path.rate)


def _reverse_query(reverse: _Reverse, query: Pass, residual: Tensor, through: bool) -> None:
    """From ∂𝓛/∂F down the adapted network."""
    path, u = reverse.path, residual
    for p in range(len(path.layers) - 1, -1, -1):
        reverse.use(p, u, query.entering[p], -1, through=through)
        if p > 0:
            u = reverse.back(p, u, -1).mul_(query.slopes[p - 1])


def _reverse_flow(reverse: _Reverse, s: int) -> list[Tensor | None]:
    """Back through the flow of step s: what reaches the pre-activations h_p of its forward pass."""
    path, seen, g = reverse.path, reverse.path.steps[s], reverse.path.flowing[s]
    reaches: list[Tensor | None] = [None] * len(path.layers)
    onto_g = reverse.flowing[path.first]
    for p in range(path.first + 1, len(path.layers)):
        bend = seen.bends[p - 1]
        if bend is not None:
            reaches[p - 1] = (onto_g * g[p - 1]).mul_(bend)
        onto_z = onto_g * seen.slopes[p - 1]
        reverse.use(p, g[p], onto_z, s, affine=False)
        onto_g = forth(path.layers[p], onto_z, path.fast[s][p], path.rate, bias=False)
        onto_g = onto_g + _step(reverse.flowing[p], s, g[p].shape[1])
    reaches[-1] = onto_g.clone() if len(path.layers) == path.first + 1 else onto_g
    return reaches


def _reverse_forward(reverse: _Reverse, s: int, reaches: list[Tensor | None]) -> Tensor:
    """Back through the forward pass of step s; returns what reaches the first adapting layer's h."""
    path, seen = reverse.path, reverse.path.steps[s]
    u = reaches[-1]
    for p in range(len(path.layers) - 1, path.first, -1):
        z = seen.entering[p]
        reverse.use(p, u, z, s)
        onto_z = reverse.back(p, u, s).add_(_step(reverse.entering[p], s, z.shape[1]))
        u = onto_z.mul_(seen.slopes[p - 1])
        if reaches[p - 1] is not None:
            u.add_(reaches[p - 1])
    reverse.use(path.first, u, seen.entering[path.first], s)
    return u


def _step(rows: Tensor, s: int, m: int) -> Tensor:
    return rows[:, s * m : (s + 1) * m]


def _reverse_below(reverse: _Reverse, onto_z: Tensor) -> None:
    """Back through the layers that do not adapt, on the support samples (ANIL)."""
    seen = reverse.path.steps[0]
    for p in range(reverse.path.first - 1, -1, -1):
        u = onto_z * seen.slopes[p]
        reverse.use(p, u, seen.entering[p], 0)
        onto_z = reverse.back(p, u, 0) if p else onto_z


def reverse(path: FactorPath, query: Pass, residual: Tensor, first_order: bool = False) -> _Reverse:
    """The whole reverse pass from ∂𝓛/∂F = ``residual`` (N × n × k), tasks stacked."""
    adjoint, first = _Reverse(path), path.first
    _reverse_query(adjoint, query, residual, through=not first_order)
    if first_order or not path.steps:
        return adjoint
    onto_features = 0
    for s in range(len(path.steps) - 1, -1, -1):
        u = _reverse_forward(adjoint, s, _reverse_flow(adjoint, s))
        if first:
            onto_features = onto_features + adjoint.back(first, u, s)
    if first:
        _reverse_below(adjoint, onto_features + adjoint.entering[first])
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
        u = torch.cat([part for adjoint in adjoints for part in adjoint.u[p]])
        v = torch.cat([part for adjoint in adjoints for part in adjoint.v[p]])
        pairs[f"weight{p + 1}"] = (u, v, layer.c)
        biases[f"bias{p + 1}"] = sum(adjoint.bias[p] for adjoint in adjoints)
    return FactoredGradient(pairs, biases)
