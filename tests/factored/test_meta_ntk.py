"""The tiles of tasks of the factored MetaNTK, and where its blocks stand."""

import pytest
import torch

from mamltheory import FullyConnected, InnerLoop, generator
from mamltheory.errors import ConfigurationError
from mamltheory.factored.fast_weights import stack_tasks
from mamltheory.factored.meta_ntk import _tiles, factored_meta_ntk, tile_bytes
from tests.reference.meta_rows import meta_gram
from tests.strategies import task

NET, INNER = FullyConnected(4, 9, 2, 2, "tanh", sigma_b=0.3), InnerLoop(0.3, 2)
PARAMS = NET.initialise(generator(0, "init"))
ALIKE = [task(0, i, 2, 3, 4, 2) for i in range(5)]
MIXED = [task(0, i, 1 + i % 2, 3 - i % 2, 4, 2) for i in range(5)]


def sizes(tasks, memory, several=False):
    return [tile.index for tile in _tiles(NET, tasks, INNER, memory, several)]


def test_a_tile_has_as_many_tasks_of_one_size_as_fit():
    whole = stack_tasks(ALIKE)[0]
    alone, one, three = (
        tile_bytes(NET, whole, INNER, False),
        *(tile_bytes(NET, whole.part(0, count), INNER, True) for count in (1, 3)),
    )
    assert sizes(ALIKE, alone) == [(0, 1, 2, 3, 4)]
    assert sizes(ALIKE, max(three, alone - 1)) != [(0, 1, 2, 3, 4)]
    assert sizes(ALIKE, alone, several=True) != [(0, 1, 2, 3, 4)]
    assert sizes(ALIKE, three) == [(0, 1, 2), (3, 4)]
    assert sizes(ALIKE, three - 1) == [(0, 1), (2, 3), (4,)]
    assert sizes(ALIKE, one) == [(i,) for i in range(5)]
    with pytest.raises(ConfigurationError, match=f"need {one} bytes"):
        sizes(ALIKE, one - 1)
    stacks = stack_tasks(MIXED)
    most = max(tile_bytes(NET, stack, INNER, True) for stack in stacks)
    assert sizes(MIXED, most) == [(0, 2, 4), (1, 3)]
    assert sizes(MIXED, most - 1) != [(0, 2, 4), (1, 3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("other", [None, MIXED[3:0:-1]], ids=["symmetric", "columns"])
def test_tiles_of_mixed_tasks_stand_where_the_tasks_do(other, dtype):
    least = max(tile_bytes(NET, stack.part(0, 1), INNER, True) for stack in stack_tasks(MIXED))
    kernel = factored_meta_ntk(NET, PARAMS, MIXED, INNER, other, memory=least, dtype=dtype)
    expected = meta_gram(NET.model, PARAMS, MIXED, INNER, other)
    assert kernel.dtype == dtype
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert float((kernel - expected).abs().max() / expected.abs().max()) < limit
    assert other is not None or torch.equal(kernel, kernel.T)
