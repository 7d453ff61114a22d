import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mamltheory.errors import ConfigurationError, ShapeError, UnsupportedModelError
from mamltheory.kernels.empirical import empirical_last_layer_ntk, empirical_ntk
from mamltheory.kernels.meta import joint_inputs, meta_ntk
from mamltheory.linalg import Converged, GradientFlow
from mamltheory.nas.algorithms.algorithm1 import run_search
from mamltheory.nas.algorithms.settings import SearchSettings
from mamltheory.nas.genotype import Candidates, Edge, Operator, random_genotype
from mamltheory.nas.network import build, derived_network, supernet
from mamltheory.nas.scoring import scorers as scorer
from mamltheory.nas.scoring.condition_number import (
    _measured,
    candidate_conditions,
    condition_score,
    network_kernels,
    score_kernel,
    score_kernels,
)
from mamltheory.nas.scoring.linear_regions import random_patches
from mamltheory.nas.scoring.score import Score, ScoreSettings, failures
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.rng import derived_seed, generator
from mamltheory.tasks import Task
from tests.nas.cases import SMALL, WAYS, draw_tasks, tasks


def draw_patches(stream, count=100):
    return random_patches(torch.rand(4, 3, 8, 8, generator=stream), count, stream)


def is_weight(network, name):
    return network.get_parameter(name).dim() > 1


@pytest.mark.parametrize(
    ("outputs", "weights"),
    [
        ("full", "all"),
        ("sum", "weights"),
        pytest.param("full", "weights", marks=pytest.mark.slow),
        pytest.param("sum", "all", marks=pytest.mark.slow),
    ],
)
@given(seed=st.integers(0, 1000), whole=st.booleans())
@settings(max_examples=2, deadline=None)
def test_the_layerwise_kernel_is_the_generic_one(outputs, weights, seed, whole):
    candidates = Candidates() if whole else random_genotype(generator(seed, "g")).candidates()
    network = supernet(candidates, SMALL, seed).double()
    with torch.no_grad():  # away from the initial 1 and 0, which could hide an error
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.rand(parameter.shape, generator=generator(seed, "shift"))
    x = joint_inputs(tasks(seed, 1)).double()
    theta, head = network_kernels(network, x, outputs, weights)
    chosen = None if weights == "all" else partial(is_weight, network)
    generic = empirical_ntk(network, x, outputs=outputs, select=chosen, method="generic")
    torch.testing.assert_close(theta, generic, rtol=1e-10, atol=1e-12)
    if weights == "all":
        last = empirical_last_layer_ntk(network, x, outputs=outputs, method="generic")
    else:
        last = empirical_ntk(network, x, outputs=outputs, select={"classifier.weight"}, method="generic")
    torch.testing.assert_close(head, last, rtol=1e-10, atol=1e-12)


def test_single_precision_gradients_give_the_kernel_to_single_precision():
    x = joint_inputs(tasks())
    network = supernet(Candidates(), SMALL, 0)
    single = network_kernels(network, x)[0]
    double = network_kernels(network.double(), x.double())[0]
    assert single.dtype == torch.float64
    assert float((single - double).norm() / double.norm()) < 1e-4


def test_the_full_kernel_summed_over_outputs_is_the_kernel_of_the_sum():
    network, x = supernet(Candidates(), SMALL, 1).double(), joint_inputs(tasks()).double()
    full = network_kernels(network, x, "full")[0]
    summed = full.reshape(len(x), WAYS, len(x), WAYS).sum((1, 3))
    torch.testing.assert_close(summed, network_kernels(network, x, "sum")[0], rtol=1e-10, atol=1e-12)


@pytest.mark.paper("Eq. (11)", "Eq. (112)")
@pytest.mark.parametrize("kernel", ["maml", "anil"])
@pytest.mark.parametrize("outputs", ["full", "sum"])
def test_the_score_kernel_is_the_meta_ntk_of_the_theory(kernel, outputs):
    network = supernet(random_genotype(generator(2, "g")).candidates(), SMALL, 2).double()
    for dynamics in (Converged(1e-3), GradientFlow(0.5)):
        score_settings = ScoreSettings(kernel, outputs, "all", dynamics=dynamics)
        expected = meta_ntk(
            network, [t.to(torch.float64) for t in tasks()], kernel, dynamics, outputs=outputs
        )
        torch.testing.assert_close(
            score_kernel(network, tasks(), score_settings), expected, rtol=1e-8, atol=1e-9
        )


@pytest.mark.paper("fn. 11")
def test_the_ntk_score_sees_queries_and_supports_and_the_meta_scores_queries_alone():
    network = supernet(Candidates(), SMALL, 0)
    sizes = {
        (kernel, outputs): len(score_kernel(network, tasks(), ScoreSettings(kernel, outputs)))
        for kernel in ("ntk", "maml")
        for outputs in ("full", "sum")
    }
    assert sizes == {("ntk", "full"): 36, ("ntk", "sum"): 12, ("maml", "full"): 18, ("maml", "sum"): 6}


