"""∇F through the inner loop, differentiated in one piece: the whole Jacobian of the meta-outputs as one matrix."""

import torch
from torch.func import jacrev

from mamltheory.inner_loop import meta_output


def meta_jacobian_matrix(model, params, tasks, inner):
    """Nnk × D: ``jacrev`` of F_θ(𝒳, 𝒳', 𝒴') by all parameters."""
    rows = jacrev(lambda theta: torch.cat([meta_output(model, theta, task, inner) for task in tasks]))(params)
    return torch.cat([part.flatten(1) for part in rows.values()], dim=1)


def meta_gram(model, params, tasks, inner, other=None):
    """∇F ∇Fᵀ in float64, without the factor 1/l."""
    rows = meta_jacobian_matrix(model, params, tasks, inner).double()
    columns = rows if other is None else meta_jacobian_matrix(model, params, other, inner).double()
    return rows @ columns.T
