"""Scores of cells on a CUDA device: those of the CPU, batched and one by one, by gradient and regions."""

import math

import pytest
import torch

from mamltheory.nas.genotype import Candidates, random_genotype
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.nas.scoring.condition_number import candidate_conditions, condition_score
from mamltheory.nas.scoring.linear_regions import (
    activation_patterns,
    distinct_patterns,
    random_patches,
    region_counts,
)
from mamltheory.nas.scoring.operator_gradient import GradientScorer, operator_gradients
from mamltheory.nas.scoring.pool import Batch, PoolSettings, PoolTasks, pooled_scores
from mamltheory.nas.scoring.score import Job, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.rng import generator
from tests.nas.cases import draw_tasks

pytestmark = pytest.mark.usefixtures("card")

TINY = NetworkSettings(channels=4, cells=3, classes=2, stem_stride=2)
WHOLE = Candidates()
HARMONIC = ScoreSettings(outputs="sum", measure="harmonic")
FEW = Candidates(*((("conv_3x3", "skip_connect"),) + (("max_pool_3x3BN",),) * 8 for _ in range(2)))
"""A supernet with two operators to choose from in each cell."""


def tasks(stream=None, count=1):
    return draw_tasks(generator(0, "tasks") if stream is None else stream, count, size=8, ways=2)


def patches(stream):
    return random_patches(torch.rand(4, 3, 8, 8, generator=stream), 20, stream)


def conditions(device, candidates, settings):
    network = supernet(WHOLE, TINY, 0).to(device, torch.float64)
    return [value for value, _ in candidate_conditions(network, candidates, tasks(), settings)]


@pytest.mark.parametrize(
    ("whole", "settings"),
    [
        (WHOLE, ScoreSettings(outputs="sum")),
        (FEW, ScoreSettings("anil", "full", "all", "harmonic")),
        (FEW, ScoreSettings("ntk", "sum")),
    ],
    ids=["maml", "anil", "ntk"],
)
def test_a_batch_of_candidates_has_the_scores_of_the_cpu(whole, settings):
    some = [whole, whole.without(whole.operators()[0])]
    found = conditions("cuda", some, settings)
    assert all(math.isfinite(each) for each in found)
    assert found == pytest.approx(conditions("cpu", some, settings), rel=1e-6)


def test_a_network_alone_has_the_score_of_the_cpu():
    def score(device):
        network = supernet(FEW, TINY, 0).to(device, torch.float64)
        return condition_score(network, tasks(), ScoreSettings())

    assert score("cuda") == pytest.approx(score("cpu"), rel=1e-6)


def test_the_scorers_find_what_they_find_on_the_cpu():
    operators = [o for o in FEW.operators() if len(FEW.on(o.cell, o.edge)) > 1][:2]
    common = [Job(0, 0, removed) for removed in (None, *operators)]
    own = [Job(0, 0, removed, operators[0]) for removed in (None, operators[0])]

    def found(device):
        scorer = CellScorer(TINY, 0, tasks, patches, HARMONIC, device)
        scores = [*scorer(FEW, common).values(), *IndependentDraws(scorer)(FEW, own).values()]
        return [score.condition for score in scores], [score.regions for score in scores]

    there, here = found("cuda"), found("cpu")
    assert there[0] == pytest.approx(here[0], rel=1e-2)
    assert there[1] == here[1]


@pytest.mark.parametrize("chunk", [None, 3])
def test_the_gradient_by_operators_is_that_of_the_cpu(chunk):
    def found(device):
        network, settings = (
            supernet(FEW, TINY, 0).to(device, torch.float64),
            HARMONIC,
        )
        return operator_gradients(network, FEW, tasks(), settings, chunk=chunk)

    there, here = found("cuda"), found("cpu")
    assert there.value == pytest.approx(here.value, rel=1e-4)
    assert list(there.gradients.values()) == pytest.approx(list(here.gradients.values()), rel=1e-3, abs=1e-4)


def test_the_scorer_by_gradient_runs_on_the_device():
    def found(device):
        scorer = GradientScorer(CellScorer(TINY, 0, tasks, settings=HARMONIC, device=device))
        return [score.condition for score in scorer.scores(FEW, 0, 0).values()]

    assert found("cuda") == pytest.approx(found("cpu"), rel=1e-2)


def test_linear_regions_are_counted_as_on_the_cpu():
    drawn = patches(generator(0, "patches"))
    some = [WHOLE, WHOLE.without(WHOLE.operators()[3])]
    assert region_counts(some, drawn.to("cuda"), 0) == region_counts(some, drawn, 0)

    def distinct(device):
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 3), torch.nn.ReLU())
        weight = torch.linspace(-1, 1, 27).reshape(3, 9)
        network[1].weight.data, network[1].bias.data = weight, torch.zeros(3)
        return distinct_patterns(activation_patterns(network.to(device), drawn.to(device)))

    assert distinct("cuda") == distinct("cpu") > 1


def test_scores_from_a_pool_are_those_of_the_cpu():
    pool = torch.randn(6, 3, 8, 8, generator=generator(0, "pool"))
    query, support = torch.tensor([[0, 2]]), torch.tensor([[1, 3]])
    some = PoolTasks([Batch(query, support)], query[..., None], support[..., None])

    def scores(device):
        candidates = random_genotype(generator(0, "genotype")).candidates()
        return pooled_scores(supernet(candidates, TINY, 0).to(device), pool, some, PoolSettings())

    assert scores("cuda") == pytest.approx(scores("cpu"), rel=1e-3)
