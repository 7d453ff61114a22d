"""Errata by two numbers each, the printed form beside the corrected one: those whose other proofs are examples alone.

For the proofs over many random examples see ``test_errata_algebra`` and ``test_errata_constants``.
"""

import math

import pytest
import torch

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    Model,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    condition_number,
    empirical_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    meta_ntk,
    train,
)
from mamltheory.bounds import largest_rate, theorem3_drift_bound, theorem3_least_width
from mamltheory.kernels.empirical import gram, jacobian
from mamltheory.kernels.empirical_meta import stacked_meta_jacobian
from mamltheory.kernels.meta import adaptation_matrix
from tests.paper.cases import EXACT, make_tasks, relative, sphere, start
from tests.paper.test_errata_statements import matrix, task_of
from tests.paper.test_finite_width import setting
from tests.reference.matrix_functions import (
    commuting_derivative,
    exponential,
    exponential_derivative,
    operator_norm,
)
from tests.strategies import with_spectrum

ROUNDING = 1 + 1e-9


def identity(size):
    return torch.eye(size, dtype=torch.float64)


@pytest.mark.paper("Eq. (61)", corrected=True)
@pytest.mark.erratum("E13")
def test_singular_values_enter_equation_61_squared(measured):
    """I − e^{−λτΘ̂} with the Θ̂ of a real network, rebuilt from the singular values of ∇f(X')/√l."""
    net, time = FullyConnected(4, 40, 2, 1), 0.7
    params, task = start(net), make_tasks(net, 1)[0]
    rows = jacobian(net.model, params, task.support_x)
    theta = gram(rows, rows) / net.width
    u, s, _ = torch.linalg.svd(matrix(rows) / net.width**0.5, full_matrices=False)
    exact = identity(len(theta)) - exponential(theta, time)
    printed, corrected = ((u * (1 - torch.exp(-time * values))) @ u.T for values in (s, s**2))
    measured("error of (61) with Σ", relative(printed, exact), above=0.05)
    measured("error of (61) with Σ²", relative(corrected, exact), below=EXACT)


@pytest.mark.paper("Remark after Eq. (62)", corrected=True)
@pytest.mark.erratum("E14")
def test_one_is_an_eigenvalue_of_the_exponential_and_zero_is_none(measured):
    """e^{−λτH} of a real network: printed [0, 1), correct (0, 1], with 1 attained on at least D − km directions."""
    net = FullyConnected(3, 3, 1, 1)
    params, task = start(net), make_tasks(net, 1)[0]
    rows = matrix(jacobian(net.model, params, task.support_x)) / net.width**0.5
    eigenvalues = torch.linalg.eigvalsh(exponential(rows.T @ rows, 1.0))
    ones = int((eigenvalues > 1 - 1e-10).sum())
    measured("eigenvalues 1 of e^{−λτH}, which the printed interval excludes", ones, above=0.5)
    measured("their number over D − km", ones / (rows.shape[1] - len(rows)), below=1 + 1e-12)
    measured("least eigenvalue", eigenvalues.min(), above=1e-4)


@pytest.mark.paper("Eq. (53)", corrected=True)
@pytest.mark.erratum("E16")
def test_the_printed_derivative_of_the_exponential_is_wrong_where_the_argument_does_not_commute(measured):
    """Against central differences, with a kernel and a direction that do not commute."""
    theta, time, h = with_spectrum([1.0, 0.3, 0.1], 0), 2.0, 1e-5
    direction = with_spectrum([1.0, -0.5, 0.2], 1)
    difference = (exponential(theta + h * direction, time) - exponential(theta - h * direction, time)) / (
        2 * h
    )
    printed, corrected = (
        formula(theta, direction, time) for formula in (commuting_derivative, exponential_derivative)
    )
    measured("error of the printed derivative", relative(printed, difference), above=0.05)
    measured("error of the derivative with Θ̂ on both sides", relative(corrected, difference), below=1e-8)


def far_kernel(phi, distance):
    """Φ moved down by ``distance``: where ‖I − η0 Φ̂‖ is largest."""
    return phi - distance * identity(len(phi))


