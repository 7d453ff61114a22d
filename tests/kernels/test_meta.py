import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    Converged,
    FullyConnected,
    GradientDescent,
    GradientFlow,
    Task,
    analytic_last_layer_ntk,
    analytic_meta_ntk,
    analytic_ntk,
    condition_number,
    empirical_ntk,
    generator,
    joint_inputs,
    meta_ntk,
    meta_ntk_from_ntk,
)
from mamltheory.errors import ShapeError, SingularKernelError, ValueRangeError
from mamltheory.kernels.meta import composition, joint_sizes, joint_slices
from mamltheory.linalg import conditioning
from mamltheory.nas.scoring.score import ScoreSettings
from tests.paper.cases import relative
from tests.reference import closed_forms
from tests.strategies import as_users_run_it, dynamics, networks, task, tasks, with_spectrum

algorithms = st.sampled_from(["maml", "anil"])
LOOPS = [GradientFlow(0.7), GradientDescent(0.3, 3), Converged(1e-2)]


def kernel_functions(net, algorithm):
    def theta(x1, x2):
        return analytic_ntk(net, x1, x2)

    return theta, theta if algorithm == "maml" else lambda x1, x2: analytic_last_layer_ntk(net, x1, x2)


@pytest.mark.paper("Eq. (11)", "Eq. (92)", "Eq. (106)", "Eq. (112)")
@settings(max_examples=40)
@given(st.data(), networks(output_dim=1, activation="erf"), algorithms)
def test_the_composite_kernel_is_the_sum_of_the_four_terms(data, net, algorithm):
    """With a ridge, so that the twin may invert; the other kinds of time follow below."""
    some = data.draw(tasks(net.input_dim, 1))
    loop = Converged(ridge=data.draw(st.floats(0.05, 1)))
    expected = closed_forms.phi(*kernel_functions(net, algorithm), some, some, loop)
    got = analytic_meta_ntk(net, some, algorithm, loop)
    assert float((got - expected).abs().max()) < 1e-10 * (1 + float(expected.abs().max()))


@pytest.mark.paper("Eq. (106)", "Eq. (112)", "Eq. (10)", "Eq. (105)")
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
@pytest.mark.parametrize("loop", [*LOOPS, Converged()], ids=str)
def test_the_composite_kernel_is_the_papers_for_every_kind_of_time(algorithm, loop):
    net = FullyConnected(4, 10, 2, 2, "tanh")
    some = (task(0, 0, 2, 3, k=2), task(0, 1, 1, 2, k=2))
    expected = closed_forms.phi(*kernel_functions(net, algorithm), some, some, loop)
    assert relative(analytic_meta_ntk(net, some, algorithm, loop), expected) < 1e-9


@settings(max_examples=25)
@given(st.data(), networks(activation="relu"), algorithms)
def test_the_order_of_the_tasks_permutes_the_blocks_and_nothing_else(data, net, algorithm):
    some = data.draw(tasks(net.input_dim, net.output_dim))
    order = data.draw(st.permutations(range(len(some))))
    loop = data.draw(dynamics(top=20.0))
    whole = analytic_meta_ntk(net, some, algorithm, loop)
    ends = torch.tensor([one.query_y.numel() for one in some]).cumsum(0).tolist()
    rows = torch.cat([torch.arange(ends[i] - some[i].query_y.numel(), ends[i]) for i in order])
    turned = analytic_meta_ntk(net, [some[i] for i in order], algorithm, loop)
    assert float((turned - whole[rows][:, rows]).abs().max()) < 1e-10 * (1 + float(whole.abs().max()))


@settings(max_examples=25)
@given(st.data(), networks(output_dim=3, activation="erf"), algorithms)
def test_with_several_outputs_the_limit_kernel_is_the_scalar_one_for_each(data, net, algorithm):
    some = data.draw(tasks(net.input_dim, 3))
    loop = data.draw(dynamics(top=20.0))
    scalar = analytic_meta_ntk(FullyConnected(**{**vars(net), "output_dim": 1}), some, algorithm, loop)
    whole = analytic_meta_ntk(net, some, algorithm, loop)
    expected = torch.kron(scalar, torch.eye(3).double())
    assert float((whole - expected).abs().max()) < 1e-10 * (1 + float(whole.abs().max()))


@settings(max_examples=25)
@given(st.data(), networks(), algorithms)
def test_every_metantk_is_symmetric_and_positive_semi_definite(data, net, algorithm):
    some = data.draw(tasks(net.input_dim, net.output_dim))
    params = net.initialise(generator(0, "init"))
    loop = data.draw(dynamics(top=20.0))
    for phi in (
        analytic_meta_ntk(net, some, algorithm, loop),
        meta_ntk(net.model, some, algorithm, loop, params=params),
    ):
        assert torch.equal(phi, phi.T)
        assert float(torch.linalg.eigvalsh(phi)[0]) > -1e-12 * float(phi.trace())


