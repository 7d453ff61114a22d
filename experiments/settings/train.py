"""The settings of the training."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.requirements import require, require_at_least
from experiments.settings.network import Network


@dataclass(frozen=True)
class Train(Network):
    """Train a network of searched cells, or ResNet-12, on the base classes, as RFS does (Section 6.1)."""

    network: Literal["cells", "resnet12"] = "cells"
    """What is trained: a stack of the genotype's cells, or the ResNet-12 of RFS (no genotype, no channels)."""
    genotype: Path = Path("runs/search/genotype.json")
    """The searched cell."""
    epochs: int = 100
    """Passes over the base classes."""
    batch_size: int = 64
    """Images per step, of all processes together."""
    learning_rate: float = 0.02
    """Initial learning rate of SGD."""
    milestones: tuple[int, ...] = (60, 80)
    """Epochs after which the learning rate falls by a factor of ten."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """ℓ2 penalty on the weights."""
    drop_path: float = 0.2
    """Probability of leaving out an operation at the end of training; it grows linearly from zero."""
    validate_every: int = 0
    """Few-shot accuracy on the validation classes after every so many epochs; 0 for never, as in the paper."""
    validation_tasks: int = 200
    """Tasks of a validation: up to 5 ways, 1 shot, nearest centroid."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Number format of products and activations; weights, statistics and the loss stay in float32."""
    compile: bool = False
    """Compile the blocks of the network first: a minute or more at the start, faster steps after it."""
    channels_last: bool = True
    """Keep channels together in memory: faster convolutions on CPU and GPU."""
    save_minutes: float = 10.0
    """Save the state within an epoch after so many minutes; at its end and at a stop it is saved anyway."""
    out: Path = Path("runs/train")
    """Run folder; a run stopped there goes on by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, ("epochs", "batch_size"))
        require_at_least(self, 2, ("validation_tasks",))
        require_at_least(self, 0, ("momentum", "weight_decay", "drop_path", "validate_every", "save_minutes"))
        positive = 0 < self.learning_rate < math.inf
        require(positive, f"learning_rate is {self.learning_rate}: expected a positive finite number")
        require(self.momentum < 1, f"momentum is {self.momentum}: expected less than 1")
        require(self.drop_path < 1, f"drop_path is {self.drop_path}: expected less than 1")
        late = [epoch for epoch in self.milestones if not 0 < epoch < self.epochs]
        require(
            not late,
            f"milestones {late} lie outside the {self.epochs} epochs: change --milestones or --epochs",
        )
        ordered = list(self.milestones) == sorted(set(self.milestones))
        require(ordered, f"milestones is {self.milestones}: give them in increasing order, each once")
