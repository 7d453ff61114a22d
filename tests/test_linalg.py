import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import (
    Converged,
    GradientDescent,
    GradientFlow,
    condition_number,
    generator,
    residual_operator,
    time_operator,
)
from mamltheory.errors import ShapeError, SingularKernelError, ValueRangeError
from mamltheory.linalg import (
    conditioning,
    divided_differences,
    learnt_values,
    residual_values,
    rounding_level,
    symmetrised,
)
from tests.paper.cases import relative
from tests.reference import closed_forms, spectral_mpmath
from tests.strategies import as_users_run_it, dynamics, kernels, with_spectrum

EPS = torch.finfo(torch.float64).eps
EIGENVALUES = [0.0, 1e-300, 1e-17, 1e-9, 1e-3, 0.5, 1.0, 7.0, 1e3, 1e6, 1e12]
FINITE = [GradientFlow(0.7), GradientDescent(0.1, 5)]
TIMES = [0.0, 1e-300, 1e-12, 1.0, 1e3, 1e18, 1e300]


def error_in_eps(got, expected, sensitivity=0.0):
    """|got − expected| in units of eps · (|expected| + sensitivity), sensitivity = |x f'(x)| of the argument."""
    size = abs(expected) + sensitivity
    return float(abs(mpmath.mpf(got) - expected) / size) / EPS if size else float(abs(got))


@pytest.mark.parametrize("time", TIMES)
def test_gradient_flow_agrees_with_fifty_digits_from_zero_to_huge_times(time):
    loop = GradientFlow(time)
    for s in EIGENVALUES:
        got = learnt_values(torch.tensor([s], dtype=torch.float64), loop)[0].item()
        assert error_in_eps(got, spectral_mpmath.learnt(s, loop)) < 4, s
        rho, exact = (
            residual_values(torch.tensor([s], dtype=torch.float64), loop)[0].item(),
            spectral_mpmath.residual(s, loop),
        )
        rounding_of_the_exponent = float(exact * mpmath.mpf(time) * s)
        assert error_in_eps(rho, exact, rounding_of_the_exponent) < 4 or exact < 1e-300, s


@pytest.mark.parametrize("steps", [0, 1, 3, 1000])
def test_gradient_descent_agrees_with_fifty_digits_inside_and_outside_of_stability(steps):
    products = [0.0, 1e-300, 1e-17, 1e-9, 1e-3, 0.3, 0.4999, 0.5, 0.75, 1.0, 1.5, 1.999, 2.0, 2.05]
    for rate in (1e-12, 1.0, 3.0):
        loop = GradientDescent(rate, steps)
        for product in products:
            s = product / rate
            got = learnt_values(torch.tensor([s], dtype=torch.float64), loop)[0].item()
            exact = spectral_mpmath.learnt(s, loop)
            base = abs(1 - mpmath.mpf(rate) * s)
            rounding_of_the_base = float(steps * rate * base ** max(steps - 1, 0))  # δ(1 − λs) is eps
            assert error_in_eps(got, exact, rounding_of_the_base) < 8, (rate, product)


def test_without_steps_or_time_or_rate_nothing_is_learnt_and_all_of_the_residual_is_left():
    matrix = with_spectrum([0.0, 1.0, 5.0])
    for loop in (GradientDescent(0.3, 0), GradientDescent(0.0, 7), GradientFlow(0.0)):
        assert torch.equal(time_operator(matrix, loop), torch.zeros(3, 3).double())
        assert relative(residual_operator(matrix, loop), torch.eye(3).double()) < 1e-14


@settings(max_examples=60)
@given(kernels(), st.data())
def test_what_was_learnt_and_what_is_left_make_up_the_whole(kernel, data):
    matrix, s = kernel
    loop = data.draw(dynamics(top=float(s.max())))
    whole = matrix @ time_operator(matrix, loop) + residual_operator(matrix, loop)
    assert float((whole - torch.eye(len(s)).double()).abs().max()) < 1e-12


@settings(max_examples=40)
@given(kernels(condition=1e3), st.data())
def test_the_spectral_form_agrees_with_explicit_inverses_and_powers(kernel, data):
    matrix, s = kernel
    loop = data.draw(dynamics(top=float(s.max())))
    tolerance = 1e-10 * float(1 / s.min())
    assert (
        float((time_operator(matrix, loop) - closed_forms.time_operator(matrix, loop)).abs().max())
        < tolerance
    )
    assert float((residual_operator(matrix, loop) - closed_forms.residual(matrix, loop)).abs().max()) < 1e-10


