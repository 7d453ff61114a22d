"""Several random heads on the same weights and tasks."""

import math
from dataclasses import replace

import pytest
import torch

from mamltheory.errors import ConfigurationError
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.gradient import GradientScorer
from mamltheory.nas.heads import SeveralHeads, SeveralHeadsByGradient, geometric_mean
from mamltheory.nas.network import NetworkSettings
from mamltheory.nas.regions import random_patches
from mamltheory.nas.scorer import CellScorer, supernet_with_head
from mamltheory.nas.scores import Score, condition_score
from mamltheory.rng import derived_seed, generator
from mamltheory.types import Task

SIZE = NetworkSettings(channels=2, cells=3, classes=2, stem_stride=2)
ONE_CHOICE = (("skip_connect", "conv_3x3"), *[("skip_connect",)] * 8)
FEW = Candidates(ONE_CHOICE, ONE_CHOICE)


def draw_tasks(stream):
    labels = torch.eye(2)
    parts = [torch.randn(2, 3, 8, 8, generator=stream) for _ in range(2)]
    return [Task(parts[0], labels, parts[1], labels)]


def draw_patches(stream):
    return random_patches(torch.rand(4, 3, 8, 8, generator=stream), 50, stream)


SCORER = CellScorer(SIZE, 3, draw_tasks, draw_patches)


def test_a_head_of_its_own_leaves_the_other_weights():
    first, second, again = (supernet_with_head(FEW, SIZE, 5, head).state_dict() for head in (0, 1, 1))
    assert {n for n in first if not torch.equal(first[n], second[n])} == {"classifier.weight"}
    assert all(torch.equal(second[name], again[name]) for name in second)


def test_the_score_over_heads_is_the_geometric_mean_of_the_plain_scores_of_each():
    found = SeveralHeads(SCORER, 3)(FEW, 1, 2)
    tasks = draw_tasks(generator(3, "score-tasks", 1, 2))
    seed = derived_seed(3, "score-weights", 1, 2)
    each = [
        condition_score(
            supernet_with_head(Candidates(), SIZE, seed, head).restrict(FEW), tasks, SCORER.settings
        )
        for head in range(3)
    ]
    assert len({round(value, 6) for value in each}) == 3
    assert math.log(found.condition) == pytest.approx(sum(map(math.log, each)) / 3, rel=1e-4)
    assert found.regions == SCORER(FEW, 1, 2).regions


def test_one_head_is_the_scorer_itself():
    one, plain = SeveralHeads(SCORER, 1)(FEW, 0, 0), SCORER(FEW, 0, 0)
    assert (one.condition, one.regions) == (pytest.approx(plain.condition, rel=1e-12), plain.regions)


def test_by_gradient_every_operators_score_is_the_mean_over_heads():
    plain = GradientScorer(replace(SCORER, patches=None))
    found = SeveralHeadsByGradient(plain, 2)(FEW, 0, 1)
    each = [replace(plain, scorer=replace(plain.scorer, head=head))(FEW, 0, 1) for head in range(2)]
    assert set(found) == {None, *FEW.operators()}
    for operator, score in found.items():
        logs = [math.log(scores[operator].condition) for scores in each]
        assert math.log(score.condition) == pytest.approx(sum(logs) / 2)


def test_a_network_that_one_head_cannot_score_is_infinite_with_its_reason():
    parts = [Score(2.0, 7.0, halvings=1), Score(math.inf, 1.0, "singular", 2), Score(8.0, 1.0)]
    assert geometric_mean(parts) == Score(math.inf, 7.0)
    assert (geometric_mean(parts).failure, geometric_mean(parts).halvings) == ("singular", 3)
    assert geometric_mean(parts[::2]).condition == pytest.approx(4.0)


def test_no_head_is_refused():
    with pytest.raises(ConfigurationError, match="at least 1 head"):
        SeveralHeads(SCORER, 0)
    with pytest.raises(ConfigurationError, match="at least 1 head"):
        SeveralHeadsByGradient(GradientScorer(SCORER), 0)
