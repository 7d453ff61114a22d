import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mamltheory as mt
from mamltheory.errors import SingularKernelError, ValueRangeError
from mamltheory.finite_width.bounds import extreme_eigenvalues
from tests.strategies import kernels, task, with_spectrum


def contraction(matrix, rate):
    """‖I − η0 Φ‖₂."""
    return float(torch.linalg.matrix_norm(torch.eye(len(matrix)).double() - rate * matrix, 2))


def factor(matrix, rate, momentum):
    """The spectral radius of the map (e_t, e_{t−1}) ↦ (e_{t+1}, e_t): the factor of many steps, for each."""
    one = torch.eye(len(matrix), dtype=torch.float64)
    above = torch.cat([(1 + momentum) * one - rate * matrix, -momentum * one], 1)
    step = torch.cat([above, torch.cat([one, torch.zeros_like(one)], 1)])
    return float(torch.linalg.eigvals(step).abs().max())


@pytest.mark.paper("Theorem 3", "App. B.5: learning rate")
@settings(max_examples=50)
@given(kernels())
def test_the_largest_rate_is_the_one_that_contracts_most_and_the_last_with_the_stated_contraction(kernel):
    matrix, _ = kernel
    low, high = extreme_eigenvalues(matrix)
    rate = mt.largest_rate(matrix)
    for fraction in (0.3, 0.999, 1.0):
        assert contraction(matrix, fraction * rate) == pytest.approx(1 - fraction * rate * low, abs=1e-10)
    for other in (0.9, 1.1):
        assert contraction(matrix, other * rate) > contraction(matrix, rate) - 1e-12
    assert contraction(matrix, 1.1 * rate) > 1 - 1.1 * rate * low + 1e-9 or low == high


@settings(max_examples=50)
@given(kernels(condition=100), st.sampled_from([0.0, 0.1, 0.5, 0.95]))
def test_with_momentum_no_other_rate_is_faster_and_the_last_stable_one_is_where_the_docstring_says(
    kernel, momentum
):
    matrix, _ = kernel
    _, high = extreme_eigenvalues(matrix)
    rate, rounding = (
        mt.largest_rate(matrix, momentum),
        1e-6,
    )  # a double root moves by the root of its rounding
    best = factor(matrix, rate, momentum)
    assert best < 1
    for other in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        assert factor(matrix, other * rate, momentum) > best - rounding
    last = 2 * (1 + momentum) / high
    assert factor(matrix, 0.99 * last, momentum) < 1 < factor(matrix, 1.01 * last, momentum)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_network_trains_below_the_last_stable_rate_and_not_above(momentum):
    """The linear network w · x, by the training code itself."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    one = mt.Task(x, torch.ones(2, 1).double(), x, torch.ones(2, 1).double())
    model, params = mt.from_module(torch.nn.Linear(2, 1, bias=False).double())
    inner = mt.InnerLoop(lam0=0.0)
    kernel = mt.meta_ntk(model, [one], dynamics=inner.dynamics, params=params)
    last = 2 * (1 + momentum) / extreme_eigenvalues(kernel)[1]

    def losses(rate):
        return mt.train(
            model, params, [one], inner, rate, 150, optimiser=mt.Optimiser(momentum=momentum)
        ).losses()

    at_best, near_last = losses(mt.largest_rate(kernel, momentum)), losses(0.98 * last)
    assert at_best[-1] < 1e-3 * at_best[0]
    assert at_best[-1] < near_last[-1] < near_last[0]
    with pytest.raises(ValueRangeError, match=r"largest_rate\(meta_ntk"):
        losses(1.2 * last)


@pytest.mark.parametrize("spectrum", [[0.0, 0.0], [-1.0, -0.5], [-1.0, 1.0]])
def test_no_rate_is_given_for_a_kernel_that_is_zero_or_indefinite(spectrum):
    with pytest.raises(SingularKernelError, match="positive semi-definite"):
        mt.largest_rate(with_spectrum(spectrum))
    assert mt.largest_rate(with_spectrum([0.0, 4.0])) == pytest.approx(0.5)


@pytest.mark.parametrize("momentum", [-0.1, 1.0, float("nan")])
def test_momentum_out_of_range_is_refused(momentum):
    with pytest.raises(ValueRangeError, match="momentum"):
        mt.largest_rate(with_spectrum([1.0, 2.0]), momentum)


LOOPS = {
    "maml": mt.InnerLoop(0.1),
    "anil": mt.InnerLoop(0.1, algorithm="anil"),
    "boil": mt.InnerLoop(0.1, select=lambda name: not name.startswith("2")),
    "meta-sgd": mt.InnerLoop(0.1, factors={"0.weight": 2.0}),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_inner_rate_contracts_the_support_residual_of_every_task_most_at_the_worst_task(name):
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    tasks = [task(index=i, d=3, k=2) for i in range(3)]
    rate = mt.largest_inner_rate(network, tasks, LOOPS[name])
    supports = [mt.adaptation_ntk(network, LOOPS[name], each.support_x) for each in tasks]
    assert rate == pytest.approx(min(2 / sum(extreme_eigenvalues(kernel)) for kernel in supports), rel=1e-12)
    assert all(contraction(kernel, rate) < 1 for kernel in supports)
