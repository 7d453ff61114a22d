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
from mamltheory.nas.operations import leading_module
from mamltheory.nas.scoring import candidate_batch as batched
from mamltheory.nas.scoring import sample_gradients
from mamltheory.nas.scoring.candidate_batch import CandidateBatch, candidate_kernels
from mamltheory.nas.scoring.cell_layers import pooled
from mamltheory.nas.scoring.condition_number import candidate_conditions, condition_score, network_kernels
from mamltheory.nas.scoring.sample_gradients import COLUMNS, add_grams, gradient_rows
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
@settings(max_examples=2, deadline=None)
def test_many_candidates_at_once_have_the_kernels_that_they_have_one_by_one(outputs, weights, seed):
    network, candidates = shaken(seed), some_candidates(seed, 3)
    x = joint_inputs(tasks(seed, 1, 8)).double()
    found = list(candidate_kernels(network, candidates, x, outputs, weights))
    assert len(found) == len(candidates)
    for each, kernels in zip(candidates, found, strict=True):
        expected = network_kernels(network.restrict(each), x, outputs, weights)
        for kernel, other in zip(kernels, expected, strict=True):
            torch.testing.assert_close(kernel, other, rtol=1e-9, atol=1e-11 * float(other.abs().max()))


@pytest.mark.parametrize(("kernel", "outputs"), [("maml", "full"), ("anil", "sum"), ("ntk", "sum")])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-3)])
def test_condition_numbers_of_a_batch_are_those_of_the_generic_kernels(kernel, outputs, dtype, tolerance):
    network, score_settings = shaken(3, dtype), ScoreSettings(kernel, outputs)
    candidates = some_candidates(3, 3)[:-1]
    found = candidate_conditions(network, candidates, tasks(3), score_settings)
    plain = [condition_score(network.restrict(each), tasks(3), score_settings) for each in candidates]
    assert all(1 < value < math.inf for value in plain)
    assert [value for value, _ in found] == pytest.approx(plain, rel=tolerance)


