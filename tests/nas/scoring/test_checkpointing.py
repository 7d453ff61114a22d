"""What is the same is run once: first stages of successive batches, and norms of a pooled state."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from mamltheory.kernels.meta import joint_inputs
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import supernet
from mamltheory.nas.scoring import candidate_batch as batched
from mamltheory.nas.scoring.candidate_batch import CandidateBatch, candidate_kernels
from mamltheory.nas.scoring.checkpointing import Chain
from mamltheory.nas.scoring.condition_number import network_kernels
from tests.nas.cases import ALL, SMALL, shaken, tasks

WHOLE = Candidates()
NORMAL, REDUCE = ([o for o in ALL if o.cell == kind] for kind in ("normal", "reduce"))
LISTED = [WHOLE, *(WHOLE.without(o) for o in (*REDUCE[:3], NORMAL[0], NORMAL[0], REDUCE[5]))]
"""Of three cells (normal, reduce, reduce) all lists but the fifth and sixth have the first in common, and these two
all: a run for the first, one for the fifth and one for the last.
"""


@pytest.fixture
def runs(monkeypatch):
    """How often every cell of a network has been run, batches being of one candidate."""
    counts, usual = Counter(), CandidateBatch._cell

    def counted(batch, kind, cell, *args):
        counts[cell] += 1
        return usual(batch, kind, cell, *args)

    monkeypatch.setattr(CandidateBatch, "_cell", counted)
    monkeypatch.setattr(batched, "CACHED", 1)
    return counts


@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_cells_in_common_are_run_once_and_change_no_kernel(outputs, runs, monkeypatch):
    network, x = shaken(1), joint_inputs(tasks(1, 1, 8)).double()
    found = list(candidate_kernels(network, LISTED, x, outputs))
    assert [runs[cell] for cell in network.cells] == [3, 6, 6]
    runs.clear()
    monkeypatch.setattr(CandidateBatch, "common_stages", lambda *_: 0)
    alone = list(candidate_kernels(network, LISTED, x, outputs))
    assert [runs[cell] for cell in network.cells] == [7, 7, 7]
    for pair, other in zip(found, alone, strict=True):
        assert all(torch.equal(*kernels) for kernels in zip(pair, other, strict=True))


@pytest.mark.parametrize("part", [0.3, 0.6])
@pytest.mark.usefixtures("runs")
def test_a_budget_that_holds_no_graph_for_the_next_batch_is_kept_to(part, monkeypatch):
    """A graph that had to be dropped is not kept when its stage has been run again, and no kernel changes."""
    network, x = (
        shaken(2, network_settings=replace(SMALL, cells=8, stem_stride=1)),
        joint_inputs(tasks(2, 1, 8)).double(),
    )
    batch = CandidateBatch(network, [WHOLE], x, {name for name, _ in network.named_parameters()})
    batch.kernels("sum", 1 << 30)
    memory, held, usual = int(part * batch.chain.needed), [], Chain._advance

    def weighed(chain, stage, outputs):
        usual(chain, stage, outputs)
        if len(chain.states) == 1 + len(chain.stages):  # the forward pass is over
            held.append(sum(each.held for each in chain.stages) + stage.flowing)

    monkeypatch.setattr(Chain, "_advance", weighed)
    tight = list(candidate_kernels(network, LISTED[:3], x, "sum", "all", memory=memory))
    assert held
    assert max(held) <= memory
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

    def counted(norm, entering):
        counts[here] += 1
        return usual(norm, entering)

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