@pytest.mark.paper("Eq. (8)", "Eq. (13)")
def test_many_small_steps_become_the_flow_at_rate_one_over_the_number_of_steps():
    matrix, time = with_spectrum([0.0, 0.3, 1.0, 4.0]), 1.7
    flow = time_operator(matrix, GradientFlow(time))
    errors = [relative(time_operator(matrix, GradientDescent(time / n, n)), flow) for n in (100, 1000, 10000)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(10, rel=0.01)


def test_long_times_converge_to_the_inverse_and_a_small_ridge_to_none():
    matrix = with_spectrum([0.2, 1.0, 4.0])
    inverse = torch.linalg.inv(matrix)
    for loop in (GradientFlow(1e6), GradientFlow(1e300), GradientDescent(0.4, 10**6), Converged()):
        assert relative(time_operator(matrix, loop), inverse) < 1e-13
        assert float(residual_operator(matrix, loop).abs().max()) < 1e-13
    ridged = torch.linalg.inv(matrix + 0.1 * torch.eye(3).double())
    assert relative(time_operator(matrix, Converged(ridge=0.1)), ridged) < 1e-13
    assert relative(time_operator(matrix, Converged(ridge=1e-13)), inverse) < 1e-11


def test_a_singular_kernel_is_harmless_for_finite_time():
    x = torch.randn(9, 3, generator=generator(1, "features"), dtype=torch.float64)
    matrix = x @ x.T
    assert float(torch.linalg.eigvalsh(matrix)[0]) < 0  # by rounding
    projection = torch.eye(9).double() - x @ torch.linalg.pinv(x)
    for loop in (GradientFlow(1e6), GradientFlow(1e10), GradientDescent(1 / float(matrix.trace()), 10**6)):
        assert float((residual_operator(matrix, loop) - projection).abs().max()) < 1e-4
        assert relative(x.T @ time_operator(matrix, loop) @ x, torch.eye(3).double()) < 1e-4
    assert float(residual_operator(matrix.float(), GradientFlow(1e4)).abs().max()) < 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_at_the_longest_time_that_is_accepted_no_residual_grows(dtype):
    """Eigenvalues of −1e-17 instead of 0 would let them grow as e^{ts}."""
    x = torch.randn(9, 3, generator=generator(1, "features"), dtype=torch.float64)
    matrix = (x @ x.T).to(dtype)
    eigenvalues = torch.linalg.eigvalsh(symmetrised(matrix))
    longest = 0.99 / rounding_level(eigenvalues, dtype)
    rate = 1 / float(eigenvalues[-1])
    assert float(eigenvalues[0]) * longest < -0.005
    for loop in (GradientFlow(longest), GradientDescent(rate, int(longest / rate))):
        left, learnt = residual_operator(matrix, loop), time_operator(matrix, loop)
        assert float(torch.linalg.eigvalsh(left)[-1]) < 1 + 1e-12
        assert float(torch.linalg.eigvalsh(learnt)[-1]) < longest * (1 + 1e-12)
    with pytest.raises(SingularKernelError, match="shorter time"):
        residual_operator(matrix, GradientFlow(1.1 / 0.99 * longest))


def test_a_time_so_long_that_rounding_would_decide_is_refused_on_a_singular_kernel():
    singular, regular = with_spectrum([0.0, 1.0, 2.0]), with_spectrum([1e-6, 1.0, 2.0])
    for operator in (time_operator, residual_operator):
        for loop in (GradientFlow(1e25), GradientDescent(0.5, 10**18)):
            with pytest.raises(SingularKernelError, match="shorter time"):
                operator(singular, loop)
            assert torch.isfinite(operator(regular, loop)).all()


@pytest.mark.parametrize("operator", [time_operator, residual_operator])
def test_infinite_time_refuses_a_singular_kernel_and_a_ridge_helps(operator):
    singular = with_spectrum([0.0, 1.0, 2.0])
    with pytest.raises(SingularKernelError, match="ridge"):
        operator(singular, Converged())
    with pytest.raises(SingularKernelError, match="ridge"):
        operator(singular, Converged(ridge=1e-18))
    assert torch.isfinite(operator(singular, Converged(ridge=1e-3))).all()


def test_the_rounding_of_the_dtype_that_the_kernel_came_in_decides_what_is_singular():
    matrix = with_spectrum([1e-9, 1.0, 2.0])
    assert relative(time_operator(matrix, Converged()), torch.linalg.inv(matrix)) < 1e-6
    assert condition_number(matrix) == pytest.approx(2e9, rel=1e-5)
    with pytest.raises(SingularKernelError):
        time_operator(matrix.float(), Converged())
    assert condition_number(matrix.float()) == math.inf


def test_a_loop_that_diverges_beyond_the_largest_number_is_refused():
    matrix = with_spectrum([1.0, 3.0])
    assert torch.isfinite(time_operator(matrix, GradientDescent(1.0, 100))).all()
    for operator in (time_operator, residual_operator):
        with pytest.raises(ValueRangeError, match="below 2"):
            operator(matrix, GradientDescent(1.0, 2000))
        with pytest.raises(ValueRangeError, match="positive semi-definite"):
            operator(with_spectrum([-1.0, 1.0]), GradientFlow(1e4))


@pytest.mark.parametrize(
    "function", [symmetrised, condition_number, lambda m: time_operator(m, Converged(1.0))]
)
@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.zeros(2, 3).double(), ShapeError, "square"),
        (torch.zeros(3).double(), ShapeError, "square"),
        (torch.zeros(0, 0).double(), ShapeError, "non-empty"),
        (torch.tensor([[1.0, math.nan], [math.nan, 1.0]]).double(), ValueRangeError, "NaN"),
        (torch.tensor([[1.0, 0.0], [0.0, math.inf]]).double(), ValueRangeError, "infinite"),
        (torch.tensor([[1.0, 0.5], [0.4, 1.0]]).double(), ValueRangeError, "not symmetric"),
        (torch.eye(2, dtype=torch.int64), ValueRangeError, "floating-point"),
    ],
    ids=["wide", "vector", "empty", "nan", "infinite", "asymmetric", "integer"],
)
def test_what_is_no_kernel_is_refused(function, matrix, error, message):
    with as_users_run_it(), pytest.raises(error, match=message):
        function(matrix)


