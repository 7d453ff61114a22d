"""Section 2: variants of MAML: other inner loops have composite kernels of the same form, first-order gradients not.

The device of the exact tests: with labels Y' = f_{θ0}(X') the inner loop rests at θ_0, its Hessian is ∇fᵀ∇f exactly,
and so the Jacobian of the real variant is known at every width.
"""

import pytest
import torch
from torch.func import grad, hessian, jacrev

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    InnerLoop,
    Task,
    analytic_ntk,
    empirical_last_layer_ntk,
    empirical_ntk,
    first_order_meta_ntk,
    joint_inputs,
    kernel_regression,
    linearised,
    meta_ntk_from_ntk,
    train,
)
from mamltheory.finite_width.bounds import extreme_eigenvalues
from mamltheory.kernels.empirical import jacobian
from mamltheory.kernels.meta import joint_sizes
from mamltheory.rates import largest_rate
from mamltheory.tasks import query_labels
from tests.paper.cases import EXACT, make_tasks, relative, rows_of, setting, start
from tests.reference.dense import Dense


def resting(net, params, tasks):
    """The tasks with the labels that the network at θ_0 gives to their supports."""
    return [Task(t.query_x, t.query_y, t.support_x, net.model(params, t.support_x)) for t in tasks]


def adapted_by(net, task, rate, steps, moving):
    """θ ↦ F_θ of one task when the inner loop moves the named parameters alone."""

    def loss(theta):
        return (net.model(theta, task.support_x) - task.support_y).square().sum() / 2

    def output(theta):
        moved = dict(theta)
        for _ in range(steps):
            slope = grad(loss)(moved)
            moved |= {name: moved[name] - rate / net.width * slope[name] for name in moving}
        return net.model(moved, task.query_x).reshape(-1)

    return output


def gram_over(net, jacobians):
    rows = torch.cat([rows_of(one) for one in jacobians])
    return rows @ rows.T / net.width


@pytest.mark.paper("Sec. 2: other variants")
@pytest.mark.parametrize("part", ["body", "head", "second layer"])
def test_a_loop_over_some_parameters_has_the_composite_kernel_with_theirs_inside(part, measured):
    """BOIL moves the body, ANIL the head: Φ = A Θ Aᵀ with the kernel of the moving parameters in A, as in Eq. (112)."""
    net, steps, rate = FullyConnected(4, 12, 2, 1, "tanh"), 3, 0.2
    params, chosen = start(net), {"body": ("1", "2"), "head": ("3",), "second layer": ("2",)}[part]
    moving = {name for name in params if name[-1] in chosen}
    tasks = resting(net, params, make_tasks(net, 2))
    x = joint_inputs(tasks)
    theta = empirical_ntk(net.model, x, params=params)
    inside = rows_of({name: one for name, one in jacobian(net.model, params, x).items() if name in moving})
    inside = inside @ inside.T / net.width
    if part == "head":
        last = empirical_last_layer_ntk(net.model, x, params=params)
        measured("error of 𝒦 as the kernel of the head", relative(inside, last), below=EXACT)
    real = gram_over(net, [jacrev(adapted_by(net, t, rate, steps, moving))(params) for t in tasks])
    closed = meta_ntk_from_ntk(theta, joint_sizes(theta, tasks), GradientDescent(rate, steps), inside)
    measured("error of A Θ Aᵀ", relative(closed, real), below=EXACT)
    whole = meta_ntk_from_ntk(theta, joint_sizes(theta, tasks), GradientDescent(rate, steps))
    measured("distance from the kernel of MAML", relative(whole, real), above=1e-3)


@pytest.mark.paper("Sec. 2: other variants")
def test_implicit_maml_has_the_composite_kernel_with_a_ridge_inside(measured):
    """[51]: θ' minimises ℓ/l + r‖θ' − θ‖²/2, and dθ'/dθ = r (rI + ∇²ℓ/l)⁻¹; T(Θ) = (Θ + rI)⁻¹, with real Hessians."""
    net, ridge = FullyConnected(3, 6, 2, 1, "tanh"), 0.3
    params = start(net)
    tasks, dense = resting(net, params, make_tasks(net, 2)), Dense(net, params)
    rows = []
    for task in tasks:
        curvature = hessian(
            lambda vector, task=task: (
                (dense.f(vector, task.support_x) - task.support_y.reshape(-1)).square().sum() / 2
            )
        )(dense.theta0)
        proximal = ridge * torch.eye(len(curvature)).double() + curvature / net.width
        rows.append(ridge * torch.linalg.solve(proximal, dense.jacobian(dense.theta0, task.query_x).T).T)
    real = torch.cat(rows) @ torch.cat(rows).T / net.width
    theta = empirical_ntk(net.model, joint_inputs(tasks), params=params)
    closed = meta_ntk_from_ntk(theta, joint_sizes(theta, tasks), Converged(ridge))
    measured("error of A Θ Aᵀ with the ridge", relative(closed, real), below=EXACT)


