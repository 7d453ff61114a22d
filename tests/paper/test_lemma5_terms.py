"""The terms (45) and (46) of Lemma 5 one by one: they vanish with one hidden layer, and with two only over √l."""

import pytest
import torch
from torch.func import jacrev

from mamltheory.kernels.empirical import gram, jacobian
from mamltheory.lipschitz import norm
from tests.paper.widths import at_widths, check_level, check_slope


def sizes_of_terms(net, params, tasks, inner):
    """‖(45)‖ and ‖(46)‖ per unit of the support residual: ∇Θ̂(X, X') and ∇Θ̂⁻¹, every other factor held fixed."""
    task = tasks[0]

    def kernel(theta, x):
        return gram(jacobian(net.model, theta, x), jacobian(net.model, theta, task.support_x)) / net.width

    own, mixed = kernel(params, task.support_x), kernel(params, task.query_x)
    residual = (net.model(params, task.support_x) - task.support_y).reshape(-1)
    learnt = (
        residual
        - torch.linalg.matrix_power(torch.eye(len(own)).double() - inner.lam0 * own, inner.tau) @ residual
    )
    weights = torch.linalg.solve(own, learnt)
    first = jacrev(lambda theta: kernel(theta, task.query_x) @ weights)(params)
    left = torch.linalg.solve(own, mixed.T).T  # ∇Θ̂⁻¹ = −Θ̂⁻¹ (∇Θ̂) Θ̂⁻¹
    second = jacrev(lambda theta: left @ (kernel(theta, task.support_x) @ weights))(params)
    return norm(first) / float(residual.norm()), norm(second) / float(residual.norm())


@pytest.mark.paper("Eq. (51)", "Eq. (52)", corrected=True)
@pytest.mark.erratum("E4")
@pytest.mark.parametrize(
    ("depth", "widths", "slope", "window", "levels"),
    [
        (1, (64, 256, 1024), -0.5, 0.25, ((1.0, 4.2), (0.6, 2.5))),
        (2, (64, 128, 256), 0.0, 0.4, ((0.25, 1.0), (0.2, 0.85))),
    ],
)
def test_both_terms_vanish_only_after_division_by_the_root_of_the_width(
    depth, widths, slope, window, levels, measured
):
    """Printed: → 0 for every depth. With two layers they stay, and over √l they fall as l^(−1/2)."""
    for values, name, level in zip(
        at_widths(("erf", depth), widths, 6, sizes_of_terms).swapaxes(0, 1),
        ("(45)", "(46)"),
        levels,
        strict=True,
    ):
        scale = check_slope(measured, f"{name}, erf L={depth}", widths, values, slope, window)
        check_level(measured, f"l^{-slope:g}·{name}, erf L={depth}", scale[-1] * widths[-1] ** -slope, *level)
        over_root = scale / [width**0.5 for width in widths]
        assert over_root[-1] < 0.7 * over_root[0]
