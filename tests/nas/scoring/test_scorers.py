import math
from functools import partial

import pytest
import torch

from mamltheory.errors import ConfigurationError, ShapeError
from mamltheory.linalg import Converged
from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.nas.scoring import scorers
from mamltheory.nas.scoring.condition_number import condition_score, own_conditions
from mamltheory.nas.scoring.linear_regions import region_count
from mamltheory.nas.scoring.own_score import OwnScore
from mamltheory.nas.scoring.score import Job, Score, ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer, IndependentDraws
from mamltheory.nas.weights import initialise_layer
from mamltheory.rng import derived_seed, generator
from tests.nas.cases import draw_tasks as several_tasks
from tests.strategies import as_users_run_it

draw_tasks = partial(several_tasks, count=1)
SIZE = NetworkSettings(channels=4, cells=3, classes=3, stem_stride=2, initialisation="default")
ALL = Candidates().operators()
START = Candidates(*((("conv_3x3", "skip_connect"),) * 9,) * 2)


def jobs(operator, repeat=0):
    return [Job(0, repeat, removed, operator) for removed in (None, operator)]


def patches(stream):
    return torch.randn(60, 1, 3, 3, generator=stream)


def test_each_pair_has_tasks_of_its_own_and_each_network_a_head():
    drawn = []

    def noting(stream):
        drawn.append(draw_tasks(stream))
        return drawn[-1]

    scorer = IndependentDraws(CellScorer(SIZE, 3, noting, patches, ScoreSettings("maml", "sum")))
    first, second = START.operators()[:2]
    asked = [job for operator in (first, second) for job in jobs(operator)]
    found = {job: scorer(START, [job])[job] for job in asked}
    again = {job: scorer(START, [job])[job] for job in reversed(asked)}
    assert again == found
    images = [float(tasks[0].query_x.sum()) for tasks in drawn[:4]]
    assert images[0] == images[1] != images[2] == images[3]
    # the same network every time: what differs is the head within a pair, head and tasks between pairs
    assert len({score.condition for score in found.values()}) == 4
    a, b = (found[job].regions for job in jobs(first))
    assert a == b


def test_default_weights_are_uniform_of_a_sixth_of_kaimings_variance_and_norms_are_untouched():
    kaiming, default = (
        supernet(START, NetworkSettings(channels=8, cells=3, classes=3, initialisation=kind), 0)
        for kind in ("kaiming", "default")
    )
    name = "cells.0.edges.0_0.conv_3x3"
    weights = [{k: v.detach() for k, v in net.named_parameters()} for net in (kaiming, default)]
    convolutions = [key for key, value in weights[0].items() if value.dim() == 4 and value.numel() > 500]
    ratio = sum(float(weights[1][k].var() / weights[0][k].var()) for k in convolutions) / len(convolutions)
    assert ratio == pytest.approx(1 / 6, rel=0.05)
    bound = [float(weights[1][k].abs().max() * weights[1][k][0].numel() ** 0.5) for k in convolutions]
    assert max(bound) <= 1
    assert any(key.startswith(name) for key in weights[0])
    assert bool(weights[1]["classifier.bias"].any())
    assert not bool(weights[0]["classifier.bias"].any())


@pytest.mark.parametrize(
    ("outputs", "weights"),
    [
        ("full", "all"),
        ("sum", "weights"),
        pytest.param("full", "weights", marks=pytest.mark.slow),
        pytest.param("sum", "all", marks=pytest.mark.slow),
    ],
)
def test_pairs_together_have_the_scores_that_each_network_has_by_itself(outputs, weights):
    score_settings = ScoreSettings("anil", outputs, weights)
    scorer = IndependentDraws(CellScorer(SIZE, 3, draw_tasks, patches, score_settings))
    asked = [job for operator in START.operators()[3:6] for job in jobs(operator, 1)]
    for job, found in scorer(START, asked).items():
        network = job.network(START)
        index = job.round_index, job.repeat, ALL.index(job.pair)
        built = supernet(Candidates(), SIZE, derived_seed(3, "score-weights", job.round_index))
        which = "supernet" if job.removed is None else "candidate"
        initialise_layer(built.classifier, SIZE.initialisation, generator(3, f"head of the {which}", *index))
        tasks = draw_tasks(generator(3, "own tasks", *index))
        alone = condition_score(built.restrict(network), tasks, score_settings)
        assert found.condition == pytest.approx(alone, rel=1e-3)
        thin = derived_seed(3, "own thin weights", *index)
        assert found.regions == region_count(network, patches(generator(3, "own patches", *index)), thin)


