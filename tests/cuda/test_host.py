"""How often the host launches, waits and uploads: once a batch and not once a candidate, and never in a step."""

import threading
import time

import pytest
import torch

from mamltheory.accelerator import memory_budget, uploaded
from mamltheory.fewshot.conv4 import conv4
from mamltheory.fewshot.meta_train import (
    MetaTrainConfig,
    adapted_accuracies,
    meta_train_step,
    start_meta_training,
)
from mamltheory.kernels.meta import joint_inputs
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.nas.scoring import candidate_batch, scorers
from mamltheory.nas.scoring.candidate_batch import CandidateBatch, candidate_kernels
from mamltheory.nas.scoring.condition_number import candidate_conditions
from mamltheory.nas.scoring.operator_gradient import operator_gradients
from mamltheory.nas.scoring.score import Job, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.rng import generator
from tests.fake_cuda import fake_cuda
from tests.fewshot.small import noise_data
from tests.nas.cases import draw_tasks

TINY = NetworkSettings(channels=2, cells=3, classes=2, stem_stride=2)
EDGE, ALONE = ("conv_3x3", "skip_connect"), ("max_pool_3x3BN",)
FEW = Candidates(*((EDGE, EDGE, *(7 * (ALONE,))) for _ in range(2)))
"""A supernet with two operators to choose from on two edges of each cell."""
SUM = ScoreSettings(outputs="sum", measure="harmonic")


@pytest.fixture
def fake():
    with fake_cuda() as card:
        yield card


def tasks(stream=None):
    return draw_tasks(generator(0, "tasks") if stream is None else stream, 1, size=8, ways=2)


def choices():
    return [o for o in FEW.operators() if len(FEW.on(o.cell, o.edge)) > 1]


def networks(count):
    return [FEW, *(FEW.without(operator) for operator in choices()[: count - 1])]


def counted(card, count):
    """Launches of one call with so many candidates; it waits once, and not for an upload."""
    network = supernet(FEW, TINY, 0).to("cuda")
    candidate_conditions(network, networks(1), tasks(), SUM)  # afterwards it is known how many candidates fit
    card.clear()
    found = candidate_conditions(network, networks(count), tasks(), SUM)
    assert all(why is None for _, why in found)
    assert card.waits.total() == 1, card.waits
    assert card.uploads.total() == 1 + (count > 1), f"images, and indices of the batch: {card.uploads}"
    assert not card.blocking, card.blocking
    return card.launches.total()


def test_a_batch_of_candidates_takes_one_upload_one_wait_and_hardly_more_launches_than_one(fake):
    alone, three, five = (counted(fake, count) for count in (1, 3, 5))
    assert alone < three < five < 1.2 * alone


def reads(rows):
    rows.sum().item()


def uploads(rows):
    torch.tensor([0, 1]).to(rows.device)


@pytest.mark.parametrize("planted", [reads, uploads])
def test_a_wait_or_an_upload_that_is_planted_in_a_batch_is_caught(fake, monkeypatch, planted):
    usual = candidate_batch.add_grams

    def wrong(totals, rows, *rest):
        planted(rows)
        usual(totals, rows, *rest)

    monkeypatch.setattr(candidate_batch, "add_grams", wrong)
    with pytest.raises(AssertionError, match=r"_local_scalar_dense|images, and indices"):
        counted(fake, 3)


def test_the_free_memory_decides_how_many_candidates_a_batch_has():
    x = joint_inputs(tasks())
    names = {name for name, value in supernet(FEW, TINY, 0).named_parameters() if value.dim() > 1}
    batch = CandidateBatch(supernet(FEW, TINY, 0), [FEW], x, names)
    batch.kernels("sum", 1 << 30)
    found = {}
    for free in (64, 8):
        with fake_cuda(free=free * batch.chain.needed) as card:
            network = supernet(FEW, TINY, 0).to("cuda")
            found[free] = list(candidate_kernels(network, networks(5), x.to("cuda"), "sum"))
            assert card.waits.total() in {64: (1,), 8: (2, 3)}[free], "all five, or two to four in a batch"
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_budget_is_a_power_of_two_below_half_of_what_is_free():
    assert memory_budget("cpu", 7) == 7
    with fake_cuda(free=11 << 30):
        assert memory_budget("cuda", 7) == 4 << 30
        assert memory_budget("cuda", 7, processes=2) == 2 << 30


def test_regions_are_counted_while_the_device_is_told_what_to_do(fake, monkeypatch):
    begun = []

    def counting(some, *_):
        begun.append(threading.current_thread())
        end = time.monotonic() + 300
        while not fake.launches["convolution"] and time.monotonic() < end:
            time.sleep(0.01)
        assert fake.launches["convolution"], "nothing is launched before the regions are counted"
        return [7] * len(some)

    monkeypatch.setattr(scorers, "region_counts", counting)
    scorer = CellScorer(TINY, 0, tasks, lambda _: torch.zeros(1), SUM, "cuda")
    own = [Job(0, 0, removed, choices()[0]) for removed in (None, choices()[0])]
    for score in (*scorer.scores(networks(2), 0, 0), *IndependentDraws(scorer)(FEW, own).values()):
        assert score.regions == 7
    assert threading.main_thread() not in begun
    assert fake.waits.total() == 2, fake.waits
    assert not fake.blocking, fake.blocking


def test_a_gradient_by_operators_waits_for_its_kernels_and_its_result(fake):
    network = supernet(FEW, TINY, 0).to("cuda")
    fake.clear()
    operator_gradients(network, FEW, tasks(), SUM)
    assert fake.waits.total() == 2, fake.waits
    assert fake.uploads.total() == 3, f"images, weights and slopes: {fake.uploads}"
    assert not fake.blocking, fake.blocking


@pytest.mark.parametrize("algorithm", ["maml", "anil"])
def test_a_step_of_a_meta_training_waits_only_to_measure(fake, algorithm):
    config = MetaTrainConfig(algorithm, 2, 1, 1, tasks=2, inner_steps=1, learning_rate=0.01)
    data = noise_data(16, classes=3, per_class=4)
    state, _ = meta_train_step(start_meta_training(conv4(2, 16, 0, channels=2), data, config, "cuda"))
    fake.clear()
    state, metrics = meta_train_step(state, measured=False)
    assert metrics is None
    assert not fake.waits, fake.waits
    assert not fake.blocking, fake.blocking
    assert fake.uploads.total() == 4, f"images, labels, mean and deviation: {fake.uploads}"
    state, metrics = meta_train_step(state)
    assert fake.waits.total() == 1, fake.waits
    fake.clear()
    adapted_accuracies(state, data.test, 3, 1, 0)
    assert fake.waits.total() == 1, fake.waits


@pytest.mark.usefixtures("fake")
def test_unmeasured_steps_are_the_same_steps():
    config = MetaTrainConfig("maml", 2, 1, 1, tasks=1, learning_rate=0.01)
    data = noise_data(16, classes=3, per_class=4)

    def trained(measured):
        state = start_meta_training(conv4(2, 16, 0, channels=2), data, config, "cuda")
        for _ in range(2):
            state, _ = meta_train_step(state, measured)
        return {name: value.cpu() for name, value in state.values.items()}

    one, other = trained(True), trained(False)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_what_is_on_the_device_already_is_not_uploaded(fake):
    x = torch.zeros(2).to("cuda", non_blocking=True)
    fake.clear()
    assert uploaded(x, x.device) is x
    assert not fake.uploads
