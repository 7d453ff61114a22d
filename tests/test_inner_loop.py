"""Rates, factors and gradients of single inner steps."""

import pytest
import torch
from torch.func import jacrev

from mamltheory import InnerLoop, Model, Task
from mamltheory.dynamics import GradientDescent, ScheduledDescent
from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError
from mamltheory.inner_loop import adapted_names, inner_path, plain_gradient, square_loss

P = {"w": torch.tensor([[1.0, -2.0]]).double(), "b": torch.tensor([0.5]).double()}
LINE = Model(lambda params, x: x @ params["w"].T + params["b"], scale=2.0, head=frozenset({"b"}))
X, Y = torch.tensor([[1.0, 3.0], [2.0, 0.0]]).double(), torch.tensor([[1.0], [0.0]]).double()
TASK = Task(X, Y, X, Y)


def test_by_default_there_is_one_plain_step_of_second_order():
    assert (InnerLoop(0.1).tau, InnerLoop(0.1).first_order, InnerLoop(0.1).algorithm) == (1, False, "maml")
    assert InnerLoop(0.1, 3).rates == (0.1, 0.1, 0.1)
    assert InnerLoop((0.1, 0.2), 2).rates == (0.1, 0.2)
    assert InnerLoop(0.1, 3).dynamics == GradientDescent(0.1, 3)
    assert InnerLoop((0.1, 0.2), 2).dynamics == ScheduledDescent((0.1, 0.2))
    loops = (
        InnerLoop(0.1),
        InnerLoop((0.1,)),
        InnerLoop(0.1, select=["w"]),
        InnerLoop(0.1, factors={"w": 2.0}),
    )
    assert [loop.plain for loop in loops] == [True, False, False, False]


@pytest.mark.parametrize(
    "factors",
    [None, {"w": torch.tensor([1.0, 3.0]).double()}, {"w": -2.0}, {"b": torch.tensor(4.0).double()}],
)
@pytest.mark.parametrize(("algorithm", "select"), [("maml", None), ("maml", ["w"]), ("anil", None)])
@pytest.mark.parametrize("first_order", [False, True])
def test_a_path_is_that_of_steps_by_hand(factors, algorithm, select, first_order):
    """∇_w ℓ = Σ r x and ∇_b ℓ = Σ r with the residual r; two rates, each divided by the scale of the network."""
    moving = {"b"} if algorithm == "anil" else set(select or P)
    inner = InnerLoop((0.3, 0.1), 2, algorithm, first_order, select, factors)
    params = {name: value.clone().requires_grad_() for name, value in P.items()}
    path, theta = inner_path(LINE, params, TASK, inner), dict(P)
    assert adapted_names(LINE, params, inner) == moving
    for step, rate in enumerate((0.3, 0.1), 1):
        residual = X @ theta["w"].T + theta["b"] - Y
        gradient = {"w": residual.T @ X, "b": residual.sum(0)}
        theta = {
            n: v - rate / 2 * (factors or {}).get(n, 1.0) * gradient[n] * (n in moving)
            for n, v in theta.items()
        }
        for name, value in theta.items():
            torch.testing.assert_close(path[step][name], value)
    slope = torch.autograd.grad(path[-1]["b"].sum(), params["b"])[0]
    factor = float((factors or {}).get("b", 1.0))
    curvature = (
        (1 - 0.15 * factor * 2) * (1 - 0.05 * factor * 2) if "b" in moving and not first_order else 1.0
    )
    if moving == {"b"} or first_order or "b" not in moving:
        assert float(slope) == pytest.approx(curvature, rel=1e-12)


def test_inside_a_transform_a_path_has_the_same_derivative():
    """∂b'/∂b = 1 − λ m for m samples, with λ = 0.3 / 2."""
    inner = InnerLoop(0.3, select=["b"])
    slope = jacrev(lambda b: inner_path(LINE, {**P, "b": b}, TASK, inner)[-1]["b"])(P["b"])
    assert float(slope) == pytest.approx(1 - 0.15 * 2, rel=1e-14)


def test_the_loss_is_half_the_sum_of_squares():
    assert float(square_loss(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 2.0]))) == 0.5 * (4 + 9)


def test_plain_gradients_are_differentiable_where_some_value_is_and_zero_where_nothing_depends_on_it():
    values = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(3.0), "idle": torch.ones(2)}
    gradient = plain_gradient(lambda p: p["a"] * p["b"] ** 2, values)
    assert [each.tolist() for each in gradient.values()] == [9.0, 12.0, [0.0, 0.0]]
    assert float(torch.autograd.grad(gradient["b"], values["a"])[0]) == 6.0
    constant = plain_gradient(lambda p: p["a"] * p["b"], {"a": torch.tensor(2.0), "b": torch.tensor(3.0)})
    assert not constant["a"].requires_grad


@pytest.mark.parametrize(
    ("inner", "error", "message"),
    [
        (InnerLoop(0.1, factors={"other": 1.0}), ConfigurationError, "factors names"),
        (InnerLoop(0.1, algorithm="anil", select=["w"]), ConfigurationError, "that the algorithm moves"),
        (InnerLoop(0.1, factors={"w": torch.ones(3)}), ShapeError, "expected a number or the parameter's"),
    ],
)
def test_loops_that_do_not_fit_the_parameters_are_refused(inner, error, message):
    with pytest.raises(error, match=message):
        inner_path(LINE, P, TASK, inner)
    with pytest.raises(UnsupportedModelError, match="last linear layer"):
        adapted_names(Model(LINE.function), P, InnerLoop(0.1, algorithm="anil"))
    frozen = Model(LINE.function, head=frozenset({"b"}), frozen=frozenset({"b"}))
    with pytest.raises(ConfigurationError, match="is frozen"):
        adapted_names(frozen, P, InnerLoop(0.1, algorithm="anil"))
    assert adapted_names(frozen, P, InnerLoop(0.1)) == {"w"}