def test_a_repeated_image_makes_the_ntk_singular_and_is_reported_as_infinite():
    first = tasks(count=1)[0]
    twin = Task(first.query_x, first.query_y, first.query_x, first.query_y)
    network = supernet(Candidates(), SMALL, 0)
    assert condition_score(network, [twin], ScoreSettings("ntk")) == math.inf
    assert condition_score(network, [first], ScoreSettings("ntk")) < math.inf


def only_path(doomed):
    """Candidates whose reduction cells hear their inputs through one edge, with two operations on it."""
    rest = (("conv_3x3",),) * 9
    reduce = ((), (doomed, "skip_connect"), (), (), ("skip_connect",), (), (), (), ("skip_connect",))
    return Candidates(normal=rest, reduce=reduce)


def test_an_operator_whose_removal_kills_all_gradients_gives_infinity_and_the_reason():
    network = supernet(Candidates(), SMALL, 3)
    with torch.no_grad():  # a dead operation: nothing passes, in either direction
        for parameter in network.cells[1].edges["0_1"]["skip_connect"].parameters():
            parameter.zero_()
    whole = only_path("conv_3x3")
    dead = whole.without(Operator("reduce", Edge(0, 1), "conv_3x3"))
    (value, why), (lost, reason) = candidate_conditions(network, [whole, dead], tasks(), ScoreSettings())
    assert why is None
    assert value < math.inf
    assert (lost, reason) == (math.inf, "no gradient")


def test_a_repeated_image_is_singular_and_an_overflow_not_finite():
    first, network = tasks(count=1)[0], supernet(Candidates(), SMALL, 0)
    twin = Task(first.query_x, first.query_y, first.query_x, first.query_y)
    assert candidate_conditions(network, [Candidates()], [twin], ScoreSettings("ntk")) == [
        (math.inf, "singular")
    ]
    with torch.no_grad():
        network.stem[0].weight.fill_(math.inf)
    lost = candidate_conditions(network, [Candidates()] * 2, [first], ScoreSettings(outputs="sum"))
    assert lost == [(math.inf, "not finite")] * 2
    assert condition_score(network, [first], ScoreSettings(outputs="sum")) == math.inf


def test_failures_are_counted_by_their_reason():
    scores = [Score(1.0, 1.0), Score(math.inf, 1.0, "singular"), Score(math.inf, 1.0), Score(2.0, 1.0)]
    assert failures(scores) == {"singular": 1, "unknown": 1}
    assert failures(scores[:1]) == {}
    assert Score(math.inf, 1.0, "singular") == Score(math.inf, 1.0)


def test_a_batch_of_candidates_scores_as_one_by_one():
    candidates = [Candidates(), Candidates().without(Operator("normal", Edge(1, 1), "sep_conv_3x3"))]
    for score, each in zip(SCORER.scores(candidates, 0, 1), candidates, strict=True):
        alone = SCORER.scores([each], 0, 1)[0]
        assert score.condition == pytest.approx(alone.condition, rel=1e-3)
        assert score.regions == alone.regions


@pytest.mark.parametrize(
    "kernel",
    ["maml", pytest.param("anil", marks=pytest.mark.slow), pytest.param("ntk", marks=pytest.mark.slow)],
)
def test_the_kernels_of_a_batch_are_those_of_one_network_at_a_time(kernel):
    network, chosen = supernet(Candidates(), SMALL, 1).double(), ScoreSettings(kernel=kernel)
    candidates = [Candidates(), *map(Candidates().without, Candidates().operators()[::63])]
    found = list(score_kernels(network, candidates, tasks(), chosen))
    assert len(found) == len(candidates) > 2
    for each, one in zip(candidates, found, strict=True):
        alone = score_kernel(network.restrict(each), tasks(), chosen)
        torch.testing.assert_close(one, alone, rtol=1e-9, atol=1e-10 * float(alone.abs().max()))


def test_labels_do_not_enter_the_score():
    task = tasks(count=1)[0]
    relabelled = Task(task.query_x, task.query_y.flip(0), task.support_x, task.support_y.flip(0))
    network = supernet(Candidates(), SMALL, 0)
    scores = [condition_score(network, [t], ScoreSettings()) for t in (task, relabelled)]
    assert scores[0] == scores[1] > 1


draw_task = partial(draw_tasks, count=1)
SCORER = CellScorer(SMALL, 7, draw_task, draw_patches, ScoreSettings(outputs="sum"))


def test_common_random_numbers_give_an_unchanged_candidate_the_score_of_the_supernet():
    assert SCORER.scores([Candidates()], 1, 2)[0] == SCORER.scores([Candidates()], 1, 2)[0]


