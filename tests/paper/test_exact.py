"""Identities of the paper that hold at every width, depth, activation and time: float64, no randomness to hide in.

Two devices make asymptotic statements exact. With support labels Y' = f_{θ0}(X') the inner residual vanishes, the
inner Hessian is ∇fᵀ∇f exactly, and the Jacobian of the *real* MAML is Eq. (59)'s main term. With the network
linearised around θ0 the kernels are constant, and training follows the closed form exactly.
"""

import pytest
import torch

from mamltheory import (
    Converged,
    GradientDescent,
    GradientFlow,
    InnerLoop,
    Task,
    analytic_meta_ntk,
    analytic_ntk,
    empirical_last_layer_ntk,
    empirical_meta_ntk,
    empirical_ntk,
    joint_inputs,
    kernel_regression,
    linearised,
    meta_gradient,
    meta_ntk,
    meta_ntk_from_ntk,
    meta_output,
    train,
)
from mamltheory.factored.meta_ntk import factored_meta_ntk
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.kernels.empirical_meta import meta_jacobian
from mamltheory.kernels.meta import adaptation_matrix
from mamltheory.predictors import adapted_output
from mamltheory.rates import largest_rate
from tests.paper.cases import EXACT, cases, make_tasks, name, relative, start
from tests.reference import closed_forms
from tests.reference.dense import Dense, flatten

PARTS = ("net", "algorithm", "tau")
every_network = pytest.mark.parametrize(("net", "tau"), [(n, t) for n, _, t in cases(("maml",))], ids=name)
every_case = pytest.mark.parametrize(PARTS, cases(), ids=name)
maml_case = pytest.mark.parametrize(PARTS, cases(("maml",)), ids=name)
three_steps = pytest.mark.parametrize(PARTS, cases(steps=(3,)), ids=name)
small_case = pytest.mark.parametrize(
    PARTS, cases(largest=50), ids=name
)  # where a dense Hessian is affordable


def inner_loop(net, tasks, params, algorithm, tau):
    """λ0 at half of 1/σ_max of the support kernels: stable, and far from both 0 and ∞."""
    top = max(extreme_eigenvalues(empirical_ntk(net.model, t.support_x, params=params))[1] for t in tasks)
    return InnerLoop(0.5 / top, tau, algorithm)


def without_residual(net, params, tasks):
    return tuple(Task(t.query_x, t.query_y, t.support_x, net.model(params, t.support_x)) for t in tasks)


def kernels(dense, algorithm):
    def theta(x1, x2):
        return dense.ntk(x1, x2)

    def adapt(x1, x2):
        return dense.ntk(x1, x2, head_only=algorithm == "anil")

    return theta, adapt


@pytest.mark.paper("Eq. (59)", "Eq. (90)", "Eq. (106)", "Eq. (112)", corrected=True)
@every_case
def test_without_support_residual_the_real_metantk_is_the_composite_kernel(net, algorithm, tau, measured):
    """With (I − λ0 Θ)^τ for τ real steps; the printed e^{−λ0 τ Θ} is its limit τ → ∞ at fixed λ0 τ."""
    params, tasks = start(net), make_tasks(net, 3)
    inner = inner_loop(net, tasks, params, algorithm, tau)
    silent = without_residual(net, params, tasks)
    real = empirical_meta_ntk(net.model, silent, inner, params=params)
    by_terms = closed_forms.phi(*kernels(Dense(net, params), algorithm), silent, silent, inner.dynamics)
    composed = meta_ntk(net.model, silent, algorithm, inner.dynamics, params=params)
    measured("error", relative(real, by_terms), below=EXACT)
    measured("error", relative(composed, by_terms), below=EXACT)
    printed = meta_ntk(net.model, silent, algorithm, GradientFlow(inner.lam0 * tau), params=params)
    measured("error of the printed form", relative(printed, real), above=1e-4)


