"""What is the same runs once: first stages of successive batches, and norms of a pooled state."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mamltheory.kernels.layers.recorder import LayerCall, RecordedLayer
from mamltheory.kernels.layers.tiles import OverBudget
from mamltheory.kernels.meta import joint_inputs
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import supernet
from mamltheory.nas.scoring import candidate_batch as batched
from mamltheory.nas.scoring.candidate_batch import CandidateBatch, candidate_kernels
from mamltheory.nas.scoring.checkpointing import Chain, Graph, Stage, _backward_bytes, row_bytes
from mamltheory.nas.scoring.condition_number import network_kernels
from tests.nas.cases import ALL, SMALL, shaken, tasks

WHOLE = Candidates()
NORMAL, REDUCE = ([o for o in ALL if o.cell == kind] for kind in ("normal", "reduce"))
LISTED = [WHOLE, *(WHOLE.without(o) for o in (*REDUCE[:3], NORMAL[0], NORMAL[0], REDUCE[5]))]
"""Of three cells (normal, reduce, reduce) all lists but the fifth and sixth have the first in common, and these two
all: a run for the first, one for the fifth and one for the last.
"""


def counted_runs(network):
    """How often every cell of a network runs."""
    counts = Counter()
    for cell in network.cells:
        cell.fit1[-1].register_forward_hook(lambda *_, cell=cell: counts.update([cell]))
    return counts


@pytest.fixture
def _batches_of_one(monkeypatch):
    monkeypatch.setattr(batched, "CACHED", 1)


@pytest.mark.parametrize("outputs", [pytest.param("full", marks=pytest.mark.slow), "sum"])
@pytest.mark.usefixtures("_batches_of_one")
def test_cells_in_common_run_once_and_change_no_kernel(outputs):
    network, x = shaken(1), joint_inputs(tasks(1, 1, 8)).double()
    runs = counted_runs(network)
    found = list(candidate_kernels(network, LISTED, x, outputs))
    assert [runs[cell] for cell in network.cells] == [3, 6, 6]
    for each, pair in zip(LISTED, found, strict=True):
        (other,) = candidate_kernels(network, [each], x, outputs)
        assert all(torch.equal(*kernels) for kernels in zip(pair, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.3, 0.6])
@pytest.mark.usefixtures("_batches_of_one")
def test_a_budget_that_holds_no_graph_for_the_next_batch_changes_no_kernel(part):
    """A graph that had to be dropped is not kept when its stage has run again."""
    network, x = (
        shaken(2, network_settings=replace(SMALL, cells=8, stem_stride=1)),
        joint_inputs(tasks(2, 1, 8)).double(),
    )
    batch = CandidateBatch(network, [WHOLE], x, {name for name, _ in network.named_parameters()})
    batch.chain.forward(batch.images, 1, 1 << 30)
    memory, full = int(part * batch.chain.needed), list(batch.chain.graphs)
    logits = batch.chain.forward(batch.images, 1, memory)
    assert None in batch.chain.graphs
    most = []

    def weighed(call, _):
        (place,) = [i for i, graph in enumerate(full) if call.layer in [each.layer for each in graph.calls]]
        earlier = [graph.bytes for graph in batch.chain.graphs[:place] if graph is not None]
        most.append(sum(earlier) + full[place].bytes + full[place].backward_bytes)

    batch.chain.backward([torch.ones_like(logits)], weighed, len(full))
    assert max(most) <= memory
    assert batch.chain.graphs == [None] * len(full)
    runs = counted_runs(network)
    tight = list(candidate_kernels(network, LISTED[:3], x, "sum", "all", memory=memory))
    assert 3 < max(runs.values()) <= 2 * 3
    for pair, other in zip(candidate_kernels(network, LISTED[:3], x, "sum", "all"), tight, strict=True):
        torch.testing.assert_close(pair, other, rtol=1e-12, atol=1e-12)


def test_candidates_with_images_of_their_own_have_no_stage_in_common():
    network = shaken(3)
    x = torch.stack([joint_inputs(tasks(seed, 1, 8)).double() for seed in range(2)])
    for images, expected in ((x[0], 4), (x[:1], 0)):
        batch = CandidateBatch(network, [WHOLE], images, set())
        assert batch.common_stages([WHOLE]) == expected
        assert batch.common_stages([WHOLE] * 2) == 0


def test_equal_norms_of_a_pooled_state_are_taken_once(monkeypatch):
    """Four states are pooled twice in a cell, for nine edges: eight norms where eighteen were."""
    plain, moved = supernet(WHOLE, SMALL, 4).double(), shaken(4)
    x, counts, usual = joint_inputs(tasks(4, 1, 8)).double(), Counter(), torch.nn.GroupNorm.forward
    expected = network_kernels(plain, x, "sum", "weights")

    def counted(norm, x):
        counts[here] += 1
        return usual(norm, x)

    monkeypatch.setattr(torch.nn.GroupNorm, "forward", counted)
    for here, network, weights in (
        ("equal", plain, "weights"),
        ("unequal", moved, "weights"),
        ("all", plain, "all"),
    ):
        (found,) = candidate_kernels(network, [WHOLE], x, "sum", weights)
        if here == "equal":
            for kernel, other in zip(found, expected, strict=True):
                torch.testing.assert_close(kernel, other, rtol=1e-9, atol=1e-11 * float(other.abs().max()))
    assert counts["unequal"] == counts["all"] == counts["equal"] + 10 * len(plain.cells)


class Weighed(Chain):
    """Stages whose graphs have planted sizes."""

    def __init__(self, sizes, backward):
        super().__init__([Stage(torch.add, (k,)) for k in range(len(sizes))], {})
        self.sizes, self.backward_sizes, self.runs = sizes, backward, []

    def _run(self, place, outputs):
        self.runs.append((place, outputs))
        value = self.states[place] + 1
        self.graphs[place] = Graph([], value, [], self.sizes[place], self.backward_sizes[place])
        return self.graphs[place]

    def kept(self):
        return [place for place, graph in enumerate(self.graphs) if graph is not None]


def test_the_first_graphs_are_dropped_until_the_rest_and_the_largest_backward_pass_fit():
    sizes, backward = [10, 20, 30, 5], [7, 2, 4, 1]
    for memory, kept in ((75, [0, 1, 2, 3]), (74, [1, 2, 3]), (65, [1, 2, 3]), (64, [2, 3]), (45, [2, 3])):
        chain = Weighed(sizes, backward)
        assert chain.forward(torch.zeros(1), 3, memory, 3) == 4
        assert (chain.kept(), chain.needed) == (kept, 75)
        assert chain.runs == [(place, 3) for place in range(4)]
    with pytest.raises(OverBudget) as refused:
        Weighed(sizes, backward).forward(torch.zeros(1), 1, 36, 3)
    assert (refused.value.what, refused.value.needed) == ("a cell", 37)
    with pytest.raises(OverBudget):
        Weighed([10, 1], [0, 4]).forward(torch.zeros(1), 1, 9)


def test_a_chain_continues_after_the_stages_of_another_that_has_kept_them():
    first = Weighed([1, 2, 3], [1, 1, 1])
    first.forward(torch.zeros(1), 1, 99)
    for count, runs in ((2, [(2, 1)]), (0, [(0, 1), (1, 1), (2, 1)])):
        second = Weighed([1, 2, 3], [1, 1, 1])
        second.reuse(first, count)
        assert second.forward(torch.zeros(1), 1, 99) == 3
        assert (second.reused, second.runs, second.needed) == (count, runs, 7)
        assert [int(state) for state in second.states] == [0, 1, 2, 3]
    first.graphs[1] = None
    second = Weighed([1, 2, 3], [1, 1, 1])
    second.reuse(first, 2)
    assert (second.reused, second.kept()) == (0, [])
    assert first.holds(1)
    assert not first.holds(2)


class Sized(LayerCall):
    """A call whose gradients and cotangents have planted sizes."""

    def __init__(self, samples, numbers, cotangent_bytes):
        recorded = RecordedLayer("", torch.nn.Identity(), None, {}, numbers)
        self.layer, self.inputs, self.cotangent_bytes = recorded, (torch.zeros(samples, 2),), cotangent_bytes


def test_the_bytes_of_a_backward_pass_are_those_of_rows_and_of_what_waits():
    calls = [Sized(3, 5, 100), Sized(3, 2, 7)]  # rows of 60 and 24 bytes
    assert [row_bytes(call) for call in calls] == [60, 24]
    assert _backward_bytes(calls, 1) == 60 + 2 * 100
    assert _backward_bytes(calls, 4) == 4 * 60 + 100 + 3 * 60 + 7 + 3 * 7
    assert _backward_bytes([], 4) == 0