@pytest.mark.parametrize("finite_width", [False, True])
@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_both_kernels_have_the_terms_of_finite_width_or_neither_has(algorithm, finite_width):
    net, some, loop = FullyConnected(4, 5, 2, 2, "erf"), (task(0, 0, k=2), task(0, 1, k=2)), LOOPS[0]
    x = joint_inputs(some)
    theta = analytic_ntk(net, x, finite_width=finite_width)
    last = analytic_last_layer_ntk(net, x, finite_width=finite_width) if algorithm == "anil" else None
    expected = meta_ntk_from_ntk(theta, joint_sizes(theta, some), loop, last)
    assert relative(analytic_meta_ntk(net, some, algorithm, loop, finite_width), expected) < 1e-13
    assert relative(analytic_meta_ntk(net, some, algorithm, loop, not finite_width), expected) > 0.01


@pytest.mark.parametrize("as_module", [False, True])
def test_the_inner_loop_of_anil_moves_those_parameters_of_the_head_that_are_selected(as_module):
    net, some, loop = FullyConnected(4, 6, 2), (task(0, 0), task(0, 1)), LOOPS[0]
    params = net.initialise(generator(0, "init"))
    model, head = net.model, ("weight3", "bias3")
    if as_module:
        layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)]
        model, params, head = torch.nn.Sequential(*layers).double(), None, ("2.weight", "2.bias")

    def kernel(select):
        return empirical_ntk(model, joint_inputs(some), params=params, select=select)

    weights, every = (lambda name: "weight" in name), None
    for select, moved in ((every, head), (weights, head[:1]), (lambda name: name != head[0], head[1:])):
        theta = kernel(select)
        expected = meta_ntk_from_ntk(theta, joint_sizes(theta, some), loop, kernel(moved))
        got = meta_ntk(model, some, "anil", loop, params=params, select=select)
        assert relative(got, expected) < 1e-13


def test_without_query_labels_or_support_labels_the_kernel_is_the_same():
    net, one = FullyConnected(4, 6, 2), task()
    params = net.initialise(generator(0, "init"))
    other = Task(one.query_x, one.query_y + 1, one.support_x, one.support_y - 2)
    assert torch.equal(meta_ntk(net.model, [one], params=params), meta_ntk(net.model, [other], params=params))


def test_the_kernel_of_summed_outputs_has_one_row_a_sample():
    net, one = FullyConnected(4, 6, 2, 3), task(n=2, m=3, k=3)
    params = net.initialise(generator(0, "init"))
    phi = meta_ntk(net.model, [one], params=params, outputs="sum")
    assert phi.shape == (2, 2)
    assert meta_ntk(net.model, [one], params=params).shape == (6, 6)


def test_by_default_the_kernel_is_mamls_at_infinite_time_with_the_papers_ridge():
    net, one = FullyConnected(4, 6, 2), task()
    params = net.initialise(generator(0, "init"))
    stated = meta_ntk(net.model, [one], "maml", Converged(ridge=1e-3), params=params)
    assert torch.equal(meta_ntk(net.model, [one], params=params), stated)
    assert ScoreSettings().dynamics == Converged(ridge=1e-3)
    other = meta_ntk(net.model, [one], "maml", Converged(ridge=1e-2), params=params)
    assert not torch.equal(other, stated)


@pytest.mark.paper("Eq. (14)")
def test_the_condition_number_is_free_of_the_kernels_scale_at_infinite_time_only():
    theta, sizes = with_spectrum([0.2, 0.5, 1.0, 2.0, 3.0]), [(2, 3)]
    infinite = [condition_number(meta_ntk_from_ntk(c * theta, sizes, Converged())) for c in (1, 10, 1000)]
    assert infinite == pytest.approx([infinite[0]] * 3, rel=1e-9)
    finite = [condition_number(meta_ntk_from_ntk(c * theta, sizes, GradientFlow(1.0))) for c in (1, 10, 1000)]
    assert abs(finite[1] / finite[0] - 1) > 0.01
    assert finite[2] == pytest.approx(infinite[0], rel=1e-6)


@pytest.mark.paper("Assumption 2", "fn. 4")
def test_a_query_that_is_also_a_support_sample_has_no_kernel_left_at_infinite_time():
    one = task()
    shared = Task(torch.cat([one.query_x[:1], one.support_x[:1]]), one.query_y, one.support_x, one.support_y)
    net = FullyConnected(4, 6, 2)
    phi = analytic_meta_ntk(net, [shared], "maml", Converged())
    assert float(phi[1].abs().max()) < 1e-10 * float(phi[0, 0])
    assert float(analytic_meta_ntk(net, [shared], "maml", GradientFlow(1.0))[1, 1]) > 0
    repeated = Task(one.query_x, one.query_y, one.support_x[[0, 0, 1]], one.support_y)
    with pytest.raises(SingularKernelError, match="duplicate"):
        analytic_meta_ntk(net, [repeated], "maml", Converged())


