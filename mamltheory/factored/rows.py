"""Jacobian rows, layer by layer, as matrices that are never multiplied out.

In a layer h = W a + β b (a holds the parameterisation's factor) row R = (q, c), output c of query q, is the matrix

    V_R = g_R a_qᵀ + Σ_α ( D_{αR} a_αᵀ + δ_α E_{αR}ᵀ )        weight: V_R,    bias: β (g_R + Σ_α D_{αR})

a_q, a_α and δ_α belong to the task and not to the row: their products are computed once for all rows of a task.
With ⟨a, a'⟩ = a·a' + β², weight and bias at once,

    V_R x  = g_R ⟨a_q, x⟩ + Σ_α D_{αR} ⟨a_α, x⟩ + Σ_α δ_α (E_{αR}·x)
    V_Rᵀ y = a_q (g_R·y)  + Σ_α a_α (D_{αR}·y)  + Σ_α E_{αR} (δ_α·y)
    ⟨V_R, V_R'⟩ = g_R·(V_R' a_q) + Σ_α D_{αR}·(V_R' a_α) + Σ_α E_{αR}·(V_R'ᵀ δ_α)

A layer whose rows are smaller multiplied out than as factors (a head of few outputs) is held as plain matrices.
Axes: tasks T, terms α (M of D and M' of E), rows R (sample-major, class-minor), neurons of a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def is_smaller_dense(fan_in: int, fan_out: int, d_terms: int, e_terms: int) -> bool:
    """Whether a row, fan_out × fan_in, with ``d_terms`` D_α and ``e_terms`` E_α is smaller multiplied out."""
    return fan_out * (fan_in + 1) < d_terms * fan_out + e_terms * fan_in


def numbers_per_row(fan_in: int, fan_out: int, d_terms: int, e_terms: int) -> int:
    """The numbers in a row, fan_out × fan_in, with ``d_terms`` D_α and ``e_terms`` E_α, in its smaller form."""
    if is_smaller_dense(fan_in, fan_out, d_terms, e_terms):
        return fan_out * (fan_in + 1)
    return fan_out * (1 + d_terms) + fan_in * e_terms


@dataclass(eq=False)
class DenseRows:
    """V_R multiplied out; ``bias`` without β."""

    weight: Float[Tensor, "T R o i"]
    bias: Float[Tensor, "T R o"]
    beta: float

    def times(self, x: Float[Tensor, "T x i"]) -> Float[Tensor, "T x R o"]:
        """V_R x, the bias included."""
        tasks, rows, out, _ = self.weight.shape
        product = (x @ self.weight.flatten(1, 2).mT).view(tasks, -1, rows, out)
        return product.add_(self.bias[:, None], alpha=self.beta**2)

    def transposed_times(self, y: Float[Tensor, "T x o"]) -> Float[Tensor, "T x R i"]:
        """V_Rᵀ y, the weight alone."""
        return (y[:, None] @ self.weight).transpose(1, 2)

    def add_step(self, a: Tensor, d: Tensor, delta: Tensor, e: Tensor | None) -> None:
        """V_R += Σ_j (d_{jR} a_jᵀ + δ_j e_{jR}ᵀ) over the m support samples j of one inner step.

        Args:
            a: T × m × i.
            d: T × m × R × o.
            delta: T × m × o.
            e: T × m × R × i; None for zero.
        """
        self.weight += d.permute(0, 2, 3, 1) @ a[:, None]
        self.bias += d.sum(1)
        if e is not None:
            self.weight += delta.mT[:, None] @ e.transpose(1, 2)

    def to(self, dtype: torch.dtype) -> "DenseRows":
        """The same rows in another dtype."""
        return DenseRows(self.weight.to(dtype), self.bias.to(dtype), self.beta)

    def of_task(self, i: int) -> "DenseRows":
        """The rows of task i alone, T = 1."""
        return DenseRows(self.weight[i : i + 1], self.bias[i : i + 1], self.beta)

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of tasks and of rows per task, (T, R)."""
        return self.bias.shape[0], self.bias.shape[1]

    def gram(self, other: "DenseRows | FactoredRows") -> Float[Tensor, "T R U S"]:
        """⟨V_R, V_S⟩ for all rows R of these tasks and S of the others."""
        if isinstance(other, FactoredRows):
            return other.gram(self).permute(2, 3, 0, 1)
        weight = self.weight.flatten(0, 1).flatten(1) @ other.weight.flatten(0, 1).flatten(1).T
        bias = self.bias.flatten(0, 1) @ other.bias.flatten(0, 1).T
        return weight.add_(bias, alpha=self.beta**2).view(*self.size, *other.size)


