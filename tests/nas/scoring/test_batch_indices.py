import torch

from mamltheory.nas.scoring.batch_indices import averaged, batch_indices, holders

BOTH, ONE, OTHER, NONE = ("a", "b"), ("a",), ("b",), ()


def test_the_indices_of_a_batch_are_those_of_the_candidates_that_hold_an_operation():
    edges = [[BOTH, ONE, OTHER], [BOTH, BOTH, BOTH], [ONE, OTHER, NONE]]
    found = batch_indices(edges, 2, torch.zeros(1, dtype=torch.float64))
    assert {group: each.tolist() for group, each in found.places.items()} == {
        (0, 1): [0, 1],
        (0, 2): [0, 2],
        (0,): [0],
        (1,): [1],
    }
    assert {group: each.tolist() for group, each in found.rows.items()} == {
        (0, 1): [0, 1, 2, 3],
        (0, 2): [0, 1, 4, 5],
        (0,): [0, 1],
        (1,): [2, 3],
    }
    (counts,) = found.counts.values()
    assert list(found.counts) == [(2, 1, 1)], "an edge that averages one operation everywhere needs no counts"
    assert counts.dtype == torch.float64
    assert counts.flatten().tolist() == [2, 2, 1, 1, 1, 1]


def test_equal_candidates_need_no_indices():
    found = batch_indices([[BOTH, BOTH]], 3, torch.zeros(1))
    assert not found.places
    assert not found.rows
    assert not found.counts
    assert holders("b", [BOTH, BOTH]) == (0, 1)
    assert averaged([NONE, BOTH]) == (1, 2)
