"""Kernels from tiles of a known Jacobian, and the bytes that every tile may hold."""

import pytest
import torch

from mamltheory import from_module, generator
from mamltheory.errors import ConfigurationError
from mamltheory.kernels.layers.options import MEMORY, KernelOptions
from mamltheory.kernels.layers.tiles import Budget, OverBudget, Pass, general_gradients, tiled_kernels

NAMES = [frozenset({"a"}), frozenset({"b", "c"}), frozenset({"d"})]
SAMPLE = 8 * 2 * (3 + 5 + 2)  # bytes of the gradients of one sample, and of those of its largest group
GROUP = 8 * 2 * 5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "tiles"), dtype=torch.float64)


MAPS = {names: draw(4, width, seed=width) for names, width in zip(NAMES, (3, 5, 2), strict=True)}
X, OTHER = draw(7, 4), draw(4, 4, seed=1)


def rows(names, x):
    """Two outputs a sample; of some samples none depends on d."""
    values = torch.tanh(torch.stack([x, x**2], 1).flatten(0, 1) @ MAPS[names])
    return values * (x[:, 0] > 0).repeat_interleave(2)[:, None] if names == {"d"} else values


def kernels_and_passes(x2, **options):
    """Kernels of four selections, and of every pass the samples and what its budget says."""
    seen = []

    def differentiate(x, budget):
        seen.append((len(x), budget.limit, budget.samples, budget.kept))
        used = (names for names in NAMES if rows(names, x).any())
        return Pass(2 * len(x), x.device, ((names, budget.hold("a group", rows(names, x))) for names in used))

    selections = [{"a"}, {"a", "b", "c"}, {"b"}, {"a", "b", "c", "d"}]
    kernels = tiled_kernels(differentiate, X, x2, selections, KernelOptions(**options))
    for kernel, chosen in zip(kernels, selections, strict=True):
        expected = torch.zeros(14, 14 if x2 is None else 8, dtype=torch.float64)
        for names in NAMES:
            if names <= chosen:
                expected += rows(names, X) @ rows(names, X if x2 is None else x2).T
        torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-12)
    return kernels, seen


def test_tiles_of_any_size_make_the_gram_matrices_of_the_selected_columns_of_the_jacobian():
    """One pass where all samples fit; else every row of tiles keeps its own, in half of the memory."""
    half = MEMORY // 2
    assert kernels_and_passes(None)[1] == [(7, MEMORY, 7, False)]
    assert kernels_and_passes(OTHER)[1] == [(7, half, 7, True), (4, half, 7, False)]
    kernels, seen = kernels_and_passes(None, chunk=3)
    assert all(torch.equal(kernel, kernel.T) for kernel in kernels)
    rest = [[3], [3, 3], [1, 3, 3]]
    assert seen == [(n, half, 7, not i) for row in rest for i, n in enumerate(row)]
    rest = [[3, 3, 1], [3, 3, 1], [1, 3, 1]]
    assert kernels_and_passes(OTHER, chunk=3)[1] == [
        (n, half, 7, not i) for row in rest for i, n in enumerate(row)
    ]


def test_a_tile_is_halved_until_its_largest_group_fits_or_all_groups_where_they_are_kept():
    assert kernels_and_passes(None, memory=7 * GROUP)[1] == [(7, 7 * GROUP, 7, False)]
    tried = kernels_and_passes(None, memory=7 * GROUP - 1)[1]
    assert [n for n, *_ in tried if n > 1] == [7, 4, 2]
    assert [n for n, *_ in kernels_and_passes(OTHER, memory=2 * 2 * SAMPLE)[1]][:3] == [7, 4, 2]
    assert [n for n, *_ in kernels_and_passes(OTHER, memory=2 * 2 * SAMPLE - 1)[1]][:4] == [7, 4, 2, 1]
    with pytest.raises(
        ConfigurationError, match=f"at least {SAMPLE} bytes at a group, and memory={2 * SAMPLE - 1}"
    ):
        kernels_and_passes(OTHER, memory=2 * SAMPLE - 1)


@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_the_rows_of_the_general_way_are_booked_with_all_their_numbers(outputs):
    model, params = from_module(torch.nn.Linear(4, 3).double())
    k = 3 if outputs == "full" else 1
    budget = Budget(8 * 5 * k * (3 * 4 + 3), 5)
    groups = list(general_gradients(model, params, X[:5], outputs, ["weight", "bias"], k, budget))
    assert budget.used == budget.limit
    ways = torch.eye(3).double() if outputs == "full" else torch.ones(1, 3).double()
    expected = {"bias": ways.repeat(5, 1), "weight": torch.einsum("kc,nj->nkcj", ways, X[:5]).reshape(-1, 12)}
    for (names, found), (name, right) in zip(groups, expected.items(), strict=True):
        assert names == {name}
        torch.testing.assert_close(found, right)
    with pytest.raises(OverBudget):
        list(general_gradients(model, params, X[:5], outputs, ["bias"], k, Budget(8 * 5 * k * 3 - 1, 5)))
