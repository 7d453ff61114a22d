"""Errata of the paper's statements about scale, convergence and contraction, and of what carries over to ANIL.

Each test shows that the printed form fails by a margin and that the corrected one holds. (Labels, shapes and positive
definiteness: ``test_errata_kernels``; arithmetic and Algorithm 1: ``test_errata_numbers``.)
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
    Task,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    condition_number,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    generator,
    joint_inputs,
    linearised,
    meta_ntk,
    meta_ntk_from_ntk,
    meta_output,
    meta_outputs,
    residual_operator,
    train,
)
from mamltheory.bounds import extreme_eigenvalues, largest_rate
from mamltheory.kernels.empirical_meta import stacked_meta_jacobian
from mamltheory.kernels.meta import adaptation_matrix
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.strategies import seeds

ROUNDING = 1 + 1e-9
WIDTHS = (5, 40, 64)
few = settings(max_examples=25)


def matrix(rows):
    return torch.cat([value.flatten(1) for value in rows.values()], dim=1)


def task_of(query_x, support_x):
    return Task(
        query_x, torch.ones(len(query_x), 1).double(), support_x, torch.ones(len(support_x), 1).double()
    )


# --- Scale: learning rates, time and the factor 1/l ---


@pytest.mark.paper(
    "Eq. (7)", "Eq. (8)", "Eq. (95)", "Eq. (96)", "Eq. (100)", "Eq. (101)", "Eq. (102)", corrected=True
)
@pytest.mark.erratum("E8")
@pytest.mark.parametrize("width", WIDTHS)
def test_one_meta_step_moves_the_outputs_width_times_as_far_as_the_printed_equation(width, measured):
    """With 1/l in Φ̂ and η = η0/l the equation is dF/dt = −η l Φ̂ (F − 𝒴): the printed exponents lack the factor l."""
    net = FullyConnected(4, width, 2, 1)
    params, tasks, test_tasks = start(net), make_tasks(net, 2), make_tasks(net, 1, seed=1)
    inner, model = InnerLoop(0.3, 2), net.model
    phi = meta_ntk(model, tasks, "maml", inner.dynamics, params=params)
    eta0 = 0.3 * largest_rate(phi)
    seen = train(linearised(model, params), params, tasks, inner, eta0, 1, test_tasks).observations
    moved = seen[1].outputs - seen[0].outputs
    printed = -(eta0 / width) * phi @ (seen[0].outputs - query_labels(tasks))
    assert relative(moved, width * printed) < EXACT
    measured(
        "step over the printed step, divided by l, less 1",
        abs(moved.norm() / printed.norm() / width - 1),
        below=1e-9,
    )
    joint = meta_ntk(model, (*tasks, *test_tasks), "maml", inner.dynamics, params=params)
    rows = joint[len(phi) :, : len(phi)]
    step = (eta0 / width) * rows @ (query_labels(tasks) - seen[0].outputs)
    assert relative(seen[1].test_outputs - seen[0].test_outputs, width * step) < EXACT


@pytest.mark.paper("Eq. (13)", "Eq. (58)", "Eq. (88)", "Eq. (104)", corrected=True)
@pytest.mark.paper("Eq. (84)", corrected=True)
@pytest.mark.erratum("E8", "E15")
@pytest.mark.parametrize("width", WIDTHS)
def test_adaptation_runs_for_the_time_lambda_times_width_times_tau_and_against_the_residual(width, measured):
    """With the printed exponent λτΘ̂ next to nothing is learnt; with the sign of (84) all of it is unlearnt."""
    net, tau = FullyConnected(4, width, 2, 2), 3
    params, task = start(net), make_tasks(net, 1)[0]
    cross = empirical_ntk(net.model, task.query_x, task.support_x, params=params)
    support = empirical_ntk(net.model, task.support_x, params=params)
    lam0 = 0.5 / extreme_eigenvalues(support)[1]
    adapted = meta_output(linearised(net.model, params), params, task, InnerLoop(lam0, tau))
    f, f_support = (net.model(params, x).reshape(-1) for x in (task.query_x, task.support_x))
    residual = f_support - task.support_y.reshape(-1)

    def learnt(rate):
        return adaptation_matrix(cross, support, GradientDescent(rate, tau)) @ residual

    measured("error with λ0 τ in the exponent", relative(f - learnt(lam0), adapted), below=EXACT)
    missing = float((learnt(lam0 / width) - learnt(lam0)).norm() / learnt(lam0).norm())
    measured("share of the adaptation that the printed exponent misses", missing, above=1 - 2 / width)
    one_step = meta_output(linearised(net.model, params), params, task, InnerLoop(lam0, 1)) - f
    assert relative(one_step, -width * (lam0 / width) * cross @ residual) < EXACT
    wrong_sign = f + learnt(lam0)
    assert relative(wrong_sign - adapted, 2 * (f - adapted)) < EXACT
    excess = (wrong_sign - adapted).norm() / (f - adapted).norm()
    measured("error of (84) with its sign, in units of the adaptation", excess, above=1.9)


@pytest.mark.paper("Def. 1", "Eq. (9)", "Eq. (98)", corrected=True)
@pytest.mark.paper("Lemma 3", corrected=True)
@pytest.mark.erratum("E10")
@pytest.mark.parametrize("depth", [1, 2])
def test_without_one_over_the_width_the_kernels_grow_as_the_width(depth, measured):
    """∇f∇fᵀ and JJᵀ, as Definition 1 and Lemma 3 print them, have no limit: 16 times the width, 16 times the kernel."""
    norms, meta_norms = [], []
    for width in (64, 1024):
        net = FullyConnected(4, width, depth, 1)
        task, inner = make_tasks(net, 1), InnerLoop(0.2, 1)
        params = start(net)
        norms.append(float(empirical_ntk(net.model, task[0].query_x, params=params).norm()))
        meta_norms.append(float(empirical_meta_ntk(net.model, task, inner, params=params).norm()))
    for name, (narrow, wide) in zip(("Θ̂", "Φ̂"), (norms, meta_norms), strict=True):
        assert wide / narrow > 0.6
        measured(f"{name} at 16 times the width over {name}, with 1/l", wide / narrow, below=1.6)
        measured(f"{name} at 16 times the width over {name}, as printed", 16 * wide / narrow, above=9.5)


@pytest.mark.paper("Eq. (14)")
@pytest.mark.erratum("E36")
def test_the_condition_number_depends_on_the_scale_of_the_kernel_at_finite_time_or_with_a_ridge(measured):
    """λτ = 1 on 1000 Θ is λτ = 1000 on Θ: near convergence. Without ridge, λτ = ∞ alone is free of the scale."""
    net = FullyConnected(4, 64, 2, 1)
    tasks = make_tasks(net, 2)
    theta = analytic_ntk(net, joint_inputs(tasks))
    sizes = [(len(task.query_x), len(task.support_x)) for task in tasks]

    def condition(scale, how):
        return condition_number(meta_ntk_from_ntk(scale * theta, sizes, how))

    converged = [condition(scale, Converged()) for scale in (1.0, 10.0, 1000.0)]
    measured("the same at λτ = ∞", max(converged) / min(converged), below=1 + 1e-8)
    finite = [condition(scale, GradientFlow(1.0)) for scale in (1.0, 10.0, 1000.0)]
    measured("largest over least C_N at λτ = 1 for Θ, 10 Θ, 1000 Θ", max(finite) / min(finite), above=1.1)
    assert finite[1] == pytest.approx(condition(1.0, GradientFlow(10.0)), rel=1e-8)
    assert condition(1e-3, Converged(1e-3)) == pytest.approx(condition(1.0, Converged(1.0)), rel=1e-8)
    assert abs(condition(1.0, Converged(1.0)) / converged[0] - 1) > 0.1


@pytest.mark.paper("Eq. (112)")
@pytest.mark.erratum("E37")
def test_with_one_hidden_layer_maml_and_anil_have_one_kernel_in_the_limit_and_differ_by_one_over_the_width(
    measured,
):
    """The first layer's gradients do not grow with l: with one hidden layer, all of Θ is the last layer's."""

    def share(depth, width):
        net = FullyConnected(4, width, depth, 1)
        x = sphere(generator(0, "samples"), 5, 4)
        theta = analytic_ntk(net, x, finite_width=True)
        return float((theta - analytic_last_layer_ntk(net, x, finite_width=True)).norm() / theta.norm())

    net = FullyConnected(4, 64, 1, 1)
    tasks, how = make_tasks(net, 2), GradientFlow(2.0)
    deep = FullyConnected(4, 64, 2, 1)
    gaps = [
        relative(*(analytic_meta_ntk(some, tasks, name, how) for name in ("anil", "maml")))
        for some in (net, deep)
    ]
    measured("distance of the kernels of ANIL and MAML, L = 1", gaps[0], below=1e-13)
    measured("distance of the kernels of ANIL and MAML, L = 2", gaps[1], above=0.05)
    assert share(1, 10**4) == pytest.approx(share(1, 10**5) * 10, rel=1e-2)
    assert share(2, 10**4) == pytest.approx(share(2, 10**5), rel=1e-2) != pytest.approx(0, abs=0.1)


@pytest.mark.paper("Theorem 3", "Eq. (63)")
@pytest.mark.erratum("E38")
@pytest.mark.parametrize(("share", "contracts"), [(0.5, True), (1.9, True), (2.2, False)])
def test_the_bound_on_the_inner_rate_that_theorem_3_leaves_open_is_two_over_the_largest_eigenvalue(
    share, contracts, measured
):
    """Gradient flow contracts at every λ; τ steps do below 2/σ_max(Θ), and beyond it ‖J‖ grows with τ without end."""
    net = FullyConnected(4, 20, 2, 1)
    params, task = start(net), make_tasks(net, 1)[0]
    silent = Task(task.query_x, task.query_y, task.support_x, net.model(params, task.support_x))
    lam0 = share / extreme_eigenvalues(empirical_ntk(net.model, task.support_x, params=params))[1]

    def size(tau):
        return float(matrix(stacked_meta_jacobian(net.model, params, [silent], InnerLoop(lam0, tau))).norm())

    sizes = [size(tau) for tau in (0, 1, 20, 40)]
    assert (max(sizes) <= sizes[0] * ROUNDING) == contracts
    assert (sizes[3] > 20 * sizes[2] > 0) == (not contracts)
    bound = {"below": ROUNDING} if contracts else {"above": 20}
    measured(f"‖J‖ at τ = 40 over ‖J‖ at τ = 0, λ0 σ_max = {share}", sizes[3] / sizes[0], **bound)
    flow = meta_ntk(net.model, [task], "maml", GradientFlow(40 * lam0), params=params)
    assert float(flow.trace() * net.width) <= sizes[0] ** 2 * ROUNDING


# --- Where convergence and contraction fail ---


@pytest.mark.paper("Sec. 4.1: main proof ideas")
@pytest.mark.erratum("E32")
def test_at_the_origin_the_jacobian_has_rank_one_and_training_cannot_reach_zero_loss(measured):
    """A global minimum near *any* initialisation: near a random one with high probability, near θ = 0 there is none."""
    net = FullyConnected(4, 32, 2, 1)
    tasks, inner, random = make_tasks(net, 2), InnerLoop(0.1, 1), start(net)
    origin = {name: torch.zeros_like(value) for name, value in random.items()}
    ranks = [
        int(torch.linalg.matrix_rank(matrix(stacked_meta_jacobian(net.model, p, tasks, inner))))
        for p in (origin, random)
    ]
    assert ranks == [1, sum(len(task.query_x) for task in tasks)]
    measured("rank of J at the origin", ranks[0], below=2)
    measured("rank of J at random parameters", ranks[1], above=3)
    eta0 = 0.5 * largest_rate(empirical_meta_ntk(net.model, tasks, inner, params=random))
    from_origin, from_random = (train(net.model, p, tasks, inner, eta0, 80) for p in (origin, random))
    fall = from_random.losses()[-1] / from_random.losses()[0]
    measured("loss after 80 steps from random parameters, of its start", fall, below=0.1)
    # all networks on the way are constants, and no constant fits the labels of a task
    floor = sum(float((task.query_y - task.query_y.mean()).square().sum()) / 2 for task in tasks)
    assert floor > 0.1
    least = float(from_origin.losses().min())
    measured("least loss from the origin over that of the best constants", least / floor, above=0.999)
    trained = meta_outputs(net.model, from_origin.params, (tasks[0],), inner)
    assert float(trained.max() - trained.min()) == 0.0


@pytest.mark.paper("Eq. (63)", "Eq. (65)")
@pytest.mark.paper("App. D: ANIL")
@pytest.mark.erratum("E41")
@few
@given(seeds, st.sampled_from(["erf", "relu"]), st.integers(1, 3), st.sampled_from([0.3, 3.0, math.inf]))
def test_maml_contracts_the_jacobian_and_anil_is_bounded_by_its_adaptation_matrix(
    seed, activation, depth, time
):
    """φ_ii ⪯ Θ(X, X) for MAML. For ANIL ‖J‖ ≤ ‖∇f(X)‖ + ‖C‖ ‖∇f(X')‖ with ‖C‖ ≤ ‖𝒦(X, X')‖ min{λτ, 1/σ_min(𝒦)}."""
    net = FullyConnected(4, 8, depth, 1, activation, sigma_b=0.5)
    params, g = start(net, seed), generator(seed, "samples")
    task = task_of(sphere(g, 2, 4), sphere(g, 3, 4))
    how = Converged(1e-6) if math.isinf(time) else GradientFlow(time)
    theta = empirical_ntk(net.model, task.query_x, params=params)
    maml, anil = (meta_ntk(net.model, [task], name, how, params=params) for name in ("maml", "anil"))
    assert extreme_eigenvalues(theta - maml)[0] >= -1e-9 * float(theta.norm())
    cross = empirical_last_layer_ntk(net.model, task.query_x, task.support_x, params=params)
    last = empirical_last_layer_ntk(net.model, task.support_x, params=params)
    c = float(torch.linalg.matrix_norm(adaptation_matrix(cross, last, how), 2))
    least = max(extreme_eigenvalues(last)[0], 0.0) + (1e-6 if math.isinf(time) else 0.0)
    assert c <= float(torch.linalg.matrix_norm(cross, 2)) * min(time, 1 / least) * (1 + 1e-6)
    support = empirical_ntk(net.model, task.support_x, params=params)
    assert (
        float(anil.trace()) ** 0.5
        <= (float(theta.trace()) ** 0.5 + c * float(support.trace()) ** 0.5) * ROUNDING
    )


@pytest.mark.paper("App. D: ANIL")
@pytest.mark.erratum("E41")
def test_anil_does_not_contract_the_jacobian_where_supports_nearly_coincide(measured):
    """C is a projection in the last layer's coordinates alone: with 𝒦 near singular, φ is many times Θ(X, X)."""
    net = FullyConnected(4, 64, 3, 1, "relu", sigma_w=2**0.5, sigma_b=0.0)

    def tasks_and_query(gap):
        angles = torch.tensor([0.0, 1.0, 1.0 + gap], dtype=torch.float64)
        x = torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles], 1)
        return [task_of(x[:1], x[1:])], x[:1]

    for gap, excess in ((0.01, 6.0), (0.001, 60.0)):
        tasks, query = tasks_and_query(gap)
        theta = float(analytic_ntk(net, query))
        maml, anil = (float(analytic_meta_ntk(net, tasks, name, Converged())) for name in ("maml", "anil"))
        assert maml / theta < 1
        measured("‖J‖²/‖∇f‖² of ANIL", anil / theta, above=excess)
    tasks, query = tasks_and_query(0.1)
    shares = []
    for seed in range(30):  # real networks scatter widely, but MAML contracts all of them and ANIL does not
        params = start(net, seed)
        theta = float(empirical_ntk(net.model, query, params=params))
        pair = (meta_ntk(net.model, tasks, name, Converged(), params=params) for name in ("maml", "anil"))
        shares.append([float(phi) / theta for phi in pair])
    measured("largest ‖J‖²/‖∇f‖² of MAML over 30 networks", max(one for one, _ in shares), below=1)
    measured("largest ‖J‖²/‖∇f‖² of ANIL over 30 networks", max(two for _, two in shares), above=1.2)


@pytest.mark.paper("Eq. (62)", "Eq. (63)")
def test_the_contraction_of_equation_63_is_that_of_the_residual_on_the_support_samples():
    """On X = X' the kernel is Θ e^{−2λτΘ}: ∇F = e^{−λτΘ} ∇f."""
    net = FullyConnected(4, 64, 2, 1)
    x = sphere(generator(0, "samples"), 3, 4)
    theta, how = analytic_ntk(net, x), GradientFlow(2.0)
    left = residual_operator(theta, how)
    assert relative(analytic_meta_ntk(net, [task_of(x, x)], "maml", how), left @ theta @ left) < EXACT