@pytest.mark.paper("Eq. (60)")
@pytest.mark.paper("Eq. (61)", "Eq. (62)", corrected=True)
@maml_case
def test_without_support_residual_the_jacobian_is_a_power_of_the_hessian(net, algorithm, tau, measured):
    """J = ∇f(X)(I − λ0 H)^τ with H = ∇fᵀ∇f/l; by the SVD of ∇f it holds Σ², where Eq. (61) prints Σ."""
    params, task = start(net), make_tasks(net, 1)[0]
    inner = inner_loop(net, (task,), params, algorithm, tau)
    (silent,) = without_residual(net, params, (task,))
    dense = Dense(net, params)
    support = dense.jacobian(dense.theta0, silent.support_x) / dense.scale**0.5
    query = dense.jacobian(dense.theta0, silent.query_x)
    _, s, vt = torch.linalg.svd(support, full_matrices=False)

    def through_svd(spectrum):
        return query - query @ vt.T @ torch.diag(1 - (1 - inner.lam0 * spectrum) ** tau) @ vt

    rows = meta_jacobian(net.model, params, silent, inner)
    rows = torch.cat([rows[part].flatten(1) for part in params], dim=1)
    measured("error", relative(through_svd(s**2), rows), below=EXACT)
    measured("error of the printed form", relative(through_svd(s), rows), above=1e-3)


@pytest.mark.paper("Eq. (109)", "Corollary 3.1", corrected=True)
@pytest.mark.paper("Eq. (8)", "Eq. (95)", "Eq. (96)", "Eq. (101)", "Eq. (102)", "Eq. (108)", corrected=True)
@three_steps
def test_the_linearised_network_trains_along_the_closed_form(net, algorithm, tau, measured):
    """With (I − η0 Φ)^t for t steps of gradient descent; the printed e^{−η0 Φ t} is the limit η0 → 0."""
    params, tasks, test_tasks = start(net), make_tasks(net, 2), make_tasks(net, 2, seed=1)
    inner = inner_loop(net, (*tasks, *test_tasks), params, algorithm, tau)
    model, x = net.model, joint_inputs((*tasks, *test_tasks))
    eta0 = 0.9 * largest_rate(meta_ntk(model, tasks, algorithm, inner.dynamics, params=params))
    record = train(linearised(model, params), params, tasks, inner, eta0, 6, test_tasks)
    theta = empirical_ntk(model, x, params=params)
    last = empirical_last_layer_ntk(model, x, params=params) if algorithm == "anil" else None
    dense = Dense(net, params)

    def f(samples):
        return dense.f(dense.theta0, samples).reshape(len(samples), -1)

    for t in (1, 3, 6):
        outer = GradientDescent(eta0, t)
        closed = kernel_regression(
            theta, tasks, test_tasks, inner.dynamics, outer, last, model(params, x).reshape(-1)
        )
        measured("error", relative(record.observations[t].outputs, closed.train), below=EXACT)
        measured("error", relative(record.observations[t].test_outputs, closed.test), below=EXACT)
        by_terms = closed_forms.trained(
            f, *kernels(dense, algorithm), tasks, test_tasks[0], inner.dynamics, outer
        )
        measured(
            "error", relative(closed.test[: len(by_terms)], by_terms), below=1e-8
        )  # the twin inverts a kernel explicitly
    f0 = model(params, x).reshape(-1)
    printed = kernel_regression(theta, tasks, test_tasks, inner.dynamics, GradientFlow(eta0), last, f0)
    measured("error of the printed form", relative(record.observations[1].outputs, printed.train), above=1e-3)
    measured(
        "error of the printed form", relative(record.observations[1].test_outputs, printed.test), above=1e-3
    )


