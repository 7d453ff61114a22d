"""Pre-training as a plain loop: one image at a time through the transform, SGD with momentum written out."""

import numpy as np
import torch

from mamltheory.fewshot.augment import draw_augmentation
from mamltheory.rng import generator
from tests.reference.fewshot_augment import augment_in_reals


def train(network, data, config, epochs):
    """The first epochs of training, in place; returns the mean loss of each."""
    velocity = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    losses = []
    for epoch in range(1, epochs + 1):
        rate = config.learning_rate
        for milestone in config.milestones:
            rate = rate * config.decay if epoch > milestone else rate
        order = torch.randperm(
            len(data.train.labels), generator=generator(config.seed, "shuffle", epoch)
        ).tolist()
        of_steps = []
        for step in range(len(order) // config.batch_size):
            rows = order[step * config.batch_size : (step + 1) * config.batch_size]
            x, y = _batch(data, rows, config, epoch, step)
            network.train()
            logits = network(x)
            loss = -torch.log_softmax(logits, 1)[range(len(rows)), y].mean()
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            for (name, p), gradient in zip(network.named_parameters(), gradients, strict=True):
                velocity[name] = config.momentum * velocity[name] + gradient + config.weight_decay * p.data
                p.data = p.data - rate * velocity[name]
            of_steps.append(loss.item())
        losses.append(float(np.mean(of_steps)))
    return losses


def _batch(data, rows, config, epoch, step):
    size = data.train.images.shape[1]
    random = generator(config.seed, "augment", epoch, step)
    draws = draw_augmentation(config.augmentation(), size, len(rows), random)
    images = []
    for i, row in enumerate(rows):
        parts = [getattr(draws, name)[i].numpy() for name in ("offsets", "mirrored", "factors", "order")]
        images.append(augment_in_reals(data.train.images[row], *parts, data.mean, data.std))
    x = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2)).float()
    return x, torch.tensor([int(data.train.labels[row]) for row in rows])