@pytest.mark.paper("App. B.5: closeness", corrected=True)
@pytest.mark.erratum("E19")
def test_a_distance_of_eta0_sigma_min_over_three_is_too_far_for_large_rates(measured):
    """η0 = 2.2 < 2/(σ_max + σ_min): the factor of the proof is exceeded, and at σ_min/3 it is kept."""
    phi, eta0, low = torch.diag(torch.tensor([0.5, 0.4], dtype=torch.float64)), 2.2, 0.4
    assert eta0 < largest_rate(phi)
    allowed = 1 - 2 * eta0 * low / 3
    printed, corrected = (
        operator_norm(identity(2) - eta0 * far_kernel(phi, distance)) / allowed
        for distance in (eta0 * low / 3, low / 3)
    )
    measured("‖I − η0 Φ̂_0‖ over 1 − 2 η0 σ_min/3, at the printed distance", printed, above=1.2)
    measured("‖I − η0 Φ̂_0‖ over 1 − 2 η0 σ_min/3, at σ_min/3", corrected, below=ROUNDING)


@pytest.mark.paper("App. B.5: width", corrected=True)
@pytest.mark.erratum("E20")
def test_at_the_printed_least_width_the_drift_is_many_times_what_the_proof_allows(measured):
    """K = 1.5, R0 = 2, σ_min = 0.3: Λ is printed as 1350 in place of its square."""
    lipschitz, residual, low = 1.5, 2.0, 0.3
    least = theorem3_least_width(lipschitz, residual, low)
    printed, corrected = (
        theorem3_drift_bound(lipschitz, residual, low, round(width)) / (low / 3)
        for width in (least**0.5, least)
    )
    measured("bound (30) over σ_min/3 at the printed Λ", printed, above=30)
    measured("bound (30) over σ_min/3 at the corrected Λ", corrected, below=ROUNDING)


@pytest.mark.paper("App. B.4: spectrum", "App. B.5: contraction")
@pytest.mark.erratum("E29")
def test_those_misprints_that_change_a_number_do_change_it(measured):
    """η0 Φ̂_0 printed as Φ̂_0, and a kernel called semi-definite because it is symmetric."""
    net, tasks, _, inner = setting("erf", 1, 64)
    params = start(net)
    j = matrix(stacked_meta_jacobian(net.model, params, tasks, inner))
    phi0 = j @ j.T / net.width
    phi = analytic_meta_ntk(net, tasks, "maml", inner.dynamics)
    eta0 = 0.5 * largest_rate(phi)
    step = identity(len(phi)) - eta0 * phi0
    printed, corrected = (
        identity(len(phi)) - eta0 * phi + (eta0 * phi - factor * phi0) for factor in (1.0, eta0)
    )
    measured(
        "error of the decomposition of I − η0 Φ̂_0 with Φ̂_0 for η0 Φ̂_0", relative(printed, step), above=0.05
    )
    measured("error of the decomposition with η0 Φ̂_0", relative(corrected, step), below=EXACT)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    measured("least eigenvalue of a symmetric matrix", torch.linalg.eigvalsh(swap).min(), below=-0.5)
    measured("least eigenvalue of the Gram matrix JJᵀ/l", torch.linalg.eigvalsh(phi0).min(), above=0)


def scaled(model, kappa):
    """κ f: what the work cited for Assumption 5 makes small."""
    return Model(lambda params, x: kappa * model.function(params, x), model.scale, model.head)


@pytest.mark.paper("Assumption 5", corrected=True)
@pytest.mark.erratum("E42")
def test_a_small_factor_before_the_output_does_what_small_weights_are_said_to_do(measured):
    """With rates over κ², training of κ f tends to Eq. (12) as κ → 0 at a large width; Θ only changes its scale."""
    net, tasks, test_tasks, inner = setting("erf", 1, 1024)
    params, x = start(net), joint_inputs((*tasks, *test_tasks))
    errors, conditions = {}, {}
    for kappa in (1.0, 0.1):
        model = scaled(net.model, kappa)
        theta = empirical_ntk(model, x, params=params)
        loop = type(inner)(inner.lam0 / kappa**2, inner.tau)
        eta0 = 0.5 * largest_rate(meta_ntk(model, tasks, "maml", loop.dynamics, params=params))
        record = train(model, params, tasks, loop, eta0, 4, test_tasks)
        closed = kernel_regression(theta, tasks, test_tasks, loop.dynamics, GradientDescent(eta0, 4)).test
        errors[kappa] = relative(record.observations[-1].test_outputs, closed)
        conditions[kappa] = condition_number(theta)
    small = FullyConnected(4, 1024, 1, 1, "erf", sigma_w=0.1 * net.sigma_w, sigma_b=0.1 * net.sigma_b)
    change = condition_number(analytic_ntk(small, x)) / condition_number(analytic_ntk(net, x))
    measured("condition of Θ with σ_w, σ_b/10 over that without", change, above=100)
    measured("condition of Θ̂ of f/10 over that of f", conditions[0.1] / conditions[1.0], below=1 + 1e-6)
    measured("error of (12) for f", errors[1.0], above=0.2)
    measured("error of (12) for f/10 over that for f", errors[0.1] / errors[1.0], below=0.3)


