"""The closed forms written as the paper writes them: explicit inverses, powers and exponentials, block by block."""

import torch

from mamltheory.linalg import Converged, GradientDescent, GradientFlow


def residual(matrix, dynamics):
    identity = torch.eye(len(matrix)).double()
    match dynamics:
        case GradientFlow(time):
            return torch.linalg.matrix_exp(-time * matrix)
        case GradientDescent(rate, steps):
            return torch.linalg.matrix_power(identity - rate * matrix, steps)
        case Converged(ridge):
            return ridge * torch.linalg.inv(matrix + ridge * identity)


def time_operator(matrix, dynamics):
    """M⁻¹ (I − ρ(M)), with the inverse formed."""
    identity = torch.eye(len(matrix)).double()
    if isinstance(dynamics, Converged):
        return torch.linalg.inv(matrix + dynamics.ridge * identity)
    return torch.linalg.inv(matrix) @ (identity - residual(matrix, dynamics))


def phi_block(theta, adapt, task_i, task_j, dynamics):
    """φ((X_i, X'_i), (X_j, X'_j)) of Eqs. (106) and (112), its four terms; theta, adapt: kernel functions of (x, x)."""
    xi, si, xj, sj = task_i.query_x, task_i.support_x, task_j.query_x, task_j.support_x
    left = adapt(xi, si) @ time_operator(adapt(si, si), dynamics)
    right = time_operator(adapt(sj, sj), dynamics).T @ adapt(sj, xj)
    return theta(xi, xj) + left @ theta(si, sj) @ right - left @ theta(si, xj) - theta(xi, sj) @ right


def phi(theta, adapt, rows, columns, dynamics):
    """The block matrix of Eqs. (105) and (107)."""
    return torch.cat([torch.cat([phi_block(theta, adapt, i, j, dynamics) for j in columns], 1) for i in rows])


def adapted(f, adapt, task, dynamics):
    """F_0 of Eq. (109)."""
    x, s = task.query_x, task.support_x
    operator = adapt(x, s) @ time_operator(adapt(s, s), dynamics)
    return f(x).reshape(-1) + operator @ (task.support_y - f(s)).reshape(-1)


def trained(f, theta, adapt, tasks, task, inner, outer):
    """F_t of Eqs. (8), (96), (12) on one task."""
    labels = torch.cat([t.query_y.reshape(-1) for t in tasks])
    start = torch.cat([adapted(f, adapt, t, inner) for t in tasks])
    kernel = phi(theta, adapt, tasks, tasks, inner)
    row = phi(theta, adapt, [task], tasks, inner)
    return adapted(f, adapt, task, inner) + row @ time_operator(kernel, outer) @ (labels - start)
