"""The exponential of a symmetric matrix and how it changes: entry by entry, from divided differences.

For M = V diag(s) Vᵀ and N = W diag(r) Wᵀ the divided differences D_ij = (e^{−ts_i} − e^{−tr_j})/(s_i − r_j) give

    e^{−tM} − e^{−tN} = V (D ∘ Vᵀ(M − N)W) Wᵀ            exactly, for any two symmetric matrices,
    d e^{−tM}[E]      = V (D ∘ VᵀEV) Vᵀ, with r = s        the Fréchet derivative (Daleckii and Krein).
"""

import math

import torch


def exponential(matrix, time):
    """e^{−tM} by scaling and squaring: knows nothing of eigenvalues."""
    return torch.linalg.matrix_exp(-time * matrix)


def divided_difference(s, r, time):
    """(e^{−ts} − e^{−tr})/(s − r), and −t e^{−ts} where the two coincide."""
    low, gap = min(s, r), abs(s - r)
    slope = -time if gap == 0 else math.expm1(-time * gap) / gap
    return math.exp(-time * low) * slope


def divided_differences(s, r, time):
    table = [[divided_difference(a, b, time) for b in r.tolist()] for a in s.tolist()]
    return torch.tensor(table, dtype=torch.float64)


def exponential_derivative(matrix, direction, time):
    """The derivative of e^{−tM} when M moves in the symmetric ``direction``."""
    s, v = torch.linalg.eigh(matrix)
    return v @ (divided_differences(s, s, time) * (v.T @ direction @ v)) @ v.T


def exponential_difference(matrix, other, time):
    """e^{−tM} − e^{−tN} without subtracting the two."""
    s, v = torch.linalg.eigh(matrix)
    r, w = torch.linalg.eigh(other)
    return v @ (divided_differences(s, r, time) * (v.T @ (matrix - other) @ w)) @ w.T


def commuting_derivative(matrix, direction, time):
    """−t e^{−tM} E, the line above Eq. (53): the derivative only where E commutes with M."""
    return -time * exponential(matrix, time) @ direction


def operator_norm(matrix):
    return float(torch.linalg.matrix_norm(matrix, 2))
