"""Accuracies by prototypes, many tasks together, are those of the evaluation with the nearest centroid."""

import numpy as np
import pytest
import torch

from mamltheory.errors import ShapeError
from mamltheory.fewshot import prototypes
from mamltheory.fewshot.episodes import sample_episode
from mamltheory.fewshot.evaluation import EvaluationConfig, evaluate_network
from mamltheory.fewshot.heads import unit_norm
from mamltheory.fewshot.prototypes import followed_accuracies, prototype_accuracies, split_features
from mamltheory.rng import numpy_generator
from tests.fewshot.small import SmallNet, noise_data, noise_split
from tests.reference.fewshot_evaluation import accuracies as plain_accuracies

SPLIT = noise_split(7, 14, name="prototypes")
STATISTICS = ((0.5, 0.4, 0.5), (0.25, 0.3, 0.2))
TASKS = 30


def settled(seed=0):
    """A network whose norms have seen some images, so that evaluation and training mode differ."""
    network = SmallNet(seed=seed)
    x = torch.from_numpy(SPLIT.images[:40]).permute(0, 3, 1, 2) / 255
    network.train()(x)
    return network


def config(shots, tasks=TASKS, queries=6):
    return EvaluationConfig(shots=shots, queries=queries, tasks=tasks, head="nearest-centroid", copies=0)


def episodes(shots, count=TASKS, queries=6, seed=3):
    return [sample_episode(SPLIT, 5, shots, queries, seed, i) for i in range(count)]


@pytest.mark.parametrize("shots", [1, 5])
def test_every_task_is_as_accurate_as_in_the_evaluation(shots):
    network = settled()
    found = prototype_accuracies(split_features(network, SPLIT, *STATISTICS), episodes(shots))
    expected = evaluate_network(network, SPLIT, *STATISTICS, config(shots), 3).accuracies
    np.testing.assert_array_equal(found, expected)
    assert 0.2 < found.mean() < 1
    few = config(shots, tasks=4)
    np.testing.assert_array_equal(found[:4], plain_accuracies(network, SPLIT, *STATISTICS, few, 3))


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_the_number_of_tasks_that_are_computed_together_changes_nothing(monkeypatch, together):
    features = split_features(settled(), SPLIT, *STATISTICS)
    expected = prototype_accuracies(features, episodes(1))
    monkeypatch.setattr(prototypes, "TASKS_TOGETHER", together)
    np.testing.assert_array_equal(prototype_accuracies(features, episodes(1)), expected)


def test_features_are_of_unit_norm_in_the_order_of_the_images():
    network = settled()
    found = split_features(network, SPLIT, *STATISTICS)
    x = (SPLIT.images / 255 - STATISTICS[0]) / STATISTICS[1]
    with torch.no_grad():
        expected = network.eval().features(torch.from_numpy(x.transpose(0, 3, 1, 2)).float()).numpy()
    np.testing.assert_allclose(found, unit_norm(expected), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1)
    assert found.dtype == np.float64


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_in_its_mode_with_its_statistics(training):
    network = settled().train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    followed_accuracies(network, noise_data(per_class=10), ["val"], [1], 5, 3, 4, 0)
    assert network.training is training
    assert all(module.training is training for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_that_fails_is_left_in_its_mode():
    class Failing(SmallNet):
        def features(self, x):
            raise RuntimeError(f"no features of {len(x)} images")

    network = Failing().train()
    with pytest.raises(RuntimeError, match="no features"):
        split_features(network, SPLIT, *STATISTICS)
    assert network.training


def test_followed_accuracies_are_the_means_of_the_evaluation_by_split_and_shots():
    network, data = settled(), noise_data(per_class=12)
    found = followed_accuracies(network, data, ("val", "test"), (1, 5), 5, 6, 12, 8)
    assert list(found) == ["val", "test"]
    for name, by_shots in found.items():
        assert list(by_shots) == [1, 5]
        for shots, value in by_shots.items():
            split = getattr(data, name)
            expected = evaluate_network(network, split, data.mean, data.std, config(shots, tasks=12), 8)
            assert value == pytest.approx(expected.interval.mean, rel=1e-12)
    again = followed_accuracies(network, data, ("val",), (5,), 5, 6, 12, 8)
    assert again["val"][5] == found["val"][5]
    other = followed_accuracies(network, data, ("val",), (1,), 5, 6, 12, 9)
    assert other["val"][1] != found["val"][1]


def test_easy_features_are_recognised_and_noise_is_at_chance():
    perfect = np.eye(7)[SPLIT.labels]
    assert (prototype_accuracies(perfect, episodes(1)) == 1).all()
    noise = numpy_generator(0, "noise features").standard_normal((len(SPLIT), 20))
    found = prototype_accuracies(noise, episodes(1, 300))
    assert found.mean() == pytest.approx(0.2, abs=4 * found.std() / 300**0.5)


def test_tasks_of_several_sizes_and_no_task_are_refused():
    features = np.zeros((len(SPLIT), 3))
    for tasks, message in (
        (episodes(1, 2) + episodes(2, 1), "3 tasks of 2 sizes"),
        (episodes(1, 2) + episodes(1, 1, queries=4), "3 tasks of 2 sizes"),
        ([], "0 tasks of 0 sizes: expected at least one task"),
    ):
        with pytest.raises(ShapeError, match=message):
            prototype_accuracies(features, tasks)
