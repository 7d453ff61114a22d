"""Small data and networks that the few-shot tests share."""

import numpy as np
import torch

from mamltheory.fewshot.images import ImageData, ImageSplit
from mamltheory.rng import generator, numpy_generator


def noise_split(
    classes: int = 6, per_class: int = 20, size: int = 12, seed: int = 0, name: str = "c"
) -> ImageSplit:
    """Classes that differ by colour and pattern under noise; the labels are interleaved, not sorted."""
    random = numpy_generator(seed, f"test images {name}")
    patterns = random.integers(40, 216, (classes, 1, 1, 3)) + random.integers(
        -30, 30, (classes, size, size, 3)
    )
    labels = np.arange(classes * per_class) % classes
    images = patterns[labels] + random.integers(-40, 40, (len(labels), size, size, 3))
    return ImageSplit(
        images.clip(0, 255).astype(np.uint8),
        labels.astype(np.int64),
        tuple(f"{name}{i}" for i in range(classes)),
    )


def noise_data(size: int = 12, classes: int = 6, per_class: int = 20) -> ImageData:
    names = ("train", "val", "test")
    splits = {name: noise_split(classes, per_class, size, seed, name) for seed, name in enumerate(names)}
    return ImageData("noise", **splits, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


class SmallNet(torch.nn.Module):
    """A small convolutional network under the contract of the searched ones: features, logits, drop_path."""

    def __init__(self, classes: int = 6, channels: int = 8, seed: int = 0) -> None:
        super().__init__()
        self.drop_path = 0.0
        self.drop_path_seeds: list[int] = []
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            torch.nn.BatchNorm2d(channels),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=False),
            torch.nn.BatchNorm2d(2 * channels),
        )
        self.classifier = torch.nn.Linear(2 * channels, classes)
        for index, parameter in enumerate(self.parameters()):
            if parameter.dim() > 1:
                random = generator(seed, "test network", index)
                parameter.data = torch.randn(parameter.shape, generator=random) / parameter[0].numel() ** 0.5
        self.classifier.bias.data.zero_()

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))

    def seed_drop_path(self, seed: int) -> None:
        self.drop_path_seeds.append(seed)
