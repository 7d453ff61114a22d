"""Small supernets and image tasks that several files of these tests share."""

import torch

from mamltheory.nas.genotype import Candidates
from mamltheory.nas.network import NetworkSettings, supernet
from mamltheory.rng import generator
from mamltheory.tasks import Task

WAYS = 3
SMALL = NetworkSettings(channels=4, cells=3, classes=WAYS, stem_stride=2)
ALL = Candidates().operators()


def draw_tasks(stream, count=2, size=12, ways=WAYS):
    """Tasks of one random image a class, among the queries and among the supports."""
    labels = torch.eye(ways)

    def images():
        return torch.randn(ways, 3, size, size, generator=stream)

    return [Task(images(), labels, images(), labels) for _ in range(count)]


def tasks(seed=0, count=2, size=12):
    return draw_tasks(generator(seed, "tasks"), count, size)


def shaken(seed=0, dtype=torch.float64, network_settings=SMALL):
    """A supernet whose norms are away from their initial 1 and 0, which could hide an error."""
    network, stream = supernet(Candidates(), network_settings, seed).to(dtype), generator(seed, "shift")
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.rand(parameter.shape, generator=stream)
    return network