@dataclass(eq=False)
class FactoredRows:
    """V_R as its factors.

    Args:
        g: the cotangents g_R.
        a_query: a_q of the n queries.
        a: a_α.
        d: D_{αR}.
        delta: δ_α.
        e: E_{αR}.
        beta: β.
        start: the terms before it are still empty: inner steps are added from the last to the first.
    """

    g: Float[Tensor, "T R o"]
    a_query: Float[Tensor, "T n i"]
    a: Float[Tensor, "T M i"]
    d: Float[Tensor, "T M R o"]
    delta: Float[Tensor, "T N o"]
    e: Float[Tensor, "T N R i"]
    beta: float
    start: int

    def _with(self, change: Callable[[Tensor], Tensor]) -> "FactoredRows":
        """The rows with every factor changed; the empty terms are dropped."""
        a, d, delta, e = (change(part) for part in self._filled())
        return FactoredRows(change(self.g), change(self.a_query), a, d, delta, e, self.beta, 0)

    def _filled(self) -> list[Tensor]:
        return [part[:, self.start :] for part in (self.a, self.d, self.delta, self.e)]

    def _per_row(self, per_query: Tensor, axis: int) -> Tensor:
        return per_query.repeat_interleave(self.g.shape[1] // self.a_query.shape[1], axis)

    def times(self, x: Float[Tensor, "T x i"]) -> Float[Tensor, "T x R o"]:
        """V_R x, the bias included."""
        a, d, delta, e = self._filled()
        tasks, rows, out = self.g.shape
        at_query = self._per_row(x @ self.a_query.mT + self.beta**2, 2)
        product = at_query[..., None] * self.g[:, None]
        if a.shape[1]:
            product.view(tasks, -1, rows * out).baddbmm_(x @ a.mT + self.beta**2, d.flatten(2))
        if e.shape[1]:
            along = (x @ e.flatten(1, 2).mT).view(tasks, -1, e.shape[1], rows)
            product.view(tasks, -1, out).baddbmm_(along.transpose(2, 3).flatten(1, 2), delta)
        return product

    def transposed_times(self, y: Float[Tensor, "T x o"]) -> Float[Tensor, "T x R i"]:
        """V_Rᵀ y, the weight alone."""
        a, d, delta, e = self._filled()
        tasks, rows, _ = self.g.shape
        product = (y @ self.g.mT)[..., None] * self._per_row(self.a_query, 1)[:, None]
        if a.shape[1]:
            along = (y @ d.flatten(1, 2).mT).view(tasks, -1, a.shape[1], rows)
            product.view(tasks, -1, a.shape[2]).baddbmm_(along.transpose(2, 3).flatten(1, 2), a)
        if e.shape[1]:
            product.view(tasks, -1, rows * a.shape[2]).baddbmm_(y @ delta.mT, e.flatten(2))
        return product

    def add_step(self, a: Tensor, d: Tensor, delta: Tensor, e: Tensor | None) -> None:  # noqa: ARG002
        """As :meth:`DenseRows.add_step` with ``d`` and ``e``; the rows hold ``a`` and ``delta`` already."""
        if self.start == 0:  # the same a in every step
            self.d += d
            return
        self.start -= a.shape[1]
        filled = slice(self.start, self.start + a.shape[1])
        self.d[:, filled] = d
        if e is not None:
            self.e[:, filled] = e

    def to(self, dtype: torch.dtype) -> "FactoredRows":
        """The same rows in another dtype."""
        return self._with(lambda part: part.to(dtype))

    def of_task(self, i: int) -> "FactoredRows":
        """The rows of task i alone, T = 1."""
        return self._with(lambda part: part[i : i + 1])

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of tasks and of rows per task, (T, R)."""
        return self.g.shape[0], self.g.shape[1]

    def gram(self, other: "DenseRows | FactoredRows") -> Float[Tensor, "T R U S"]:
        """⟨V_R, V_S⟩ for all rows R of these tasks and S of the others (the upper blocks if both are the same)."""
        columns = [other.of_task(j) for j in range(other.size[0])]
        total = self.g.new_zeros(*self.size, *other.size)
        for i in range(self.size[0]):
            row = self.of_task(i)
            for j in range(i if other is self else 0, len(columns)):
                total[i, :, j] = row._contracted(columns[j])
        return total

    def _contracted(self, other: "DenseRows | FactoredRows") -> Float[Tensor, "R S"]:
        """⟨V_R, V_S⟩ of one task with one other."""
        at_query = other.times(self.a_query)[0]  # n × S × out
        per_output = self.g[0].unflatten(0, (len(at_query), -1))  # n × k × out
        total = (per_output @ at_query.mT).flatten(0, 1)
        if self.a.shape[1]:
            total += (self.d[0] @ other.times(self.a)[0].mT).sum(0)
        if self.e.shape[1]:
            total += (self.e[0] @ other.transposed_times(self.delta)[0].mT).sum(0)
        return total
