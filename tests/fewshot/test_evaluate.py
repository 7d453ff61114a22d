import dataclasses
import inspect

import joblib
import numpy as np
import pytest
import torch

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot.evaluation import (
    EvaluationConfig,
    batches,
    evaluate_network,
    paired_difference,
    predict,
)
from mamltheory.fewshot.heads import make_head
from mamltheory.fewshot.images import ImageSplit
from mamltheory.rng import numpy_generator
from tests.fewshot.small import SmallNet, noise_split
from tests.reference.fewshot_evaluation import accuracies as plain_accuracies

SPLIT = noise_split(7, 20, name="evaluation")
STATISTICS = ((0.5, 0.4, 0.5), (0.25, 0.3, 0.2))
CONFIG = EvaluationConfig(shots=1, queries=6, tasks=12, head="svc", C=0.5)


def test_the_defaults_are_those_of_rfs_with_the_penalty_of_scikit_learn():
    """1000 tasks as in the paper; C = 1 is scikit-learn's."""
    stated = {"ways": 5, "shots": 1, "queries": 15, "tasks": 1000, "copies": 5, "head": "logistic", "C": 1.0}
    stated |= {"padding": None, "jitter": 0.4, "flip": True, "batch_size": 256}
    assert dataclasses.asdict(EvaluationConfig()) == stated
    assert make_head("logistic").C == make_head("svc").C == 1.0
    chosen = inspect.signature(predict).parameters
    assert all(chosen[name].default == stated[name] for name in ("head", "C", "copies"))


def run(config=CONFIG, seed=0, network=None, split=SPLIT, **kwargs):
    return evaluate_network(network or SmallNet(), split, *STATISTICS, config, seed, **kwargs)


@pytest.mark.paper("Sec. 6.1: evaluation", "App. E: evaluation", "App. E: penalty")
@pytest.mark.parametrize(
    "change",
    [
        {"head": "svc"},
        {"head": "svc-scaled"},
        {"head": "logistic", "shots": 3, "C": 0.6},
        {"head": "nearest-centroid", "flip": False, "padding": 3},
        {"head": "logistic", "copies": 0},
        {"head": "svc", "copies": 1, "jitter": 0.0, "ways": 3},
    ],
    ids=str,
)
def test_the_evaluation_agrees_with_a_plain_loop(change):
    config = dataclasses.replace(CONFIG, **change)
    network = SmallNet()
    np.testing.assert_array_equal(
        run(config, network=network).accuracies, plain_accuracies(network, SPLIT, *STATISTICS, config, 0)
    )


def test_the_result_depends_neither_on_the_batch_size_nor_on_the_number_of_workers():
    whole = run()
    np.testing.assert_array_equal(run(dataclasses.replace(CONFIG, batch_size=7)).correct, whole.correct)
    with joblib.parallel_config(backend="threading"):
        np.testing.assert_array_equal(run(jobs=2).correct, whole.correct)


@pytest.mark.parametrize(
    "change", [{}, {"batch_size": 7}, {"copies": 0, "batch_size": 33}, {"shots": 3, "tasks": 5}]
)
def test_the_batches_of_images_are_known_beforehand(change):
    class Counting(SmallNet):
        seen = 0

        def features(self, x):
            self.seen += 1
            return super().features(x)

    config, network = dataclasses.replace(CONFIG, **change), Counting()
    run(config, network=network)
    assert network.seen == batches(SPLIT, config, 0)


@pytest.mark.slow
def test_processes_give_the_same_result():
    np.testing.assert_array_equal(run(jobs=2).correct, run().correct)


def test_accuracies_are_shares_of_the_query_images():
    result = run()
    assert result.correct.dtype.kind == "i"
    np.testing.assert_allclose(result.accuracies * 5 * CONFIG.queries, result.correct)


def test_more_tasks_begin_with_the_fewer_ones():
    more = run(dataclasses.replace(CONFIG, tasks=20))
    np.testing.assert_array_equal(more.accuracies[:12], run().accuracies)


def test_another_seed_gives_other_tasks():
    assert run(seed=1).tasks_digest != run().tasks_digest
    assert not np.array_equal(run(seed=1).accuracies, run().accuracies)


def test_easy_classes_are_recognised_and_images_of_noise_are_at_chance():
    assert run(dataclasses.replace(CONFIG, copies=0, shots=5)).interval.mean > 0.8
    random = numpy_generator(0, "noise images")
    images = random.integers(0, 256, SPLIT.images.shape).astype(np.uint8)
    noise = ImageSplit(images, SPLIT.labels, SPLIT.class_names)
    chance = run(dataclasses.replace(CONFIG, tasks=150), split=noise).interval
    assert abs(chance.mean - 0.2) < 3 * chance.half_width


def test_the_network_is_used_in_evaluation_mode_and_left_as_it_was():
    network = SmallNet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    run(network=network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_every_query_image_passes_through_the_network_once():
    class Counting(SmallNet):
        seen = 0

        def features(self, x):
            Counting.seen += len(x)
            return super().features(x)

    run(dataclasses.replace(CONFIG, tasks=40), network=Counting())
    assert Counting.seen <= len(SPLIT) + 40 * 5 * 5


def test_the_line_of_the_result_names_every_setting_that_decides_it():
    line = run(dataclasses.replace(CONFIG, shots=2, C=0.35), seed=9).describe()
    for part in (
        "5-way 2-shot",
        "6 queries",
        "svc (C=0.35)",
        "5 augmented copies",
        "12 tasks",
        "seed 9",
        "95 %",
    ):
        assert part in line
    assert "as they are" in run(dataclasses.replace(CONFIG, copies=0)).describe()
    assert "did not converge" not in line
    assert "3 heads did not converge" in dataclasses.replace(run(), unconverged=3).describe()


def test_common_tasks_make_the_paired_interval_of_two_similar_networks_narrower():
    config = dataclasses.replace(CONFIG, tasks=60)
    first, network = run(config), SmallNet()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * parameter.std(correction=0))
    second = run(config, network=network)
    difference = paired_difference(first, second)
    assert difference.mean == pytest.approx(first.interval.mean - second.interval.mean)
    assert difference.half_width < 0.7 * first.interval.half_width
    assert paired_difference(first, first).half_width == 0


def test_heads_may_be_compared_on_the_same_tasks_but_not_networks_on_different_ones():
    assert isinstance(paired_difference(run(), run(dataclasses.replace(CONFIG, head="logistic"))).mean, float)
    for other in (run(seed=1), run(dataclasses.replace(CONFIG, tasks=13))):
        with pytest.raises(ConfigurationError, match="same data, seed"):
            paired_difference(run(), other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tasks": 1},
        {"ways": 1},
        {"shots": 0},
        {"copies": -1},
        {"C": -1.0},
        {"jitter": 2.0},
        {"batch_size": 0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigurationError):
        dataclasses.replace(CONFIG, **wrong)


def test_a_number_of_processes_below_one_is_refused():
    with pytest.raises(ConfigurationError, match="jobs"):
        run(jobs=0)


def test_a_diverged_network_is_named_instead_of_scored():
    network = SmallNet()
    network.body[0].weight.data.fill_(float("nan"))
    with pytest.raises(ValueRangeError, match="diverged"):
        run(network=network)
