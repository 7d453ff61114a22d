"""Training as a user of torch would write it first: a DataLoader, one image at a time through Pillow, float32."""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from mamltheory.fewshot.augment import draw_augmentation
from mamltheory.rng import generator
from tests.reference.fewshot_augment import augment_with_pillow


class Augmented(Dataset):
    """The training images, each through the transform of the recipe when it is asked for."""

    def __init__(self, data, config):
        self.data, self.config = data, config

    def __len__(self):
        return len(self.data.train)

    def __getitem__(self, row):
        image = self.data.train.images[row]
        draws = draw_augmentation(
            self.config.augmentation(), image.shape[0], 1, generator(self.config.seed, "loader", int(row))
        )
        parts = [getattr(draws, name)[0].numpy() for name in ("offsets", "mirrored", "factors", "order")]
        pixels = augment_with_pillow(image, *parts, self.data.mean, self.data.std)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float(), int(
            self.data.train.labels[row]
        )


def train_steps(network, data, config, device, steps, workers):
    """Yield after every one of so many steps of SGD."""
    optimizer = torch.optim.SGD(
        network.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
    )
    loader = DataLoader(
        Augmented(data, config), config.batch_size, shuffle=True, drop_last=True, num_workers=workers,
        pin_memory=device.type == "cuda", generator=generator(config.seed, "loader"),
    )  # fmt: skip
    done = 0
    while done < steps:
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(network(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            yield
            if done == steps:
                return
