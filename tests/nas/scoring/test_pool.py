"""Scores cut from one kernel of a pool are those of the tasks by themselves; multiply-accumulates by hand."""

import inspect
import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn

from mamltheory.errors import ShapeError, UnsupportedModelError, ValueRangeError
from mamltheory.kernels.meta import adaptation_matrix
from mamltheory.linalg import Converged
from mamltheory.nas.genotype import Candidates, Cell, Genotype, random_genotype
from mamltheory.nas.network import NetworkSettings, derived_network, supernet
from mamltheory.nas.scoring.condition_number import condition_score, network_kernels
from mamltheory.nas.scoring.pool import (
    Batch,
    PoolSettings,
    PoolTasks,
    block,
    conditioning_scores,
    pooled_scores,
    regression_scores,
)
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.sizes import multiply_accumulates
from mamltheory.rng import generator, numpy_generator
from mamltheory.tasks import Task

WAYS, CLASSES, IMAGES = 3, 5, 4
SMALL = NetworkSettings(channels=4, cells=3, classes=WAYS, stem_stride=2)


@lru_cache
def pool():
    return torch.randn(CLASSES * IMAGES, 3, 12, 12, generator=generator(0, "pool"))


def network(seed=0):
    return supernet(random_genotype(generator(seed, "genotype")).candidates(), SMALL, seed)


def batches(count=3, tasks=2):
    found = []
    for i in range(count):
        rows = numpy_generator(i, "batch").permutation(CLASSES * IMAGES)[: 2 * WAYS * tasks]
        query, support = torch.from_numpy(rows).view(tasks, 2, WAYS).unbind(1)
        found.append(Batch(query, support))
    return found


def single_tasks(count=6, queries=IMAGES - 1):
    """Ways are classes; the first image of each (in a random order) is the support."""
    rows = []
    for i in range(count):
        random = numpy_generator(i, "task")
        classes = random.permutation(CLASSES)[:WAYS]
        rows.append([c * IMAGES + random.permutation(IMAGES)[: queries + 1] for c in classes])
    rows = torch.from_numpy(np.array(rows))
    return rows[..., 1:], rows[..., :1]


def task_of(query, support):
    labels = torch.eye(WAYS)
    return Task(pool()[query], labels, pool()[support], labels)


@pytest.mark.parametrize("outputs", ["sum", pytest.param("full", marks=pytest.mark.slow)])
def test_scores_from_the_pools_kernel_are_those_of_kernels_of_their_own(outputs):
    full = outputs == "full"
    net, chosen = network(), batches(1 if full else 2)
    scores = pooled_scores(net, pool(), PoolTasks(chosen, *single_tasks()), PoolSettings(outputs))
    for kernel in ("maml", "anil", "ntk"):
        for measure in ("condition",) if full else ("condition", "harmonic"):
            settings = ScoreSettings(kernel, outputs, measure=measure)
            logs = [
                math.log(
                    condition_score(
                        net, [task_of(*pair) for pair in zip(b.query, b.support, strict=True)], settings
                    )
                )
                for b in chosen
            ]
            assert scores[f"{kernel} {measure}"] == pytest.approx(-np.mean(logs), rel=2e-3)


@pytest.mark.parametrize("several_supports", [True, False])
@pytest.mark.parametrize("outputs", ["sum", "full"])
def test_kernel_regression_is_the_first_term_of_theorem_2_task_by_task(outputs, several_supports):
    theta, _ = network_kernels(network(), pool(), outputs)
    queries, supports = single_tasks()[:: -1 if several_supports else 1]
    k = 1 if outputs == "sum" else WAYS
    labels = torch.eye(WAYS, dtype=torch.float64) - 1 / WAYS
    losses, hits = [], []
    for query, support in zip(queries, supports, strict=True):
        rows, columns = (
            torch.cat([torch.arange(k) + k * i for i in each.flatten()]) for each in (query, support)
        )
        among = theta[columns][:, columns]
        solver = adaptation_matrix(
            theta[rows][:, columns], among, Converged(1e-3 * float(among.diagonal().mean()))
        )
        outputs_of = (
            solver @ labels.repeat_interleave(support.shape[1], 0).reshape(len(columns), -1)
        ).reshape(query.numel(), WAYS)
        truth = torch.arange(WAYS).repeat_interleave(query.shape[1])
        losses.append(float(((outputs_of - labels[truth]) ** 2).mean()))
        hits.append(float((outputs_of.argmax(1) == truth).double().mean()))
    loss, accuracy = regression_scores(theta, len(pool()), queries, supports)
    assert loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert accuracy == pytest.approx(np.mean(hits))


