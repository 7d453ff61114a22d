"""Frozen features of unit norm (Appendix E): of images as they are, and of augmented support images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mamltheory.fewshot.augment import Augmentation, apply_draws, draw, join
from mamltheory.fewshot.heads import unit_norm
from mamltheory.fewshot.images import normalise, take
from mamltheory.rng import generator

Images = np.ndarray | torch.Tensor


def tasks_at_once(count: int, batch_size: int) -> int:
    """How many tasks with `count` support images each go through a network together."""
    return max(1, batch_size // count)


@dataclass(frozen=True)
class FeatureMap:
    """`network.features` in evaluation mode on a device, for images with these channel statistics.

    The network has to be in evaluation mode and on the device already. `batch_size` images, at least one
    task's support, go through it at once; the features do not depend on how the images are cut.
    """

    network: torch.nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device | str = "cpu"
    batch_size: int = 256

    def __call__(self, x: torch.Tensor) -> np.ndarray:
        """Rows of length 1 in float64 for normalised images B×3×H×W."""
        with torch.no_grad():
            return unit_norm(self.network.features(x).cpu().numpy())

    def plain(self, images: Images, rows: np.ndarray) -> np.ndarray:
        """Features of the images as they are, one row each."""
        batches = np.split(rows, range(self.batch_size, len(rows), self.batch_size))
        parts = [self(normalise(take(images, part, self.device), self.mean, self.std)) for part in batches]
        return np.concatenate(parts)

    def supports(
        self, images: Images, supports: Sequence[np.ndarray], settings: Augmentation, copies: int, seed: int
    ) -> Iterator[np.ndarray]:
        """For each task its support features, copy by copy, each copy in the order of the task's rows.

        supports: the rows of every task, equally many. Every copy passes the training transform, whose draws
        are a pure function of (seed, the task's number); copies = 0 takes the images once, as they are.
        """
        size, count = images.shape[1], len(supports[0]) * max(copies, 1)
        together = tasks_at_once(count, self.batch_size)
        for first in range(0, len(supports), together):
            group = range(first, min(first + together, len(supports)))
            rows = np.concatenate([np.tile(supports[i], max(copies, 1)) for i in group])
            pixels = take(images, rows, self.device)
            if copies:
                streams = (generator(seed, "support augmentation", i) for i in group)
                draws = join([draw(settings, size, count, stream) for stream in streams])
                x = apply_draws(pixels, draws, self.mean, self.std)
            else:
                x = normalise(pixels, self.mean, self.std)
            yield from self(x).reshape(len(group), count, -1)
