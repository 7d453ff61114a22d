import pytest
import torch
from hypothesis import given, settings

from experiments.cells.search import scorer_of
from experiments.presets.search import SEARCH
from experiments.settings import Search
from mamltheory.kernels.meta import joint_inputs
from mamltheory.nas import batched, precision
from mamltheory.nas.batched import CandidateBatch, candidate_kernels
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import NetworkSettings, initialise
from mamltheory.nas.operations import FactorizedReduce
from mamltheory.nas.runs import flow_back, geometry, run
from mamltheory.nas.sample_gradients import gradient_rows
from mamltheory.nas.scores import ScoreSettings, candidate_conditions, condition_score
from mamltheory.rng import generator
from tests.nas.test_batched import ALL, WAYS, shaken, tasks
from tests.nas.test_runs import CASES, SPACE, layer_of

UNIT = 2.0**-8
"""Largest relative error of a number that is rounded to bfloat16."""
SIXTEEN = NetworkSettings(channels=16, cells=3, classes=WAYS)
FIRST = next(each for each in ALL if each.cell == "reduce")


@pytest.fixture(autouse=True)
def every_cpu(monkeypatch):
    """Products of bfloat16 are the same, only slower, where a CPU has none."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)


def normal(seed, *shape):
    return torch.randn(*shape, generator=generator(seed, "normal"))


@given(case=CASES, space=SPACE)
@settings(max_examples=30, deadline=None)
def test_on_the_way_back_nothing_is_off_by_more_than_its_roundings(case, space):
    """Of both factors and the result, and of the sum over taps, which a CPU without such products may round."""
    layer, x = layer_of(*case).float(), normal(0, 3, 4, *space).requires_grad_()
    calls = []
    found = run(layer, x, lambda *call: calls.append(call), torch.bfloat16)
    assert torch.equal(found, run(layer, x, lambda *_: None)), "the forward pass is that of float32"
    flow = normal(1, *found.shape)
    (back,) = torch.autograd.grad(found, x, flow)
    most = (3.1 + layer.weight[0, 0].numel()) * UNIT
    weight, how = layer.weight.detach().double(), geometry(layer, False)
    exact, size = (flow_back(x.shape, *pair, how) for pair in both(weight, flow.double()))
    assert bool((back - exact).abs().le(most * size + 1e-6).all())
    [(_, entering, _, gridded)] = calls
    slow = layer.groups > 1 and geometry(layer, calls[0][3]).stride != (1, 1)
    assert torch.equal(back, back.bfloat16().float()) != slow, "rounded, but for what torch is slow at"
    if layer.groups > 1:
        return
    low = torch.cat(gradient_rows(layer, ["weight"], entering.detach().bfloat16(), flow[:, None], gridded), 2)
    assert low.dtype == torch.float32
    layer.double()
    exact, size = (
        torch.cat(gradient_rows(layer, ["weight"], each, other[:, None], gridded), 2)
        for each, other in both(entering.detach().double(), flow.double())
    )
    assert bool((low - exact).abs().le(most * size + 1e-6).all())


def test_no_flow_is_rounded_where_all_of_a_cell_pass(monkeypatch):
    module, x = FactorizedReduce(4, 6, "group"), normal(0, 3, 4, 8, 8).requires_grad_()
    initialise(module, 0)
    flows = []
    for factors in (None, torch.bfloat16):
        y = run(module, x, lambda *_: None, factors)
        flows += torch.autograd.grad(y, x, normal(1, *y.shape))
    assert torch.equal(*flows)
    network, seen, usual = shaken(1, torch.float32), {}, batched.run

    def noted(module, entering, note, factors=None):
        seen[module] = factors
        return usual(module, entering, note, factors)

    monkeypatch.setattr(batched, "run", noted)
    batch = CandidateBatch(network, [Candidates()], joint_inputs(tasks(1)), set(), None, "bf16")
    batch.chain.forward(batch.images, 1, 1 << 30)
    for cell in network.cells:
        assert seen[cell.fit0] is seen[cell.fit1] is None
        assert seen[cell.edges["2_0"]["sep_conv_3x3"]] is torch.bfloat16


def both(a, b):
    """The pair, and its absolute values: of those, a bilinear function gives the size of its terms."""
    return (a, b), (a.abs(), b.abs())


@pytest.mark.parametrize(("kernel", "outputs"), [("maml", "sum"), ("anil", "full"), ("ntk", "sum")])
def test_condition_numbers_stay_within_a_thousandth(kernel, outputs):
    candidates = [Candidates(), Candidates().without(FIRST)]
    given_tasks, single = tasks(2, size=16), ScoreSettings(kernel, outputs)
    exact = shaken(2, torch.float64, SIXTEEN)
    expected = [condition_score(exact.restrict(each), given_tasks, single) for each in candidates]
    network, rounded = shaken(2, torch.float32, SIXTEEN), ScoreSettings(kernel, outputs, precision="bf16")
    found = [value for value, _ in candidate_conditions(network, candidates, given_tasks, rounded)]
    assert found == pytest.approx(expected, rel=1e-3)
    assert found != [value for value, _ in candidate_conditions(network, candidates, given_tasks, single)]


@pytest.mark.slow
def test_those_of_the_papers_size_stay_as_near_to_float32():
    network = shaken(0, torch.float32, NetworkSettings(channels=48, cells=5, classes=WAYS))
    candidates, given_tasks = [Candidates(), Candidates().without(FIRST)], tasks(0, 3, 32)
    found, single = (
        [value for value, _ in candidate_conditions(network, candidates, given_tasks, each)]
        for each in (ScoreSettings(outputs="sum", precision="bf16"), ScoreSettings(outputs="sum"))
    )
    assert found == pytest.approx(single, rel=1e-3)
    assert found != single


def test_logits_are_those_of_float32():
    network, x = shaken(1, torch.float32), joint_inputs(tasks(1))
    batches = [CandidateBatch(network, [Candidates()], x, set(), None, each) for each in ("fp32", "bf16")]
    assert torch.equal(*(batch.chain.forward(batch.images, 1, 1 << 30) for batch in batches))


@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_what_candidates_have_in_common_has_the_same_kernels_run_once_or_each_time(outputs, monkeypatch):
    network, x = shaken(1, torch.float32), joint_inputs(tasks(1, 1, 8))
    candidates = [Candidates(), Candidates().without(FIRST)]
    shared = list(candidate_kernels(network, candidates, x, outputs, precision="bf16"))
    monkeypatch.setattr(CandidateBatch, "common_stages", lambda *_: 0)
    alone = list(candidate_kernels(network, candidates, x, outputs, precision="bf16"))
    for pair, other in zip(shared, alone, strict=True):
        assert all(map(torch.equal, pair, other))


def test_only_float32_on_a_cpu_that_multiplies_bfloat16_is_rounded(monkeypatch):
    one = torch.ones(1)
    assert precision.factors("bf16", one) is torch.bfloat16
    assert precision.factors("fp32", one) is None
    assert precision.factors("bf16", one.double()) is None
    assert precision.factors("bf16", one.to("meta")) is None
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    assert precision.factors("bf16", one) is None


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", None])
def test_a_cpu_is_asked_what_it_multiplies(name, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: True}, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert precision.multiplies_bfloat16() == (name is not None)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not precision.multiplies_bfloat16()


def test_the_search_passes_it_on_and_no_preset_asks_for_it():
    assert scorer_of(Search(precision="bf16"), "cpu").settings.precision == "bf16"
    assert {each.precision for each in SEARCH.values()} == {"fp32"}
