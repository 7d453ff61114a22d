"""The empirical MetaNTK of a fully connected network, Eqs. (4) and (24), without any row as long as θ.

Layers p = 0 … L as in :mod:`mamltheory.factored.fast_weights`: h^p = c_p W^p z^p + β b^p and z^{p+1} = σ(h^p), z^0 = x.
In each task, j runs over the support samples and s over the inner steps; δ^p_j = ∂ℓ/∂h^p_j and a^p = c_p z^p, so that

    ∂ℓ/∂W^p = Σ_j δ^p_j a^p_jᵀ,        W^p_s = W^p − λ Σ_{s'<s} Σ_j δ^p_{s'j} a^p_{s'j}ᵀ   (never written out)

A row of ∇F starts as a row of ∇f at θ_τ, V^p = g^p a^p_qᵀ for query q, and is carried back through the steps
s = τ−1 … 0 by V ← V − λ H_s V. H_s V is the derivative of the gradients Σ_j δ^p_j a^p_jᵀ along V: one forward and one
backward pass over the support samples (a dot marks the derivative):

    ḣ^p = V^p a^p + c_p W^p_s ż^p,     ż^0 = 0,           ż^{p+1} = σ' ∘ ḣ^p
    ṙ^p = c_p (W^p_sᵀ δ̇^p + V^pᵀ δ^p), δ̇^L = ḣ^L,         δ̇^{p−1} = σ' ∘ ṙ^p + (σ''/σ') ∘ ḣ^{p−1} ∘ δ^{p−1}

    V^p ← V^p − λ Σ_j ( δ̇^p_j a^p_jᵀ + δ^p_j c_p ż^p_jᵀ )

V stays a sum of outer products (:mod:`mamltheory.factored.rows`), and W is multiplied by thin matrices alone, for
all tasks, samples and rows at once. First-order MAML keeps V^p = g^p a^p_qᵀ. ANIL's loop moves the head alone:
V^L changes from step to step, ż = 0, and one backward pass of Σ_s ṙ^L_s serves all steps.

Operations, for N tasks, R = n·k rows each, D₂ weights between hidden layers:  4 m N R τ D₂ for the passes (ANIL
2 m N R D₂) and (N R)² m τ Σ_p (fan-in + fan-out) for the Gram matrix; with whole rows 12 m N R τ D and (N R)² D.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mamltheory.factored.fast_weights import (
    FactorPath,
    ForwardPass,
    TaskStack,
    adapted_pass,
    backward,
    factor_path,
    forward,
    network_output,
)
from mamltheory.factored.rows import DenseRows, FactoredRows, is_smaller_dense
from mamltheory.inner_loop import InnerLoop
from mamltheory.networks import FullyConnected
from mamltheory.tasks import Parameters

Rows = tuple[DenseRows | FactoredRows, ...]
"""Rows of ∇F of tasks of equal size, by layer p = 0 … L."""


def meta_rows(
    net: FullyConnected,
    params: Parameters,
    stack: TaskStack,
    inner: InnerLoop,
    origin: Parameters | None = None,
) -> Rows:
    """∇F of tasks of equal size, layer by layer.

    Args:
        net: the network.
        params: θ.
        stack: the tasks.
        inner: the inner loop.
        origin: θ_0 of the centred network f_θ − f_{θ0}; None for the network itself.

    Returns:
        The rows, in the order of the tasks, queries and outputs.
    """
    labels = stack.support_y
    if origin is not None:
        labels = labels + network_output(net, origin, stack.support_x)
    path = factor_path(net, params, stack.support_x, labels, inner)
    query = adapted_pass(path, stack.query_x)
    g = _output_cotangents(path, query)
    terms = term_counts(net, inner, stack.support_x.shape[1])
    rows = tuple(_rows_at_theta_tau(path, query, g[p], p, *terms[p]) for p in range(len(path.layers)))
    if inner.first_order or inner.tau == 0:
        return rows
    if path.first:
        _through_the_head(path, rows)
    else:
        for s in reversed(range(inner.tau)):
            _through_step(path, rows, s)
    return rows


def term_counts(net: FullyConnected, inner: InnerLoop, m: int) -> tuple[tuple[int, int], ...]:
    """How many terms D_α and E_α a row has in each layer: m per step, m in all where the a_α never change."""
    if inner.first_order or inner.tau == 0:
        return ((0, 0),) * (net.depth + 1)
    if inner.algorithm == "anil":
        return ((m, 0),) * (net.depth + 1)
    return ((m, 0), *[(inner.tau * m, inner.tau * m)] * net.depth)


def _output_cotangents(path: FactorPath, query: ForwardPass) -> list[Tensor]:
    """g^p = ∂f_c(x_q)/∂h^p at θ_τ for all rows (q, c), T × R × fan_out, by layer."""
    tasks, n, k = query.output.shape
    g = torch.eye(k, dtype=query.output.dtype, device=query.output.device).repeat(n, 1).expand(tasks, -1, -1)
    every = [g]
    for p in range(len(path.layers) - 1, 0, -1):
        g = backward(path.layers[p], every[-1], path.fast[-1][p], path.rate)
        every.append(g * query.slopes[p - 1].repeat_interleave(k, 1))
    return every[::-1]


def _rows_at_theta_tau(
    path: FactorPath, query: ForwardPass, g: Tensor, p: int, d_terms: int, e_terms: int
) -> DenseRows | FactoredRows:
    """V^p = g a_qᵀ, with room for the terms that the inner steps add."""
    layer, (tasks, rows, fan_out) = path.layers[p], g.shape
    a_query = layer.c * query.activations[p]
    fan_in = a_query.shape[2]
    if is_smaller_dense(fan_in, fan_out, d_terms, e_terms):
        per_row = a_query.repeat_interleave(rows // a_query.shape[1], 1)
        return DenseRows(g[..., None] * per_row[:, :, None], g.clone(), layer.c_b)
    change = path.fast[-1][p] if e_terms else None
    a = change.activations if change else path.steps[0].activations[p] if d_terms else a_query[:, :0]
    delta = change.cotangents if change else g[:, :0]
    d, e = g.new_empty(tasks, d_terms, rows, fan_out), g.new_empty(tasks, e_terms, rows, fan_in)
    return FactoredRows(g, a_query, layer.c * a, d, delta, e, layer.c_b, d_terms)


def _through_step(path: FactorPath, rows: Rows, s: int) -> None:
    """V ← V − λ H_s V, in place."""
    step, delta, top = path.steps[s], path.cotangents[s], len(rows) - 1
    a = [layer.c * z for layer, z in zip(path.layers, step.activations, strict=True)]
    h_dot, z_dot = [rows[0].times(a[0])], {}
    for p in range(1, top + 1):
        z_dot[p] = step.slopes[p - 1][:, :, None] * h_dot[p - 1]
        h_dot.append(rows[p].times(a[p]))
        h_dot[p] += _per_row(forward, path, p, s, z_dot[p], bias=False)
    delta_dot = h_dot[top]
    for p in range(top, 0, -1):
        below = _delta_dot(path, rows, s, p, delta_dot, h_dot[p - 1])
        e = z_dot[p] * (-path.rate * path.layers[p].c)
        rows[p].add_step(a[p], delta_dot * -path.rate, delta[p], e)
        delta_dot = below
    rows[0].add_step(a[0], delta_dot * -path.rate, delta[0], None)


def _delta_dot(path: FactorPath, rows: Rows, s: int, p: int, delta_dot: Tensor, h_dot: Tensor) -> Tensor:
    """δ̇^{p−1} = σ' ∘ ṙ^p + (σ''/σ') ∘ ḣ^{p−1} ∘ δ^{p−1}, from δ̇^p and ḣ^{p−1}."""
    step = path.steps[s]
    below = _r_dot(path, rows, s, p, delta_dot).mul_(step.slopes[p - 1][:, :, None])
    curvature = step.curvatures[p - 1]
    if curvature is None:
        return below
    return below.addcmul_((curvature * path.cotangents[s][p - 1])[:, :, None], h_dot)


def _r_dot(path: FactorPath, rows: Rows, s: int, p: int, delta_dot: Tensor) -> Tensor:
    """ṙ^p = c_p (W^p_sᵀ δ̇^p + V^pᵀ δ^p)."""
    through = _per_row(backward, path, p, s, delta_dot)
    return through.add_(rows[p].transposed_times(path.cotangents[s][p]), alpha=path.layers[p].c)


def _per_row(
    product: Callable[..., Tensor], path: FactorPath, p: int, s: int, x: Tensor, **options: bool
) -> Tensor:
    """``forward`` or ``backward`` through layer p at θ_s of x, T × m × R × neurons."""
    flat = product(path.layers[p], x.flatten(1, 2), path.fast[s][p], path.rate, **options)
    return flat.unflatten(1, x.shape[1:3])


def _through_the_head(path: FactorPath, rows: Rows) -> None:
    """All steps of ANIL at once: the head step by step, the features under it by one pass of the sum of ṙ^L."""
    top, features = len(rows) - 1, path.steps[0]
    a = [layer.c * z for layer, z in zip(path.layers, features.activations, strict=True)]
    total = features.output.new_zeros(())
    for s in reversed(range(len(path.steps))):
        f_dot = rows[top].times(a[top])
        total = total + _r_dot(path, rows, s, top, f_dot)
        rows[top].add_step(a[top], f_dot * -path.rate, path.cotangents[s][top], None)
    for p in range(top - 1, -1, -1):
        delta_dot = total * features.slopes[p][:, :, None]
        rows[p].add_step(a[p], delta_dot * -path.rate, delta_dot[:, :, 0], None)
        if p:
            total = _per_row(backward, path, p, 0, delta_dot)


def factored_gram(rows: Rows, columns: Rows, dtype: torch.dtype = torch.float64) -> Float[Tensor, "p q"]:
    """⟨V_R, V_S⟩ summed over the layers in ``dtype``; exactly symmetric if rows and columns are one object."""
    total = torch.zeros((), dtype=dtype)
    for left, right in zip(rows, columns, strict=True):
        own = left.to(dtype)
        total = total + own.gram(own if columns is rows else right.to(dtype))
    total = total.flatten(2).flatten(0, 1)
    return total.triu() + total.triu(1).T if columns is rows else total
