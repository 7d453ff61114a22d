"""The networks and the synthetic images of the stages: the paper's sizes, and tiny ones for a rehearsal."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.fewshot.training import TrainConfig
from mamltheory.nas.genotype import Candidates, published_genotypes
from mamltheory.nas.network import Network, NetworkSettings, derived_network, supernet
from mamltheory.nas.scoring.score import ScoreSettings
from mamltheory.nas.scoring.scorers import CellScorer
from mamltheory.rng import generator, numpy_generator
from mamltheory.tasks import Task

from .machine import Machine

WHOLE = Candidates()
FEW = Candidates(*((("conv_3x3", "skip_connect"), *((("max_pool_3x3BN",),) * 8)) for _ in range(2)))
"""A supernet with two operations to choose from in each cell."""
HARMONIC = ScoreSettings(outputs="sum", measure="harmonic")
TRAINING = TrainConfig(batch_size=8, learning_rate=0.01, epochs=2, milestones=(1,), drop_path=0.2, seed=5)


def noise_images(size: int, classes: int, per_class: int) -> ImageData:
    """Three splits of images of uniform noise, with labels in turn."""

    def split(name: str) -> ImageSplit:
        random, count = numpy_generator(0, f"gpu-check images {name}"), classes * per_class
        images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return ImageSplit(images, np.arange(count) % classes, tuple(f"{name}{i}" for i in range(classes)))

    splits = {name: split(name) for name in ("train", "val", "test")}
    return ImageData("noise", **splits, mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29))


def noise_tasks(size: int, ways: int, count: int, random: torch.Generator) -> tuple[Task, ...]:
    """Tasks of normal noise with one query and one support image a class."""

    def images() -> Tensor:
        return torch.randn(ways, 3, size, size, generator=random)

    return tuple(Task(images(), torch.eye(ways), images(), torch.eye(ways)) for _ in range(count))


def cell_network(channels: int, seed: int = 0) -> Network:
    """A network of three searched cells for small images of three classes."""
    size = NetworkSettings(channels, cells=3, classes=3, stem_stride=2)
    return derived_network(published_genotypes()[0].genotype, size, seed)


@dataclass(frozen=True)
class CellProblem:
    """The supernet and the tasks of scores.

    Attributes:
        size: Size of the supernet.
        pixels: Side of the images.
        ways: Classes of a task.
        count: Joint tasks.
        whole: Its operations.
    """

    size: NetworkSettings
    pixels: int
    ways: int
    count: int
    whole: Candidates

    def network(self, device: str, dtype: torch.dtype = torch.float32) -> Network:
        """The supernet on a device."""
        return supernet(self.whole, self.size, 0).to(device, dtype)

    def tasks(self) -> tuple[Task, ...]:
        """The tasks, on the CPU."""
        return noise_tasks(self.pixels, self.ways, self.count, generator(0, "gpu-check tasks"))

    def candidates(self, count: int) -> list[Candidates]:
        """The supernet, and as many without one operator as there are for this count; then from the first again."""
        some = [self.whole, *(self.whole.without(operator) for operator in self.whole.operators())]
        return [some[i % len(some)] for i in range(count)]

    def scorer(self, device: str) -> CellScorer:
        """A scorer of harmonic condition numbers."""
        draw = partial(noise_tasks, self.pixels, self.ways, self.count)
        return CellScorer(self.size, 0, draw, None, HARMONIC, device)


def cell_problem(machine: Machine, channels: int = 48) -> CellProblem:
    """That of the paper's size with a number of channels; a tiny one in a rehearsal."""
    if machine.fake:
        return CellProblem(NetworkSettings(4, 3, 2, 2), 8, 2, 1, FEW)
    return CellProblem(NetworkSettings(channels, 5, 5), 32, 5, 3, WHOLE)