@pytest.mark.paper("Eq. (58)", "Eq. (88)")
@pytest.mark.paper("Eq. (84)", corrected=True)
@every_case
def test_anil_adapts_the_real_network_exactly_as_its_last_layer_kernel_says(net, algorithm, tau, measured):
    """F = f(X) − 𝒦̂ T(𝒦̂)(f(X') − Y'), with the minus that Eq. (84) lacks."""
    params, task = start(net), make_tasks(net, 1)[0]
    inner = inner_loop(net, (task,), params, "anil", tau)
    model = net.model if algorithm == "maml" else linearised(net.model, params)
    query_support = empirical_last_layer_ntk(net.model, task.query_x, task.support_x, params=params)
    support = empirical_last_layer_ntk(net.model, task.support_x, params=params)
    f_query, f_support = (net.model(params, x).reshape(-1) for x in (task.query_x, task.support_x))
    closed = adapted_output(
        query_support, support, task.support_y.reshape(-1), inner.dynamics, f_query, f_support
    )
    measured("error", relative(meta_output(model, params, task, inner), closed), below=EXACT)
    printed = f_query + adaptation_matrix(query_support, support, inner.dynamics) @ (
        f_support - task.support_y.reshape(-1)
    )
    measured(
        "error of the printed form", relative(meta_output(model, params, task, inner), printed), above=1e-3
    )


@pytest.mark.paper("Eq. (2)", "Eq. (83)", "Eq. (97)", "Alg. 1 (MAML)")
@pytest.mark.paper("Eq. (1)", "Eq. (3)", corrected=True)
@small_case
def test_the_meta_gradient_has_the_hessian_of_equation_3(net, algorithm, tau, measured):
    """With the step size λ before gradient and Hessian, which Eqs. (1) and (3) leave out."""
    params, tasks = start(net), make_tasks(net, 2)
    inner = inner_loop(net, tasks, params, algorithm, tau)
    dense = Dense(net, params)
    expected = dense.meta_gradient(tasks, inner)
    adapted = torch.cat([dense.meta_output(task, inner) for task in tasks])
    for method in ("factored", "generic"):
        gradient, outputs = meta_gradient(net.model, params, tasks, inner, method)
        measured("error", relative(flatten(gradient), expected), below=EXACT)
        measured("error", relative(outputs, adapted), below=EXACT)
        record = train(net.model, params, tasks, inner, eta0=0.1, steps=1, method=method)
        step = flatten(params) - flatten(record.params)
        measured("error", relative(step, 0.1 / dense.scale * expected), below=EXACT)
    first_order, _ = meta_gradient(
        net.model, params, tasks, InnerLoop(inner.lam0, tau, algorithm, first_order=True)
    )
    measured(
        "distance of the first-order gradient", relative(flatten(first_order), flatten(gradient)), above=1e-3
    )
    unscaled = InnerLoop(dense.scale, tau, algorithm)  # λ = 1, as Eqs. (1) and (3) print
    measured(
        "error of the printed form",
        relative(dense.meta_gradient(tasks, unscaled), flatten(gradient)),
        above=1e-2,
    )


@pytest.mark.paper("Eq. (4)", "Eq. (24)", "Eq. (22)")
@small_case
def test_the_empirical_metantk_is_the_gram_of_the_dense_meta_jacobian(net, algorithm, tau):
    params, tasks = start(net), make_tasks(net, 2)
    inner = inner_loop(net, tasks, params, algorithm, tau)
    dense = Dense(net, params)
    rows = torch.cat([dense.meta_jacobian(task, inner) for task in tasks])
    expected = rows @ rows.T / dense.scale
    whole = empirical_meta_ntk(net.model, tasks, inner, params=params, method="generic")
    assert relative(whole, expected) < EXACT
    assert relative(factored_meta_ntk(net, params, tasks, inner) / dense.scale, expected) < EXACT


@pytest.mark.paper("Remarks after Theorem 2", corrected=True)
@every_case
def test_the_empirical_metantk_depends_on_support_labels_and_never_on_query_labels(
    net, algorithm, tau, measured
):
    """The remarks say that it depends on both; it cannot depend on the labels of the queries."""
    params, tasks = start(net), make_tasks(net, 2)
    inner = inner_loop(net, tasks, params, algorithm, tau)
    kernel = empirical_meta_ntk(net.model, tasks, inner, params=params)
    other_query = [Task(t.query_x, t.query_y + 1, t.support_x, t.support_y) for t in tasks]
    other_support = [Task(t.query_x, t.query_y, t.support_x, t.support_y + 1) for t in tasks]
    assert torch.equal(kernel, empirical_meta_ntk(net.model, other_query, inner, params=params))
    measured(
        "change with the support labels",
        relative(empirical_meta_ntk(net.model, other_support, inner, params=params), kernel),
        above=1e-6,
    )