def test_a_kernel_that_knows_the_classes_predicts_them_and_a_useless_one_predicts_nothing():
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES)
    same = (labels[:, None] == labels).double()
    loss, accuracy = regression_scores(same + 1e-9, CLASSES * IMAGES, *single_tasks())
    assert accuracy == 1
    assert loss == pytest.approx(0, abs=1e-5)
    loss, _ = regression_scores(torch.eye(CLASSES * IMAGES).double(), CLASSES * IMAGES, *single_tasks())
    assert loss == pytest.approx((WAYS - 1) / WAYS**2)


def test_a_singular_kernel_scores_minus_infinity():
    theta = torch.ones(CLASSES * IMAGES, CLASSES * IMAGES, dtype=torch.float64)
    scores = conditioning_scores(theta, theta, CLASSES * IMAGES, batches(), Converged(1e-3), torch.float32)
    assert scores["ntk condition"] == scores["ntk harmonic"] == -math.inf


def test_blocks_keep_all_outputs_of_an_image_together():
    kernel = torch.arange(36.0).view(6, 6)
    found = block(kernel, 3, torch.tensor([2]), torch.tensor([0, 1]))
    torch.testing.assert_close(found, kernel[4:6, :4])
    with pytest.raises(ShapeError, match="6 rows for 4 images"):
        block(kernel, 4, torch.tensor([0]), torch.tensor([0]))


def test_blocks_are_where_the_kernel_is():
    assert inspect.signature(regression_scores).parameters["ridge"].default == 1e-3
    rows = torch.tensor([1, 0])
    assert block(torch.zeros(6, 6, device="meta"), 3, rows, rows).is_meta


def test_a_repeated_image_is_refused_before_it_makes_a_kernel_singular():
    with pytest.raises(ValueRangeError, match="twice"):
        Batch(torch.tensor([[0, 1]]), torch.tensor([[2, 0]]))
    with pytest.raises(ValueRangeError, match="twice"):
        Batch(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[4, 5], [1, 6]]))


def test_multiply_accumulates_by_hand():
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, padding=1),  # 8 · 4 · 4 outputs of 3 · 9 products
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2), groups=8),  # 8 · 16 outputs of 5 products
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).train()
    assert multiply_accumulates(layers, torch.zeros(1, 3, 8, 8)) == 128 * 27 + 128 * 5 + 40
    assert layers.training
    assert layers[1].num_batches_tracked == 0
    with pytest.raises(UnsupportedModelError, match="neither"):
        multiply_accumulates(nn.ReLU(), torch.zeros(1, 3))


def test_multiply_accumulates_of_a_network_of_cells_by_hand():
    """Skips alone: stem, the fits of the inputs, and the skips of stride 2, which are two half convolutions."""
    cell = Cell(tuple((("skip_connect", 0), ("skip_connect", 1)) for _ in range(3)))
    net = derived_network(Genotype(cell, cell), NetworkSettings(4, 3, 7), 0)
    stem = 16 * 16 * 4 * 27
    normal = 2 * 16 * 16 * 4 * 4
    # inputs of the first reduction: the stem's 4 channels and 3 · 4 of the cell before, both to 8
    first = 16 * 16 * 8 * (4 + 12) + 6 * (8 * 8) * 8 * 8
    # of the second: 12 channels at 16 × 16 pixels and 24 at 8 × 8, both to 16 channels at 8 × 8
    second = 8 * 8 * 16 * (12 + 24) + 6 * (4 * 4) * 16 * 16
    head = 48 * 7
    expected = stem + normal + first + second + head
    assert multiply_accumulates(net, torch.zeros(1, 3, 16, 16)) == expected


def test_a_network_that_runs_fewer_operations_than_it_holds_is_counted_as_it_runs():
    alone = random_genotype(generator(0, "g")).candidates()
    x = torch.zeros(1, 3, 16, 16)
    held = supernet(Candidates(), SMALL, 0)
    assert multiply_accumulates(held, x) > multiply_accumulates(supernet(alone, SMALL, 0), x)
    assert multiply_accumulates(held.restrict(alone), x) == multiply_accumulates(supernet(alone, SMALL, 0), x)
