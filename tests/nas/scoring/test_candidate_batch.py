import gc
import math
import re
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError, GenotypeError, UnsupportedModelError
from mamltheory.kernels.meta import joint_inputs
from mamltheory.nas.genotype import Candidates, Edge, Operator, random_genotype
from mamltheory.nas.network import build, supernet
from mamltheory.nas.scoring import candidate_batch as batched
from mamltheory.nas.scoring.candidate_batch import CandidateBatch, candidate_kernels, stacked_heads
from mamltheory.nas.scoring.checkpointing import row_bytes
from mamltheory.nas.scoring.condition_number import candidate_conditions, condition_score, network_kernels
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.rng import generator
from tests.nas.cases import ALL, SMALL, WAYS, shaken, tasks


def some_candidates(seed, count=4):
    """The supernet, candidates of its round, and finished cells of both kinds."""
    stream = generator(seed, "candidates")
    picks = torch.randperm(len(ALL), generator=stream)[: count - 2].tolist()
    finished = random_genotype(stream, "two" if seed % 2 else "all").candidates()
    return [Candidates(), *(Candidates().without(ALL[i]) for i in picks), finished]


@pytest.mark.parametrize(("outputs", "weights"), [("full", "all"), ("sum", "weights")])
@given(seed=st.integers(0, 1000))
@settings(max_examples=1, deadline=None)
def test_many_candidates_at_once_have_the_kernels_that_they_have_one_by_one(outputs, weights, seed):
    network, candidates = shaken(seed), some_candidates(seed, 3)
    x = joint_inputs(tasks(seed, 1, 8)).double()
    found = list(candidate_kernels(network, candidates, x, outputs, weights))
    assert len(found) == len(candidates)
    for each, kernels in zip(candidates, found, strict=True):
        expected = network_kernels(network.restrict(each), x, outputs, weights)
        for kernel, other in zip(kernels, expected, strict=True):
            torch.testing.assert_close(kernel, other, rtol=1e-9, atol=1e-11 * float(other.abs().max()))


@pytest.mark.parametrize(
    ("kernel", "outputs", "dtype", "tolerance"),
    [
        ("maml", "full", torch.float64, 1e-8),
        ("anil", "sum", torch.float64, 1e-8),
        ("ntk", "sum", torch.float32, 1e-3),
        pytest.param("ntk", "sum", torch.float64, 1e-8, marks=pytest.mark.slow),
        pytest.param("maml", "full", torch.float32, 1e-3, marks=pytest.mark.slow),
        pytest.param("anil", "sum", torch.float32, 1e-3, marks=pytest.mark.slow),
    ],
)
def test_condition_numbers_of_a_batch_are_those_of_the_generic_kernels(kernel, outputs, dtype, tolerance):
    network, score_settings = shaken(3, dtype), ScoreSettings(kernel, outputs)
    candidates = some_candidates(3, 3)[:-1]
    batch = tasks(3, 1)
    found = candidate_conditions(network, candidates, batch, score_settings)
    plain = [condition_score(network.restrict(each), batch, score_settings) for each in candidates]
    assert all(1 < value < math.inf for value in plain)
    assert [value for value, _ in found] == pytest.approx(plain, rel=tolerance)