def test_asymmetry_by_rounding_alone_is_removed():
    matrix = with_spectrum([1.0, 2.0, 3.0])
    tilted = matrix + 1e-14 * torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]]).double()
    assert torch.equal(symmetrised(tilted), symmetrised(tilted).T)
    assert relative(symmetrised(tilted), matrix) < 1e-13
    assert symmetrised(matrix.float()).dtype == torch.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda: GradientFlow(-1.0),
        lambda: GradientFlow(math.inf),
        lambda: GradientFlow(math.nan),
        lambda: GradientDescent(-0.1, 1),
        lambda: GradientDescent(math.nan, 1),
        lambda: GradientDescent(0.1, -1),
        lambda: GradientDescent(0.1, 1.5),
        lambda: GradientDescent(0.1, math.inf),
        lambda: GradientDescent(0.1, math.nan),
        lambda: Converged(-1e-3),
        lambda: Converged(math.nan),
    ],
)
def test_durations_out_of_range_are_refused(make):
    with as_users_run_it(), pytest.raises(ValueRangeError, match="expected"):
        make()


@pytest.mark.paper("Eq. (14)")
@settings(max_examples=60)
@given(kernels(condition=1e6), st.integers(-30, 30))
def test_the_condition_number_is_the_ratio_of_the_extremes_and_free_of_scale(kernel, exponent):
    matrix, s = kernel
    expected = float(s.max() / s.min())
    assert condition_number(matrix) == pytest.approx(expected, rel=1e-9)
    assert condition_number(2.0**exponent * matrix) == pytest.approx(condition_number(matrix), rel=1e-12)
    assert condition_number(matrix) >= 1


@pytest.mark.paper("Eq. (14)")
def test_the_condition_number_of_singular_and_indefinite_kernels_is_plus_infinity():
    assert condition_number(with_spectrum([0.0, 1.0])) == math.inf
    assert condition_number(with_spectrum([1e-17, 1.0])) == math.inf
    assert condition_number(with_spectrum([-1.0, 1.0])) == math.inf
    assert condition_number(with_spectrum([-2.0, -1.0])) == math.inf
    assert condition_number(torch.zeros(3, 3).double()) == math.inf
    assert condition_number(torch.ones(3, 3)) == math.inf


@pytest.mark.paper("Eq. (14)")
def test_conditioning_is_the_ratio_of_extreme_eigenvalues_or_the_harmonic_mean_ratio():
    kernel = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
    assert float(conditioning(kernel)) == pytest.approx(4.0) == condition_number(kernel)
    trace = kernel.trace() * torch.linalg.inv(kernel).trace() / 9
    assert float(conditioning(kernel, "harmonic")) == pytest.approx(float(trace))


@pytest.mark.parametrize("measure", ["condition", "harmonic"])
def test_a_singular_kernel_scores_infinity_in_the_precision_of_the_gradients(measure):
    for least in (0.0, -1e-9, 1e-9):
        kernel = torch.diag(torch.tensor([1.0, least], dtype=torch.float64))
        assert float(conditioning(kernel, measure, torch.float32)) == math.inf
    kernel = torch.diag(torch.tensor([1.0, 1e-9], dtype=torch.float64))
    assert float(conditioning(kernel, measure, torch.float64)) < math.inf


