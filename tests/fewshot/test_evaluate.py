import dataclasses
import hashlib
import inspect
import os
import time

import joblib
import numpy as np
import pytest
import torch
from scipy import stats

from mamltheory.errors import ConfigurationError, ValueRangeError
from mamltheory.fewshot import evaluation
from mamltheory.fewshot.augment import Augmentation, apply_draws, draw_augmentation
from mamltheory.fewshot.episodes import Episode
from mamltheory.fewshot.evaluation import (
    Evaluation,
    EvaluationConfig,
    FeatureMap,
    _digest,
    batches,
    evaluate_network,
    paired_difference,
    predict,
    validation_accuracy,
)
from mamltheory.fewshot.heads import fit_confidence, make_head, unit_norm
from mamltheory.fewshot.images import ImageSplit
from mamltheory.fewshot.uploads import normalise
from mamltheory.rng import generator, numpy_generator
from tests.fewshot.small import SmallNet, noise_data, noise_split
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
    config = EvaluationConfig(4, 2, 6, 12, copies=5, head="svc", C=0.35)
    result = Evaluation(config, 9, np.array([6] * 6 + [12] * 6), 3, "")
    width = 100 * 0.125 * stats.t.ppf(0.975, 11) / 11**0.5
    assert result.describe() == (
        f"37.50 ± {width:.2f} % (95 % interval over 12 tasks): 4-way 2-shot, 6 queries per class, svc (C=0.35), 5 "
        "augmented copies of each support image, seed 9; 3 heads did not converge"
    )
    config = dataclasses.replace(config, head="nearest-centroid", copies=0)
    assert dataclasses.replace(result, config=config, unconverged=0).describe() == (
        f"37.50 ± {width:.2f} % (95 % interval over 12 tasks): 4-way 2-shot, 6 queries per class, nearest-centroid, "
        "support images as they are, seed 9"
    )


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_cpu_time_is_that_of_this_process_and_of_every_other_one(elsewhere, monkeypatch):
    fitted = (
        3,
        True,
        100.0,
        os.getpid() + elsewhere,
    )  # a fit of 100 seconds, made here or in another process
    monkeypatch.setattr(evaluation, "_correct", lambda *_: fitted)
    begun = time.process_time()
    seconds = run(dataclasses.replace(CONFIG, tasks=3)).cpu_seconds
    assert 0 < seconds - 300 * elsewhere <= time.process_time() - begun


def test_the_heads_that_did_not_converge_are_counted(monkeypatch):
    converged = iter([True, False, False, True, False])
    monkeypatch.setattr(evaluation, "fit_predict", lambda *parts: (np.zeros(len(parts[-1])), next(converged)))
    result = run(dataclasses.replace(CONFIG, tasks=5))
    assert result.unconverged == 3
    assert result.correct.tolist() == [6] * 5
    chosen = inspect.signature(evaluate_network).parameters
    assert (chosen["jobs"].default, inspect.signature(FeatureMap).parameters["batch_size"].default) == (
        1,
        256,
    )


def test_tasks_have_a_digest_of_their_images_whatever_the_size_of_the_integers():
    parts = [np.array([1, 0]), np.array([[3], [4]]), np.array([[5, 6], [7, 8]])]
    digest = hashlib.blake2b("\n".join(SPLIT.class_names).encode(), digest_size=16)
    digest.update(b"".join(int(number).to_bytes(8, "little") for part in parts for number in part.ravel()))
    for dtype in (np.int64, np.int32):
        episode = Episode(*(part.astype(dtype) for part in parts))
        assert _digest(SPLIT, [episode]) == digest.hexdigest()


@pytest.mark.parametrize(("classes", "images", "ways", "queries"), [(6, 20, 5, 15), (3, 4, 3, 3)])
def test_the_accuracy_after_a_training_is_on_tasks_of_5_ways_and_15_queries_or_fewer(
    classes, images, ways, queries
):
    data = noise_data(classes=classes, per_class=images)
    config = EvaluationConfig(ways, 1, queries, 4, copies=0, head="nearest-centroid")
    expected = evaluate_network(SmallNet(), data.val, data.mean, data.std, config, 2).interval
    assert validation_accuracy(SmallNet(), data, 4, 2) == expected


def test_the_accuracy_after_a_training_is_computed_where_it_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(evaluation, "evaluate_network", lambda *_, **named: asked.append(named) or run())
    validation_accuracy(SmallNet(), noise_data(), 4, 2, "meta")
    assert asked == [{"device": "meta"}]


@pytest.mark.parametrize(
    "change", [{}, {"copies": 0, "head": "nearest-centroid"}, {"copies": 2, "seed": 3, "C": 9.0}]
)
def test_predictions_are_those_of_a_head_on_augmented_copies_of_the_support(change):
    settings = {"copies": 5, "head": "logistic", "seed": 0, "C": 1.0} | change
    network, labels = SmallNet().train(), np.array([4, 1, 4, 1, 1])
    support, query = SPLIT.images[[0, 1, 7, 8, 15]], SPLIT.images[[14, 22, 28, 29]]
    x, many = normalise(torch.from_numpy(support), *STATISTICS), labels
    if settings["copies"]:
        many = np.tile(labels, settings["copies"])
        pixels = torch.from_numpy(np.tile(support, (settings["copies"], 1, 1, 1)))
        stream = generator(settings["seed"], "support augmentation", 0)
        x = apply_draws(pixels, draw_augmentation(Augmentation(), 12, len(many), stream), *STATISTICS)
    found = predict(network, support, labels, query, *STATISTICS, **change)
    assert network.training
    with torch.no_grad():
        batches_ = x, normalise(torch.from_numpy(query), *STATISTICS)
        one, two = (unit_norm(network.eval().features(each).numpy()) for each in batches_)
    expected = fit_confidence(settings["head"], settings["C"], one, many, two)
    np.testing.assert_array_equal(found.labels, expected[0])
    np.testing.assert_allclose(found.confidence, expected[1], atol=1e-5)
    assert found.converged == expected[2]


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


def test_as_many_tasks_pass_together_as_fit_in_a_batch_and_at_least_one():
    assert [evaluation._tasks_per_batch(images, 25) for images in (5, 12, 26)] == [5, 2, 1]