@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_neither_the_budget_nor_the_order_changes_a_kernel(outputs, monkeypatch):
    network, candidates = shaken(1), some_candidates(1, 5)[:-1]
    x = joint_inputs(tasks(1, 1, 8)).double()
    sizes, usual = [], CandidateBatch.kernels

    def counted(batch, *args):
        sizes.append(len(batch.candidates))
        return usual(batch, *args)

    monkeypatch.setattr(CandidateBatch, "kernels", counted)
    plenty = list(candidate_kernels(network, candidates, x, outputs))
    assert sizes == [1, 3]
    alone = CandidateBatch(network, candidates[:1], x, {name for name, _ in network.named_parameters()})
    usual(alone, outputs, 1 << 30)
    sizes.clear()
    two = list(candidate_kernels(network, candidates[::-1], x, outputs, memory=int(2.2 * alone.chain.needed)))
    assert sizes == [1, 2, 1]
    sizes.clear()
    runs = count_of_stem_runs(network)
    tight = list(candidate_kernels(network, candidates, x, outputs, memory=int(0.75 * alone.chain.needed)))
    assert set(sizes) == {1}
    assert len(runs) == 2 * len(candidates), "the first stages run a second time where the budget is tight"
    for a, b, c in zip(plenty, two[::-1], tight, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("ways", [1, WAYS])
def test_rows_take_the_bytes_that_are_booked_for_them(ways):
    """Also those of the heads, each of which has rows for its own candidate alone."""
    network, candidates = shaken(1), [Candidates()] * 3
    x = torch.stack([joint_inputs(tasks(seed, 1, 8)).double() for seed in range(3)])
    names = {name for name, value in network.named_parameters() if value.dim() > 1}
    batch = CandidateBatch(network, candidates, x, names, [network.classifier] * 3)
    logits, found = batch.chain.forward(batch.images, ways, 1 << 30), []
    batch.chain.backward(
        [torch.ones_like(logits)] * ways,
        lambda call, rows: found.append((call, sum(each.nbytes for each in rows))),
    )
    assert batch.head in [call.layer for call, _ in found]
    assert all(call.row_bytes * ways == taken for call, taken in found)


@pytest.mark.parametrize("count", [1, 4])
def test_rows_that_wait_take_their_part_of_the_budget_at_most(count, monkeypatch):
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    names = {name for name, value in network.named_parameters() if value.dim() > 1}
    batch = CandidateBatch(network, [Candidates()] * count, x, names)
    plenty = batch.kernels("full", 1 << 30)
    memory, held, usual = batch.chain.needed * 17 // 16, [], CandidateBatch._add_waiting

    def weighed(batch, theta, waiting):
        held.append(2 * sum(rows.nbytes for rows in waiting))
        usual(batch, theta, waiting)

    monkeypatch.setattr(CandidateBatch, "_add_waiting", weighed)
    runs = count_of_stem_runs(network)
    torch.testing.assert_close(batch.kernels("full", memory), plenty, rtol=1e-11, atol=1e-12)
    assert 0 < max(held) <= memory // batched.WAITING
    assert len(runs) == 1 + (batched._for_graphs(memory) < batch.chain.needed)


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


def count_of_stem_runs(network):
    runs = []
    network.stem[-1].register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_too_large_a_batch_is_halved(monkeypatch):
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    sizes, usual = [], CandidateBatch.kernels

    def scarce(batch, *args):
        sizes.append(len(batch.candidates))
        if len(batch.candidates) > 2:
            raise torch.OutOfMemoryError
        return usual(batch, *args)

    monkeypatch.setattr(CandidateBatch, "kernels", scarce)
    halved = []
    found = list(candidate_kernels(network, [Candidates()] * 7, x, "sum", halved=lambda: halved.append(1)))
    assert len(found) == 7
    assert sizes == [1, 6, 3, *[1] * 6]
    assert len(halved) == 2


def test_a_batch_leaves_nothing_behind():
    """What flows back is met by hooks on the graph, which must not keep the graph."""
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    batch = CandidateBatch(network, [Candidates()], x, {"classifier.weight", "cells.0.fit1.0.weight"})
    batch.chain.forward(x, 1, 1 << 30)
    entered = weakref.ref(batch.chain.stages[1].calls[0])
    batch.kernels("sum", 1 << 30)
    gc.collect()
    assert entered() is None


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("step", ["max", "avg"])
@pytest.mark.parametrize("space", [(7, 8), (6, 6), (1, 3)])
def test_fast_pooling_is_pooling(step, stride, space):
    x = torch.randn(3, 5, *space, generator=generator(1, "x")).round(decimals=1).requires_grad_()
    module = leading_module(step, stride)
    found, expected = pooled(module, x), module(x)
    torch.testing.assert_close(found, expected)
    flow = torch.randn(expected.shape, generator=generator(1, "g"))
    by_found, by_expected = (torch.autograd.grad(y, x, flow)[0] for y in (found, expected))
    torch.testing.assert_close(by_found, by_expected)


def test_the_candidates_of_a_batch_are_limited(monkeypatch):
    monkeypatch.setattr(batched, "MOST_CANDIDATES", 2)
    network, x = shaken(2), joint_inputs(tasks(2, 1, 8)).double()
    kernels = list(candidate_kernels(network, [Candidates()] * 5, x, "sum"))
    assert all(torch.allclose(theta, kernels[0][0], rtol=1e-12) for theta, _ in kernels)


def test_what_one_candidate_overflows_with_reaches_no_other():
    """An operation with weights that are not numbers: all are lost but the candidate without it."""
    doomed = Operator("reduce", Edge(1, 1), "conv_1x5_5x1")
    network, free = shaken(4), Candidates().without(doomed)
    with torch.no_grad():
        network.cells[1].edges["1_1"]["conv_1x5_5x1"][0].weight.fill_(math.nan)
    candidates = [Candidates(), free, Candidates().without(ALL[0])]
    found = candidate_conditions(network, candidates, tasks(4), ScoreSettings(outputs="sum"))
    assert [why for _, why in found] == ["not finite", None, "not finite"]
    assert [value for value, _ in found][::2] == [math.inf, math.inf]
    plain = condition_score(shaken(4).restrict(free), tasks(4), ScoreSettings(outputs="sum"))
    assert found[1] == (pytest.approx(plain, rel=1e-8), None)


def test_a_pass_leaves_the_network_as_it_was():
    network, x = shaken(5), joint_inputs(tasks(5, 1, 8)).double()
    before = {name: value.clone() for name, value in network.state_dict().items() if value.dim()}
    list(candidate_kernels(network, some_candidates(5), x))
    assert all(
        torch.equal(value, before[name]) for name, value in network.state_dict().items() if value.dim()
    )
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("groups", [1, 6])
@given(
    size=st.sampled_from([(1, 5), (5, 1), (3, 3), (1, 1)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    space=st.sampled_from([(5, 7), (8, 8), (16, 17)]),
    k=st.integers(1, 2),
)
@settings(max_examples=12, deadline=None)
def test_rows_of_a_convolution_have_the_products_of_autograds_gradients(
    groups, size, stride, dilation, space, k
):
    stream = generator(sum(space), "rows", k, stride)
    padding = tuple(dilation * (s - 1) // 2 for s in size)
    layer = torch.nn.Conv2d(6, 6, size, stride, padding, dilation, groups, bias=False, dtype=torch.float64)
    x = torch.randn(3, 6, *space, generator=stream, dtype=torch.float64)
    flow = torch.randn(3, k, *layer(x).shape[1:], generator=stream, dtype=torch.float64)
    rows = gradient_rows(layer, ["weight"], x, flow)
    exact = torch.stack(
        [
            torch.autograd.grad(layer(x[i : i + 1]), layer.weight, flow[i, o][None])[0].flatten()
            for i in range(3)
            for o in range(k)
        ]
    )
    totals = torch.zeros(1, 3 * k, 3 * k, dtype=torch.float64)
    for block in rows:
        add_grams(totals, block, (0,))
    torch.testing.assert_close(totals[0], exact @ exact.T, rtol=1e-10, atol=1e-10)


@given(count=st.integers(1, 60), columns=st.integers(1, 40))
@settings(max_examples=8, deadline=None)
def test_gram_matrices_go_to_the_candidates_that_hold_the_layer(count, columns):
    rows = torch.randn(4 * count, 2, columns, generator=generator(count, "rows"), dtype=torch.float64)
    totals = torch.ones(3, 4 * count, 4 * count, dtype=torch.float64)
    add_grams(totals, rows, (2, 0))
    each = rows.reshape(2, 4 * count, columns)
    expected = torch.stack(
        [1 + each[1] @ each[1].T, torch.ones(4 * count, 4 * count), 1 + each[0] @ each[0].T]
    )
    torch.testing.assert_close(totals, expected)


@pytest.mark.parametrize("images", [3, 70])
@pytest.mark.parametrize("apart", [0, 5])
def test_gram_matrices_of_long_rows_are_those_of_double_precision(images, apart, monkeypatch):
    calls = []
    if torch.backends.mkldnn.is_available():
        fast = sample_gradients._ONEDNN
        monkeypatch.setattr(sample_gradients, "_ONEDNN", lambda *args: calls.append(args) or fast(*args))
    rows = torch.randn(2 * images, 2, COLUMNS + 7 + apart, generator=generator(images, "long rows"))
    rows = rows[:, :, : COLUMNS + 7]
    totals = torch.zeros(3, 2 * images, 2 * images, dtype=torch.float64)
    add_grams(totals, rows, (2, 0))
    each = rows.double().reshape(2, 2 * images, -1)
    for place, exact in zip((2, 0), each @ each.mT, strict=True):
        assert float((totals[place] - exact).abs().max()) <= 2e-6 * float(exact.max())
    assert not totals[1].any()
    assert bool(calls) == (torch.backends.mkldnn.is_available() and not apart)


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
