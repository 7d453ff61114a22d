"""E[σ(u)σ(v)] and E[σ'(u)σ'(v)] by nested Gauss–Legendre panels, with a panel's edge at every kink."""

import numpy as np
from scipy.special import erf, expit, ndtr

FUNCTIONS = {
    "relu": (lambda h: np.maximum(h, 0), lambda h: (h > 0).astype(float)),
    "erf": (erf, lambda h: 2 / np.sqrt(np.pi) * np.exp(-(h**2))),
    "tanh": (np.tanh, lambda h: 1 / np.cosh(np.clip(h, -300, 300)) ** 2),
    "gelu": (lambda h: h * ndtr(h), lambda h: ndtr(h) + h * density(h)),
    "silu": (lambda h: h * expit(h), lambda h: expit(h) * (1 + h * expit(-h))),
    "softplus": (lambda h: np.logaddexp(0, h), expit),
    "sin": (np.sin, np.cos),
}
REACH = 9.5  # standard deviations; the rest weighs 2e-21
POINTS, WEIGHTS = np.polynomial.legendre.leggauss(20)


def panels(low, high, count=30):
    """Nodes and weights on [low, high] in ``count`` panels."""
    edges = np.linspace(low, high, count + 1)
    half = (edges[1] - edges[0]) / 2
    return (edges[:-1, None] + half * (POINTS + 1)).reshape(-1), np.tile(half * WEIGHTS, count)


def density(z):
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def conditional(g, mean, spread):
    """E[g(mean + spread·w)], w standard normal, in two pieces that meet where the argument changes its sign."""
    if spread == 0:
        return g(np.array(mean))
    kink = np.clip(-mean / spread, -REACH, REACH)
    total = 0.0
    for low, high in ((-REACH, kink), (kink, REACH)):
        w, weights = panels(low, high)
        total += weights @ (g(mean + spread * w) * density(w))
    return total


def moments(activation, k11, k12, k22):
    """Both expectations for (u, v) ~ N(0, [[k11, k12], [k12, k22]])."""
    a, b = k11**0.5, k12 / k11**0.5
    rest = k22 - b * b
    spread = 0.0 if rest < 1e-12 * k22 else rest**0.5  # fully correlated, up to rounding
    pieces = [panels(-REACH, 0), panels(0, REACH)]
    z, weights = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    return tuple(
        weights @ (g(a * z) * density(z) * np.array([conditional(g, b * value, spread) for value in z]))
        for g in FUNCTIONS[activation]
    )
