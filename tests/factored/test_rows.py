"""Rows as factors and multiplied out, against every product written out."""

import itertools

import pytest
import torch

from mamltheory import generator
from mamltheory.factored.rows import DenseRows, FactoredRows, is_smaller_dense, numbers_per_row

BETA, OUT, FAN_IN, QUERIES, OUTPUTS = 0.7, 3, 5, 2, 3
ROWS = QUERIES * OUTPUTS


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, f"rows {shape}"), dtype=torch.float64)


def factored(tasks, terms, own_terms, empty, seed=0):
    """Terms before ``empty`` hold what must not be read."""
    d, e = draw(tasks, terms, ROWS, OUT, seed=seed), draw(tasks, own_terms, ROWS, FAN_IN, seed=seed)
    d[:, :empty] = e[:, :empty] = torch.nan
    return FactoredRows(
        draw(tasks, ROWS, OUT, seed=seed),
        draw(tasks, QUERIES, FAN_IN, seed=seed),
        draw(tasks, terms, FAN_IN, seed=seed + 1),
        d,
        draw(tasks, own_terms, OUT, seed=seed + 1),
        e,
        BETA,
        empty,
    )


def written_out(rows):
    """V_R and its part of the bias without β, task by task and row by row."""
    if isinstance(rows, DenseRows):
        return rows.weight, rows.bias
    tasks, start = len(rows.g), rows.start
    weight, bias = torch.zeros(tasks, ROWS, OUT, FAN_IN).double(), rows.g.clone()
    for t, r in itertools.product(range(tasks), range(ROWS)):
        weight[t, r] = torch.outer(rows.g[t, r], rows.a_query[t, r // OUTPUTS])
        for term in range(start, rows.a.shape[1]):
            weight[t, r] += torch.outer(rows.d[t, term, r], rows.a[t, term])
            bias[t, r] += rows.d[t, term, r]
        for term in range(start, rows.delta.shape[1]):
            weight[t, r] += torch.outer(rows.delta[t, term], rows.e[t, term, r])
    return weight, bias


def dense(rows):
    return DenseRows(*(part.clone() for part in written_out(rows)), BETA)


FORMS = {
    "factors": lambda tasks, seed: factored(tasks, 4, 4, 0, seed),
    "some empty": lambda tasks, seed: factored(tasks, 4, 4, 2, seed),
    "all empty": lambda tasks, seed: factored(tasks, 4, 4, 4, seed),
    "no E": lambda tasks, seed: factored(tasks, 4, 0, 0, seed),
    "none": lambda tasks, seed: factored(tasks, 0, 0, 0, seed),
    "dense": lambda tasks, seed: dense(factored(tasks, 2, 2, 0, seed)),
}


@pytest.mark.parametrize("form", FORMS)
def test_products_with_rows_are_those_of_the_matrices(form):
    rows = FORMS[form](2, 0)
    weight, bias = written_out(rows)
    x, y = draw(2, 4, FAN_IN, seed=8), draw(2, 4, OUT, seed=9)
    assert rows.size == (2, ROWS)
    expected = torch.einsum("troi,txi->txro", weight, x) + BETA**2 * bias[:, None]
    torch.testing.assert_close(rows.times(x), expected)
    torch.testing.assert_close(rows.transposed_times(y), torch.einsum("troi,txo->txri", weight, y))
    for part, right in zip(written_out(rows.of_task(1)), (weight[1:], bias[1:]), strict=True):
        torch.testing.assert_close(part, right)
    narrow = rows.to(torch.float32)
    torch.testing.assert_close(narrow.times(x.float()), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("right", FORMS)
@pytest.mark.parametrize("left", FORMS)
def test_gram_matrices_of_any_forms_sum_over_weights_and_biases(left, right):
    one, other = FORMS[left](2, 0), FORMS[right](3, 4)
    (weight, bias), (other_weight, other_bias) = written_out(one), written_out(other)
    expected = torch.einsum("troi,usoi->trus", weight, other_weight)
    expected += BETA**2 * torch.einsum("tro,uso->trus", bias, other_bias)
    torch.testing.assert_close(one.gram(other), expected)


@pytest.mark.parametrize("form", ["factors", "dense"])
def test_the_gram_matrix_of_rows_with_themselves_has_the_blocks_on_and_above_the_diagonal(form):
    rows = FORMS[form](3, 0)
    weight, bias = written_out(rows)
    expected = torch.einsum("troi,usoi->trus", weight, weight) + BETA**2 * torch.einsum(
        "tro,uso->trus", bias, bias
    )
    found = rows.gram(rows)
    for t, u in itertools.product(range(3), range(3)):
        if t <= u or form == "dense":
            torch.testing.assert_close(found[t, :, u], expected[t, :, u])
        else:
            assert not found[t, :, u].any()


@pytest.mark.parametrize("with_e", [False, True])
def test_a_step_adds_its_terms_in_either_form(with_e):
    """Two support samples: they fill the last empty terms of factors, and are added to matrices."""
    rows = factored(2, 4, 4 if with_e else 0, 4)
    matrices = dense(rows)
    for step in range(2):
        d, e = draw(2, 2, ROWS, OUT, seed=20 + step), draw(2, 2, ROWS, FAN_IN, seed=20 + step)
        last = slice(2 - 2 * step, 4 - 2 * step)
        a, delta = rows.a[:, last], draw(2, 2, OUT, seed=5) if not with_e else rows.delta[:, last]
        for each in (rows, matrices):
            each.add_step(a, d, delta, e if with_e else None)
        assert rows.start == last.start
        for found, right in zip(written_out(rows), (matrices.weight, matrices.bias), strict=True):
            torch.testing.assert_close(found, right)
    again = draw(2, 4, ROWS, OUT, seed=30)  # no term is empty: the same activations in every step
    before = rows.d.clone()
    rows.add_step(rows.a, again, delta, None)
    torch.testing.assert_close(rows.d, before + again)


def test_rows_are_multiplied_out_where_they_then_hold_fewer_numbers():
    """A row of 3 × 2 with its bias holds 9 numbers; D_α hold 3 each, E_α 2 each, and g another 3."""
    assert not is_smaller_dense(2, 3, 1, 3)  # 9 against 9
    assert is_smaller_dense(2, 3, 2, 2)  # 9 against 10
    assert not is_smaller_dense(2, 3, 2, 1)
    assert numbers_per_row(2, 3, 2, 2) == 9
    assert numbers_per_row(2, 3, 2, 1) == 3 + 6 + 2
    assert numbers_per_row(7, 2, 1, 3) == 2 * 8  # and 2 + 2 + 3 · 7 as factors
    assert numbers_per_row(7, 2, 4, 0) == 2 + 4 * 2