@pytest.mark.parametrize("measure", ["condition", "harmonic"])
def test_the_conditioning_is_differentiated_also_where_eigenvalues_coincide(measure):
    """The extremes are single: at a multiple largest eigenvalue the ratio itself has no derivative."""
    kernel = with_spectrum([0.3, 1.0, 1.0, 4.0]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: conditioning((m + m.T) / 2, measure), kernel, eps=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "loop", [*FINITE, GradientFlow(0.0), GradientDescent(0.4, 60), Converged(0.1)], ids=str
)
def test_the_time_operator_is_differentiated_also_where_eigenvalues_coincide(loop):
    for spectrum in ([0.3, 1.0, 1.0, 4.0], [0.0, 0.0, 1e-9, 2.0], [1.0, 1.0, 1.0 + 1e-7]):
        matrix = with_spectrum(spectrum).requires_grad_()
        function = lambda m: time_operator((m + m.T) / 2, loop)  # noqa: E731
        assert torch.autograd.gradcheck(function, matrix, eps=1e-5, atol=1e-5)
    separate = with_spectrum([0.3, 1.0, 2.5]).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda m: time_operator((m + m.T) / 2, loop), separate, eps=1e-5, atol=1e-5
    )


def test_the_time_operator_has_the_jacobian_of_torch_func_and_the_dtype_of_its_matrix():
    matrix, loop = with_spectrum([0.3, 1.0, 2.5]), GradientFlow(0.7)
    jacobian = torch.func.jacrev(lambda m: time_operator(m, loop))(matrix)
    direction = torch.diag(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    slope = (
        time_operator(matrix + 1e-6 * direction, loop) - time_operator(matrix - 1e-6 * direction, loop)
    ) / 2e-6
    assert relative(torch.einsum("abij,ij->ab", jacobian, direction), slope) < 1e-8
    along = torch.func.jvp(lambda m: time_operator(m, loop), (matrix,), (direction,))[1]
    assert relative(along, slope) < 1e-8
    narrow = matrix.float().requires_grad_()
    (gradient,) = torch.autograd.grad(time_operator(narrow, loop).sum(), narrow)
    assert gradient.dtype == torch.float32


@pytest.mark.parametrize("dynamics", FINITE, ids=lambda each: type(each).__name__)
def test_divided_differences_are_continuous_where_eigenvalues_meet(dynamics):
    far = torch.tensor([0.5, 0.7, 2.0], dtype=torch.float64)
    operator = torch.diagonal(time_operator(torch.diag(far), dynamics))
    expected = (operator[0] - operator[2]) / (far[0] - far[2])
    assert float(divided_differences(far, dynamics)[0, 2]) == pytest.approx(float(expected), rel=1e-9)
    for gap in (0.0, 1e-12, 1e-7, 1e-4):
        near = torch.tensor([0.5, 0.5 + gap], dtype=torch.float64)
        middle = torch.tensor([0.5 + gap / 2 - 1e-3, 0.5 + gap / 2 + 1e-3], dtype=torch.float64)
        slope = divided_differences(middle, dynamics)[0, 1]
        assert float(divided_differences(near, dynamics)[0, 1]) == pytest.approx(float(slope), rel=1e-5)
    assert bool((divided_differences(far, GradientFlow(0.0)) == 0).all())


def test_the_condition_number_of_a_float32_kernel_is_taken_in_float64():
    matrix = with_spectrum([1e-3, 0.5, 1.0])
    assert condition_number(matrix.float()) == pytest.approx(1000, rel=1e-3)


def test_the_level_of_rounding_is_that_of_as_many_numbers_of_the_largest_size():
    for dtype in (torch.float32, torch.float64):
        eps = torch.finfo(dtype).eps
        assert rounding_level(torch.tensor([1.0, -8.0, 2.0]).double(), dtype) == 3 * eps * 8
    assert rounding_level(torch.ones(2).double()) == 2 * torch.finfo(torch.float64).eps


def test_without_time_nothing_changes_with_an_eigenvalue():
    s = torch.tensor([0.0, 0.5, 2.0]).double()
    for loop in (GradientDescent(0.0, 3), GradientDescent(0.1, 0), GradientFlow(0.0)):
        found = divided_differences(s, loop)
        assert torch.equal(found, torch.zeros(3, 3, dtype=torch.float64))
        assert found.dtype == torch.float64