@pytest.mark.paper("Eq. (11)", "Def. 2", "fn. 4")
@three_steps
def test_at_time_zero_the_metantk_is_the_ntk_and_it_is_always_positive_semi_definite(
    net, algorithm, tau, measured
):
    tasks = make_tasks(net, 2)
    no_time = analytic_meta_ntk(net, tasks, algorithm, GradientDescent(0.0, tau))
    flow = analytic_meta_ntk(net, tasks, algorithm, GradientFlow(0.0))
    queries = torch.cat([task.query_x for task in tasks])
    theta = analytic_ntk(net, queries)
    measured("error", relative(no_time, theta), below=EXACT)
    measured("error", relative(flow, theta), below=EXACT)
    for dynamics in (GradientDescent(0.3, tau), GradientFlow(2.0), Converged(1e-3), Converged()):
        phi = analytic_meta_ntk(net, tasks, algorithm, dynamics)
        assert torch.equal(phi, phi.T)
        low, high = extreme_eigenvalues(phi)
        assert low >= -1e-12 * high


@pytest.mark.paper("Eq. (11)", "Eq. (13)", "Eq. (104)")
@every_network
def test_at_infinite_time_adaptation_interpolates_and_leaves_the_schur_complement(net, tau, measured):
    params, task = start(net), make_tasks(net, 1)[0]
    model, split = net.model, net.output_dim * len(task.query_x)
    theta = empirical_ntk(model, joint_inputs([task]), params=params)
    if extreme_eigenvalues(theta)[0] < 1e-8 * extreme_eigenvalues(theta)[1]:
        theta = theta + 1e-3 * torch.eye(len(theta)).double()
    qq, qs, ss = theta[:split, :split], theta[:split, split:], theta[split:, split:]
    block = meta_ntk_from_ntk(theta, [(split, len(theta) - split)], Converged())
    measured("error", relative(block, qq - qs @ torch.linalg.solve(ss, qs.T)), below=1e-9)
    labels = task.support_y.reshape(-1)
    measured("error", relative(adapted_output(ss, ss, labels, Converged()), labels), below=1e-9)
    long = GradientFlow(1e12 * tau)
    measured(
        "error",
        relative(adapted_output(qs, ss, labels, long), adapted_output(qs, ss, labels, Converged())),
        below=1e-9,
    )


@pytest.mark.paper("Eq. (95)", "Eq. (96)", "Corollary 3.1")
@every_network
def test_test_form_and_training_form_agree_and_interpolate_at_infinite_time(net, tau, measured):
    tasks = make_tasks(net, 2)
    theta = analytic_ntk(net, joint_inputs(tasks))
    theta = theta + 1e-2 * torch.eye(len(theta)).double()
    both = torch.kron(torch.ones(2, 2).double(), theta)  # the training tasks again, as test tasks
    labels = torch.cat([task.query_y.reshape(-1) for task in tasks])
    inner = GradientDescent(0.2, tau)
    for outer in (GradientFlow(3.0), GradientDescent(0.1, 5), Converged()):
        predicted = kernel_regression(both, tasks, tasks, inner, outer)
        measured("error", relative(predicted.test, predicted.train), below=1e-9)
    measured("error", relative(predicted.train, labels), below=1e-9)
    rest = kernel_regression(both, tasks, tasks, inner, GradientFlow(0.0))
    adapted = [
        adapted_output(block[: q.numel(), q.numel() :], block[q.numel() :, q.numel() :], s.reshape(-1), inner)
        for block, q, s in task_blocks(theta, tasks)
    ]
    measured("error", relative(rest.train, torch.cat(adapted)), below=EXACT)


def task_blocks(theta, tasks):
    start_row = 0
    for task in tasks:
        size = task.query_y.numel() + task.support_y.numel()
        yield theta[start_row : start_row + size, start_row : start_row + size], task.query_y, task.support_y
        start_row += size
