"""The scores of a network in training are those of its features under a new head, by the public kernels."""

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

import mamltheory as mt
from mamltheory.linalg import Converged, conditioning
from mamltheory.nas.genotype import random_genotype
from mamltheory.nas.network import NetworkSettings, derived_network
from mamltheory.nas.scoring.pool import Batch, PoolSettings, PoolTasks, trained_scores
from mamltheory.nas.weights import initialise_layer
from mamltheory.rng import generator, numpy_generator
from tests.reference.kernels_autograd import ntk

WAYS, CLASSES, IMAGES, HEAD_SEED = 3, 4, 3, 5
SETTINGS = NetworkSettings(channels=4, cells=3, classes=7, stem_stride=2)


@lru_cache
def pool():
    return torch.randn(
        CLASSES * IMAGES, 3, 12, 12, generator=generator(0, "trained pool"), dtype=torch.float64
    )


def trained_network():
    """A network with batch norms whose statistics, scales and shifts are away from 0 and 1."""
    network = derived_network(random_genotype(generator(2, "genotype")), SETTINGS, 0).double().train()
    stream = generator(0, "steps")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        for _ in range(3):
            network(torch.randn(8, 3, 12, 12, generator=stream, dtype=torch.float64))
    return network


def pool_tasks():
    batches = []
    for i in range(2):
        rows = numpy_generator(i, "trained batch").permutation(CLASSES * IMAGES)
        query, support = torch.from_numpy(rows).view(2, 2, WAYS).unbind(1)
        batches.append(Batch(query, support))
    rows = torch.arange(CLASSES * IMAGES).view(CLASSES, IMAGES)
    tasks = torch.stack([rows[[0, 1, 2]], rows[[3, 1, 0]], rows[[2, 3, 1]]])
    return PoolTasks(batches, tasks[..., 1:], tasks[..., :1])


class UnderNewHead(nn.Module):
    """The features of a network in evaluation mode, and a linear layer of its own."""

    def __init__(self, network):
        super().__init__()
        self.body = network
        self.head = nn.Linear(network.classifier.in_features, WAYS).double()
        drawn = nn.Linear(network.classifier.in_features, WAYS)
        initialise_layer(drawn, "kaiming", generator(HEAD_SEED, "weights classifier"))
        self.head.load_state_dict(drawn.state_dict())
        self.eval()

    def forward(self, x):
        return self.head(self.body.features(x))

    def weights(self):
        """Names of the weights by which the kernels differentiate: neither norms nor biases, nor the old head."""
        return {
            name
            for name, value in self.named_parameters()
            if value.dim() > 1 and not name.startswith("body.classifier")
        }


def expected_scores(outputs):
    """All scores by the public functions, with the generic method, task by task."""
    module, tasks = UnderNewHead(trained_network()), pool_tasks()
    options = {"outputs": outputs, "method": "generic"}
    labels, weights = torch.eye(WAYS, dtype=torch.float64), module.weights()
    found = dict.fromkeys(
        [
            f"{kernel} {measure}"
            for kernel in ("maml", "anil", "ntk")
            for measure in ("condition", "harmonic")
        ],
        0.0,
    )
    for batch in tasks.batches:
        joint = [
            mt.Task(pool()[query], labels, pool()[support], labels)
            for query, support in zip(batch.query, batch.support, strict=True)
        ]
        kernels = {
            name: mt.meta_ntk(module, joint, name, Converged(1e-3), select=weights, **options)
            for name in ("maml", "anil")
        }
        kernels["ntk"] = mt.empirical_ntk(module, pool()[batch.rows], select=weights, **options)
        for name, kernel in kernels.items():
            for measure in ("condition", "harmonic"):
                value = float(conditioning(kernel, measure, torch.float64))
                found[f"{name} {measure}"] -= math.log(value) / len(tasks.batches)
    theta = mt.empirical_ntk(module, pool(), select=weights, **options)
    return found | dict(
        zip(("regression loss", "regression accuracy"), regression(theta, tasks, outputs), strict=True)
    )


def regression(theta, tasks, outputs):
    """(−mean squared error, accuracy) of ridge regression with the kernel, one task after the other."""
    k = 1 if outputs == "sum" else WAYS
    errors, hits = [], []
    for query, support in zip(tasks.query, tasks.support, strict=True):
        rows, columns = (
            [int(image) * k + output for image in each.flatten() for output in range(k)]
            for each in (query, support)
        )
        among, across = theta[columns][:, columns], theta[rows][:, columns]
        ridge = 1e-3 * among.diagonal().mean() * torch.eye(len(columns), dtype=torch.float64)
        labels = torch.eye(WAYS, dtype=torch.float64) - 1 / WAYS
        predicted = (across @ (among + ridge).inverse() @ labels.reshape(len(columns), -1)).reshape(-1, WAYS)
        truth = [way for way in range(WAYS) for _ in range(query.shape[1])]
        errors.append(float(((predicted - labels[truth]) ** 2).mean()))
        hits.append(float((predicted.argmax(1) == torch.tensor(truth)).double().mean()))
    return -np.mean(errors), np.mean(hits)


@pytest.mark.parametrize("outputs", ["sum", pytest.param("full", marks=pytest.mark.slow)])
def test_scores_in_training_are_those_of_the_public_kernels(outputs):
    found = trained_scores(trained_network(), pool(), pool_tasks(), PoolSettings(outputs), HEAD_SEED)
    expected = expected_scores(outputs)
    assert found.keys() == expected.keys()
    assert all(math.isfinite(value) for value in found.values())
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=1e-6), name


def test_the_generic_kernel_is_that_of_plain_backward_passes():
    module = UnderNewHead(trained_network())
    x, weights = pool()[:3], module.weights()
    found = mt.empirical_ntk(module, x, select=weights, method="generic")
    torch.testing.assert_close(found, ntk(module, x, x, weights))


def test_the_network_is_left_in_training_with_its_weights_statistics_and_gradients():
    network = trained_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained_scores(network, pool(), pool_tasks(), PoolSettings(), HEAD_SEED)
    assert all(module.training for module in network.modules())
    assert network.classifier.out_features == SETTINGS.classes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None and value.requires_grad for value in network.parameters())


def test_scores_do_not_depend_on_the_mode_nor_on_the_classifier_of_the_training():
    network = trained_network()
    expected = trained_scores(network, pool(), pool_tasks(), PoolSettings(), HEAD_SEED)
    assert trained_scores(network.eval(), pool(), pool_tasks(), PoolSettings(), HEAD_SEED) == expected
    assert not network.training
    network.classifier.weight.data.fill_(3.0)
    assert trained_scores(network, pool(), pool_tasks(), PoolSettings(), HEAD_SEED) == expected
    other = trained_scores(network, pool(), pool_tasks(), PoolSettings(), HEAD_SEED + 1)
    assert other["ntk condition"] != expected["ntk condition"]