def test_joint_kernels_are_laid_out_query_then_support_task_by_task():
    first, second = task(0, 0, n=2, m=3), task(0, 1, n=1, m=2)
    x = joint_inputs([first, second])
    assert torch.equal(x, torch.cat([first.query_x, first.support_x, second.query_x, second.support_x]))
    sizes = joint_sizes(torch.zeros(16, 16).double(), [first, second])
    assert sizes == ((4, 6), (2, 4))
    assert joint_slices(sizes) == [(slice(0, 4), slice(4, 10)), (slice(10, 12), slice(12, 16))]
    theta = with_spectrum(torch.arange(1.0, 9.0))
    rows = composition(theta, ((2, 3), (1, 2)), Converged(0.1))
    assert torch.equal(rows[:2, :2], torch.eye(2).double())
    assert not rows[:2, 5:].any()
    assert not rows[2:, :5].any()
    assert float(rows[2, 5]) == 1


@pytest.mark.parametrize("dynamics", LOOPS, ids=lambda each: type(each).__name__)
def test_the_meta_ntk_is_differentiated_also_where_eigenvalues_coincide(dynamics):
    """The last-layer kernel of k outputs has every eigenvalue k times."""
    theta = with_spectrum(torch.linspace(0.1, 3, 8)).requires_grad_()
    block = with_spectrum(torch.linspace(0.2, 1, 4), 1)
    head = torch.kron(block, torch.eye(2, dtype=torch.float64)).requires_grad_()
    sizes = [(4, 4)]

    def value(theta, head):
        symmetric = [(each + each.T) / 2 for each in (theta, head)]
        return conditioning(meta_ntk_from_ntk(symmetric[0], sizes, dynamics, symmetric[1]), "harmonic").log()

    assert torch.autograd.gradcheck(value, (theta, head), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: meta_ntk_from_ntk(torch.eye(5).double(), [(2, 2)], LOOPS[0]), ShapeError, "do not add up"),
        (lambda: meta_ntk_from_ntk(torch.eye(5).double(), [], LOOPS[0]), ShapeError, "do not add up"),
        (
            lambda: meta_ntk_from_ntk(torch.eye(5).double(), [(2, 3)], LOOPS[0], torch.eye(4).double()),
            ShapeError,
            "adaptation has shape",
        ),
        (
            lambda: meta_ntk_from_ntk(torch.arange(25.0).reshape(5, 5).double(), [(3, 2)], LOOPS[0]),
            ValueRangeError,
            "not symmetric",
        ),
        (
            lambda: meta_ntk_from_ntk(torch.ones(5).double(), [(2, 3)], LOOPS[0]),
            ShapeError,
            "theta has shape",
        ),
        (
            lambda: meta_ntk_from_ntk(torch.eye(5).double(), [(1, 1), (2, 1.5)], LOOPS[0]),
            ShapeError,
            "whole numbers",
        ),
        (
            lambda: meta_ntk_from_ntk(torch.eye(5).double(), [(2, 1, 2)], LOOPS[0]),
            ShapeError,
            "whole numbers",
        ),
        (lambda: meta_ntk_from_ntk(torch.eye(5).double(), [5], LOOPS[0]), ShapeError, "whole numbers"),
        (lambda: meta_ntk_from_ntk(torch.eye(5).double(), 5, LOOPS[0]), ShapeError, "whole numbers"),
        (lambda: meta_ntk(torch.nn.Linear(4, 3).double(), [task(k=2)]), ShapeError, "labels"),
        (
            lambda: meta_ntk(torch.nn.Linear(4, 1).double(), [task()], "reptile"),
            ValueRangeError,
            "'maml' or 'anil'",
        ),
        (lambda: joint_sizes(torch.eye(7).double(), [task()]), ShapeError, "whole number"),
        (lambda: joint_sizes(torch.eye(4).double(), [task()]), ShapeError, "whole number"),
        (
            lambda: analytic_meta_ntk(FullyConnected(4, 5, 1), [task()], "reptile", LOOPS[0]),
            ValueRangeError,
            "'maml' or 'anil'",
        ),
        (lambda: analytic_meta_ntk(FullyConnected(3, 5, 1), [task()], "maml", LOOPS[0]), ShapeError, "× 3"),
    ],
)
def test_kernels_and_tasks_that_do_not_fit_are_refused(call, error, message):
    with as_users_run_it(), pytest.raises(error, match=message):
        call()


def test_asymmetry_is_noticed_even_outside_of_the_support_blocks():
    theta = with_spectrum([1.0, 2.0, 3.0, 4.0, 5.0]).clone()
    theta[0, 1] += 0.1
    with pytest.raises(ValueRangeError, match="not symmetric"):
        meta_ntk_from_ntk(theta, [(2, 3)], LOOPS[0])