@pytest.mark.parametrize("outputs", [pytest.param("full", marks=pytest.mark.slow), "sum"])
def test_neither_the_budget_nor_the_order_changes_a_kernel(outputs):
    network, candidates = shaken(1), some_candidates(1, 5)[:-1]
    x = joint_inputs(tasks(1, 1, 8)).double()
    runs = images_of_stem_runs(network)
    alone = CandidateBatch(network, candidates[:1], x, {name for name, _ in network.named_parameters()})
    alone.kernels(outputs, 1 << 30)
    runs.clear()
    plenty = list(candidate_kernels(network, candidates, x, outputs))
    assert runs == [len(x), 3 * len(x)]
    runs.clear()
    two = list(candidate_kernels(network, candidates[::-1], x, outputs, memory=int(2.2 * alone.chain.needed)))
    assert runs == [len(x), 2 * len(x), len(x)]
    runs.clear()
    tight = list(candidate_kernels(network, candidates, x, outputs, memory=int(0.75 * alone.chain.needed)))
    assert runs == [len(x)] * 2 * len(candidates), "first stages run again where the budget is tight"
    for a, b, c in zip(plenty, two[::-1], tight, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("ways", [1, WAYS])
def test_rows_take_the_bytes_that_are_booked_for_them(ways):
    """Also those of the heads, each of which has rows for its own candidate alone."""
    network, candidates = shaken(1), [Candidates()] * 3
    x = torch.stack([joint_inputs(tasks(seed, 1, 8)).double() for seed in range(3)])
    names = {name for name, value in network.named_parameters() if value.dim() > 1}
    batch = CandidateBatch(network, candidates, x, names, stacked_heads([network.classifier] * 3))
    logits, found = batch.chain.forward(batch.images, ways, 1 << 30), []
    batch.chain.backward(
        [torch.ones_like(logits)] * ways,
        lambda call, rows: found.append((call, sum(each.nbytes for each in rows))),
    )
    assert batch.head in [call.layer.module for call, _ in found]
    assert all(row_bytes(call) * ways == taken for call, taken in found)


def test_the_memory_that_a_stage_is_said_to_need_is_enough_for_it():
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()

    def said_to_need(memory):
        try:
            list(candidate_kernels(network, [Candidates()], x, "sum", memory=memory))
        except ConfigurationError as refused:
            return int(re.search(r"needs (\d+) bytes", str(refused))[1])

    given = [100_000]
    while (needed := said_to_need(given[-1])) is not None:
        assert needed > given[-1]
        given.append(needed)
    assert len(given) > 1


def test_the_sums_of_kernels_count_as_memory(monkeypatch):
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    batch = CandidateBatch(network, [Candidates()] * 3, x, {"stem.0.weight"})
    with_sums = sum(each.nbytes for each in batch.kernels("full", 1 << 30))
    counted = batch.chain.needed
    monkeypatch.setattr(batched, "SUMS", 0)
    batch.kernels("full", 1 << 30)
    assert counted == batch.chain.needed + 2 * with_sums


def images_of_stem_runs(network):
    """The numbers of images of the stem's runs."""
    runs = []
    network.stem[-1].register_forward_hook(lambda _, args, __: runs.append(len(args[0])))
    return runs


def test_too_large_a_batch_is_halved():
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    plenty = list(candidate_kernels(network, [Candidates()], x, "sum"))

    def scarce(_, args):
        if len(args[0]) > 2 * len(x):
            raise torch.OutOfMemoryError

    network.cells[-1].fit1[-1].register_forward_pre_hook(scarce)
    halved = []
    found = list(candidate_kernels(network, [Candidates()] * 7, x, "sum", halved=lambda: halved.append(1)))
    assert len(found) == 7
    assert len(halved) == 2, "six candidates, and three"
    for kernels in found:
        torch.testing.assert_close(kernels, plenty[0], rtol=1e-11, atol=1e-12)


def test_a_batch_leaves_nothing_behind():
    """Hooks on the graph, which receive cotangents, must not keep the graph."""
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    batch = CandidateBatch(network, [Candidates()], x, {"classifier.weight", "cells.0.fit1.0.weight"})
    batch.chain.forward(x, 1, 1 << 30)
    entered = weakref.ref(batch.chain.graphs[1].calls[0])
    batch.kernels("sum", 1 << 30)
    gc.collect()
    assert entered() is None


def test_the_candidates_of_a_batch_are_limited(monkeypatch):
    monkeypatch.setattr(batched, "MOST_CANDIDATES", 2)
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    kernels = list(candidate_kernels(network, [Candidates()] * 3, x, "sum"))
    assert all(torch.allclose(theta, kernels[0][0], rtol=1e-12) for theta, _ in kernels)


def test_what_one_candidate_overflows_with_reaches_no_other():
    """An operation with weights that are not numbers: all are lost but the candidate without it."""
    doomed = Operator("reduce", Edge(1, 1), "conv_1x5_5x1")
    network, free = shaken(4), Candidates().without(doomed)
    with torch.no_grad():
        network.cells[1].edges["1_1"]["conv_1x5_5x1"][0].weight.fill_(math.nan)
    candidates = [Candidates(), free, Candidates().without(ALL[0])]
    found = candidate_conditions(network, candidates, tasks(4, 1), ScoreSettings(outputs="sum"))
    assert [why for _, why in found] == ["not finite", None, "not finite"]
    assert [value for value, _ in found][::2] == [math.inf, math.inf]
    plain = condition_score(shaken(4).restrict(free), tasks(4, 1), ScoreSettings(outputs="sum"))
    assert found[1] == (pytest.approx(plain, rel=1e-8), None)


def test_a_pass_leaves_the_network_as_it_was():
    network, x = shaken(5), joint_inputs(tasks(5, 1, 8)).double()
    before = {name: value.clone() for name, value in network.state_dict().items() if value.dim()}
    list(candidate_kernels(network, some_candidates(5, 3), x))
    assert all(
        torch.equal(value, before[name]) for name, value in network.state_dict().items() if value.dim()
    )
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_cannot_be_scored_is_refused():
    x = joint_inputs(tasks())
    whole, part = (
        supernet(c, SMALL, 0) for c in (Candidates(), random_genotype(generator(0, "g")).candidates())
    )
    with pytest.raises(GenotypeError, match="built without"):
        list(candidate_kernels(part, [Candidates()], x))
    with pytest.raises(UnsupportedModelError, match="batch statistics"):
        list(candidate_kernels(build(Candidates(), SMALL, 0), [Candidates()], x))
    with pytest.raises(ConfigurationError, match="one candidate needs"):
        list(candidate_kernels(whole, [Candidates()], x, memory=1000))


def test_the_normal_cell_of_candidates_that_differ_in_reductions_runs_once(monkeypatch):
    monkeypatch.setattr(batched, "CACHED", 1)
    pair = Candidates(*((("conv_3x3", "skip_connect"),) * 9,) * 2)
    network, x, runs = supernet(pair, SMALL, 1), joint_inputs(tasks(1, 1, 8)), []
    for place, cell in enumerate(network.cells):
        cell.fit1[-1].register_forward_hook(lambda *_, place=place: runs.append(place))
    others = [pair.without(operator) for operator in pair.operators()[-2:]]
    list(candidate_kernels(network, [pair, *others], x, "sum"))
    assert [runs.count(place) for place in range(3)] == [1, 3, 3]


@pytest.mark.parametrize(
    ("fitting", "most", "left", "plain", "even"),
    [
        (10, 64, 25, 10, 9),
        (10, 4, 25, 4, 4),
        (0, 64, 5, 1, 1),
        (30, 64, 25, 25, 25),
        (7, 64, 8, 7, 4),
        (3, 64, 0, 1, 1),
    ],
)
def test_the_next_batch_is_the_largest_that_fits_or_one_of_several_of_equal_size(
    fitting, most, left, plain, even
):
    assert batched.batch_size(fitting, most, left, False) == plain
    assert batched.batch_size(fitting, most, left, True) == even


def test_the_bytes_of_a_candidate_alone_are_measured_once_for_all_networks_of_a_size(monkeypatch):
    monkeypatch.setattr(batched, "_alone", {})
    pair = Candidates(*((("conv_3x3", "skip_connect"),) * 9,) * 2)
    network, other = (supernet(pair, SMALL, seed).double() for seed in (1, 2))
    x, names = joint_inputs(tasks(1, 1, 8)).double(), {name for name, _ in network.named_parameters()}
    batch = CandidateBatch(network, [network.candidates], x, names)
    batch.forward("sum", 1 << 40)
    needed = batch.chain.needed
    batch.kernels("sum", 1 << 40)
    assert not any(batch.chain.graphs), "graphs are kept for another batch alone"
    logits, *_ = batch.forward("sum", 1 << 40)
    batch.chain.backward([torch.ones_like(logits)], lambda *_: None)
    assert not any(batch.chain.graphs)
    assert batched.bytes_alone(network, x, names, "sum", 1000) == 1000, "the budget, where it is exceeded"
    assert batched.bytes_alone(network, x, names, "sum", 1 << 40) == needed
    assert batched.bytes_alone(network, x, names, "sum", 1000) == 1000
    monkeypatch.setattr(CandidateBatch, "forward", lambda *_: 1 / 0)
    assert batched.bytes_alone(other, torch.stack([x, x]), names, "sum", 1 << 40) == needed
    with pytest.raises(ZeroDivisionError):
        batched.bytes_alone(network, x, names, "full", 1 << 40)
