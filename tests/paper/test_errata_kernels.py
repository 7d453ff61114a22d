"""Errata about the MetaNTK as a kernel: the labels it depends on, its shape and symmetry, and when it is definite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    Converged,
    FullyConnected,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    condition_number,
    empirical_meta_ntk,
    generator,
    meta_ntk_from_ntk,
    time_operator,
)
from mamltheory.bounds import extreme_eigenvalues
from mamltheory.errors import SingularKernelError
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.strategies import dynamics, kernels, seeds


def task_of(query_x, support_x):
    return Task(
        query_x, torch.ones(len(query_x), 1).double(), support_x, torch.ones(len(support_x), 1).double()
    )


# --- Labels and shapes ---


@pytest.mark.paper("Remarks after Theorem 2", corrected=True)
@pytest.mark.erratum("E18")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_the_metantk_moves_with_support_labels_and_not_at_all_with_query_labels(algorithm, measured):
    net = FullyConnected(4, 8, 2, 1)
    params, task, inner = start(net), make_tasks(net, 1)[0], InnerLoop(0.3, 2, algorithm)

    def kernel(query_shift, support_shift):
        moved = Task(task.query_x, task.query_y + query_shift, task.support_x, task.support_y + support_shift)
        return empirical_meta_ntk(net.model, [moved], inner, params=params)

    assert torch.equal(kernel(1.0, 0.0), kernel(0.0, 0.0))
    still = relative(kernel(1.0, 0.0), kernel(0.0, 0.0))
    measured("change of Φ̂ with the query labels", still, below=1e-15)
    measured("change of Φ̂ with the support labels", relative(kernel(0.0, 1.0), kernel(0.0, 0.0)), above=0.01)


def equation_11(theta, tasks, i, j, how, first_factor):
    """Block (i, j) of Eq. (11), its last term with Θ(first_factor, X'_j) in front."""

    def c(a, b):
        return theta(a, b) @ time_operator(theta(b, b), how)

    x, s, y, r = tasks[i].query_x, tasks[i].support_x, tasks[j].query_x, tasks[j].support_x
    front = {"·": x, "⋆": r, "∗": s}[first_factor]
    return theta(x, y) + c(x, s) @ theta(s, r) @ c(y, r).T - c(x, s) @ theta(s, y) - c(front, r) @ theta(r, y)


@pytest.mark.paper("Def. 2", "Eq. (11)", corrected=True)
@pytest.mark.paper("Eq. (92)", "Eq. (106)")
@pytest.mark.erratum("E23")
@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("reading", ["⋆", "∗"])
def test_the_last_term_of_equation_11_begins_with_the_query_samples(activation, reading, measured):
    """Θ(⋆, ⋆), as printed, has m rows where n are needed, and leaves the kernel asymmetric for m = n."""
    net, how = FullyConnected(4, 64, 2, 1, activation), GradientFlow(1.0)
    uneven = make_tasks(net, 1, n=2, m=3)

    def theta(a, b):
        return analytic_ntk(net, a, b)

    def kernel(tasks, first):
        blocks = [
            [equation_11(theta, tasks, i, j, how, first) for j in range(len(tasks))]
            for i in range(len(tasks))
        ]
        return torch.cat([torch.cat(row, 1) for row in blocks])

    with pytest.raises(RuntimeError, match="size"):
        kernel(uneven, reading)
    g = generator(1, "even tasks")
    even = [
        Task(sphere(g, 2, 4), torch.ones(2, 1).double(), sphere(g, 2, 4), torch.ones(2, 1).double())
        for _ in "ab"
    ]
    for tasks in (uneven, even):
        assert relative(kernel(tasks, "·"), analytic_meta_ntk(net, tasks, "maml", how)) < EXACT
    printed = kernel(even, reading)
    measured("asymmetry of the printed kernel", relative(printed, printed.T), above=0.02)
    assert relative(printed, kernel(even, "·")) > 0.1


# --- Positive definiteness ---


@pytest.mark.paper("fn. 4")
@pytest.mark.erratum("E26")
@settings(max_examples=50)
@given(kernels(condition=1e3, largest_size=8), dynamics(), st.booleans(), seeds)
def test_the_metantk_is_as_definite_as_the_joint_ntk_for_maml_and_anil_with_or_without_ridge(
    kernel, how, anil, seed
):
    """σ_min(A Θ Aᵀ) ≥ σ_min(Θ), for A = [I, −C] has A Aᵀ = I + C Cᵀ: Θ over all samples jointly must be definite."""
    theta, s = kernel
    theta = theta / s.max()
    query = 1 + seed % len(theta)
    adaptation = theta @ theta if anil else None  # any other positive definite kernel
    phi = (
        meta_ntk_from_ntk(theta, [(query, len(theta) - query)], how, adaptation)
        if query < len(theta)
        else theta
    )
    assert extreme_eigenvalues(phi)[0] >= extreme_eigenvalues(theta)[0] * (1 - 1e-9) - 1e-13


def least_share(phi):
    low, high = extreme_eigenvalues(phi)
    return low / high


@pytest.mark.paper("fn. 4", "Eq. (48)")
@pytest.mark.paper("Assumption 2", corrected=True)
@pytest.mark.erratum("E25", "E26")
def test_distinct_sets_may_share_samples_and_then_the_kernels_are_singular_at_infinite_time(measured):
    """Assumption 2 forbids equal sets, not equal samples: a query in the support, or a support sample twice."""
    net, x = FullyConnected(4, 64, 2, 1), sphere(generator(0, "samples"), 5, 4)
    shared = [task_of(x[:2], x[1:4])]
    values = [least_share(analytic_meta_ntk(net, shared, "maml", GradientFlow(t))) for t in (1.0, 10.0)]
    converged = analytic_meta_ntk(net, shared, "maml", Converged())
    assert values[0] > 0.1 > 0.01 > values[1] > 1e-3
    measured(
        "|σ_min|/σ_max of Φ at λτ = ∞, a query among the supports", abs(least_share(converged)), below=1e-12
    )
    assert condition_number(converged) == math.inf
    apart = least_share(analytic_meta_ntk(net, [task_of(x[:2], x[2:])], "maml", Converged()))
    measured("σ_min/σ_max of Φ at λτ = ∞, samples apart", apart, above=1e-3)
    twice = [task_of(x[:2], x[[2, 3, 3]])]
    with pytest.raises(SingularKernelError, match="duplicate"):  # Θ(X', X')⁻¹ of (48) does not exist
        analytic_meta_ntk(net, twice, "maml", Converged())
    assert least_share(analytic_meta_ntk(net, twice, "maml", GradientFlow(1.0))) > 1e-3
    assert least_share(analytic_meta_ntk(net, twice, "maml", Converged(1e-3))) > 1e-3


@pytest.mark.paper("fn. 4")
@pytest.mark.paper("Assumption 2", corrected=True)
@pytest.mark.erratum("E25", "E26")
@pytest.mark.parametrize(("activation", "factor"), [("erf", -1.0), ("tanh", -1.0), ("relu", 0.5)])
def test_without_biases_antipodal_or_parallel_samples_make_the_kernel_singular(activation, factor):
    """Odd activations cannot tell x from −x, nor ReLU x from x/2; a bias does, so distinctness is not enough."""
    x = sphere(generator(0, "samples"), 5, 4)
    query = torch.stack([x[0], factor * x[0]])
    for sigma_b, definite in ((0.0, False), (0.5, True)):
        net = FullyConnected(4, 64, 2, 1, activation, sigma_b=sigma_b)
        for algorithm in ("maml", "anil"):
            phi = analytic_meta_ntk(net, [task_of(query, x[2:])], algorithm, GradientFlow(1.0))
            assert least_share(phi) > -1e-14
            assert (least_share(phi) > 1e-5) == definite
            assert (abs(least_share(phi)) < 1e-8) == (not definite)


@pytest.mark.paper("fn. 4")
@pytest.mark.erratum("E26")
def test_the_empirical_metantk_of_a_network_with_fewer_parameters_than_outputs_is_singular():
    net = FullyConnected(2, 2, 1, 1)
    params, tasks = start(net), make_tasks(net, 4, n=3)
    parameters, outputs = sum(p.numel() for p in params.values()), sum(len(t.query_x) for t in tasks)
    phi = empirical_meta_ntk(net.model, tasks, InnerLoop(0.1, 1), params=params)
    assert parameters == 9 < outputs == len(phi) == 14
    assert int(torch.linalg.matrix_rank(phi, hermitian=True)) <= parameters
    assert condition_number(phi) == math.inf


@pytest.mark.paper("Eq. (48)")
@pytest.mark.paper("App. B.4: spectrum", corrected=True)
@pytest.mark.erratum("E27")
@pytest.mark.parametrize(("sigma_w2", "value"), [(2.0, 16.0), (4.0, 16 * 2.0**16), (1.0, 16 * 2.0**-16)])
def test_the_ntk_grows_linearly_in_the_depth_only_at_the_critical_variance(sigma_w2, value, measured):
    """Θ_xx = L (σ_w²/2)^L |x|²/d for ReLU: O(L) is the case σ_w² = 2; at fixed depth a constant is all that is used."""
    x = 2 * sphere(generator(0, "samples"), 1, 4)  # |x|² = d
    for depth in (1, 4, 16):
        net = FullyConnected(4, 64, depth, 1, "relu", sigma_w=sigma_w2**0.5, sigma_b=0.0)
        assert float(analytic_ntk(net, x)) == pytest.approx(depth * (sigma_w2 / 2) ** depth, rel=1e-10)
    assert float(analytic_ntk(net, x)) == pytest.approx(value, rel=1e-10)
    bound = {1.0: {"below": 1e-4}, 2.0: {"below": 1 + 1e-10}, 4.0: {"above": 1e4}}[sigma_w2]
    measured(f"Θ_xx over L at L = 16, σ_w² = {sigma_w2:g}", float(analytic_ntk(net, x)) / 16, **bound)
