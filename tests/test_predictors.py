import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    adapted_output,
    analytic_last_layer_ntk,
    analytic_ntk,
    generator,
    joint_inputs,
    kernel_regression,
    trained_output,
    trained_output_on_training_tasks,
)
from mamltheory.errors import ShapeError, SingularKernelError
from tests.paper.cases import relative
from tests.reference import closed_forms
from tests.strategies import as_users_run_it, dynamics, kernels, seeds, task, with_spectrum

NET = FullyConnected(4, 20, 2, 2, "erf")
LOOPS = [GradientFlow(0.8), GradientDescent(0.2, 3), Converged(ridge=1e-2)]


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed, "normal"), dtype=torch.float64)


def iterated(kernel, start, labels, rate, steps):
    """Gradient descent in function space on training and test outputs: F ← F − η0 Φ(·, 𝒳)(F(𝒳) − 𝒴)."""
    outputs = start.clone()
    for _ in range(steps):
        outputs = outputs - rate * kernel[:, : len(labels)] @ (outputs[: len(labels)] - labels)
    return outputs


@pytest.mark.paper("Eq. (95)", "Eq. (96)", "Eq. (101)", "Eq. (102)")
@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 12), seeds)
def test_outputs_after_training_are_those_of_descent_in_function_space(train, test, steps, seed):
    factor = normal(seed, train + test, train + test + 2)
    kernel = factor @ factor.T
    rate = 1.5 / float(torch.linalg.eigvalsh(kernel)[-1])
    start, labels = normal(seed + 1, train + test), normal(seed + 2, train)
    stepped, outer = iterated(kernel, start, labels, rate, steps), GradientDescent(rate, steps)
    phi = kernel[:train, :train]
    tested = trained_output(kernel[train:, :train], phi, start[train:], start[:train], labels, outer)
    trained = trained_output_on_training_tasks(phi, start[:train], labels, outer)
    assert float((tested - stepped[train:]).abs().max()) < 1e-10
    assert float((trained - stepped[:train]).abs().max()) < 1e-10


@pytest.mark.paper("Eq. (7)", "Eq. (98)")
@pytest.mark.parametrize("time", [0.3, 2.0])
def test_the_output_under_gradient_flow_solves_its_differential_equation(time):
    phi, start, labels, h = with_spectrum([0.0, 0.4, 2.0]), normal(0, 3), normal(1, 3), 1e-5

    def at(t):
        return trained_output_on_training_tasks(phi, start, labels, GradientFlow(t))

    velocity = (at(time + h) - at(time - h)) / (2 * h)
    assert relative(velocity, -phi @ (at(time) - labels)) < 1e-8


@pytest.mark.paper("Corollary 3.1")
@settings(max_examples=30)
@given(kernels(), st.data())
def test_training_outputs_run_from_the_start_to_the_labels(kernel, data):
    phi, s = kernel
    start, labels = normal(data.draw(seeds), len(s)), normal(0, len(s))
    outer = data.draw(dynamics(top=float(s.max())))
    before = trained_output_on_training_tasks(phi, start, labels, GradientFlow(0.0))
    after = trained_output_on_training_tasks(phi, start, labels, Converged())
    between = trained_output_on_training_tasks(phi, start, labels, outer)
    assert float((before - start).abs().max()) < 1e-12
    assert float((after - labels).abs().max()) < 1e-12
    assert float((between - labels).norm()) <= float((start - labels).norm()) * (1 + 1e-12)


def joint(tasks, test_tasks, algorithm="maml"):
    x = joint_inputs((*tasks, *test_tasks))
    return analytic_ntk(NET, x), analytic_last_layer_ntk(NET, x) if algorithm == "anil" else None, x


def kernel_functions(algorithm):
    def theta(x1, x2):
        return analytic_ntk(NET, x1, x2)

    return theta, theta if algorithm == "maml" else lambda x1, x2: analytic_last_layer_ntk(NET, x1, x2)


@pytest.mark.paper(
    "Theorem 2", "Theorem 4", "Eq. (12)", "Eq. (13)", "Eq. (103)", "Eq. (109)", "Eq. (111)", "Eq. (107)"
)
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize("inner", LOOPS, ids=str)
@pytest.mark.parametrize("outer", LOOPS, ids=str)
def test_maml_as_kernel_regression_is_the_papers_formula_block_by_block(algorithm, inner, outer):
    tasks, test_tasks = (
        [task(0, i, 2, 2, k=2) for i in range(2)],
        [task(1, i, 1 + i, 2, k=2) for i in range(2)],
    )
    theta, last, x = joint(tasks, test_tasks, algorithm)
    f0 = normal(5, len(x), 2)
    got = kernel_regression(theta, tasks, test_tasks, inner, outer, last, f0.reshape(-1))

    def f(samples):
        return torch.stack([f0[int((x == sample).all(1).nonzero()[0, 0])] for sample in samples])

    expected = [
        closed_forms.trained(f, *kernel_functions(algorithm), tasks, one, inner, outer) for one in test_tasks
    ]
    assert relative(got.test, torch.cat(expected)) < 1e-8
    on_training = [
        closed_forms.trained(f, *kernel_functions(algorithm), tasks, one, inner, outer) for one in tasks
    ]
    assert relative(got.train, torch.cat(on_training)) < 1e-8


@pytest.mark.paper("Eq. (13)", "Eq. (109)")
def test_without_initial_outputs_the_centred_network_is_meant():
    tasks, test_tasks = [task(k=2)], [task(1, k=2)]
    theta, _, x = joint(tasks, test_tasks)
    left_out = kernel_regression(theta, tasks, test_tasks, LOOPS[0], LOOPS[1])
    zero = kernel_regression(
        theta, tasks, test_tasks, LOOPS[0], LOOPS[1], f0=torch.zeros(2 * len(x)).double()
    )
    assert torch.equal(left_out.test, zero.test)
    assert torch.equal(left_out.train, zero.train)
    kept = kernel_regression(theta, tasks, test_tasks, LOOPS[0], LOOPS[1], f0=normal(0, 2 * len(x)))
    assert relative(kept.test, zero.test) > 0.1


