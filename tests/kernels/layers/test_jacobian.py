"""Rows of the Jacobian by either way, and the comparison by which wrong rows are noticed."""

import math

import pytest
import torch
from torch.func import vmap

from mamltheory import Model, generator
from mamltheory.errors import UnsupportedModelError
from mamltheory.kernels.layers import jacobian as rows_of
from mamltheory.kernels.layers.jacobian import adds_up, checked_rows, gradients_of, gram, jacobian, plain_rows
from tests.own_networks import Approximate


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "rows"), dtype=torch.float64)


PARAMS = {
    "weight": draw(3, 4, seed=1), "bias": draw(3, seed=2), "idle": draw(2, seed=3), "empty": torch.zeros(0)
}  # fmt: skip
X = draw(2, 4)


def network(params, x):
    return torch.sin(x @ params["weight"].T) + params["bias"]


def exact():
    """∂f_c/∂W_{bj} = δ_cb cos(w_b · x) x_j, and ∂f_c/∂b_b = δ_cb: two samples, three outputs."""
    slopes = torch.cos(X @ PARAMS["weight"].T)
    weight = torch.einsum("cb,nb,nj->ncbj", torch.eye(3).double(), slopes, X)
    bias, idle = torch.eye(3).double().expand(2, 3, 3), torch.zeros(2, 3, 2).double()
    return {"weight": weight, "bias": bias, "idle": idle, "empty": torch.zeros(2, 3, 0)}


WAYS = torch.eye(3).double().expand(2, 3, 3)


@pytest.mark.parametrize("chunk", [None, 1])
def test_rows_are_sample_major_and_those_of_the_sum_are_summed_over_outputs(chunk):
    model = Model(network, frozen=frozenset({"bias"}))
    found = jacobian(model, PARAMS, X, chunk=chunk)
    assert set(found) == {"weight", "idle", "empty"}
    summed = jacobian(model, PARAMS, X, "sum", ["bias", "weight"], chunk)
    assert set(summed) == {"bias", "weight"}
    for name, right in exact().items():
        if name in found:
            torch.testing.assert_close(found[name], right.flatten(0, 1), check_dtype=name != "empty")
        if name in summed:
            torch.testing.assert_close(summed[name], right.sum(1))


def single(own, i):
    return network({**PARAMS, **own}, X[i : i + 1])[0]


def whole(own):
    return network({**PARAMS, **own}, X)


def test_plain_rows_come_with_the_outputs():
    outputs, rows = plain_rows(single, 2 * WAYS, PARAMS)
    torch.testing.assert_close(outputs, whole(PARAMS))
    for name, right in exact().items():
        torch.testing.assert_close(rows[name], 2 * right, check_dtype=name != "empty")


@pytest.mark.parametrize("name", ["weight", "bias", "idle"])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_rows_add_up_unless_one_number_of_them_is_wrong(name, place):
    rows = {key: value.clone() for key, value in exact().items()}
    assert adds_up(rows, whole, WAYS, PARAMS)
    assert adds_up({key: 3 * value for key, value in rows.items()}, whole, 3 * WAYS, PARAMS)
    two = {key: value[:, :2] for key, value in rows.items()}
    assert adds_up(two, whole, WAYS[:, :2], PARAMS)
    rows[name][place].view(-1)[-1] += 1e-9
    assert not adds_up(rows, whole, WAYS, PARAMS)
    assert adds_up(rows, whole, WAYS, PARAMS, 1e-6) == (name != "idle")
    rows[name][place].view(-1)[-1] = math.nan
    assert not adds_up(rows, whole, WAYS, PARAMS, 1.0)


def test_wrong_rows_give_way_to_plain_ones_and_the_reason_is_said_once(caplog):
    wrong = {name: 2 * value for name, value in exact().items()}
    rows_of._said.clear()
    for _ in range(2):
        rows = checked_rows(lambda: wrong, whole, single, WAYS, PARAMS)
        for name, right in exact().items():
            torch.testing.assert_close(rows[name], right, check_dtype=name != "empty")
    (said,) = caplog.records
    assert "by bias, empty, idle and 1 more (it gives other gradients than plain" in said.getMessage()
    assert checked_rows(exact, whole, single, WAYS, PARAMS)["weight"].shape == (2, 3, 3, 4)

    def failing():
        raise RuntimeError("first line\nsecond line")

    caplog.clear()
    three = {name: PARAMS[name] for name in ("weight", "bias", "idle")}
    torch.testing.assert_close(checked_rows(failing, whole, single, WAYS, three)["bias"], exact()["bias"])
    assert "by bias, idle, weight (first line):" in caplog.records[0].getMessage()
    assert len(caplog.records) == 1


def test_rows_of_single_samples_that_do_not_add_up_are_refused():
    """A gradient that is 1e-6 larger in a batch is noticed, and one that is 5e-8 larger is rounding."""
    wrong = {"bias": 2 * exact()["bias"]}
    values = {"bias": PARAMS["bias"]}
    for size, refused in ((1e-6, True), (5e-8, False)):

        def in_batch(own, size=size):
            return whole(own) * (1 + size)

        if refused:
            with pytest.raises(UnsupportedModelError, match="mixes samples"):
                checked_rows(lambda: wrong, in_batch, single, WAYS, values)
        else:
            rows = checked_rows(lambda: wrong, in_batch, single, WAYS, values)
            torch.testing.assert_close(rows["bias"], exact()["bias"])


def test_a_batching_rule_that_is_wrong_in_its_seventh_digit_is_not_taken():
    model = Model(lambda params, x: Approximate.apply(network(params, x)))
    rows = jacobian(model, PARAMS, X)
    for name, right in exact().items():
        torch.testing.assert_close(
            rows[name], right.flatten(0, 1), rtol=1e-12, atol=0, check_dtype=name != "empty"
        )


def test_what_does_not_depend_on_values_has_gradients_of_zero():
    values = [draw(2).requires_grad_(), draw(3).requires_grad_()]
    for output in (torch.ones(2).double(), values[0] * 2):
        first, second = gradients_of(output, values, torch.ones(2).double())
        assert torch.equal(second, torch.zeros(3))
        assert torch.equal(first, torch.full((2,), 2.0 if output.requires_grad else 0.0).double())


def test_inside_a_transform_the_fast_rows_are_taken_as_they_are():
    wrong = vmap(lambda bias: checked_rows(lambda: {"bias": 2 * bias}, whole, single, WAYS, {"bias": bias}))(
        torch.stack([PARAMS["bias"]] * 2)
    )
    assert torch.equal(wrong["bias"][1], 2 * PARAMS["bias"])


def test_the_gram_matrix_sums_over_parameters_in_the_dtype_that_is_asked_for():
    one, two = ({"a": draw(n, 3, 2, seed=n), "b": draw(n, 5, seed=n + 1)} for n in (4, 3))
    expected = one["a"].flatten(1) @ two["a"].flatten(1).T + one["b"] @ two["b"].T
    torch.testing.assert_close(gram(one, two), expected)
    narrow = {name: value.float() for name, value in one.items()}
    assert gram(narrow, narrow).dtype == torch.float64
    assert gram(one, two, torch.float32).dtype == torch.float32
    own = gram(one, one)
    assert torch.equal(own, own.T)
    torch.testing.assert_close(own, one["a"].flatten(1) @ one["a"].flatten(1).T + one["b"] @ one["b"].T)