@pytest.mark.paper("App. D: ANIL")
@pytest.mark.erratum("E41")
def test_the_jacobian_of_anil_exceeds_that_of_the_network_and_stays_within_the_corrected_bound(measured):
    """φ^{1/2} against ‖∇f(X)‖ and against ‖∇f(X)‖ + ‖C‖ ‖∇f(X')‖, all over √l, in the limit of infinite width."""
    net = FullyConnected(4, 64, 3, 1, "relu", sigma_w=2**0.5, sigma_b=0.0)
    angles = torch.tensor([0.0, 1.0, 1.01], dtype=torch.float64)
    x = torch.stack([angles.cos(), angles.sin(), 0 * angles, 0 * angles], 1)
    size = float(analytic_meta_ntk(net, [task_of(x[:1], x[1:])], "anil", Converged())) ** 0.5
    theta, last = analytic_ntk(net, x), analytic_last_layer_ntk(net, x)
    c = operator_norm(adaptation_matrix(last[:1, 1:], last[1:, 1:], Converged()))
    query = float(theta[0, 0]) ** 0.5
    support = math.sqrt(operator_norm(theta[1:, 1:]))
    measured("‖J‖ of ANIL over ‖∇f(X)‖", size / query, above=2)
    measured("‖J‖ of ANIL over ‖∇f(X)‖ + ‖C‖ ‖∇f(X')‖", size / (query + c * support), below=1)


@pytest.mark.paper("Eq. (54)", "Eq. (56)")
def test_the_norm_of_a_sum_of_terms_is_at_most_the_sum_of_their_norms(measured):
    """(54) over the terms (45) to (47), (56) over the queries: on the tensors of a real network's Lemma 5."""
    g = generator(0, "terms")
    net, task = FullyConnected(4, 8, 2, 1), task_of(sphere(g, 3, 4), sphere(g, 2, 4))
    params = start(net)
    parts = lemma5_terms(net, params, task)
    whole = sum(parts)
    measured("(54): left over right side", whole.norm() / sum(part.norm() for part in parts), below=ROUNDING)
    queries = sum(row.norm() for row in whole)
    measured("(56): left over right side", whole.norm() / queries, below=ROUNDING)


def lemma5_terms(net, params, task, time=1.0):
    """The terms (45), (46) and (47) for the residual (1, …, 1), queries × D, by differences of each factor."""
    h, names = 1e-5, list(params)

    def factors(theta):
        support, query = (jacobian(net.model, theta, x) for x in (task.support_x, task.query_x))
        own, mixed = gram(support, support) / net.width, gram(query, support) / net.width
        return mixed, torch.linalg.inv(own), identity(len(own)) - exponential(own, time)

    flat = torch.cat([params[name].reshape(-1) for name in names])

    def at(vector):
        pieces = torch.split(vector, [params[name].numel() for name in names])
        return factors({n: p.reshape(params[n].shape) for n, p in zip(names, pieces, strict=True)})

    middle, columns = at(flat), []
    for i in range(len(flat)):
        shift = h * torch.nn.functional.one_hot(torch.tensor(i), len(flat)).double()
        change = [(a - b) / (2 * h) for a, b in zip(at(flat + shift), at(flat - shift), strict=True)]
        products = (
            (change[0], middle[1], middle[2]),
            (middle[0], change[1], middle[2]),
            (middle[0], middle[1], change[2]),
        )
        columns.append([(a @ b @ c).sum(1) for a, b, c in products])
    return [torch.stack([column[k] for column in columns], 1) for k in range(3)]