def test_labels_of_test_queries_are_not_used_and_test_tasks_may_be_missing():
    tasks, one = [task(k=2)], task(1, k=2)
    theta, _, _ = joint(tasks, [one])
    other = type(one)(one.query_x, one.query_y + 9, one.support_x, one.support_y)
    first = kernel_regression(theta, tasks, [one], LOOPS[0], LOOPS[1])
    assert torch.equal(first.test, kernel_regression(theta, tasks, [other], LOOPS[0], LOOPS[1]).test)
    alone = kernel_regression(joint(tasks, [])[0], tasks, [], LOOPS[0], LOOPS[1])
    assert relative(alone.train, first.train) < 1e-12
    assert alone.test.shape == (0,)


def test_float32_inputs_are_computed_in_float64():
    phi, start, labels = with_spectrum([0.5, 1.0, 2.0]), normal(0, 3), normal(1, 3)
    wide = trained_output(phi, phi, start, start, labels, LOOPS[0])
    narrow = trained_output(*(part.float() for part in (phi, phi, start, start, labels)), LOOPS[0])
    assert narrow.dtype == torch.float64
    assert relative(narrow, wide) < 1e-6
    assert (
        trained_output_on_training_tasks(phi, start.float(), labels.float(), LOOPS[0]).dtype == torch.float64
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"f0": torch.zeros(10, 2).double()}, "reshape"),
        ({"f0": torch.zeros(3).double()}, "reshape"),
        ({"theta": torch.eye(10).double()}, "same number of outputs"),
        ({"theta": torch.eye(19).double()}, "whole number"),
        ({"test_tasks": [task(1, k=1)]}, "differs"),
        ({"tasks": []}, "no tasks"),
        ({"adaptation": torch.eye(10).double()}, "adaptation has shape"),
    ],
)
def test_kernels_labels_and_outputs_that_do_not_fit_are_refused(change, message):
    arguments = {
        "theta": torch.eye(20).double(),
        "tasks": [task(k=2)],
        "test_tasks": [task(1, k=2)],
        "inner": LOOPS[0],
        "outer": LOOPS[0],
        **change,
    }
    with as_users_run_it(), pytest.raises(ShapeError, match=message):
        kernel_regression(**arguments)


def test_a_single_shot_does_not_hide_a_wrong_shape_by_broadcasting():
    one, other = task(n=1, m=1), task(1, n=1, m=1)
    with as_users_run_it(), pytest.raises(ShapeError, match="same number of outputs"):
        kernel_regression(torch.eye(8).double(), [one], [other], LOOPS[0], LOOPS[0])
    with as_users_run_it(), pytest.raises(ShapeError, match="flatten"):
        kernel_regression(
            torch.eye(4).double(), [one], [other], LOOPS[0], LOOPS[0], f0=torch.zeros(4, 1).double()
        )


def test_initial_outputs_are_given_for_both_sets_or_for_none():
    theta, y = with_spectrum([1.0, 2.0]), normal(0, 2)
    with pytest.raises(ShapeError, match="neither"):
        adapted_output(theta, theta, y, LOOPS[0], query_f0=y)
    with pytest.raises(ShapeError, match="neither"):
        adapted_output(theta, theta, y, LOOPS[0], support_f0=y)


def test_infinite_time_on_a_singular_kernel_has_no_outputs():
    phi, y = with_spectrum([0.0, 1.0]), normal(0, 2)
    with pytest.raises(SingularKernelError):
        trained_output_on_training_tasks(phi, y, y + 1, Converged())
    with pytest.raises(SingularKernelError):
        trained_output(phi, phi, y, y, y + 1, Converged())


E3, V3 = torch.eye(3).double(), torch.ones(3).double()
SHAPES = [
    (
        adapted_output,
        {
            "query_support": E3[:2],
            "support_support": E3,
            "support_y": V3,
            "inner": LOOPS[0],
            "query_f0": V3[:2],
            "support_f0": V3,
        },
    ),
    (
        trained_output,
        {
            "phi_test_train": E3[:2],
            "phi_train": E3,
            "test_start": V3[:2],
            "train_start": V3,
            "labels": V3,
            "outer": LOOPS[0],
        },
    ),
    (trained_output_on_training_tasks, {"phi_train": E3, "train_start": V3, "labels": V3, "outer": LOOPS[0]}),
]


@pytest.mark.parametrize(("function", "arguments"), SHAPES)
def test_every_array_of_another_shape_is_refused_by_name(function, arguments):
    """Wrong by one number, or with an axis too few, which broadcasting would hide."""
    function(**arguments)
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            square = value.dim() == 2 and len(value) == 3
            for wrong in [value[0], *([] if square else [value[..., :-1]])]:
                with as_users_run_it(), pytest.raises(ShapeError, match=f"^{name} has shape"):
                    function(**{**arguments, name: wrong})


@pytest.mark.parametrize("name", ["theta", "adaptation", "nngp"])
def test_every_kernel_of_the_regression_is_a_square_matrix(name):
    kernels = {"theta": torch.eye(20).double(), name: torch.ones(20).double()}
    with as_users_run_it(), pytest.raises(ShapeError, match=f"^{name} has shape"):
        kernel_regression(
            tasks=[task(k=2)], test_tasks=[task(1, k=2)], inner=LOOPS[0], outer=LOOPS[0], **kernels
        )
