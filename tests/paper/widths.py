"""Quantities of random networks at several widths, and the slope and level to which they are held.

Windows and levels, here and in the other tests of random networks that are not slow, were calibrated on six sets of
networks that no test uses (all seeds shifted by 1000, 2000, …), and widened where one of the six left them.
"""

import numpy as np
import torch

from mamltheory.finite_width.asymptotics import fit_power_law, root_mean_square
from tests.paper.cases import setting, start


def at_widths(case, widths, seeds, quantity, tau=2):
    """quantity(net, params, tasks, inner), one number or several: seeds last, widths before."""
    rows = []
    for width in widths:
        net, tasks, _, inner = setting(*case, width, tau=tau)
        rows.append([quantity(net, start(net, seed), tasks, inner) for seed in range(seeds)])
    return np.moveaxis(np.array(rows, dtype=float), 1, -1)


def check_slope(measured, what, widths, values, slope, window):
    """The root mean square over the seeds falls as width^slope within the window; it is given back."""
    scale = root_mean_square(np.asarray(values))
    found = fit_power_law(widths, scale).slope
    assert found > slope - window, f"{what} has slope {found:.3f}"
    measured(f"slope of {what}", found, below=slope + window)
    return scale


def check_level(measured, what, value, low, high):
    """low < value < high: a slope alone would not see a wrong constant."""
    assert value > low, f"{what} is {value:.3g}"
    measured(what, value, below=high)


def combined(one, other, factor=1.0):
    """one + factor · other, parameter by parameter."""
    return {name: one[name] + factor * other[name] for name in one}


def random_direction(params, generator):
    """A direction of length 1, uniform on the sphere."""
    parts = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in params.items()}
    length = sum(float(part.square().sum()) for part in parts.values()) ** 0.5
    return {name: part / length for name, part in parts.items()}
