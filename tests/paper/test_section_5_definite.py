"""Footnote 4 and Assumption 2: when the MetaNTK is positive definite.

Let D be the distinct samples of all tasks and P the matrix of zeros and ones that copies them to the places X_1, X'_1,
X_2, X'_2, …. Then Θ over these places is P Θ_D Pᵀ, and

    Φ = A Θ Aᵀ = (AP) Θ_D (AP)ᵀ.

Proposition. If Θ_D > 0, then Φ > 0 if, and only if, AP has full row rank, and σ_min(Φ) ≥ σ_min(Θ_D) s² with the least
singular value s of AP. If no query occurs at a second place, in its own task or in any other, then s ≥ 1.

Proof. vᵀΦv ≥ σ_min(Θ_D) ‖(AP)ᵀv‖², and vᵀΦv = 0 if, and only if, (AP)ᵀv = 0, for Θ_D > 0. If every query occurs
once, the columns of AP that belong to queries are those of the identity, as A_i = [I, −C_i]; with the other columns
−C' it is (AP)(AP)ᵀ = I + C'C'ᵀ ≥ I. ∎

For ANIL, A is made of 𝒦 and the proof is the same. That the samples of each task are distinct among themselves is not
enough: two tasks with the same supports give a query that they share the same row twice.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    meta_ntk,
    meta_ntk_from_ntk,
)
from mamltheory.errors import SingularKernelError
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.kernels.meta import composition, joint_sizes, joint_slices
from mamltheory.linalg import condition_number
from tests.paper.cases import ROUNDING, make_tasks, sphere, start, task_of
from tests.strategies import dynamics, kernels, seeds


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


TIMES = (GradientDescent(0.3, 1), GradientFlow(0.3), GradientFlow(1.0), GradientFlow(10.0), Converged())


@pytest.mark.paper("fn. 4", "Assumption 2", corrected=True)
@pytest.mark.erratum("E25", "E26")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_a_query_of_two_tasks_with_the_same_supports_makes_the_kernel_singular_at_every_time(
    activation, algorithm, measured
):
    """T_1 = ({a, b}, {s, t}) and T_2 = ({a, c}, {t, s}): all sets differ, and no task has a sample twice."""
    net = FullyConnected(4, 64, 2, 1, activation)
    a, b, c, s, t = x = sphere(generator(0, "samples"), 5, 4)
    tasks = [
        task_of(torch.stack([a, b]), torch.stack([s, t])),
        task_of(torch.stack([a, c]), torch.stack([t, s])),
    ]
    params = start(net)
    thetas = analytic_ntk(net, x), empirical_ntk(net.model, x, params=params)
    measured("σ_min/σ_max of Θ on the five samples", min(map(least_share, thetas)), above=0.03)
    apart = [tasks[0], task_of(c[None], torch.stack([t, s]))]
    for how in TIMES:
        shares = [
            least_share(analytic_meta_ntk(net, tasks, algorithm, how)),
            least_share(meta_ntk(net.model, tasks, algorithm, how, params=params)),
        ]
        measured("|σ_min|/σ_max of Φ and Φ̂ at every time", max(map(abs, shares)), below=1e-14)
        alone = least_share(analytic_meta_ntk(net, apart, algorithm, how))
        measured("σ_min/σ_max of Φ with a in one task alone", alone, above=1e-3)
    real = empirical_meta_ntk(net.model, tasks, InnerLoop(0.3, 3, algorithm), params=params)
    measured("|σ_min|/σ_max of JJᵀ/l, three inner steps", abs(least_share(real)), below=1e-14)


def random_tasks(pool, seed):
    """Two or three tasks of samples of the pool, a support not twice in a task; every fourth set has unique queries."""
    g, tasks = generator(seed, "tasks"), []
    order = torch.randperm(len(pool), generator=g)
    for i in range(2 + seed % 2):
        n, m = (1 + int(torch.randint(2, (), generator=g)) for _ in range(2))
        queries = order[2 * i : 2 * i + n] if seed % 4 == 0 else torch.randint(len(pool), (n,), generator=g)
        others = order[6:] if seed % 4 == 0 else order
        supports = others[torch.randperm(len(others), generator=g)[:m]]
        tasks.append(task_of(pool[queries], pool[supports]))
    return tasks


@pytest.mark.paper("fn. 4", "Assumption 2", corrected=True)
@pytest.mark.erratum("E25", "E26")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize("how", [GradientFlow(1.0), Converged()], ids=["flow", "converged"])
def test_the_metantk_is_definite_if_and_only_if_a_has_full_row_rank_over_the_distinct_samples(
    how, algorithm, measured
):
    """80 random sets of tasks over eight samples, of both kinds."""
    net, pool = FullyConnected(4, 64, 2, 1), sphere(generator(0, "samples"), 8, 4)
    kernel, last = analytic_ntk(net, pool), analytic_last_layer_ntk(net, pool)
    verdicts = []
    for seed in range(80):
        tasks = random_tasks(pool, seed)
        copies = (joint_inputs(tasks)[:, None] == pool).all(-1).double()
        theta, moving = (copies @ one @ copies.T for one in (kernel, last if algorithm == "anil" else kernel))
        sizes = joint_sizes(theta, tasks)
        rows = composition(moving, sizes, how) @ copies
        phi = meta_ntk_from_ntk(theta, sizes, how, moving)
        full = int(torch.linalg.matrix_rank(rows, rtol=1e-10)) == len(rows)
        assert (least_share(phi) > 1e-11) == full
        queries = torch.cat([copies[part] for part, _ in joint_slices(sizes)]).sum(0) > 0
        once = bool((copies.sum(0)[queries] == 1).all())
        verdicts.append((full, once))
        if full:
            s = float(torch.linalg.svdvals(rows)[-1])
            bound = extreme_eigenvalues(kernel)[0] * s**2
            measured("σ_min(Θ_D) s²/σ_min(Φ)", bound / extreme_eigenvalues(phi)[0], below=ROUNDING)
        if once:
            measured("s where every query occurs once", s, above=1 - 1e-12)
    measured("definite sets of tasks of 80", sum(full for full, _ in verdicts), above=19)
    measured("singular sets of tasks of 80", sum(not full for full, _ in verdicts), above=9)
    measured("sets of tasks in which every query occurs once", sum(once for _, once in verdicts), above=9)