def test_a_score_does_not_depend_on_what_was_scored_before():
    candidate = Candidates().without(Operator("reduce", Edge(1, 1), "sep_conv_3x3"))
    before = SCORER.scores([candidate], 0, 0)[0]
    SCORER.scores([Candidates()], 0, 0)
    SCORER.scores([Candidates()], 3, 1)
    assert SCORER.scores([candidate], 0, 0)[0] == before
    seed = derived_seed(SCORER.seed, "score-weights", 0, 0)
    batch = draw_task(generator(SCORER.seed, "score-tasks", 0, 0))
    alone = condition_score(supernet(candidate, SMALL, seed), batch, SCORER.settings)
    assert before.condition == pytest.approx(alone, rel=1e-3)


def test_the_candidates_of_a_repeat_share_one_network(monkeypatch):
    built, usual = [], scorer.supernet

    def counted(*how):
        built.append(how)
        return usual(*how)

    scorer._whole_supernet.cache_clear()
    monkeypatch.setattr(scorer, "supernet", counted)
    operators = Candidates().operators()
    others = [Candidates().without(operators[place]) for place in (0, 5)]
    scorer_alone = CellScorer(SMALL, 7, draw_task, None, SCORER.settings)
    found = [scorer_alone.scores([each], 0, 0)[0] for each in [Candidates(), *others] * 2]
    assert len(built) == 1
    assert found[:3] == found[3:]
    assert len({score.condition for score in found}) == 3
    scorer_alone.scores([Candidates()], 0, 1)
    assert len(built) == 2


def test_every_round_and_repeat_draws_afresh():
    scores = {SCORER.scores([Candidates()], k, r)[0].condition for k in (0, 1) for r in (0, 1)}
    assert len(scores) == 4


@pytest.mark.slow
def test_common_random_numbers_make_differences_between_candidates_less_noisy():
    """Compared with drawing the candidate's weights and tasks independently of the supernet's."""
    candidate = Candidates().without(Operator("normal", Edge(0, 0), "conv_3x3"))
    scorer = CellScorer(SMALL, 7, draw_tasks, None, ScoreSettings(outputs="sum", measure="harmonic"))
    whole = [math.log(scorer.scores([Candidates()], 0, r)[0].condition) for r in range(8)]
    part = [math.log(scorer.scores([candidate], 0, r)[0].condition) for r in range(8)]
    common = torch.tensor([a - b for a, b in zip(whole, part, strict=True)]).std()
    independent = torch.tensor([a - b for a, b in zip(whole, part[1:] + part[:1], strict=True)]).std()
    assert float(common) < 0.8 * float(independent)


def test_a_scorer_can_be_sent_to_a_process():
    copy = pickle.loads(pickle.dumps(SCORER))
    assert copy.scores([Candidates()], 0, 0)[0] == SCORER.scores([Candidates()], 0, 0)[0]


def test_a_criterion_without_a_sampler_is_constant():
    only_regions = CellScorer(SMALL, 7, None, draw_patches).scores([Candidates()], 0, 0)[0]
    assert only_regions.condition == 1.0
    assert only_regions.regions == SCORER.scores([Candidates()], 0, 0)[0].regions
    assert CellScorer(SMALL, 7, draw_task, None, SCORER.settings).scores([Candidates()], 0, 0)[0] == Score(
        SCORER.scores([Candidates()], 0, 0)[0].condition, 1.0
    )


def test_scores_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    SCORER.scores([Candidates()], 0, 0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_a_whole_search_on_images_ends_in_a_genotype():
    state = run_search(SCORER, SearchSettings(repeats=1))
    assert state.candidates.genotype()
    assert all(math.isfinite(d.delta_condition) for d in state.trace)


def test_wrong_heads_batch_norms_and_settings_are_refused():
    network = supernet(Candidates(), SMALL, 0)
    with pytest.raises(ShapeError, match="3 outputs and the tasks 4 ways"):
        condition_score(network, draw_tasks(generator(0, "t"), 1, ways=4), ScoreSettings())
    batch = build(Candidates(), SMALL, 0)
    with pytest.raises(UnsupportedModelError, match="batch statistics"):
        condition_score(batch, tasks(), ScoreSettings())
    with pytest.raises(UnsupportedModelError, match="batch statistics"):
        condition_score(
            derived_network(random_genotype(generator(0, "g")), SMALL, 0), tasks(), ScoreSettings()
        )
    with pytest.raises(ConfigurationError, match="NaN"):
        Score(math.nan, 1.0)


def test_entries_of_a_kernel_that_are_zero_say_nothing_of_its_gradients():
    """Samples with orthogonal gradients: the kernel is the identity, and Φ as well."""
    some = tasks()
    identity = torch.eye(len(joint_inputs(some)), dtype=torch.float64)
    settings = ScoreSettings(outputs="sum")
    assert _measured(identity, identity, some, settings, torch.float32) == (pytest.approx(1.0), None)
    assert _measured(0 * identity, identity, some, settings, torch.float32) == (math.inf, "no gradient")