@pytest.mark.paper("Sec. 2: other variants")
@pytest.mark.parametrize("variant", ["implicit", "closed-form head"])
def test_training_through_a_ridge_regression_follows_the_kernel_regression_to_zero_loss(variant, measured):
    """[51], and [9] with the regression of the last layer, in the linearised network: Eq. (8) and a linear rate."""
    net, ridge, steps = FullyConnected(4, 12, 2, 1), 0.1, 20
    params = start(net)
    *tasks, test = make_tasks(net, 3)
    x, model = joint_inputs((*tasks, test)), linearised(net.model, params)
    theta, last = (
        kernel(net.model, x, params=params) for kernel in (empirical_ntk, empirical_last_layer_ntk)
    )
    moving = theta if variant == "implicit" else last
    names = [name for name in params if variant == "implicit" or name.endswith("3")]
    f0 = net.model(params, x).reshape(-1)
    rows = joint_sizes(theta, (*tasks, test))
    phi = meta_ntk_from_ntk(theta, rows, Converged(ridge), moving)[: -len(test.query_x), : -len(test.query_x)]
    eta0 = 0.9 * largest_rate(phi)

    def outputs(values, task):
        basis = rows_of({n: jacobian(net.model, params, task.support_x)[n] for n in names}) / net.width**0.5
        residual = (model(values, task.support_x) - task.support_y).reshape(-1)
        weights = torch.linalg.solve(basis @ basis.T + ridge * torch.eye(len(basis)).double(), residual)
        query = rows_of({n: jacobian(net.model, params, task.query_x)[n] for n in names}) / net.width**0.5
        return model(values, task.query_x).reshape(-1) - query @ basis.T @ weights

    def loss(values):
        return (torch.cat([outputs(values, task) for task in tasks]) - query_labels(tasks)).square().sum() / 2

    values = params
    for _ in range(steps):
        slope = grad(loss)(values)
        values = {name: values[name] - eta0 / net.width * slope[name] for name in values}
    closed = kernel_regression(
        theta, tasks, [test], Converged(ridge), GradientDescent(eta0, steps),
        None if variant == "implicit" else last, f0,
    )  # fmt: skip
    measured("error on the test task", relative(outputs(values, test), closed.test), below=1e-9)
    measured(
        "error on the training tasks",
        relative(torch.cat([outputs(values, t) for t in tasks]), closed.train),
        below=1e-9,
    )
    contraction = 1 - eta0 * extreme_eigenvalues(phi)[0]
    fall = float((loss(values) / loss(params)).sqrt()) ** (1 / steps)
    measured("fall of the residual a step over 1 − η0 σ_min", fall / contraction, below=1 + 1e-9)


@pytest.mark.paper("Sec. 2: other variants")
def test_first_order_maml_has_a_kernel_that_is_not_symmetric_and_trains_nevertheless(measured):
    """Its residual follows J J_FOᵀ/l, which the proof of Theorem 3, made for Gram matrices, does not cover."""
    net, tasks, _, inner = setting("erf", 2, 128)
    params = start(net)
    rest = resting(net, params, tasks)
    first = torch.cat([rows_of(jacobian(net.model, params, task.query_x)) for task in rest])  # θ' = θ_0
    full = torch.cat(
        [rows_of(jacrev(adapted_by(net, t, inner.lam0, inner.tau, params))(params)) for t in rest]
    )
    kernel = full @ first.T / net.width
    measured("asymmetry of J J_FOᵀ", relative(kernel, kernel.T), above=0.01)
    measured("least real part of its eigenvalues", torch.linalg.eigvals(kernel).real.min(), above=0)
    loop = InnerLoop(inner.lam0, inner.tau, first_order=True)
    record = train(net.model, params, tasks, loop, 0.5 * largest_rate(full @ full.T / net.width), 120)
    measured("loss after 120 steps, of its start", record.losses()[-1] / record.losses()[0], below=0.01)


@pytest.mark.paper("Sec. 2: other variants")
def test_first_order_maml_does_not_contract_in_general(measured):
    """Two tasks whose queries lie near their supports, turned towards each other: J J_FOᵀ/l has a negative eigenvalue.

    With q_i = s_i + ε s_j the remainders r_i = q_i − s_i meet the other query, and it is near [[ε², ε], [ε, ε²]].
    """
    unit = torch.eye(4, dtype=torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    pairs = ((0, 1), (1, 0))
    queries = [torch.nn.functional.normalize(unit[i : i + 1] + 0.4 * unit[j : j + 1]) for i, j in pairs]
    tasks = [Task(query, zero, unit[i : i + 1], zero) for i, query in enumerate(queries)]
    net = FullyConnected(4, 128, 2, 1, "erf")
    theta = analytic_ntk(net, joint_inputs(tasks))
    sizes = joint_sizes(theta, tasks)
    kernel = first_order_meta_ntk(theta, sizes, Converged())
    measured("least real part of the eigenvalues", torch.linalg.eigvals(kernel).real.min(), below=-0.1)
    phi = meta_ntk_from_ntk(theta, sizes, Converged())
    measured("least eigenvalue of Φ, for MAML", extreme_eigenvalues(phi)[0], above=0.1)
    params = start(net)
    model, rate = linearised(net.model, params), 0.5 * largest_rate(phi)
    for first_order, name, limits in (
        (True, "first-order MAML", {"above": 100}),
        (False, "MAML", {"below": 0.1}),
    ):
        loop = InnerLoop(1.0, 20, first_order=first_order)
        losses = train(model, params, tasks, loop, rate, 20).losses()
        measured(f"loss after 20 steps, of its start: {name}, linearised", losses[-1] / losses[0], **limits)