def test_jobs_of_several_rounds_and_tasks_of_several_sizes_are_refused():
    scorer = IndependentDraws(CellScorer(SIZE, 3, draw_tasks, None, ScoreSettings("maml", "sum")))
    mixed = [Job(k, 0, None, START.operators()[0]) for k in (2, 0)]
    with pytest.raises(ConfigurationError, match=r"rounds \[0, 2\]"):
        scorer(START, mixed)
    with pytest.raises(ConfigurationError, match="names no pair"):
        scorer(START, [Job(0, 0, None)])
    network, tasks = supernet(START, SIZE, 0), draw_tasks(generator(0, "tasks"))
    with pytest.raises(ShapeError, match=r"\(6, 3, 12, 12\).*\(12, 3, 12, 12\)"):
        own_conditions(
            network, [START] * 2, [tasks, tasks * 2], [network.classifier] * 2, scorer.scorer.settings
        )


def test_a_single_job_is_scored_without_regions_or_without_kernels():
    job = jobs(START.operators()[1])[1]
    several = IndependentDraws(CellScorer(SIZE, 3, draw_tasks, None, ScoreSettings("ntk", "sum")))
    both = several(START, jobs(START.operators()[1]))
    (found,) = several(START, [job]).values()
    assert found.condition == pytest.approx(both[job].condition, rel=1e-3)
    assert (found.regions, found.halvings) == (1.0, 0)
    (found,) = IndependentDraws(CellScorer(SIZE, 3, None, patches))(START, [job]).values()
    assert found.condition == 1.0
    assert found.regions > 1


def test_own_scores_have_their_sign_the_regions_and_no_halvings():
    own = OwnScore(lambda network, tasks: len(network.candidates.operators()) + len(tasks), True)
    networks = [START, START.without(START.operators()[0])]
    scorer = CellScorer(SIZE, 3, draw_tasks, patches, own=own)
    found = scorer.scores(networks, 1, 2)
    assert [score.condition for score in found] == [-37, -36]
    thin = derived_seed(3, "thin-weights", 1, 2)
    drawn = patches(generator(3, "score-patches", 1, 2))
    assert [score.regions for score in found] == [region_count(network, drawn, thin) for network in networks]
    assert [score.halvings for score in found] == [0, 0]
    with pytest.raises(ConfigurationError, match="own score has common random numbers"):
        IndependentDraws(scorer)(START, jobs(START.operators()[0]))


def test_only_the_first_score_says_how_often_its_batch_was_halved():
    scores = scorers._scores([(2.0, None), (math.inf, "singular")], [3, 4], 5)
    assert scores == [Score(2.0, 3.0), Score(math.inf, 4.0)]
    assert [(score.halvings, score.failure) for score in scores] == [(5, None), (0, "singular")]


@pytest.mark.parametrize(
    "wrong", [{"kernel": "rbf"}, {"outputs": "mean"}, {"weights": "none"}, {"measure": "rank"}]
)
def test_settings_of_a_score_have_the_values_of_their_lists(wrong):
    assert ScoreSettings() == ScoreSettings("maml", "full", "weights", "condition", Converged(ridge=1e-3))
    ((name, value),) = wrong.items()
    with as_users_run_it(), pytest.raises(ConfigurationError, match=f"{name} is '{value}': expected one of"):
        ScoreSettings(**wrong)
