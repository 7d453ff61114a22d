import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory import generator
from mamltheory.kernels.layers import gram
from mamltheory.kernels.layers.gram import (
    COLUMNS,
    LONG,
    LayerFactors,
    add_contraction,
    add_grams,
    added_up,
    rows_pay,
    settled,
    symmetric_halves,
)
from tests.paper.cases import relative
from tests.strategies import seeds


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "inputs"), dtype=torch.float64)


@given(seed=seeds, positions=st.integers(1, 5), bias=st.sampled_from([0.0, 1.0, 0.3]), wide=st.booleans())
@settings(max_examples=15, deadline=None)
def test_factors_and_rows_have_the_same_gram_matrix(seed, positions, bias, wide):
    n, k, o, j = (100, 2, 3, 2) if wide else (3, 2, 4, 5)
    left, right = (
        LayerFactors(draw(m, positions, j, seed=seed + i), draw(m, k, positions, o, seed=seed + 2 + i), bias)
        for i, m in enumerate((n, 2))
    )
    for one, other in ((left, right), (left, left)):
        sums = [torch.zeros(one.rows.shape[0], other.rows.shape[0], dtype=torch.float64) for _ in range(2)]
        add_contraction(sums[:1], one, other)
        rows = one.rows
        add_contraction(sums[1:], rows, rows if other is one else other.rows)
        assert relative(sums[0], sums[1]) < 1e-13
        assert relative(sums[1], one.rows @ other.rows.T) < 1e-13


@pytest.mark.parametrize("rows", [1, 95, 96, 97, 200, 401])
def test_strips_and_blocks_of_columns_give_the_whole_gram_matrix(rows):
    one, other = (draw(rows, COLUMNS + 3, seed=seed).float() for seed in (0, 1))
    for right in (one, other):
        total = torch.ones(rows, rows, dtype=torch.float64)
        add_contraction([total], one, right)
        assert relative(total - 1, one.double() @ right.double().T) < 1e-13
        if right is one:
            assert torch.equal(total, total.T)


def test_many_positions_are_contracted_as_rows_and_few_as_factors():
    few, many = (LayerFactors(torch.zeros(4, p, 64), torch.zeros(4, 2, p, 64)) for p in (2, 500))
    assert isinstance(settled(few, 50), LayerFactors)
    assert isinstance(settled(many, 50), torch.Tensor)


@given(count=st.integers(1, 60), columns=st.integers(1, 40))
@settings(max_examples=8, deadline=None)
def test_gram_matrices_go_to_the_groups_that_the_rows_belong_to(count, columns):
    rows = draw(8 * count, columns, seed=count)
    totals = torch.ones(3, 4 * count, 4 * count, dtype=torch.float64)
    add_grams(totals, rows, (2, 0))
    each = rows.reshape(2, 4 * count, columns)
    expected = torch.stack(
        [1 + each[1] @ each[1].T, torch.ones(4 * count, 4 * count), 1 + each[0] @ each[0].T]
    )
    torch.testing.assert_close(totals, expected)


@pytest.mark.parametrize("images", [3, 70])
def test_gram_matrices_of_long_rows_are_those_of_double_precision(images):
    rows = draw(4 * images, LONG + 7, seed=images).float()
    totals = torch.zeros(3, 2 * images, 2 * images, dtype=torch.float64)
    add_grams(totals, rows, (2, 0))
    each = rows.double().reshape(2, 2 * images, -1)
    for place, exact in zip((2, 0), each @ each.mT, strict=True):
        assert float((totals[place] - exact).abs().max()) <= 1e-6 * float(exact.max())
    assert not totals[1].any()


@pytest.mark.parametrize("numbers", [1, 60, 100, 240, 10**6])
def test_blocks_hold_every_pair_of_samples_once_and_no_more_numbers_than_they_may(monkeypatch, numbers):
    monkeypatch.setattr(gram, "BLOCK", numbers)
    seen = torch.zeros(5, 7, dtype=torch.int64)
    for rows, columns in gram._blocks(5, 7, 6):
        pairs = seen[rows, columns].numel()
        assert pairs == 1 or 6 * pairs <= numbers
        seen[rows, columns] += 1
    assert torch.equal(seen, torch.ones_like(seen))
    first = next(gram._blocks(5, 7, 6))
    expected = {1: (1, 1), 60: (1, 7), 100: (2, 7), 240: (5, 7), 10**6: (5, 7)}[numbers]
    assert tuple(part.stop for part in first) == expected
    left, right = (LayerFactors(draw(n, 2, 3, seed=n), draw(n, 2, 2, 4, seed=n + 1), 0.5) for n in (5, 7))
    total = torch.zeros(10, 14, dtype=torch.float64)
    add_contraction([total], left, right)
    assert relative(total, left.rows @ right.rows.T) < 1e-13


def test_factors_are_rows_where_these_take_fewer_products():
    """2nkp·oj products make rows, and (nk)²·oj contract them; factors take (np)²·j and (nkp)²·o, and 8 a pair."""
    sizes = itertools.product((1, 2, 5), (1, 3, 20), (1, 4, 30), (1, 3), (1, 4, 12))
    for positions, j, o, k, n in sizes:
        by_rows = 2 * n * k * positions * o * j + (n * k) ** 2 * o * j
        by_factors = (n * positions) ** 2 * j + (n * k * positions) ** 2 * (o + (8 if positions > 1 else 0))
        assert rows_pay(positions, j, o, k, n) == (by_rows < by_factors)


def test_one_side_as_factors_and_the_other_as_rows_is_refused():
    factors = LayerFactors(draw(2, 1, 3), draw(2, 1, 1, 3))
    assert factors.rows.shape == (2, 9)  # no bias unless there is one
    for left, right in ((factors, factors.rows), (factors.rows, factors)):
        with pytest.raises(TypeError, match="both in the same form"):
            add_contraction([torch.zeros(2, 2)], left, right)


def test_rows_of_all_groups_are_added_to_all_totals():
    totals = torch.ones(3, 2, 2, dtype=torch.float64)
    rows = draw(6, 5)
    add_grams(totals, rows, (0, 1, 2))
    torch.testing.assert_close(totals, 1 + rows.view(3, 2, 5) @ rows.view(3, 2, 5).mT)


@pytest.mark.parametrize(("k", "shape"), [(1, (5, 6)), (3, (5, 3, 2))])
def test_weighted_sums_of_rows_and_of_factors_have_the_shapes_of_the_parameters(k, shape):
    """A weight comes before its bias, whatever their names."""
    factors, weights = LayerFactors(draw(4, 2, 6), draw(4, k, 2, 5, seed=1), 1.0), draw(4, k, seed=2)
    shapes = {"w": torch.zeros(shape), "b": torch.zeros(5)}
    exact = {
        "w": torch.einsum("nk,nkpo,npj->oj", weights, factors.cotangents, factors.inputs).view(shape),
        "b": torch.einsum("nk,nkpo->o", weights, factors.cotangents),
    }
    for gradients in (factors, factors.rows):
        found = added_up(frozenset(exact), gradients, weights, shapes)
        assert set(found) == {"w", "b"}
        for name, right in exact.items():
            torch.testing.assert_close(found[name], right)


def test_halves_make_a_matrix_symmetric():
    totals = draw(2, 3, 3)
    halves = symmetric_halves(totals)
    assert torch.equal(halves, halves.mT)
    torch.testing.assert_close(halves[1], 0.5 * totals[1] + 0.5 * totals[1].T)
