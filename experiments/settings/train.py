"""The settings of the training."""

import math
from dataclasses import dataclass
from pathlib import Path

from experiments.requirements import require, require_at_least
from experiments.settings.network import Network


@dataclass(frozen=True)
class Train(Network):
    """Train a searched cell's network on the base classes, as RFS does (Section 6.1)."""

    genotype: Path = Path("runs/search/genotype.json")
    """The searched cell."""
    epochs: int = 100
    """Passes over the base classes."""
    batch_size: int = 64
    """Images per step."""
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
    out: Path = Path("runs/train")
    """Run folder; a run stopped there goes on by itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, ("epochs", "batch_size"))
        require_at_least(self, 0, ("momentum", "weight_decay", "drop_path"))
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
